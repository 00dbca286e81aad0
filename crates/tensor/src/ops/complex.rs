//! Complex numbers and their parts.
//!
//! The gradient of a real loss with respect to `z = x + iy` is `dL/dx + i dL/dy`.

use super::cast::map;
use super::expr::Expr;
use super::fused::apply_expr;
use crate::{Backward, DType, Element, Error, Inputs, Meta, Op, Result, Saves, Tensor, apply};
use num_complex::Complex;

/// The real or the imaginary part.
struct Part {
    imaginary: bool,
}

impl Op for Part {
    fn name(&self) -> &'static str {
        if self.imaginary { "imag" } else { "real" }
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let z = super::required(self.name(), inputs, 0)?;
        let dtype = match z.dtype() {
            DType::C64 => DType::F32,
            DType::C128 => DType::F64,
            other => return Err(Error::dtype(self.name(), "z", other, "c64 or c128")),
        };
        Ok(vec![Meta::new(z.shape(), dtype)])
    }

    fn saves(&self) -> Saves {
        Saves::none()
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let z = super::required(self.name(), inputs, 0)?.contiguous()?;
        match z.dtype() {
            DType::C64 => self.run_as::<f32>(&z, &mut outputs[0]),
            _ => self.run_as::<f64>(&z, &mut outputs[0]),
        }
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let Some(grad) = &ctx.grads[0] else { return Ok(vec![None]) };
        let zeros = Tensor::zeros(grad.shape(), grad.dtype(), &grad.device())?;
        let (re, im) = if self.imaginary { (&zeros, grad) } else { (grad, &zeros) };
        Ok(vec![Some(Tensor::complex(re, im)?)])
    }
}

impl Part {
    fn run_as<R: Element>(&self, z: &Tensor, out: &mut Tensor) -> Result<()>
    where
        Complex<R>: Element,
    {
        let (z, out) = (z.as_slice::<Complex<R>>()?, out.as_slice_mut::<R>()?);
        if self.imaginary {
            map(z, out, |z| z.im)
        } else {
            map(z, out, |z| z.re)
        }
        Ok(())
    }
}

/// Two real tensors as one complex tensor.
struct Join;

impl Op for Join {
    fn name(&self) -> &'static str {
        "complex"
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let (re, im) =
            (super::required("complex", inputs, 0)?, super::required("complex", inputs, 1)?);
        if re.shape() != im.shape() {
            let expected = format!("{} as the real part", re.shape());
            return Err(Error::shape("complex", "imaginary part", im.shape(), expected));
        }
        let dtype = match (re.dtype(), im.dtype()) {
            (DType::F32, DType::F32) => DType::C64,
            (DType::F64, DType::F64) => DType::C128,
            (_, found) => {
                let allowed = "f32 or f64 for both parts";
                return Err(Error::dtype("complex", "imaginary part", found, allowed));
            }
        };
        Ok(vec![Meta::new(re.shape(), dtype)])
    }

    fn saves(&self) -> Saves {
        Saves::none()
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let re = super::required("complex", inputs, 0)?.contiguous()?;
        let im = super::required("complex", inputs, 1)?.contiguous()?;
        match re.dtype() {
            DType::F32 => join::<f32>(&re, &im, &mut outputs[0]),
            _ => join::<f64>(&re, &im, &mut outputs[0]),
        }
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let Some(grad) = &ctx.grads[0] else { return Ok(vec![None, None]) };
        Ok(vec![Some(grad.real()?), Some(grad.imag()?)])
    }
}

fn join<R: Element>(re: &Tensor, im: &Tensor, out: &mut Tensor) -> Result<()>
where
    Complex<R>: Element,
{
    let parts = re.as_slice::<R>()?.iter().zip(im.as_slice::<R>()?);
    for (z, (&re, &im)) in out.as_slice_mut::<Complex<R>>()?.iter_mut().zip(parts) {
        *z = Complex::new(re, im);
    }
    Ok(())
}

impl Tensor {
    /// `re + i im` from two f32 or two f64 tensors.
    ///
    /// # Errors
    /// When shapes or dtypes differ.
    pub fn complex(re: &Tensor, im: &Tensor) -> Result<Tensor> {
        super::single(apply(Join, &[Some(re), Some(im)])?)
    }

    /// The real part of a complex tensor.
    ///
    /// # Errors
    /// When the dtype is not complex.
    pub fn real(&self) -> Result<Tensor> {
        super::single(apply(Part { imaginary: false }, &[Some(self)])?)
    }

    /// The imaginary part of a complex tensor.
    ///
    /// # Errors
    /// When the dtype is not complex.
    pub fn imag(&self) -> Result<Tensor> {
        super::single(apply(Part { imaginary: true }, &[Some(self)])?)
    }

    /// `|z|` of a complex tensor; the gradient at 0 is 0.
    ///
    /// # Errors
    /// When the dtype is not complex.
    pub fn modulus(&self) -> Result<Tensor> {
        // The inner choice keeps the derivative of the root away from 0.
        let square = "square(x0) + square(x1)";
        let text = format!("where({square} > 0, sqrt(where({square} > 0, {square}, 1)), 0)");
        apply_expr("modulus", &Expr::parse(&text)?, &[&self.real()?, &self.imag()?], None)
    }

    /// The angle of a complex tensor, in -pi..=pi.
    ///
    /// # Errors
    /// When the dtype is not complex.
    pub fn angle(&self) -> Result<Tensor> {
        self.imag()?.atan2(&self.real()?)
    }
}
