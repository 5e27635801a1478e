//! The body of a response: buffered, or streamed while it is produced.
//!
//! A streamed body passes through a channel of two chunks, which bounds the memory for a peer that reads slowly. The
//! writer must end it explicitly: a writer that fails or panics leaves a response that the peer recognizes as
//! truncated.

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::sync::mpsc;

/// Chunks that are produced ahead of the peer.
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

/// The writer of a body was dropped before its end.
#[derive(Debug, thiserror::Error)]
#[error("the response body is truncated")]
pub struct Truncated;

/// The connection of a body is closed.
#[derive(Debug, thiserror::Error)]
#[error("the client has disconnected")]
pub struct Disconnected;

/// Writes a streamed [`Body`].
#[derive(Debug)]
pub struct BodyWriter(mpsc::Sender<BodyChunk>);

impl BodyWriter {
    /// Sends a chunk once the channel has room.
    ///
    /// # Errors
    /// [`Disconnected`] if the connection is closed.
    pub async fn send(&self, chunk: Bytes) -> Result<(), Disconnected> {
        self.0.send(BodyChunk::Data(chunk)).await.map_err(|_| Disconnected)
    }

    /// Ends the body.
    ///
    /// # Errors
    /// [`Disconnected`] if the connection is closed.
    pub async fn end(self) -> Result<(), Disconnected> {
        self.0.send(BodyChunk::End).await.map_err(|_| Disconnected)
    }
}

impl Body {
    /// A streamed body and its writer.
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
        writer.send("one".into()).await.expect("the body is alive");
        writer.send("two".into()).await.expect("the body is alive");
        let rest = tokio::spawn(writer.end());
        assert_eq!(body.collect().await.expect("a complete body").to_bytes(), "onetwo");
        rest.await.expect("no panic").expect("the body is alive");

        let (writer, body) = Body::channel();
        writer.send("one".into()).await.expect("the body is alive");
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
