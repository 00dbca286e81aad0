//! Activations on a GPU: formulas, whose derivatives the expression language knows.

use super::Activation;
use danaus_tensor::ops::evaluate_into;
use danaus_tensor::ops::expr::{Expr, Unary};
use danaus_tensor::{Result, Tensor};

/// The function as a formula of an input.
pub(crate) fn formula(activation: Activation, x: &Expr) -> Expr {
    x.unary(match activation {
        Activation::Gelu => Unary::Gelu,
        Activation::GeluTanh => Unary::GeluTanh,
        Activation::Silu => Unary::Silu,
        Activation::Relu => Unary::Relu,
    })
}

/// `f(x)`.
pub(super) fn forward(activation: Activation, x: &Tensor, y: &mut Tensor) -> Result<()> {
    let formula = formula(activation, &Expr::input(0));
    evaluate_into(&[formula], &[x], std::slice::from_mut(y))
}

/// `f'(x) dy`.
pub(crate) fn backward(
    activation: Activation,
    x: &Tensor,
    dy: &Tensor,
    dx: &mut Tensor,
) -> Result<()> {
    let slope = formula(activation, &Expr::input(0)).derivative(0);
    evaluate_into(&[slope * Expr::input(1)], &[x, dy], std::slice::from_mut(dx))
}

/// `f(gate) up`.
pub(super) fn gated_forward(
    activation: Activation,
    gate: &Tensor,
    up: &Tensor,
    y: &mut Tensor,
) -> Result<()> {
    let formula = formula(activation, &Expr::input(0)) * Expr::input(1);
    evaluate_into(&[formula], &[gate, up], std::slice::from_mut(y))
}

/// The gradients of gate and up, in one pass.
pub(super) fn gated_backward(
    activation: Activation,
    [gate, up, dy]: [&Tensor; 3],
    grads: &mut [Tensor],
) -> Result<()> {
    let (value, dy_at) = (formula(activation, &Expr::input(0)), Expr::input(2));
    let dgate = value.derivative(0) * Expr::input(1) * &dy_at;
    evaluate_into(&[dgate, value * &dy_at], &[gate, up, dy], grads)
}

/// The two halves of the last dimension, as views.
pub(super) fn halves(packed: &Tensor) -> Result<[Tensor; 2]> {
    let width = packed.dims().last().copied().unwrap_or(0) / 2;
    let packed = packed.detach();
    Ok([packed.narrow(-1, 0, width)?, packed.narrow(-1, width, width)?])
}
