//! Rotary position embedding (Su et al. 2021, RoFormer).
//!
//! `x` is `[tokens, heads, head_dim]` (batch and sequence are flattened into tokens). The first
//! `rotary_dim` entries of each head are rotated pairwise by the angle `position * theta^(-2 i /
//! rotary_dim)` of pair i; the rest pass through. Pair i is `(x[i], x[i + rotary_dim / 2])` in the
//! half-split layout (GPT-NeoX, Llama) and `(x[2 i], x[2 i + 1])` in the interleaved one (GPT-J):
//!
//! `(a, b) -> (a cos - b sin, a sin + b cos)`.
//!
//! The tables `cos` and `sin` are `[positions, rotary_dim / 2]`, f32 whatever the type of `x`: a bf16
//! angle is wrong by whole turns at long range. The gradient is the inverse rotation. Frequency
//! scaling (linear, Llama 3) changes the tables alone: [`tables_from`] takes any frequencies.

pub mod cpu;
pub(crate) mod cuda;
pub mod reference;

#[cfg(test)]
mod tests;

use crate::hook::{
    self, check_float, check_shape, dense, dense_as, empty_like, indices, integers, listed,
    match_float, required,
};
use crate::lists::list;
use danaus_tensor::registry::{Arg, Attr, Kind, OpSpec};
use danaus_tensor::{Backward, Device, Error, Inputs, Meta, Op, Result, Saves, Tensor, apply};

/// Shape and layout of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Heads of a token.
    pub heads: usize,
    /// Entries of a head.
    pub head_dim: usize,
    /// Entries that are rotated: even, at most `head_dim`.
    pub rotary_dim: usize,
    /// Pairs of neighbours instead of halves.
    pub interleaved: bool,
}

/// The tables of positions `0..positions`: `(cos, sin)`, each `[positions, rotary_dim / 2]`.
///
/// Angles are computed in f64: in f32 they would be off by 1e-3 at position 16384.
///
/// # Errors
/// When `rotary_dim` is odd, `theta` is not above 0, or memory is missing.
pub fn tables(positions: usize, rotary_dim: usize, theta: f64) -> Result<(Tensor, Tensor)> {
    if rotary_dim % 2 == 1 {
        return Err(Error::argument("rotary", "rotary_dim", rotary_dim, "an even number"));
    }
    if theta.is_nan() || theta <= 0.0 {
        return Err(Error::argument("rotary", "theta", theta, "above 0, usually 10000"));
    }
    tables_from(positions, &frequencies(rotary_dim, theta))
}

/// The tables of other frequencies (radians per position, one per pair), likewise in f64.
///
/// # Errors
/// When memory is missing.
pub fn tables_from(positions: usize, frequencies: &[f64]) -> Result<(Tensor, Tensor)> {
    let (cos, sin) = angle_tables(positions, frequencies);
    let table = |values| Tensor::from_vec(values, [positions, frequencies.len()], &Device::Cpu);
    Ok((table(cos)?, table(sin)?))
}

fn frequencies(rotary_dim: usize, theta: f64) -> Vec<f64> {
    (0..rotary_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / rotary_dim as f64)).collect()
}

fn angle_tables(positions: usize, frequencies: &[f64]) -> (Vec<f32>, Vec<f32>) {
    let angles = (0..positions).flat_map(|at| frequencies.iter().map(move |f| at as f64 * f));
    angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip()
}

