//! From tensors to a checked problem, and from there to the slices that either path takes.

use super::{Shape, cpu, reference};
use crate::ops::ssd::arrays::{
    Held, Packing, check_array, check_dtype, check_shape, plain, plain_optional, required, slice,
    wide,
};
use danaus_tensor::{DType, Error, Inputs, Result, Tensor};

pub(super) const OP: &str = "selective_scan";

/// Positions of the inputs. Arrays are channel-last here; B and C `[batch, seqlen, groups, d_state]` or
/// `[channels, d_state]`.
pub(super) const U: usize = 0;
pub(super) const DELTA: usize = 1;
pub(super) const A: usize = 2;
pub(super) const B: usize = 3;
pub(super) const C: usize = 4;
pub(super) const D: usize = 5;
pub(super) const Z: usize = 6;
pub(super) const DELTA_BIAS: usize = 7;
pub(super) const INITIAL: usize = 8;
pub(super) const SEQ_IDX: usize = 9;
pub(super) const CU_SEQLENS: usize = 10;
pub(super) const NAMES: [&str; 11] = [
    "u",
    "delta",
    "A",
    "B",
    "C",
    "D",
    "z",
    "delta_bias",
    "initial_states",
    "seq_idx",
    "cu_seqlens",
];

/// Largest state of a channel. The tiles of the backward pass are `d_state` vectors a token.
pub(super) const MAX_D_STATE: usize = 1024;

pub(super) fn at<'a>(inputs: Inputs<'a>, index: usize) -> Result<&'a Tensor> {
    required(OP, inputs, &NAMES, index)
}

fn sizes(inputs: Inputs) -> Result<(Shape, usize, usize)> {
    let (u, a) = (at(inputs, U)?, at(inputs, A)?);
    check_array(OP, "u", u)?;
    let &[batch, seqlen, channels] = u.dims() else {
        return Err(Error::shape(OP, "u", u.shape(), "[batch, seqlen, channels]"));
    };
    let d_state = a.dims().last().copied().unwrap_or(0);
    check_shape(OP, "A", a, &[channels, d_state], "[channels, d_state]")?;
    if channels == 0 || d_state == 0 || d_state > MAX_D_STATE {
        let expected = format!("at least one channel and d_state from 1 to {MAX_D_STATE}");
        return Err(Error::shape(OP, "A", a.shape(), expected));
    }
    let mut groups = 1;
    for index in [B, C] {
        let map = at(inputs, index)?;
        match map.dims() {
            [_, _] => {
                check_shape(OP, NAMES[index], map, &[channels, d_state], "[channels, d_state]")?
            }
            &[_, _, given, _] => {
                if given == 0 || !channels.is_multiple_of(given) || (groups > 1 && given != groups)
                {
                    let expected =
                        format!("groups that divide the {channels} channels, alike in B and C");
                    return Err(Error::shape(OP, NAMES[index], map.shape(), expected));
                }
                groups = given;
                let expected = [batch, seqlen, groups, d_state];
                check_shape(OP, NAMES[index], map, &expected, "[batch, seqlen, groups, d_state]")?;
            }
            _ => {
                let expected = "[batch, seqlen, groups, d_state] or [channels, d_state]";
                return Err(Error::shape(OP, NAMES[index], map.shape(), expected));
            }
        }
    }
    Ok((Shape { tokens: batch * seqlen, channels, groups, d_state }, batch, seqlen))
}

/// Checks every input; returns the sizes and the packing.
pub(super) fn validate(inputs: Inputs) -> Result<(Shape, Packing)> {
    let (shape, batch, seqlen) = sizes(inputs)?;
    let u = at(inputs, U)?;
    at(inputs, DELTA)?;
    let (narrow, wide) = (u.dtype(), wide(u.dtype()));
    for index in [DELTA, Z] {
        if let Some(tensor) = inputs[index] {
            check_dtype(OP, NAMES[index], tensor, narrow)?;
            check_shape(OP, NAMES[index], tensor, u.dims(), "the shape of u")?;
        }
    }
    for index in [B, C] {
        let map = at(inputs, index)?;
        check_dtype(OP, NAMES[index], map, if map.rank() == 2 { wide } else { narrow })?;
    }
    for index in [A, D, DELTA_BIAS, INITIAL] {
        if let Some(tensor) = inputs[index] {
            check_dtype(OP, NAMES[index], tensor, wide)?;
        }
    }
    for index in [D, DELTA_BIAS] {
        if let Some(tensor) = inputs[index] {
            check_shape(OP, NAMES[index], tensor, &[shape.channels], "[channels]")?;
        }
    }
    let packing = Packing::new(OP, (batch, seqlen), inputs[SEQ_IDX], inputs[CU_SEQLENS])?;
    if let Some(initial) = inputs[INITIAL] {
        let expected = [packing.states, shape.channels, shape.d_state];
        let meaning = "[batch or sequences, channels, d_state]";
        check_shape(OP, "initial_states", initial, &expected, meaning)?;
    }
    let a = plain(at(inputs, A)?)?;
    let bad = match a.dtype() {
        // Looking at the numbers would wait for the GPU.
        _ if a.device().is_cuda() => false,
        DType::F64 => {
            a.as_slice()?.iter().fold(false, |bad, &v: &f64| bad | v.is_nan() | (v > 0.0))
        }
        _ => a.as_slice()?.iter().fold(false, |bad, &v: &f32| bad | v.is_nan() | (v > 0.0)),
    };
    if bad {
        let valid = "at most 0 (A = -exp(A_log)): positive values let the state explode";
        return Err(Error::argument(OP, "A", "positive or NaN", valid));
    }
    Ok((shape, packing))
}

