//! Device memory in stream order, pinned host memory, copies.
//!
//! Buffers come from the driver's pool by `cuMemAllocAsync`: allocating and freeing are steps of the
//! compute stream, so that memory is reused without waiting. The pool keeps what it has (release
//! threshold at its maximum): giving memory back at every synchronisation costs 117 us against 3.
//! While a graph is captured, buffers come from the graph's own memory instead ([`super::graph`]).

use super::gpu::lock;
use super::graph::Arena;
use super::{Error, Gpu, Result};
use cudarc::driver::{CudaContext, DriverError, result, sys};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// What the buffers of one device hold, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// In buffers that are in use.
    pub live: u64,
    /// The largest `live` since the last [`Gpu::reset_peak`].
    pub peak: u64,
    /// That the pool holds on the device, in use or not.
    pub reserved: u64,
}

/// The driver's pool of one device with our counters.
pub(super) struct Pool {
    raw: sys::CUmemoryPool,
    live: AtomicU64,
    peak: AtomicU64,
    /// Where buffers come from while a graph is captured.
    pub(super) arena: Mutex<Option<Arc<Arena>>>,
    /// Buffers dropped during a capture: a recorded step that frees memory could not run twice.
    dropped: Mutex<Vec<u64>>,
}

// SAFETY: the driver's pool handle may be used from any thread.
unsafe impl Send for Pool {}
// SAFETY: as above; the counters are atomic.
unsafe impl Sync for Pool {}

impl Pool {
    pub(super) fn of(context: &CudaContext) -> Result<Self> {
        // SAFETY: the device is that of a live context.
        let raw = unsafe { result::device::get_default_mem_pool(context.cu_device()) }
            .map_err(|error| Error::driver("cuDeviceGetDefaultMemPool", error))?;
        let mut keep = u64::MAX;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        // SAFETY: this attribute is a 64-bit number.
        unsafe { result::mem_pool::set_attribute(raw, attribute, (&raw mut keep).cast()) }
            .map_err(|error| Error::driver("cuMemPoolSetAttribute", error))?;
        let (live, peak) = (AtomicU64::new(0), AtomicU64::new(0));
        let (arena, dropped) = (Mutex::new(None), Mutex::new(Vec::new()));
        Ok(Self { raw, live, peak, arena, dropped })
    }

    fn number(&self, attribute: sys::CUmemPool_attribute) -> Result<u64> {
        let mut value = 0u64;
        // SAFETY: the attributes asked for here are 64-bit numbers.
        unsafe { result::mem_pool::get_attribute(self.raw, attribute, (&raw mut value).cast()) }
            .map_err(|error| Error::driver("cuMemPoolGetAttribute", error))?;
        Ok(value)
    }
}

impl Gpu {
    /// What the buffers of this device hold.
    ///
    /// # Errors
    /// When the driver reports one.
    pub fn memory_statistics(&self) -> Result<Statistics> {
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT;
        Ok(Statistics {
            live: self.pool.live.load(Ordering::Relaxed),
            peak: self.pool.peak.load(Ordering::Relaxed),
            reserved: self.pool.number(attribute)?,
        })
    }

