//! Learning the fast algorithm of a matrix by gradients: `T = B P` with butterfly factors and a
//! permutation, from a random start (Dao, Gu, Eichhorn, Rudra, Re, ICML 2019).
//!
//! The loss is the mean of `|T - B P|^2` over the entries (of a real T, the real part of `B P`), for T
//! scaled to `|T|_F = sqrt(n)`. Factors are tied: that of stride s has s blocks of 2 x 2, repeated, which
//! start as random unitary ones. The permutation is unknown: at every block size from n down to 4 the
//! same three choices (even elements before odd ones; reverse the first half; reverse the second half),
//! each a mixture whose weight is learned. AdamW without decay finds the basin, the choices are rounded,
//! and L-BFGS polishes the factors. Starts are tried until one reaches the goal.
//!
//! [`danaus_matrix::structured::factor::recognise`] finds the same algorithms in closed form; this is the
//! path for matrices near the class and for what gradients can learn.

pub mod lbfgs;

use crate::optim::{AdamW, GradientSet, Optimizer, OptimizerConfig};
use crate::{Error, Result};
use danaus_matrix::structured::algebra::{Chain, Map};
use danaus_tensor::rng::Rng;
use danaus_tensor::{DType, Device, Param, ParamSet, Tensor};
use std::f64::consts::PI;

/// How to learn.
#[derive(Clone, Debug)]
pub struct LearnOptions {
    /// Seed of the first start; the next ones follow.
    pub seed: u64,
    /// Starts at most.
    pub starts: usize,
    /// First-order steps of a start at most.
    pub steps: usize,
    /// Learning rate of AdamW.
    pub lr: f64,
    /// Root mean square error of an entry that counts as found.
    pub goal: f64,
}

impl Default for LearnOptions {
    fn default() -> Self {
        Self { seed: 0, starts: 8, steps: 1500, lr: 0.02, goal: 1e-4 }
    }
}

/// Root mean square error at which the factors are left to L-BFGS.
const BASIN: f64 = 3e-3;
/// Steps of L-BFGS at most, and the squared error at which they end: rounding in f64.
const POLISH: (usize, f64) = (500, 1e-26);

/// What was learned.
pub struct Learned {
    /// Factors with increasing strides, `[1, 1, log n, n / 2, 2, 2]`, complex.
    pub twiddle: Tensor,
    /// `y = x[perm]` before them.
    pub permutation: Vec<usize>,
    /// Whether the real part of the product is meant.
    pub real: bool,
    /// Root mean square error of an entry, for T of norm sqrt(n).
    pub rmse: f64,
    /// Seed of the start that was taken.
    pub seed: u64,
    /// First-order steps, and those of the polish, of that start.
    pub steps: [usize; 2],
}

impl Learned {
    /// The class, as [`danaus_matrix::structured::factor::recognise`] calls it.
    pub fn class(&self) -> &'static str {
        if self.real { "Re(B P)" } else { "B P" }
    }

    /// The product.
    ///
    /// # Errors
    /// An internal error when the parts do not fit.
    pub fn map(&self) -> Result<Map> {
        let chain = Map::Chain(Chain::butterfly(&self.twiddle, true)?);
        let product = Map::permutation(&self.permutation)?.then(&chain)?;
        Ok(if self.real { product.real() } else { product })
    }
}

/// Learns factors and permutation of a square matrix whose size is a power of two from 4 on.
///
/// # Errors
/// When the matrix has another size, is zero or not finite.
pub fn learn_butterfly(target: &Tensor, options: &LearnOptions) -> Result<Learned> {
    let problem = Problem::new(target)?;
    let mut best: Option<Learned> = None;
    for start in 0..options.starts.max(1) {
        let learned = problem.start(options.seed + start as u64, options)?;
        if best.as_ref().is_none_or(|best| learned.rmse < best.rmse) {
            best = Some(learned);
        }
        if best.as_ref().is_some_and(|best| best.rmse <= options.goal) {
            break;
        }
    }
    best.ok_or_else(|| Error::Internal("no start".into()))
}

/// The target, transposed and scaled, and its size.
struct Problem {
    log_n: usize,
    n: usize,
    re: Tensor,
    im: Option<Tensor>,
    /// What the target was multiplied with.
    scale: f64,
}

/// Parameters of a start: real and imaginary parts of every factor, then the three logits.
struct Start {
    params: ParamSet,
    logits: Param,
}

