//! Writing a GGUF file: header, then tensors one after the other, so that a model is never in memory
//! as a whole. The target is replaced in one step.

use super::reader::ALIGNMENT;
use super::types::TensorType;
use super::value::{Value, ValueType};
use crate::{Error, Result};
use danaus_runtime::fs::write_atomic;
use danaus_tensor::Tensor;
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;

/// Longest tensor name that the format's readers accept.
const MAX_TENSOR_NAME: usize = 63;

/// A metadata value to write.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum MetaValue {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Text(String),
    /// Type of the items, and the items.
    Array(ValueType, Vec<MetaValue>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl MetaValue {
    /// An array of texts.
    pub fn texts<S: Into<String>>(texts: impl IntoIterator<Item = S>) -> Self {
        let items = texts.into_iter().map(|text| Self::Text(text.into())).collect();
        Self::Array(ValueType::Text, items)
    }

    /// The type of the value.
    pub fn kind(&self) -> ValueType {
        match self {
            Self::U8(_) => ValueType::U8,
            Self::I8(_) => ValueType::I8,
            Self::U16(_) => ValueType::U16,
            Self::I16(_) => ValueType::I16,
            Self::U32(_) => ValueType::U32,
            Self::I32(_) => ValueType::I32,
            Self::F32(_) => ValueType::F32,
            Self::Bool(_) => ValueType::Bool,
            Self::Text(_) => ValueType::Text,
            Self::Array(..) => ValueType::Array,
            Self::U64(_) => ValueType::U64,
            Self::I64(_) => ValueType::I64,
            Self::F64(_) => ValueType::F64,
        }
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        match self {
            Self::U8(value) => out.write_all(&value.to_le_bytes()),
            Self::I8(value) => out.write_all(&value.to_le_bytes()),
            Self::U16(value) => out.write_all(&value.to_le_bytes()),
            Self::I16(value) => out.write_all(&value.to_le_bytes()),
            Self::U32(value) => out.write_all(&value.to_le_bytes()),
            Self::I32(value) => out.write_all(&value.to_le_bytes()),
            Self::F32(value) => out.write_all(&value.to_le_bytes()),
            Self::Bool(value) => out.write_all(&[u8::from(*value)]),
            Self::Text(text) => write_text(out, text),
            Self::Array(kind, items) => {
                out.write_all(&kind.id().to_le_bytes())?;
                out.write_all(&(items.len() as u64).to_le_bytes())?;
                items.iter().try_for_each(|item| item.write(out))
            }
            Self::U64(value) => out.write_all(&value.to_le_bytes()),
            Self::I64(value) => out.write_all(&value.to_le_bytes()),
            Self::F64(value) => out.write_all(&value.to_le_bytes()),
        }
    }

    /// Whether all items of arrays have the array's type.
    fn is_uniform(&self) -> bool {
        match self {
            Self::Array(kind, items) => {
                items.iter().all(|item| item.kind() == *kind && item.is_uniform())
            }
            _ => true,
        }
    }
}

impl From<Value<'_>> for MetaValue {
    fn from(value: Value<'_>) -> Self {
        if let Some(array) = value.as_array() {
            return Self::Array(array.kind(), array.iter().map(Self::from).collect());
        }
        // The kind says which of these is there, so the defaults are never taken; a narrowing keeps
        // the bits that were widened.
        let (integer, float) =
            (value.as_integer().unwrap_or_default(), value.as_float().unwrap_or_default());
        match value.kind() {
            ValueType::U8 => Self::U8(integer as u8),
            ValueType::I8 => Self::I8(integer as i8),
            ValueType::U16 => Self::U16(integer as u16),
            ValueType::I16 => Self::I16(integer as i16),
            ValueType::U32 => Self::U32(integer as u32),
            ValueType::I32 => Self::I32(integer as i32),
            ValueType::U64 => Self::U64(integer as u64),
            ValueType::I64 => Self::I64(integer as i64),
            ValueType::F32 => Self::F32(float as f32),
            ValueType::F64 => Self::F64(float),
            ValueType::Bool => Self::Bool(value.as_bool().unwrap_or_default()),
            ValueType::Text | ValueType::Array => {
                Self::Text(value.as_str().unwrap_or_default().to_string())
            }
        }
    }
}

fn write_text(out: &mut impl Write, text: &str) -> io::Result<()> {
    out.write_all(&(text.len() as u64).to_le_bytes())?;
    out.write_all(text.as_bytes())
}

/// A tensor to write.
#[derive(Clone, Debug)]
pub struct TensorPlan {
    /// Name in the file.
    pub name: String,
    /// Elements in each dimension, slowest first.
    pub shape: Vec<usize>,
    /// Type in the file.
    pub kind: TensorType,
}

