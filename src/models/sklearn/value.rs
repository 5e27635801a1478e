//! The values of a model file in any format: one flat list whose values refer to each other by index.
//!
//! Not taken: a tree of boxes or shared pointers. A hostile file could make it cyclic, or so deep that dropping it
//! overflows the stack.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::array::{Array, ArrayBytes, Dtype};
use super::{Error, shorten};

/// The classes and functions that a file may name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Class {
    IsolationForest,
    ExtraTreeRegressor,
    Tree,
    Ndarray,
    Dtype,
    Reconstruct,
    Scalar,
    FromBuffer,
    Encode,
}

impl Class {
    /// numpy 2 has moved three of them.
    pub fn find(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("sklearn.ensemble._iforest", "IsolationForest") => Self::IsolationForest,
            ("sklearn.tree._classes", "ExtraTreeRegressor") => Self::ExtraTreeRegressor,
            ("sklearn.tree._tree", "Tree") => Self::Tree,
            ("numpy", "ndarray") => Self::Ndarray,
            ("numpy", "dtype") => Self::Dtype,
            ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => Self::Reconstruct,
            ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Self::Scalar,
            ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer") => Self::FromBuffer,
            ("_codecs", "encode") => Self::Encode,
            _ => return None,
        })
    }
}

#[derive(Clone, Debug)]
pub(super) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Cow<'a, str>),
    Bytes(ArrayBytes<'a>),
    /// A list or a tuple.
    List(Vec<Id>),
    /// All keys of a forest's dictionaries are texts.
    Dict(BTreeMap<Cow<'a, str>, Id>),
    Class(Class),
    Object {
        class: Class,
        /// The dictionary of attributes; `None` until it is read.
        state: Option<Id>,
    },
    Dtype(Rc<Dtype>),
    Array(Array<'a>),
    /// An array with one dimension of objects: their list.
    Objects(Id),
    /// The class of an object that no forest needs.
    Other(String),
}

/// A value by its number in [`Values`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Id(usize);

/// All values of a file.
#[derive(Debug)]
pub(super) struct Values<'a> {
    values: Vec<Value<'a>>,
    /// Length of the source in bytes. The arrays of a valid file are not larger in total.
    pub n_bytes: usize,
}

impl<'a> Values<'a> {
    pub fn new(n_bytes: usize) -> Self {
        Self { values: Vec::new(), n_bytes }
    }

    pub fn push(&mut self, value: Value<'a>) -> Id {
        self.values.push(value);
        Id(self.values.len() - 1)
    }

    pub fn get(&self, id: Id) -> &Value<'a> {
        &self.values[id.0]
    }

    pub fn get_mut(&mut self, id: Id) -> &mut Value<'a> {
        &mut self.values[id.0]
    }

    /// The items of a list or tuple.
    pub fn list(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::List(items) => Some(items),
            _ => None,
        }
    }

    pub fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The lengths of an array's dimensions.
    pub fn shape(&self, id: Id) -> Option<Vec<usize>> {
        let length = |id: &Id| match self.get(*id) {
            Value::Int(length) => usize::try_from(*length).ok(),
            _ => None,
        };
        // A later check rejects a shape that is too long. A shape that many arrays share is not copied.
        self.list(id)?.iter().take(100).map(length).collect()
    }

    /// A value for a message.
    pub fn describe(&self, id: Id) -> String {
        match self.get(id) {
            Value::None => "nothing".into(),
            Value::Bool(value) => value.to_string(),
            Value::Int(value) => value.to_string(),
            Value::Float(value) => format!("{value:?}"),
            Value::Text(text) => format!("\"{}\"", shorten(text)),
            Value::Bytes(bytes) => format!("{} bytes", bytes.len()),
            Value::List(items) => format!("a list of {}", items.len()),
            Value::Dict(entries) => format!("a dictionary of {}", entries.len()),
            Value::Class(class) => format!("the class {class:?}"),
            Value::Object { class, .. } => format!("an object of class {class:?}"),
            Value::Dtype(_) => "a dtype".into(),
            Value::Array(array) => format!("an array of shape {:?}", array.shape()),
            Value::Objects(_) => "an array of objects".into(),
            Value::Other(class) => format!("of class {class}"),
        }
    }
}

