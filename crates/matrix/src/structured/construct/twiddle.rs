//! Twiddles as numbers, before they become tensors.

use danaus_tensor::{Device, Result, Tensor};
use num_complex::Complex;

/// One block of 2 x 2: `[[t00, t01], [t10, t11]]`.
pub(crate) type Block = [[Complex<f64>; 2]; 2];

/// One product of log2(n) butterfly factors in the order they are applied.
#[derive(Clone, Debug)]
pub struct Twiddle {
    n: usize,
    /// Whether strides grow from 1 to n / 2.
    increasing: bool,
    /// Factor, pair.
    blocks: Vec<Vec<Block>>,
}

impl Twiddle {
    /// Blocks from a function of stride and pair.
    pub(crate) fn new(n: usize, increasing: bool, block: impl Fn(usize, usize) -> Block) -> Self {
        let log_n = n.trailing_zeros() as usize;
        let factor = |index: usize| {
            let stride = 1 << if increasing { index } else { log_n - 1 - index };
            (0..n / 2).map(|pair| block(stride, pair)).collect()
        };
        Self { n, increasing, blocks: (0..log_n).map(factor).collect() }
    }

    /// Number of points.
    pub fn size(&self) -> usize {
        self.n
    }

    /// Whether strides grow from 1 to n / 2.
    pub fn is_increasing(&self) -> bool {
        self.increasing
    }

    fn stride(&self, index: usize) -> usize {
        let log_n = self.blocks.len();
        1 << if self.increasing { index } else { log_n - 1 - index }
    }

    /// Positions that a pair of the factor at `index` joins.
    fn places(&self, index: usize, pair: usize) -> [usize; 2] {
        let stride = self.stride(index);
        let low = pair % stride;
        let first = 2 * (pair - low) + low;
        [first, first + stride]
    }

    /// This product after the diagonal matrix: `B diag(d)`, folded into the first factor.
    pub fn after_diagonal(mut self, d: &[Complex<f64>]) -> Self {
        for pair in 0..self.n / 2 {
            let places = self.places(0, pair);
            for row in &mut self.blocks[0][pair] {
                (0..2).for_each(|i| row[i] *= d[places[i]]);
            }
        }
        self
    }

    /// The diagonal matrix after this product: `diag(d) B`, folded into the last factor.
    pub fn before_diagonal(mut self, d: &[Complex<f64>]) -> Self {
        let last = self.blocks.len() - 1;
        for pair in 0..self.n / 2 {
            let places = self.places(last, pair);
            for (row, place) in self.blocks[last][pair].iter_mut().zip(places) {
                row.iter_mut().for_each(|entry| *entry *= d[place]);
            }
        }
        self
    }

    /// The transposed product: factors in reverse order, blocks transposed.
    pub fn transposed(&self) -> Self {
        let flip = |b: &Block| [[b[0][0], b[1][0]], [b[0][1], b[1][1]]];
        let blocks = self.blocks.iter().rev().map(|factor| factor.iter().map(flip).collect());
        Self { n: self.n, increasing: !self.increasing, blocks: blocks.collect() }
    }

    /// Conjugate entries.
    pub fn conj(&self) -> Self {
        let conj = |b: &Block| b.map(|row| row.map(|z| z.conj()));
        let blocks = self.blocks.iter().map(|factor| factor.iter().map(conj).collect());
        Self { blocks: blocks.collect(), ..*self }
    }

    /// All entries of all factors times `factor`.
    pub fn scaled(&self, factor: f64) -> Self {
        let scale = |b: &Block| b.map(|row| row.map(|z| z * factor));
        let blocks = self.blocks.iter().map(|f| f.iter().map(scale).collect());
        Self { blocks: blocks.collect(), ..*self }
    }

    fn entries(&self) -> impl Iterator<Item = Complex<f64>> + '_ {
        self.blocks.iter().flatten().flatten().flatten().copied()
    }

    /// Several products one after the other as one tensor; real where all entries are.
    ///
    /// The field's layout alternates directions, so the parts must.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn join(parts: &[Twiddle]) -> Result<Tensor> {
        let entries: Vec<Complex<f64>> = parts.iter().flat_map(Twiddle::entries).collect();
        let n = parts.first().map_or(2, |part| part.n);
        let shape = [1, parts.len(), n.trailing_zeros() as usize, n / 2, 2, 2];
        if entries.iter().all(|z| z.im == 0.0) {
            let real = entries.iter().map(|z| z.re).collect();
            return Tensor::from_vec(real, shape, &Device::Cpu);
        }
        Tensor::from_vec(entries, shape, &Device::Cpu)
    }

    /// As a tensor `[1, 1, log_n, n / 2, 2, 2]`; real where all entries are.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn tensor(&self) -> Result<Tensor> {
        Self::join(std::slice::from_ref(self))
    }

    /// As a complex tensor even where all entries are real.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn complex_tensor(&self) -> Result<Tensor> {
        let shape = [1, 1, self.blocks.len(), self.n / 2, 2, 2];
        Tensor::from_vec(self.entries().collect(), shape, &Device::Cpu)
    }
}
