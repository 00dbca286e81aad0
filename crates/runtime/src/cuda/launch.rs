//! Kernel handles and launches.
//!
//! [`Gpu::kernel`] finds a kernel by source, entry point and constants; the handle is cheap to look up
//! again. Arguments are typed and passed by value: numbers, device addresses, plain structs (marked
//! with [`Argument`]), tensor maps. Their number and sizes are compared with the kernel's own list, so
//! that a wrong list is an error here and not garbage there.

use super::compile::{Defines, Source, compile};
use super::gpu::lock;
use super::{DeviceBuffer, Error, Gpu, Limits, Result};
use cudarc::driver::{CudaFunction, CudaModule, sys};
use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

/// Dynamic shared memory that a kernel may use without asking.
const SHARED_WITHOUT_ASKING: u32 = 48 << 10;

/// A value that a kernel takes.
///
/// # Safety
/// The bytes of `self` are the value as the kernel declares it: for a struct, `#[repr(C)]`, `Copy`,
/// and the same fields in the same order.
pub unsafe trait Argument {
    /// Where the bytes are.
    fn place(&self) -> *const c_void {
        std::ptr::from_ref(self).cast()
    }

    /// How many there are.
    fn size(&self) -> usize {
        size_of_val(self)
    }
}

macro_rules! plain_arguments {
    ($($type:ty)*) => { $(
        // SAFETY: a number is its bytes, on both sides.
        unsafe impl Argument for $type {}
    )* };
}

plain_arguments!(i8 u8 i16 u16 i32 u32 i64 u64 f32 f64 half::bf16 half::f16);

// SAFETY: an array is its elements; kernels take it as a struct with an array inside.
unsafe impl<T: Argument + Copy, const N: usize> Argument for [T; N] {}

// SAFETY: a buffer is passed as its device address.
unsafe impl Argument for DeviceBuffer {
    fn place(&self) -> *const c_void {
        self.address_place().cast()
    }

    fn size(&self) -> usize {
        size_of::<u64>()
    }
}

/// How a kernel is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block in bytes.
    pub shared_bytes: u32,
    /// Blocks of a cluster in x, y, z; ones mean no clusters.
    pub cluster: [u32; 3],
    /// All blocks run at the same time, so that they may wait for one another.
    pub cooperative: bool,
    /// May start before the kernel in front has ended (programmatic dependent launch); the kernel
    /// itself waits with `griddepcontrol.wait` before it reads.
    pub dependent: bool,
}

impl Launch {
    /// A grid of blocks.
    pub const fn new(grid: [u32; 3], block: [u32; 3]) -> Self {
        let cluster = [1; 3];
        Self { grid, block, shared_bytes: 0, cluster, cooperative: false, dependent: false }
    }

    /// `blocks` blocks of `threads` threads in a row.
    pub const fn linear(blocks: u32, threads: u32) -> Self {
        Self::new([blocks, 1, 1], [threads, 1, 1])
    }

    /// With dynamic shared memory.
    pub const fn shared(self, bytes: u32) -> Self {
        Self { shared_bytes: bytes, ..self }
    }

    /// In clusters.
    pub const fn cluster(self, cluster: [u32; 3]) -> Self {
        Self { cluster, ..self }
    }

    /// All blocks at the same time.
    pub const fn cooperative(self) -> Self {
        Self { cooperative: true, ..self }
    }

    /// Overlapping the end of the kernel in front.
    pub const fn dependent(self) -> Self {
        Self { dependent: true, ..self }
    }

    /// The same where the chip has it: the kernel must wait, and does not elsewhere.
    pub fn overlapping(self, gpu: &Gpu) -> Self {
        Self { dependent: gpu.arch().major() >= 9, ..self }
    }
}

/// What the compiler decided about a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Threads that a block may have with the registers it needs.
    pub threads_per_block: u32,
    /// Static shared memory in bytes.
    pub shared_bytes: u32,
    /// Registers of a thread.
    pub registers: u32,
    /// Local memory of a thread in bytes.
    pub local_bytes: u32,
}

