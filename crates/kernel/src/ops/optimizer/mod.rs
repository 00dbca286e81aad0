//! Updates of all parameters of a model on a GPU in one launch, and the norm of all gradients.
//!
//! A table of addresses is copied once a step; blocks find their piece of a tensor in it. A step costs
//! the traffic of values, gradients and moments and two launches, however many tensors there are. With
//! `g = grad_scale grad` and `shrink = 1 - lr weight_decay` for tensors that decay, else 1:
//!
//! ```text
//! AdamW  m = m + (1 - beta1) (g - m);  v = beta2 v + (1 - beta2) g^2
//!        p = p shrink - lr / correction1 m / (sqrt(v / correction2) + eps)      Loshchilov and Hutter, 2019
//! Lion   p = p shrink - lr sign(beta1 m + (1 - beta1) g);  m = beta2 m + (1 - beta2) g   Chen et al., 2023
//! SGD    m = momentum m + g;  p = p shrink - lr (g + momentum m if nesterov else m)
//! ```
//!
//! Values, gradients and state are f32 or f64, contiguous, of one dtype. The processor's pass, with which
//! this agrees to rounding, is in `danaus_train::optim`. Sums of squares are in f64 in a fixed order.

use danaus_runtime::cuda::{Argument, Defines, DeviceBuffer, Header, Launch, Source, Variant};
use danaus_tensor::cuda::{BLOCK, SCALAR, device_type};
use danaus_tensor::{DType, Error, Result, Tensor};

const OP: &str = "optimizer";
const HEADERS: &[Header] = &[SCALAR, BLOCK];
static SOURCE: Source = Source::new("optimizer.cuh", include_str!("optimizer.cuh"), HEADERS);

/// Elements that a block works on; `PIECE` of the kernel.
const PIECE: usize = 8192;
const THREADS: u32 = 256;

/// What is particular to each rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Two moments; `correction1 = 1 - beta1^t`, `correction2 = 1 - beta2^t`.
    AdamW {
        /// Decay of the mean of gradients.
        beta1: f64,
        /// Decay of the mean of squares.
        beta2: f64,
        /// Added to the root of the mean of squares.
        eps: f64,
        /// Correction of the first moment.
        correction1: f64,
        /// Correction of the second moment.
        correction2: f64,
    },
    /// One moment.
    Lion {
        /// Weight of the momentum in the update.
        beta1: f64,
        /// Decay of the momentum.
        beta2: f64,
    },
    /// One moment unless `momentum` is 0.
    Sgd {
        /// Decay of the momentum.
        momentum: f64,
        /// Look ahead along the momentum.
        nesterov: bool,
    },
}

impl Kind {
    /// State tensors of a parameter.
    fn slots(&self) -> usize {
        match self {
            Kind::AdamW { .. } => 2,
            Kind::Lion { .. } => 1,
            Kind::Sgd { momentum, .. } => usize::from(*momentum != 0.0),
        }
    }
}

/// The numbers of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// The rule.
    pub kind: Kind,
    /// Learning rate.
    pub lr: f64,
    /// Factor of parameters that decay.
    pub shrink: f64,
    /// Factor of the gradients.
    pub grad_scale: f64,
}

/// One parameter with its gradient and state.
pub struct Job<'a> {
    /// Changed in place; not shared.
    pub value: &'a mut Tensor,
    /// Its gradient.
    pub gradient: &'a Tensor,
    /// As many as the rule keeps, changed in place; not shared.
    pub slots: &'a mut [Tensor],
    /// Whether weight decay applies.
    pub decays: bool,
}

/// `Entry` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Entry {
    value: u64,
    grad: u64,
    first: u64,
    second: u64,
    len: i64,
    block: i64,
    decays: i64,
}

/// `Step` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
struct Numbers {
    lr: f64,
    shrink: f64,
    grad_scale: f64,
    beta1: f64,
    beta2: f64,
    eps: f64,
    correction1: f64,
    correction2: f64,
    kind: i32,
    tensors: i32,
}

// SAFETY: plain numbers in the order of the kernel's struct, without padding.
unsafe impl Argument for Numbers {}

impl Step {
    fn numbers(&self, tensors: i32) -> Numbers {
        let Step { kind, lr, shrink, grad_scale } = *self;
        let (number, beta1, beta2, eps, correction1, correction2) = match kind {
            Kind::AdamW { beta1, beta2, eps, correction1, correction2 } => {
                (0, beta1, beta2, eps, correction1, correction2)
            }
            Kind::Lion { beta1, beta2 } => (1, beta1, beta2, 0.0, 1.0, 1.0),
            Kind::Sgd { momentum: 0.0, .. } => (2, 0.0, 0.0, 0.0, 1.0, 1.0),
            Kind::Sgd { momentum, nesterov } => {
                (3 + i32::from(nesterov), momentum, 0.0, 0.0, 1.0, 1.0)
            }
        };
        Numbers {
            lr,
            shrink,
            grad_scale,
            beta1,
            beta2,
            eps,
            correction1,
            correction2,
            kind: number,
            tensors,
        }
    }
}

/// Entries with their blocks assigned, on the device.
struct Table {
    buffer: DeviceBuffer,
    tensors: i32,
    blocks: u32,
}

