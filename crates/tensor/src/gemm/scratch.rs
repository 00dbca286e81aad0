//! Scratch memory that a thread keeps between products, so that small ones allocate nothing.

use std::alloc::Layout;
use std::cell::Cell;

use danaus_runtime::pool::Buffer;

/// Buffers up to this size stay with the thread; larger ones go back to the pool.
const KEEP_BYTES: usize = 4 << 20;
const LEAST_BYTES: usize = 2 << 20;

thread_local! {
    static SLOTS: [Cell<Option<Buffer>>; 2] = const { [Cell::new(None), Cell::new(None)] };
}

/// The two nested users of scratch memory.
#[derive(Clone, Copy)]
pub enum Slot {
    /// Packed operands of a whole product.
    Packed = 0,
    /// What one task needs for itself.
    Task = 1,
}

/// A pooled buffer of `bytes` bytes; content unspecified.
///
/// Aborts when the system has no memory left, as allocations of the standard library do.
pub fn buffer(bytes: usize) -> Buffer {
    Buffer::uninit(bytes).unwrap_or_else(|| std::alloc::handle_alloc_error(Layout::new::<u8>()))
}

/// Calls `work` with `bytes` bytes of unspecified content, aligned to a cache line.
///
/// The buffer is taken out of its slot meanwhile, so nested calls are safe (they get another one).
pub fn with<R>(slot: Slot, bytes: usize, work: impl FnOnce(*mut u8) -> R) -> R {
    let kept = SLOTS.with(|slots| slots[slot as usize].take()).filter(|kept| kept.len() >= bytes);
    let memory = kept.unwrap_or_else(|| buffer(bytes.max(LEAST_BYTES)));
    let result = work(memory.as_ptr());
    if memory.len() <= KEEP_BYTES {
        SLOTS.with(|slots| slots[slot as usize].set(Some(memory)));
    }
    result
}
