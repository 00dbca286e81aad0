//! `danaus factor`.

use anyhow::Context;
use clap::Args;
use danaus::matrix::structured::factor::{
    self, TARGETS, factor_mm_star, project_low_rank, project_monarch_layer, recognise,
};
use danaus::tensor::safetensors::{TensorFile, save};
use danaus::tensor::{DType, Device, Error, Tensor};
use danaus::train::learn::{LearnOptions, learn_butterfly};
use serde_json::json;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

#[derive(Args)]
#[command(after_help = "\
Names: dft, idft, dct2, dct3, dct4, dst2, dst4, hadamard, hartley, circulant, toeplitz, random.
Exit code 1 if no fast algorithm is found.

Examples:
  danaus factor dft --n 1024
  danaus factor weights.safetensors --tensor fc1.weight --monarch 4 --out fc1.monarch.safetensors
  danaus factor dft --n 16 --learn
  danaus factor random --n 256 --lowrank 16 --json")]
pub struct FactorArgs {
    /// Name of a transform, or a safetensors file with a matrix
    source: String,
    /// Size of a named transform
    #[arg(long, default_value_t = 1024)]
    n: usize,
    /// Seed of random matrices
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Which matrix of a file (default: its only one)
    #[arg(long)]
    tensor: Option<String>,
    /// Project onto Monarch matrices of this many blocks in both factors
    #[arg(long, value_name = "BLOCKS", conflicts_with = "lowrank")]
    monarch: Option<usize>,
    /// Project onto matrices of this rank
    #[arg(long, value_name = "RANK")]
    lowrank: Option<usize>,
    /// Factor a product of two Monarch matrices
    #[arg(long, conflicts_with_all = ["monarch", "lowrank"])]
    mmstar: bool,
    /// Learn factors and permutation by gradients from random starts, instead of the closed form
    #[arg(long, conflicts_with_all = ["monarch", "lowrank", "mmstar"])]
    learn: bool,
    /// Random starts of --learn at most
    #[arg(long, default_value_t = 8, value_name = "COUNT")]
    starts: usize,
    /// Write the factors to a safetensors file
    #[arg(long)]
    out: Option<PathBuf>,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// What was found.
struct Found {
    class: String,
    tensors: Vec<(String, Tensor)>,
    parameters: usize,
    residual: f64,
    max_error: Option<f64>,
}

pub fn run(args: &FactorArgs) -> anyhow::Result<ExitCode> {
    let matrix = read(args)?;
    let start = Instant::now();
    let found = factored(args, &matrix)?;
    let seconds = start.elapsed().as_secs_f64();
    let Some(found) = found else {
        println!("{}: no fast algorithm found in {seconds:.2} s", args.source);
        return Ok(ExitCode::FAILURE);
    };
    if let Some(path) = &args.out {
        write(path, &found)?;
    }
    let dense = matrix.elem_count();
    if args.json {
        let record = json!({
            "source": args.source, "shape": matrix.dims(), "class": found.class,
            "parameters": found.parameters, "dense_parameters": dense,
            "relative_error": found.residual, "max_error": found.max_error, "seconds": seconds,
        });
        println!("{record}");
        return Ok(ExitCode::SUCCESS);
    }
    println!("{}: {:?}, {} in {seconds:.2} s", args.source, matrix.dims(), found.class);
    let share = dense as f64 / found.parameters.max(1) as f64;
    println!("parameters: {} of {dense} ({share:.1} x fewer)", found.parameters);
    println!("relative error: {:.3e} (Frobenius norm)", found.residual);
    if let Some(error) = found.max_error {
        println!("largest error: {error:.3e} of the largest entry");
    }
    Ok(ExitCode::SUCCESS)
}

fn factored(args: &FactorArgs, matrix: &Tensor) -> anyhow::Result<Option<Found>> {
    if matrix.rank() != 2 {
        let shape = matrix.shape();
        return Err(Error::shape("factor", "matrix", shape, "[rows, cols]").into());
    }
    if let Some(blocks) = args.monarch {
        let found = project_monarch_layer(matrix, blocks)?;
        return Ok(Some(Found {
            class: format!("monarch({blocks})"),
            parameters: found.w1.elem_count() + found.w2.elem_count(),
            residual: found.relative_error(),
            max_error: None,
            tensors: vec![("w1".into(), found.w1), ("w2".into(), found.w2)],
        }));
    }
    if let Some(rank) = args.lowrank {
        let found = project_low_rank(matrix, rank)?;
        return Ok(Some(Found {
            class: format!("lowrank({rank})"),
            parameters: found.u.elem_count() + found.v.elem_count(),
            residual: found.relative_error(),
            max_error: None,
            tensors: vec![("u".into(), found.u), ("v".into(), found.v)],
        }));
    }
    if args.mmstar {
        let found = factor_mm_star(matrix)?;
        return Ok(Some(Found {
            class: "MM*".into(),
            parameters: found.l1.elem_count() * 3,
            residual: found.relative_error,
            max_error: None,
            tensors: vec![("l1".into(), found.l1), ("r".into(), found.r), ("l2".into(), found.l2)],
        }));
    }
    if args.learn {
        let options =
            LearnOptions { seed: args.seed, starts: args.starts, ..LearnOptions::default() };
        let found = learn_butterfly(matrix, &options)?;
        let ids: Vec<i64> = found.permutation.iter().map(|&at| at as i64).collect();
        let perm = Tensor::from_vec(ids, [found.permutation.len()], &Device::Cpu)?;
        return Ok((found.rmse <= options.goal).then(|| Found {
            class: format!("{} (learned, seed {})", found.class(), found.seed),
            parameters: found.twiddle.elem_count(),
            residual: found.rmse,
            max_error: None,
            tensors: vec![("twiddle".into(), found.twiddle), ("perm".into(), perm)],
        }));
    }
    Ok(recognise(matrix)?.map(|found| Found {
        parameters: found.map.parameters(),
        residual: found.residual,
        max_error: Some(found.max_error),
        tensors: found.parts(),
        class: found.class,
    }))
}

fn read(args: &FactorArgs) -> anyhow::Result<Tensor> {
    if TARGETS.contains(&args.source.as_str()) {
        return Ok(factor::target(&args.source, args.n, args.seed)?);
    }
    let path = Path::new(&args.source);
    if !path.exists() {
        // The message that lists the names.
        return Ok(factor::target(&args.source, args.n, args.seed)?);
    }
    let file = TensorFile::open(path)?;
    let names = file.names();
    let name = match (&args.tensor, names.as_slice()) {
        (Some(name), _) => name.clone(),
        (None, [only]) => only.clone(),
        (None, _) => {
            let valid = names.join(", ");
            return Err(Error::argument("factor", "--tensor", "missing", valid).into());
        }
    };
    Ok(file.tensor(&name)?.to_dtype(DType::F64)?)
}

/// Complex tensors are pairs: the format has no complex type of f64.
fn write(path: &Path, found: &Found) -> anyhow::Result<()> {
    let mut parts = Vec::new();
    for (name, tensor) in &found.tensors {
        match tensor.dtype().is_complex() {
            true => {
                parts.push((format!("{name}.re"), tensor.real()?));
                parts.push((format!("{name}.im"), tensor.imag()?));
            }
            false => parts.push((name.clone(), tensor.contiguous()?)),
        }
    }
    let entries = parts.iter().map(|(name, tensor)| (name.as_str(), tensor));
    let class = HashMap::from([("class".to_string(), found.class.clone())]);
    save(path, entries, class).context("writing the factors")
}
