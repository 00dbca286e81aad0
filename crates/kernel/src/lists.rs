//! Short lists of integers on a GPU: bounds of sequences, page tables, positions.
//!
//! Every layer of a model asks for the same lists within a step. A thread keeps the last few that it
//! copied, by their contents, so that a step copies each once. Readers only: a list is never written.
//! What is recorded holds the lists that it reads.

use crate::recording::hold;
use danaus_tensor::{DType, Device, Element, Error, Result, Tensor};
use std::cell::RefCell;

/// Lists that a thread keeps.
const KEPT: usize = 32;
/// Numbers that they have together at most.
const NUMBERS: usize = 1 << 20;

struct Entry {
    device: Device,
    dtype: DType,
    values: Vec<i64>,
    tensor: Tensor,
}

thread_local! {
    /// The latest use is last.
    static LISTS: RefCell<Vec<Entry>> = const { RefCell::new(Vec::new()) };
}

/// The values as a tensor `[values.len()]` on a device, which may be shared: nobody may write it.
///
/// # Errors
/// When the device cannot be used or has no memory for them.
pub fn list<T: Element + Into<i64>>(values: &[T], device: &Device) -> Result<Tensor> {
    let made = || Tensor::from_slice(values, [values.len()], device);
    if !device.is_cuda() {
        return made();
    }
    let wide: Vec<i64> = values.iter().map(|&value| value.into()).collect();
    LISTS.with_borrow_mut(|lists| {
        let same = |entry: &Entry| {
            entry.device == *device && entry.dtype == T::DTYPE && entry.values == wide
        };
        if let Some(at) = lists.iter().rposition(same) {
            let entry = lists.remove(at);
            let tensor = entry.tensor.clone();
            hold(&tensor);
            lists.push(entry);
            return Ok(tensor);
        }
        // A recorded copy would read memory of the host that is long gone when the graph runs.
        if device.gpu()?.is_capturing() {
            let remedy = "call the same work once before it is captured";
            return Err(Error::unsupported("graph", "a new list from the host", remedy));
        }
        let tensor = made()?;
        let mut numbers = wide.len() + lists.iter().map(|entry| entry.values.len()).sum::<usize>();
        while !lists.is_empty() && (numbers > NUMBERS || lists.len() >= KEPT) {
            numbers -= lists.remove(0).values.len();
        }
        let (device, dtype) = (*device, T::DTYPE);
        lists.push(Entry { device, dtype, values: wide, tensor: tensor.clone() });
        Ok(tensor)
    })
}
