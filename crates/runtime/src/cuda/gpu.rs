//! One device: context, compute stream, limits.

use super::compile::Arch;
use super::fault::Faults;
use super::launch::Modules;
use super::memory::Pool;
use super::{Error, Result, blas};
use cudarc::driver::{CudaContext, CudaStream, DriverError, sys};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

/// The oldest driver that has all that is called here (`cuFuncGetParamInfo`), as CUDA counts versions.
const OLDEST_DRIVER: i32 = 12040;

/// What a chip allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Shared memory that a block may have, static and dynamic together, in bytes.
    pub shared_per_block: u32,
    /// Shared memory of a multiprocessor in bytes.
    pub shared_per_multiprocessor: u32,
    /// Second-level cache in bytes.
    pub l2_bytes: u64,
    /// Threads of a block.
    pub threads_per_block: u32,
    /// Largest extent of a block in x, y, z.
    pub block: [u32; 3],
    /// Largest extent of a grid in x, y, z.
    pub grid: [u32; 3],
    /// Blocks of a cluster without opting in to more; 1 where there are no clusters.
    pub cluster: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
}

/// A GPU. Handles are shared: [`Gpu::get`] returns the same one for the same index.
pub struct Gpu {
    index: usize,
    name: String,
    arch: Arch,
    limits: Limits,
    pub(super) context: Arc<CudaContext>,
    pub(super) stream: Arc<CudaStream>,
    pub(super) pool: Pool,
    pub(super) faults: Faults,
    pub(super) modules: Modules,
    pub(super) blas: OnceLock<Result<blas::Handle>>,
    /// Entry point launched last, for messages about errors that surface later.
    pub(super) last_kernel: Mutex<Option<Arc<str>>>,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gpu({}: {}, {})", self.index, self.name, self.arch)
    }
}

impl Gpu {
    /// Number of GPUs that the driver shows.
    ///
    /// # Errors
    /// When there is no driver, or it is too old.
    pub fn count() -> Result<usize> {
        driver_version()?;
        let count = CudaContext::device_count();
        match count {
            Ok(count) => Ok(count.max(0) as usize),
            Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Ok(0),
            Err(error) => Err(Error::driver("cuDeviceGetCount", error)),
        }
    }

    /// The GPU with this index.
    ///
    /// # Errors
    /// When there is no driver, no such device, or its context cannot be made.
    pub fn get(index: usize) -> Result<Arc<Gpu>> {
        static OPEN: Mutex<Vec<Option<Arc<Gpu>>>> = Mutex::new(Vec::new());
        let mut open = lock(&OPEN);
        if let Some(Some(gpu)) = open.get(index) {
            return Ok(gpu.clone());
        }
        let count = Self::count()?;
        if index >= count {
            return Err(Error::NoDevice { index, count });
        }
        let gpu = Arc::new(Self::open(index)?);
        if open.len() < count {
            open.resize(count, None);
        }
        open[index] = Some(gpu.clone());
        Ok(gpu)
    }

    fn open(index: usize) -> Result<Self> {
        let context = CudaContext::new(index)
            .map_err(|error| Error::driver("cuDevicePrimaryCtxRetain", error))?;
        // SAFETY: everything runs on one stream, so no event per argument is needed to order it; with
        // tracking on, capturing a graph would fail.
        unsafe { context.disable_event_tracking() };
        let stream =
            context.new_stream().map_err(|error| Error::driver("cuStreamCreate", error))?;
        let number = |attribute| {
            let value = context.attribute(attribute);
            value.map_err(|error| Error::driver("cuDeviceGetAttribute", error))
        };
        let (major, minor) = context
            .compute_capability()
            .map_err(|error| Error::driver("cuDeviceGetAttribute", error))?;
        let arch = Arch::new(major as u32, minor as u32);
        let memory_bytes =
            context.total_mem().map_err(|error| Error::driver("cuDeviceTotalMem", error))? as u64;
        let limits = limits(arch, memory_bytes, |attribute| Ok(number(attribute)?.max(0) as u32))?;
        let name = context.name().map_err(|error| Error::driver("cuDeviceGetName", error))?;
        let pool = Pool::of(&context)?;
        let faults = Faults::of(&context)?;
        Ok(Self {
            index,
            name,
            arch,
            limits,
            context,
            stream,
            pool,
            faults,
            modules: Modules::default(),
            blas: OnceLock::new(),
            last_kernel: Mutex::new(None),
        })
    }

