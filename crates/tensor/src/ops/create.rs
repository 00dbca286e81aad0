//! Tensors made from numbers: ranges, identity, triangles. They are computed on the processor and
//! moved to the device asked for.

use crate::{DType, Device, Error, Result, Tensor};

impl Tensor {
    /// `0, 1, ..., count - 1` as i64.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn arange(count: usize, device: &Device) -> Result<Tensor> {
        let mut tensor = Tensor::empty([count], DType::I64, &Device::Cpu)?;
        (0..).zip(tensor.as_slice_mut::<i64>()?).for_each(|(index, value)| *value = index);
        tensor.to_device(device)
    }

    /// `start, start + step, ...` up to but without `end`.
    ///
    /// # Errors
    /// When `step` is 0, leads away from `end`, or a bound is not finite.
    pub fn range(start: f64, end: f64, step: f64, dtype: DType, device: &Device) -> Result<Tensor> {
        let count = ((end - start) / step).ceil();
        if !(0.0..1e15).contains(&count) {
            let given = format!("{start}..{end} by {step}");
            return Err(Error::argument("range", "range", given, "a step that leads to the end"));
        }
        let mut tensor = Tensor::empty([count as usize], DType::F64, &Device::Cpu)?;
        for (index, value) in tensor.as_slice_mut::<f64>()?.iter_mut().enumerate() {
            *value = start + index as f64 * step;
        }
        tensor.to_dtype(dtype)?.to_device(device)
    }

    /// `count` numbers from `start` to `end`, both included, evenly spaced.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn linspace(
        start: f64,
        end: f64,
        count: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let mut tensor = Tensor::empty([count], DType::F64, &Device::Cpu)?;
        let steps = count.saturating_sub(1).max(1) as f64;
        for (index, value) in tensor.as_slice_mut::<f64>()?.iter_mut().enumerate() {
            // Weighted ends, so that the last one is exact.
            let weight = index as f64 / steps;
            *value = start * (1.0 - weight) + end * weight;
        }
        tensor.to_dtype(dtype)?.to_device(device)
    }

    /// The identity matrix.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn eye(size: usize, dtype: DType, device: &Device) -> Result<Tensor> {
        let index = Tensor::arange(size, device)?;
        index.unsqueeze(1)?.eq(&index)?.to_dtype(dtype)
    }

    /// Bool `[rows, columns]`: true on and below the diagonal that is `diagonal` places right of the
    /// main one.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn lower_mask(
        rows: usize,
        columns: usize,
        diagonal: i64,
        device: &Device,
    ) -> Result<Tensor> {
        let mut mask = Tensor::empty([rows, columns], DType::Bool, &Device::Cpu)?;
        if columns > 0 {
            let lines = mask.as_slice_mut::<bool>()?.chunks_exact_mut(columns);
            for (row, line) in (0i64..).zip(lines) {
                let end = (row + 1).saturating_add(diagonal).clamp(0, columns as i64);
                line[..end as usize].fill(true);
            }
        }
        mask.to_device(device)
    }

    fn triangle(&self, op: &'static str, diagonal: i64, lower: bool) -> Result<Tensor> {
        let [.., rows, columns] = *self.dims() else {
            return Err(Error::shape(op, "x", self.shape(), "at least two dimensions"));
        };
        let zero = Tensor::zeros([], self.dtype(), &self.device())?;
        if lower {
            let mask = Tensor::lower_mask(rows, columns, diagonal, &self.device())?;
            mask.where_cond(self, &zero)
        } else {
            let below = Tensor::lower_mask(rows, columns, diagonal - 1, &self.device())?;
            below.where_cond(&zero, self)
        }
    }

    /// The last two dimensions with zeros above a diagonal (0 is the main one, positive ones lie right
    /// of it).
    ///
    /// # Errors
    /// When there are fewer than two dimensions.
    pub fn tril(&self, diagonal: i64) -> Result<Tensor> {
        self.triangle("tril", diagonal, true)
    }

    /// The last two dimensions with zeros below a diagonal.
    ///
    /// # Errors
    /// When there are fewer than two dimensions.
    pub fn triu(&self, diagonal: i64) -> Result<Tensor> {
        self.triangle("triu", diagonal, false)
    }
}
