//! Sums of products of triangular Toeplitz matrices.

use super::fft::{Plan, Real, Room, add_conj_times, add_times, conj_times, working};
use super::{for_rows, store, sum_rows};
use crate::hook::{self, check_dtype, check_float, dense_as, required};
use danaus_runtime::threads::SharedMut;
use danaus_tensor::{
    Backward, DType, Device, Error, Inputs, Level, Meta, Op, Result, Saves, Tensor, apply,
};
use num_complex::Complex;

/// `sum over i of L(G_i) L(H_i)^T x` along the last dimension of `x`, with G and H `[rank, n]`.
///
/// # Errors
/// When shapes do not fit or dtypes are not f64, f32 or bf16 (all the same).
pub fn toeplitz_like(x: &Tensor, g: &Tensor, h: &Tensor) -> Result<Tensor> {
    hook::first(apply(ToeplitzLike, &[Some(x), Some(g), Some(h)])?)
}

/// Inputs: x, G, H.
struct ToeplitzLike;

/// Spectra of the generators.
struct Spectra<T: realfft::FftNum> {
    plan: Plan<T>,
    n: usize,
    g: Vec<Vec<Complex<T>>>,
    h: Vec<Vec<Complex<T>>>,
}

/// Buffers of a task.
struct Buffers<T> {
    room: Room<T>,
    x: Vec<Complex<T>>,
    up: Vec<Complex<T>>,
    product: Vec<Complex<T>>,
    sum: Vec<Complex<T>>,
    line: Vec<T>,
}

impl<T: Real> Spectra<T> {
    fn new(g: &[T], h: &[T], n: usize) -> Self {
        let plan = T::plan(super::fast_len(2 * n));
        let mut room = plan.room();
        // Each factor carries the 1 / N of its inverse transform.
        let mut all = |rows: &[T]| -> Vec<Vec<Complex<T>>> {
            rows.chunks_exact(n).map(|row| plan.scaled_spectrum(row, &mut room)).collect()
        };
        let (g, h) = (all(g), all(h));
        Self { plan, n, g, h }
    }

    fn buffers(&self) -> Buffers<T> {
        let plan = &self.plan;
        Buffers {
            room: plan.room(),
            x: plan.zeros(),
            up: plan.zeros(),
            product: plan.zeros(),
            sum: plan.zeros(),
            line: vec![T::zero(); self.n],
        }
    }

    /// The spectrum of the first n elements of the signal of `conj(factor) of`, in `b.product`.
    fn correlate(&self, b: &mut Buffers<T>, factor: &[Complex<T>], of_x: bool) {
        let Buffers { room, x, up, product, line, .. } = b;
        conj_times(product, factor, if of_x { x } else { up });
        self.plan.signal(product, room, line);
        self.plan.spectrum(line, room, product);
    }

    fn forward(&self, x: &[T], y: &mut [T]) {
        let n = self.n;
        let y = SharedMut::new(y);
        for_rows(
            x.len() / n,
            || self.buffers(),
            |b, index| {
                self.plan.spectrum(&x[index * n..][..n], &mut b.room, &mut b.x);
                b.sum.fill(Complex::default());
                for (g, h) in self.g.iter().zip(&self.h) {
                    self.correlate(b, h, true);
                    add_times(&mut b.sum, g, &b.product);
                }
                // SAFETY: every row belongs to one task.
                self.plan.signal(&mut b.sum, &mut b.room, unsafe { y.slice(index * n, n) });
            },
        );
    }

