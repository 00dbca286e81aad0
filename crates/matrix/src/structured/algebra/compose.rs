//! Products, sums and the three ways to turn a map over.

use super::Map;
use danaus_tensor::{Error, Result};
use std::sync::Arc;

impl Map {
    /// First this map, then `next`: the matrix `next this`. Neighbouring chains become one.
    ///
    /// # Errors
    /// When the columns of `next` are not the rows of this map.
    pub fn then(&self, next: &Map) -> Result<Self> {
        if next.cols() != self.rows() {
            let valid = format!("{} as the rows before it", self.rows());
            return Err(Error::argument("Map::then", "columns of next", next.cols(), valid));
        }
        let parts = |map: &Map| match map {
            Map::Product(maps) => maps.clone(),
            other => vec![other.clone()],
        };
        let mut maps = parts(self);
        for map in parts(next) {
            let joined = match (maps.last(), &map) {
                (Some(Map::Chain(before)), Map::Chain(after)) => before.then(after),
                _ => None,
            };
            match joined {
                Some(chain) => {
                    maps.pop();
                    maps.push(Map::Chain(chain));
                }
                None => maps.push(map),
            }
        }
        Ok(if maps.len() == 1 { maps.remove(0) } else { Map::Product(maps) })
    }

    /// Maps in the order they are applied.
    ///
    /// # Errors
    /// When there is none, or they do not follow each other.
    pub fn product(maps: impl IntoIterator<Item = Map>) -> Result<Self> {
        let mut maps = maps.into_iter();
        let first = maps.next();
        let first =
            first.ok_or_else(|| Error::argument("Map::product", "maps", 0, "at least 1"))?;
        maps.try_fold(first, |all, map| all.then(&map))
    }

    /// The sum of maps of one shape.
    ///
    /// # Errors
    /// When there is none, or shapes differ.
    pub fn sum(maps: impl IntoIterator<Item = Map>) -> Result<Self> {
        let maps: Vec<Map> = maps.into_iter().collect();
        let Some(first) = maps.first() else {
            return Err(Error::argument("Map::sum", "maps", 0, "at least 1"));
        };
        let (rows, cols) = (first.rows(), first.cols());
        if let Some(other) = maps.iter().find(|map| (map.rows(), map.cols()) != (rows, cols)) {
            let given = format!("{} x {}", other.rows(), other.cols());
            let valid = format!("{rows} x {cols} as the first term");
            return Err(Error::argument("Map::sum", "shape of a term", given, valid));
        }
        Ok(Map::Sum(maps))
    }

    /// The Kronecker product `self (x) other`.
    pub fn kronecker(&self, other: &Map) -> Self {
        Map::Kronecker(Arc::new(self.clone()), Arc::new(other.clone()))
    }

    /// The real part of the result.
    pub fn real(&self) -> Self {
        Map::Real(Arc::new(self.clone()))
    }

    /// A multiple.
    pub fn scaled(&self, factor: f64) -> Self {
        Map::Scaled(factor, Arc::new(self.clone()))
    }

    /// The transposed matrix.
    ///
    /// A real part is taken as that of the matrix: `Re(M)^T = Re(M^T)`, which acts on real vectors.
    ///
    /// # Errors
    /// When a view of a tensor cannot be made.
    pub fn transpose(&self) -> Result<Self> {
        let all = |maps: &[Map]| maps.iter().map(Map::transpose).collect::<Result<Vec<_>>>();
        Ok(match self {
            Map::Identity { rows, cols } => Map::Identity { rows: *cols, cols: *rows },
            Map::Repeated { times, n, transposed } => {
                Map::Repeated { times: *times, n: *n, transposed: !transposed }
            }
            Map::Diagonal(_) => self.clone(),
            Map::Permutation(perm) => {
                let mut inverse = vec![0; perm.len()];
                perm.iter().enumerate().for_each(|(to, &from)| inverse[from] = to);
                Map::Permutation(inverse.into())
            }
            Map::Chain(chain) => Map::Chain(chain.transposed()),
            Map::Toeplitz { col, row } => {
                // The corner belongs to the column in both.
                let corner = col.narrow(0, 0, 1)?;
                let tail = row.narrow(0, 1, row.elem_count() - 1)?;
                let first = danaus_tensor::Tensor::cat(&[&corner, &tail], 0)?;
                Map::Toeplitz { col: first, row: col.clone() }
            }
            Map::ToeplitzLike { g, h } => Map::ToeplitzLike { g: h.clone(), h: g.clone() },
            Map::Dense(values) => Map::Dense(values.transpose(0, 1)?),
            Map::Product(maps) => Map::Product(all(maps)?.into_iter().rev().collect()),
            Map::Sum(maps) => Map::Sum(all(maps)?),
            Map::Kronecker(a, b) => {
                Map::Kronecker(Arc::new(a.transpose()?), Arc::new(b.transpose()?))
            }
            Map::Real(map) => Map::Real(Arc::new(map.transpose()?)),
            Map::Scaled(factor, map) => Map::Scaled(*factor, Arc::new(map.transpose()?)),
        })
    }

    /// The matrix of the conjugate entries.
    ///
    /// # Errors
    /// When there is no memory for conjugate values.
    pub fn conj(&self) -> Result<Self> {
        let all = |maps: &[Map]| maps.iter().map(Map::conj).collect::<Result<Vec<_>>>();
        let flip = |values: &danaus_tensor::Tensor| match values.dtype().is_complex() {
            true => values.conj(),
            false => Ok(values.clone()),
        };
        Ok(match self {
            Map::Identity { .. }
            | Map::Repeated { .. }
            | Map::Permutation(_)
            | Map::Real(_)
            | Map::ToeplitzLike { .. } => self.clone(),
            Map::Diagonal(values) => Map::Diagonal(flip(values)?),
            Map::Chain(chain) => Map::Chain(chain.conjugated()),
            Map::Toeplitz { col, row } => Map::Toeplitz { col: flip(col)?, row: flip(row)? },
            Map::Dense(values) => Map::Dense(flip(values)?),
            Map::Product(maps) => Map::Product(all(maps)?),
            Map::Sum(maps) => Map::Sum(all(maps)?),
            Map::Kronecker(a, b) => Map::Kronecker(Arc::new(a.conj()?), Arc::new(b.conj()?)),
            Map::Scaled(factor, map) => Map::Scaled(*factor, Arc::new(map.conj()?)),
        })
    }

    /// The conjugate transpose.
    ///
    /// # Errors
    /// As [`Self::transpose`] and [`Self::conj`].
    pub fn adjoint(&self) -> Result<Self> {
        self.conj()?.transpose()
    }
}
