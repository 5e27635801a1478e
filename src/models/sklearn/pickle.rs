//! A reader of Python pickles that contain a forest: a stack machine that builds values and calls no code.
//!
//! A pickle is a program. The machine implements the opcodes of scikit-learn's forests and the classes of [`Class`] and
//! rejects all others. A "call" of such a class builds its value.
//!
//! Not taken: Python's unpickler with a list of allowed imports. It needs Python, and such lists have been bypassed.
//!
//! Every opcode creates at most one value and takes time in proportion to the values that it pops, so the limit on
//! opcodes bounds time and memory.

mod opcode;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::array::{self, Array, ArrayBytes, Dtype, Field, Scalar, ScalarKind};
use super::value::{Class, Id, Value, Values};
use super::{Error, shorten};
use opcode::{Opcode, Width};

/// Most instructions of a file. A tree takes about 200, so this is a forest of 20 000 trees.
const MAX_STEPS: usize = 1 << 22;

/// Longest name of a record's field, in bytes: scikit-learn's longest has 23.
const MAX_FIELD_NAME: usize = 64;

/// Reads a file. Returns its values and the root among them.
pub(super) fn read(bytes: &[u8]) -> Result<(Values<'_>, Id), Error> {
    let unpickler = Unpickler {
        bytes,
        at: 0,
        values: Values::new(bytes.len()),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: BTreeMap::new(),
        unpacked: 0,
    };
    unpickler.run()
}

struct Unpickler<'a> {
    bytes: &'a [u8],
    /// Offset of the next byte.
    at: usize,
    values: Values<'a>,
    stack: Vec<Id>,
    /// Heights of the stack at which an open collection begins.
    marks: Vec<usize>,
    memo: BTreeMap<u64, Id>,
    /// Bytes converted from texts so far.
    unpacked: usize,
}

impl<'a> Unpickler<'a> {
    fn run(mut self) -> Result<(Values<'a>, Id), Error> {
        for _ in 0..MAX_STEPS {
            let [byte] = self.read_chunk()?;
            if byte == opcode::STOP {
                return self.finish();
            }
            let opcode = Opcode::parse(byte).ok_or(Error::Opcode { opcode: byte, at: self.at - 1 })?;
            self.execute(opcode)?;
        }
        Err(self.pickle_error(format!("more than {MAX_STEPS} instructions")))
    }

    fn finish(mut self) -> Result<(Values<'a>, Id), Error> {
        let root = self.pop()?;
        match self.bytes.len() - self.at {
            0 => Ok((self.values, root)),
            remaining => Err(self.pickle_error(format!("{remaining} bytes follow the end"))),
        }
    }

