//! Activation functions and gated units, elementwise.
//!
//! | function | value |
//! | --- | --- |
//! | `gelu` | x Phi(x), Phi the normal distribution function (Hendrycks and Gimpel 2016) |
//! | `gelu_tanh` | x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, its usual approximation |
//! | `silu` | x / (1 + e^-x) |
//! | `relu` | max(x, 0) |
//!
//! The gated units (Shazeer 2020) are f(gate) * up: `swiglu` with f = silu, `geglu` with f = gelu. The
//! packed form reads one tensor `[.., 2 f]` whose rows hold the gate first and `up` second, as the
//! product with a fused weight gives it.
//!
//! f32 and bf16 are computed in f32 vectors, within 1e-6 relatively (plus the rounding of bf16); f64
//! runs the reference. The backward pass reads the inputs again and saves nothing else. A NaN stays
//! NaN; the limits at minus infinity are 0.

pub mod cpu;
pub(crate) mod cuda;
pub mod reference;

#[cfg(test)]
mod tests;

use crate::hook::{self, check_float, check_like, dense, empty_like, listed, match_real, required};
use danaus_tensor::registry::{Arg, Attr, Kind, OpSpec};
use danaus_tensor::{Backward, Error, Inputs, Meta, Op, Result, Saves, Tensor, apply};

/// Which function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x Phi(x).
    Gelu,
    /// The tanh approximation of `gelu`.
    GeluTanh,
    /// x times the logistic function.
    Silu,
    /// max(x, 0).
    Relu,
}

impl Activation {
    /// Every function.
    pub const ALL: [Activation; 4] =
        [Activation::Gelu, Activation::GeluTanh, Activation::Silu, Activation::Relu];

    /// The name used in configurations and operator attributes.
    pub fn name(self) -> &'static str {
        match self {
            Activation::Gelu => "gelu",
            Activation::GeluTanh => "gelu_tanh",
            Activation::Silu => "silu",
            Activation::Relu => "relu",
        }
    }

    /// The function of a name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|activation| activation.name() == name)
    }
}

/// `f(x)`, elementwise.
///
/// # Errors
/// When `x` is not f64, f32 or bf16.
pub fn activation(activation: Activation, x: &Tensor) -> Result<Tensor> {
    hook::first(apply(Plain(activation), &[Some(x)])?)
}

/// The exact `gelu`.
///
/// # Errors
/// As [`activation`].
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    activation(Activation::Gelu, x)
}

/// The tanh approximation of `gelu`.
///
/// # Errors
/// As [`activation`].
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    activation(Activation::GeluTanh, x)
}

/// x times its logistic function.
///
/// # Errors
/// As [`activation`].
pub fn silu(x: &Tensor) -> Result<Tensor> {
    activation(Activation::Silu, x)
}

/// max(x, 0).
///
/// # Errors
/// As [`activation`].
pub fn relu(x: &Tensor) -> Result<Tensor> {
    activation(Activation::Relu, x)
}

/// `f(gate) * up` of two tensors of one shape.
///
/// # Errors
/// When shapes or dtypes differ, or are not f64, f32 or bf16.
pub fn gated(activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    hook::first(apply(Gated(activation), &[Some(gate), Some(up)])?)
}

/// `f(gate) * up` of one tensor `[.., 2 f]` that holds gate and up side by side; returns `[.., f]`.
///
/// # Errors
/// When the last dimension is odd or the dtype is not f64, f32 or bf16.
pub fn gated_packed(activation: Activation, packed: &Tensor) -> Result<Tensor> {
    hook::first(apply(Packed(activation), &[Some(packed)])?)
}

/// `silu(gate) * up`.
///
/// # Errors
/// As [`gated`].
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gated(Activation::Silu, gate, up)
}

/// `gelu(gate) * up`.
///
/// # Errors
/// As [`gated`].
pub fn geglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gated(Activation::Gelu, gate, up)
}

struct Plain(Activation);