/// Refuses what chip or kernel do not allow.
fn check(
    launch: &Launch,
    limits: &Limits,
    attributes: &Attributes,
) -> std::result::Result<(), Refusal> {
    let refuse =
        |what: &'static str, given: String, valid: String| Err(Refusal { what, given, valid });
    let show = |extent: [u32; 3]| format!("{} x {} x {}", extent[0], extent[1], extent[2]);
    let fits = |extent: [u32; 3], most: [u32; 3]| {
        extent.iter().zip(most).all(|(&size, most)| (1..=most).contains(&size))
    };
    if !fits(launch.grid, limits.grid) {
        let valid = format!("1 to {} blocks", show(limits.grid));
        return refuse("grid", show(launch.grid), valid);
    }
    let threads = launch.block.iter().map(|&size| u64::from(size)).product::<u64>();
    let most = limits.threads_per_block.min(attributes.threads_per_block);
    if !fits(launch.block, limits.block) || threads > u64::from(most) {
        let valid = format!("1 to {most} threads, at most {}", show(limits.block));
        return refuse("block", show(launch.block), valid);
    }
    let most = limits.shared_per_block.saturating_sub(attributes.shared_bytes);
    if launch.shared_bytes > most {
        let valid = format!(
            "at most {most} bytes ({} of {} are static)",
            attributes.shared_bytes, limits.shared_per_block
        );
        return refuse("dynamic shared memory", launch.shared_bytes.to_string(), valid);
    }
    let blocks = launch.cluster.iter().map(|&size| u64::from(size)).product::<u64>();
    let divides = launch
        .grid
        .iter()
        .zip(launch.cluster)
        .all(|(&grid, size)| size > 0 && grid.is_multiple_of(size));
    if blocks > u64::from(limits.cluster) || !divides {
        let valid =
            format!("at most {} blocks, dividing the grid {}", limits.cluster, show(launch.grid));
        return refuse("cluster", show(launch.cluster), valid);
    }
    Ok(())
}

/// Part of a launch that is not allowed.
#[derive(Debug)]
struct Refusal {
    what: &'static str,
    given: String,
    valid: String,
}

/// Compares the sizes of arguments with those of the kernel's parameters.
fn check_arguments(sizes: &[usize], parameters: &[usize]) -> std::result::Result<(), Refusal> {
    if sizes == parameters {
        return Ok(());
    }
    let differs = sizes.iter().zip(parameters).position(|(size, parameter)| size != parameter);
    Err(match differs {
        Some(index) => Refusal {
            what: "an argument's size",
            given: format!("{} bytes at position {index}", sizes[index]),
            valid: format!("{} bytes", parameters[index]),
        },
        None => Refusal {
            what: "the number of arguments",
            given: sizes.len().to_string(),
            valid: parameters.len().to_string(),
        },
    })
}

/// Loaded modules and kernels of one device.
#[derive(Default)]
pub(super) struct Modules {
    modules: Mutex<HashMap<String, Arc<CudaModule>>>,
    kernels: Mutex<HashMap<String, Arc<Kernel>>>,
}

/// An entry point, loaded.
pub struct Kernel {
    gpu: Arc<Gpu>,
    entry: Arc<str>,
    function: CudaFunction,
    attributes: Attributes,
    parameters: Vec<usize>,
    /// Dynamic shared memory that was asked for so far.
    shared_allowed: AtomicU32,
}

impl Gpu {
    /// The kernel `entry` of a source with constants; compiled and loaded at the first call.
    ///
    /// # Errors
    /// As [`compile`], and when the driver refuses the machine code or does not find the entry point.
    pub fn kernel(
        self: &Arc<Self>,
        source: &Source,
        entry: &str,
        defines: &Defines,
    ) -> Result<Arc<Kernel>> {
        let mut key = String::with_capacity(64);
        source.identify(&mut key);
        for (name, value) in defines.iter() {
            let _ = write!(key, "\0{name}={value}");
        }
        let module_len = key.len();
        let _ = write!(key, "\0\0{entry}");
        if let Some(kernel) = lock(&self.modules.kernels).get(&key) {
            return Ok(kernel.clone());
        }
        let module = self.module(&key[..module_len], source, defines)?;
        let kernel = Arc::new(Kernel::load(self, &module, source, entry)?);
        lock(&self.modules.kernels).insert(key, kernel.clone());
        Ok(kernel)
    }

    fn module(
        self: &Arc<Self>,
        key: &str,
        source: &Source,
        defines: &Defines,
    ) -> Result<Arc<CudaModule>> {
        // Held while compiling, so that two threads do not compile the same kernel.
        let mut modules = lock(&self.modules.modules);
        if let Some(module) = modules.get(key) {
            return Ok(module.clone());
        }
        let compiled = compile(source, defines, self.arch())?;
        self.bind()?;
        let image = cudarc::nvrtc::Ptx::from_binary(compiled.cubin);
        let module = self.context.load_module(image);
        let module = module.map_err(|error| Error::driver("cuModuleLoadData", error))?;
        modules.insert(key.to_owned(), module.clone());
        Ok(module)
    }
}

