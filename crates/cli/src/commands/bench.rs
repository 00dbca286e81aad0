//! `danaus bench`.

use crate::failure::BadInput;
use clap::Args;
use danaus::bench::gpu;
use danaus::bench::roofline::Roofline;
use danaus::bench::suites::generate::{self, GenerateCase, GenerateRow, Subject};
use danaus::bench::suites::{self, Request, Row, SUITES};
use danaus::kernel::ops::quantized::Activations;
use danaus::model::decoder::Compute;
use danaus::runtime::{simd, threads};
use danaus::tensor::Device;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Args)]
#[command(after_help = "Examples:\n  danaus bench attention --peers\n  \
                        danaus bench generate --shape llama-130m --weights q8_0 --batch 1,8\n  \
                        danaus bench generate --model M.gguf --peers\n\
                        Peers need a Python with PyTorch (llama-cpp-python for GGUF files); name it with \
                        DANAUS_PYTHON.")]
pub struct BenchArgs {
    /// Suite, or all; `generate` measures whole models and is not part of all
    #[arg(default_value = "all")]
    suite: String,
    /// Only cases whose name contains this
    #[arg(long, default_value = "")]
    filter: String,
    /// Run the peers in turn with us and print ratios
    #[arg(long)]
    peers: bool,
    /// Folder with the peers' scripts
    #[arg(long, default_value = "benches/peers", value_name = "FOLDER")]
    peers_dir: PathBuf,
    /// Model shape of `generate`: llama-130m, mamba2-130m, llama-1b, mamba2-2.7b
    #[arg(long, default_value = "llama-130m", conflicts_with = "model")]
    shape: String,
    /// How the weights of that shape are stored: f32, bf16, f16, q8_0, q4_0, q4_k
    #[arg(long, default_value = "f32", conflicts_with = "model")]
    weights: String,
    /// Type of activations and caches of `generate`: f32 or bf16; int8 rounds f32 for quantised products
    #[arg(long, default_value = "f32", value_parser = super::sampling::parse_compute)]
    compute: Compute,
    /// A model to measure in place of a shape
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Sequences at a time of `generate`
    #[arg(long, value_delimiter = ',', default_value = "1,8")]
    batch: Vec<usize>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// Where to measure; on a GPU the suites are copy, gemm, elementwise, attention, decode and launch
    #[arg(long, default_value_t = Device::Cpu)]
    device: Device,
}

