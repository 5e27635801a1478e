//! numpy's file of one array: a header in Python's notation, and the bytes.
//!
//! The parser accepts only the form of header that numpy writes, not Python in general, so that hostile files have
//! less to vary.

use std::rc::Rc;

use super::array::{Array, ArrayBytes, Dtype, Field, Scalar, ScalarKind};

/// Reads a `.npy` file.
pub(super) fn read(mut file: Vec<u8>) -> Result<Array<'static>, String> {
    let (header, start) = split_header(&file)?;
    let (dtype, shape) = parse_header(header)?;
    file.drain(..start);
    Array::new(Rc::new(dtype), shape, ArrayBytes::Unpacked(file.into()))
}

/// The text of the header, and the offset of the data.
fn split_header(file: &[u8]) -> Result<(&str, usize), String> {
    let truncated = "the file ends early";
    let rest = file.strip_prefix(b"\x93NUMPY").ok_or("not a .npy file")?;
    let (version, rest) = rest.split_first_chunk().ok_or(truncated)?;
    let (length, rest) = match version {
        [1, 0] => {
            let (length, rest) = rest.split_first_chunk().ok_or(truncated)?;
            (u32::from(u16::from_le_bytes(*length)), rest)
        }
        [2 | 3, 0] => {
            let (length, rest) = rest.split_first_chunk().ok_or(truncated)?;
            (u32::from_le_bytes(*length), rest)
        }
        [major, minor] => return Err(format!(".npy version is {major}.{minor}, must be 1.0 to 3.0")),
    };
    let header = usize::try_from(length).ok().and_then(|length| rest.get(..length)).ok_or(truncated)?;
    let start = file.len() - rest.len() + header.len();
    Ok((str::from_utf8(header).map_err(|error| format!("header: {error}"))?, start))
}

fn parse_header(header: &str) -> Result<(Dtype, Vec<usize>), String> {
    let mut parser = HeaderParser(header);
    parser.expect("{'descr':")?;
    let dtype = if parser.eat("[") {
        parse_record(&mut parser)?
    } else {
        Dtype::from_scalar(parse_scalar(&mut parser)?)
    };
    parser.expect(",")?;
    parser.expect("'fortran_order':")?;
    if !parser.eat("False") {
        parser.expect("True")?;
    }
    parser.expect(",")?;
    parser.expect("'shape':")?;
    parser.expect("(")?;
    let mut shape = Vec::new();
    while !parser.eat(")") {
        shape.push(parser.number()?);
        if !parser.eat(",") {
            parser.expect(")")?;
            break;
        }
    }
    parser.expect(",")?;
    parser.expect("}")?;
    if !parser.0.trim().is_empty() {
        return Err(parser.unexpected("nothing"));
    }
    Ok((dtype, shape))
}

/// The fields of a record, after its `[`. They are adjacent, padding included.
fn parse_record(parser: &mut HeaderParser) -> Result<Dtype, String> {
    let (mut fields, mut size) = (Vec::new(), 0);
    while !parser.eat("]") {
        parser.expect("(")?;
        let name = parser.quoted()?.to_string();
        parser.expect(",")?;
        let scalar = parse_scalar(parser)?;
        parser.expect(")")?;
        if scalar.kind != ScalarKind::Void {
            fields.push(Field { name, offset: size, scalar });
        }
        size += scalar.size;
        if !parser.eat(",") {
            parser.expect("]")?;
            break;
        }
    }
    Dtype::record(size, fields)
}

fn parse_scalar(parser: &mut HeaderParser) -> Result<Scalar, String> {
    let text = parser.quoted()?;
    let code = text.strip_prefix(['<', '|']);
    let not_little_endian = || format!("dtype \"{}\" is not little endian", super::shorten(text));
    let scalar = Scalar::parse(code.ok_or_else(not_little_endian)?)?;
    match scalar.kind {
        ScalarKind::Object => Err("an array of objects would be a pickle within the file".into()),
        _ => Ok(scalar),
    }
}

