//! Norms on a GPU: a warp or a block a row, which stays in registers.
//!
//! Sums for `weight` and `bias` are kept in registers over a run of rows whose length depends on the
//! shape alone, written as one partial row a run, and added in order by a reduction: the same bits on
//! every run, without atomics.

use super::{Kind, Norm};
use crate::rows::RowPlan;
use danaus_runtime::cuda::{Argument, Defines, Header, Source, Variant};
use danaus_tensor::cuda::{BLOCK, SCALAR, device_type};
use danaus_tensor::{Error, Result, Tensor, no_grad};

const HEADERS: &[Header] = &[SCALAR, BLOCK];
static SOURCE: Source = Source::new("norm.cuh", include_str!("norm.cuh"), HEADERS);

/// Partial rows of the backward pass: enough blocks for every chip.
const PARTS: usize = 528;

/// Contiguous inputs of the forward pass; weight and bias in the accumulator's dtype.
pub(super) struct Forward<'a> {
    pub norm: Norm,
    pub x: &'a Tensor,
    pub residual: Option<&'a Tensor>,
    pub weight: Option<&'a Tensor>,
    pub bias: Option<&'a Tensor>,
}

fn defines(plan: RowPlan, kind: &str, norm: Kind) -> Defines {
    plan.defines(kind).set("LAYER", u8::from(norm == Kind::Layer))
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Layer => "layer_norm",
        Kind::Rms => "rms_norm",
    }
}

fn plan(norm: &Norm) -> Result<RowPlan> {
    let plan = RowPlan::new(norm.cols);
    if plan.items == 0 {
        let what = format!("rows of {} values (at most 16384)", norm.cols);
        return Err(Error::not_on_cuda(name(norm.kind), what));
    }
    Ok(plan)
}

/// The address of a tensor, 0 if there is none.
fn optional(tensor: Option<&Tensor>) -> Result<u64> {
    tensor.map_or(Ok(0), Tensor::device_address)
}

/// `y`, and `x + residual` if there is one.
pub(super) fn forward(args: &Forward, y: &mut Tensor, sum: Option<&mut Tensor>) -> Result<()> {
    let (norm, rows) = (&args.norm, y.elem_count() / args.norm.cols);
    if rows == 0 {
        return Ok(());
    }
    let plan = plan(norm)?;
    let kind = device_type(name(norm.kind), y.dtype())?;
    let gpu = y.gpu()?.clone();
    let kernel = gpu.kernel(&SOURCE, "forward", &defines(plan, kind, norm.kind))?;
    let (x, residual) = (args.x.device_address()?, optional(args.residual)?);
    let (weight, bias) = (optional(args.weight)?, optional(args.bias)?);
    let sum = sum.map_or(Ok(0), Tensor::device_address_mut)?;
    let (y, height, width) = (y.device_address_mut()?, rows as i64, norm.cols as i32);
    let arguments: [&dyn Argument; 9] =
        [&x, &residual, &weight, &bias, &y, &sum, &height, &width, &norm.eps];
    let launch = plan.launch(name(norm.kind), rows)?.overlapping(&gpu);
    // SAFETY: all tensors are contiguous with `rows` rows of `cols` values; the outputs are fresh.
    unsafe { kernel.launch(&launch, &arguments) }.map_err(Into::into)
}

/// Contiguous inputs of the backward pass; the weight in the accumulator's dtype.
pub(super) struct Backward<'a> {
    pub norm: Norm,
    pub h: &'a Tensor,
    pub dy: &'a Tensor,
    pub dsum: Option<&'a Tensor>,
    pub weight: Option<&'a Tensor>,
}

/// `dh`; returns the gradients of weight and bias in the accumulator's dtype.
pub(super) fn backward(args: &Backward, dh: &mut Tensor) -> Result<(Tensor, Tensor)> {
    let (norm, rows) = (&args.norm, dh.elem_count() / args.norm.cols);
    let (cols, device, wide) = (norm.cols, dh.device(), dh.dtype().accumulator());
    if rows == 0 {
        let zeros = || Tensor::zeros([cols], wide, &device);
        return Ok((zeros()?, zeros()?));
    }
    let plan = plan(norm)?;
    let kind = device_type(name(norm.kind), dh.dtype())?;
    let gpu = dh.gpu()?.clone();
    let per_group = rows.div_ceil(PARTS);
    let groups = rows.div_ceil(per_group);
    let mut dweight = Tensor::empty([groups, cols], wide, &device)?;
    let mut dbias = Tensor::empty([groups, cols], wide, &device)?;
    let kernel = gpu.kernel(&SOURCE, "backward", &defines(plan, kind, norm.kind))?;
    let (h, dy) = (args.h.device_address()?, args.dy.device_address()?);
    let (dsum, weight) = (optional(args.dsum)?, optional(args.weight)?);
    let (to, dw, db) =
        (dh.device_address_mut()?, dweight.device_address_mut()?, dbias.device_address_mut()?);
    let (height, width, run) = (rows as i64, cols as i32, per_group as i64);
    let arguments: [&dyn Argument; 11] =
        [&h, &dy, &dsum, &weight, &to, &dw, &db, &height, &width, &run, &norm.eps];
    // SAFETY: as in `forward`; the partial sums have one row a group.
    unsafe { kernel.launch(&plan.launch(name(norm.kind), groups)?, &arguments)? };
    no_grad(|| Ok((dweight.sum(0)?, dbias.sum(0)?)))
}

/// The kernels that are shipped.
pub(crate) fn variants() -> Vec<Variant> {
    let mut all = Vec::new();
    for kind in ["float", "bf16", "double"] {
        for norm in [Kind::Layer, Kind::Rms] {
            for plan in RowPlan::shipped(kind).filter(|plan| plan.items > 0) {
                let mut variant = Variant::new(SOURCE.clone(), defines(plan, kind, norm));
                variant.spills = plan.spills(kind);
                all.push(variant);
            }
        }
    }
    all
}