impl Kernel {
    fn load(
        gpu: &Arc<Gpu>,
        module: &Arc<CudaModule>,
        source: &Source,
        entry: &str,
    ) -> Result<Self> {
        let refused = |given: &str| Error::Launch {
            kernel: entry.to_owned(),
            what: String::from("entry point"),
            given: given.to_owned(),
            valid: format!("an extern \"C\" __global__ function of {}", source.name()),
        };
        if entry.contains('\0') {
            return Err(refused("a name with a zero byte"));
        }
        let function = module.load_function(entry).map_err(|_| refused("not found"))?;
        let number = |value: std::result::Result<i32, _>| {
            let value = value.map_err(|error| Error::driver("cuFuncGetAttribute", error));
            Ok::<u32, Error>(value?.max(0) as u32)
        };
        let attributes = Attributes {
            threads_per_block: number(function.max_threads_per_block())?,
            shared_bytes: number(function.shared_size_bytes())?,
            registers: number(function.num_regs())?,
            local_bytes: number(function.local_size_bytes())?,
        };
        let parameters = parameters(&function);
        let (gpu, entry, shared_allowed) = (gpu.clone(), entry.into(), AtomicU32::new(0));
        Ok(Self { gpu, entry, function, attributes, parameters, shared_allowed })
    }

    /// Name of the entry point.
    pub fn entry(&self) -> &str {
        &self.entry
    }

    /// What the compiler decided.
    pub fn attributes(&self) -> &Attributes {
        &self.attributes
    }

    /// Blocks of this shape that fit on one multiprocessor at the same time.
    ///
    /// # Errors
    /// When the driver reports one.
    pub fn blocks_per_multiprocessor(&self, threads: u32, shared_bytes: u32) -> Result<u32> {
        self.gpu.bind()?;
        self.allow_shared(shared_bytes)?;
        let function = self.function.cu_function();
        // SAFETY: the function is loaded.
        let blocks = unsafe {
            cudarc::driver::result::occupancy::max_active_block_per_multiprocessor(
                function,
                threads as i32,
                shared_bytes as usize,
            )
        };
        let blocks = blocks
            .map_err(|error| Error::driver("cuOccupancyMaxActiveBlocksPerMultiprocessor", error));
        Ok(blocks?.max(0) as u32)
    }

    fn refuse(&self, refusal: Refusal) -> Error {
        let Refusal { what, given, valid } = refusal;
        Error::Launch { kernel: self.entry.to_string(), what: what.to_owned(), given, valid }
    }

