//! One line for the user, and the right exit code.

use std::process::ExitCode;

/// Prints the error on one line and returns 2 for bad input, 1 for everything else.
pub fn report(error: &anyhow::Error) -> ExitCode {
    if is_broken_pipe(error) {
        // The reader (`head`, a closed pager) has seen enough.
        return ExitCode::SUCCESS;
    }
    // Our errors' messages hold those of their causes.
    let line = error.to_string().replace('\n', " ");
    eprintln!("danaus: {line}");
    ExitCode::from(if is_bad_input(error) { 2 } else { 1 })
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}

fn is_bad_input(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let tensor = cause.downcast_ref().map(danaus::tensor::Error::is_bad_input);
        let model = cause.downcast_ref().map(danaus::model::Error::is_bad_input);
        let train = cause.downcast_ref().map(danaus::train::Error::is_bad_input);
        let bench = cause.downcast_ref().map(danaus::bench::Error::is_bad_input);
        let known = tensor.or(model).or(train).or(bench);
        known.unwrap_or(cause.is::<danaus::text::Error>() || cause.is::<BadInput>())
    })
}

/// A complaint of the command line itself about its arguments.
#[derive(Debug)]
pub struct BadInput(pub String);

impl std::fmt::Display for BadInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadInput {}
