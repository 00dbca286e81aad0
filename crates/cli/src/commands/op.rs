//! `danaus op list` and `danaus op run`.

use clap::{Args, Subcommand};
use danaus::op_files::{self, FileCall};
use danaus::tensor::registry::OpSpec;
use danaus::tensor::{DType, Device};
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Subcommand)]
pub enum OpCommand {
    /// Name every operator with its inputs, attributes and outputs
    #[command(after_help = "Example: danaus op list --json")]
    List {
        /// Only operators whose name contains this
        #[arg(default_value = "")]
        filter: String,
        /// Print a JSON list
        #[arg(long)]
        json: bool,
    },
    /// Run one operator on tensors from a safetensors file
    #[command(
        after_help = "Example: danaus op run attention --in qkv.safetensors --out o.safetensors \
                            --set causal=true --dtype f32 --grad"
    )]
    Run(RunArgs),
}

#[derive(Args)]
pub struct RunArgs {
    /// Operator, see `danaus op list`
    name: String,
    /// File with the inputs, looked up by name
    #[arg(long = "in", value_name = "FILE")]
    input: PathBuf,
    /// File for the outputs
    #[arg(long = "out", value_name = "FILE")]
    output: PathBuf,
    /// Attribute
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Use another tensor name in the files
    #[arg(long, value_name = "NAME=NAME-IN-FILE")]
    map: Vec<String>,
    /// Cast floating-point inputs first: f64, f32, bf16, f16, e4m3
    #[arg(long)]
    dtype: Option<DType>,
    /// Where to run
    #[arg(long, default_value_t = Device::Cpu)]
    device: Device,
    /// Also write grad.INPUT, for the cotangents grad_out.OUTPUT in the file
    #[arg(long)]
    grad: bool,
}

pub fn run(command: &OpCommand) -> anyhow::Result<ExitCode> {
    let registry = danaus::registry()?;
    let mut out = std::io::stdout().lock();
    match command {
        OpCommand::List { filter, json } => {
            let specs: Vec<_> = registry.iter().filter(|spec| spec.name.contains(filter)).collect();
            if *json {
                let rows: Vec<_> = specs.into_iter().map(describe).collect();
                writeln!(out, "{}", serde_json::to_string_pretty(&rows)?)?;
            } else {
                specs.into_iter().try_for_each(|spec| print(&mut out, spec))?;
            }
        }
        OpCommand::Run(args) => {
            let request = FileCall {
                op: args.name.clone(),
                input: args.input.clone(),
                output: args.output.clone(),
                set: args.set.clone(),
                map: args.map.clone(),
                dtype: args.dtype,
                grad: args.grad,
                device: args.device,
            };
            let written = op_files::run(&registry, &request)?;
            writeln!(out, "{}: {}", args.output.display(), written.join(", "))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(spec: &OpSpec) -> serde_json::Value {
    let names = |dtypes: &[DType]| dtypes.iter().map(|dtype| dtype.name()).collect::<Vec<_>>();
    let inputs = spec.inputs.iter().map(|arg| {
        json!({
            "name": arg.name, "shape": arg.shape, "dtypes": names(arg.dtypes),
            "optional": arg.optional,
        })
    });
    let attributes = spec.attributes.iter().map(|attr| {
        json!({
            "name": attr.name, "type": format!("{:?}", attr.kind).to_lowercase(),
            "default": attr.default, "doc": attr.doc,
        })
    });
    json!({
        "name": spec.name, "summary": spec.summary, "inputs": inputs.collect::<Vec<_>>(),
        "attributes": attributes.collect::<Vec<_>>(), "outputs": spec.outputs,
    })
}

fn print(out: &mut impl Write, spec: &OpSpec) -> std::io::Result<()> {
    let inputs: Vec<String> = spec
        .inputs
        .iter()
        .map(|arg| if arg.optional { format!("[{}]", arg.name) } else { arg.name.to_string() })
        .collect();
    writeln!(out, "{}({}) -> {}", spec.name, inputs.join(", "), spec.outputs.join(", "))?;
    writeln!(out, "    {}", spec.summary)?;
    for attr in spec.attributes {
        let default = if attr.default.is_empty() { "none" } else { attr.default };
        writeln!(out, "    --set {}={default}  {}", attr.name, attr.doc)?;
    }
    Ok(())
}