impl Op for Plain {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let x = required(self.name(), inputs, 0, "x")?;
        check_float(self.name(), "x", x)?;
        Ok(vec![Meta::new(x.shape(), x.dtype())])
    }

    fn saves(&self) -> Saves {
        Saves::inputs(&[0])
    }

    fn on_cuda(&self) -> bool {
        true
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let x = dense(required(self.name(), inputs, 0, "x")?)?;
        let y = &mut outputs[0];
        if x.device().is_cuda() {
            return cuda::forward(self.0, &x, y);
        }
        match_real!(self.name(), x.dtype(), T => {
            cpu::forward::<T>(self.0, x.as_slice()?, y.as_slice_mut()?);
        });
        Ok(())
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let Some(dy) = &ctx.grads[0] else { return Ok(vec![None]) };
        let (x, dy) = (dense(ctx.input(0)?)?, dense(dy)?);
        let mut dx = empty_like(&x)?;
        if x.device().is_cuda() {
            cuda::backward(self.0, &x, &dy, &mut dx)?;
            return Ok(vec![Some(dx)]);
        }
        match_real!(self.name(), x.dtype(), T => {
            cpu::backward::<T>(self.0, x.as_slice()?, dy.as_slice()?, dx.as_slice_mut()?);
        });
        Ok(vec![Some(dx)])
    }
}

struct Gated(Activation);

impl Op for Gated {
    fn name(&self) -> &'static str {
        gated_name(self.0)
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let gate = required(self.name(), inputs, 0, "gate")?;
        let up = required(self.name(), inputs, 1, "up")?;
        check_float(self.name(), "gate", gate)?;
        check_like(self.name(), ("up", up), ("gate", gate))?;
        Ok(vec![Meta::new(gate.shape(), gate.dtype())])
    }

    fn saves(&self) -> Saves {
        Saves::inputs(&[0, 1])
    }

    fn on_cuda(&self) -> bool {
        true
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let gate = dense(required(self.name(), inputs, 0, "gate")?)?;
        let up = dense(required(self.name(), inputs, 1, "up")?)?;
        let y = &mut outputs[0];
        if gate.device().is_cuda() {
            return cuda::gated_forward(self.0, &gate, &up, y);
        }
        match_real!(self.name(), gate.dtype(), T => {
            cpu::gated_forward::<T>(self.0, gate.as_slice()?, up.as_slice()?, y.as_slice_mut()?);
        });
        Ok(())
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let Some(dy) = &ctx.grads[0] else { return Ok(vec![None, None]) };
        let (gate, up, dy) = (dense(ctx.input(0)?)?, dense(ctx.input(1)?)?, dense(dy)?);
        if gate.device().is_cuda() {
            let mut grads = [empty_like(&gate)?, empty_like(&gate)?];
            cuda::gated_backward(self.0, [&gate, &up, &dy], &mut grads)?;
            return Ok(grads.map(Some).to_vec());
        }
        let (mut dgate, mut dup) = (empty_like(&gate)?, empty_like(&gate)?);
        match_real!(self.name(), gate.dtype(), T => {
            let inputs = (gate.as_slice()?, up.as_slice()?, dy.as_slice()?);
            let grads = (dgate.as_slice_mut()?, dup.as_slice_mut()?);
            cpu::gated_backward::<T>(self.0, inputs, grads);
        });
        Ok(vec![Some(dgate), Some(dup)])
    }
}

struct Packed(Activation);

