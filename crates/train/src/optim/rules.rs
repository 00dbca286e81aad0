//! The update rules on slices. Written as plain loops that the compiler turns into vectors of the
//! instruction set in force; no fused multiply-add, so that all sets give the same bits.

use super::OptimizerConfig;
use super::config::{AdamW, Lion, Sgd};
use danaus_kernel::ops::optimizer::{Kind, Step};
use danaus_runtime::simd::{Kernel, Simd};
use num_traits::Float;

/// Number types of parameters.
pub trait Real: Float + danaus_tensor::Element + Default + Send + Sync {
    /// Rounds a setting to this type.
    fn of(value: f64) -> Self;
    /// Widens.
    fn wide(self) -> f64;
}

impl Real for f32 {
    fn of(value: f64) -> Self {
        value as f32
    }
    fn wide(self) -> f64 {
        f64::from(self)
    }
}

impl Real for f64 {
    fn of(value: f64) -> Self {
        value
    }
    fn wide(self) -> f64 {
        self
    }
}

/// A piece of one parameter with its gradient and state. Slots that the rule lacks are empty.
pub struct Piece<'a, R> {
    pub value: &'a mut [R],
    pub grad: &'a [R],
    pub first: &'a mut [R],
    pub second: &'a mut [R],
    pub decays: bool,
}

/// The numbers of update `t` (from 1) for the parameters that go through the fused pass.
pub fn step(config: &OptimizerConfig, t: u64, grad_scale: f64, lr_factor: f64) -> Step {
    let (kind, lr, weight_decay) = match config {
        OptimizerConfig::AdamW(adamw) => adam(adamw, t),
        OptimizerConfig::Muon(muon) => adam(&muon.rest, t),
        OptimizerConfig::Lion(Lion { lr, beta1, beta2, weight_decay }) => {
            (Kind::Lion { beta1: *beta1, beta2: *beta2 }, *lr, *weight_decay)
        }
        OptimizerConfig::Sgd(Sgd { lr, momentum, nesterov, weight_decay }) => {
            (Kind::Sgd { momentum: *momentum, nesterov: *nesterov }, *lr, *weight_decay)
        }
    };
    let lr = lr * lr_factor;
    Step { kind, lr, shrink: 1.0 - lr * weight_decay, grad_scale }
}

fn adam(config: &AdamW, t: u64) -> (Kind, f64, f64) {
    // Beyond a million updates both corrections are 1 to the last bit.
    let t = t.min(1_000_000) as i32;
    let kind = Kind::AdamW {
        beta1: config.beta1,
        beta2: config.beta2,
        eps: config.eps,
        correction1: 1.0 - config.beta1.powi(t),
        correction2: 1.0 - config.beta2.powi(t),
    };
    (kind, config.lr, config.weight_decay)
}

/// One rule on one piece, as a SIMD kernel.
pub struct Update<'a, 'b, R> {
    pub rule: &'a Step,
    pub piece: &'a mut Piece<'b, R>,
}

impl<R: Real> Kernel for Update<'_, '_, R> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self { rule, piece } = self;
        let shrink = R::of(if piece.decays { rule.shrink } else { 1.0 });
        let (scale, lr) = (R::of(rule.grad_scale), R::of(rule.lr));
        let len = piece.value.len();
        let value = &mut piece.value[..len];
        let grad = &piece.grad[..len];
        match rule.kind {
            Kind::AdamW { beta1, beta2, eps, correction1, correction2 } => {
                let (first, second) = (&mut piece.first[..len], &mut piece.second[..len]);
                let (rest1, beta2, rest2) = (R::of(1.0 - beta1), R::of(beta2), R::of(1.0 - beta2));
                let step = R::of(rule.lr / correction1);
                let (root2, eps) = (R::of(1.0 / correction2.sqrt()), R::of(eps));
                for i in 0..len {
                    let g = grad[i] * scale;
                    first[i] = first[i] + rest1 * (g - first[i]);
                    second[i] = beta2 * second[i] + rest2 * g * g;
                    let size = second[i].sqrt() * root2 + eps;
                    value[i] = value[i] * shrink - step * first[i] / size;
                }
            }
            Kind::Lion { beta1, beta2 } => {
                let first = &mut piece.first[..len];
                let (beta1, rest1) = (R::of(beta1), R::of(1.0 - beta1));
                let (beta2, rest2) = (R::of(beta2), R::of(1.0 - beta2));
                for i in 0..len {
                    let g = grad[i] * scale;
                    let direction = beta1 * first[i] + rest1 * g;
                    // The sign of zero is zero.
                    let up = if direction > R::zero() { lr } else { R::zero() };
                    let down = if direction < R::zero() { lr } else { R::zero() };
                    value[i] = value[i] * shrink - (up - down);
                    first[i] = beta2 * first[i] + rest2 * g;
                }
            }
            Kind::Sgd { momentum: 0.0, .. } => {
                for i in 0..len {
                    value[i] = value[i] * shrink - lr * (grad[i] * scale);
                }
            }
            Kind::Sgd { momentum, nesterov } => {
                let first = &mut piece.first[..len];
                let momentum = R::of(momentum);
                let (of_grad, of_first) =
                    if nesterov { (R::one(), momentum) } else { (R::zero(), R::one()) };
                for i in 0..len {
                    let g = grad[i] * scale;
                    first[i] = momentum * first[i] + g;
                    value[i] = value[i] * shrink - lr * (of_grad * g + of_first * first[i]);
                }
            }
        }
    }
}

/// Sum of squares of a slice in f64, in a fixed order.
pub struct SquareSum<'a, R>(pub &'a [R]);

impl<R: Real> Kernel for SquareSum<'_, R> {
    type Out = f64;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> f64 {
        const LANES: usize = 32;
        let mut lanes = [0.0f64; LANES];
        let mut rows = self.0.chunks_exact(LANES);
        for row in &mut rows {
            for lane in 0..LANES {
                let element = row[lane].wide();
                lanes[lane] += element * element;
            }
        }
        let rest: f64 = rows.remainder().iter().map(|element| element.wide().powi(2)).sum();
        lanes.iter().sum::<f64>() + rest
    }
}
