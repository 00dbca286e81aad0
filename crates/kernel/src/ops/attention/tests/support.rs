//! Random problems with owned data, and runs of both paths on them.

use crate::ops::attention::pack::Element;
use crate::ops::attention::problem::{Cotangents, Gradients, Inputs, Operand, Outputs, Problem};
use crate::ops::attention::reference;
use crate::ops::attention::{backward, forward};
use danaus_runtime::threads::SharedMut;

/// A small generator of normal-like numbers (sum of uniforms), so that tests need no crate.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        let mixed = (self.0 ^ (self.0 >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((mixed >> 33) as usize) % n
    }
    pub fn uniform(&mut self) -> f64 {
        self.below(1 << 24) as f64 / f64::from(1 << 24)
    }
    pub fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
    pub fn vector(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| self.normal()).collect()
    }
}

/// Rows of the tensors' sequence axes.
#[derive(Clone, Copy)]
pub struct Rows {
    pub batch: usize,
    pub q: usize,
    pub k: usize,
}

/// Inputs in f64, already rounded to the type under test.
pub struct Data {
    pub rows: Rows,
    pub q: Vec<f64>,
    pub k: Vec<f64>,
    pub v: Vec<f64>,
}

pub fn data<T: Element>(random: &mut Random, problem: &Problem, rows: Rows) -> Data {
    let mut round = |n: usize| -> Vec<f64> {
        random.vector(n).iter().map(|&x| f64::from(T::round(x as f32).widen())).collect()
    };
    let keys = rows.batch * rows.k * problem.kv_heads;
    Data {
        rows,
        q: round(rows.batch * rows.q * problem.heads * problem.head_dim),
        k: round(keys * problem.head_dim),
        v: round(keys * problem.value_dim),
    }
}

pub fn cast<T: Element>(values: &[f64]) -> Vec<T> {
    values.iter().map(|&x| T::round(x as f32)).collect()
}

pub fn inputs<'a, T>(
    problem: &Problem,
    rows: Rows,
    q: &'a [T],
    k: &'a [T],
    v: &'a [T],
) -> Inputs<'a, T> {
    let (heads, kv_heads, width) = (problem.heads, problem.kv_heads, problem.head_dim);
    Inputs {
        q: Operand::contiguous(q, rows.q, heads, width),
        k: Operand::contiguous(k, rows.k, kv_heads, width),
        v: Operand::contiguous(v, rows.k, kv_heads, problem.value_dim),
    }
}

pub fn run_kernel<T: Element>(problem: &Problem, data: &Data) -> (Vec<f64>, Vec<f64>) {
    let (q, k, v) = (cast::<T>(&data.q), cast::<T>(&data.k), cast::<T>(&data.v));
    let rows = data.rows.batch * data.rows.q * problem.heads;
    let mut out = vec![T::default(); rows * problem.value_dim];
    let mut lse = vec![f32::NEG_INFINITY; rows];
    let outputs = Outputs {
        out: SharedMut::new(&mut out),
        out_batch_stride: data.rows.q * problem.heads * problem.value_dim,
        lse: SharedMut::new(&mut lse),
    };
    // SAFETY: the data has the problem's shape, here and below.
    unsafe { forward::forward(problem, inputs(problem, data.rows, &q, &k, &v), outputs) };
    (
        out.iter().map(|x| f64::from(x.widen())).collect(),
        lse.iter().map(|&x| f64::from(x)).collect(),
    )
}

pub fn run_reference(problem: &Problem, data: &Data) -> (Vec<f64>, Vec<f64>) {
    let rows = data.rows.batch * data.rows.q * problem.heads;
    let mut out = vec![0.0; rows * problem.value_dim];
    let mut lse = vec![f64::NEG_INFINITY; rows];
    let outputs = Outputs {
        out: SharedMut::new(&mut out),
        out_batch_stride: data.rows.q * problem.heads * problem.value_dim,
        lse: SharedMut::new(&mut lse),
    };
    let inputs = inputs(problem, data.rows, &data.q, &data.k, &data.v);
    // SAFETY: as above.
    unsafe { reference::forward(problem, inputs, outputs) };
    (out, lse)
}

