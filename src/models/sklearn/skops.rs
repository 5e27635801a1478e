//! skops' format: a zip with `schema.json`, which nests the objects, and a `.npy` file per array.
//!
//! The format contains no program. Each node of the schema names a class and a loader. The classes of a forest become
//! the same values as in a pickle; of all other classes only the name is kept.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{Cursor, Read};

use serde_json::Value as Json;
use zip::ZipArchive;

use super::npy;
use super::value::{Class, Id, Value, Values};
use super::{Error, shorten};

/// Largest ratio of inflated to packed size. Schemas repeat themselves; the largest measured ratio is 46.
const MAX_RATIO: usize = 128;

/// Largest `schema.json`, in bytes. A tree takes 16 KB, so this is a forest of 2000 trees.
const MAX_SCHEMA: usize = 32 << 20;

/// Largest ratio of the memory of a parsed schema to its text. Those of forests have 7.
const MAX_SCHEMA_RATIO: usize = 16;

/// Most memory of a parsed schema, in bytes: that of [`MAX_SCHEMA`].
const MAX_SCHEMA_MEMORY: usize = 256 << 20;

const SCHEMA: &str = "schema.json";

/// Reads a file. Returns its values and the root among them.
pub(super) fn read(bytes: &[u8]) -> Result<(Values<'static>, Id), Error> {
    let zip = ZipArchive::new(Cursor::new(bytes))
        .map_err(|source| Error::Zip { file: "the archive".into(), source })?;
    let mut reader = SkopsReader {
        zip,
        remaining: bytes.len().saturating_mul(MAX_RATIO),
        values: Values::new(0),
        arrays: HashMap::new(),
        by_id: HashMap::new(),
    };
    let schema = reader.inflate(SCHEMA, MAX_SCHEMA)?;
    check_memory(&schema)?;
    // serde_json rejects more than 128 levels, which bounds the recursion below.
    let schema: Json = serde_json::from_slice(&schema).map_err(Error::Schema)?;
    let root = reader.read_node(&schema)?;
    Ok((reader.values, root))
}

struct SkopsReader<'z> {
    zip: ZipArchive<Cursor<&'z [u8]>>,
    /// Remaining bytes to inflate.
    remaining: usize,
    values: Values<'static>,
    /// Arrays by the name of their file: each file is read once.
    arrays: HashMap<String, Id>,
    /// Values by the number that a later node can refer to.
    by_id: HashMap<u64, Id>,
}

impl SkopsReader<'_> {
    fn inflate(&mut self, name: &str, limit: usize) -> Result<Vec<u8>, Error> {
        let zip = |source| Error::Zip { file: shorten(name), source };
        let limit = limit.min(self.remaining);
        let file = self.zip.by_name(name).map_err(zip)?;
        let mut bytes = Vec::new();
        // One byte above the limit detects a longer file. The size in the archive is not trusted.
        let read = file.take(limit as u64 + 1).read_to_end(&mut bytes);
        read.map_err(|source| zip(source.into()))?;
        if bytes.len() > limit {
            return Err(skops_error(name, format!("inflates to more than {limit} bytes")));
        }
        self.remaining -= bytes.len();
        self.values.n_bytes += bytes.len();
        Ok(bytes)
    }

    fn read_node(&mut self, node: &Json) -> Result<Id, Error> {
        let loader = text_field(node, "__loader__")?;
        let number = node["__id__"].as_u64();
        let value = match loader {
            "CachedNode" => {
                let cached = number.and_then(|number| self.by_id.get(&number));
                return cached
                    .copied()
                    .ok_or_else(|| schema_error(format!("no node has the id {}", node["__id__"])));
            }
            "JsonNode" => parse_json_scalar(text_field(node, "content")?),
            "ListNode" | "TupleNode" => self.read_list(node)?,
            "DictNode" => {
                let entries = node["content"].as_object().ok_or_else(|| invalid_field(node, "content"))?;
                let entry =
                    |(key, node): (&String, &Json)| Ok((Cow::Owned(key.clone()), self.read_node(node)?));
                Value::Dict(entries.iter().map(entry).collect::<Result<_, Error>>()?)
            }
            "NdArrayNode" => match text_field(node, "type")? {
                "numpy" => return self.read_array(text_field(node, "file")?),
                "json" => self.read_objects(node)?,
                other => return Err(schema_error(format!("array of type \"{}\"", shorten(other)))),
            },
            "ObjectNode" | "TreeNode" => {
                let (module, name) = (text_field(node, "__module__")?, text_field(node, "__class__")?);
                match Class::find(module, name) {
                    Some(class) => Value::Object { class, state: Some(self.read_node(&node["content"])?) },
                    None => Value::Other(shorten(&format!("{module}.{name}"))),
                }
            }
            other => Value::Other(shorten(other)),
        };
        let id = self.values.push(value);
        if let Some(number) = number {
            self.by_id.insert(number, id);
        }
        Ok(id)
    }

    fn read_list(&mut self, node: &Json) -> Result<Value<'static>, Error> {
        let items = node["content"].as_array().ok_or_else(|| invalid_field(node, "content"))?;
        Ok(Value::List(items.iter().map(|item| self.read_node(item)).collect::<Result<_, _>>()?))
    }

    /// An array of objects, which are in the schema itself.
    fn read_objects(&mut self, node: &Json) -> Result<Value<'static>, Error> {
        let shape = self.read_node(&node["shape"])?;
        let shape = self.values.shape(shape).ok_or_else(|| invalid_field(node, "shape"))?;
        let items = self.read_list(node)?;
        let id = self.values.push(items);
        match (&shape[..], self.values.list(id)) {
            ([length], Some(items)) if items.len() == *length => Ok(Value::Objects(id)),
            _ => Err(schema_error(format!("an array of shape {shape:?} holds {}", self.values.describe(id)))),
        }
    }

    fn read_array(&mut self, file: &str) -> Result<Id, Error> {
        if let Some(cached) = self.arrays.get(file) {
            return Ok(*cached);
        }
        let bytes = self.inflate(file, usize::MAX)?;
        let array = npy::read(bytes).map_err(|reason| skops_error(file, reason))?;
        let id = self.values.push(Value::Array(array));
        self.arrays.insert(file.to_string(), id);
        Ok(id)
    }
}

