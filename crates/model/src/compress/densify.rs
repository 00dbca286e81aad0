//! Structured weights multiplied out.

use super::write::{Replaced, refuse_existing, write};
use super::{Report, Source, Watch};
use crate::{Error, Result};
use danaus_matrix::structured::Format;
use danaus_matrix::structured::factor::project;
use danaus_tensor::DType;
use std::path::Path;

/// Reads the model at `source` and writes our folder at `out` with all linear weights dense: computed in
/// f64, written in `dtype`, default f32.
///
/// # Errors
/// When the source cannot be read, has no structured weight, or something lies at `out`.
pub fn densify(source: &Path, out: &Path, dtype: Option<DType>, watch: Watch) -> Result<Report> {
    refuse_existing(out)?;
    let source = Source::open(source)?;
    let (mut replaced, mut report) = (Vec::new(), Report::new(&source.model));
    let all = source.model.decoder.matrices();
    for (index, made) in all.iter().enumerate() {
        let [rows, cols] = made.shape;
        let format = Format::try_from(made.format.clone())?;
        if format == Format::Dense {
            continue;
        }
        watch(index, all.len(), &made.name);
        let counts = (format.elem_count(rows, cols), rows * cols);
        report.add(made, counts, String::from(Format::Dense), 0.0);
        let projected = project(&source.dense(made)?, Format::Dense)?;
        replaced.push(Replaced { made: made.clone(), projected });
    }
    if replaced.is_empty() {
        let valid = "a model with structured weights (its weights are all dense)";
        return Err(Error::argument("model", "dense", valid));
    }
    report.finish(&source, &replaced);
    let mut config = source.config().clone();
    config.weights = Format::Dense;
    config.weight_overrides.clear();
    write(&source, &config, replaced, out, (dtype, &report))?;
    Ok(report)
}
