//! Values and slopes of the activations, plainly; the oracle and the f64 path.

use super::Activation;
use num_traits::{Float, FloatConst};

fn number<T: Float>(value: f64) -> T {
    // Every float type holds (a rounding of) every f64 constant below.
    T::from(value).unwrap_or_else(T::nan)
}

/// The error function, to rounding.
///
/// Below 3 the series 2 / sqrt(pi) e^(-x^2) sum 2^n x^(2n+1) / (2n+1)!!, whose terms are all positive,
/// above it the continued fraction of the complement.
pub fn erf<T: Float + FloatConst>(x: T) -> T {
    let a = x.abs();
    if a.is_nan() {
        return a;
    }
    if a > number(3.0) {
        return (T::one() - erfc_far(a)) * x.signum();
    }
    let mut term = a;
    let mut sum = a;
    let mut n = T::one();
    while term > sum * T::epsilon() * number(0.1) {
        term = term * number::<T>(2.0) * a * a / (number::<T>(2.0) * n + T::one());
        sum = sum + term;
        n = n + T::one();
    }
    T::FRAC_2_SQRT_PI() * (-a * a).exp() * sum * x.signum()
}

/// The complementary error function of `a > 3`, by its continued fraction from the far end.
fn erfc_far<T: Float + FloatConst>(a: T) -> T {
    if a > number(30.0) {
        return T::zero();
    }
    let mut tail = a;
    for n in (1..=60).rev() {
        tail = a + number::<T>(f64::from(n) / 2.0) / tail;
    }
    T::FRAC_2_SQRT_PI() * number(0.5) * (-a * a).exp() / tail
}

/// The normal distribution function.
fn normal<T: Float + FloatConst>(x: T) -> T {
    let z = x * T::FRAC_1_SQRT_2();
    let half: T = number(0.5);
    if z < number(-3.0) { half * erfc_far(-z) } else { half * (T::one() + erf(z)) }
}

fn logistic<T: Float>(x: T) -> T {
    T::one() / (T::one() + (-x).exp())
}

/// x times a factor that vanishes at minus infinity.
fn weighted<T: Float>(x: T, factor: T) -> T {
    if x == T::neg_infinity() { T::zero() } else { x * factor }
}

/// Value and derivative at `x`.
pub fn value_and_slope<T: Float + FloatConst>(activation: Activation, x: T) -> (T, T) {
    match activation {
        Activation::Gelu => {
            let below = normal(x);
            let density = T::FRAC_2_SQRT_PI() * T::FRAC_1_SQRT_2() * number(0.5);
            let density = density * (-x * x * number(0.5)).exp();
            (weighted(x, below), below + weighted(x, density))
        }
        Activation::GeluTanh => {
            // (1 + tanh(u)) / 2 is the logistic function of 2u.
            let scale = number::<T>(2.0) * (T::FRAC_2_PI()).sqrt();
            let cubic: T = number(0.044715);
            let gate = logistic(scale * (x + cubic * x * x * x));
            let inner = scale * (T::one() + number::<T>(3.0) * cubic * x * x);
            (weighted(x, gate), gate + weighted(x, gate * (T::one() - gate) * inner))
        }
        Activation::Silu => {
            let gate = logistic(x);
            (weighted(x, gate), gate + weighted(x, gate * (T::one() - gate)))
        }
        Activation::Relu => {
            let slope = if x > T::zero() { T::one() } else { T::zero() };
            (if x.is_nan() { x } else { x.max(T::zero()) }, slope)
        }
    }
}
