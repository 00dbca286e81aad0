//! Registry entry.

use super::{Mamba2Pool, OP, StepInputs, StepOptions, StepParams, StepRows, mamba2_step};
use danaus_tensor::registry::{Arg, Args, Attr, Kind, OpSpec};
use danaus_tensor::{Error, Result, Tensor};

/// Registry entries.
pub const SPECS: &[OpSpec] = &[OpSpec {
    name: OP,
    summary: "fused decoding step of a Mamba-2 layer on a paged pool of states, with replay of drafts",
    inputs: &[
        Arg::float("xbc", "batch seqlen channels"),
        Arg::float("dt", "batch seqlen heads"),
        Arg::float("z", "batch seqlen heads*head_dim").optional(),
        Arg::float("conv_weight", "channels width"),
        Arg::float("conv_bias", "channels").optional(),
        Arg::float("dt_bias", "heads").optional(),
        Arg::float("A_log", "heads"),
        Arg::float("D", "heads [head_dim]").optional(),
        Arg::int("slots", "batch"),
        Arg::int("to_slots", "batch").optional(),
        Arg::int("accepted", "batch").optional(),
        Arg::float("conv_states", "slots places channels"),
        Arg::float("dt_states", "slots places heads"),
        Arg::float("scan_states", "slots heads head_dim d_state"),
        Arg::int("cursor", "slots 2"),
    ],
    attributes: &[
        Attr::new("dt_softplus", Kind::Bool, "true", "apply softplus to dt + dt_bias"),
        Attr::new("dt_limit", Kind::Floats, "", "bounds of the step size, low,high"),
        Attr::new("commit", Kind::Bool, "true", "keep the state behind the new tokens"),
    ],
    outputs: &["y", "conv_states", "dt_states", "scan_states", "cursor"],
    call,
}];

fn call(args: &Args) -> Result<Vec<Option<Tensor>>> {
    let inputs =
        StepInputs { xbc: args.input("xbc")?, dt: args.input("dt")?, z: args.optional("z") };
    let params = StepParams {
        conv_weight: args.input("conv_weight")?,
        conv_bias: args.optional("conv_bias"),
        dt_bias: args.optional("dt_bias"),
        a_log: args.input("A_log")?,
        d: args.optional("D"),
    };
    let rows = StepRows {
        slots: args.input("slots")?,
        to_slots: args.optional("to_slots"),
        accepted: args.optional("accepted"),
    };
    let mut pool = Mamba2Pool {
        conv: args.input("conv_states")?.detach(),
        dt: args.input("dt_states")?.detach(),
        scan: args.input("scan_states")?.detach(),
        cursor: args.input("cursor")?.detach(),
    };
    let dt_limit = match args.floats("dt_limit")?.as_deref() {
        None => None,
        Some(&[low, high]) => Some((low, high)),
        Some(other) => {
            let given = format!("{other:?}");
            return Err(Error::argument(OP, "dt_limit", given, "two numbers: low,high"));
        }
    };
    let (dt_softplus, commit) = (args.bool("dt_softplus")?, args.bool("commit")?);
    let options = StepOptions { dt_softplus, dt_limit, commit };
    let y = mamba2_step(&inputs, &params, &rows, &mut pool, &options)?;
    Ok([y, pool.conv, pool.dt, pool.scan, pool.cursor].map(Some).to_vec())
}