impl Problem {
    fn new(target: &Tensor) -> Result<Self> {
        let n = match *target.dims() {
            [rows, cols] if rows == cols && rows.is_power_of_two() && rows >= 4 => rows,
            _ => {
                let valid = "a square one whose size is a power of two from 4 on";
                return Err(Error::config("matrix", target.shape(), valid));
            }
        };
        let complex = target.dtype().is_complex();
        let (re, im) = match complex {
            true => (target.real()?, Some(target.imag()?)),
            false => (target.clone(), None),
        };
        let wide = |t: &Tensor| t.detach().transpose(0, 1)?.to_dtype(DType::F64)?.contiguous();
        let re = wide(&re)?;
        let im = im.map(|im| wide(&im)).transpose()?;
        let square = |t: &Tensor| -> Result<f64> { Ok(t.mul(t)?.sum_all()?.to_scalar()?) };
        let norm = (square(&re)? + im.as_ref().map(square).transpose()?.unwrap_or(0.0)).sqrt();
        if !(norm.is_finite() && norm > 0.0) {
            return Err(Error::config("norm of the matrix", norm, "finite and above 0"));
        }
        let scale = (n as f64).sqrt() / norm;
        let im = im.map(|im| im.affine(scale, 0.0)).transpose()?;
        let log_n = n.trailing_zeros() as usize;
        Ok(Self { log_n, n, re: re.affine(scale, 0.0)?, im, scale })
    }

    /// Random unitary blocks, and choices that are nearly even.
    fn parameters(&self, seed: u64) -> Result<Start> {
        let mut params = Vec::new();
        for factor in 0..self.log_n {
            let stride = 1usize << factor;
            let angles = Rng::new(seed, factor as u64).uniform(0.0, 2.0 * PI, [stride, 4])?;
            let angles = angles.to_dtype(DType::F64)?.to_vec::<f64>()?;
            let (mut re, mut im) = (Vec::new(), Vec::new());
            for a in angles.chunks_exact(4) {
                let (sin, cos) = a[0].sin_cos();
                let entries = [
                    (cos, a[1] + a[3]),
                    (sin, a[2] + a[3]),
                    (-sin, a[3] - a[2]),
                    (cos, a[3] - a[1]),
                ];
                re.extend(entries.map(|(size, turn)| size * turn.cos()));
                im.extend(entries.map(|(size, turn)| size * turn.sin()));
            }
            for (part, values) in [("re", re), ("im", im)] {
                let tensor = Tensor::from_vec(values, [stride, 2, 2], &Device::Cpu)?;
                params.push(Param::from_tensor(
                    &format!("factor.{factor}.{part}"),
                    false,
                    &tensor,
                )?);
            }
        }
        let logits = Rng::new(seed, 1 << 20).normal(0.0, 1.0, [3])?.to_dtype(DType::F64)?;
        let logits = Param::from_tensor("choices", false, &logits)?;
        params.push(logits.clone());
        Ok(Start { params: params.into_iter().collect(), logits })
    }

    /// The twiddle from parts `[re, im]` of every factor.
    fn twiddle(&self, parts: &[Tensor]) -> Result<Tensor> {
        let whole = |index: usize| -> Result<Tensor> {
            let all = (0..self.log_n).map(|factor| {
                let blocks = &parts[2 * factor + index];
                blocks.repeat(0, (self.n / 2) >> factor)
            });
            let all = all.collect::<danaus_tensor::Result<Vec<_>>>()?;
            let joined = Tensor::cat(&all.iter().collect::<Vec<_>>(), 0)?;
            Ok(joined.reshape([1, 1, self.log_n, self.n / 2, 2, 2])?)
        };
        Ok(Tensor::complex(&whole(0)?, &whole(1)?)?)
    }

    /// The mean of the squared differences for rows that went through the permutation.
    fn loss(&self, twiddle: &Tensor, rows: &Tensor) -> Result<Tensor> {
        let chain = Map::Chain(Chain::butterfly(twiddle, true)?);
        let y = chain.apply(rows)?;
        let square = |found: Tensor, wanted: &Tensor| -> Result<Tensor> {
            let difference = found.sub(wanted)?;
            Ok(difference.mul(&difference)?.mean_all()?)
        };
        let real = square(y.real()?, &self.re)?;
        Ok(match &self.im {
            Some(im) => real.add(&square(y.imag()?, im)?)?,
            None => real,
        })
    }

    fn start(&self, seed: u64, options: &LearnOptions) -> Result<Learned> {
        let start = self.parameters(seed)?;
        let config = AdamW { lr: options.lr, weight_decay: 0.0, ..AdamW::default() };
        let mut optimizer = Optimizer::new(OptimizerConfig::AdamW(config), &start.params)?;
        let identity = Tensor::eye(self.n, DType::F64, &Device::Cpu)?;
        let mut taken = 0;
        for _ in 0..options.steps {
            let parts: Vec<Tensor> = start.params.iter().map(Param::tensor).collect();
            let rows = self.mixed(&identity, &start.logits.tensor())?;
            let loss = self.loss(&self.twiddle(&parts)?, &rows)?;
            if loss.to_scalar()?.sqrt() < BASIN {
                break;
            }
            let gradients = GradientSet::new(&start.params, loss.backward()?)?;
            optimizer.step(&gradients, 1.0, 1.0)?;
            taken += 1;
        }
        self.polish(seed, &start, taken)
    }

    /// Identity rows after the mixtures of the choices.
    fn mixed(&self, identity: &Tensor, logits: &Tensor) -> Result<Tensor> {
        let weights = logits.sigmoid()?;
        let mut rows = identity.clone();
        for level in (1..self.log_n).rev() {
            for choice in 0..3 {
                let ids: Vec<i64> =
                    self.choice(level, choice).into_iter().map(|index| index as i64).collect();
                let ids = Tensor::from_vec(ids, [self.n], &Device::Cpu)?;
                let moved = rows.index_select(-1, &ids)?;
                rows = rows.add(&moved.sub(&rows)?.mul(&weights.narrow(0, choice, 1)?)?)?;
            }
        }
        Ok(rows)
    }

