//! Snappy's block format, with limits checked before allocation.

/// Most bytes that one compressed byte can give: an element of 3 bytes gives at most 64.
const MAX_RATIO: usize = 22;

/// The error for a body that is not decompressed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The declared length is above the limit.
    #[error("the snappy header declares {declared} bytes, above the limit of {limit}")]
    TooLarge {
        /// Length that the header declares, in bytes.
        declared: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// The declared length exceeds the maximum for a body of this size.
    #[error("the snappy header declares {declared} bytes, more than a body of {body} bytes can hold")]
    Impossible {
        /// Length that the header declares, in bytes.
        declared: usize,
        /// Length of the body, in bytes.
        body: usize,
    },
    /// The body is not in the block format.
    #[error("the body is not in snappy's block format")]
    Corrupt(#[source] snap::Error),
}

/// Decompresses `body` into `buffer`, which the caller reuses. Returns the decompressed bytes.
///
/// # Errors
/// [`Error`] if the header declares more than `limit` bytes, or the body is corrupt.
pub fn decompress<'b>(body: &[u8], limit: usize, buffer: &'b mut Vec<u8>) -> Result<&'b [u8], Error> {
    let declared = snap::raw::decompress_len(body).map_err(Error::Corrupt)?;
    if declared > limit {
        return Err(Error::TooLarge { declared, limit });
    }
    if declared > body.len().saturating_mul(MAX_RATIO) {
        return Err(Error::Impossible { declared, body: body.len() });
    }
    if buffer.len() < declared {
        buffer.resize(declared, 0);
    }
    let written =
        snap::raw::Decoder::new().decompress(body, &mut buffer[..declared]).map_err(Error::Corrupt)?;
    Ok(&buffer[..written])
}

/// Compresses `body`.
pub fn compress(body: &[u8]) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(body).expect("a message stays below snappy's 4 GiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 32 << 20;

    #[test]
    fn round_trip() {
        let text = b"a sample arrives as bytes, a sample arrives as bytes".repeat(100);
        let mut buffer = Vec::new();
        assert_eq!(decompress(&compress(&text), LIMIT, &mut buffer).expect("valid"), text);
    }

    #[test]
    fn rejects_bombs_before_allocating() {
        let mut buffer = Vec::new();
        let header_only = [0xff, 0xff, 0xff, 0xff, 0x0f, 0x00];
        assert!(matches!(decompress(&header_only, LIMIT, &mut buffer), Err(Error::TooLarge { .. })));
        // 32 MiB declared by a body of five bytes.
        let impossible = [0x80, 0x80, 0x80, 0x10, 0x00];
        assert!(matches!(decompress(&impossible, LIMIT, &mut buffer), Err(Error::Impossible { .. })));
        // A valid bomb: one literal, then copies of 64 bytes.
        let mut bomb = vec![0x80, 0x80, 0x80, 0x20, 0x00, 0x00];
        bomb.extend([0xfe, 0x01, 0x00].repeat(1_048_575));
        assert!(matches!(decompress(&bomb, LIMIT, &mut buffer), Err(Error::TooLarge { .. })));
        assert_eq!(buffer.capacity(), 0);
    }

    #[test]
    fn rejects_corrupt_bodies() {
        let framed = b"\xff\x06\x00\x00sNaPpY";
        // copies with offset 0 and beyond the start, and lengths that do not fit the header
        for body in [&b""[..], b"hello", framed, &[4, 0x01, 0x00], &[4, 0x01, 0x09], &[1, 0x04, b'a', b'b']] {
            assert!(decompress(body, LIMIT, &mut Vec::new()).is_err(), "{body:?}");
        }
    }
}
