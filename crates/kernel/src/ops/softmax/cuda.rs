//! Softmax on a GPU: a warp or a block a row, which stays in registers up to 16384 columns.

use super::Form;
use crate::rows::RowPlan;
use danaus_runtime::cuda::{Argument, Defines, Header, Source, Variant};
use danaus_tensor::cuda::{BLOCK, SCALAR, device_type};
use danaus_tensor::{Result, Tensor};

const HEADERS: &[Header] = &[SCALAR, BLOCK];
static SOURCE: Source = Source::new("softmax.cuh", include_str!("softmax.cuh"), HEADERS);

fn defines(plan: RowPlan, kind: &str, form: Form) -> Defines {
    plan.defines(kind).set("LOG_FORM", u8::from(form == Form::LogSoftmax))
}

/// Runs `entry` on rows of the contiguous `inputs`.
fn rows(form: Form, entry: &str, inputs: &[&Tensor], out: &mut Tensor) -> Result<()> {
    let cols = out.dims().last().copied().unwrap_or(1);
    let count = out.elem_count() / cols.max(1);
    if count == 0 || cols == 0 {
        return Ok(());
    }
    let plan = RowPlan::new(cols);
    let kind = device_type("softmax", out.dtype())?;
    let gpu = out.gpu()?.clone();
    let kernel = gpu.kernel(&SOURCE, entry, &defines(plan, kind, form))?;
    let mut addresses =
        inputs.iter().map(|input| input.device_address()).collect::<Result<Vec<_>>>()?;
    addresses.push(out.device_address_mut()?);
    let (height, width) = (count as i64, cols as i32);
    let mut arguments: Vec<&dyn Argument> =
        addresses.iter().map(|address| address as &dyn Argument).collect();
    arguments.extend([&height as &dyn Argument, &width]);
    // SAFETY: all tensors are contiguous with `count` rows of `cols` elements; the output is fresh.
    Ok(unsafe { kernel.launch(&plan.launch("softmax", count)?, &arguments)? })
}

/// `y` from the contiguous `x`.
pub(super) fn forward(form: Form, x: &Tensor, y: &mut Tensor) -> Result<()> {
    rows(form, "forward", &[x], y)
}

/// `dx` from the output `y` and its cotangent, both contiguous.
pub(super) fn backward(form: Form, y: &Tensor, dy: &Tensor, dx: &mut Tensor) -> Result<()> {
    rows(form, "backward", &[y, dy], dx)
}

/// The kernels that are shipped.
pub(crate) fn variants() -> Vec<Variant> {
    let mut all = Vec::new();
    for kind in ["float", "bf16", "double"] {
        for form in [Form::Softmax, Form::LogSoftmax] {
            all.extend(RowPlan::shipped(kind).map(|plan| {
                let spills = plan.spills(kind);
                Variant { spills, ..Variant::new(SOURCE.clone(), defines(plan, kind, form)) }
            }));
        }
    }
    all
}