impl Table {
    /// Of at least one entry; ones without elements are left out.
    fn new(like: &Tensor, entries: Vec<Entry>) -> Result<Option<Self>> {
        let mut blocks = 0usize;
        let mut bytes = Vec::with_capacity(entries.len() * size_of::<Entry>());
        let mut tensors = 0;
        for mut entry in entries.into_iter().filter(|entry| entry.len > 0) {
            entry.block = blocks as i64;
            blocks += (entry.len as usize).div_ceil(PIECE);
            tensors += 1;
            let Entry { value, grad, first, second, len, block, decays } = entry;
            for word in [value, grad, first, second] {
                bytes.extend_from_slice(&word.to_ne_bytes());
            }
            for word in [len, block, decays] {
                bytes.extend_from_slice(&word.to_ne_bytes());
            }
        }
        if tensors == 0 {
            return Ok(None);
        }
        let blocks = i32::try_from(blocks)
            .map_err(|_| Error::not_on_cuda(OP, "more than 2^44 elements"))?
            as u32;
        let buffer = DeviceBuffer::from_host(like.gpu()?, &bytes)?;
        Ok(Some(Self { buffer, tensors, blocks }))
    }
}

fn check(name: &'static str, tensor: &Tensor, like: &Tensor) -> Result<()> {
    if tensor.dtype() != like.dtype() || !matches!(like.dtype(), DType::F32 | DType::F64) {
        return Err(Error::dtype(OP, name, tensor.dtype(), "f32, or f64 for all"));
    }
    if tensor.shape() != like.shape() {
        return Err(Error::shape(OP, name, tensor.shape(), like.shape().to_string()));
    }
    if !tensor.is_contiguous() {
        return Err(Error::argument(OP, name, "a view with gaps", "a contiguous tensor"));
    }
    Ok(())
}

/// Updates all values and their state, which lie on one GPU.
///
/// # Errors
/// When shapes or dtypes do not fit, a value or state is shared, or a rule's state is missing.
pub fn update(step: &Step, jobs: &mut [Job]) -> Result<()> {
    let mut entries = Vec::with_capacity(jobs.len());
    for job in jobs.iter_mut() {
        check("gradient", job.gradient, job.value)?;
        if job.slots.len() < step.kind.slots() {
            let valid = step.kind.slots().to_string();
            return Err(Error::argument(OP, "slots", job.slots.len(), valid));
        }
        let mut places = [0; 2];
        for (slot, place) in job.slots.iter_mut().zip(&mut places) {
            check("slot", slot, job.value)?;
            *place = slot.device_address_mut()?;
        }
        entries.push(Entry {
            value: job.value.device_address_mut()?,
            grad: job.gradient.device_address()?,
            first: places[0],
            second: places[1],
            len: job.value.elem_count() as i64,
            block: 0,
            decays: i64::from(job.decays),
        });
    }
    let Some(job) = jobs.first() else { return Ok(()) };
    let Some(table) = Table::new(job.value, entries)? else { return Ok(()) };
    let gpu = job.value.gpu()?.clone();
    let kernel = gpu.kernel(&SOURCE, "optimizer_step", &defines(job.value.dtype())?)?;
    let launch = Launch::linear(table.blocks, THREADS);
    let numbers = step.numbers(table.tensors);
    // SAFETY: the table lists contiguous tensors of equal length, none of which is shared; it lives until
    // the launch in stream order.
    unsafe { kernel.launch(&launch, &[&table.buffer, &numbers]) }.map_err(Into::into)
}

/// The sum of the squares of all elements, f64 `[]` on the device of the tensors; `None` where there is
/// no tensor with elements.
///
/// # Errors
/// When the tensors are not all f32 or all f64, or not contiguous.
pub fn square_sum(tensors: &[&Tensor]) -> Result<Option<Tensor>> {
    let mut entries = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        if tensor.dtype() != tensors[0].dtype() {
            return Err(Error::dtype(OP, "gradient", tensor.dtype(), tensors[0].dtype().name()));
        }
        check("gradient", tensor, tensor)?;
        let (grad, len) = (tensor.device_address()?, tensor.elem_count() as i64);
        entries.push(Entry { grad, len, ..Entry::default() });
    }
    let Some(first) = tensors.first() else { return Ok(None) };
    let Some(table) = Table::new(first, entries)? else { return Ok(None) };
    let device = first.device();
    let mut parts = Tensor::empty([table.blocks as usize], DType::F64, &device)?;
    let mut total = Tensor::empty([], DType::F64, &device)?;
    let (to, all) = (parts.device_address_mut()?, total.device_address_mut()?);
    let (gpu, defines) = (first.gpu()?.clone(), defines(first.dtype())?);
    let (launch, count) = (Launch::linear(table.blocks, THREADS), i64::from(table.blocks));
    // SAFETY: as in `update`; `parts` has a place for every block.
    unsafe {
        let kernel = gpu.kernel(&SOURCE, "square_parts", &defines)?;
        kernel.launch(&launch, &[&table.buffer, &table.tensors, &to])?;
        let kernel = gpu.kernel(&SOURCE, "square_total", &defines)?;
        kernel.launch(&Launch::linear(1, 1024), &[&to, &count, &all])?;
    }
    Ok(Some(total))
}

fn defines(dtype: DType) -> Result<Defines> {
    Ok(Defines::new().set("REAL", device_type(OP, dtype)?))
}

/// The kernels that are shipped.
pub(crate) fn variants() -> Vec<Variant> {
    let all = [DType::F32, DType::F64].into_iter().filter_map(|dtype| defines(dtype).ok());
    all.map(|defines| Variant::new(SOURCE.clone(), defines)).collect()
}
