//! Attributes of an operation, checked on every access.

use super::proto::tensor_proto::DataType;
use super::proto::{AttributeProto, TensorProto};
use super::{Error, value_error};

/// The attributes of one operation. An absent list is empty; the check of its length rejects it.
pub struct Attributes<'n> {
    /// The operator, for messages.
    pub operator: &'n str,
    pub list: &'n [AttributeProto],
}

impl<'n> Attributes<'n> {
    pub fn find(&self, name: &str) -> Option<&'n AttributeProto> {
        self.list.iter().find(|attribute| attribute.name == name)
    }

    pub fn int(&self, name: &str, default: i64) -> i64 {
        self.find(name).map_or(default, |attribute| attribute.i.unwrap_or_default())
    }

    /// True for a `Cast` to one of these types.
    pub fn casts_to(&self, kinds: &[DataType]) -> bool {
        kinds.iter().any(|kind| i64::from(i32::from(*kind)) == self.int("to", 0))
    }

    pub fn ints(&self, name: &str) -> &'n [i64] {
        self.find(name).map_or(&[], |attribute| &attribute.ints)
    }

    pub fn strings(&self, name: &str) -> &'n [Vec<u8>] {
        self.find(name).map_or(&[], |attribute| &attribute.strings)
    }

    pub fn tensor(&self, name: &str) -> Result<Vec<f64>, Error> {
        match self.find(name).and_then(|attribute| attribute.t.as_ref()) {
            Some(tensor) => tensor_values(name, tensor),
            None => Ok(Vec::new()),
        }
    }

    /// Floats, which an attribute called `..._as_tensor` may hold as doubles.
    pub fn floats(&self, name: &str) -> Result<Vec<f64>, Error> {
        match self.find(name) {
            Some(attribute) => Ok(attribute.floats.iter().copied().map(f64::from).collect()),
            None => self.tensor(&format!("{name}_as_tensor")),
        }
    }

    /// One flag per split: true if NaN goes left. All are false if the file has no flags.
    pub fn missing_go_to_left(&self, n_nodes: usize) -> Result<&'n [i64], Error> {
        const NAME: &str = "nodes_missing_value_tracks_true";
        let missing = self.ints(NAME);
        if missing.is_empty() { Ok(missing) } else { self.check_length(NAME, missing, n_nodes) }
    }

    pub fn check_length<T, L: AsRef<[T]>>(&self, name: &str, list: L, length: usize) -> Result<L, Error> {
        let found = list.as_ref().len();
        if found == length {
            Ok(list)
        } else {
            Err(value_error(self.operator, &format!("length of {name}"), found, length))
        }
    }

    pub fn check_index(&self, what: &str, index: i64, length: usize) -> Result<usize, Error> {
        let inside = usize::try_from(index).ok().filter(|index| *index < length);
        inside.ok_or_else(|| value_error(self.operator, what, index, format_args!("in 0..{length}")))
    }

    pub fn check_int(&self, name: &str, expected: i64) -> Result<(), Error> {
        let found = self.int(name, expected);
        if found == expected { Ok(()) } else { Err(value_error(self.operator, name, found, expected)) }
    }

    pub fn check_text(&self, name: &str, expected: &str) -> Result<(), Error> {
        let found = self
            .find(name)
            .map_or(expected.as_bytes(), |attribute| attribute.s.as_deref().unwrap_or_default());
        if found == expected.as_bytes() {
            return Ok(());
        }
        Err(value_error(self.operator, name, printable(&String::from_utf8_lossy(found)), expected))
    }
}

/// The elements of a tensor of any shape, in order.
pub fn tensor_values(name: &str, tensor: &TensorProto) -> Result<Vec<f64>, Error> {
    let raw = &tensor.raw_data[..];
    let kind = tensor.data_type();
    let (size, listed): (usize, Vec<f64>) = match kind {
        DataType::Float => (4, tensor.float_data.iter().copied().map(f64::from).collect()),
        DataType::Double => (8, tensor.double_data.clone()),
        DataType::Int64 => (8, tensor.int64_data.iter().map(|it| *it as f64).collect()),
        DataType::Int32 => (4, tensor.int32_data.iter().copied().map(f64::from).collect()),
        DataType::Uint8 => (1, tensor.int32_data.iter().copied().map(f64::from).collect()),
        DataType::Undefined => {
            let limit = "float, double, int32, int64 or uint8";
            return Err(value_error(
                "tensor",
                &format!("data type of {}", printable(name)),
                tensor.data_type,
                limit,
            ));
        }
    };
    if raw.is_empty() {
        return Ok(listed);
    }
    let (elements, rest) = (raw.chunks_exact(size), raw.len() % size);
    if rest != 0 {
        return Err(value_error(
            "tensor",
            &format!("length of {}", printable(name)),
            raw.len(),
            format_args!("a multiple of {size}"),
        ));
    }
    Ok(elements
        .map(|element| match (kind, element) {
            (DataType::Float, &[a, b, c, d]) => f64::from(f32::from_le_bytes([a, b, c, d])),
            (DataType::Int32, &[a, b, c, d]) => f64::from(i32::from_le_bytes([a, b, c, d])),
            (DataType::Double, &[a, b, c, d, e, f, g, h]) => f64::from_le_bytes([a, b, c, d, e, f, g, h]),
            (DataType::Int64, &[a, b, c, d, e, f, g, h]) => {
                i64::from_le_bytes([a, b, c, d, e, f, g, h]) as f64
            }
            _ => f64::from(element[0]),
        })
        .collect())
}

/// Text of a file, shortened for messages.
pub fn printable(text: &str) -> String {
    text.trim().chars().map(|c| if c.is_control() { '?' } else { c }).take(80).collect()
}
