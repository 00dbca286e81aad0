//! Compiling every shipped GPU kernel without a GPU: `danaus kernels build`.

use danaus_runtime::cuda::compile::{compile_now, file_name, write};
use danaus_runtime::cuda::{Arch, Error, Resources, Variant};
use std::path::Path;

/// The kernels of every room.
pub fn all() -> Vec<Variant> {
    let mut all = danaus_tensor::ops::kernels();
    all.extend(danaus_kernel::ops::kernels());
    all
}

/// What became of one variant.
#[derive(Debug)]
pub struct Built {
    /// File of the source.
    pub source: String,
    /// Its constants.
    pub defines: String,
    /// Its entry points, or what the compiler said.
    pub result: Result<Vec<Resources>, Error>,
    /// Costly things that the assembler reported and the variant does not declare.
    pub complaints: Vec<String>,
}

impl Built {
    /// Whether it compiled without costly surprises.
    pub fn passed(&self) -> bool {
        self.result.is_ok() && self.complaints.is_empty()
    }
}

/// Compiles the kernels whose source name contains `filter` for a chip, writes them to a folder (with
/// `DANAUS_KERNELS` naming it, programs need no compiler), and reports each.
///
/// # Errors
/// When the run-time compiler is missing or a file cannot be written. A kernel that does not compile
/// is reported and does not stop the others.
pub fn build(
    arch: Arch,
    folder: &Path,
    filter: &str,
    mut report: impl FnMut(&Built),
) -> Result<Vec<Built>, danaus_tensor::Error> {
    danaus_runtime::cuda::compile::nvrtc_version()?;
    let wanted =
        |variant: &Variant| arch.number() >= variant.from && variant.source.name().contains(filter);
    let mut built = Vec::new();
    for variant in all().into_iter().filter(wanted) {
        let Variant { source, defines, spills, .. } = &variant;
        let compiled = compile_now(source, defines, arch);
        let mut complaints = Vec::new();
        if let Ok(compiled) = &compiled {
            let path = folder.join(file_name(source, defines, arch));
            write(&path, compiled).map_err(|error| danaus_tensor::Error::io(&path, error))?;
            if spills.is_none() {
                let spilled = compiled.resources().into_iter().filter(|entry| entry.spills > 0);
                complaints
                    .extend(spilled.map(|e| format!("{} spills {} bytes", e.entry, e.spills)));
                complaints.extend(compiled.warnings().into_iter().map(str::to_owned));
            }
        }
        let one = Built {
            source: source.name().to_owned(),
            defines: defines.to_string(),
            result: compiled.map(|compiled| compiled.resources()),
            complaints,
        };
        report(&one);
        built.push(one);
    }
    Ok(built)
}