pub fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    if args.device.is_cuda() {
        return match args.suite.as_str() {
            "generate" => run_generate(args, gpu::roofline(&args.device.open()?)?),
            _ => run_gpu(args),
        };
    }
    let chosen = match args.suite.as_str() {
        "all" => SUITES.to_vec(),
        "generate" => Vec::new(),
        name => vec![suites::find(name)?],
    };
    let roofline = Roofline::measure();
    let (threads, isa) = (threads::count(), simd::isa().name());
    if !args.json {
        println!(
            "{threads} threads, {isa}: {:.0} GFLOP/s f32, {:.1} GB/s copy",
            roofline.f32_flops / 1e9,
            roofline.copy_bytes_per_s / 1e9
        );
    }
    let request =
        Request { filter: &args.filter, peers: args.peers.then_some(args.peers_dir.as_path()) };
    let print = if args.json { print_json } else { print_row };
    if args.suite == "generate" {
        return run_generate(args, roofline);
    }
    for suite in chosen {
        suites::run(suite, &request, roofline, print)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn run_generate(args: &BenchArgs, roofline: Roofline) -> anyhow::Result<ExitCode> {
    for &batch in &args.batch {
        let subject = match &args.model {
            Some(path) => Subject::File(path.clone()),
            None => Subject::Shape { shape: args.shape.clone(), weights: args.weights.clone() },
        };
        let peers = args.peers.then(|| args.peers_dir.clone());
        let compute = Compute { device: args.device, ..args.compute };
        let case = GenerateCase { subject, compute, batch, peers };
        print_generate(&generate::measure(&case, roofline)?, args.json);
    }
    Ok(ExitCode::SUCCESS)
}

fn run_gpu(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    if args.peers && args.suite != "attention" {
        let text = "--peers on a GPU runs with attention; benches/peers holds the other scripts";
        return Err(BadInput(text.to_string()).into());
    }
    let peers = args.peers.then_some(args.peers_dir.as_path());
    let gpu = args.device.open()?.gpu()?;
    if !args.json {
        println!("{}: {}, {}", args.device, gpu.name(), gpu.arch());
    }
    gpu::run(&args.device, &args.suite, peers, |row| {
        let print = if args.json { print_gpu_json } else { print_gpu };
        if row.what.contains(&args.filter) {
            print(row);
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

fn print_gpu(row: &gpu::Row) {
    print!("{:<48} {:9.4} ms", row.what, row.median_ms);
    if row.flops > 0.0 {
        print!("  {:7.1} TFLOP/s", row.tflops());
    }
    if row.bytes > 0.0 {
        print!("  {:7.1} GB/s", row.gbytes());
    }
    if let Some(share) = row.of_ceiling {
        print!("  {:3.0} % of copy", 100.0 * share);
    }
    println!();
}

fn print_gpu_json(row: &gpu::Row) {
    let object = json!({
        "what": row.what, "median_ms": row.median_ms, "tflops": row.tflops(),
        "gbytes_per_s": row.gbytes(), "of_copy": row.of_ceiling,
    });
    println!("{object}");
}

fn milliseconds(time: std::time::Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn print_row(row: &Row) {
    let (low, high) = row.ours.range();
    print!(
        "{:<18} {:9.2} ms [{:.2}, {:.2}]  {:7.1} GFLOP/s {:6.1} GB/s  {:3.0} % of roofline",
        row.case.name,
        milliseconds(row.ours.median()),
        milliseconds(low),
        milliseconds(high),
        row.gflops(),
        row.gbytes(),
        100.0 * row.of_roofline()
    );
    if let (Some(peer), Some(ratio)) = (&row.peer, row.ratio()) {
        print!("  peer {:9.2} ms  ratio {ratio:.3}", milliseconds(peer.median()));
    }
    println!("  ({}; {} runs)", row.case.what, row.ours.runs());
}

fn print_json(row: &Row) {
    let object = json!({
        "case": row.case.name,
        "what": row.case.what,
        "median_ms": milliseconds(row.ours.median()),
        "runs": row.ours.runs(),
        "gflops": row.gflops(),
        "gbytes_per_s": row.gbytes(),
        "of_roofline": row.of_roofline(),
        "peer_median_ms": row.peer.as_ref().map(|peer| milliseconds(peer.median())),
        "ratio": row.ratio(),
    });
    println!("{object}");
}

fn print_generate(row: &GenerateRow, as_json: bool) {
    let (label, batch) = (row.case.subject.label(), row.case.batch);
    let compute = match row.case.compute.activations {
        Activations::Int8 => Activations::Int8.name().to_string(),
        Activations::F32 => row.case.compute.dtype.to_string(),
    };
    let (step, products) = (milliseconds(row.step), milliseconds(row.products));
    if as_json {
        let object = json!({
            "subject": label, "compute": compute, "batch": batch, "parameters": row.parameters,
            "prefill_tokens_per_s": row.prefill_rate, "prefill_of_peak": row.prefill_of_peak,
            "decode_tokens_per_s": row.decode_rate, "step_ms": step, "products_ms": products,
            "bytes": row.bytes, "of_bandwidth": row.of_bandwidth,
            "weight_bytes": row.weight_bytes, "weights_of_bandwidth": row.weights_of_bandwidth,
            "launched_step_ms": row.launched.map(milliseconds),
            "graph": super::graph_json(&row.graph),
            "peer_prefill_tokens_per_s": row.peer.map(|peer| peer.prefill),
            "peer_decode_tokens_per_s": row.peer.map(|peer| peer.decode),
        });
        return println!("{object}");
    }
    println!(
        "{label}, {compute} compute, batch {batch}: prefill {:.0} tokens/s ({:.0} % of peak), decode {:.1} \
         tokens/s, step {step:.2} ms (products alone {products:.2} ms), {:.0} % of copy bandwidth",
        row.prefill_rate,
        100.0 * row.prefill_of_peak,
        row.decode_rate,
        100.0 * row.of_bandwidth
    );
    if let Some(launched) = row.launched {
        let rate = batch as f64 / launched.as_secs_f64();
        let share = 100.0 * row.weights_of_bandwidth;
        match &row.graph.refused {
            Some(reason) => println!("  no graph: {reason}"),
            None => println!(
                "  weights alone {share:.0} % of copy bandwidth; without graphs {rate:.1} tokens/s, step \
                 {:.2} ms ({:.0} %)",
                milliseconds(launched),
                share * row.step.as_secs_f64() / launched.as_secs_f64()
            ),
        }
    }
    if let Some(peer) = row.peer {
        println!(
            "  peer: prefill {:.0} tokens/s (ours {:.2}x), decode {:.1} tokens/s (ours {:.2}x)",
            peer.prefill,
            row.prefill_rate / peer.prefill,
            peer.decode,
            row.decode_rate / peer.decode
        );
    }
}
