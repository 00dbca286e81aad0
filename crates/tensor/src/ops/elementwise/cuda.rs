//! Formulas on a GPU: one generated kernel an expression.
//!
//! The kernel's text depends on the formula, the element types, the number of dimensions that are left
//! after merging, and how each operand lies along the innermost one (neighbours, one value, apart). A
//! thread computes a pack of neighbours of up to 16 bytes each; sizes, strides and constants are
//! arguments by value. Every operand may be strided, also outputs: `cat` and `pad` write parts of a
//! larger tensor through the same kernel.

use super::super::expr::{Program, Statements};
use super::generate::Kernel;
use crate::cuda::{SCALAR, device_type};
use crate::{DType, Error, Result, Shape, Tensor};
use danaus_runtime::cuda::{self, Argument, Defines, Gpu, Header, Launch, Source, Variant};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex};

const HEADERS: &[Header] =
    &[SCALAR, Header { name: "elementwise.cuh", text: include_str!("elementwise.cuh") }];

/// Threads of a block.
pub(super) const THREADS: u32 = 256;
/// Most dimensions that do not merge.
const MAX_RANK: usize = 8;
/// Most elements of a pack.
const MAX_PACK: usize = 8;

/// A tensor as it lies on the device, stretched to the common shape.
pub(crate) struct Operand {
    address: u64,
    /// Name of the element type in the kernel.
    kind: &'static str,
    /// Bytes of an element.
    size: usize,
    /// In elements, one a dimension.
    strides: Vec<isize>,
}

impl Operand {
    /// A tensor to read, stretched to `shape`; `kind` as in `scalar.cuh`.
    pub fn input(tensor: &Tensor, shape: &Shape, kind: &'static str) -> Result<Self> {
        let tensor = tensor.detach().broadcast_to(shape)?;
        let (address, strides) = (tensor.device_address()?, tensor.strides().to_vec());
        Ok(Self { address, kind, size: tensor.dtype().size(), strides })
    }

    /// A fresh tensor to write as a whole.
    pub fn output(tensor: &mut Tensor, kind: &'static str) -> Result<Self> {
        let address = tensor.device_address_mut()?;
        Ok(Self { address, kind, size: tensor.dtype().size(), strides: tensor.strides().to_vec() })
    }

    /// The positions from `first` on along `dim` of a fresh tensor.
    pub fn part(tensor: &mut Tensor, kind: &'static str, dim: usize, first: usize) -> Result<Self> {
        let mut whole = Self::output(tensor, kind)?;
        whole.address += (first as isize * whole.strides[dim]) as u64 * whole.size as u64;
        Ok(whole)
    }
}

/// How an operand lies along the innermost dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inner {
    /// Neighbours in memory.
    Row,
    /// One value.
    Same,
    /// At a distance.
    Apart,
}

/// What a kernel is generated for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub dims: Vec<usize>,
    /// Per operand.
    pub strides: Vec<Vec<isize>>,
    pub inner: Vec<Inner>,
    /// Elements that a thread computes.
    pub pack: usize,
}

/// Merges neighbouring dimensions that all operands walk through in one stride.
pub(crate) fn merge(shape: &[usize], operands: &[Vec<isize>]) -> (Vec<usize>, Vec<Vec<isize>>) {
    let mut dims: Vec<usize> = Vec::new();
    let mut strides = vec![Vec::new(); operands.len()];
    for (axis, &size) in shape.iter().enumerate().filter(|(_, size)| **size != 1) {
        let joins = !dims.is_empty()
            && operands.iter().zip(&strides).all(|(operand, outer): (_, &Vec<isize>)| {
                outer.last() == Some(&(operand[axis] * size as isize))
            });
        match dims.last_mut() {
            Some(last) if joins => *last *= size,
            _ => dims.push(size),
        }
        for (operand, list) in operands.iter().zip(&mut strides) {
            match list.last_mut() {
                Some(last) if joins => *last = operand[axis],
                _ => list.push(operand[axis]),
            }
        }
    }
    if dims.is_empty() {
        return (vec![1], vec![vec![1]; operands.len()]);
    }
    (dims, strides)
}

/// Chooses the pack: the largest one that divides rows, strides and addresses.
fn plan(shape: &[usize], operands: &[&Operand]) -> Plan {
    let lists: Vec<Vec<isize>> = operands.iter().map(|operand| operand.strides.clone()).collect();
    let (dims, strides) = merge(shape, &lists);
    let last = dims.len() - 1;
    let inner: Vec<Inner> = strides
        .iter()
        .map(|list| match list[last] {
            1 => Inner::Row,
            0 => Inner::Same,
            _ => Inner::Apart,
        })
        .collect();
    let widest = operands.iter().map(|operand| operand.size).max().unwrap_or(1);
    let fits = |pack: usize| {
        let rows = last == 0 || dims[last].is_multiple_of(pack);
        rows && operands.iter().zip(&strides).zip(&inner).all(|((operand, list), inner)| {
            *inner != Inner::Row
                || (operand.address.is_multiple_of((operand.size * pack) as u64)
                    && list[..last].iter().all(|stride| stride.unsigned_abs().is_multiple_of(pack)))
        })
    };
    let mut pack = (16 / widest).clamp(1, MAX_PACK);
    // Operands at a distance gain nothing from packs, and their threads should be neighbours.
    if inner.contains(&Inner::Apart) {
        pack = 1;
    }
    while !fits(pack) {
        pack /= 2;
    }
    Plan { dims, strides, inner, pack }
}

