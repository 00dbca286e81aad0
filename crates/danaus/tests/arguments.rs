//! Every operator with every argument wrong in many ways: an error or a result, never a panic.
//!
//! Calls start from a valid one, a golden case where there is one, and change one thing.

use danaus::bench::selftest;
use danaus::tensor::registry::{Call, Kind, OpSpec};
use danaus::tensor::safetensors::TensorFile;
use danaus::tensor::{DType, Device, Tensor};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Values that belong to no attribute, or to few.
const VALUES: [&str; 16] = [
    "-1",
    "0",
    "1",
    "7",
    "1099511627776",
    "9223372036854775807",
    "-9223372036854775808",
    "NaN",
    "inf",
    "-inf",
    "1e300",
    "-0.5",
    "",
    "nonsense",
    "true",
    "3,1,2",
];

/// Valid calls of the golden cases, one per operator.
fn golden_calls() -> BTreeMap<String, Call> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let mut calls = BTreeMap::new();
    for group in selftest::load(&golden).unwrap() {
        for case in &group.cases {
            let path = golden.join(&group.system).join(format!("{}.safetensors", case.file));
            let file = TensorFile::open(path).unwrap();
            let mut tensors = case.call_tensors(&group, &file).unwrap();
            tensors.retain(|name, _| !name.starts_with("grad_out."));
            let call = Call {
                op: group.op.clone(),
                tensors,
                attributes: case.attributes(&group, &file).unwrap(),
                dtype: Some(DType::F32),
                device: Device::Cpu,
                grad: true,
            };
            // The case with most inputs.
            let known: Option<&Call> = calls.get(&group.op);
            if known.is_none_or(|known| known.tensors.len() < call.tensors.len()) {
                calls.insert(group.op.clone(), call);
            }
        }
    }
    calls
}

/// A tensor of that type with small values, `i mod 2`.
fn tensor(shape: &[usize], dtype: DType) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|index| (index % 2) as f32).collect();
    Tensor::from_vec(values, shape.to_vec(), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

/// A call with tensors that most elementary operators accept.
fn plain_call(spec: &OpSpec) -> Call {
    let dtype = |dtypes: &[DType]| {
        let preferred = [DType::F32, DType::I64, DType::Bool, DType::C64];
        preferred.into_iter().find(|dtype| dtypes.contains(dtype)).unwrap_or(dtypes[0])
    };
    let shape: &[usize] =
        if spec.inputs.iter().any(|arg| arg.shape == "count") { &[2] } else { &[4, 4] };
    let required = spec.inputs.iter().filter(|arg| !arg.optional && arg.prefix().is_none());
    let tensors = required.map(|arg| (arg.name.to_string(), tensor(shape, dtype(arg.dtypes))));
    Call {
        op: spec.name.to_string(),
        tensors: tensors.collect(),
        attributes: BTreeMap::new(),
        dtype: None,
        device: Device::Cpu,
        grad: false,
    }
}

/// The same call with one tensor changed or gone.
fn changed_tensors(call: &Call) -> Vec<(String, Call)> {
    let mut calls = Vec::new();
    for (name, own) in &call.tensors {
        let mut with = |what: &str, tensor: Option<Tensor>| {
            let mut call = call.clone();
            match tensor {
                Some(tensor) => call.tensors.insert(name.clone(), tensor),
                None => call.tensors.remove(name),
            };
            calls.push((format!("{name} {what}"), call));
        };
        with("missing", None);
        for shape in [&[][..], &[0], &[1], &[3], &[2, 0], &[5, 3], &[1, 2, 3], &[2, 3, 2, 5, 2]] {
            with(&format!("{shape:?}"), Some(tensor(shape, own.dtype())));
        }
        for dtype in DType::ALL {
            with(&format!("as {dtype}"), Some(tensor(own.dims(), dtype)));
        }
        let dims: Vec<usize> = own.dims().iter().rev().copied().collect();
        with("reversed", Some(tensor(&dims, own.dtype())));
        for value in [-1.0, 1e9, f64::NAN, f64::INFINITY, 9.3e18, -9.3e18] {
            let full = Tensor::full(value, own.shape(), &Device::Cpu).unwrap();
            with(&format!("= {value}"), Some(full.to_dtype(own.dtype()).unwrap()));
        }
    }
    calls
}

fn changed_attributes(spec: &OpSpec, call: &Call) -> Vec<(String, Call)> {
    let mut calls = Vec::new();
    for attribute in spec.attributes {
        for value in VALUES {
            let mut call = call.clone();
            call.attributes.insert(attribute.name.to_string(), value.to_string());
            calls.push((format!("{}={value}", attribute.name), call));
        }
    }
    calls
}

#[test]
fn no_argument_makes_an_operator_panic() {
    let registry = danaus::registry().unwrap();
    let golden = golden_calls();
    let mut panics = Vec::new();
    let mut refused = 0;
    let mut total = 0;
    for spec in registry.iter() {
        let mut bases = vec![plain_call(spec)];
        bases.extend(golden.get(spec.name).cloned());
        for base in bases {
            let mut calls = vec![("as it is".to_string(), base.clone())];
            calls.extend(changed_tensors(&base));
            calls.extend(changed_attributes(spec, &base));
            for (what, call) in calls {
                total += 1;
                match catch_unwind(AssertUnwindSafe(|| registry.run(&call))) {
                    Err(_) => panics.push(format!("{} with {what}", spec.name)),
                    Ok(Err(error)) => {
                        refused += 1;
                        let message = error.to_string();
                        let fine = !message.contains("internal error") && !message.contains('\n');
                        assert!(fine, "{} with {what}: {message}", spec.name);
                    }
                    Ok(Ok(_)) => {}
                }
            }
        }
    }
    println!("{total} calls, {refused} refused");
    assert!(panics.is_empty(), "{} calls panic: {panics:#?}", panics.len());
}

/// Attributes of every kind refuse text of another kind, naming the attribute.
#[test]
fn attributes_check_their_kind() {
    let registry = danaus::registry().unwrap();
    let golden = golden_calls();
    for spec in registry.iter() {
        let base = golden.get(spec.name).cloned().unwrap_or_else(|| plain_call(spec));
        for attribute in spec.attributes.iter().filter(|attribute| attribute.kind != Kind::Text) {
            let mut call = base.clone();
            call.attributes.insert(attribute.name.to_string(), "nonsense".to_string());
            let message = registry.run(&call).unwrap_err().to_string();
            assert!(message.contains(&format!("{} is nonsense", attribute.name)), "{message}");
        }
    }
}
