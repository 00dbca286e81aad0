//! What can be wrong with a file of `torch.save`.

/// One reason to refuse a file. Every case has its own variant, so that callers and tests can tell
/// them apart; the text names the entry, what was found and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The format of PyTorch before 1.6: a bare pickle.
    #[error(
        "this is PyTorch's legacy format, a bare pickle; rewrite it in Python with \
         torch.save(torch.load(old, weights_only=True), new)"
    )]
    Legacy,
    /// Neither zip nor pickle.
    #[error("not a file of torch.save: {0}")]
    NotZip(String),
    /// A compiled program.
    #[error("a TorchScript archive holds a program; save the state dict of its module instead")]
    TorchScript,
    /// There is no `NAME/data.pkl`.
    #[error("the zip archive has no entry NAME/data.pkl")]
    NoPickle,
    /// There are several.
    #[error("the zip archive has two entries that end with data.pkl: {0} and {1}")]
    TwoPickles(String, String),
    /// Two entries of one name.
    #[error("the zip archive has two entries {0}")]
    DuplicateEntry(String),
    /// Tensor data must not be compressed.
    #[error("entry {entry} is compressed with {method}; torch.save stores entries as they are")]
    Compressed {
        /// Entry of the archive.
        entry: String,
        /// Its method.
        method: String,
    },
    /// Written on a machine with the other byte order.
    #[error("the file's byte order is {0}; only little is read")]
    ByteOrder(String),
    /// Anything but the few functions that tensors need.
    #[error(
        "the pickle asks for {0}, which is refused: no code of a file is run. Allowed are \
         collections.OrderedDict, torch._utils._rebuild_tensor_v2, torch._utils._rebuild_parameter \
         and torch.*Storage of {names}", names = super::value::storage_names()
    )]
    Global(String),
    /// An instruction that state dicts do not need.
    #[error("the pickle has the instruction {name} at byte {at}, which state dicts do not need")]
    Instruction {
        /// Its name, or its number.
        name: String,
        /// Position in the pickle.
        at: usize,
    },
    /// A pickle of a version that did not exist.
    #[error("the pickle has protocol {0}, valid is 2 to 5")]
    Protocol(u8),
    /// The pickle ends inside of an instruction, or without its end mark.
    #[error("the pickle ends early, at byte {0}")]
    Truncated(usize),
    /// An instruction takes what is not there, or of another kind.
    #[error("the pickle is malformed at byte {at}: {what}")]
    Malformed {
        /// What does not fit.
        what: String,
        /// Position in the pickle.
        at: usize,
    },
    /// Larger than any state dict.
    #[error("the pickle has more than {limit} {what}, at byte {at}")]
    Limit {
        /// What there are too many of.
        what: &'static str,
        /// How many are allowed.
        limit: usize,
        /// Position in the pickle.
        at: usize,
    },
    /// The top of the pickle is something else than a dictionary.
    #[error("the file holds {0}; save a model's state_dict()")]
    NotStateDict(&'static str),
    /// An entry of the state dict is no tensor.
    #[error("entry {name} is {kind}, not a tensor; save the state_dict() alone")]
    NotTensor {
        /// Name in the state dict.
        name: String,
        /// What it is.
        kind: &'static str,
    },
    /// A name is used twice.
    #[error("tensor {0} stands in the file twice")]
    DuplicateTensor(String),
    /// The data of a tensor is not in the archive.
    #[error("the data of storage {0} is missing")]
    NoStorage(String),
    /// The data is shorter than the pickle says.
    #[error("storage {key} has {found} bytes, the pickle says {expected}")]
    StorageSize {
        /// Its key.
        key: String,
        /// Bytes in the archive.
        found: u64,
        /// Bytes there should be.
        expected: u64,
    },
    /// Shape, strides and storage do not fit.
    #[error("a tensor of shape {shape:?}, strides {strides:?} and offset {offset} {why}")]
    Tensor {
        /// Elements in each dimension.
        shape: Vec<i64>,
        /// Elements between neighbours in each dimension.
        strides: Vec<i64>,
        /// First element in the storage.
        offset: i64,
        /// What does not fit.
        why: String,
    },
}