    /// Starts a new measurement of the peak.
    pub fn reset_peak(&self) {
        self.pool.peak.store(self.pool.live.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Gives memory that no buffer uses back to the device, for other processes.
    ///
    /// # Errors
    /// When the driver reports one.
    pub fn trim(&self) -> Result<()> {
        self.synchronize()?;
        // SAFETY: the pool is the device's own and stays valid.
        unsafe { result::mem_pool::trim_to(self.pool.raw, 0) }
            .map_err(|error| Error::driver("cuMemPoolTrimTo", error))
    }

    /// Frees what was dropped during a capture.
    pub(super) fn free_dropped(&self) {
        for address in std::mem::take(&mut *lock(&self.pool.dropped)) {
            // SAFETY: the address came from `malloc_async`, and its buffer is gone.
            let _ = unsafe { result::free_async(address, self.stream.cu_stream()) };
        }
    }

    /// Refuses what a replay could not repeat: host memory is another by then.
    fn refuse_in_capture(&self, call: &'static str) -> Result<()> {
        if !self.is_capturing() {
            return Ok(());
        }
        let valid = "work that stays on the device, with its lists there beforehand";
        Err(Error::argument(call, "recorded work", "a copy between host and device", valid))
    }

    /// One allocation of the driver's pool on the given stream.
    pub(super) fn allocate(&self, bytes: usize, stream: sys::CUstream) -> Result<u64> {
        self.bind()?;
        // SAFETY: the stream is one of this context, `bytes` is not 0.
        let first = unsafe { result::malloc_async(stream, bytes) };
        let full = |error: &DriverError| error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY;
        let address = match first {
            // What the pool holds in unfit pieces may help once it is given back.
            Err(error) if full(&error) && self.trim().is_ok() => {
                // SAFETY: as above.
                unsafe { result::malloc_async(stream, bytes) }
            }
            other => other,
        };
        address.map_err(|error| {
            if full(&error) {
                let (free, total) = self.memory_info().unwrap_or_default();
                Error::OutOfMemory { asked: bytes as u64, free, total }
            } else {
                self.blame(Error::driver("cuMemAllocAsync", error))
            }
        })
    }
}

/// Who takes the memory back.
enum Owner {
    /// The driver's pool.
    Pool,
    /// A graph's own memory; the size is the class it keeps the block under.
    Arena(Arc<Arena>, usize),
    /// Nothing was allocated.
    Nobody,
}

/// Memory of one GPU, freed in stream order when dropped.
pub struct DeviceBuffer {
    gpu: Arc<Gpu>,
    address: u64,
    len: usize,
    owner: Owner,
}

impl std::fmt::Debug for DeviceBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DeviceBuffer({} bytes on GPU {})", self.len, self.gpu.index())
    }
}

impl DeviceBuffer {
    /// `bytes` bytes of unspecified content, aligned to 256 bytes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] with what was asked for and what is free.
    pub fn uninit(gpu: &Arc<Gpu>, bytes: usize) -> Result<Self> {
        let (address, owner) = match bytes {
            0 => (0, Owner::Nobody),
            _ => match lock(&gpu.pool.arena).clone() {
                Some(arena) => {
                    let (address, class) = arena.take(gpu, bytes)?;
                    (address, Owner::Arena(arena, class))
                }
                None => (gpu.allocate(bytes, gpu.stream.cu_stream())?, Owner::Pool),
            },
        };
        let live = gpu.pool.live.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        gpu.pool.peak.fetch_max(live, Ordering::Relaxed);
        Ok(Self { gpu: gpu.clone(), address, len: bytes, owner })
    }

    /// `bytes` zero bytes.
    ///
    /// # Errors
    /// As [`Self::uninit`].
    pub fn zeroed(gpu: &Arc<Gpu>, bytes: usize) -> Result<Self> {
        let mut buffer = Self::uninit(gpu, bytes)?;
        buffer.set_bytes(0)?;
        Ok(buffer)
    }

    /// A copy of host memory.
    ///
    /// # Errors
    /// As [`Self::uninit`].
    pub fn from_host(gpu: &Arc<Gpu>, bytes: &[u8]) -> Result<Self> {
        let mut buffer = Self::uninit(gpu, bytes.len())?;
        buffer.copy_from_host(0, bytes)?;
        Ok(buffer)
    }

    /// The device it is on.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// Device address; 0 for an empty buffer.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Whether a graph is being captured and this is no memory of its own.
    pub fn precedes_capture(&self) -> bool {
        matches!(self.owner, Owner::Pool) && self.gpu.is_capturing()
    }

