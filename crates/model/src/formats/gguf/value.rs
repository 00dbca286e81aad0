//! Metadata values, read in place.
//!
//! A [`Value`] is a view of bytes of the file that were checked when it was opened, so reading one
//! neither fails nor allocates. Arrays are walked, not stored: a vocabulary of a hundred thousand
//! tokens costs memory only where somebody collects it.

use std::fmt;

/// The thirteen types of metadata values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    /// Every type, by its number in a file.
    pub const ALL: [ValueType; 13] = [
        ValueType::U8,
        ValueType::I8,
        ValueType::U16,
        ValueType::I16,
        ValueType::U32,
        ValueType::I32,
        ValueType::F32,
        ValueType::Bool,
        ValueType::Text,
        ValueType::Array,
        ValueType::U64,
        ValueType::I64,
        ValueType::F64,
    ];

    /// The type of a number in a file.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(id).ok()?).copied()
    }

    /// Its number in a file.
    pub fn id(self) -> u32 {
        self as u32
    }

    /// Bytes of a value; `None` where they vary.
    pub const fn size(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::Text | Self::Array => None,
        }
    }

    /// The name of the type.
    pub const fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::Text => "text",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A value of the file. `bytes` begin with it and were checked to hold it.
#[derive(Clone, Copy)]
pub struct Value<'a> {
    kind: ValueType,
    bytes: &'a [u8],
}

/// An array of the file.
#[derive(Clone, Copy)]
pub struct Array<'a> {
    kind: ValueType,
    len: usize,
    bytes: &'a [u8],
}

/// The first `N` bytes; zeros where they are missing, which cannot be in a checked file.
fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.first_chunk().copied().unwrap_or([0; N])
}

fn length(bytes: &[u8]) -> usize {
    usize::try_from(u64::from_le_bytes(first(bytes))).unwrap_or(0)
}

impl<'a> Value<'a> {
    pub(super) fn new(kind: ValueType, bytes: &'a [u8]) -> Self {
        Self { kind, bytes }
    }

    /// Its type.
    pub fn kind(&self) -> ValueType {
        self.kind
    }

    /// A whole number of any of the eight types.
    pub fn as_integer(&self) -> Option<i128> {
        let bytes = self.bytes;
        Some(match self.kind {
            ValueType::U8 => i128::from(first::<1>(bytes)[0]),
            ValueType::I8 => i128::from(i8::from_le_bytes(first(bytes))),
            ValueType::U16 => i128::from(u16::from_le_bytes(first(bytes))),
            ValueType::I16 => i128::from(i16::from_le_bytes(first(bytes))),
            ValueType::U32 => i128::from(u32::from_le_bytes(first(bytes))),
            ValueType::I32 => i128::from(i32::from_le_bytes(first(bytes))),
            ValueType::U64 => i128::from(u64::from_le_bytes(first(bytes))),
            ValueType::I64 => i128::from(i64::from_le_bytes(first(bytes))),
            _ => return None,
        })
    }

    /// A number of either float type.
    pub fn as_float(&self) -> Option<f64> {
        match self.kind {
            ValueType::F32 => Some(f64::from(f32::from_le_bytes(first(self.bytes)))),
            ValueType::F64 => Some(f64::from_le_bytes(first(self.bytes))),
            _ => None,
        }
    }

    /// A truth value.
    pub fn as_bool(&self) -> Option<bool> {
        (self.kind == ValueType::Bool).then(|| first::<1>(self.bytes)[0] != 0)
    }

    /// A text.
    pub fn as_str(&self) -> Option<&'a str> {
        if self.kind != ValueType::Text {
            return None;
        }
        std::str::from_utf8(self.bytes.get(8..8 + length(self.bytes))?).ok()
    }

    /// An array.
    pub fn as_array(&self) -> Option<Array<'a>> {
        if self.kind != ValueType::Array {
            return None;
        }
        let kind = ValueType::from_id(u32::from_le_bytes(first(self.bytes)))?;
        let len = length(self.bytes.get(4..)?);
        Some(Array { kind, len, bytes: self.bytes.get(12..)? })
    }

    /// Bytes it takes in the file.
    fn width(&self) -> usize {
        match (self.kind.size(), self.as_array()) {
            (Some(size), _) => size,
            (None, None) => 8 + length(self.bytes),
            (None, Some(array)) => match array.kind.size() {
                Some(size) => 12 + array.len * size,
                None => 12 + array.iter().map(|item| item.width()).sum::<usize>(),
            },
        }
    }
}

impl<'a> Array<'a> {
    /// Type of the items.
    pub fn kind(&self) -> ValueType {
        self.kind
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The items in order.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let (kind, mut rest) = (self.kind, self.bytes);
        (0..self.len).map(move |_| {
            let value = Value::new(kind, rest);
            rest = rest.get(value.width()..).unwrap_or_default();
            value
        })
    }
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(array) = self.as_array() {
            return f.debug_list().entries(array.iter()).finish();
        }
        match (self.as_str(), self.as_integer(), self.as_float(), self.as_bool()) {
            (Some(text), ..) => write!(f, "{text:?}"),
            (_, Some(integer), ..) => write!(f, "{integer}"),
            (_, _, Some(float), _) => write!(f, "{float}"),
            (.., bool) => write!(f, "{}", bool == Some(true)),
        }
    }
}
