//! What an operation is told besides its inputs, read without trust.

use super::proto::tensor_proto::DataType;
use super::proto::{AttributeProto, TensorProto};
use super::{Error, fault};

/// The attributes of one operation. A list that is not there is empty, and found to be too short.
pub struct Attributes<'n> {
    /// The operator, for messages.
    pub place: &'n str,
    pub list: &'n [AttributeProto],
}

impl<'n> Attributes<'n> {
    pub fn find(&self, name: &str) -> Option<&'n AttributeProto> {
        self.list.iter().find(|attribute| attribute.name == name)
    }

    pub fn int(&self, name: &str, default: i64) -> i64 {
        self.find(name).map_or(default, |attribute| attribute.i.unwrap_or_default())
    }

    /// Is this the `Cast` to one of these types?
    pub fn is_to(&self, kinds: &[DataType]) -> bool {
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
            Some(tensor) => numbers(name, tensor),
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

    /// Which splits send NaN to the left: none where the file does not say.
    pub fn missing(&self, n_nodes: usize) -> Result<&'n [i64], Error> {
        const NAME: &str = "nodes_missing_value_tracks_true";
        let missing = self.ints(NAME);
        if missing.is_empty() { Ok(missing) } else { self.length(NAME, missing, n_nodes) }
    }

    pub fn length<T, L: AsRef<[T]>>(&self, name: &str, list: L, length: usize) -> Result<L, Error> {
        let found = list.as_ref().len();
        if found == length {
            Ok(list)
        } else {
            Err(fault(self.place, &format!("length of {name}"), found, length))
        }
    }

    pub fn index(&self, what: &str, index: i64, length: usize) -> Result<usize, Error> {
        let inside = usize::try_from(index).ok().filter(|index| *index < length);
        inside.ok_or_else(|| fault(self.place, what, index, format_args!("in 0..{length}")))
    }

    pub fn check_int(&self, name: &str, only: i64) -> Result<(), Error> {
        let found = self.int(name, only);
        if found == only { Ok(()) } else { Err(fault(self.place, name, found, only)) }
    }

    pub fn check_text(&self, name: &str, only: &str) -> Result<(), Error> {
        let found =
            self.find(name).map_or(only.as_bytes(), |attribute| attribute.s.as_deref().unwrap_or_default());
        if found == only.as_bytes() {
            return Ok(());
        }
        Err(fault(self.place, name, show(&String::from_utf8_lossy(found)), only))
    }
}

/// The elements of a tensor, one after the other, whatever its shape.
pub fn numbers(name: &str, tensor: &TensorProto) -> Result<Vec<f64>, Error> {
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
            return Err(fault("tensor", &format!("data type of {}", show(name)), tensor.data_type, limit));
        }
    };
    if raw.is_empty() {
        return Ok(listed);
    }
    let (elements, rest) = (raw.chunks_exact(size), raw.len() % size);
    if rest != 0 {
        return Err(fault(
            "tensor",
            &format!("length of {}", show(name)),
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

/// Text of a file as it may stand in a message.
pub fn show(text: &str) -> String {
    text.trim().chars().map(|c| if c.is_control() { '?' } else { c }).take(80).collect()
}
