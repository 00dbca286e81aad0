//! Golden cases as data: the same list runs as a test, from the command line and on every device.
//!
//! `tests/golden/cases.json` names, for every golden file, the operator, which tensor is which input,
//! output, cotangent and gradient, and the attributes. A case runs once per dtype; outputs and
//! gradients are compared with the stated tolerance times `max(1, largest expected value)`.

mod cases;

pub use cases::{Case, Group, load};

use crate::Result;
use danaus_tensor::registry::{Call, Registry};
use danaus_tensor::safetensors::TensorFile;
use danaus_tensor::{DType, Device, Error as TensorError, Tensor};

use std::path::Path;

/// One comparison.
#[derive(Clone, Debug)]
pub struct Check {
    /// `system/file operator dtype`.
    pub case: String,
    /// Output or gradient.
    pub tensor: String,
    /// Largest difference over the scale of the expected values.
    pub error: f64,
    /// Allowed.
    pub tolerance: f64,
}

impl Check {
    /// Whether the difference is allowed.
    pub fn passed(&self) -> bool {
        self.error <= self.tolerance
    }
}

/// What happened to a case.
#[derive(Debug)]
pub struct Outcome {
    /// `system/file operator dtype`.
    pub case: String,
    /// Its comparisons, or why it could not run.
    pub result: Result<Vec<Check>>,
}

impl Outcome {
    /// Whether the device has no kernel for it: neither passed nor failed.
    pub fn not_on_device(&self) -> bool {
        matches!(&self.result, Err(crate::Error::Tensor(error)) if error.is_not_on_cuda())
    }

    /// Whether it ran and every comparison passed.
    pub fn passed(&self) -> bool {
        self.result.as_ref().is_ok_and(|checks| checks.iter().all(Check::passed))
    }
}

/// Runs all cases of the list under `golden` (the folder with `cases.json`) whose name contains `filter`
/// on a device, calling `report` after each.
///
/// # Errors
/// When the list cannot be read. A failing case is an outcome, not an error.
pub fn run(
    registry: &Registry,
    golden: &Path,
    filter: &str,
    device: Device,
    mut report: impl FnMut(&Outcome),
) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    for group in load(golden)? {
        for case in &group.cases {
            for (&dtype, &tolerance) in &group.tolerance {
                let name = format!("{}/{} {} {dtype}", group.system, case.title(), group.op);
                if !name.contains(filter) {
                    continue;
                }
                let path = golden.join(&group.system).join(format!("{}.safetensors", case.file));
                let run = Run { device, dtype, tolerance, name: &name };
                let result = run_case(registry, &group, case, &path, &run);
                let outcome = Outcome { case: name, result };
                report(&outcome);
                outcomes.push(outcome);
            }
        }
    }
    Ok(outcomes)
}

/// How a case is run.
struct Run<'a> {
    device: Device,
    dtype: DType,
    tolerance: f64,
    name: &'a str,
}

fn run_case(
    registry: &Registry,
    group: &Group,
    case: &Case,
    path: &Path,
    run: &Run,
) -> Result<Vec<Check>> {
    let Run { device, dtype, tolerance, name } = *run;
    let file = TensorFile::open(path)?;
    let call = Call {
        op: group.op.clone(),
        tensors: case.call_tensors(group, &file)?,
        attributes: case.attributes(group, &file)?,
        dtype: Some(dtype),
        grad: !case.gradients(group).is_empty(),
        device,
    };
    let results = registry.run(&call)?;
    let expected = case.expected(group);
    expected
        .iter()
        .map(|(found, golden)| {
            let expected = cases::read(&file, golden)?;
            let found_tensor = results.get(found).ok_or_else(|| {
                let made: Vec<&str> = results.keys().map(String::as_str).collect();
                TensorError::argument("selftest", "result", found, made.join(", "))
            })?;
            let error = difference(found_tensor, &expected)?;
            Ok(Check { case: name.to_string(), tensor: found.clone(), error, tolerance })
        })
        .collect()
}

/// Largest difference over `max(1, largest expected)`; infinite for other shapes or stray NaN.
fn difference(found: &Tensor, expected: &Tensor) -> Result<f64> {
    if found.elem_count() != expected.elem_count() {
        return Ok(f64::INFINITY);
    }
    let host = |tensor: &Tensor| tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64);
    let values = |tensor: &Tensor| -> danaus_tensor::Result<Vec<f64>> {
        if !tensor.dtype().is_complex() {
            return host(tensor)?.to_vec::<f64>();
        }
        let tensor = tensor.to_device(&Device::Cpu)?;
        Ok([host(&tensor.real()?)?.to_vec()?, host(&tensor.imag()?)?.to_vec()?].concat())
    };
    let (found, expected) = (values(found)?, values(expected)?);
    let finite = expected.iter().filter(|value| value.is_finite());
    let scale = finite.fold(1.0f64, |scale, value| scale.max(value.abs()));
    let one = |(&a, &b): (&f64, &f64)| {
        let difference = (a - b).abs();
        match a == b || (a.is_nan() && b.is_nan()) {
            true => 0.0,
            false if difference.is_nan() => f64::INFINITY,
            false => difference / scale,
        }
    };
    Ok(found.iter().zip(&expected).map(one).fold(0.0, f64::max))
}

/// Counts of outcomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Ran, and every comparison passed.
    pub passed: usize,
    /// Ran and differed, or broke.
    pub failed: usize,
    /// Not run: the device has no kernel.
    pub not_on_device: usize,
}

/// Counts outcomes.
pub fn tally(outcomes: &[Outcome]) -> Tally {
    let mut tally = Tally::default();
    for outcome in outcomes {
        match outcome {
            outcome if outcome.passed() => tally.passed += 1,
            outcome if outcome.not_on_device() => tally.not_on_device += 1,
            _ => tally.failed += 1,
        }
    }
    tally
}
