//! numpy's arrays: raw bytes and a dtype that describes their layout.
//!
//! Both file formats use this type, which checks the layout. Its errors are plain texts; the readers add the position
//! in the file.

use std::ops::Deref;
use std::rc::Rc;

/// Most fields of a record: a tree's node has eight.
pub(super) const MAX_FIELDS: usize = 64;

/// Most dimensions: numpy's own limit.
const MAX_DIMENSIONS: usize = 64;

/// The kind and the size of one number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scalar {
    pub kind: ScalarKind,
    /// Size in bytes, at least 1.
    pub size: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum ScalarKind {
    Bool,
    Signed,
    Unsigned,
    Float,
    /// Python objects; the bytes are elsewhere.
    Object,
    /// Padding, or a record whose fields are described elsewhere.
    Void,
}

impl Scalar {
    const INT: Self = Self { kind: ScalarKind::Signed, size: 8 };
    const FLOAT: Self = Self { kind: ScalarKind::Float, size: 8 };
    const BYTE: Self = Self { kind: ScalarKind::Unsigned, size: 1 };

    /// Reads a type code without its byte order: `f8`, `i8`, `O`, `V64`.
    pub fn parse(code: &str) -> Result<Self, String> {
        let unknown = || format!("dtype \"{}\" is none that a forest has", super::shorten(code));
        let kind = match code.bytes().next() {
            Some(b'b') => ScalarKind::Bool,
            Some(b'i') => ScalarKind::Signed,
            Some(b'u') => ScalarKind::Unsigned,
            Some(b'f') => ScalarKind::Float,
            Some(b'O') => ScalarKind::Object,
            Some(b'V') => ScalarKind::Void,
            _ => return Err(unknown()),
        };
        let size = match &code[1..] {
            "" if kind == ScalarKind::Object => 8,
            size => size.parse::<u16>().map_err(|_| unknown())?.into(),
        };
        // With items of no bytes, a shape of any length would be valid.
        if size == 0 {
            return Err(unknown());
        }
        Ok(Self { kind, size })
    }
}

/// The type of an array's items: a number, or a record of numbers.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Dtype {
    /// Size of an item in bytes, at least 1.
    size: usize,
    /// A plain number is one field without a name.
    fields: Vec<Field>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Field {
    pub name: String,
    /// Offset from the beginning of the item, in bytes.
    pub offset: usize,
    pub scalar: Scalar,
}

impl Dtype {
    /// Items that are numbers.
    pub fn from_scalar(scalar: Scalar) -> Self {
        Self { size: scalar.size, fields: vec![Field { name: String::new(), offset: 0, scalar }] }
    }

    /// Items of `size` bytes that hold several numbers.
    pub fn record(size: usize, fields: Vec<Field>) -> Result<Self, String> {
        if fields.len() > MAX_FIELDS {
            return Err(format!("dtype has {} fields, must be at most {MAX_FIELDS}", fields.len()));
        }
        for Field { name, offset, scalar } in &fields {
            if offset.checked_add(scalar.size).is_none_or(|end| end > size) {
                let name = super::shorten(name);
                return Err(format!("field {name} at offset {offset} is outside of an item of {size} bytes"));
            }
        }
        Ok(Self { size, fields })
    }

    /// The type of number of an item; `None` for a record.
    pub fn scalar(&self) -> Option<Scalar> {
        match &self.fields[..] {
            [field] if field.name.is_empty() => Some(field.scalar),
            _ => None,
        }
    }
}

/// Number of items of a shape.
pub(super) fn n_items(shape: &[usize]) -> Result<usize, String> {
    if shape.len() > MAX_DIMENSIONS {
        return Err(format!("array has {} dimensions, must be at most {MAX_DIMENSIONS}", shape.len()));
    }
    let n_items = shape.iter().try_fold(1_usize, |product, length| product.checked_mul(*length));
    n_items.ok_or_else(|| format!("shape {shape:?} is too large"))
}

