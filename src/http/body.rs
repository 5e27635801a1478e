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
const AHEAD: usize = 2;

/// See the [module](self).
#[derive(Debug)]
pub struct Body(Kind);

#[derive(Debug)]
enum Kind {
    Whole(Full<Bytes>),
    Made(mpsc::Receiver<Piece>),
}

#[derive(Debug)]
enum Piece {
    Data(Bytes),
    End,
}

/// The maker of a body was gone before it had said that it is at its end.
#[derive(Debug, thiserror::Error)]
#[error("the answer is cut off")]
pub struct Cut;

/// Nobody reads the body any more.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads the answer any more")]
pub struct Gone;

/// Makes a [`Body`], piece by piece.
#[derive(Debug)]
pub struct Writer(mpsc::Sender<Piece>);

impl Writer {
    /// Sends a piece, once there is room for it.
    ///
    /// # Errors
    /// [`Gone`] when the connection is.
    pub async fn send(&self, piece: Bytes) -> Result<(), Gone> {
        self.0.send(Piece::Data(piece)).await.map_err(|_| Gone)
    }

    /// Says that the body is at its end.
    ///
    /// # Errors
    /// [`Gone`] when the connection is.
    pub async fn end(self) -> Result<(), Gone> {
        self.0.send(Piece::End).await.map_err(|_| Gone)
    }
}

impl Body {
    /// A body that is made while it is sent.
    pub fn made() -> (Writer, Self) {
        let (pieces, body) = mpsc::channel(AHEAD);
        (Writer(pieces), Self(Kind::Made(body)))
    }
}

impl Default for Body {
    fn default() -> Self {
        Self(Kind::Whole(Full::default()))
    }
}

impl<T: Into<Bytes>> From<T> for Body {
    fn from(whole: T) -> Self {
        Self(Kind::Whole(Full::new(whole.into())))
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match &mut self.0 {
            Kind::Whole(body) => Pin::new(body).poll_frame(context).map_err(|never| match never {}),
            Kind::Made(pieces) => Poll::Ready(match ready!(pieces.poll_recv(context)) {
                Some(Piece::Data(piece)) => Some(Ok(Frame::data(piece))),
                Some(Piece::End) => {
                    self.0 = Kind::Whole(Full::default());
                    None
                }
                None => Some(Err(Cut)),
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Whole(body) => body.is_end_stream(),
            Kind::Made(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Whole(body) => body.size_hint(),
            Kind::Made(_) => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn only_what_says_so_is_whole() {
        let (writer, body) = Body::made();
        writer.send("one".into()).await.expect("read");
        writer.send("two".into()).await.expect("read");
        let rest = tokio::spawn(writer.end());
        assert_eq!(body.collect().await.expect("whole").to_bytes(), "onetwo");
        rest.await.expect("no panic").expect("read");

        let (writer, body) = Body::made();
        writer.send("one".into()).await.expect("read");
        drop(writer);
        assert!(body.collect().await.is_err());
    }

    #[tokio::test]
    async fn nothing_is_made_for_nobody() {
        let (writer, body) = Body::made();
        drop(body);
        assert!(writer.send("one".into()).await.is_err());
        assert!(writer.end().await.is_err());
    }
}