    /// Asks for more dynamic shared memory than kernels have by default, once.
    fn allow_shared(&self, bytes: u32) -> Result<()> {
        if bytes + self.attributes.shared_bytes <= SHARED_WITHOUT_ASKING
            || bytes <= self.shared_allowed.load(Ordering::Relaxed)
        {
            return Ok(());
        }
        let attribute =
            sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let set = self.function.set_attribute(attribute, bytes as i32);
        set.map_err(|error| Error::driver("cuFuncSetAttribute", error))?;
        self.shared_allowed.fetch_max(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Puts the kernel on the compute stream.
    ///
    /// # Safety
    /// The kernel, run with these arguments, reads and writes only memory of buffers that are alive,
    /// inside their bounds, and nobody else writes what it uses.
    ///
    /// # Errors
    /// When the launch is not allowed, the arguments do not fit the kernel, or the driver refuses it.
    pub unsafe fn launch(&self, launch: &Launch, arguments: &[&dyn Argument]) -> Result<()> {
        check(launch, self.gpu.limits(), &self.attributes)
            .map_err(|refusal| self.refuse(refusal))?;
        let sizes: Vec<usize> = arguments.iter().map(|argument| argument.size()).collect();
        check_arguments(&sizes, &self.parameters).map_err(|refusal| self.refuse(refusal))?;
        self.gpu.bind()?;
        self.allow_shared(launch.shared_bytes)?;
        let mut places: Vec<*mut c_void> =
            arguments.iter().map(|argument| argument.place().cast_mut()).collect();
        let (mut attributes, count) = attributes(launch);
        let config = sys::CUlaunchConfig {
            gridDimX: launch.grid[0],
            gridDimY: launch.grid[1],
            gridDimZ: launch.grid[2],
            blockDimX: launch.block[0],
            blockDimY: launch.block[1],
            blockDimZ: launch.block[2],
            sharedMemBytes: launch.shared_bytes,
            hStream: self.gpu.stream.cu_stream(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: count,
        };
        *lock(&self.gpu.last_kernel) = Some(self.entry.clone());
        // SAFETY: number and sizes of the arguments are those of the kernel, and the driver copies
        // them before it returns; what the kernel does with them is promised by the caller.
        let launched = unsafe {
            sys::cuLaunchKernelEx(
                &config,
                self.function.cu_function(),
                places.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        let failed = |error| self.gpu.blame(Error::driver("cuLaunchKernelEx", error));
        launched.result().map_err(failed)
    }
}

/// Sizes of a kernel's parameters in order.
fn parameters(function: &CudaFunction) -> Vec<usize> {
    let mut sizes = Vec::new();
    loop {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: the function is loaded; writes two numbers. Past the last parameter it fails.
        let known = unsafe {
            sys::cuFuncGetParamInfo(function.cu_function(), sizes.len(), &mut offset, &mut size)
        };
        if known.result().is_err() {
            return sizes;
        }
        sizes.push(size);
    }
}

/// The attributes of a launch, and how many of them count.
fn attributes(launch: &Launch) -> ([sys::CUlaunchAttribute; 3], u32) {
    use sys::CUlaunchAttributeID as Id;
    let blank = sys::CUlaunchAttribute {
        id: Id::CU_LAUNCH_ATTRIBUTE_IGNORE,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue { pad: [0; 64] },
    };
    let (mut list, mut count) = ([blank; 3], 0);
    let mut push = |id, value| {
        list[count] = sys::CUlaunchAttribute { id, pad: [0; 4], value };
        count += 1;
    };
    let blank = sys::CUlaunchAttributeValue { pad: [0; 64] };
    if launch.cluster != [1; 3] {
        let mut value = blank;
        value.clusterDim.x = launch.cluster[0];
        value.clusterDim.y = launch.cluster[1];
        value.clusterDim.z = launch.cluster[2];
        push(Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, value);
    }
    if launch.cooperative {
        let mut value = blank;
        value.cooperative = 1;
        push(Id::CU_LAUNCH_ATTRIBUTE_COOPERATIVE, value);
    }
    if launch.dependent {
        let mut value = blank;
        value.programmaticStreamSerializationAllowed = 1;
        push(Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, value);
    }
    (list, count as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hopper() -> Limits {
        Limits {
            multiprocessors: 132,
            shared_per_block: 227 << 10,
            shared_per_multiprocessor: 228 << 10,
            l2_bytes: 50 << 20,
            threads_per_block: 1024,
            block: [1024, 1024, 64],
            grid: [i32::MAX as u32, 65535, 65535],
            cluster: 8,
            memory_bytes: 80 << 30,
        }
    }

    const PLAIN: Attributes =
        Attributes { threads_per_block: 1024, shared_bytes: 1024, registers: 32, local_bytes: 0 };

    #[test]
    fn what_the_chip_allows_passes() {
        let good = [
            Launch::linear(1, 1024),
            Launch::new([7, 65535, 65535], [16, 16, 4]),
            Launch::linear(132, 384).shared(226 << 10),
            Launch::linear(16, 64).cluster([8, 1, 1]),
            Launch::linear(132, 64).cooperative().dependent(),
        ];
        for launch in good {
            assert!(check(&launch, &hopper(), &PLAIN).is_ok(), "{launch:?}");
        }
    }

    #[test]
    fn every_limit_is_refused_by_name() {
        let few = Attributes { threads_per_block: 256, ..PLAIN };
        let bad = [
            (Launch::linear(0, 32), PLAIN, "grid"),
            (Launch::new([1, 65536, 1], [32, 1, 1]), PLAIN, "grid"),
            (Launch::linear(1, 1025), PLAIN, "block"),
            (Launch::new([1; 3], [32, 32, 2]), PLAIN, "block"),
            (Launch::new([1; 3], [1, 1, 65]), PLAIN, "block"),
            (Launch::linear(1, 512), few, "block"),
            (Launch::linear(1, 32).shared(227 << 10), PLAIN, "dynamic shared memory"),
            (Launch::linear(16, 32).cluster([16, 1, 1]), PLAIN, "cluster"),
            (Launch::linear(15, 32).cluster([2, 1, 1]), PLAIN, "cluster"),
            (Launch::linear(15, 32).cluster([0, 1, 1]), PLAIN, "cluster"),
        ];
        for (launch, attributes, what) in bad {
            let refusal = check(&launch, &hopper(), &attributes).unwrap_err();
            assert_eq!(refusal.what, what, "{launch:?}");
        }
    }

    #[test]
    fn arguments_are_compared_by_number_and_size() {
        assert!(check_arguments(&[8, 8, 4], &[8, 8, 4]).is_ok());
        let refusal = check_arguments(&[8, 4, 4], &[8, 8, 4]).unwrap_err();
        assert!(refusal.given.contains("position 1"), "{refusal:?}");
        assert_eq!(check_arguments(&[8], &[8, 8]).unwrap_err().what, "the number of arguments");
    }

    #[test]
    fn values_are_their_bytes() {
        let value = 7.5f32;
        let argument: &dyn Argument = &value;
        assert_eq!(argument.size(), 4);
        // SAFETY: the place is that of `value`.
        assert_eq!(unsafe { *argument.place().cast::<f32>() }, 7.5);
        let list: &dyn Argument = &[1i64, 2, 3];
        assert_eq!(list.size(), 24);
    }
}
