//! Shapes and exact counts.

use super::Map;
use danaus_tensor::Tensor;

impl Map {
    /// Rows.
    pub fn rows(&self) -> usize {
        match self {
            Map::Identity { rows, .. } => *rows,
            Map::Repeated { n, transposed: true, .. } => *n,
            Map::Repeated { times, n, .. } => times * n,
            Map::Diagonal(values) => values.elem_count(),
            Map::Permutation(perm) => perm.len(),
            Map::Chain(chain) => chain.rows(),
            Map::Toeplitz { col, .. } => col.elem_count(),
            Map::ToeplitzLike { g, .. } => g.dims()[1],
            Map::Dense(values) => values.dims()[0],
            Map::Product(maps) => maps.last().map_or(0, Map::rows),
            Map::Sum(maps) => maps.first().map_or(0, Map::rows),
            Map::Kronecker(a, b) => a.rows() * b.rows(),
            Map::Real(map) | Map::Scaled(_, map) => map.rows(),
        }
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        match self {
            Map::Identity { cols, .. } => *cols,
            Map::Repeated { n, transposed: false, .. } => *n,
            Map::Repeated { times, n, .. } => times * n,
            Map::Diagonal(values) => values.elem_count(),
            Map::Permutation(perm) => perm.len(),
            Map::Chain(chain) => chain.cols(),
            Map::Toeplitz { row, .. } => row.elem_count(),
            Map::ToeplitzLike { g, .. } => g.dims()[1],
            Map::Dense(values) => values.dims()[1],
            Map::Product(maps) => maps.first().map_or(0, Map::cols),
            Map::Sum(maps) => maps.first().map_or(0, Map::cols),
            Map::Kronecker(a, b) => a.cols() * b.cols(),
            Map::Real(map) | Map::Scaled(_, map) => map.cols(),
        }
    }

    /// Whether a real vector gives a complex result.
    pub fn is_complex(&self) -> bool {
        match self {
            Map::Identity { .. } | Map::Repeated { .. } | Map::Permutation(_) => false,
            Map::Real(_) | Map::ToeplitzLike { .. } => false,
            Map::Diagonal(values) | Map::Dense(values) => values.dtype().is_complex(),
            Map::Toeplitz { col, row } => col.dtype().is_complex() || row.dtype().is_complex(),
            Map::Chain(chain) => chain.is_complex(),
            Map::Product(maps) | Map::Sum(maps) => maps.iter().any(Map::is_complex),
            Map::Kronecker(a, b) => a.is_complex() || b.is_complex(),
            Map::Scaled(_, map) => map.is_complex(),
        }
    }

    /// The tensors inside, in the order they occur.
    pub fn tensors(&self) -> Vec<Tensor> {
        match self {
            Map::Identity { .. } | Map::Repeated { .. } | Map::Permutation(_) => Vec::new(),
            Map::Diagonal(values) | Map::Dense(values) => vec![values.clone()],
            Map::Toeplitz { col, row } => vec![col.clone(), row.clone()],
            Map::ToeplitzLike { g, h } => vec![g.clone(), h.clone()],
            Map::Chain(chain) => chain.sources().to_vec(),
            Map::Product(maps) | Map::Sum(maps) => maps.iter().flat_map(Map::tensors).collect(),
            Map::Kronecker(a, b) => [a.tensors(), b.tensors()].concat(),
            Map::Real(map) | Map::Scaled(_, map) => map.tensors(),
        }
    }

    /// Stored numbers; a complex number is one. Permutations and multiples are fixed and count
    /// nothing. A Toeplitz term has one diagonal less than the numbers in its column and row.
    pub fn parameters(&self) -> usize {
        match self {
            Map::Identity { .. } | Map::Repeated { .. } | Map::Permutation(_) => 0,
            Map::Diagonal(values) | Map::Dense(values) => values.elem_count(),
            Map::Toeplitz { col, row } => col.elem_count() + row.elem_count() - 1,
            Map::ToeplitzLike { g, h } => g.elem_count() + h.elem_count(),
            Map::Chain(chain) => chain.steps().iter().map(|step| step.pattern.parameters()).sum(),
            Map::Product(maps) | Map::Sum(maps) => maps.iter().map(Map::parameters).sum(),
            Map::Kronecker(a, b) => a.parameters() + b.parameters(),
            Map::Real(map) | Map::Scaled(_, map) => map.parameters(),
        }
    }

    /// Bytes of the tensors inside.
    pub fn bytes(&self) -> u64 {
        self.tensors().iter().map(|tensor| tensor.bytes() as u64).sum()
    }

    /// Real additions and multiplications of [`Self::apply`] for one vector, real or complex.
    ///
    /// A Toeplitz product counts its transforms of length N at `2.5 N log2 N` each, as is customary
    /// for real ones.
    pub fn flops(&self, complex_input: bool) -> u64 {
        let complex = complex_input || self.is_complex();
        // Complex: four products and four sums a multiply-add, six operations a product, two a sum.
        let (multiply_add, multiply, add) = if complex { (8, 6, 2) } else { (2, 1, 1) };
        match self {
            Map::Identity { .. }
            | Map::Repeated { transposed: false, .. }
            | Map::Permutation(_) => 0,
            Map::Repeated { times, n, .. } => add * ((times - 1) * n) as u64,
            Map::Diagonal(values) => multiply * values.elem_count() as u64,
            Map::Dense(values) => multiply_add * values.elem_count() as u64,
            Map::Chain(_) => multiply_add * self.parameters() as u64,
            Map::Toeplitz { col, row } => {
                let n = (col.elem_count() + row.elem_count() - 1).next_power_of_two() as u64;
                let once = 3 * (5 * n * u64::from(n.ilog2())) / 2 + 3 * n;
                if complex { 4 * once } else { once }
            }
            Map::ToeplitzLike { g, .. } => {
                let n = (2 * g.dims()[1]).next_power_of_two() as u64;
                let rank = g.dims()[0] as u64;
                let once = (2 * rank + 2) * (5 * n * u64::from(n.ilog2())) / 2 + 7 * rank * n;
                if complex { 2 * once } else { once }
            }
            Map::Product(maps) => {
                let mut sum = 0;
                let mut complex = complex_input;
                for map in maps {
                    sum += map.flops(complex);
                    complex = (complex || map.is_complex()) && !matches!(map, Map::Real(_));
                }
                sum
            }
            Map::Sum(maps) => {
                let terms: u64 = maps.iter().map(|map| map.flops(complex_input)).sum();
                terms + add * (maps.len() as u64 - 1) * self.rows() as u64
            }
            Map::Kronecker(a, b) => {
                let inner = a.cols() as u64 * b.flops(complex_input);
                inner + b.rows() as u64 * a.flops(complex_input || b.is_complex())
            }
            Map::Real(map) => map.flops(complex_input),
            Map::Scaled(_, map) => {
                let parts = if complex { 2 } else { 1 };
                map.flops(complex_input) + parts * map.rows() as u64
            }
        }
    }
}