impl TensorPlan {
    /// Bytes the tensor takes in the file.
    ///
    /// # Errors
    /// A shape or type that the format cannot hold.
    fn bytes(&self) -> Result<u64> {
        let fail = |given: String, valid: String| {
            Err(Error::argument("tensor", format!("{} {given}", self.name), valid))
        };
        let (block, block_bytes) = self.kind.unit();
        if self.name.is_empty() || self.name.len() > MAX_TENSOR_NAME {
            return fail(String::new(), format!("a name of 1 to {MAX_TENSOR_NAME} bytes"));
        }
        if self.kind.ggml_id().is_none() {
            return fail(format!("of {}", self.kind.name()), TensorType::known());
        }
        let cols = self.shape.last().copied().unwrap_or(0);
        let elements: usize = self.shape.iter().product();
        if !(1..=4).contains(&self.shape.len()) || elements == 0 {
            return fail(
                format!("of shape {:?}", self.shape),
                "1 to 4 sizes, none of them 0".into(),
            );
        }
        if !cols.is_multiple_of(block) {
            let given = format!("of shape {:?} as {}", self.shape, self.kind.name());
            return fail(given, format!("rows of a multiple of {block}"));
        }
        Ok((elements / block * block_bytes) as u64)
    }
}

/// Writes a file. `produce` is asked for each tensor in turn: a contiguous one that has the planned
/// bytes.
///
/// # Errors
/// Names that stand twice, arrays of mixed types, shapes the format cannot hold; whatever `produce`
/// or writing reports.
pub fn write(
    path: &Path,
    metadata: &[(String, MetaValue)],
    tensors: &[TensorPlan],
    mut produce: impl FnMut(usize, &TensorPlan) -> Result<Tensor>,
) -> Result<()> {
    check_names("metadata key", metadata.iter().map(|(key, _)| key.as_str()))?;
    check_names("tensor", tensors.iter().map(|tensor| tensor.name.as_str()))?;
    if let Some((key, _)) = metadata.iter().find(|(_, value)| !value.is_uniform()) {
        return Err(Error::argument("metadata", key, "arrays whose items are of one type"));
    }
    let sizes = tensors.iter().map(TensorPlan::bytes).collect::<Result<Vec<u64>>>()?;
    // What `produce` reports must not be squeezed into an I/O error.
    let mut failure = None;
    let written = write_atomic(path, |out| {
        let header = write_header(out, metadata, tensors, &sizes)?;
        pad(out, header)?;
        for (number, (plan, &size)) in tensors.iter().zip(&sizes).enumerate() {
            let made = produce(number, plan).and_then(|tensor| checked(plan, tensor, size));
            let tensor = made.map_err(|error| {
                failure = Some(error);
                io::Error::other("a tensor could not be made")
            })?;
            let bytes = tensor.as_bytes().map_err(io::Error::other)?;
            out.write_all(bytes)?;
            pad(out, size)?;
        }
        Ok(())
    });
    match (failure, written) {
        (Some(error), _) => Err(error),
        (None, Err(error)) => Err(danaus_tensor::Error::io(path, error).into()),
        (None, Ok(())) => Ok(()),
    }
}

fn checked(plan: &TensorPlan, tensor: Tensor, size: u64) -> Result<Tensor> {
    let tensor = tensor.detach().contiguous()?;
    match tensor.bytes() as u64 == size {
        true => Ok(tensor),
        false => {
            let given = format!("{} of {} bytes", plan.name, tensor.bytes());
            Err(Error::argument("tensor", given, format!("{size} bytes, as planned")))
        }
    }
}

fn check_names<'a>(what: &'static str, names: impl Iterator<Item = &'a str>) -> Result<()> {
    let mut seen = BTreeSet::new();
    for name in names {
        if name.is_empty() || !seen.insert(name) {
            return Err(Error::argument(what, format!("{name:?}"), "names that differ"));
        }
    }
    Ok(())
}

/// Writes everything before the data and returns its length.
fn write_header(
    out: &mut impl Write,
    metadata: &[(String, MetaValue)],
    tensors: &[TensorPlan],
    sizes: &[u64],
) -> io::Result<u64> {
    let mut header = Vec::new();
    header.write_all(b"GGUF")?;
    header.write_all(&3u32.to_le_bytes())?;
    header.write_all(&(tensors.len() as u64).to_le_bytes())?;
    header.write_all(&(metadata.len() as u64).to_le_bytes())?;
    for (key, value) in metadata {
        write_text(&mut header, key)?;
        header.write_all(&value.kind().id().to_le_bytes())?;
        value.write(&mut header)?;
    }
    let mut offset = 0u64;
    for (tensor, size) in tensors.iter().zip(sizes) {
        write_text(&mut header, &tensor.name)?;
        header.write_all(&(tensor.shape.len() as u32).to_le_bytes())?;
        for &size in tensor.shape.iter().rev() {
            header.write_all(&(size as u64).to_le_bytes())?;
        }
        // Types without a number were refused when sizes were computed.
        header.write_all(&tensor.kind.ggml_id().unwrap_or_default().to_le_bytes())?;
        header.write_all(&offset.to_le_bytes())?;
        offset += size.next_multiple_of(ALIGNMENT);
    }
    out.write_all(&header)?;
    Ok(header.len() as u64)
}

/// Zeros from a length to the next multiple of the alignment.
fn pad(out: &mut impl Write, len: u64) -> io::Result<()> {
    let missing = len.next_multiple_of(ALIGNMENT) - len;
    out.write_all(&[0; ALIGNMENT as usize][..missing as usize])
}