/// Where the tokens of `x` stand.
#[derive(Clone, Copy)]
pub enum Positions<'a> {
    /// Token i of every sequence stands at this offset plus i.
    From(usize),
    /// One position a token: an i32 or i64 tensor with the leading dimensions of `x`.
    At(&'a Tensor),
    /// A packed batch `[tokens, heads, head_dim]`: sequence b holds the tokens
    /// `cu_seqlens[b]..cu_seqlens[b + 1]` (i32 or i64) and counts from 0.
    Packed(&'a Tensor),
}

/// Rotates `x`, `[batch, seqlen, heads, head_dim]` or `[tokens, heads, head_dim]`, by the tables
/// `cos` and `sin`, `[positions, rotary_dim / 2]`. Gradients flow to `x` alone.
///
/// # Errors
/// When shapes or dtypes do not fit, or a position lies beyond the tables.
pub fn rotary(
    x: &Tensor,
    (cos, sin): (&Tensor, &Tensor),
    positions: Positions,
    interleaved: bool,
) -> Result<Tensor> {
    let (offset, at, cu_seqlens) = match positions {
        Positions::From(offset) => (offset, None, None),
        Positions::At(at) => (0, Some(at), None),
        Positions::Packed(cu_seqlens) => (0, None, Some(cu_seqlens)),
    };
    let op = Rotary { offset, interleaved };
    hook::first(apply(op, &[Some(x), Some(cos), Some(sin), at, cu_seqlens])?)
}

/// Inputs: x, cos, sin, positions, cu_seqlens.
struct Rotary {
    offset: usize,
    interleaved: bool,
}

impl Rotary {
    fn layout(&self, x: &Tensor, cos: &Tensor) -> Layout {
        let dims = x.dims();
        Layout {
            heads: dims[x.rank() - 2],
            head_dim: dims[x.rank() - 1],
            rotary_dim: 2 * cos.dims()[1],
            interleaved: self.interleaved,
        }
    }

    /// The position of every token of a tensor with the given dimensions, all below `rows`.
    fn positions(
        &self,
        dims: &[usize],
        rows: usize,
        at: Option<&Tensor>,
        cu_seqlens: Option<&Tensor>,
    ) -> Result<Vec<u32>> {
        let op = self.name();
        let tokens = &dims[..dims.len() - 2];
        if let Some(at) = at {
            check_shape(op, "positions", at, tokens)?;
            return indices(op, "positions", at, (rows, "rows of cos"));
        }
        let packed = match cu_seqlens {
            Some(ends) => packed_positions(op, dims, &integers(op, "cu_seqlens", ends)?)?,
            None => {
                let seqlen = tokens[tokens.len() - 1];
                let batch: usize = tokens[..tokens.len() - 1].iter().product();
                (0..batch).flat_map(|_| 0..seqlen).map(|i| self.offset + i).collect()
            }
        };
        if let Some(beyond) = packed.iter().find(|&&position| position >= rows) {
            let valid = format!("below the rows of cos, {rows}: make longer tables");
            return Err(Error::argument(op, "position", beyond, valid));
        }
        Ok(packed.into_iter().map(|position| position as u32).collect())
    }

    fn rotate(
        &self,
        x: &Tensor,
        [cos, sin]: [&Tensor; 2],
        at: &Turn,
        y: &mut Tensor,
    ) -> Result<()> {
        let layout = self.layout(x, cos);
        let working = x.dtype().accumulator();
        let (cos, sin) = (dense_as(cos, working)?, dense_as(sin, working)?);
        let Turn { positions, inverse } = at;
        match_float!(self.name(), x.dtype(), T => {
            let (cos, sin) = (cos.as_slice()?, sin.as_slice()?);
            let rotation = cpu::Rotation { layout, cos, sin, positions, inverse: *inverse };
            cpu::rotate::<T>(&rotation, x.as_slice()?, y.as_slice_mut()?);
        }, f64 => {
            let tables = (cos.as_slice::<f64>()?, sin.as_slice()?);
            let (x, y) = (x.as_slice()?, y.as_slice_mut()?);
            reference::rotate(&layout, tables, positions, *inverse, x, y);
        });
        Ok(())
    }
}

impl Rotary {
    fn rotate_cuda(
        &self,
        x: &Tensor,
        [cos, sin]: [&Tensor; 2],
        (at, ends): (Option<&Tensor>, Option<&Tensor>),
        inverse: bool,
        y: &mut Tensor,
    ) -> Result<()> {
        let working = x.dtype().accumulator();
        let (cos, sin) = (dense_as(cos, working)?, dense_as(sin, working)?);
        // The ends of sequences are few; positions follow from them on the host.
        let packed = match ends {
            Some(_) => {
                let positions = self.positions(x.dims(), cos.dims()[0], None, ends)?;
                let positions: Vec<i64> = positions.into_iter().map(i64::from).collect();
                Some(list(&positions, &x.device())?)
            }
            None => None,
        };
        let turn = cuda::Turn {
            positions: packed.as_ref().or(at),
            offset: self.offset,
            seqlen: x.dims()[x.rank() - 3],
            inverse,
        };
        cuda::rotate(x, &self.layout(x, &cos), [&cos, &sin], &turn, y)
    }
}

/// Positions and direction.
struct Turn {
    positions: Vec<u32>,
    inverse: bool,
}

fn packed_positions(op: &'static str, dims: &[usize], ends: &[i64]) -> Result<Vec<usize>> {
    let tokens = dims[0];
    let rising = ends.windows(2).all(|pair| pair[0] <= pair[1]);
    let complete = ends.first() == Some(&0) && ends.last() == Some(&(tokens as i64));
    if dims.len() != 3 || !rising || !complete {
        let valid = format!("rising from 0 to tokens = {tokens}, for x [tokens, heads, head_dim]");
        return Err(Error::argument(op, "cu_seqlens", format!("{ends:?}"), valid));
    }
    Ok(ends.windows(2).flat_map(|pair| 0..(pair[1] - pair[0]) as usize).collect())
}

impl Op for Rotary {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let op = self.name();
        let x = required(op, inputs, 0, "x")?;
        let (cos, sin) = (required(op, inputs, 1, "cos")?, required(op, inputs, 2, "sin")?);
        for (arg, tensor) in [("x", x), ("cos", cos), ("sin", sin)] {
            check_float(op, arg, tensor)?;
        }
        if !(3..=4).contains(&x.rank()) {
            let expected = "[batch, seqlen, heads, head_dim] or [tokens, heads, head_dim]";
            return Err(Error::shape(op, "x", x.shape(), expected));
        }
        let head_dim = x.dims()[x.rank() - 1];
        if cos.rank() != 2 || 2 * cos.dims()[1] > head_dim {
            let expected = format!("[positions, rotary_dim / 2], rotary_dim <= {head_dim}");
            return Err(Error::shape(op, "cos", cos.shape(), expected));
        }
        check_shape(op, "sin", sin, cos.dims())?;
        let (at, ends) = (hook::given(inputs, 3), hook::given(inputs, 4));
        match at.filter(|at| at.device().is_cuda()) {
            // Values that lie on a GPU are checked there.
            Some(at) => {
                check_shape(op, "positions", at, &x.dims()[..x.rank() - 2])?;
                hook::check_index(op, "positions", at)?;
            }
            None => _ = self.positions(x.dims(), cos.dims()[0], at, ends)?,
        }
        Ok(vec![Meta::new(x.shape(), x.dtype())])
    }

    fn saves(&self) -> Saves {
        Saves::inputs(&[1, 2, 3, 4])
    }

    fn host_inputs(&self) -> &'static [usize] {
        &[4]
    }

    fn on_cuda(&self) -> bool {
        true
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let x = dense(required(self.name(), inputs, 0, "x")?)?;
        let cos = required(self.name(), inputs, 1, "cos")?;
        let sin = required(self.name(), inputs, 2, "sin")?;
        let (at, ends) = (hook::given(inputs, 3), hook::given(inputs, 4));
        if x.device().is_cuda() {
            return self.rotate_cuda(&x, [cos, sin], (at, ends), false, &mut outputs[0]);
        }
        let positions = self.positions(x.dims(), cos.dims()[0], at, ends)?;
        self.rotate(&x, [cos, sin], &Turn { positions, inverse: false }, &mut outputs[0])
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let none = || vec![None; ctx.inputs.len()];
        let Some(dy) = &ctx.grads[0] else { return Ok(none()) };
        let (dy, cos, sin) = (dense(dy)?, ctx.input(1)?, ctx.input(2)?);
        let (at, ends) = (ctx.inputs[3].as_ref(), ctx.inputs[4].as_ref());
        let mut dx = empty_like(&dy)?;
        if dy.device().is_cuda() {
            self.rotate_cuda(&dy, [cos, sin], (at, ends), true, &mut dx)?;
        } else {
            let positions = self.positions(dy.dims(), cos.dims()[0], at, ends)?;
            self.rotate(&dy, [cos, sin], &Turn { positions, inverse: true }, &mut dx)?;
        }
        let mut grads = none();
        grads[0] = Some(dx);
        Ok(grads)
    }
}

