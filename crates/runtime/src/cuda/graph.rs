//! Work recorded once and replayed: a graph node costs about 1 us where a launch costs 4.
//!
//! While [`Graph::capture`] runs, launches and copies on the compute stream are recorded instead of
//! executed, and buffers come from memory that the graph owns (an arena). A replay therefore finds
//! every address as it was recorded. Buffers that leave the capture keep that memory alive and hold
//! the results of the latest replay.

use super::gpu::lock;
use super::{Error, Gpu, Result};
use cudarc::driver::{CudaGraph, CudaStream, sys};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Alignment and smallest size of a block.
const BLOCK: usize = 512;

/// Memory of one graph: blocks by size class, reused in the order of the recorded stream.
pub(super) struct Arena {
    gpu: std::sync::Weak<Gpu>,
    /// Allocations run here, outside of what is recorded.
    side: Arc<CudaStream>,
    free: Mutex<BTreeMap<usize, Vec<u64>>>,
    /// Every block with its size.
    all: Mutex<Vec<(u64, usize)>>,
}

impl Arena {
    fn new(gpu: &Arc<Gpu>) -> Result<Arc<Self>> {
        let side =
            gpu.context.new_stream().map_err(|error| Error::driver("cuStreamCreate", error))?;
        let (free, all) = (Mutex::new(BTreeMap::new()), Mutex::new(Vec::new()));
        Ok(Arc::new(Self { gpu: Arc::downgrade(gpu), side, free, all }))
    }

    /// A block of at least `bytes`, and the class to give it back under.
    pub(super) fn take(&self, gpu: &Gpu, bytes: usize) -> Result<(u64, usize)> {
        let class = size_class(bytes);
        if let Some(address) = lock(&self.free).get_mut(&class).and_then(Vec::pop) {
            return Ok((address, class));
        }
        let address = gpu.allocate(class, self.side.cu_stream())?;
        // The recorded stream does not wait for the side stream, so this thread does.
        let ready = self.side.synchronize();
        ready.map_err(|error| Error::driver("cuStreamSynchronize", error))?;
        lock(&self.all).push((address, class));
        Ok((address, class))
    }

    /// Takes a block back for reuse by later steps of the same graph.
    pub(super) fn give(&self, address: u64, class: usize) {
        lock(&self.free).entry(class).or_default().push(address);
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let Some(gpu) = self.gpu.upgrade() else { return };
        // A replay may still run; its error, if any, is reported by the next call that waits.
        if gpu.drain().is_err() {
            return;
        }
        for &(address, _) in lock(&self.all).iter() {
            // SAFETY: the address came from this stream's allocator and no buffer uses it any more.
            let _ = unsafe { cudarc::driver::result::free_async(address, self.side.cu_stream()) };
        }
    }
}

/// Four classes per power of two: at most a fifth of a block is unused.
fn size_class(bytes: usize) -> usize {
    let step = (bytes.next_power_of_two() / 8).max(BLOCK);
    bytes.div_ceil(step).saturating_mul(step)
}

/// Recorded work.
pub struct Graph {
    gpu: Arc<Gpu>,
    graph: CudaGraph,
    arena: Arc<Arena>,
}

// SAFETY: the graph is only used through `&self` methods that lock the device's stream order; the
// driver asks that one graph is not used by two threads at once, which `replay(&mut self)` ensures.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `work` puts on the compute stream of `gpu`.
    ///
    /// `work` must not wait for the device or read from it, and no other thread may use the device
    /// meanwhile. Kernels should have run once before: compiling and loading is not recorded.
    ///
    /// # Errors
    /// Those of `work`; and when something cannot be recorded, or another capture is under way.
    pub fn capture<T, E: From<Error>>(
        gpu: &Arc<Gpu>,
        work: impl FnOnce() -> std::result::Result<T, E>,
    ) -> std::result::Result<(Self, T), E> {
        let arena = Arena::new(gpu)?;
        {
            let mut current = lock(&gpu.pool.arena);
            if current.is_some() {
                let valid = "one capture at a time";
                return Err(
                    Error::argument("Graph::capture", "gpu", "being captured", valid).into()
                );
            }
            // Relaxed: allocations on the side stream are wanted while recording.
            let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
            let begun = gpu.stream.begin_capture(mode);
            begun.map_err(|error| gpu.blame(Error::driver("cuStreamBeginCapture", error)))?;
            *current = Some(arena.clone());
        }
        let made = work();
        *lock(&gpu.pool.arena) = None;
        // No flag: nodes run as they were recorded.
        let flags = sys::CUgraphInstantiate_flags(0);
        let graph = gpu.stream.end_capture(flags);
        gpu.free_dropped();
        let made = made?;
        let graph = graph.map_err(|error| gpu.blame(Error::driver("cuStreamEndCapture", error)))?;
        let empty = || Error::argument("Graph::capture", "work", "empty", "at least one launch");
        let graph = graph.ok_or_else(empty)?;
        let ready = graph.upload();
        ready.map_err(|error| gpu.blame(Error::driver("cuGraphUpload", error)))?;
        Ok((Self { gpu: gpu.clone(), graph, arena }, made))
    }

    /// Puts the recorded work on the compute stream once more.
    ///
    /// # Errors
    /// When the driver reports one.
    pub fn replay(&mut self) -> Result<()> {
        let launched = self.graph.launch();
        launched.map_err(|error| self.gpu.blame(Error::driver("cuGraphLaunch", error)))
    }

    /// Bytes of the graph's own memory.
    pub fn bytes(&self) -> usize {
        lock(&self.arena.all).iter().map(|&(_, size)| size).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::size_class;

    #[test]
    fn classes_waste_little() {
        for bytes in [1, 511, 512, 513, 4097, 100_000, (1 << 20) + 1, 3 << 20] {
            let class = size_class(bytes);
            assert!(class >= bytes && class.is_multiple_of(super::BLOCK));
            assert!(class <= bytes + (bytes / 4).max(super::BLOCK), "{bytes} {class}");
            assert_eq!(size_class(class), class);
        }
    }
}
