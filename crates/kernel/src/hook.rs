//! Argument checks and small steps that the tensor sides of the operators share.

use danaus_tensor::{DType, Error, Inputs, Result, Shape, Tensor};

/// Runs `$lanes` with `$T` bound to f32 or bf16, or `$exact` for f64; any other dtype is our mistake,
/// since `infer` has refused it.
macro_rules! match_float {
    ($op:expr, $dtype:expr, $T:ident => $lanes:expr, f64 => $exact:expr) => {
        match $dtype {
            ::danaus_tensor::DType::F64 => $exact,
            ::danaus_tensor::DType::F32 => {
                type $T = f32;
                $lanes
            }
            ::danaus_tensor::DType::BF16 => {
                type $T = ::half::bf16;
                $lanes
            }
            other => {
                return Err(::danaus_tensor::Error::internal(format!("{}: run on {other}", $op)));
            }
        }
    };
}
pub(crate) use match_float;

/// Runs a block with `$T` bound to f64, f32 or bf16.
macro_rules! match_real {
    ($op:expr, $dtype:expr, $T:ident => $body:expr) => {
        $crate::hook::match_float!($op, $dtype, $T => $body, f64 => {
            type $T = f64;
            $body
        })
    };
}
pub(crate) use match_real;

/// Input `position`, called `arg` in messages, which must be there.
pub(crate) fn required<'a>(
    op: &'static str,
    inputs: Inputs<'a>,
    position: usize,
    arg: &str,
) -> Result<&'a Tensor> {
    let tensor = inputs.get(position).copied().flatten();
    tensor.ok_or_else(|| Error::argument(op, arg, "missing", "a tensor"))
}

/// Input `position` if it was given.
pub(crate) fn given<'a>(inputs: Inputs<'a>, position: usize) -> Option<&'a Tensor> {
    inputs.get(position).copied().flatten()
}

/// Refuses anything but f64, f32 and bf16.
pub(crate) fn check_float(op: &'static str, arg: &str, tensor: &Tensor) -> Result<()> {
    match tensor.dtype() {
        DType::F64 | DType::F32 | DType::BF16 => Ok(()),
        other => Err(Error::dtype(op, arg, other, "f64, f32 or bf16 (cast with to_dtype)")),
    }
}

/// Refuses another dtype than that of the argument `like`.
pub(crate) fn check_dtype(
    op: &'static str,
    (arg, tensor): (&str, &Tensor),
    (like, model): (&str, &Tensor),
) -> Result<()> {
    if tensor.dtype() == model.dtype() {
        return Ok(());
    }
    let allowed = format!("{} as {like}", model.dtype());
    Err(Error::dtype(op, arg, tensor.dtype(), allowed))
}

/// Refuses another shape.
pub(crate) fn check_shape(
    op: &'static str,
    arg: &str,
    tensor: &Tensor,
    expected: &[usize],
) -> Result<()> {
    if tensor.dims() == expected {
        return Ok(());
    }
    Err(Error::shape(op, arg, tensor.shape(), Shape::from(expected).to_string()))
}

/// Refuses another shape or dtype than that of the argument `like`.
pub(crate) fn check_like(
    op: &'static str,
    (arg, tensor): (&str, &Tensor),
    (like, model): (&str, &Tensor),
) -> Result<()> {
    check_dtype(op, (arg, tensor), (like, model))?;
    check_shape(op, arg, tensor, model.dims())
}

/// Refuses a tensor without dimensions; returns the length of the last one.
pub(crate) fn last_dim(op: &'static str, arg: &str, tensor: &Tensor) -> Result<usize> {
    let last = tensor.dims().last().copied();
    last.ok_or_else(|| Error::shape(op, arg, tensor.shape(), "at least one dimension"))
}

/// The elements in row-major order, off the tape.
pub(crate) fn dense(tensor: &Tensor) -> Result<Tensor> {
    tensor.detach().contiguous()
}

/// A row-major copy in another dtype, off the tape.
pub(crate) fn dense_as(tensor: &Tensor, dtype: DType) -> Result<Tensor> {
    tensor.detach().to_dtype(dtype)?.contiguous()
}

/// [`dense_as`] for an optional tensor.
pub(crate) fn optional_as(tensor: Option<&Tensor>, dtype: DType) -> Result<Option<Tensor>> {
    tensor.map(|tensor| dense_as(tensor, dtype)).transpose()
}

/// A fresh tensor with the shape and dtype of another.
pub(crate) fn empty_like(tensor: &Tensor) -> Result<Tensor> {
    Tensor::empty(tensor.shape(), tensor.dtype(), &tensor.device())
}

/// Output 0 of an operator.
pub(crate) fn first(outputs: Vec<Tensor>) -> Result<Tensor> {
    let first = outputs.into_iter().next();
    first.ok_or_else(|| Error::internal("an operator without output"))
}

/// Outputs 0 and 1 of an operator.
pub(crate) fn pair(outputs: Vec<Tensor>) -> Result<(Tensor, Tensor)> {
    let mut outputs = outputs.into_iter();
    match (outputs.next(), outputs.next()) {
        (Some(first), Some(second)) => Ok((first, second)),
        _ => Err(Error::internal("an operator with fewer than two outputs")),
    }
}

/// An output that takes its place in the list of a specification.
pub(crate) fn listed(tensor: Tensor) -> Result<Vec<Option<Tensor>>> {
    Ok(vec![Some(tensor)])
}

/// Refuses anything but i32 and i64, for indices that stay on a GPU: their values are checked there.
pub(crate) fn check_index(op: &'static str, arg: &str, tensor: &Tensor) -> Result<()> {
    match tensor.dtype() {
        DType::I64 | DType::I32 => Ok(()),
        other => Err(Error::dtype(op, arg, other, "i32 or i64")),
    }
}

/// Whole numbers of an i32 or i64 tensor.
pub(crate) fn integers(op: &'static str, arg: &str, tensor: &Tensor) -> Result<Vec<i64>> {
    match tensor.dtype() {
        DType::I64 => tensor.detach().to_vec::<i64>(),
        DType::I32 => Ok(tensor.detach().to_vec::<i32>()?.into_iter().map(i64::from).collect()),
        other => Err(Error::dtype(op, arg, other, "i32 or i64")),
    }
}

/// Whole numbers in `0..bound`; `what` says what the bound is.
pub(crate) fn indices(
    op: &'static str,
    arg: &str,
    tensor: &Tensor,
    (bound, what): (usize, &str),
) -> Result<Vec<u32>> {
    let numbers = integers(op, arg, tensor)?;
    let inside = |number: &i64| usize::try_from(*number).is_ok_and(|index| index < bound);
    if let Some(outside) = numbers.iter().find(|number| !inside(number)) {
        return Err(Error::argument(
            op,
            arg,
            outside,
            format!("0 to {what} - 1, {what} = {bound}"),
        ));
    }
    Ok(numbers.into_iter().map(|number| number as u32).collect())
}
