//! A caching pool of aligned buffers.
//!
//! A fresh 64 MiB allocation costs 16 thousand page faults, several times the arithmetic of an
//! elementwise operation on it. Freed buffers are therefore kept by size class and handed out again.
//! Classes are eight per power of two, so that at most one eighth of a buffer is unused. Large
//! buffers ask for huge pages. Small ones stay with the thread that freed them, up to a bound: the
//! tasks of a kernel take and give back a few each, and would meet at the lock of the common lists.

use std::alloc::Layout;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Alignment of every buffer in bytes: one cache line, one AVX-512 register.
pub const ALIGN: usize = 64;
const HUGE_PAGE: usize = 2 << 20;

static FREE: Mutex<BTreeMap<usize, Vec<Block>>> = Mutex::new(BTreeMap::new());
static CACHED: AtomicUsize = AtomicUsize::new(0);
static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// Buffers up to this size may stay with a thread.
const LOCAL_CLASS: usize = 256 << 10;
/// Bytes that a thread keeps at most.
const LOCAL_BYTES: usize = 4 << 20;

/// A thread's own free buffers.
#[derive(Default)]
struct Local {
    lists: BTreeMap<usize, Vec<Block>>,
    bytes: usize,
}

impl Local {
    fn take(&mut self, class: usize) -> Option<Block> {
        let block = self.lists.get_mut(&class)?.pop()?;
        self.bytes -= class;
        Some(block)
    }

    /// Keeps a block, or hands it back where the thread has enough.
    fn keep(&mut self, class: usize, block: Block) -> Option<Block> {
        if self.bytes + class > LOCAL_BYTES {
            return Some(block);
        }
        self.bytes += class;
        self.lists.entry(class).or_default().push(block);
        None
    }
}

impl Drop for Local {
    /// A thread that ends leaves its buffers to the others.
    fn drop(&mut self) {
        let mut common = free_lists();
        for (class, mut blocks) in std::mem::take(&mut self.lists) {
            common.entry(class).or_default().append(&mut blocks);
        }
    }
}

thread_local! {
    static OWN: RefCell<Local> = RefCell::new(Local::default());
}

struct Block(NonNull<u8>);
// SAFETY: a block is plain memory owned by whoever holds it.
unsafe impl Send for Block {}

/// An owned, 64-byte aligned piece of memory; returned to the pool when dropped.
pub struct Buffer {
    start: NonNull<u8>,
    len: usize,
    class: usize,
}

// SAFETY: the buffer owns its memory; sharing gives out `&[u8]` only.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

/// What the pool holds at the moment, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// In buffers that are in use.
    pub live: usize,
    /// The largest `live` since the last [`reset_peak`].
    pub peak: usize,
    /// Kept for reuse.
    pub cached: usize,
}

/// Size class of a request: eight classes per power of two, at least one cache line.
fn class_of(bytes: usize) -> usize {
    let bytes = bytes.max(ALIGN);
    let step = (bytes.next_power_of_two() / 16).max(ALIGN);
    let class = bytes.div_ceil(step) * step;
    if class >= HUGE_PAGE { class.div_ceil(HUGE_PAGE) * HUGE_PAGE } else { class }
}

fn layout_of(class: usize) -> Layout {
    let align = if class >= HUGE_PAGE { HUGE_PAGE } else { ALIGN };
    // `class` is at most `isize::MAX` (checked in `allocate`) and both alignments are powers of two.
    Layout::from_size_align(class, align).unwrap_or(Layout::new::<u8>())
}

/// From this size on the system is asked whether there is room: many grant any request, and end the
/// process when the memory is used.
const ASK_FROM: usize = 256 << 20;

fn allocate(class: usize) -> Option<NonNull<u8>> {
    let fits = || crate::memory::available_bytes().is_none_or(|left| class as u64 <= left);
    if class > isize::MAX as usize - HUGE_PAGE || (class >= ASK_FROM && !fits()) {
        return None;
    }
    let layout = layout_of(class);
    // Small buffers hold defined values from the start, which `Scratch::unspecified` relies on.
    let fresh = if class <= LOCAL_CLASS { std::alloc::alloc_zeroed } else { std::alloc::alloc };
    // SAFETY: the size is at least one cache line, so not zero.
    let start = NonNull::new(unsafe { fresh(layout) })?;
    #[cfg(target_os = "linux")]
    if class >= HUGE_PAGE {
        // SAFETY: the range was just allocated; the call is advice and may fail without harm.
        unsafe { libc::madvise(start.as_ptr().cast(), class, libc::MADV_HUGEPAGE) };
    }
    Some(start)
}

/// A free buffer of a class: the thread's own, else a common one.
fn reuse(class: usize) -> Option<Block> {
    let own = || OWN.try_with(|own| own.borrow_mut().take(class)).ok().flatten();
    let block = if class <= LOCAL_CLASS { own() } else { None };
    block.or_else(|| free_lists().get_mut(&class).and_then(Vec::pop))
}

/// Keeps a free buffer for the next request of its class.
fn keep(class: usize, block: Block) {
    let mut left = Some(block);
    if class <= LOCAL_CLASS {
        // A thread that is ending has no lists of its own any more.
        let _ = OWN.try_with(|own| {
            left = left.take().and_then(|block| own.borrow_mut().keep(class, block));
        });
    }
    if let Some(block) = left {
        free_lists().entry(class).or_default().push(block);
    }
}

