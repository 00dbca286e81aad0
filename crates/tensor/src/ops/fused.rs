//! Formulas as operators: [`Tensor::fused`], and everything elementwise that is one.
//!
//! All float inputs have one dtype, which is the result's too; bool inputs are read as 1 and 0. Shapes
//! broadcast. Backward multiplies the cotangent with the symbolic derivative in one pass over memory
//! for all inputs together, then sums over broadcast dimensions. Only inputs that occur in some
//! derivative are kept (none for a sum).

use super::elementwise::evaluate;
use super::expr::{Expr, Program, product};
use crate::{Backward, DType, Error, Inputs, Meta, Op, Result, Saves, Shape, Tensor, apply};

/// Most inputs of a formula.
const MAX_INPUTS: usize = 16;

/// A formula with everything that running and differentiating it need.
struct Fused {
    name: &'static str,
    program: Program,
    /// Result type where it is not that of the inputs (bool for comparisons).
    result: Option<DType>,
    shapes: Vec<Shape>,
    /// The cotangent (input number `shapes.len()`) times the derivative by each input; empty when
    /// nothing is recorded.
    gradients: Vec<Expr>,
}

/// Applies a formula under an operator's name.
pub(super) fn apply_expr(
    name: &'static str,
    expr: &Expr,
    inputs: &[&Tensor],
    result: Option<DType>,
) -> Result<Tensor> {
    let count = inputs.len();
    let recorded = result != Some(DType::Bool)
        && crate::is_recording()
        && inputs.iter().any(|tensor| tensor.is_tracked());
    let gradient = |position| product(Expr::input(count), expr.derivative(position));
    let op = Fused {
        name,
        program: Program::new(std::slice::from_ref(expr)),
        result,
        shapes: inputs.iter().map(|tensor| tensor.shape().clone()).collect(),
        gradients: if recorded { (0..count).map(gradient).collect() } else { Vec::new() },
    };
    let inputs: Vec<Option<&Tensor>> = inputs.iter().map(|tensor| Some(*tensor)).collect();
    super::single(apply(op, &inputs)?)
}

impl Op for Fused {
    fn name(&self) -> &'static str {
        self.name
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let mut shape = Shape::default();
        let mut dtype = None;
        for (position, tensor) in inputs.iter().flatten().enumerate() {
            let arg = || format!("x{position}");
            shape = shape.broadcast(tensor.shape()).ok_or_else(|| {
                let expected = format!("a shape that broadcasts with {shape}");
                Error::shape(self.name, arg(), tensor.shape(), expected)
            })?;
            match (tensor.dtype(), dtype) {
                (DType::Bool, _) => {}
                (DType::F64 | DType::F32 | DType::BF16 | DType::F16, None) => {
                    dtype = Some(tensor.dtype());
                }
                (found, Some(first)) if found == first => {}
                (found, Some(first)) => {
                    let allowed = format!("{first} as the inputs before (cast with to_dtype)");
                    return Err(Error::dtype(self.name, arg(), found, allowed));
                }
                (found, None) => {
                    return Err(Error::dtype(self.name, arg(), found, super::FLOATS_AND_BOOL));
                }
            }
        }
        Ok(vec![Meta::new(shape, self.result.or(dtype).unwrap_or(DType::F32))])
    }

    fn saves(&self) -> Saves {
        let count = self.shapes.len();
        let used = self.gradients.iter().fold(0, |used, expr| used | expr.inputs_used());
        let kept: Vec<usize> = (0..count).filter(|&position| used >> position & 1 == 1).collect();
        Saves::inputs(&kept)
    }

    fn on_cuda(&self) -> bool {
        true
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        evaluate(&self.program, inputs, outputs)
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let count = self.shapes.len();
        let mut slots = vec![None; count];
        let Some(grad) = &ctx.grads[0] else { return Ok(slots) };
        let mut wanted = Vec::new();
        for (position, expr) in self.gradients.iter().enumerate().filter(|(at, _)| ctx.needs[*at]) {
            if expr.as_constant() == Some(0.0) {
                continue;
            }
            if expr.as_input() == Some(count) {
                slots[position] = Some(grad.sum_to(&self.shapes[position])?);
            } else {
                wanted.push(position);
            }
        }
        let exprs: Vec<Expr> = wanted.iter().map(|&at| self.gradients[at].clone()).collect();
        let mut inputs: Vec<Option<&Tensor>> = ctx.inputs.iter().map(Option::as_ref).collect();
        inputs.push(Some(grad));
        let fresh = |_| Tensor::empty(grad.shape(), grad.dtype(), &grad.device());
        let mut outputs = (0..exprs.len()).map(fresh).collect::<Result<Vec<_>>>()?;
        evaluate(&Program::new(&exprs), &inputs, &mut outputs)?;
        for (position, output) in wanted.into_iter().zip(outputs) {
            slots[position] = Some(output.sum_to(&self.shapes[position])?);
        }
        Ok(slots)
    }
}

impl Tensor {
    /// A formula of tensors, computed in one pass; input `xi` is `inputs[i]`.
    ///
    /// ```
    /// use danaus_tensor::{Device, Tensor, ops::expr::Expr};
    ///
    /// let x = Tensor::from_vec(vec![-1.0f32, 2.0], [2], &Device::Cpu)?;
    /// let y = Tensor::fused(&Expr::parse("where(x0 > 0, x0^2, 0.5 * x0)")?, &[&x])?;
    /// assert_eq!(y.to_vec::<f32>()?, [-0.5, 4.0]);
    /// # Ok::<(), danaus_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// When the formula reads an input that is not given, shapes do not broadcast, or dtypes differ.
    pub fn fused(expr: &Expr, inputs: &[&Tensor]) -> Result<Tensor> {
        if inputs.is_empty() || inputs.len() > MAX_INPUTS {
            let valid = format!("1 to {MAX_INPUTS} tensors");
            return Err(Error::argument("fused", "inputs", inputs.len(), valid));
        }
        let used = expr.inputs_used();
        let highest = 63 - (used | 1).leading_zeros() as usize;
        if used != 0 && highest >= inputs.len() {
            let valid = format!("inputs x0 to x{}", inputs.len() - 1);
            return Err(Error::argument("fused", "expr", format!("{expr}"), valid));
        }
        apply_expr("fused", expr, inputs, None)
    }
}