/// What is said when a NaN was read from `delta`.
pub(super) fn nan_in_delta() -> Error {
    Error::argument(OP, "delta", "NaN somewhere", "numbers")
}

/// Everything a pass needs, off the tape.
pub(super) struct Problem {
    pub(super) shape: Shape,
    pub(super) packing: Packing,
    pub(super) delta_softplus: bool,
    pub(super) a: Tensor,
    pub(super) d: Option<Tensor>,
    pub(super) delta_bias: Option<Tensor>,
    pub(super) initial: Option<Tensor>,
}

impl Problem {
    pub(super) fn new(inputs: Inputs, delta_softplus: bool) -> Result<Self> {
        let (shape, packing) = validate(inputs)?;
        Ok(Self {
            shape,
            packing,
            delta_softplus,
            a: plain(at(inputs, A)?)?,
            d: plain_optional(inputs[D])?,
            delta_bias: plain_optional(inputs[DELTA_BIAS])?,
            initial: plain_optional(inputs[INITIAL])?,
        })
    }
}

/// The arrays of the f64 path.
pub(super) struct Plain {
    u: Tensor,
    delta: Tensor,
    b: Tensor,
    c: Tensor,
    z: Option<Tensor>,
}

impl Plain {
    pub(super) fn new(inputs: Inputs) -> Result<Self> {
        let plain_at = |index| at(inputs, index).and_then(plain);
        let (u, delta) = (plain_at(U)?, plain_at(DELTA)?);
        if delta.as_slice::<f64>()?.iter().any(|value| value.is_nan()) {
            return Err(nan_in_delta());
        }
        Ok(Self { u, delta, b: plain_at(B)?, c: plain_at(C)?, z: plain_optional(inputs[Z])? })
    }

    pub(super) fn scan<'a>(&'a self, problem: &'a Problem) -> Result<reference::Scan<'a, f64>> {
        let map = |tensor: &'a Tensor| -> Result<reference::Map<'a, f64>> {
            let values = tensor.as_slice()?;
            Ok(match tensor.rank() {
                2 => reference::Map::Constant(values),
                _ => reference::Map::Token(values),
            })
        };
        Ok(reference::Scan {
            shape: problem.shape,
            runs: &problem.packing.runs,
            u: self.u.as_slice()?,
            delta: self.delta.as_slice()?,
            delta_softplus: problem.delta_softplus,
            delta_bias: slice(&problem.delta_bias)?,
            a: problem.a.as_slice()?,
            b: map(&self.b)?,
            c: map(&self.c)?,
            d: slice(&problem.d)?,
            z: slice(&self.z)?,
            initial_states: slice(&problem.initial)?,
            states: problem.packing.states,
        })
    }
}

/// B or C for the vectorised path.
pub(super) enum HeldMap {
    Token(Held),
    Constant(Tensor),
}

/// The arrays of the f32 and bf16 path.
pub(super) struct Wide {
    pub(super) u: Held,
    pub(super) delta: Held,
    pub(super) b: HeldMap,
    pub(super) c: HeldMap,
    pub(super) z: Option<Held>,
}

impl Wide {
    pub(super) fn new(inputs: Inputs) -> Result<Self> {
        let map = |index| -> Result<HeldMap> {
            let tensor = at(inputs, index)?;
            Ok(match tensor.rank() {
                2 => HeldMap::Constant(plain(tensor)?),
                _ => HeldMap::Token(Held::new(tensor, 2)?),
            })
        };
        Ok(Self {
            u: Held::new(at(inputs, U)?, 1)?,
            delta: Held::new(at(inputs, DELTA)?, 1)?,
            b: map(B)?,
            c: map(C)?,
            z: inputs[Z].map(|z| Held::new(z, 1)).transpose()?,
        })
    }
}

impl HeldMap {
    fn map(&self) -> Result<cpu::Map<'_>> {
        Ok(match self {
            HeldMap::Token(held) => cpu::Map::Token(held.rows()?),
            HeldMap::Constant(tensor) => cpu::Map::Constant(tensor.as_slice()?),
        })
    }
}

impl Wide {
    pub(super) fn scan<'a>(&'a self, problem: &'a Problem) -> Result<cpu::Scan<'a>> {
        Ok(cpu::Scan {
            shape: problem.shape,
            runs: &problem.packing.runs,
            u: self.u.rows()?,
            delta: self.delta.rows()?,
            delta_softplus: problem.delta_softplus,
            delta_bias: slice(&problem.delta_bias)?,
            a: problem.a.as_slice()?,
            b: self.b.map()?,
            c: self.c.map()?,
            d: slice(&problem.d)?,
            z: self.z.as_ref().map(Held::rows).transpose()?,
            initial_states: slice(&problem.initial)?,
        })
    }
}