    /// A choice on blocks of `2^(level + 1)`, as `y = x[ids]`.
    fn choice(&self, level: usize, choice: usize) -> Vec<usize> {
        let (block, half) = (2usize << level, 1usize << level);
        let inside = |at: usize| match choice {
            0 if at < half => 2 * at,
            0 => 2 * (at - half) + 1,
            1 if at < half => half - 1 - at,
            2 if at >= half => block + half - 1 - at,
            _ => at,
        };
        (0..self.n).map(|at| at / block * block + inside(at % block)).collect()
    }

    /// Rounds the choices, and runs L-BFGS on the factors.
    fn polish(&self, seed: u64, start: &Start, taken: usize) -> Result<Learned> {
        let chosen: Vec<bool> =
            start.logits.tensor().to_vec::<f64>()?.iter().map(|logit| *logit > 0.0).collect();
        let mut permutation: Vec<usize> = (0..self.n).collect();
        for level in (1..self.log_n).rev() {
            for choice in (0..3).filter(|&choice| chosen[choice]) {
                permutation =
                    self.choice(level, choice).into_iter().map(|at| permutation[at]).collect();
            }
        }
        let ids: Vec<i64> = permutation.iter().map(|&at| at as i64).collect();
        let ids = Tensor::from_vec(ids, [self.n], &Device::Cpu)?;
        let rows = Tensor::eye(self.n, DType::F64, &Device::Cpu)?.index_select(-1, &ids)?;
        let shapes: Vec<usize> = (0..self.log_n).map(|factor| 4 << factor).collect();
        let split = |point: &[f64]| -> Result<Vec<Tensor>> {
            let mut rest = point;
            let mut parts = Vec::new();
            for len in shapes.iter().flat_map(|&len| [len, len]) {
                let (part, tail) = rest.split_at(len);
                parts.push(Tensor::from_slice(part, [len / 4, 2, 2], &Device::Cpu)?.tracked());
                rest = tail;
            }
            Ok(parts)
        };
        let mut point = Vec::new();
        for param in start.params.iter().take(2 * self.log_n) {
            point.extend(param.tensor().to_vec::<f64>()?);
        }
        let found = lbfgs::minimise(point, POLISH, |point| {
            let parts = split(point)?;
            let loss = self.loss(&self.twiddle(&parts)?, &rows)?;
            let gradients = loss.backward()?;
            let mut flat = Vec::with_capacity(point.len());
            for part in &parts {
                match gradients.get(part) {
                    Some(gradient) => flat.extend(gradient.contiguous()?.to_vec::<f64>()?),
                    None => flat.extend(std::iter::repeat_n(0.0, part.elem_count())),
                }
            }
            Ok((loss.to_scalar()?, flat))
        })?;
        let mut parts = split(&found.point)?;
        // The scale of the target goes into the first factor.
        for part in parts.iter_mut().take(2) {
            *part = part.detach().affine(1.0 / self.scale, 0.0)?;
        }
        Ok(Learned {
            twiddle: self.twiddle(&parts)?.detach(),
            permutation,
            real: self.im.is_none(),
            rmse: found.value.sqrt(),
            seed,
            steps: [taken, found.steps],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use danaus_matrix::structured::factor::target;

    /// The fast Fourier and Hadamard transforms, permutation unknown, from random starts.
    #[test]
    fn fast_transforms_are_learned_from_random_starts() {
        // Hadamard's polish has used all its steps at 6e-5.
        for (name, most) in [("dft", 1e-6), ("hadamard", 1e-4)] {
            let matrix = target(name, 16, 0).unwrap();
            let found = learn_butterfly(&matrix, &LearnOptions::default()).unwrap();
            assert!(found.rmse < most, "{name}: {:e} after {:?}", found.rmse, found.steps);
            let dense = found.map().unwrap().to_dense().unwrap();
            let difference = dense.sub(&matrix.to_dtype(dense.dtype()).unwrap()).unwrap();
            let size = match difference.dtype().is_complex() {
                true => difference.modulus().unwrap(),
                false => difference.abs().unwrap(),
            };
            let largest = size.to_vec::<f64>().unwrap().into_iter().fold(0.0, f64::max);
            assert!(largest < 10.0 * most, "{name}: {largest:e}");
        }
    }

    #[test]
    fn what_is_no_butterfly_keeps_its_error() {
        let matrix = target("random", 8, 3).unwrap();
        let options = LearnOptions { starts: 1, steps: 50, ..LearnOptions::default() };
        let found = learn_butterfly(&matrix, &options).unwrap();
        assert!(found.rmse > 1e-2, "{}", found.rmse);
        let message = learn_butterfly(&matrix.narrow(0, 0, 6).unwrap(), &options);
        assert!(message.err().unwrap().to_string().contains("power of two"));
    }
}
