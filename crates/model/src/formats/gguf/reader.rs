//! Opening a GGUF file: every count, size and name is checked here, before it is used.

use super::fault::Fault;
use super::types::TensorType;
use super::value::{Value, ValueType};
use crate::{Error, Result};
use danaus_runtime::fs::{self, Mapped};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Alignment where a file does not say.
pub const ALIGNMENT: u64 = 32;
/// Metadata entries that are read; real files have fewer than a hundred.
const MAX_KEYS: u64 = 1 << 16;
/// Tensors that are read; the largest models have some thousands.
const MAX_TENSORS: u64 = 1 << 18;
/// Longest key, and longest tensor name.
const MAX_NAME: u64 = (1 << 16) - 1;
/// Arrays within arrays.
const MAX_DEPTH: usize = 4;

/// A metadata entry: where its key and its value stand.
struct Pair {
    key: Range<usize>,
    kind: ValueType,
    value: usize,
}

/// What a file says of one tensor.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    name: Range<usize>,
    rank: usize,
    /// Fastest first, as in the file.
    sizes: [u64; 4],
    /// Type of the elements.
    pub kind: TensorType,
    /// Its bytes in the file.
    pub data: Range<usize>,
}

impl TensorInfo {
    /// The shape, slowest first as everywhere here; elements, not bytes, in the last dimension.
    pub fn shape(&self) -> Vec<usize> {
        // Sizes were checked to multiply within the file's length.
        self.sizes[..self.rank].iter().rev().map(|&size| size as usize).collect()
    }
}

/// An open GGUF file of version 3.
pub struct GgufFile {
    path: PathBuf,
    pub(super) map: Arc<Mapped>,
    pairs: Vec<Pair>,
    tensors: Vec<TensorInfo>,
    /// Numbers of tensors in the order of their names.
    sorted: Vec<u32>,
}

