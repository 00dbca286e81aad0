//! The golden cases of `tests/golden/cases.json` through the joined registry, as `danaus selftest` runs
//! them.

use danaus::bench::selftest;
use danaus::tensor::Device;
use std::path::Path;

#[test]
fn every_golden_case_passes() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let registry = danaus::registry().unwrap();
    let outcomes = selftest::run(&registry, &golden, "", Device::Cpu, |_| {}).unwrap();
    let failed: Vec<String> = outcomes
        .iter()
        .filter(|outcome| !outcome.passed())
        .map(|outcome| format!("{}: {:?}", outcome.case, outcome.result))
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(outcomes.len() > 100, "only {} cases ran", outcomes.len());
}

/// Two variants under one file name would overwrite each other in a pack of compiled kernels.
#[test]
fn shipped_kernels_are_listed_once() {
    let mut files: Vec<String> = danaus::kernels::all()
        .iter()
        .map(|variant| {
            let arch = danaus::runtime::cuda::Arch::new(9, 0);
            danaus::runtime::cuda::compile::file_name(&variant.source, &variant.defines, arch)
        })
        .collect();
    let count = files.len();
    files.sort_unstable();
    files.dedup();
    assert_eq!(files.len(), count);
    assert!(count > 50, "only {count} variants");
}

#[test]
fn every_operator_is_described() {
    for spec in danaus::registry().unwrap().iter() {
        assert!(!spec.summary.is_empty() && !spec.outputs.is_empty(), "{}", spec.name);
        let mut names: Vec<&str> = spec.inputs.iter().map(|arg| arg.name).collect();
        names.extend(spec.attributes.iter().map(|attr| attr.name));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "{} uses a name twice", spec.name);
    }
}
