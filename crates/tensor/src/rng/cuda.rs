//! Random tensors on a GPU. Uniform numbers have the processor's bits; normal ones go through logarithm
//! and cosine and may differ from it in the last digit of f64.

use super::Rng;
use crate::cuda::{PHILOX, SCALAR};
use crate::{DType, Device, Result, Shape, Tensor};
use danaus_runtime::cuda::{Argument, Defines, Header, Launch, Source, Variant};

const HEADERS: &[Header] = &[SCALAR, PHILOX];
static SOURCE: Source = Source::new("rng.cuh", include_str!("rng.cuh"), HEADERS);

fn defines(normal: bool) -> Defines {
    Defines::new().set("NORMAL", u8::from(normal))
}

impl Rng {
    /// As [`Rng::uniform`], made on the device it is wanted on.
    ///
    /// # Errors
    /// When the device cannot be used or has no memory for it.
    pub fn uniform_on(
        &self,
        low: f64,
        high: f64,
        shape: impl Into<Shape>,
        device: &Device,
    ) -> Result<Tensor> {
        match device {
            Device::Cpu => self.uniform(low, high, shape),
            Device::Cuda(_) => self.fill_cuda(false, (low, high - low), shape.into(), device),
        }
    }

    /// As [`Rng::normal`], made on the device it is wanted on.
    ///
    /// # Errors
    /// When the device cannot be used or has no memory for it.
    pub fn normal_on(
        &self,
        mean: f64,
        std: f64,
        shape: impl Into<Shape>,
        device: &Device,
    ) -> Result<Tensor> {
        match device {
            Device::Cpu => self.normal(mean, std, shape),
            Device::Cuda(_) => self.fill_cuda(true, (mean, std), shape.into(), device),
        }
    }

    fn fill_cuda(
        &self,
        normal: bool,
        (shift, scale): (f64, f64),
        shape: Shape,
        device: &Device,
    ) -> Result<Tensor> {
        let mut tensor = Tensor::empty(shape, DType::F64, device)?;
        let count = tensor.elem_count();
        if count == 0 {
            return Ok(tensor);
        }
        let gpu = device.gpu()?;
        let (to, elements) = (tensor.device_address_mut()?, count as i64);
        let arguments: [&dyn Argument; 6] =
            [&to, &elements, &self.seed, &self.stream, &shift, &scale];
        let launch = Launch::linear(u32::try_from(count.div_ceil(256)).unwrap_or(u32::MAX), 256);
        // SAFETY: the tensor is fresh and has `count` elements of f64.
        unsafe { gpu.kernel(&SOURCE, "fill", &defines(normal))?.launch(&launch, &arguments)? };
        Ok(tensor)
    }
}

/// The kernels that are shipped.
pub(crate) fn variants() -> Vec<Variant> {
    [false, true].map(|normal| Variant::new(SOURCE.clone(), defines(normal))).to_vec()
}
