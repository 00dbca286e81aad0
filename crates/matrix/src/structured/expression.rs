//! Weights that are expressions of the algebra over named parameters.

use super::algebra::Map;
use super::ldr::{LdrClass, Operator, ldr};
use super::{StructuredMatrix, named, shard_range};
use danaus_kernel::ops::activation::activation;
use danaus_kernel::ops::linear::Extras;
use danaus_tensor::{DType, Error, Init, Param, ParamBuilder, Result, Tensor};
use std::ops::Range;
use std::sync::Arc;

/// Which expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// `w1`, `w2`.
    Monarch,
    /// `twiddle`; whether the first block has increasing strides.
    Butterfly { increasing: bool },
    /// The operators of the class, `g`, `h`, for a square matrix of the larger side.
    Ldr(LdrClass),
}

/// A `rows x cols` matrix given by a few parameters and their expression; or some of its rows.
///
/// Monarch and LDR parameters are cast to the dtype of x on the tape. Twiddles stay f32 beside a
/// bf16 x: a product of many factors would lose a bit a factor. LDR computes in f32 then, for its
/// running products.
#[derive(Clone)]
pub struct Expression {
    kind: Kind,
    size: [usize; 2],
    params: Arc<[Param]>,
    part: Range<usize>,
}

/// Sizes of the factors of a Monarch layer: blocks, inner size of a block, inputs and outputs of
/// one.
pub(super) fn monarch_shapes(blocks: usize, [rows, cols]: [usize; 2]) -> ([usize; 3], [usize; 3]) {
    let (inp, out) = (cols.div_ceil(blocks), rows.div_ceil(blocks));
    let inner = inp.min(out);
    ([blocks, inner, inp], [blocks, out, inner])
}

/// Shape of the twiddle of a layer with this many butterflies one after the other.
pub(super) fn twiddle_dims(nblocks: usize, [rows, cols]: [usize; 2]) -> [usize; 6] {
    let log_n = cols.next_power_of_two().max(2).trailing_zeros() as usize;
    let n = 1usize << log_n;
    [rows.div_ceil(n), nblocks, log_n, n / 2, 2, 2]
}

/// Numbers in a Monarch layer.
pub(super) fn monarch_count(blocks: usize, size: [usize; 2]) -> usize {
    let (w1, w2) = monarch_shapes(blocks.max(1), size);
    w1.iter().product::<usize>() + w2.iter().product::<usize>()
}

/// Numbers in a butterfly layer.
pub(super) fn butterfly_count(nblocks: usize, size: [usize; 2]) -> usize {
    twiddle_dims(nblocks, size).iter().product()
}

/// Numbers in a layer of low displacement rank.
pub(super) fn ldr_count(class: LdrClass, rank: usize, [rows, cols]: [usize; 2]) -> usize {
    class.parameters(rank, rows.max(cols).max(2))
}

impl Expression {
    fn new(kind: Kind, size: [usize; 2], params: Vec<Param>) -> Self {
        Self { kind, size, params: params.into(), part: 0..size[0] }
    }

    /// Makes (or loads) `w1` and `w2` of a Monarch layer with this many blocks in both factors. New
    /// products have the variance of a dense matrix whose elements are uniform within
    /// `gain / sqrt(cols)`.
    ///
    /// # Errors
    /// When there are more blocks than rows or columns, a tensor is missing or has another shape.
    pub fn monarch(
        params: &ParamBuilder,
        size: [usize; 2],
        blocks: usize,
        gain: f64,
    ) -> Result<Self> {
        let most = size[0].min(size[1]);
        if !(1..=most).contains(&blocks) {
            let valid = format!("1..={most} blocks for a {} x {} matrix", size[0], size[1]);
            return Err(Error::argument("monarch", "weights", blocks, valid));
        }
        let (first, second) = monarch_shapes(blocks, size);
        // The first factor keeps the variance, the second is a layer with the inner size as inputs.
        let bound1 = (3.0 / first[2] as f64).sqrt();
        let bound2 = gain / (second[2] as f64).sqrt();
        let w1 = params.param("w1", first, Init::Uniform(-bound1, bound1))?;
        let w2 = params.param("w2", second, Init::Uniform(-bound2, bound2))?;
        Ok(Self::new(Kind::Monarch, size, vec![w1, w2]))
    }

    /// Makes (or loads) the `twiddle` of `nblocks` butterflies one after the other: one with
    /// increasing strides, or pairs BB* (Kaleidoscope) with decreasing ones first. New entries are
    /// normal with a variance of 1/2 but for the gain, so that products keep variances. Weight
    /// decay leaves them alone.
    ///
    /// # Errors
    /// When the tensor is missing or has another shape.
    pub fn butterfly(
        params: &ParamBuilder,
        size: [usize; 2],
        nblocks: usize,
        gain: f64,
    ) -> Result<Self> {
        let shape = twiddle_dims(nblocks, size);
        // gain^2 / 3 is the variance that a uniform dense matrix gives; each factor takes its root.
        let factors = (nblocks * shape[2]) as f64;
        let std = (0.5 * (gain * gain / 3.0).powf(1.0 / factors)).sqrt();
        let twiddle = params.param_no_decay("twiddle", shape, Init::Normal(std))?;
        let kind = Kind::Butterfly { increasing: nblocks % 2 == 1 };
        Ok(Self::new(kind, size, vec![twiddle]))
    }