/// The rest of a header.
struct HeaderParser<'h>(&'h str);

impl<'h> HeaderParser<'h> {
    fn unexpected(&self, expected: &str) -> String {
        format!("header goes on with \"{}\", must be \"{expected}\"", super::shorten(self.0))
    }

    fn eat(&mut self, token: &str) -> bool {
        let rest = self.0.trim_start().strip_prefix(token);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn expect(&mut self, token: &str) -> Result<(), String> {
        if self.eat(token) { Ok(()) } else { Err(self.unexpected(token)) }
    }

    fn quoted(&mut self) -> Result<&'h str, String> {
        self.expect("'")?;
        let (text, rest) = self.0.split_once('\'').ok_or_else(|| self.unexpected("'"))?;
        self.0 = rest;
        Ok(text)
    }

    fn number(&mut self) -> Result<usize, String> {
        let text = self.0.trim_start();
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let number = text[..end].parse().map_err(|_| self.unexpected("a length"))?;
        self.0 = &text[end..];
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        let mut file = b"\x93NUMPY\x01\x00".to_vec();
        file.extend(u16::try_from(header.len()).expect("short").to_le_bytes());
        file.extend(header.as_bytes());
        file.extend(data);
        file
    }

    fn reason(header: &str, data: &[u8]) -> String {
        read(file(header, data)).expect_err(header)
    }

    #[test]
    fn reads_numbers_and_records() {
        let header = "{'descr': '<i8', 'fortran_order': False, 'shape': (2,), }  \n";
        let array = read(file(header, &[1, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255]));
        assert_eq!(array.expect("an array").ints(""), Ok(vec![1, -1]));

        let header = "{'descr': '<f8', 'fortran_order': False, 'shape': (), }\n";
        let array = read(file(header, &(-0.5_f64).to_le_bytes())).expect("a number");
        assert_eq!(array.float(), Some(-0.5));
        assert_eq!(array.floats(""), Err("shape is [], must be of one dimension".into()));

        let header =
            "{'descr': [('a', '<i8'), ('m', '|u1'), ('', '|V7')], 'fortran_order': True, 'shape': (1,), }\n";
        let array = read(file(header, &[7, 0, 0, 0, 0, 0, 0, 0, 1, 9, 9, 9, 9, 9, 9, 9])).expect("a record");
        assert_eq!(array.ints("a"), Ok(vec![7]));
        assert_eq!(array.flags("m"), Ok(vec![true]));
        assert_eq!(array.ints("b"), Err("field b is missing".into()));
        assert_eq!(array.floats("a"), Err("field \"a\" is Signed of 8 bytes, must be Float of 8".into()));
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let sized = |shape: &str| format!("{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}");
        assert_eq!(reason(&sized("(2,)"), &[0; 8]), "shape [2] of items of 8 bytes does not fit 8 bytes");
        assert_eq!(
            reason(&sized("(4294967296, 4294967296)"), &[]),
            "shape [4294967296, 4294967296] is too large"
        );
        assert!(reason(&sized("(99999999999999999999,)"), &[]).ends_with("must be \"a length\""));
        let typed = |descr: &str| format!("{{'descr': {descr}, 'fortran_order': False, 'shape': (1,), }}");
        assert_eq!(reason(&typed("'>i8'"), &[0; 8]), "dtype \">i8\" is not little endian");
        assert_eq!(reason(&typed("'<U5'"), &[0; 20]), "dtype \"U5\" is none that a forest has");
        assert_eq!(reason(&typed("'|V0'"), &[]), "dtype \"V0\" is none that a forest has");
        assert_eq!(reason(&typed("'|O'"), &[]), "an array of objects would be a pickle within the file");
        assert_eq!(
            reason("{'descr': __import__('os')", &[]),
            "header goes on with \" __import__(\\'os\\')\", must be \"'\""
        );
        assert_eq!(read(b"\x93NUMPY\x01\x00\xff\xff".to_vec()).expect_err("cut"), "the file ends early");
    }
}