/// The bytes of an array, as they lie in the file or unpacked from it. Clones share them.
#[derive(Clone, Debug)]
pub(super) enum ArrayBytes<'a> {
    File(&'a [u8]),
    Unpacked(Rc<[u8]>),
}

impl Deref for ArrayBytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::File(bytes) => bytes,
            Self::Unpacked(bytes) => bytes,
        }
    }
}

/// An array whose bytes fit its dtype and shape. The order of the dimensions in memory is not kept:
/// all arrays that a forest is read from have one.
#[derive(Clone, Debug)]
pub(super) struct Array<'a> {
    dtype: Rc<Dtype>,
    shape: Vec<usize>,
    data: ArrayBytes<'a>,
}

impl<'a> Array<'a> {
    pub fn new(dtype: Rc<Dtype>, shape: Vec<usize>, data: ArrayBytes<'a>) -> Result<Self, String> {
        if n_items(&shape)?.checked_mul(dtype.size) != Some(data.len()) {
            let (size, n_bytes) = (dtype.size, data.len());
            return Err(format!("shape {shape:?} of items of {size} bytes does not fit {n_bytes} bytes"));
        }
        Ok(Self { dtype, shape, data })
    }

    pub fn n_bytes(&self) -> usize {
        self.data.len()
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub fn has_field(&self, name: &str) -> bool {
        self.dtype.fields.iter().any(|field| field.name == name)
    }

    /// Number of items of an array with one dimension.
    pub fn n_rows(&self) -> Result<usize, String> {
        match self.shape[..] {
            [n_rows] => Ok(n_rows),
            _ => Err(format!("shape is {:?}, must be of one dimension", self.shape)),
        }
    }

    /// The integers of a field, or, for the name `""`, of an array of plain numbers.
    pub fn ints(&self, name: &str) -> Result<Vec<i64>, String> {
        self.column(name, Scalar::INT, i64::from_le_bytes)
    }

    /// The numbers of a field, like [`ints`](Self::ints).
    pub fn floats(&self, name: &str) -> Result<Vec<f64>, String> {
        self.column(name, Scalar::FLOAT, f64::from_le_bytes)
    }

    /// A field of bytes as flags, like [`ints`](Self::ints).
    pub fn flags(&self, name: &str) -> Result<Vec<bool>, String> {
        self.column(name, Scalar::BYTE, |[byte]| byte != 0)
    }

    /// The only item of an array without dimensions, if it is a `scalar`.
    fn single_item<const N: usize, T>(&self, scalar: Scalar, read: impl Fn([u8; N]) -> T) -> Option<T> {
        let is_single = self.shape.is_empty() && self.dtype.scalar() == Some(scalar);
        is_single.then(|| self.data.first_chunk().copied().map(read)).flatten()
    }

    /// The integer in an array without dimensions.
    pub fn int(&self) -> Option<i64> {
        self.single_item(Scalar::INT, i64::from_le_bytes)
    }

    /// The number in an array without dimensions.
    pub fn float(&self) -> Option<f64> {
        self.single_item(Scalar::FLOAT, f64::from_le_bytes)
    }

    fn column<const N: usize, T>(
        &self,
        name: &str,
        scalar: Scalar,
        read: impl Fn([u8; N]) -> T,
    ) -> Result<Vec<T>, String> {
        self.n_rows()?;
        let field = self.dtype.fields.iter().find(|field| field.name == name);
        let field = field.ok_or_else(|| match name {
            "" => "array holds records, must hold numbers".to_string(),
            _ => format!("field {name} is missing"),
        })?;
        if field.scalar != scalar {
            let (found, limit) = (field.scalar, scalar);
            return Err(format!(
                "field {name:?} is {:?} of {} bytes, must be {:?} of {}",
                found.kind, found.size, limit.kind, limit.size
            ));
        }
        let items = self.data.chunks_exact(self.dtype.size);
        Ok(items.filter_map(|item| item[field.offset..].first_chunk().copied()).map(read).collect())
    }
}
