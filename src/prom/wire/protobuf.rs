//! Protobuf's encoding, to the extent that remote write uses it.

/// A part of a request whose number is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestPart {
    /// Series.
    Series,
    /// Samples of all series.
    Samples,
    /// Symbols of version 2.0.
    Symbols,
}

impl RequestPart {
    /// The name in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Series => "series",
            Self::Samples => "samples",
            Self::Symbols => "symbols",
        }
    }
}

/// The error for bytes that are not a valid message.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Malformed {
    /// The message ends inside a field.
    #[error("the message ends inside a field")]
    Truncated,
    /// A varint of more than ten bytes, or above 64 bits.
    #[error("a varint does not fit 64 bits")]
    Varint,
    /// A field key has number 0 or above 2^29, or a wire type outside of proto3.
    #[error("{0:#x} is not a field key")]
    Key(u64),
    /// A known field has another wire type.
    #[error("field {field} of {message} has wire type {wire_type}")]
    WireType {
        /// The message's name.
        message: &'static str,
        /// The field's number.
        field: u32,
        /// The type found.
        wire_type: u8,
    },
    /// The first symbol is not empty, as version 2.0 requires.
    #[error("the first symbol is not the empty one")]
    FirstSymbolNotEmpty,
    /// The request exceeds a limit.
    #[error("the request has more than {limit} {}", what.as_str())]
    TooMany {
        /// The kind of parts.
        what: RequestPart,
        /// The limit.
        limit: usize,
    },
}

pub const VARINT: u8 = 0;
pub const FIXED64: u8 = 1;
pub const LENGTH_DELIMITED: u8 = 2;
const FIXED32: u8 = 5;

/// Reads a message field by field.
#[derive(Clone, Copy)]
pub struct FieldReader<'a> {
    rest: &'a [u8],
}

impl<'a> FieldReader<'a> {
    pub fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Bytes not yet read.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Reads a varint. Keys and most lengths have one or two bytes, which take no loop.
    #[inline]
    pub fn read_varint(&mut self) -> Result<u64, Malformed> {
        match *self.rest {
            [byte, ref rest @ ..] if byte < 0x80 => {
                self.rest = rest;
                Ok(byte.into())
            }
            [low, high, ref rest @ ..] if high < 0x80 => {
                self.rest = rest;
                Ok(u64::from(low & 0x7f) | u64::from(high) << 7)
            }
            _ => self.read_long_varint(),
        }
    }

    fn read_long_varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for (i, &byte) in self.rest.iter().take(10).enumerate() {
            if i == 9 && byte > 1 {
                return Err(Malformed::Varint);
            }
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte < 0x80 {
                self.rest = &self.rest[i + 1..];
                return Ok(value);
            }
        }
        Err(if self.rest.len() < 10 { Malformed::Truncated } else { Malformed::Varint })
    }

    /// Reads the number and wire type of the next field.
    #[inline]
    pub fn read_key(&mut self) -> Result<(u32, u8), Malformed> {
        let key = self.read_varint()?;
        let wire_type = (key & 7) as u8;
        let number = u32::try_from(key >> 3).ok().filter(|number| (1..1 << 29).contains(number));
        match (number, wire_type) {
            (Some(number), VARINT | FIXED64 | LENGTH_DELIMITED | FIXED32) => Ok((number, wire_type)),
            _ => Err(Malformed::Key(key)),
        }
    }

    #[inline]
    pub fn read_bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(self.read_varint()?).map_err(|_| Malformed::Truncated)?;
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(bytes)
    }

    #[inline]
    pub fn read_fixed64(&mut self) -> Result<u64, Malformed> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(u64::from_le_bytes(*bytes))
    }

    pub fn skip_field(&mut self, wire_type: u8) -> Result<(), Malformed> {
        match wire_type {
            VARINT => self.read_varint().map(drop),
            FIXED64 => self.read_fixed64().map(drop),
            LENGTH_DELIMITED => self.read_bytes().map(drop),
            _ => {
                self.rest = self.rest.get(4..).ok_or(Malformed::Truncated)?;
                Ok(())
            }
        }
    }
}
