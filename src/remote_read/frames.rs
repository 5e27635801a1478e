//! The frames of a streamed response: a varint with the length, the CRC-32C of the message, the message.
//!
//! The reader checks a length against the limit before it buffers the message. A stream that ends inside a frame is
//! an error: Go's own reader accepts an end after the length or after the checksum. Prometheus reports a failure in
//! the middle of a response as text between frames; such text fails as an invalid length or checksum.

use bytes::{Buf, Bytes, BytesMut};
use prost::encode_length_delimiter;

/// Content type of a response that is one compressed message.
pub const SAMPLES_CONTENT_TYPE: &str = "application/x-protobuf";
/// Content type of a response that is a stream of frames. Prometheus compares these exact bytes.
pub const STREAMED_CONTENT_TYPE: &str =
    "application/x-streamed-protobuf; proto=prometheus.ChunkedReadResponse";

/// Most bytes of a frame; Prometheus' `chunked_read_limit`. Prometheus ends its own frames after the series with
/// which they exceed 1 MiB.
pub const FRAME_LIMIT: usize = 50_000_000;

/// Bytes that are not frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The length does not fit 64 bits.
    #[error("the length of a frame does not fit 64 bits")]
    Length,
    /// The length is above the limit.
    #[error("a frame of {declared} bytes is above the limit of {FRAME_LIMIT}")]
    TooLarge {
        /// Length that the frame declares, in bytes.
        declared: u64,
    },
    /// The message does not match its checksum.
    #[error("the checksum of a frame of {length} bytes is {computed:08x}, not {declared:08x}")]
    Checksum {
        /// Length of the message, in bytes.
        length: usize,
        /// CRC-32C that the frame declares.
        declared: u32,
        /// CRC-32C of the received message.
        computed: u32,
    },
    /// The response ends inside a frame.
    #[error("the response ends inside a frame, after {length} bytes of it")]
    Truncated {
        /// Received bytes of the last frame.
        length: usize,
    },
}

/// Appends a frame around a message.
pub fn append_frame(message: &[u8], out: &mut Vec<u8>) {
    encode_length_delimiter(message.len(), out).expect("a vector grows");
    out.extend(crc32c::crc32c(message).to_be_bytes());
    out.extend(message);
}

/// Splits a stream into the messages of its frames.
#[derive(Debug, Default)]
pub struct ChunkedReader(BytesMut);

impl ChunkedReader {
    /// Adds received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The message of the next frame; `None` until the frame is complete.
    ///
    /// # Errors
    /// [`Error`] if the next bytes are not a frame.
    pub fn pop(&mut self) -> Result<Option<Bytes>, Error> {
        let mut declared = 0;
        let Some(last_index) = self.0.iter().take(10).position(|byte| byte & 0x80 == 0) else {
            return if self.0.len() < 10 { Ok(None) } else { Err(Error::Length) };
        };
        if last_index == 9 && self.0[9] > 1 {
            return Err(Error::Length);
        }
        for &byte in self.0[..=last_index].iter().rev() {
            declared = declared << 7 | u64::from(byte & 0x7f);
        }
        let length = usize::try_from(declared).unwrap_or(usize::MAX);
        if length > FRAME_LIMIT {
            return Err(Error::TooLarge { declared });
        }
        let header_len = last_index + 1 + size_of::<u32>();
        if self.0.len() < header_len + length {
            return Ok(None);
        }
        self.0.advance(last_index + 1);
        let declared = self.0.get_u32();
        let message = self.0.split_to(length).freeze();
        let computed = crc32c::crc32c(&message);
        if computed != declared {
            return Err(Error::Checksum { length, declared, computed });
        }
        Ok(Some(message))
    }

    /// Checks that the stream ended between two frames.
    ///
    /// # Errors
    /// [`Error::Truncated`] if it ended inside a frame.
    pub fn finish(&self) -> Result<(), Error> {
        match self.0.len() {
            0 => Ok(()),
            length => Err(Error::Truncated { length }),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A frame around a message.
    pub fn frame(message: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        append_frame(message, &mut frame);
        frame
    }

    /// The messages of a stream that arrives in pieces.
    fn messages<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<Bytes>, Error> {
        let (mut reader, mut messages) = (ChunkedReader::default(), Vec::new());
        for piece in pieces {
            reader.push(piece);
            while let Some(message) = reader.pop()? {
                messages.push(message);
            }
        }
        reader.finish().map(|()| messages)
    }

    #[test]
    fn check_values_of_crc_32c() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(frame(b""), [0, 0, 0, 0, 0]);
    }

    #[test]
    fn b54_a_length_above_the_limit_is_rejected_before_memory_is_allocated() {
        for (length, error) in [
            (&b"\x81\xe1\xeb\x17"[..], Error::TooLarge { declared: 50_000_001 }),
            (&b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"[..], Error::TooLarge { declared: u64::MAX }),
            (&b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02"[..], Error::Length),
            (&b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x80\x01"[..], Error::Length),
        ] {
            let mut reader = ChunkedReader::default();
            reader.push(length);
            assert_eq!(reader.pop(), Err(error));
        }
        let mut reader = ChunkedReader::default();
        reader.push(b"\x80\xe1\xeb\x17 the start of a frame within the limit");
        assert_eq!(reader.pop(), Ok(None));
        assert!(reader.0.capacity() < 1000, "{}", reader.0.capacity());
    }

    #[test]
    fn b55_b56_b57_flipped_truncated_or_invalid_frames_are_rejected() {
        let whole = [frame(b"one"), frame(b""), frame(&[7; 300])].concat();
        assert_eq!(messages([&whole[..]]).expect("frames").len(), 3);
        let ends = [0, 8, 13, 13 + 2 + 4 + 300];
        for length in 0..=whole.len() {
            let expected = ends.contains(&length);
            assert_eq!(messages([&whole[..length]]).is_ok(), expected, "truncated to {length} bytes");
        }
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(messages([&flipped[..]]).is_err(), "bit {bit}");
        }
        for text in ["query timed out in expression evaluation\n", "out of bounds\n", "{}"] {
            assert!(messages([&whole[..], text.as_bytes()]).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn frames_do_not_depend_on_how_the_stream_is_split(
            sent in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..5),
            length in 1..40usize,
        ) {
            let stream = sent.iter().flat_map(|message| frame(message)).collect::<Vec<u8>>();
            prop_assert_eq!(messages(stream.chunks(length)).expect("frames"), sent);
        }
    }
}