/// Reads little-endian values and knows where it is.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    /// The next `len` bytes.
    fn take(&mut self, what: &'static str, len: u64) -> Result<&'a [u8], Fault> {
        let (at, left) = (self.at, self.left());
        if len > left {
            return Err(Fault::Truncated { what, at, needed: len, left });
        }
        self.at += len as usize;
        Ok(&self.bytes[at..self.at])
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, Fault> {
        let bytes = self.take(what, 4)?;
        Ok(bytes.iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte)))
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, Fault> {
        let bytes = self.take(what, 8)?;
        Ok(bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    /// A text with its length before it, as its place in the file.
    fn text(&mut self, what: &'static str) -> Result<Range<usize>, Fault> {
        let len = self.u64(what)?;
        let at = self.at;
        let text = self.take(what, len)?;
        match std::str::from_utf8(text) {
            Ok(_) => Ok(at..self.at),
            Err(_) => Err(Fault::NotUtf8 { what, at }),
        }
    }

    fn name(&mut self, what: &'static str) -> Result<Range<usize>, Fault> {
        let at = self.at;
        let name = self.text(what)?;
        let len = name.len() as u64;
        match (1..=MAX_NAME).contains(&len) {
            true => Ok(name),
            false => Err(Fault::NameLength { what, at, len, limit: MAX_NAME }),
        }
    }

    /// Refuses a count whose smallest items would not fit into the rest of the file.
    fn fits(&self, what: &'static str, count: u64, each: u64) -> Result<(), Fault> {
        let (needed, left) = (count.saturating_mul(each), self.left());
        match needed <= left {
            true => Ok(()),
            false => Err(Fault::Truncated { what, at: self.at, needed, left }),
        }
    }

    /// Checks a value and steps over it.
    fn skip(&mut self, kind: ValueType, key: &Range<usize>, depth: usize) -> Result<(), Fault> {
        let bytes = self.bytes;
        let key_text = || text_at(bytes, key).to_string();
        match kind {
            ValueType::Bool => match self.take("a truth value", 1)?[0] {
                0 | 1 => Ok(()),
                found => Err(Fault::Truth { key: key_text(), found }),
            },
            ValueType::Text => self.text("a text value").map(|_| ()),
            ValueType::Array if depth == MAX_DEPTH => {
                Err(Fault::Depth { key: key_text(), limit: MAX_DEPTH })
            }
            ValueType::Array => {
                let found = self.u32("an array's type")?;
                let kind = ValueType::from_id(found);
                let kind = kind.ok_or_else(|| Fault::ValueType { key: key_text(), found })?;
                let count = self.u64("an array's length")?;
                // The smallest text is its length, the smallest array its type and length.
                let smallest = if kind == ValueType::Array { 12 } else { 8 };
                self.fits("an array", count, kind.size().unwrap_or(smallest) as u64)?;
                match kind.size() {
                    Some(size) if kind != ValueType::Bool => {
                        self.take("an array", count * size as u64).map(|_| ())
                    }
                    _ => (0..count).try_for_each(|_| self.skip(kind, key, depth + 1)),
                }
            }
            plain => {
                let size = plain.size().unwrap_or(0) as u64;
                self.take("a value", size).map(|_| ())
            }
        }
    }

    fn pair(&mut self) -> Result<Pair, Fault> {
        let key = self.name("a key")?;
        let found = self.u32("a value's type")?;
        let kind = ValueType::from_id(found).ok_or_else(|| Fault::ValueType {
            key: text_at(self.bytes, &key).to_string(),
            found,
        })?;
        let value = self.at;
        self.skip(kind, &key, 0)?;
        Ok(Pair { key, kind, value })
    }

    /// A tensor's description; its data range is still relative to the start of the data.
    fn tensor(&mut self, alignment: u64) -> Result<TensorInfo, Fault> {
        let range = self.name("a tensor name")?;
        let (bytes, place) = (self.bytes, range.clone());
        let name = || text_at(bytes, &place).to_string();
        let rank = self.u32("a tensor's dimensions")?;
        if !(1..=4).contains(&rank) {
            return Err(Fault::Rank { name: name(), rank });
        }
        let rank = rank as usize;
        let mut sizes = [1; 4];
        for size in &mut sizes[..rank] {
            *size = self.u64("a tensor's sizes")?;
        }
        let found = self.u32("a tensor's type")?;
        let kind = TensorType::from_ggml(found);
        let kind = kind.ok_or_else(|| Fault::TensorType { name: name(), found })?;
        let offset = self.u64("a tensor's offset")?;
        let (block, block_bytes) = kind.unit();
        let (cols, block) = (sizes[0], block as u64);
        if !cols.is_multiple_of(block) {
            return Err(Fault::Block { name: name(), kind: kind.name(), cols, block });
        }
        let units = sizes.iter().try_fold(1u64, |all, &size| all.checked_mul(size));
        let bytes = units.and_then(|all| (all / block).checked_mul(block_bytes as u64));
        let end = bytes.filter(|&bytes| bytes > 0).and_then(|bytes| offset.checked_add(bytes));
        let end = end.and_then(|end| usize::try_from(end).ok());
        let Some(end) = end else {
            return Err(Fault::Sizes { name: name(), sizes: sizes[..rank].to_vec() });
        };
        if !offset.is_multiple_of(alignment) {
            return Err(Fault::Misaligned { name: name(), offset, alignment });
        }
        Ok(TensorInfo { name: range, rank, sizes, kind, data: offset as usize..end })
    }
}

/// A text whose place was checked.
fn text_at<'a>(file: &'a [u8], range: &Range<usize>) -> &'a str {
    file.get(range.clone()).and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default()
}