impl Op for Packed {
    fn name(&self) -> &'static str {
        gated_name(self.0)
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let packed = required(self.name(), inputs, 0, "gate")?;
        check_float(self.name(), "gate", packed)?;
        let last = hook::last_dim(self.name(), "gate", packed)?;
        if last % 2 == 1 {
            let expected = "an even last dimension: gate and up side by side";
            return Err(Error::shape(self.name(), "gate", packed.shape(), expected));
        }
        let mut dims = packed.dims().to_vec();
        dims[packed.rank() - 1] = last / 2;
        Ok(vec![Meta::new(dims, packed.dtype())])
    }

    fn saves(&self) -> Saves {
        Saves::inputs(&[0])
    }

    fn on_cuda(&self) -> bool {
        true
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let packed = dense(required(self.name(), inputs, 0, "gate")?)?;
        let y = &mut outputs[0];
        if packed.device().is_cuda() {
            let [gate, up] = cuda::halves(&packed)?;
            return cuda::gated_forward(self.0, &gate, &up, y);
        }
        let width = y.dims().last().copied().unwrap_or(0);
        match_real!(self.name(), packed.dtype(), T => {
            cpu::packed_forward::<T>(self.0, width, packed.as_slice()?, y.as_slice_mut()?);
        });
        Ok(())
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let Some(dy) = &ctx.grads[0] else { return Ok(vec![None]) };
        let (x, dy) = (dense(ctx.input(0)?)?, dense(dy)?);
        if x.device().is_cuda() {
            let [gate, up] = cuda::halves(&x)?;
            let mut grads = [empty_like(&dy)?, empty_like(&dy)?];
            cuda::gated_backward(self.0, [&gate, &up, &dy], &mut grads)?;
            return Ok(vec![Some(Tensor::cat(&[&grads[0], &grads[1]], -1)?)]);
        }
        let mut dx = empty_like(&x)?;
        let width = dy.dims().last().copied().unwrap_or(0);
        match_real!(self.name(), x.dtype(), T => {
            let inputs = (x.as_slice()?, dy.as_slice()?);
            cpu::packed_backward::<T>(self.0, width, inputs, dx.as_slice_mut()?);
        });
        Ok(vec![Some(dx)])
    }
}

fn gated_name(activation: Activation) -> &'static str {
    match activation {
        Activation::Gelu => "geglu",
        Activation::GeluTanh => "geglu_tanh",
        Activation::Silu => "swiglu",
        Activation::Relu => "reglu",
    }
}

const X: &[Arg] = &[Arg::float("x", "...")];
const GATED: &[Arg] =
    &[Arg::float("gate", "... features, or ... 2*features"), Arg::float("up", "...").optional()];

fn call_gated(
    kind: Activation,
    args: &danaus_tensor::registry::Args,
) -> Result<Vec<Option<Tensor>>> {
    let gate = args.input("gate")?;
    listed(match args.optional("up") {
        Some(up) => gated(kind, gate, up)?,
        None => gated_packed(kind, gate)?,
    })
}

/// The operators of this folder for the operator runner.
pub const SPECS: &[OpSpec] = &[
    OpSpec {
        name: "gelu",
        summary: "x Phi(x), exact or by its tanh approximation",
        inputs: X,
        attributes: &[Attr::new("approximate", Kind::Text, "none", "none or tanh")],
        outputs: &["y"],
        call: |args| {
            let kind = match args.text("approximate") {
                None | Some("none") => Activation::Gelu,
                Some("tanh") => Activation::GeluTanh,
                Some(other) => {
                    return Err(Error::argument("gelu", "approximate", other, "none or tanh"));
                }
            };
            listed(activation(kind, args.input("x")?)?)
        },
    },
    OpSpec {
        name: "silu",
        summary: "x / (1 + e^-x)",
        inputs: X,
        attributes: &[],
        outputs: &["y"],
        call: |args| listed(silu(args.input("x")?)?),
    },
    OpSpec {
        name: "relu",
        summary: "max(x, 0)",
        inputs: X,
        attributes: &[],
        outputs: &["y"],
        call: |args| listed(relu(args.input("x")?)?),
    },
    OpSpec {
        name: "swiglu",
        summary: "silu(gate) * up; without up, gate holds both side by side",
        inputs: GATED,
        attributes: &[],
        outputs: &["y"],
        call: |args| call_gated(Activation::Silu, args),
    },
    OpSpec {
        name: "geglu",
        summary: "gelu(gate) * up; without up, gate holds both side by side",
        inputs: GATED,
        attributes: &[],
        outputs: &["y"],
        call: |args| call_gated(Activation::Gelu, args),
    },
];