/// The operator of this folder for the operator runner.
pub const SPECS: &[OpSpec] = &[OpSpec {
    name: "rotary",
    summary: "rotary position embedding of the first 2 * cos.cols entries of each head",
    inputs: &[
        Arg::float("x", "batch seqlen heads head_dim, or tokens heads head_dim"),
        Arg::float("cos", "positions rotary_dim/2"),
        Arg::float("sin", "positions rotary_dim/2"),
        Arg::int("positions", "batch seqlen").optional(),
        Arg::int("cu_seqlens", "batch+1").optional(),
    ],
    attributes: &[
        Attr::new("interleaved", Kind::Bool, "false", "pairs of neighbours instead of halves"),
        Attr::new("seqlen_offset", Kind::Int, "0", "position of the first token"),
    ],
    outputs: &["y"],
    call: |args| {
        let given = args.int("seqlen_offset")?.unwrap_or(0);
        let offset = usize::try_from(given)
            .map_err(|_| Error::argument("rotary", "seqlen_offset", given, "0 or more"))?;
        let positions = match (args.optional("positions"), args.optional("cu_seqlens")) {
            (None, None) => Positions::From(offset),
            (Some(at), None) if offset == 0 => Positions::At(at),
            (None, Some(ends)) if offset == 0 => Positions::Packed(ends),
            _ => {
                let valid = "one of positions, cu_seqlens and seqlen_offset";
                return Err(Error::argument("rotary", "positions", "given several times", valid));
            }
        };
        let tables = (args.input("cos")?, args.input("sin")?);
        listed(rotary(args.input("x")?, tables, positions, args.bool("interleaved")?)?)
    },
}];
