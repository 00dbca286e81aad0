//! What a restricted pickle can make: plain values and descriptions of tensors, in arenas.
//!
//! Values are small and copyable; texts borrow from the file, containers are numbers into arenas. So a
//! pickle cannot build anything deep that would have to be walked or dropped recursively, and what it
//! can make the reader allocate is counted (see [`super::pickle`]).

use danaus_tensor::DType;

/// Dimensions a tensor may have.
pub const MAX_RANK: usize = 16;

/// One value on the stack, in the memo or in a container.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// `None`.
    None,
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number.
    Float,
    /// A text of the file.
    Text(&'a str),
    /// `len` items from `start` in [`Arenas::items`].
    Tuple {
        /// First item.
        start: usize,
        /// Number of items.
        len: usize,
    },
    /// A list of [`Arenas::lists`].
    List(usize),
    /// A dictionary of [`Arenas::dicts`].
    Dict(usize),
    /// One of the permitted functions and types.
    Global(Global),
    /// A storage of [`Arenas::storages`].
    Storage(usize),
    /// A tensor of [`Arenas::tensors`].
    Tensor(usize),
}

impl Value<'_> {
    /// The kind of value, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool(_) => "a truth value",
            Self::Int(_) => "an integer",
            Self::Float => "a float",
            Self::Text(_) => "a text",
            Self::Tuple { .. } => "a tuple",
            Self::List(_) => "a list",
            Self::Dict(_) => "a dictionary",
            Self::Global(_) => "a function or type",
            Self::Storage(_) => "a storage",
            Self::Tensor(_) => "a tensor",
        }
    }
}

/// The functions and types a pickle may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Global {
    /// `collections.OrderedDict`.
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2`.
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`.
    RebuildParameter,
    /// `torch.FloatStorage` and its like.
    Storage(DType),
}

const STORAGES: [(&str, DType); 11] = [
    ("DoubleStorage", DType::F64),
    ("FloatStorage", DType::F32),
    ("BFloat16Storage", DType::BF16),
    ("HalfStorage", DType::F16),
    ("LongStorage", DType::I64),
    ("IntStorage", DType::I32),
    ("CharStorage", DType::I8),
    ("ByteStorage", DType::U8),
    ("BoolStorage", DType::Bool),
    ("ComplexFloatStorage", DType::C64),
    ("ComplexDoubleStorage", DType::C128),
];

/// The known storages, for messages.
pub(super) fn storage_names() -> String {
    let names: Vec<&str> =
        STORAGES.iter().map(|(name, _)| name.trim_end_matches("Storage")).collect();
    names.join(", ")
}

impl Global {
    /// The permitted one of that name.
    pub fn find(module: &str, name: &str) -> Option<Self> {
        match (module, name) {
            ("collections", "OrderedDict") => Some(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Self::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Some(Self::RebuildParameter),
            ("torch", name) => {
                let known = STORAGES.iter().find(|(storage, _)| *storage == name);
                known.map(|(_, dtype)| Self::Storage(*dtype))
            }
            _ => None,
        }
    }
}

/// Data of one or several tensors.
#[derive(Clone, Copy, Debug)]
pub struct StorageRef<'a> {
    /// Its entry is `NAME/data/KEY`.
    pub key: &'a str,
    /// Its elements.
    pub dtype: DType,
    /// How many.
    pub elements: u64,
}

/// A tensor: a strided view of a storage. Sizes are checked when it is made.
#[derive(Clone, Debug)]
pub struct TensorRef {
    /// Number of the storage.
    pub storage: usize,
    /// First element.
    pub offset: u64,
    /// Elements in each dimension.
    pub shape: Vec<usize>,
    /// Elements between neighbours in each dimension.
    pub strides: Vec<usize>,
}

/// Everything that values refer to.
#[derive(Debug, Default)]
pub struct Arenas<'a> {
    /// Items of tuples.
    pub items: Vec<Value<'a>>,
    /// Lists.
    pub lists: Vec<Vec<Value<'a>>>,
    /// Dictionaries, in the order of their entries.
    pub dicts: Vec<Vec<(Value<'a>, Value<'a>)>>,
    /// Storages.
    pub storages: Vec<StorageRef<'a>>,
    /// Tensors.
    pub tensors: Vec<TensorRef>,
}

impl<'a> Arenas<'a> {
    /// The items of a tuple.
    pub fn tuple(&self, value: Value<'a>) -> Option<&[Value<'a>]> {
        match value {
            Value::Tuple { start, len } => self.items.get(start..start + len),
            _ => None,
        }
    }
}
