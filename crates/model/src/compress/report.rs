//! What became of every weight.

use super::Source;
use super::write::Replaced;
use crate::checkpoint::Model;
use danaus_tensor::MadeMatrix;
use serde::Serialize;
use std::fmt::Write;

/// What became of a model.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The weights that were looked at.
    pub weights: Vec<WeightReport>,
    /// Parameters of these weights before and after.
    pub weight_parameters: [usize; 2],
    /// Parameters of the whole model before and after.
    pub parameters: [usize; 2],
    /// Root of the mean of the squared relative errors of the weights.
    pub mean_error: f64,
}

/// What became of a weight.
#[derive(Clone, Debug, Serialize)]
pub struct WeightReport {
    /// Its name, without the last part.
    pub name: String,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// Format before and after.
    pub format: [String; 2],
    /// Parameters before and after.
    pub parameters: [usize; 2],
    /// Frobenius norm of the difference as a part of that of the weight, before factors are rounded to
    /// the element type that is written.
    pub relative_error: f64,
}

impl Report {
    pub(super) fn new(model: &Model) -> Self {
        let count = model.decoder.params().elem_count();
        Self {
            weights: Vec::new(),
            weight_parameters: [0; 2],
            parameters: [count; 2],
            mean_error: 0.0,
        }
    }

    pub(super) fn add(
        &mut self,
        made: &MadeMatrix,
        (before, after): (usize, usize),
        format: String,
        relative_error: f64,
    ) {
        self.weight_parameters[0] += before;
        self.weight_parameters[1] += after;
        self.weights.push(WeightReport {
            name: made.name.clone(),
            shape: made.shape,
            format: [made.format.clone(), format],
            parameters: [before, after],
            relative_error,
        });
    }

    /// The numbers of the whole model, counted on the tensors themselves.
    pub(super) fn finish(&mut self, source: &Source, replaced: &[Replaced]) {
        for one in replaced {
            let old: usize =
                source.names_of(&one.made).map(|name| source.tensors[&name].elem_count()).sum();
            let new: usize = one.projected.tensors.values().map(|tensor| tensor.elem_count()).sum();
            self.parameters[1] = self.parameters[1] + new - old;
        }
        let squares: f64 = self.weights.iter().map(|weight| weight.relative_error.powi(2)).sum();
        self.mean_error = (squares / self.weights.len().max(1) as f64).sqrt();
    }

    /// One line a weight, and the sums.
    pub fn table(&self) -> String {
        let width = self.weights.iter().map(|weight| weight.name.len()).max().unwrap_or(6).max(6);
        let mut text = format!(
            "{:<width$}  {:>13}  {:<16}  {:>12}  {:>12}  {:>6}  {:>9}\n",
            "weight", "shape", "format", "before", "after", "share", "error"
        );
        for weight in &self.weights {
            let [rows, cols] = weight.shape;
            let (shape, share) = (format!("{rows} x {cols}"), share(weight.parameters));
            let [_, format] = &weight.format;
            let [before, after] = weight.parameters;
            // Writing into a string cannot fail.
            let _ = writeln!(
                text,
                "{:<width$}  {shape:>13}  {format:<16}  {before:>12}  {after:>12}  {share:>6}  {:>9.3e}",
                weight.name, weight.relative_error
            );
        }
        let ([before, after], [all_before, all_after]) = (self.weight_parameters, self.parameters);
        let _ = writeln!(
            text,
            "weights: {before} -> {after} parameters ({}), mean relative error {:.3e}",
            share(self.weight_parameters),
            self.mean_error
        );
        let _ = writeln!(
            text,
            "model:   {all_before} -> {all_after} parameters ({})",
            share(self.parameters)
        );
        text
    }
}

fn share([before, after]: [usize; 2]) -> String {
    format!("{:.1}%", 100.0 * after as f64 / before.max(1) as f64)
}
