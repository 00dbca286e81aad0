//! The gated norm on a GPU: a warp or a block a group of columns, which stays in registers. Sums for
//! the weight are written one row a run of rows and added in order, as in the plain norms.

use super::OP;
use super::reference::Options;
use crate::rows::RowPlan;
use danaus_runtime::cuda::{Argument, Defines, Header, Source, Variant};
use danaus_tensor::cuda::{BLOCK, SCALAR, device_type};
use danaus_tensor::{Error, Result, Tensor, no_grad};

const HEADERS: &[Header] = &[SCALAR, BLOCK];
static SOURCE: Source =
    Source::new("rms_norm_gated.cuh", include_str!("rms_norm_gated.cuh"), HEADERS);

/// Groups of threads that the backward pass makes at least, where there are rows for them.
const PARTS: usize = 528;

/// Contiguous inputs; the weight in the wide dtype.
pub(super) struct Norm<'a> {
    pub x: &'a Tensor,
    pub weight: &'a Tensor,
    pub z: Option<&'a Tensor>,
    pub options: Options,
}

/// Gradients of x and weight, and of z if there is one.
pub(super) struct Gradients {
    pub x: Tensor,
    pub weight: Tensor,
    pub z: Option<Tensor>,
}

fn defines(plan: RowPlan, kind: &str, after: bool) -> Defines {
    plan.defines(kind).set("GATE_AFTER", u8::from(after))
}

impl Norm<'_> {
    /// Layout, constants, and the addresses of x, z and weight.
    fn prepare(&self) -> Result<(RowPlan, Defines, [u64; 3])> {
        let plan = RowPlan::new(self.options.group_size);
        if plan.items == 0 {
            let what = format!("groups of {} values (at most 16384)", self.options.group_size);
            return Err(Error::not_on_cuda(OP, what));
        }
        let kind = device_type(OP, self.x.dtype())?;
        let z = self.z.map_or(Ok(0), Tensor::device_address)?;
        let places = [self.x.device_address()?, z, self.weight.device_address()?];
        Ok((plan, defines(plan, kind, self.options.norm_before_gate), places))
    }

    pub fn forward(&self, y: &mut Tensor) -> Result<()> {
        let size = self.options.group_size;
        let groups = self.weight.elem_count() / size;
        let units = y.elem_count() / size;
        if units == 0 {
            return Ok(());
        }
        let (plan, defines, [x, z, weight]) = self.prepare()?;
        let gpu = y.gpu()?.clone();
        let kernel = gpu.kernel(&SOURCE, "forward", &defines)?;
        let (to, count) = (y.device_address_mut()?, units as i64);
        let (groups, size) = (groups as i32, size as i32);
        let arguments: [&dyn Argument; 8] =
            [&x, &z, &weight, &to, &count, &groups, &size, &self.options.eps];
        let launch = plan.launch(OP, units)?.overlapping(&gpu);
        // SAFETY: all tensors are contiguous with `units` groups of `size` values; `y` is fresh.
        unsafe { kernel.launch(&launch, &arguments) }.map_err(Into::into)
    }

    pub fn backward(&self, dy: &Tensor) -> Result<Gradients> {
        let size = self.options.group_size;
        let (groups, columns) = (self.weight.elem_count() / size, self.weight.elem_count());
        let (rows, device) = (self.x.elem_count() / columns, self.x.device());
        let fresh = |like: &Tensor| Tensor::empty(like.shape(), like.dtype(), &device);
        let (mut dx, mut dz) = (fresh(self.x)?, self.z.map(fresh).transpose()?);
        if rows == 0 {
            let weight = Tensor::zeros([columns], self.weight.dtype(), &device)?;
            return Ok(Gradients { x: dx, weight, z: dz });
        }
        let (plan, defines, [x, z, weight]) = self.prepare()?;
        let per_run = rows.div_ceil(PARTS.div_ceil(groups));
        let runs = rows.div_ceil(per_run);
        let mut partial = Tensor::empty([runs, columns], self.weight.dtype(), &device)?;
        let kernel = self.x.gpu()?.kernel(&SOURCE, "backward", &defines)?;
        let (from, to) = (dy.device_address()?, dx.device_address_mut()?);
        let to_z = dz.as_mut().map_or(Ok(0), Tensor::device_address_mut)?;
        let sums = partial.device_address_mut()?;
        let (height, run, tasks) = (rows as i64, per_run as i64, runs * groups);
        let (groups, size) = (groups as i32, size as i32);
        let arguments: [&dyn Argument; 12] = [
            &x,
            &z,
            &weight,
            &from,
            &to,
            &to_z,
            &sums,
            &height,
            &groups,
            &size,
            &run,
            &self.options.eps,
        ];
        // SAFETY: as in `forward`; the partial sums have one row a run.
        unsafe { kernel.launch(&plan.launch(OP, tasks)?, &arguments)? };
        let weight = no_grad(|| partial.sum(0))?;
        Ok(Gradients { x: dx, weight, z: dz })
    }
}

/// The kernels that are shipped.
pub(crate) fn variants() -> Vec<Variant> {
    let mut all = Vec::new();
    for kind in ["float", "bf16", "double"] {
        for after in [false, true] {
            for plan in RowPlan::shipped(kind).filter(|plan| plan.items > 0) {
                let mut variant = Variant::new(SOURCE.clone(), defines(plan, kind, after));
                variant.spills = plan.spills(kind);
                all.push(variant);
            }
        }
    }
    all
}
