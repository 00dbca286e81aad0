//! Real transforms of padded vectors, and the products of their spectra.

use danaus_tensor::{DType, Element};
use num_complex::Complex;
use num_traits::Float;
use realfft::{ComplexToReal, FftNum, RealFftPlanner, RealToComplex};
use std::cell::RefCell;
use std::sync::Arc;

/// f32 and f64, with a planner of transforms for each thread.
pub trait Real: Element + FftNum + Float {
    /// Forward and inverse transform of a length.
    fn plan(len: usize) -> Plan<Self>;
}

macro_rules! real {
    ($type:ty, $planner:ident) => {
        thread_local! {
            static $planner: RefCell<RealFftPlanner<$type>> = RefCell::new(RealFftPlanner::new());
        }
        impl Real for $type {
            fn plan(len: usize) -> Plan<$type> {
                $planner.with_borrow_mut(|planner| Plan {
                    len,
                    forward: planner.plan_fft_forward(len),
                    inverse: planner.plan_fft_inverse(len),
                })
            }
        }
    };
}
real!(f32, SINGLE);
real!(f64, DOUBLE);

/// Transforms of one length, shared by threads.
#[derive(Clone)]
pub struct Plan<T: FftNum> {
    len: usize,
    forward: Arc<dyn RealToComplex<T>>,
    inverse: Arc<dyn ComplexToReal<T>>,
}

/// The least even length from `least` on whose transform is fast: 2^a times 1, 3 or 5.
pub fn fast_len(least: usize) -> usize {
    let up = |odd: usize| odd * least.div_ceil(odd).next_power_of_two().max(2);
    up(1).min(up(3)).min(up(5))
}

/// Buffers of one task.
pub struct Room<T> {
    line: Vec<T>,
    scratch: Vec<Complex<T>>,
}

impl<T: Real> Plan<T> {
    /// Length of a spectrum.
    pub fn bins(&self) -> usize {
        self.len / 2 + 1
    }

    /// Buffers for [`Self::spectrum`] and [`Self::signal`].
    pub fn room(&self) -> Room<T> {
        let scratch = self.forward.get_scratch_len().max(self.inverse.get_scratch_len());
        Room { line: vec![T::zero(); self.len], scratch: vec![Complex::default(); scratch] }
    }

    /// A spectrum of zeros.
    pub fn zeros(&self) -> Vec<Complex<T>> {
        vec![Complex::default(); self.bins()]
    }

    /// The spectrum of `values` followed by zeros, divided by the length, so that an inverse
    /// transform of products with it needs no factor.
    pub fn scaled_spectrum(&self, values: &[T], room: &mut Room<T>) -> Vec<Complex<T>> {
        let mut bins = self.zeros();
        self.spectrum(values, room, &mut bins);
        let factor = T::one() / T::from(self.len).unwrap_or_else(T::one);
        bins.iter_mut().for_each(|z| *z = *z * factor);
        bins
    }

    /// The spectrum of `values` followed by zeros.
    pub fn spectrum(&self, values: &[T], room: &mut Room<T>, bins: &mut [Complex<T>]) {
        room.line[..values.len()].copy_from_slice(values);
        room.line[values.len()..].fill(T::zero());
        let scratch = &mut room.scratch[..self.forward.get_scratch_len()];
        let done = self.forward.process_with_scratch(&mut room.line, bins, scratch);
        debug_assert!(done.is_ok(), "buffers of the plan's lengths");
    }

    /// The first `values.len()` elements of the inverse transform, without its factor; destroys
    /// `bins`.
    pub fn signal(&self, bins: &mut [Complex<T>], room: &mut Room<T>, values: &mut [T]) {
        let whole = self.whole_signal(bins, room);
        values.copy_from_slice(&whole[..values.len()]);
    }

    /// All elements of the inverse transform, without its factor; destroys `bins`.
    pub fn whole_signal<'a>(&self, bins: &mut [Complex<T>], room: &'a mut Room<T>) -> &'a [T] {
        // Products of spectra of real signals are real here but for rounding, which the inverse
        // transform would refuse.
        bins[0].im = T::zero();
        bins[self.len / 2].im = T::zero();
        let scratch = &mut room.scratch[..self.inverse.get_scratch_len()];
        let done = self.inverse.process_with_scratch(bins, &mut room.line, scratch);
        debug_assert!(done.is_ok(), "buffers of the plan's lengths");
        &room.line
    }
}

/// `out = a b`.
pub fn times<T: Real>(out: &mut [Complex<T>], a: &[Complex<T>], b: &[Complex<T>]) {
    out.iter_mut().zip(a.iter().zip(b)).for_each(|(out, (&a, &b))| *out = a * b);
}

/// `out = conj(a) b`.
pub fn conj_times<T: Real>(out: &mut [Complex<T>], a: &[Complex<T>], b: &[Complex<T>]) {
    out.iter_mut().zip(a.iter().zip(b)).for_each(|(out, (&a, &b))| *out = a.conj() * b);
}

/// `out += a b`.
pub fn add_times<T: Real>(out: &mut [Complex<T>], a: &[Complex<T>], b: &[Complex<T>]) {
    out.iter_mut().zip(a.iter().zip(b)).for_each(|(out, (&a, &b))| *out = *out + a * b);
}

/// `out += conj(a) b`.
pub fn add_conj_times<T: Real>(out: &mut [Complex<T>], a: &[Complex<T>], b: &[Complex<T>]) {
    out.iter_mut().zip(a.iter().zip(b)).for_each(|(out, (&a, &b))| *out = *out + a.conj() * b);
}

/// The dtype to compute in.
pub fn working(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}
