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
pub mod reference;

#[cfg(test)]
mod tests;

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