/// Largest difference; infinities must agree exactly.
pub fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().zip(b);
    pairs
        .map(|(&a, &b)| if a == b { 0.0 } else { (a - b).abs() })
        .fold(0.0, |m: f64, d| if d.is_nan() { f64::INFINITY } else { m.max(d) })
}

/// Gradients of q, k, v and the sinks, and the cotangents they belong to.
pub struct Grads {
    pub q: Vec<f64>,
    pub k: Vec<f64>,
    pub v: Vec<f64>,
    pub sinks: Vec<f64>,
}

pub struct Given {
    pub grad_out: Vec<f64>,
    pub grad_lse: Vec<f64>,
}

/// Conversions between f64 and the element types under test.
pub trait Convert: Copy {
    fn from_f64(x: f64) -> Self;
    fn to_f64(self) -> f64;
}
impl Convert for f64 {
    fn from_f64(x: f64) -> f64 {
        x
    }
    fn to_f64(self) -> f64 {
        self
    }
}
impl Convert for f32 {
    fn from_f64(x: f64) -> f32 {
        x as f32
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
}
impl Convert for half::bf16 {
    fn from_f64(x: f64) -> Self {
        Self::from_f64(x)
    }
    fn to_f64(self) -> f64 {
        Self::to_f64(self)
    }
}

fn to<T: Convert>(values: &[f64]) -> Vec<T> {
    values.iter().map(|&x| T::from_f64(x)).collect()
}

fn back<T: Convert>(values: &[T]) -> Vec<f64> {
    values.iter().map(|x| x.to_f64()).collect()
}

fn gradients<T: Convert + Default, A: Convert + Default>(
    problem: &Problem,
    data: &Data,
    given: &Given,
    forward: (Vec<f64>, Vec<f64>),
    backward: impl Fn(&Problem, Inputs<T>, Cotangents<T, A>, Gradients<T, A>),
) -> Grads {
    let (q, k, v) = (to::<T>(&data.q), to::<T>(&data.k), to::<T>(&data.v));
    let (out, grad_out) = (to::<T>(&forward.0), to::<T>(&given.grad_out));
    let (lse, grad_lse) = (to::<A>(&forward.1), to::<A>(&given.grad_lse));
    let mut dq = vec![T::default(); q.len()];
    let mut dk = vec![T::default(); k.len()];
    let mut dv = vec![T::default(); v.len()];
    let mut sinks = vec![A::default(); problem.sequences.len() * problem.heads];
    let rows = data.rows;
    let cotangents = Cotangents {
        out: Operand::contiguous(&out, rows.q, problem.heads, problem.value_dim),
        grad_out: Operand::contiguous(&grad_out, rows.q, problem.heads, problem.value_dim),
        lse: &lse,
        grad_lse: Some(&grad_lse),
    };
    let gradients = Gradients {
        q: SharedMut::new(&mut dq),
        q_batch_stride: rows.q * problem.heads * problem.head_dim,
        k: SharedMut::new(&mut dk),
        k_batch_stride: rows.k * problem.kv_heads * problem.head_dim,
        v: SharedMut::new(&mut dv),
        v_batch_stride: rows.k * problem.kv_heads * problem.value_dim,
        sinks: problem.sinks.is_some().then_some(SharedMut::new(&mut sinks)),
    };
    backward(problem, inputs(problem, rows, &q, &k, &v), cotangents, gradients);
    Grads { q: back(&dq), k: back(&dk), v: back(&dv), sinks: back(&sinks) }
}

pub fn kernel_gradients<T: Element + Convert>(
    problem: &Problem,
    data: &Data,
    given: &Given,
) -> Grads {
    let forward = run_kernel::<T>(problem, data);
    gradients(problem, data, given, forward, |p, i, c, g| {
        // SAFETY: the data has the problem's shape.
        unsafe { backward::backward::<T>(p, i, c, g) }
    })
}

pub fn reference_gradients(problem: &Problem, data: &Data, given: &Given) -> Grads {
    let forward = run_reference(problem, data);
    gradients(problem, data, given, forward, |p, i, c, g| {
        // SAFETY: the data has the problem's shape.
        unsafe { reference::backward::<f64>(p, i, c, g) }
    })
}