    /// Where the address itself stands, for argument lists.
    pub(super) fn address_place(&self) -> *const u64 {
        &raw const self.address
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the length is zero.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sets every byte.
    ///
    /// # Errors
    /// When the driver reports one.
    pub fn set_bytes(&mut self, value: u8) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        self.gpu.bind()?;
        let stream = self.gpu.stream.cu_stream();
        // SAFETY: the range is this buffer's.
        let set = unsafe { result::memset_d8_async(self.address, value, self.len, stream) };
        set.map_err(|error| self.gpu.blame(Error::driver("cuMemsetD8Async", error)))
    }

    fn check(&self, call: &'static str, offset: usize, len: usize) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => {
                let given = format!("{offset}..{}", offset.saturating_add(len));
                Err(Error::argument(call, "range", given, format!("inside 0..{}", self.len)))
            }
        }
    }

    /// Copies host memory to `offset..`; the host memory may be reused when this returns.
    ///
    /// # Errors
    /// When the range is outside, or the driver reports one.
    pub fn copy_from_host(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.check("copy_from_host", offset, bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        self.gpu.refuse_in_capture("copy_from_host")?;
        self.gpu.bind()?;
        let (to, stream) = (self.address + offset as u64, self.gpu.stream.cu_stream());
        // SAFETY: both ranges are valid. From pageable memory the driver takes the bytes before it
        // returns; pinned memory goes through `copy_from_pinned`.
        let copied = unsafe { result::memcpy_htod_async(to, bytes, stream) };
        copied.map_err(|error| self.gpu.blame(Error::driver("cuMemcpyHtoDAsync", error)))
    }

    /// Copies `offset..offset + bytes.len()` to the host and waits for it.
    ///
    /// # Errors
    /// When the range is outside, or anything before it failed on the device.
    pub fn copy_to_host(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.check("copy_to_host", offset, bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        self.gpu.refuse_in_capture("copy_to_host")?;
        self.gpu.bind()?;
        let (from, stream) = (self.address + offset as u64, self.gpu.stream.cu_stream());
        // SAFETY: both ranges are valid, and `bytes` is borrowed until the stream is done below.
        let copied = unsafe { result::memcpy_dtoh_async(bytes, from, stream) };
        // The wait comes first also after an error: the copy may be on its way.
        let done = self.gpu.synchronize();
        copied.map_err(|error| self.gpu.blame(Error::driver("cuMemcpyDtoHAsync", error)))?;
        done
    }

    /// Copies `len` bytes of a buffer of the same GPU, in stream order.
    ///
    /// # Errors
    /// When a range is outside, the buffers are on two GPUs, or the driver reports one.
    pub fn copy_from_device(
        &mut self,
        offset: usize,
        from: &DeviceBuffer,
        from_offset: usize,
        len: usize,
    ) -> Result<()> {
        self.check("copy_from_device", offset, len)?;
        from.check("copy_from_device", from_offset, len)?;
        if from.gpu.index() != self.gpu.index() {
            let given = format!("on GPU {}", from.gpu.index());
            let valid = format!("a buffer on GPU {}", self.gpu.index());
            return Err(Error::argument("copy_from_device", "from", given, valid));
        }
        if len == 0 {
            return Ok(());
        }
        self.gpu.bind()?;
        let (to, from) = (self.address + offset as u64, from.address + from_offset as u64);
        // SAFETY: both ranges are valid and belong to different buffers.
        let copied =
            unsafe { result::memcpy_dtod_async(to, from, len, self.gpu.stream.cu_stream()) };
        copied.map_err(|error| self.gpu.blame(Error::driver("cuMemcpyDtoDAsync", error)))
    }

    /// Puts a copy from pinned memory on the stream and returns at once.
    ///
    /// # Errors
    /// When the range is outside, or the driver reports one.
    pub fn copy_from_pinned(&mut self, offset: usize, from: &Arc<PinnedBuffer>) -> Result<()> {
        self.check("copy_from_pinned", offset, from.len)?;
        if from.len == 0 {
            return Ok(());
        }
        self.gpu.bind()?;
        let (to, stream) = (self.address + offset as u64, self.gpu.stream.cu_stream());
        // SAFETY: both ranges are valid; dropping the pinned buffer waits for the stream.
        let copied = unsafe { result::memcpy_htod_async(to, from.bytes(), stream) };
        copied.map_err(|error| self.gpu.blame(Error::driver("cuMemcpyHtoDAsync", error)))
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        self.gpu.pool.live.fetch_sub(self.len as u64, Ordering::Relaxed);
        match &self.owner {
            Owner::Nobody => {}
            Owner::Arena(arena, class) => arena.give(self.address, *class),
            Owner::Pool => {
                if self.gpu.is_capturing() {
                    lock(&self.gpu.pool.dropped).push(self.address);
                // An error here is that of earlier work and is reported by the next call that waits.
                } else if self.gpu.bind().is_ok() {
                    let stream = self.gpu.stream.cu_stream();
                    // SAFETY: the address came from `malloc_async` and nobody uses it after this point
                    // of the stream.
                    let _ = unsafe { result::free_async(self.address, stream) };
                }
            }
        }
    }
}

/// Host memory that the copy engines read and write directly, so that copies overlap with work.
pub struct PinnedBuffer {
    gpu: Arc<Gpu>,
    start: *mut u8,
    len: usize,
}

// SAFETY: the buffer owns its memory; sharing gives out `&[u8]` only.
unsafe impl Send for PinnedBuffer {}
// SAFETY: as above.
unsafe impl Sync for PinnedBuffer {}

impl PinnedBuffer {
    /// `bytes` zero bytes.
    ///
    /// # Errors
    /// When the system has no memory to pin.
    pub fn zeroed(gpu: &Arc<Gpu>, bytes: usize) -> Result<Self> {
        gpu.bind()?;
        // SAFETY: asks for at least one byte; the memory is set before anyone reads it.
        let start = unsafe {
            let start = result::malloc_host(bytes.max(1), 0)
                .map_err(|error| Error::driver("cuMemHostAlloc", error))?;
            std::ptr::write_bytes(start.cast::<u8>(), 0, bytes.max(1));
            start.cast::<u8>()
        };
        Ok(Self { gpu: gpu.clone(), start, len: bytes })
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: owned and `len` bytes long.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }

    /// The bytes, for writing. Waits for copies that may still read them.
    ///
    /// # Errors
    /// Whatever went wrong on the device before.
    pub fn bytes_mut(&mut self) -> Result<&mut [u8]> {
        self.gpu.synchronize()?;
        // SAFETY: owned, `len` bytes long, and no copy is under way.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.start, self.len) })
    }

    /// Puts a copy of a device buffer's start on the stream and returns at once; the bytes are there
    /// after [`Gpu::synchronize`] or an event behind it.
    ///
    /// # Errors
    /// When the device buffer is shorter, or the driver reports one.
    pub fn copy_from_device(&mut self, from: &DeviceBuffer) -> Result<()> {
        from.check("copy_from_device", 0, self.len)?;
        if self.len == 0 {
            return Ok(());
        }
        self.gpu.bind()?;
        let stream = self.gpu.stream.cu_stream();
        // SAFETY: both ranges are valid; dropping or writing this buffer waits for the stream.
        let copied = unsafe {
            let to = std::slice::from_raw_parts_mut(self.start, self.len);
            result::memcpy_dtoh_async(to, from.address(), stream)
        };
        copied.map_err(|error| self.gpu.blame(Error::driver("cuMemcpyDtoHAsync", error)))
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        // A copy may be under way; its error, if any, is reported by the next call that waits.
        let _ = self.gpu.drain();
        // SAFETY: the memory came from `malloc_host` and no copy uses it any more.
        let _ = unsafe { result::free_host(self.start.cast()) };
    }
}