/// A value and its path from the estimator, for messages.
#[derive(Clone, Debug)]
pub(super) struct ValueRef<'v, 'a> {
    values: &'v Values<'a>,
    id: Id,
    path: String,
}

impl<'v, 'a> ValueRef<'v, 'a> {
    pub fn root(values: &'v Values<'a>, id: Id) -> Self {
        Self { values, id, path: String::new() }
    }

    /// The same value as the start of a path.
    pub fn as_root(&self) -> Self {
        Self::root(self.values, self.id)
    }

    fn attribute_error(&self, limit: &'static str) -> Error {
        let name = if self.path.is_empty() { "the object" } else { &self.path };
        Error::Attribute { name: name.into(), value: self.values.describe(self.id), limit }
    }

    /// An error about this array.
    pub fn array_error(&self, reason: String) -> Error {
        Error::Array { name: self.path.clone(), reason }
    }

    /// Checks that this is an object of a class.
    pub fn expect_class(&self, class: Class, limit: &'static str) -> Result<(), Error> {
        match self.values.get(self.id) {
            Value::Object { class: found, .. } if *found == class => Ok(()),
            _ => Err(self.attribute_error(limit)),
        }
    }

    /// An attribute of this object; `None` if it is absent or Python's `None`.
    pub fn find_attribute(&self, name: &str) -> Option<Self> {
        let Value::Object { state: Some(state), .. } = self.values.get(self.id) else { return None };
        let Value::Dict(entries) = self.values.get(*state) else { return None };
        let id = *entries.get(name)?;
        let path = if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) };
        let attribute = Self { values: self.values, id, path };
        (!matches!(self.values.get(id), Value::None)).then_some(attribute)
    }

    /// A required attribute.
    pub fn get(&self, name: &'static str) -> Result<Self, Error> {
        self.find_attribute(name).ok_or_else(|| Error::Missing { object: self.path.clone(), name })
    }

    pub fn items(&self) -> Result<Vec<Self>, Error> {
        let list = match self.values.get(self.id) {
            Value::Objects(list) => *list,
            _ => self.id,
        };
        let items = self.values.list(list).ok_or_else(|| self.attribute_error("a list"))?.iter().enumerate();
        Ok(items.map(|(i, id)| Self { id: *id, path: format!("{}[{i}]", self.path), ..*self }).collect())
    }

    pub fn array(&self) -> Result<&'v Array<'a>, Error> {
        match self.values.get(self.id) {
            Value::Array(array) => Ok(array),
            _ => Err(self.attribute_error("an array")),
        }
    }

    pub fn text(&self) -> Result<&'v str, Error> {
        self.values.text(self.id).ok_or_else(|| self.attribute_error("a text"))
    }

    /// A whole number of at least 1.
    pub fn count(&self) -> Result<u64, Error> {
        let count = match self.values.get(self.id) {
            Value::Int(count) => Some(*count),
            Value::Array(array) => array.int(),
            _ => None,
        };
        let count = count.and_then(|count| u64::try_from(count).ok()).filter(|count| *count > 0);
        count.ok_or_else(|| self.attribute_error("a whole number of at least 1"))
    }

    pub fn float(&self) -> Result<f64, Error> {
        let float = match self.values.get(self.id) {
            Value::Float(float) => Some(*float),
            Value::Array(array) => array.float(),
            _ => None,
        };
        float.ok_or_else(|| self.attribute_error("a number"))
    }

    /// The text of a single value; `None` for a list, an array or an object.
    pub fn to_display(&self) -> Option<String> {
        match self.values.get(self.id) {
            Value::Text(text) => Some(shorten(text)),
            Value::Bool(_) | Value::Int(_) | Value::Float(_) => Some(self.values.describe(self.id)),
            _ => None,
        }
    }
}
