//! Rotary embedding on a GPU. Positions that lie on the device are checked there.

use super::Layout;
use danaus_runtime::cuda::{Argument, Defines, Header, Launch, Source, Variant, fault};
use danaus_tensor::cuda::{SCALAR, device_type};
use danaus_tensor::{DType, Error, Result, Tensor};

const HEADERS: &[Header] = &[SCALAR, fault::HEADER];
static SOURCE: Source = Source::new("rotary.cuh", include_str!("rotary.cuh"), HEADERS);

/// The kernel's `Rotation`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Rotation {
    tokens: i64,
    seqlen: i64,
    offset: i64,
    table_rows: i64,
    heads: i32,
    head_dim: i32,
    half: i32,
    inverse: i32,
}

// SAFETY: plain numbers in the order of the kernel's struct, which has no padding.
unsafe impl Argument for Rotation {}

/// Where tokens stand, on the device.
pub(super) struct Turn<'a> {
    /// One position a token (any integer dtype); `None` counts from `offset` in runs of `seqlen`.
    pub positions: Option<&'a Tensor>,
    pub offset: usize,
    pub seqlen: usize,
    pub inverse: bool,
}

fn defines(kind: &str, interleaved: bool) -> Defines {
    Defines::new().set("ELEMENT", kind).set("INTERLEAVED", u8::from(interleaved))
}

/// Rotates the contiguous `x` by contiguous tables in the accumulator's dtype.
pub(super) fn rotate(
    x: &Tensor,
    layout: &Layout,
    [cos, sin]: [&Tensor; 2],
    turn: &Turn,
    y: &mut Tensor,
) -> Result<()> {
    let Layout { heads, head_dim, rotary_dim, interleaved } = *layout;
    let count = x.elem_count();
    if count == 0 {
        return Ok(());
    }
    let tokens = count / (heads * head_dim);
    let half = rotary_dim / 2;
    let units = tokens * heads * (head_dim - half);
    let blocks = u32::try_from(units.div_ceil(256))
        .map_err(|_| Error::not_on_cuda("rotary", "a tensor of more than 2^40 elements"))?;
    let gpu = x.gpu()?.clone();
    let kind = device_type("rotary", x.dtype())?;
    let kernel = gpu.kernel(&SOURCE, "rotate", &defines(kind, interleaved))?;
    let positions = turn
        .positions
        .map(|positions| positions.detach().to_dtype(DType::I64)?.contiguous())
        .transpose()?;
    let places = positions.as_ref().map_or(Ok(0), Tensor::device_address)?;
    let (from, c, s) = (x.device_address()?, cos.device_address()?, sin.device_address()?);
    let (to, check) = (y.device_address_mut()?, gpu.check("rotary", "position"));
    let rotation = Rotation {
        tokens: tokens as i64,
        seqlen: turn.seqlen.max(1) as i64,
        offset: turn.offset as i64,
        table_rows: cos.dims()[0] as i64,
        heads: heads as i32,
        head_dim: head_dim as i32,
        half: half as i32,
        inverse: i32::from(turn.inverse),
    };
    let arguments: [&dyn Argument; 8] =
        [&from, &c, &s, &places, &to, &rotation, &check.address, &check.number];
    // SAFETY: `x` and `y` are contiguous of one shape, tables have `half` columns, there is one
    // position a token, and the kernel checks positions against the tables.
    unsafe { kernel.launch(&Launch::linear(blocks, 256), &arguments) }.map_err(Into::into)
}

/// The kernels that are shipped.
pub(crate) fn variants() -> Vec<Variant> {
    let kinds = ["float", "bf16", "double"];
    let both = kinds.into_iter().flat_map(|kind| [defines(kind, false), defines(kind, true)]);
    both.map(|defines| Variant::new(SOURCE.clone(), defines)).collect()
}