/// The `Layout` argument, as the kernel's struct lies in memory.
struct LayoutArgument(Vec<i64>);

// SAFETY: the kernel's struct consists of 64-bit integers in this order.
unsafe impl Argument for LayoutArgument {
    fn place(&self) -> *const c_void {
        self.0.as_ptr().cast()
    }
    fn size(&self) -> usize {
        size_of_val(&self.0[..])
    }
}

/// The kernel of a text. Looked up by what the text is made of: writing it costs more than a launch.
fn generated(gpu: &Arc<Gpu>, text: &Kernel) -> Result<Arc<cuda::Kernel>> {
    static KNOWN: Mutex<BTreeMap<(usize, String), Arc<cuda::Kernel>>> = Mutex::new(BTreeMap::new());
    let key = (gpu.index(), text.key());
    let known = || KNOWN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(kernel) = known().get(&key) {
        return Ok(kernel.clone());
    }
    let source = Source::generated(String::from("pointwise"), text.text(), HEADERS);
    let kernel = gpu.kernel(&source, "pointwise", &Defines::new())?;
    known().insert(key, kernel.clone());
    Ok(kernel)
}

/// Runs statements over a shape.
pub(crate) fn pointwise(
    op: &'static str,
    gpu: &Arc<Gpu>,
    compute: &str,
    statements: &Statements,
    shape: &[usize],
    outputs: &[Operand],
    inputs: &[Operand],
) -> Result<()> {
    let count: usize = shape.iter().product();
    if count == 0 {
        return Ok(());
    }
    let operands: Vec<&Operand> = outputs.iter().chain(inputs).collect();
    let plan = plan(shape, &operands);
    if plan.dims.len() > MAX_RANK {
        return Err(Error::not_on_cuda(op, format!("a layout of more than {MAX_RANK} dimensions")));
    }
    let kinds: Vec<&str> = operands.iter().map(|operand| operand.kind).collect();
    // Below this, positions fit 32 bits, whose divisions are several times faster.
    let wide = count > 1 << 31;
    let text =
        Kernel { plan: &plan, compute, kinds: &kinds, outputs: outputs.len(), statements, wide };
    let kernel = generated(gpu, &text)?;
    let mut layout = vec![count as i64];
    layout.extend(plan.dims.iter().map(|&dim| dim as i64));
    layout.extend(plan.strides.iter().flatten().map(|&stride| stride as i64));
    layout.extend(statements.constants.iter().map(|&bits| bits as i64));
    if statements.constants.is_empty() {
        layout.push(0);
    }
    let layout = LayoutArgument(layout);
    let addresses: Vec<u64> = operands.iter().map(|operand| operand.address).collect();
    let mut arguments: Vec<&dyn Argument> = vec![&layout];
    arguments.extend(addresses.iter().map(|address| address as &dyn Argument));
    let blocks = count.div_ceil(THREADS as usize * plan.pack);
    let launch = Launch::linear(u32::try_from(blocks).unwrap_or(u32::MAX), THREADS);
    // SAFETY: every operand's strides stay inside its tensor over the shape; outputs are fresh.
    Ok(unsafe { kernel.launch(&launch, &arguments)? })
}

/// `double` if an operand is f64, else `float`.
pub(crate) fn computing_type(inputs: &[&Tensor], out: &Tensor) -> &'static str {
    let is_f64 = |tensor: &Tensor| tensor.dtype() == DType::F64;
    if is_f64(out) || inputs.iter().any(|tensor| is_f64(tensor)) { "double" } else { "float" }
}

/// Runs statements over `inputs`, stretched to the shape of the fresh tensor `out`.
pub(crate) fn map(
    op: &'static str,
    compute: &str,
    statements: &Statements,
    inputs: &[&Tensor],
    out: &mut Tensor,
) -> Result<()> {
    let (shape, gpu) = (out.shape().clone(), out.gpu()?.clone());
    let source =
        |tensor: &&Tensor| Operand::input(tensor, &shape, device_type(op, tensor.dtype())?);
    let sources: Vec<Operand> = inputs.iter().map(source).collect::<Result<_>>()?;
    let kind = device_type(op, out.dtype())?;
    let sinks = [Operand::output(out, kind)?];
    pointwise(op, &gpu, compute, statements, &shape, &sinks, &sources)
}