    /// dx, and the gradients of G and H.
    fn backward(&self, x: &[T], dy: &[T], dx: &mut [T]) -> (Vec<T>, Vec<T>) {
        let (n, bins, rank) = (self.n, self.plan.bins(), self.g.len());
        let dx = SharedMut::new(dx);
        let mut sums = sum_rows(
            x.len() / n,
            2 * rank * bins,
            || self.buffers(),
            |sums, b, index| {
                self.plan.spectrum(&x[index * n..][..n], &mut b.room, &mut b.x);
                self.plan.spectrum(&dy[index * n..][..n], &mut b.room, &mut b.up);
                b.sum.fill(Complex::default());
                for i in 0..rank {
                    let (dg, dh) = sums[2 * i * bins..][..2 * bins].split_at_mut(bins);
                    self.correlate(b, &self.h[i], true);
                    add_conj_times(dg, &b.product, &b.up);
                    self.correlate(b, &self.g[i], false);
                    add_conj_times(dh, &b.product, &b.x);
                    add_times(&mut b.sum, &self.h[i], &b.product);
                }
                // SAFETY: every row belongs to one task.
                self.plan.signal(&mut b.sum, &mut b.room, unsafe { dx.slice(index * n, n) });
            },
        );
        let mut room = self.plan.room();
        let (mut dg, mut dh) = (vec![T::zero(); rank * n], vec![T::zero(); rank * n]);
        // The sums were made of spectra without the factor of the inverse transform.
        let factor = T::one() / T::from(super::fast_len(2 * n)).unwrap_or_else(T::one);
        for i in 0..rank {
            let pair = sums[2 * i * bins..][..2 * bins].split_at_mut(bins);
            for (bins, to) in [(pair.0, &mut dg), (pair.1, &mut dh)] {
                let to = &mut to[i * n..][..n];
                self.plan.signal(bins, &mut room, to);
                to.iter_mut().for_each(|value| *value = *value * factor);
            }
        }
        (dg, dh)
    }
}

fn run<T: Real>(x: &Tensor, g: &Tensor, h: &Tensor, y: &mut Tensor) -> Result<()> {
    let spectra = Spectra::<T>::new(g.as_slice()?, h.as_slice()?, g.dims()[1]);
    spectra.forward(x.as_slice()?, y.as_slice_mut()?);
    Ok(())
}

fn pull<T: Real>([x, g, h, dy]: [&Tensor; 4], dx: &mut Tensor) -> Result<[Tensor; 2]> {
    let spectra = Spectra::<T>::new(g.as_slice()?, h.as_slice()?, g.dims()[1]);
    let (dg, dh) = spectra.backward(x.as_slice()?, dy.as_slice()?, dx.as_slice_mut()?);
    let tensor = |values: Vec<T>| Tensor::from_vec(values, g.shape(), &Device::Cpu);
    Ok([tensor(dg)?, tensor(dh)?])
}

impl Op for ToeplitzLike {
    fn name(&self) -> &'static str {
        "toeplitz_like"
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let op = self.name();
        let x = required(op, inputs, 0, "x")?;
        let (g, h) = (required(op, inputs, 1, "G")?, required(op, inputs, 2, "H")?);
        check_float(op, "x", x)?;
        check_dtype(op, ("G", g), ("x", x))?;
        let n = hook::last_dim(op, "x", x)?;
        match *g.dims() {
            [rank, cols] if rank > 0 && cols == n && n > 0 => {}
            _ => {
                return Err(Error::shape(
                    op,
                    "G",
                    g.shape(),
                    format!("[rank, {n}], rank at least 1"),
                ));
            }
        }
        hook::check_like(op, ("H", h), ("G", g))?;
        Ok(vec![Meta::new(x.shape(), x.dtype())])
    }

    fn level(&self) -> Level {
        Level::Invariant
    }

    fn saves(&self) -> Saves {
        Saves::inputs(&[0, 1, 2])
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let wide = working(outputs[0].dtype());
        let get = |index, name| dense_as(required(self.name(), inputs, index, name)?, wide);
        let (x, g, h) = (get(0, "x")?, get(1, "G")?, get(2, "H")?);
        let mut y = Tensor::empty(outputs[0].shape(), wide, &Device::Cpu)?;
        match wide {
            DType::F64 => run::<f64>(&x, &g, &h, &mut y)?,
            _ => run::<f32>(&x, &g, &h, &mut y)?,
        }
        store(&y, &mut outputs[0])
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let Some(dy) = &ctx.grads[0] else { return Ok(vec![None; 3]) };
        let wide = working(dy.dtype());
        let get = |index| dense_as(ctx.input(index)?, wide);
        let (x, g, h, dy) = (get(0)?, get(1)?, get(2)?, dense_as(dy, wide)?);
        let mut dx = hook::empty_like(&x)?;
        let [dg, dh] = match wide {
            DType::F64 => pull::<f64>([&x, &g, &h, &dy], &mut dx)?,
            _ => pull::<f32>([&x, &g, &h, &dy], &mut dx)?,
        };
        let dtype = ctx.input(0)?.dtype();
        [dx, dg, dh].map(|grad| grad.to_dtype(dtype)).into_iter().map(|g| g.map(Some)).collect()
    }
}