fn free_lists() -> std::sync::MutexGuard<'static, BTreeMap<usize, Vec<Block>>> {
    // The lists are valid after every statement, so a panic elsewhere does not spoil them.
    FREE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Buffer {
    /// `bytes` bytes with unspecified (but initialised by an earlier owner or garbage) content.
    ///
    /// Returns `None` when the system has no memory left, even after the cache was given back.
    pub fn uninit(bytes: usize) -> Option<Self> {
        if bytes > isize::MAX as usize {
            return None;
        }
        let class = class_of(bytes);
        let reused = reuse(class);
        let start = match reused {
            Some(block) => {
                CACHED.fetch_sub(class, Ordering::Relaxed);
                block.0
            }
            None => allocate(class).or_else(|| {
                trim();
                allocate(class)
            })?,
        };
        let live = LIVE.fetch_add(class, Ordering::Relaxed) + class;
        PEAK.fetch_max(live, Ordering::Relaxed);
        Some(Self { start, len: bytes, class })
    }

    /// `bytes` zero bytes.
    pub fn zeroed(bytes: usize) -> Option<Self> {
        let buffer = Self::uninit(bytes)?;
        // SAFETY: the buffer is owned and `bytes` long.
        unsafe { std::ptr::write_bytes(buffer.start.as_ptr(), 0, bytes) };
        Some(buffer)
    }

    /// Length in bytes, as asked for.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the length is zero.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Start of the memory; valid for reads and writes of [`Self::len`] bytes.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        LIVE.fetch_sub(self.class, Ordering::Relaxed);
        CACHED.fetch_add(self.class, Ordering::Relaxed);
        keep(self.class, Block(self.start));
    }
}

/// Typed scratch memory from the pool, for plain number types.
pub struct Scratch<T: Copy> {
    buffer: Buffer,
    len: usize,
    marker: std::marker::PhantomData<T>,
}

impl<T: Copy + Default> Scratch<T> {
    /// `len` elements set to the type's default (zero).
    ///
    /// # Panics
    /// When the system has no memory left, as any allocation of the standard library does. Operators
    /// report their workspace beforehand, so that a run is refused before it gets here.
    pub fn new(len: usize) -> Self {
        Self::from_fn(len, |_| T::default())
    }

    /// `len` elements, each from its index.
    ///
    /// # Panics
    /// As [`Self::new`].
    pub fn from_fn(len: usize, element: impl Fn(usize) -> T) -> Self {
        let bytes = len.checked_mul(size_of::<T>());
        let buffer = bytes.and_then(Buffer::uninit);
        let Some(buffer) = buffer else {
            std::alloc::handle_alloc_error(Layout::new::<T>());
        };
        let start = buffer.as_ptr().cast::<T>();
        for index in 0..len {
            // SAFETY: the buffer holds `len` elements and is aligned to 64 bytes.
            unsafe { start.add(index).write(element(index)) };
        }
        Self { buffer, len, marker: std::marker::PhantomData }
    }
}

impl Scratch<f32> {
    /// `len` elements with values left by earlier owners: for those who write before they read, where
    /// setting small buffers to zero would be a good part of the work. Large ones are zero all the same.
    ///
    /// # Panics
    /// As [`Self::new`].
    pub fn unspecified(len: usize) -> Self {
        let small = len.checked_mul(size_of::<f32>()).filter(|&bytes| bytes <= LOCAL_CLASS);
        match small.and_then(Buffer::uninit) {
            Some(buffer) => Self { buffer, len, marker: std::marker::PhantomData },
            None => Self::new(len),
        }
    }
}

impl<T: Copy> std::ops::Deref for Scratch<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `len` elements are initialised: by `new`, or by the first owner of a small buffer.
        unsafe { std::slice::from_raw_parts(self.buffer.as_ptr().cast(), self.len) }
    }
}

impl<T: Copy> std::ops::DerefMut for Scratch<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and the buffer is owned.
        unsafe { std::slice::from_raw_parts_mut(self.buffer.as_ptr().cast(), self.len) }
    }
}

/// Current use.
pub fn statistics() -> Statistics {
    Statistics {
        live: LIVE.load(Ordering::Relaxed),
        peak: PEAK.load(Ordering::Relaxed),
        cached: CACHED.load(Ordering::Relaxed),
    }
}

/// Starts a new measurement of the peak.
pub fn reset_peak() {
    PEAK.store(LIVE.load(Ordering::Relaxed), Ordering::Relaxed);
}

/// Gives all cached buffers back to the system.
pub fn trim() {
    let lists = std::mem::take(&mut *free_lists());
    for (class, blocks) in lists {
        for block in blocks {
            CACHED.fetch_sub(class, Ordering::Relaxed);
            // SAFETY: the block came from `allocate` with this class and nobody uses it.
            unsafe { std::alloc::dealloc(block.0.as_ptr(), layout_of(class)) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_waste_little() {
        for bytes in [1, 64, 65, 1000, 4097, 1 << 20, (1 << 20) + 1, 3 << 20, 100 << 20] {
            let class = class_of(bytes);
            assert!(class >= bytes);
            assert!(
                class
                    <= bytes
                        + (bytes / 8).max(ALIGN).max(if bytes > 1 << 20 { HUGE_PAGE } else { 0 })
            );
            assert_eq!(class_of(class), class);
        }
    }

    #[test]
    fn a_buffer_comes_back() {
        let bytes = 12_345_678;
        let first = Buffer::uninit(bytes).unwrap();
        let start = first.as_ptr();
        assert_eq!(start as usize % ALIGN, 0);
        drop(first);
        let second = Buffer::uninit(bytes - 5).unwrap();
        assert_eq!(second.as_ptr(), start);
    }

    #[test]
    fn an_absurd_request_is_refused() {
        assert!(Buffer::uninit(usize::MAX).is_none());
        assert!(Buffer::uninit(usize::MAX / 2).is_none());
        // More than any machine has, though an address space would hold it.
        assert!(Buffer::uninit(1 << 46).is_none());
    }
}
