//! Several matrices one above the other.

use super::{StructuredMatrix, shard_range};
use danaus_kernel::ops::linear::Extras;
use danaus_tensor::{Device, Error, Param, Result, Tensor};
use std::ops::Range;

/// Matrices with the same columns that act as one whose rows are all of theirs in order, so that
/// weights stored apart (q, k, v; gate, up), possibly in different formats, are used without a copy.
pub struct Stacked {
    parts: Vec<Box<dyn StructuredMatrix>>,
}

/// Rows of the stack that belong to one part.
struct Place<'a> {
    part: &'a dyn StructuredMatrix,
    /// Rows of the stack.
    rows: Range<usize>,
}

impl Stacked {
    /// Stacks at least one matrix.
    ///
    /// # Errors
    /// When there is none, or their columns differ.
    pub fn new(parts: Vec<Box<dyn StructuredMatrix>>) -> Result<Self> {
        let Some(first) = parts.first() else {
            return Err(Error::argument("Stacked", "parts", 0, "at least one matrix"));
        };
        let cols = first.cols();
        if let Some(other) = parts.iter().find(|part| part.cols() != cols) {
            let valid = format!("{cols} columns as the first part has");
            return Err(Error::argument("Stacked", "columns of a part", other.cols(), valid));
        }
        Ok(Self { parts })
    }

    /// The matrices, from the top.
    pub fn parts(&self) -> &[Box<dyn StructuredMatrix>] {
        &self.parts
    }

    fn places(&self) -> impl Iterator<Item = Place<'_>> {
        let mut next = 0;
        self.parts.iter().map(move |part| {
            let start = next;
            next += part.rows();
            Place { part: &**part, rows: start..next }
        })
    }

    /// For ids of rows of the stack: for every part its own ids, and where its results stand in the
    /// order of the given ones.
    fn sorted(&self, ids: &Tensor) -> Result<Sorted<'_>> {
        let wide = ids.detach().to_dtype(danaus_tensor::DType::I64)?.to_vec::<i64>()?;
        let mut sorted = Sorted { groups: Vec::new(), order: vec![0; wide.len()] };
        let rows = self.rows();
        if let Some(id) = wide.iter().find(|&&id| usize::try_from(id).map_or(true, |id| id >= rows))
        {
            return Err(Error::argument("Stacked", "row", id, format!("0..{rows}")));
        }
        let mut next = 0;
        for Place { part, rows } in self.places() {
            let mut own = Vec::new();
            for (position, &id) in wide.iter().enumerate() {
                if rows.contains(&(id as usize)) {
                    own.push(id - rows.start as i64);
                    sorted.order[position] = next;
                    next += 1;
                }
            }
            if !own.is_empty() {
                let count = own.len();
                sorted.groups.push((part, Tensor::from_vec(own, [count], &Device::Cpu)?));
            }
        }
        Ok(sorted)
    }
}

/// Ids grouped by part.
struct Sorted<'a> {
    groups: Vec<(&'a dyn StructuredMatrix, Tensor)>,
    /// Position among the grouped ids of every given one.
    order: Vec<i64>,
}

impl Sorted<'_> {
    /// One result for each group, joined along `dim` in the order of the given ids.
    fn joined(
        self,
        dim: isize,
        each: impl Fn(&dyn StructuredMatrix, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let results = self.groups.iter().map(|(part, ids)| each(*part, ids));
        let joined = join(results.collect::<Result<_>>()?, dim)?;
        let count = self.order.len();
        joined.index_select(dim, &Tensor::from_vec(self.order, [count], &Device::Cpu)?)
    }
}

/// Joins tensors, in the widest of their dtypes: rows of tables may come in different ones.
fn join(tensors: Vec<Tensor>, dim: isize) -> Result<Tensor> {
    let wide = tensors.iter().map(Tensor::dtype).max_by_key(|dtype| dtype.size());
    let wide = wide.ok_or_else(|| Error::internal("nothing to join"))?;
    // bf16 and f16 have no common type but f32.
    let equal = tensors.iter().all(|tensor| tensor.dtype() == wide);
    let dtype = if equal { wide } else { wide.accumulator() };
    let tensors: Vec<Tensor> =
        tensors.iter().map(|tensor| tensor.to_dtype(dtype)).collect::<Result<_>>()?;
    Tensor::cat(&tensors.iter().collect::<Vec<_>>(), dim)
}