/// Checks the memory that a JSON text takes once it is parsed: the smallest object takes a hundred times its text.
fn check_memory(text: &[u8]) -> Result<(), Error> {
    /// A node of the map, with room for eleven fields.
    const OBJECT: usize = 640;
    /// A list, with room for four values.
    const LIST: usize = 128;
    /// A value in a list that has grown to twice its length, or in a full node of a map.
    const VALUE: usize = 64;
    /// The allocation of a text.
    const TEXT: usize = 32;
    let (mut n_bytes, mut is_text, mut is_escaped) = (text.len(), false, false);
    for byte in text {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = is_text,
            b'"' => {
                is_text = !is_text;
                n_bytes += TEXT / 2;
            }
            _ if is_text => {}
            b'{' => n_bytes += OBJECT,
            b'[' => n_bytes += LIST,
            b',' | b':' => n_bytes += VALUE,
            _ => {}
        }
    }
    let limit = MAX_SCHEMA_MEMORY.min(MAX_SCHEMA_RATIO * text.len().max(64 << 10));
    if n_bytes > limit {
        return Err(schema_error(format!("takes {n_bytes} bytes of memory, must be at most {limit}")));
    }
    Ok(())
}

/// A value written as JSON within a JSON text.
fn parse_json_scalar(text: &str) -> Value<'static> {
    match serde_json::from_str(text) {
        Ok(Json::Null) => Value::None,
        Ok(Json::Bool(value)) => Value::Bool(value),
        Ok(Json::String(text)) => Value::Text(Cow::Owned(text)),
        Ok(Json::Number(number)) => match (number.as_i64(), number.as_f64()) {
            (Some(number), _) => Value::Int(number),
            (None, Some(number)) => Value::Float(number),
            (None, None) => Value::Other("number".into()),
        },
        // Also NaN and infinities, which Python writes and JSON does not define.
        _ => Value::Other(format!("JSON \"{}\"", shorten(text))),
    }
}

fn text_field<'j>(node: &'j Json, key: &str) -> Result<&'j str, Error> {
    node[key].as_str().ok_or_else(|| invalid_field(node, key))
}

fn invalid_field(node: &Json, key: &str) -> Error {
    let class = node["__class__"].as_str().map_or("without a class".into(), shorten);
    schema_error(format!("{key} of a node {class} is missing or wrong"))
}

fn schema_error(reason: String) -> Error {
    skops_error(SCHEMA, reason)
}

fn skops_error(file: &str, reason: String) -> Error {
    Error::Skops { file: shorten(file), reason }
}