    fn execute(&mut self, opcode: Opcode) -> Result<(), Error> {
        match opcode {
            Opcode::Protocol => self.check_protocol()?,
            Opcode::Frame => self.check_frame()?,
            Opcode::Memoize => self.memoize(self.memo.len() as u64)?,
            Opcode::Put(width) => self.read_unsigned(width).and_then(|number| self.memoize(number))?,
            Opcode::Get(width) => self.read_unsigned(width).and_then(|number| self.push_memoized(number))?,
            Opcode::None => self.push(Value::None),
            Opcode::Bool(value) => self.push(Value::Bool(value)),
            Opcode::Unsigned(width) => {
                let number = self.read_unsigned(width)?;
                self.push(Value::Int(number.cast_signed()));
            }
            Opcode::Signed => {
                let number = i32::from_le_bytes(self.read_chunk()?);
                self.push(Value::Int(number.into()));
            }
            Opcode::Long => {
                let number = self.read_long()?;
                self.push(Value::Int(number));
            }
            Opcode::Float => {
                let number = f64::from_be_bytes(self.read_chunk()?);
                self.push(Value::Float(number));
            }
            Opcode::Text(width) => self.push_text(width)?,
            Opcode::Bytes(width) => self.push_bytes(width)?,
            Opcode::List(n_items) => self.push_list(n_items)?,
            Opcode::Dict => self.push(Value::Dict(BTreeMap::new())),
            Opcode::Mark => self.marks.push(self.stack.len()),
            Opcode::ListFromMark => {
                let items = self.pop_to_mark()?;
                self.push(Value::List(items));
            }
            Opcode::Append => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            Opcode::AppendFromMark => {
                let items = self.pop_to_mark()?;
                self.append(items)?;
            }
            Opcode::SetItem => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set_items(&[key, value])?;
            }
            Opcode::SetItemsFromMark => {
                let items = self.pop_to_mark()?;
                self.set_items(&items)?;
            }
            Opcode::Global => {
                let (module, name) = (self.read_line()?, self.read_line()?);
                self.push(Value::Class(find_class(module, name)?));
            }
            Opcode::StackGlobal => self.stack_global()?,
            Opcode::NewObject => self.new_object()?,
            Opcode::Reduce => self.reduce()?,
            Opcode::Build => self.build()?,
        }
        Ok(())
    }

    fn pickle_error(&self, reason: String) -> Error {
        Error::Pickle { at: self.at, reason }
    }

    fn take(&mut self, length: impl TryInto<usize>) -> Result<&'a [u8], Error> {
        let rest = &self.bytes[self.at..];
        let taken = length.try_into().ok().and_then(|length| rest.get(..length));
        let taken = taken.ok_or_else(|| self.pickle_error("the file ends early".into()))?;
        self.at += taken.len();
        Ok(taken)
    }

    fn read_chunk<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut chunk = [0; N];
        chunk.copy_from_slice(self.take(N)?);
        Ok(chunk)
    }

    fn push(&mut self, value: Value<'a>) {
        let id = self.values.push(value);
        self.stack.push(id);
    }

    /// The topmost value above the last mark.
    fn top(&self) -> Result<Id, Error> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack
            .get(floor..)
            .and_then(<[Id]>::last)
            .copied()
            .ok_or_else(|| self.pickle_error("stack is empty".into()))
    }

    fn pop(&mut self) -> Result<Id, Error> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, Error> {
        let mark = self.marks.pop().ok_or_else(|| self.pickle_error("no mark is set".into()))?;
        Ok(self.stack.split_off(mark))
    }

    fn check_protocol(&mut self) -> Result<(), Error> {
        let [protocol] = self.read_chunk()?;
        match protocol {
            2..=5 => Ok(()),
            _ => Err(self.pickle_error(format!("protocol is {protocol}, must be 2 to 5"))),
        }
    }

    fn check_frame(&mut self) -> Result<(), Error> {
        let length = u64::from_le_bytes(self.read_chunk()?);
        let remaining = self.bytes.len() - self.at;
        if usize::try_from(length).is_ok_and(|length| length <= remaining) {
            return Ok(());
        }
        Err(self.pickle_error(format!("frame has {length} bytes, {remaining} are left")))
    }

    fn memoize(&mut self, number: u64) -> Result<(), Error> {
        self.memo.insert(number, self.top()?);
        Ok(())
    }

    fn push_memoized(&mut self, number: u64) -> Result<(), Error> {
        let id =
            *self.memo.get(&number).ok_or_else(|| self.pickle_error(format!("memo {number} is not set")))?;
        self.stack.push(id);
        Ok(())
    }

    fn read_unsigned(&mut self, width: Width) -> Result<u64, Error> {
        Ok(match width {
            Width::One => u8::from_le_bytes(self.read_chunk()?).into(),
            Width::Two => u16::from_le_bytes(self.read_chunk()?).into(),
            Width::Four => u32::from_le_bytes(self.read_chunk()?).into(),
            Width::Eight => u64::from_le_bytes(self.read_chunk()?),
        })
    }

    fn read_long(&mut self) -> Result<i64, Error> {
        let [length] = self.read_chunk()?;
        let bytes = self.take(length)?;
        if bytes.len() > 8 {
            return Err(self.pickle_error(format!("integer of {length} bytes, must be at most 8")));
        }
        let fill = if bytes.last().is_some_and(|byte| *byte >= 0x80) { 0xff } else { 0 };
        let mut whole = [fill; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        Ok(i64::from_le_bytes(whole))
    }

    fn push_text(&mut self, width: Width) -> Result<(), Error> {
        let length = self.read_unsigned(width)?;
        let bytes = self.take(length)?;
        let text = str::from_utf8(bytes).map_err(|error| self.pickle_error(format!("text: {error}")))?;
        self.push(Value::Text(Cow::Borrowed(text)));
        Ok(())
    }

    fn push_bytes(&mut self, width: Width) -> Result<(), Error> {
        let length = self.read_unsigned(width)?;
        let bytes = self.take(length)?;
        self.push(Value::Bytes(ArrayBytes::File(bytes)));
        Ok(())
    }

    fn push_list(&mut self, n_items: usize) -> Result<(), Error> {
        let mut items = (0..n_items).map(|_| self.pop()).collect::<Result<Vec<Id>, Error>>()?;
        items.reverse();
        self.push(Value::List(items));
        Ok(())
    }

    /// A text that ends with its line.
    fn read_line(&mut self) -> Result<&'a str, Error> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|byte| *byte == b'\n');
        let line = self.take(length.ok_or_else(|| self.pickle_error("the file ends early".into()))?)?;
        self.at += 1;
        str::from_utf8(line).map_err(|error| self.pickle_error(format!("text: {error}")))
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), Error> {
        let target = self.top()?;
        match self.values.get_mut(target) {
            Value::List(list) => list.extend(items),
            _ => {
                return Err(self.pickle_error(format!("items are added to {}", self.values.describe(target))));
            }
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Result<(), Error> {
        let target = self.top()?;
        for pair in items.chunks(2) {
            let &[key, value] = pair else {
                return Err(self.pickle_error("a key has no value".into()));
            };
            let key = match self.values.get(key) {
                Value::Text(key) => key.clone(),
                _ => {
                    return Err(
                        self.pickle_error(format!("key is {}, must be a text", self.values.describe(key)))
                    );
                }
            };
            match self.values.get_mut(target) {
                Value::Dict(entries) => entries.insert(key, value),
                _ => {
                    return Err(
                        self.pickle_error(format!("keys are set in {}", self.values.describe(target)))
                    );
                }
            };
        }
        Ok(())
    }

    fn stack_global(&mut self) -> Result<(), Error> {
        let name = self.pop()?;
        let module = self.pop()?;
        let (Some(module), Some(name)) = (self.values.text(module), self.values.text(name)) else {
            return Err(self.pickle_error("the name of a global is not a text".into()));
        };
        self.push(Value::Class(find_class(module, name)?));
        Ok(())
    }

    /// An estimator, constructed without arguments.
    fn new_object(&mut self) -> Result<(), Error> {
        let arguments = self.pop()?;
        let class = self.pop()?;
        match (self.values.get(class), self.values.list(arguments)) {
            (&Value::Class(class @ (Class::IsolationForest | Class::ExtraTreeRegressor)), Some([])) => {
                self.push(Value::Object { class, state: None });
                Ok(())
            }
            _ => Err(self.pickle_error(format!(
                "{} is made from {}",
                self.values.describe(class),
                self.values.describe(arguments)
            ))),
        }
    }

    /// A call of one of numpy's functions that construct a part of an array, or of `Tree`.
    fn reduce(&mut self) -> Result<(), Error> {
        let arguments = self.pop()?;
        let callee = self.pop()?;
        let value = match (self.values.get(callee), self.values.list(arguments)) {
            (Value::Class(Class::Dtype), Some([code, ..])) => {
                let code = self.values.text(*code).ok_or("the code of a dtype is not a text".to_string());
                code.and_then(Scalar::parse).map(|scalar| Value::Dtype(Rc::new(Dtype::from_scalar(scalar))))
            }
            (Value::Class(Class::Reconstruct), Some([class, ..]))
                if matches!(self.values.get(*class), Value::Class(Class::Ndarray)) =>
            {
                Ok(Value::Object { class: Class::Ndarray, state: None })
            }
            (Value::Class(Class::Scalar), Some([dtype, data])) => self.array(*dtype, Vec::new(), *data),
            (Value::Class(Class::FromBuffer), Some([data, dtype, shape, ..])) => {
                let lengths = self.values.shape(*shape);
                let shape = lengths.ok_or_else(|| format!("shape is {}", self.values.describe(*shape)));
                shape.and_then(|shape| self.array(*dtype, shape, *data))
            }
            (Value::Class(Class::Encode), Some([text, ..])) => self.encode(*text),
            (Value::Class(Class::Tree), Some(_)) => Ok(Value::Object { class: Class::Tree, state: None }),
            _ => {
                let (callee, arguments) = (self.values.describe(callee), self.values.describe(arguments));
                Err(format!("{callee} is called with {arguments}"))
            }
        };
        let value = value.map_err(|reason| self.pickle_error(reason))?;
        if let Value::Bytes(ArrayBytes::Unpacked(bytes)) = &value {
            self.unpacked += bytes.len();
            if self.unpacked > self.bytes.len() {
                return Err(self.pickle_error("the same text becomes bytes several times".into()));
            }
        }
        self.push(value);
        Ok(())
    }

    /// The bytes of a text: protocol 2 writes bytes as characters below 256.
    fn encode(&self, text: Id) -> Result<Value<'a>, String> {
        let invalid = || format!("{} stands for bytes", self.values.describe(text));
        let text = self.values.text(text).ok_or_else(invalid)?;
        let bytes: Option<Rc<[u8]>> = text.chars().map(|c| u8::try_from(c).ok()).collect();
        Ok(Value::Bytes(ArrayBytes::Unpacked(bytes.ok_or_else(invalid)?)))
    }

    /// Sets the state of the value below the top.
    fn build(&mut self) -> Result<(), Error> {
        let state = self.pop()?;
        let target = self.top()?;
        let value = match (self.values.get(target), self.values.get(state)) {
            (Value::Object { class: Class::Ndarray, .. }, Value::List(parts)) => self.ndarray(parts),
            (Value::Dtype(base), Value::List(parts)) => self.dtype(base, parts),
            (Value::Object { class, state: None }, Value::Dict(_)) => {
                Ok(Value::Object { class: *class, state: Some(state) })
            }
            _ => {
                let (target, state) = (self.values.describe(target), self.values.describe(state));
                Err(format!("the state of {target} is {state}"))
            }
        };
        *self.values.get_mut(target) = value.map_err(|reason| self.pickle_error(reason))?;
        Ok(())
    }

    /// An array from its state: version, shape, dtype, order, data.
    fn ndarray(&self, parts: &[Id]) -> Result<Value<'a>, String> {
        let &[_, shape, dtype, _, data] = parts else {
            return Err(format!("the state of an array has {} parts, must have 5", parts.len()));
        };
        let lengths = self.values.shape(shape);
        let shape = lengths.ok_or_else(|| format!("shape is {}", self.values.describe(shape)))?;
        self.array(dtype, shape, data)
    }

    fn array(&self, dtype: Id, shape: Vec<usize>, data: Id) -> Result<Value<'a>, String> {
        let Value::Dtype(dtype) = self.values.get(dtype) else {
            return Err(format!("dtype is {}", self.values.describe(dtype)));
        };
        if dtype.scalar().is_some_and(|scalar| scalar.kind == ScalarKind::Object) {
            let n_items = self.values.list(data).map(<[Id]>::len);
            return match n_items {
                Some(n_items) if shape == [n_items] => Ok(Value::Objects(data)),
                _ => Err(format!("an array of shape {shape:?} holds {}", self.values.describe(data))),
            };
        }
        match self.values.get(data) {
            Value::Bytes(data) => Array::new(Rc::clone(dtype), shape, data.clone()).map(Value::Array),
            _ => Err(format!("the data of an array is {}", self.values.describe(data))),
        }
    }

    /// A dtype from its state: version, byte order, subarray, names, fields, size, alignment, flags.
    fn dtype(&self, base: &Rc<Dtype>, parts: &[Id]) -> Result<Value<'a>, String> {
        let &[_, order, subarray, names, fields, ..] = parts else {
            return Err(format!("the state of a dtype has {} parts, must have 8", parts.len()));
        };
        let order = self.values.text(order);
        if !matches!(order, Some("<" | "|")) {
            return Err(format!("byte order is {order:?}, must be \"<\""));
        }
        if !matches!(self.values.get(subarray), Value::None) {
            return Err("dtype has a subarray".into());
        }
        let Some(names) = self.values.list(names) else {
            return Ok(Value::Dtype(Rc::clone(base)));
        };
        let scalar = base.scalar().filter(|scalar| scalar.kind == ScalarKind::Void);
        let size = scalar.ok_or("dtype has fields and is no record")?.size;
        let fields = names.iter().take(array::MAX_FIELDS + 1).map(|name| self.field(fields, *name));
        let record = Dtype::record(size, fields.collect::<Result<_, _>>()?)?;
        Ok(Value::Dtype(Rc::new(record)))
    }

    /// A field of a record: `fields` maps its name to dtype and offset.
    fn field(&self, fields: Id, name: Id) -> Result<Field, String> {
        let invalid = || format!("field {} of a dtype cannot be read", self.values.describe(name));
        // Many records may share one name, and each stores a copy.
        let text = self.values.text(name).filter(|text| text.len() <= MAX_FIELD_NAME).ok_or_else(invalid)?;
        let Value::Dict(fields) = self.values.get(fields) else { return Err(invalid()) };
        let parts = fields.get(text).and_then(|parts| self.values.list(*parts));
        let Some(&[dtype, offset]) = parts else { return Err(invalid()) };
        match (self.values.get(dtype), self.values.get(offset)) {
            (Value::Dtype(dtype), Value::Int(offset)) => Ok(Field {
                name: text.to_string(),
                offset: usize::try_from(*offset).map_err(|_| invalid())?,
                scalar: dtype.scalar().ok_or_else(invalid)?,
            }),
            _ => Err(invalid()),
        }
    }
}

fn find_class(module: &str, name: &str) -> Result<Class, Error> {
    let class = Class::find(module, name);
    class.ok_or_else(|| Error::Global { name: shorten(&format!("{module}.{name}")) })
}