impl StructuredMatrix for Stacked {
    fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.rows()).sum()
    }

    fn cols(&self) -> usize {
        self.parts[0].cols()
    }

    fn apply(&self, x: &Tensor, extras: Extras) -> Result<Tensor> {
        let each = |Place { part, rows }: Place| {
            let slice = |tensor: &Tensor| tensor.narrow(-1, rows.start, rows.len());
            let bias = extras.bias.map(slice).transpose()?;
            let residual = extras.residual.map(slice).transpose()?;
            let (bias, residual) = (bias.as_ref(), residual.as_ref());
            part.apply(x, Extras { bias, residual, ..extras })
        };
        self.check(&extras)?;
        join(self.places().map(each).collect::<Result<_>>()?, -1)
    }

    fn apply_transpose(&self, x: &Tensor) -> Result<Tensor> {
        if x.dims().last() != Some(&self.rows()) {
            let expected = format!("[.., {}]", self.rows());
            return Err(Error::shape("Stacked", "x", x.shape(), expected));
        }
        let mut sum: Option<Tensor> = None;
        for Place { part, rows } in self.places() {
            let term = part.apply_transpose(&x.narrow(-1, rows.start, rows.len())?)?;
            sum = Some(match sum {
                None => term,
                Some(sum) => sum.add(&term)?,
            });
        }
        sum.ok_or_else(|| Error::internal("a stack without parts"))
    }

    fn apply_rows(&self, x: &Tensor, rows: &Tensor) -> Result<Tensor> {
        if rows.elem_count() == 0 {
            return self.parts[0].apply_rows(x, rows);
        }
        self.sorted(rows)?.joined(-1, |part, ids| part.apply_rows(x, ids))
    }

    fn gather_rows(&self, ids: &Tensor) -> Result<Tensor> {
        if ids.elem_count() == 0 {
            return self.parts[0].gather_rows(ids);
        }
        let mut dims = ids.dims().to_vec();
        dims.push(self.cols());
        self.sorted(ids)?.joined(0, |part, ids| part.gather_rows(ids))?.reshape(dims)
    }

    fn to_dense(&self) -> Result<Tensor> {
        join(self.parts.iter().map(|part| part.to_dense()).collect::<Result<_>>()?, 0)
    }

    fn shard_rows(&self, index: usize, count: usize) -> Result<Box<dyn StructuredMatrix>> {
        let wanted = shard_range(self.rows(), index, count)?;
        let mut pieces = Vec::new();
        for Place { part, rows } in self.places() {
            let start = wanted.start.max(rows.start);
            let end = wanted.end.min(rows.end);
            if start >= end {
                continue;
            }
            // A part is cut into equal shards; the largest that fit the range are taken.
            let (first, len) = (start - rows.start, end - start);
            let piece = gcd(gcd(first, len), rows.len());
            for shard in first / piece..(first + len) / piece {
                pieces.push(part.shard_rows(shard, rows.len() / piece)?);
            }
        }
        Ok(Box::new(Self::new(pieces)?))
    }

    fn parameters(&self) -> Vec<Param> {
        self.parts.iter().flat_map(|part| part.parameters()).collect()
    }

    fn flops(&self, tokens: usize) -> u64 {
        self.parts.iter().map(|part| part.flops(tokens)).sum()
    }
}

impl Stacked {
    /// Refuses a bias or residual whose last dimension is not the rows of the stack.
    fn check(&self, extras: &Extras) -> Result<()> {
        for (arg, tensor) in [("bias", extras.bias), ("residual", extras.residual)] {
            if let Some(tensor) = tensor.filter(|tensor| tensor.dims().last() != Some(&self.rows()))
            {
                let expected = format!("[.., {}]", self.rows());
                return Err(Error::shape("Stacked", arg, tensor.shape(), expected));
            }
        }
        Ok(())
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