    /// Index among the machine's GPUs.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The product's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The chip that kernels are compiled for.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// What the chip allows.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Waits until everything that was put on the stream is done.
    ///
    /// # Errors
    /// Whatever went wrong on the device since the last wait, with the kernel launched last; and what
    /// a kernel reported through [`super::fault`].
    pub fn synchronize(&self) -> Result<()> {
        self.drain()?;
        self.faults.take()
    }

    /// Waits, and leaves what a kernel reported for the next call of [`Self::synchronize`].
    pub(super) fn drain(&self) -> Result<()> {
        let done = self.bind().and_then(|()| {
            self.stream.synchronize().map_err(|error| Error::driver("cuStreamSynchronize", error))
        });
        done.map_err(|error| self.blame(error))
    }

    /// Bytes that are free on the device now (our pool's reserve not counted), and all bytes.
    ///
    /// # Errors
    /// When the driver reports one.
    pub fn memory_info(&self) -> Result<(u64, u64)> {
        let info = self.context.mem_get_info();
        let (free, total) = info.map_err(|error| Error::driver("cuMemGetInfo", error))?;
        Ok((free as u64, total as u64))
    }

    /// Whether work is recorded for a graph instead of executed.
    pub fn is_capturing(&self) -> bool {
        lock(&self.pool.arena).is_some()
    }

    /// The raw stream, for libraries that take one (NCCL, cuFFT).
    pub fn raw_stream(&self) -> *mut std::ffi::c_void {
        self.stream.cu_stream().cast()
    }

    /// Makes the context current on this thread.
    pub(super) fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(|error| Error::driver("cuCtxSetCurrent", error))
    }

    /// Adds the kernel launched last to an error of the driver.
    pub(super) fn blame(&self, error: Error) -> Error {
        match error {
            Error::Driver { call, code, last_kernel: None } => {
                let last_kernel = lock(&self.last_kernel).as_ref().map(ToString::to_string);
                Error::Driver { call, code, last_kernel }
            }
            other => other,
        }
    }
}

/// Version of the driver as CUDA counts (13000 is 13.0).
///
/// # Errors
/// When there is no driver, or it is older than what we call.
pub fn driver_version() -> Result<i32> {
    // SAFETY: only tries to load the library.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::NoLibrary {
            library: "the NVIDIA driver (libcuda)",
            remedy: "install it, or use --device cpu",
        });
    }
    let mut version = 0;
    // SAFETY: writes one integer.
    let status = unsafe { sys::cuDriverGetVersion(&mut version) }.result();
    status.map_err(|error| Error::driver("cuDriverGetVersion", error))?;
    if version < OLDEST_DRIVER {
        let text = |version: i32| format!("{}.{}", version / 1000, version % 1000 / 10);
        return Err(Error::OldDriver { found: text(version), needed: text(OLDEST_DRIVER) });
    }
    Ok(version)
}

fn limits(
    arch: Arch,
    memory_bytes: u64,
    number: impl Fn(sys::CUdevice_attribute) -> Result<u32>,
) -> Result<Limits> {
    use sys::CUdevice_attribute as A;
    Ok(Limits {
        multiprocessors: number(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_per_block: number(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        shared_per_multiprocessor: number(
            A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR,
        )?,
        l2_bytes: u64::from(number(A::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?),
        threads_per_block: number(A::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
        block: [
            number(A::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X)?,
            number(A::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y)?,
            number(A::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z)?,
        ],
        grid: [
            number(A::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X)?,
            number(A::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y)?,
            number(A::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z)?,
        ],
        // 8 blocks are portable over all chips that have clusters.
        cluster: if arch.major() >= 9 { 8 } else { 1 },
        memory_bytes,
    })
}

/// Locks without caring for a panic elsewhere: what our locks guard is valid after every statement.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