impl GgufFile {
    /// Maps and validates a file.
    ///
    /// # Errors
    /// When it cannot be read, or with the [`Fault`] that was found.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let io = |error| danaus_tensor::Error::io(path, error);
        let refuse = |fault| Error::Gguf { path: path.to_path_buf(), fault };
        if std::fs::metadata(path).map_err(io)?.len() == 0 {
            return Err(refuse(Fault::NotGguf));
        }
        let map = Arc::new(fs::map(path).map_err(io)?);
        let mut file = Self {
            path: path.to_path_buf(),
            map: map.clone(),
            pairs: Vec::new(),
            tensors: Vec::new(),
            sorted: Vec::new(),
        };
        file.parse(&map).map_err(refuse)?;
        Ok(file)
    }

    fn parse(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let mut cursor = Cursor { bytes, at: 0 };
        if !bytes.starts_with(b"GGUF") {
            return Err(Fault::NotGguf);
        }
        cursor.at = 4;
        match cursor.u32("the version")? {
            3 => {}
            // A small number whose bytes are swapped.
            version if version != 0 && version & 0xffff == 0 => return Err(Fault::BigEndian),
            version => return Err(Fault::Version(version)),
        }
        let tensors = cursor.u64("the number of tensors")?;
        let keys = cursor.u64("the number of keys")?;
        for (what, count, limit, each) in
            [("keys", keys, MAX_KEYS, 14), ("tensors", tensors, MAX_TENSORS, 33)]
        {
            if count > limit {
                return Err(Fault::Count { what, count, limit });
            }
            cursor.fits(what, count, each)?;
        }
        self.pairs = Vec::with_capacity(keys as usize);
        for _ in 0..keys {
            self.pairs.push(cursor.pair()?);
        }
        self.check_keys(bytes)?;
        let alignment = self.integer_or("general.alignment", i128::from(ALIGNMENT))?;
        let alignment = u64::try_from(alignment).unwrap_or(0);
        if !alignment.is_power_of_two() || !(8..=1 << 16).contains(&alignment) {
            return Err(Fault::Alignment(alignment));
        }
        self.tensors = Vec::with_capacity(tensors as usize);
        for _ in 0..tensors {
            self.tensors.push(cursor.tensor(alignment)?);
        }
        self.place(cursor.at as u64, alignment, bytes.len() as u64)?;
        self.sort(bytes)
    }

    /// Refuses keys that stand twice.
    fn check_keys(&self, bytes: &[u8]) -> Result<(), Fault> {
        let mut keys: Vec<&str> = self.pairs.iter().map(|pair| text_at(bytes, &pair.key)).collect();
        keys.sort_unstable();
        match keys.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(Fault::DuplicateKey(pair[0].to_string())),
            None => Ok(()),
        }
    }

    /// Moves data ranges to where the data starts, and refuses those outside of the file and those
    /// that overlap.
    fn place(&mut self, header: u64, alignment: u64, len: u64) -> Result<(), Fault> {
        let start = header.next_multiple_of(alignment);
        let available = len.saturating_sub(start);
        let map = self.map.clone();
        for tensor in &mut self.tensors {
            let (offset, end) = (tensor.data.start as u64, tensor.data.end as u64);
            if end > available {
                let name = text_at(&map, &tensor.name).to_string();
                return Err(Fault::OutOfRange { name, offset, end, available });
            }
            tensor.data = (start + offset) as usize..(start + end) as usize;
        }
        let mut order: Vec<u32> = (0..self.tensors.len() as u32).collect();
        order.sort_unstable_by_key(|&number| self.tensors[number as usize].data.start);
        for pair in order.windows(2) {
            let (first, second) =
                (&self.tensors[pair[0] as usize], &self.tensors[pair[1] as usize]);
            if first.data.end > second.data.start {
                let name = |tensor: &TensorInfo| text_at(&map, &tensor.name).to_string();
                return Err(Fault::Overlap(name(first), name(second)));
            }
        }
        Ok(())
    }

    /// Orders tensors by name and refuses names that stand twice.
    fn sort(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let name = |number: u32| text_at(bytes, &self.tensors[number as usize].name);
        let mut sorted: Vec<u32> = (0..self.tensors.len() as u32).collect();
        sorted.sort_unstable_by_key(|&number| name(number));
        if let Some(pair) = sorted.windows(2).find(|pair| name(pair[0]) == name(pair[1])) {
            return Err(Fault::DuplicateTensor(name(pair[0]).to_string()));
        }
        self.sorted = sorted;
        Ok(())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Everything the file says of tensors, in its order, with their names.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.tensors.iter().map(|tensor| (text_at(&self.map, &tensor.name), tensor))
    }

    /// The tensor of that name.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        let named =
            |&number: &u32| text_at(&self.map, &self.tensors[number as usize].name).cmp(name);
        let place = self.sorted.binary_search_by(named).ok()?;
        self.tensors.get(self.sorted[place] as usize)
    }

    /// The metadata in the file's order.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, Value<'_>)> {
        self.pairs.iter().map(|pair| {
            let value = Value::new(pair.kind, self.map.get(pair.value..).unwrap_or_default());
            (text_at(&self.map, &pair.key), value)
        })
    }

    /// The value of a key.
    pub fn value(&self, key: &str) -> Option<Value<'_>> {
        self.metadata().find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    /// A value in some form, if the key is there.
    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        form: impl FnOnce(Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, Fault> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let found = value.kind();
        form(value).map(Some).ok_or(Fault::KeyType { key: key.to_string(), found, expected })
    }

    fn integer_or(&self, key: &str, default: i128) -> Result<i128, Fault> {
        Ok(self.typed(key, "an integer", |value| value.as_integer())?.unwrap_or(default))
    }

    fn refuse(&self, fault: Fault) -> Error {
        Error::Gguf { path: self.path.clone(), fault }
    }

    /// A text, if the key is there.
    ///
    /// # Errors
    /// When it is of another type.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a text", |value| value.as_str()).map_err(|fault| self.refuse(fault))
    }

    /// A size or count, if the key is there.
    ///
    /// # Errors
    /// When it is of another type or negative.
    pub fn size(&self, key: &str) -> Result<Option<usize>> {
        let size = |value: Value<'_>| usize::try_from(value.as_integer()?).ok();
        self.typed(key, "an integer of 0 or more", size).map_err(|fault| self.refuse(fault))
    }

    /// A number, if the key is there.
    ///
    /// # Errors
    /// When it is of another type.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        let number = |value: Value<'_>| {
            value.as_float().or(value.as_integer().map(|integer| integer as f64))
        };
        self.typed(key, "a number", number).map_err(|fault| self.refuse(fault))
    }

    /// A truth value, if the key is there.
    ///
    /// # Errors
    /// When it is of another type.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a truth value", |value| value.as_bool())
            .map_err(|fault| self.refuse(fault))
    }

    /// An array of texts, if the key is there.
    ///
    /// # Errors
    /// When it is of another type.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        fn texts(value: Value<'_>) -> Option<Vec<&str>> {
            value.as_array()?.iter().map(|item| item.as_str()).collect()
        }
        self.typed(key, "an array of texts", texts).map_err(|fault| self.refuse(fault))
    }

    /// An array of whole numbers, if the key is there.
    ///
    /// # Errors
    /// When it is of another type.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        let integers = |value: Value<'_>| {
            let items = value.as_array()?.iter();
            items.map(|item| i64::try_from(item.as_integer()?).ok()).collect()
        };
        self.typed(key, "an array of integers", integers).map_err(|fault| self.refuse(fault))
    }

    /// The value of a key that must be there.
    ///
    /// # Errors
    /// When it is missing.
    pub fn required<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.refuse(Fault::MissingKey(key.to_string())))
    }

    /// The model's kind: `llama`, `mamba2`, and so on.
    ///
    /// # Errors
    /// When the key is missing or no text.
    pub fn architecture(&self) -> Result<&str> {
        let key = "general.architecture";
        self.required(key, self.text(key)?)
    }
}

#[cfg(test)]
pub(super) fn parse_bytes(bytes: &[u8]) -> Result<GgufFile, Fault> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    GgufFile::open(file.path()).map_err(|error| match error {
        Error::Gguf { fault, .. } => fault,
        other => panic!("{other}"),
    })
}