    /// Makes (or loads) the operators (`subd_a`, `subd_b` of the subdiagonal class) and generators `g`,
    /// `h` of a matrix of low displacement rank. New operators are shifts, generators are normal with
    /// the deviation that gives the variance of a dense matrix on average over the outputs.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn ldr(
        params: &ParamBuilder,
        size: [usize; 2],
        (class, rank): (LdrClass, usize),
        gain: f64,
    ) -> Result<Self> {
        let n = size[0].max(size[1]).max(2);
        // gain^2 / 3 is the variance that a uniform dense matrix gives.
        let std = (gain * gain / (3.0 * class.terms(rank, n))).powf(0.25);
        let operator = |one: &Operator| {
            let &(name, _, init) = one;
            params.param_no_decay(name, [LdrClass::length(n, one)], init)
        };
        let mut all = class.operators().iter().map(operator).collect::<Result<Vec<_>>>()?;
        for name in ["g", "h"] {
            all.push(params.param(name, [rank, n], Init::Normal(std))?);
        }
        Ok(Self::new(Kind::Ldr(class), size, all))
    }

    /// The whole matrix for vectors of a dtype, and the dtype it computes in.
    fn map(&self, dtype: DType) -> Result<(Map, DType)> {
        let working = match self.kind {
            Kind::Ldr(_) => dtype.accumulator(),
            _ => dtype,
        };
        let param = |index: usize, dtype: DType| self.params[index].tensor_as(dtype);
        let [rows, cols] = self.size;
        let map = match self.kind {
            Kind::Monarch => {
                named::monarch_layer(&param(0, working)?, &param(1, working)?, rows, cols)?
            }
            Kind::Butterfly { increasing } => {
                let master = if dtype == DType::BF16 { DType::F32 } else { dtype };
                named::butterfly(&param(0, master)?, increasing, rows, cols)?
            }
            Kind::Ldr(class) => {
                let count = self.params.len();
                let all: Vec<Tensor> =
                    (0..count).map(|index| param(index, working)).collect::<Result<_>>()?;
                let operators: Vec<&Tensor> = all[..count - 2].iter().collect();
                let map = ldr(class, &operators, &all[count - 2], &all[count - 1])?;
                named::framed(map, rows, cols)?
            }
        };
        Ok((map, working))
    }

    /// The algebra's expression in the dtype of the parameters.
    ///
    /// # Errors
    /// When there is no memory for what it needs.
    pub fn expression(&self) -> Result<Map> {
        Ok(self.map(self.params[0].tensor().dtype())?.0)
    }

    fn is_whole(&self) -> bool {
        self.part == (0..self.size[0])
    }
}

impl StructuredMatrix for Expression {
    fn rows(&self) -> usize {
        self.part.len()
    }

    fn cols(&self) -> usize {
        self.size[1]
    }

    fn apply(&self, x: &Tensor, extras: Extras) -> Result<Tensor> {
        let (map, working) = self.map(x.dtype())?;
        let mut y = map.apply(&x.to_dtype(working)?)?.to_dtype(x.dtype())?;
        if !self.is_whole() {
            y = y.narrow(-1, self.part.start, self.part.len())?;
        }
        if let Some(bias) = extras.bias {
            y = y.add(&bias.to_dtype(y.dtype())?)?;
        }
        if let Some(kind) = extras.activation {
            y = activation(kind, &y)?;
        }
        match extras.residual {
            Some(residual) => y.add(residual),
            None => Ok(y),
        }
    }

    fn apply_transpose(&self, x: &Tensor) -> Result<Tensor> {
        if x.dims().last() != Some(&self.rows()) {
            let expected = format!("[.., {}]", self.rows());
            return Err(Error::shape("Expression", "x", x.shape(), expected));
        }
        let (map, working) = self.map(x.dtype())?;
        let after = self.size[0] - self.part.end;
        let whole = match self.is_whole() {
            true => x.clone(),
            false => x.pad(-1, self.part.start, after, 0.0)?,
        };
        map.transpose()?.apply(&whole.to_dtype(working)?)?.to_dtype(x.dtype())
    }

    fn apply_rows(&self, x: &Tensor, rows: &Tensor) -> Result<Tensor> {
        self.apply(x, Extras::default())?.index_select(-1, rows)
    }

    fn gather_rows(&self, ids: &Tensor) -> Result<Tensor> {
        let dtype = self.params[0].tensor().dtype();
        self.apply_transpose(&ids.one_hot(self.rows(), dtype)?)
    }

    fn to_dense(&self) -> Result<Tensor> {
        let dtype = self.params[0].tensor().dtype();
        let dense = self.expression()?.to_dense()?;
        dense.narrow(0, self.part.start, self.part.len())?.contiguous()?.to_dtype(dtype)
    }

    fn shard_rows(&self, index: usize, count: usize) -> Result<Box<dyn StructuredMatrix>> {
        // Every row depends on all parameters, so a shard keeps them; only its results are fewer.
        let range = shard_range(self.rows(), index, count)?;
        let start = self.part.start + range.start;
        let copy = |param: &Param| {
            Param::from_tensor(param.name(), param.decays(), &param.tensor().detach())
        };
        let params = self.params.iter().map(copy).collect::<Result<Vec<_>>>()?;
        let part = start..start + range.len();
        Ok(Box::new(Self { params: params.into(), part, ..self.clone() }))
    }

    fn parameters(&self) -> Vec<Param> {
        self.params.to_vec()
    }

    fn flops(&self, tokens: usize) -> u64 {
        self.expression().map_or(0, |map| tokens as u64 * map.flops(false))
    }
}
