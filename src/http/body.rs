//! The body of an answer: at hand as a whole, or made while it is sent.
//!
//! One that is made while it is sent comes through a channel of two pieces, so that its maker is no
//! further ahead than that of a peer who reads slowly or not at all. It has to say that it is at its
//! end: a maker that fails or panics on its way leaves an answer that is cut off, and no peer can take
//! that for a whole one.

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::sync::mpsc;

/// Pieces that are made ahead of what is sent.
const CHANNEL_CAPACITY: usize = 2;

/// See the [module](self).
#[derive(Debug)]
pub struct Body(BodyKind);

#[derive(Debug)]
enum BodyKind {
    Buffered(Full<Bytes>),
    Streamed(mpsc::Receiver<BodyChunk>),
}

#[derive(Debug)]
enum BodyChunk {
    Data(Bytes),
    End,
}

/// The maker of a body was gone before it had said that it is at its end.
#[derive(Debug, thiserror::Error)]
#[error("the response body is truncated")]
pub struct Truncated;

/// Nobody reads the body any more.
#[derive(Debug, thiserror::Error)]
#[error("the client has disconnected")]
pub struct Disconnected;

/// Makes a [`Body`], piece by piece.
#[derive(Debug)]
pub struct BodyWriter(mpsc::Sender<BodyChunk>);

impl BodyWriter {
    /// Sends a piece, once there is room for it.
    ///
    /// # Errors
    /// [`Gone`] when the connection is.
    pub async fn send(&self, chunk: Bytes) -> Result<(), Disconnected> {
        self.0.send(BodyChunk::Data(chunk)).await.map_err(|_| Disconnected)
    }

    /// Says that the body is at its end.
    ///
    /// # Errors
    /// [`Gone`] when the connection is.
    pub async fn end(self) -> Result<(), Disconnected> {
        self.0.send(BodyChunk::End).await.map_err(|_| Disconnected)
    }
}

impl Body {
    /// A body that is made while it is sent.
    pub fn channel() -> (BodyWriter, Self) {
        let (sender, receiver) = mpsc::channel(CHANNEL_CAPACITY);
        (BodyWriter(sender), Self(BodyKind::Streamed(receiver)))
    }
}

impl Default for Body {
    fn default() -> Self {
        Self(BodyKind::Buffered(Full::default()))
    }
}

impl<T: Into<Bytes>> From<T> for Body {
    fn from(bytes: T) -> Self {
        Self(BodyKind::Buffered(Full::new(bytes.into())))
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Truncated;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Truncated>>> {
        match &mut self.0 {
            BodyKind::Buffered(body) => Pin::new(body).poll_frame(context).map_err(|never| match never {}),
            BodyKind::Streamed(receiver) => Poll::Ready(match ready!(receiver.poll_recv(context)) {
                Some(BodyChunk::Data(chunk)) => Some(Ok(Frame::data(chunk))),
                Some(BodyChunk::End) => {
                    self.0 = BodyKind::Buffered(Full::default());
                    None
                }
                None => Some(Err(Truncated)),
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            BodyKind::Buffered(body) => body.is_end_stream(),
            BodyKind::Streamed(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            BodyKind::Buffered(body) => body.size_hint(),
            BodyKind::Streamed(_) => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn only_a_body_that_was_ended_is_complete() {
        let (writer, body) = Body::channel();
        writer.send("one".into()).await.expect("read");
        writer.send("two".into()).await.expect("read");
        let rest = tokio::spawn(writer.end());
        assert_eq!(body.collect().await.expect("whole").to_bytes(), "onetwo");
        rest.await.expect("no panic").expect("read");

        let (writer, body) = Body::channel();
        writer.send("one".into()).await.expect("read");
        drop(writer);
        assert!(body.collect().await.is_err());
    }

    #[tokio::test]
    async fn sending_fails_once_the_body_is_dropped() {
        let (writer, body) = Body::channel();
        drop(body);
        assert!(writer.send("one".into()).await.is_err());
        assert!(writer.end().await.is_err());
    }
}
