//! Rotary position embedding of rows that attention reads or appends.
//!
//! `x' = x cos + rot(x) sin` on the first `2 cos.width` features. The half-split style (NeoX, Llama)
//! pairs features `t` and `t + r / 2`; the interleaved style (GPT-J) pairs `2 t` and `2 t + 1`.

use danaus_tensor::{DType, Error, Result, Tensor};

/// Tables of cosines and sines (positions, rotary_dim / 2) and the pairing.
#[derive(Clone)]
pub struct Rotary {
    /// Cosines.
    pub cos: Tensor,
    /// Sines, of the same shape.
    pub sin: Tensor,
    /// Whether neighbours are paired instead of halves.
    pub interleaved: bool,
}

/// The tables as numbers.
pub(super) struct Tables {
    cos: Vec<f64>,
    sin: Vec<f64>,
    half: usize,
    positions: usize,
    interleaved: bool,
}

impl Rotary {
    /// Checks the tables against the head dimension.
    pub(super) fn tables(&self, op: &'static str, head_dim: usize) -> Result<Tables> {
        let &[positions, half] = self.cos.dims() else {
            let expected = "[positions, rotary_dim / 2]";
            return Err(Error::shape(op, "rotary_cos", self.cos.shape(), expected));
        };
        if self.sin.dims() != self.cos.dims() {
            let expected = format!("{} as rotary_cos", self.cos.shape());
            return Err(Error::shape(op, "rotary_sin", self.sin.shape(), expected));
        }
        if 2 * half > head_dim {
            let given = format!("{} rotary features", 2 * half);
            return Err(Error::argument(op, "rotary_cos", given, format!("at most {head_dim}")));
        }
        let values = |tensor: &Tensor| tensor.detach().to_dtype(DType::F64)?.to_vec::<f64>();
        let (cos, sin) = (values(&self.cos)?, values(&self.sin)?);
        Ok(Tables { cos, sin, half, positions, interleaved: self.interleaved })
    }
}

impl Tables {
    /// Refuses positions beyond the tables.
    pub fn check(&self, op: &'static str, positions: usize) -> Result<()> {
        if positions > self.positions {
            let given = format!("{} positions", self.positions);
            return Err(Error::argument(op, "rotary_cos", given, format!("at least {positions}")));
        }
        Ok(())
    }

    /// Rotates one row in place.
    pub fn rotate(&self, row: &mut [f64], position: usize) {
        for t in 0..self.half {
            let at = position * self.half + t;
            let (cos, sin) = (self.cos[at], self.sin[at]);
            let (a, b) = if self.interleaved { (2 * t, 2 * t + 1) } else { (t, t + self.half) };
            (row[a], row[b]) = (row[a] * cos - row[b] * sin, row[b] * cos + row[a] * sin);
        }
    }

    /// Rotates rows (batch, rows, heads, dim) of which row `t` of sequence `b` has `position(b, t)`.
    pub fn rotate_all(
        &self,
        tensor: &Tensor,
        position: impl Fn(usize, usize) -> usize,
    ) -> Result<Tensor> {
        let dims = tensor.dims();
        let mut values = tensor.detach().to_dtype(DType::F64)?.to_vec::<f64>()?;
        for (index, row) in values.chunks_exact_mut(dims[3].max(1)).enumerate() {
            let time = index / dims[2];
            self.rotate(row, position(time / dims[1], time % dims[1]));
        }
        Tensor::from_vec(values, dims, &tensor.device())?.to_dtype(tensor.dtype())
    }
}
