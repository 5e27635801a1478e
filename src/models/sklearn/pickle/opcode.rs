//! The instructions of pickles of scikit-learn's forests. A comment gives the names of Python's pickletools.

/// STOP: the value on the stack is the root.
pub(super) const STOP: u8 = b'.';

/// Bytes of an unsigned argument.
#[derive(Clone, Copy, Debug)]
pub(super) enum Width {
    One,
    Two,
    Four,
    Eight,
}

/// An instruction.
#[derive(Clone, Copy, Debug)]
pub(super) enum Opcode {
    /// PROTO
    Protocol,
    /// FRAME
    Frame,
    /// MEMOIZE
    Memoize,
    /// BINPUT, LONG_BINPUT
    Put(Width),
    /// BINGET, LONG_BINGET
    Get(Width),
    /// NONE
    None,
    /// NEWTRUE, NEWFALSE
    Bool(bool),
    /// BININT1, BININT2
    Unsigned(Width),
    /// BININT
    Signed,
    /// LONG1
    Long,
    /// BINFLOAT
    Float,
    /// SHORT_BINUNICODE, BINUNICODE
    Text(Width),
    /// SHORT_BINBYTES, BINBYTES, BYTEARRAY8
    Bytes(Width),
    /// EMPTY_TUPLE, EMPTY_LIST, TUPLE1, TUPLE2, TUPLE3
    List(usize),
    /// EMPTY_DICT
    Dict,
    /// MARK
    Mark,
    /// TUPLE
    ListFromMark,
    /// APPEND
    Append,
    /// APPENDS
    AppendFromMark,
    /// SETITEM
    SetItem,
    /// SETITEMS
    SetItemsFromMark,
    /// GLOBAL
    Global,
    /// STACK_GLOBAL
    StackGlobal,
    /// NEWOBJ
    NewObject,
    /// REDUCE
    Reduce,
    /// BUILD
    Build,
}

impl Opcode {
    /// The instruction of a byte; `None` for one that no forest needs.
    pub(super) fn parse(byte: u8) -> Option<Self> {
        Some(match byte {
            0x80 => Self::Protocol,
            0x95 => Self::Frame,
            0x94 => Self::Memoize,
            b'q' => Self::Put(Width::One),
            b'r' => Self::Put(Width::Four),
            b'h' => Self::Get(Width::One),
            b'j' => Self::Get(Width::Four),
            b'N' => Self::None,
            0x88 => Self::Bool(true),
            0x89 => Self::Bool(false),
            b'K' => Self::Unsigned(Width::One),
            b'M' => Self::Unsigned(Width::Two),
            b'J' => Self::Signed,
            0x8a => Self::Long,
            b'G' => Self::Float,
            0x8c => Self::Text(Width::One),
            b'X' => Self::Text(Width::Four),
            b'C' => Self::Bytes(Width::One),
            b'B' => Self::Bytes(Width::Four),
            0x96 => Self::Bytes(Width::Eight),
            b')' | b']' => Self::List(0),
            0x85 => Self::List(1),
            0x86 => Self::List(2),
            0x87 => Self::List(3),
            b'}' => Self::Dict,
            b'(' => Self::Mark,
            b't' => Self::ListFromMark,
            b'a' => Self::Append,
            b'e' => Self::AppendFromMark,
            b's' => Self::SetItem,
            b'u' => Self::SetItemsFromMark,
            b'c' => Self::Global,
            0x93 => Self::StackGlobal,
            0x81 => Self::NewObject,
            b'R' => Self::Reduce,
            b'b' => Self::Build,
            _ => return None,
        })
    }
}