/// Computes `program` of `inputs`, each stretched to the outputs' shape; see the CPU side.
pub(crate) fn evaluate(
    program: &Program,
    inputs: &[Option<&Tensor>],
    outputs: &mut [Tensor],
) -> Result<()> {
    let Some(first) = outputs.first() else { return Ok(()) };
    let (shape, gpu) = (first.shape().clone(), first.gpu()?.clone());
    let is_f64 = |tensor: &Tensor| tensor.dtype() == DType::F64;
    let wide = outputs.iter().any(is_f64) || inputs.iter().flatten().any(|tensor| is_f64(tensor));
    let compute = if wide { "double" } else { "float" };
    let mut sources = Vec::new();
    for (position, input) in inputs.iter().enumerate() {
        // Inputs that are not read keep their number; the first one stands in for them.
        let read = input.filter(|_| program.reads(position));
        let tensor = read.or_else(|| inputs.iter().copied().flatten().next());
        if let Some(tensor) = tensor {
            sources.push(Operand::input(tensor, &shape, device_type("fused", tensor.dtype())?)?);
        }
    }
    let sinks: Vec<Operand> = outputs
        .iter_mut()
        .map(|tensor| {
            let kind = device_type("fused", tensor.dtype())?;
            Operand::output(tensor, kind)
        })
        .collect::<Result<_>>()?;
    pointwise("fused", &gpu, compute, &program.statements(), &shape, &sinks, &sources)
}

/// Representative kernels for the build without a GPU: every function, packs, strides and types.
pub(crate) fn variants() -> Vec<Variant> {
    use super::super::expr::{Binary, Expr, Unary};
    let operand = |kind, size, strides: &[isize]| Operand {
        address: 256,
        kind,
        size,
        strides: strides.to_vec(),
    };
    let make = |kind: &'static str, size, compute, exprs: &[Expr], strides: [&[isize]; 2]| {
        let operands = [
            operand(kind, size, &[64, 1]),
            operand(kind, size, strides[0]),
            operand(kind, size, strides[1]),
        ];
        let plan = plan(&[32, 64], &operands.iter().collect::<Vec<_>>());
        let statements = Program::new(exprs).statements();
        let (kinds, statements) = ([kind; 3], &statements);
        let text =
            Kernel { plan: &plan, compute, kinds: &kinds, outputs: 1, statements, wide: false };
        let source = Source::generated(String::from("pointwise"), text.text(), HEADERS);
        Variant::new(source, Defines::new())
    };
    let (x, y) = (Expr::input(0), Expr::input(1));
    let unary = Unary::NAMES.iter().fold(y.clone(), |sum, (f, _)| sum + x.unary(*f));
    let binary = Binary::NAMES.iter().fold(x.clone(), |sum, (f, _)| sum + x.binary(*f, &y));
    let (row, column, scalar): (&[isize], &[isize], &[isize]) = (&[64, 1], &[1, 32], &[0, 0]);
    let mut all = Vec::new();
    for (kind, size, compute) in
        [("float", 4, "float"), ("bf16", 2, "float"), ("f16", 2, "float"), ("double", 8, "double")]
    {
        all.push(make(kind, size, compute, &[unary.clone()], [row, scalar]));
        all.push(make(kind, size, compute, &[binary.clone()], [row, column]));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operand(address: u64, size: usize, strides: &[isize]) -> Operand {
        Operand { address, kind: "float", size, strides: strides.to_vec() }
    }

    #[test]
    fn dimensions_merge_where_all_operands_allow_it() {
        let (dims, strides) = merge(&[2, 3, 4], &[vec![12, 4, 1], vec![12, 4, 1]]);
        assert_eq!((dims, strides), (vec![24], vec![vec![1], vec![1]]));
        // A row that is repeated keeps two dimensions.
        let (dims, strides) = merge(&[2, 3, 4], &[vec![12, 4, 1], vec![0, 0, 1]]);
        assert_eq!((dims, strides), (vec![6, 4], vec![vec![4, 1], vec![0, 1]]));
        let (dims, strides) = merge(&[1, 1], &[vec![7, 7]]);
        assert_eq!((dims, strides), (vec![1], vec![vec![1]]));
    }

    #[test]
    fn packs_respect_alignment_rows_and_types() {
        let pack = |shape: &[usize], operands: &[Operand]| {
            plan(shape, &operands.iter().collect::<Vec<_>>()).pack
        };
        assert_eq!(pack(&[64], &[operand(256, 4, &[1]), operand(512, 4, &[1])]), 4);
        assert_eq!(pack(&[64], &[operand(256, 2, &[1]), operand(512, 2, &[1])]), 8);
        assert_eq!(pack(&[64], &[operand(256, 8, &[1]), operand(512, 4, &[0])]), 2);
        // A view that starts at an odd element, rows of odd length, a column.
        assert_eq!(pack(&[64], &[operand(256, 4, &[1]), operand(516, 4, &[1])]), 1);
        assert_eq!(pack(&[2, 6], &[operand(256, 4, &[6, 1]), operand(512, 4, &[0, 1])]), 2);
        assert_eq!(pack(&[4, 8], &[operand(256, 4, &[8, 1]), operand(512, 4, &[1, 4])]), 1);
        // One row needs no divisor: the last thread has fewer elements.
        assert_eq!(pack(&[63], &[operand(256, 4, &[1]), operand(512, 4, &[1])]), 4);
    }
}
