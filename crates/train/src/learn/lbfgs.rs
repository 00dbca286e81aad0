//! L-BFGS: a quasi-Newton method for smooth functions of few thousand numbers.
//!
//! The direction comes from the last `MEMORY` differences of points and gradients (two-loop recursion,
//! Nocedal, 1980); the step is halved until the function falls enough (Armijo), and a difference without
//! positive curvature is left out. Everything is f64: it polishes what a first-order method found.

use crate::Result;
use std::collections::VecDeque;

/// Differences that are kept.
const MEMORY: usize = 20;
/// Part of the expected decrease that a step must bring.
const ARMIJO: f64 = 1e-4;
/// Halvings of a step before the point is taken as the end.
const HALVINGS: usize = 40;

/// Where a run ended.
#[derive(Clone, Debug)]
pub struct Minimum {
    /// The point.
    pub point: Vec<f64>,
    /// The function there.
    pub value: f64,
    /// Steps taken.
    pub steps: usize,
}

/// One difference of points and gradients.
struct Pair {
    s: Vec<f64>,
    y: Vec<f64>,
    /// `1 / (s . y)`.
    rho: f64,
}

/// Minimises a function that gives its value and gradient, from `start`, for at most `steps` steps; ends
/// earlier below `goal`, or where no step along the direction lowers it.
///
/// # Errors
/// Whatever the function reports.
pub fn minimise(
    start: Vec<f64>,
    (steps, goal): (usize, f64),
    mut function: impl FnMut(&[f64]) -> Result<(f64, Vec<f64>)>,
) -> Result<Minimum> {
    let (mut value, mut gradient) = function(&start)?;
    let (mut point, mut pairs) = (start, VecDeque::new());
    for step in 0..steps {
        if value <= goal {
            return Ok(Minimum { point, value, steps: step });
        }
        let mut direction = descent(&pairs, &gradient);
        let mut slope = dot(&direction, &gradient);
        if slope >= 0.0 {
            // The memory has gone stale: begin again from steepest descent.
            pairs.clear();
            direction = descent(&pairs, &gradient);
            slope = dot(&direction, &gradient);
        }
        let (mut length, mut found) = (1.0, None);
        for _ in 0..HALVINGS {
            let moved: Vec<f64> =
                point.iter().zip(&direction).map(|(p, d)| p + length * d).collect();
            let (next, next_gradient) = function(&moved)?;
            if next <= value + ARMIJO * length * slope {
                found = Some((moved, next, next_gradient));
                break;
            }
            length *= 0.5;
        }
        let Some((moved, next, next_gradient)) = found else {
            return Ok(Minimum { point, value, steps: step });
        };
        let difference = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a - b).collect();
        let (s, y): (Vec<f64>, Vec<f64>) =
            (difference(&moved, &point), difference(&next_gradient, &gradient));
        let curvature = dot(&s, &y);
        if curvature > 1e-14 * dot(&y, &y).sqrt() * dot(&s, &s).sqrt() {
            if pairs.len() == MEMORY {
                pairs.pop_front();
            }
            pairs.push_back(Pair { s, y, rho: 1.0 / curvature });
        }
        (point, value, gradient) = (moved, next, next_gradient);
    }
    Ok(Minimum { point, value, steps })
}

/// Minus the approximate inverse Hessian times the gradient.
fn descent(pairs: &VecDeque<Pair>, gradient: &[f64]) -> Vec<f64> {
    let mut q = gradient.to_vec();
    let mut alphas = Vec::with_capacity(pairs.len());
    for pair in pairs.iter().rev() {
        let alpha = pair.rho * dot(&pair.s, &q);
        q.iter_mut().zip(&pair.y).for_each(|(q, y)| *q -= alpha * y);
        alphas.push(alpha);
    }
    // The scale of the last difference; a first step of length one hundredth without any.
    let scale = match pairs.back() {
        Some(pair) => 1.0 / (pair.rho * dot(&pair.y, &pair.y)),
        None => 0.01 / dot(gradient, gradient).sqrt().max(f64::MIN_POSITIVE),
    };
    q.iter_mut().for_each(|q| *q *= scale);
    for (pair, alpha) in pairs.iter().zip(alphas.iter().rev()) {
        let beta = pair.rho * dot(&pair.y, &q);
        q.iter_mut().zip(&pair.s).for_each(|(q, s)| *q += (alpha - beta) * s);
    }
    q.iter_mut().for_each(|q| *q = -*q);
    q
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rosenbrock's valley in ten dimensions: minimum 0 at ones.
    #[test]
    fn a_curved_valley_is_followed_to_its_end() {
        let valley = |x: &[f64]| {
            let mut value = 0.0;
            let mut gradient = vec![0.0; x.len()];
            for i in 0..x.len() - 1 {
                let (a, b) = (1.0 - x[i], x[i + 1] - x[i] * x[i]);
                value += a * a + 100.0 * b * b;
                gradient[i] += -2.0 * a - 400.0 * x[i] * b;
                gradient[i + 1] += 200.0 * b;
            }
            Ok((value, gradient))
        };
        let found = minimise(vec![-1.2; 10], (500, 1e-24), valley).unwrap();
        assert!(found.value <= 1e-20, "{} after {} steps", found.value, found.steps);
        assert!(found.point.iter().all(|x| (x - 1.0).abs() < 1e-8), "{:?}", found.point);
    }
}
