//! The step written down in f64: the oracles of the convolution and of the recurrence, one after the other.

use super::rows;
use super::{Call, Mamba2Pool};
use crate::ops::conv1d::reference as conv;
use crate::ops::ssd::arrays::slice;
use crate::ops::ssd::reference::{self, Core};
use crate::ops::ssd::runs::Run;
use danaus_tensor::{Result, Tensor};

/// Advances the states and writes `y`, which is zero before.
pub(super) fn step(call: &Call, pool: &mut Mamba2Pool, y: &mut Tensor) -> Result<()> {
    let sizes = &call.sizes;
    let rows = rows::resolve(call, pool)?;
    let tokens = rows::gather::<f64>(call, pool, &rows)?;
    let (count, channels, values) = (tokens.count(), sizes.channels(), sizes.width_out());
    let (mixed, _) = conv::forward(&conv::Conv {
        runs: &tokens.runs,
        channels,
        width: sizes.width,
        x: &tokens.xbc,
        weight: call.weight.as_slice()?,
        bias: slice(&call.conv_bias)?,
        initial_states: Some(&tokens.history),
        states: rows.len(),
        silu: true,
    });
    let columns = |start: usize, len: usize| -> Vec<f64> {
        (0..count).flat_map(|token| mixed[token * channels + start..][..len].to_vec()).collect()
    };
    let keys = sizes.groups * sizes.d_state;
    let (x, b, c) = (columns(0, values), columns(values, keys), columns(values + keys, keys));
    let rates: Vec<f64> = call.a_log.as_slice::<f64>()?.iter().map(|log| -log.exp()).collect();
    let (scale, log_decay) =
        reference::prologue(&tokens.dt, &rates, slice(&call.dt_bias)?, &call.options.ssd().steps());
    let each = call.d.as_ref().map_or(1, |d| if d.rank() == 1 { sizes.head_dim } else { 1 });
    let d: Option<Vec<f64>> = slice::<f64>(&call.d)?
        .map(|d| d.iter().flat_map(|&d| std::iter::repeat_n(d, each)).collect());
    let len = sizes.heads * sizes.head_dim * sizes.d_state;
    let states = pool.scan.as_slice_mut::<f64>()?;
    let entering: Vec<f64> =
        rows.iter().flat_map(|row| states[row.from * len..][..len].to_vec()).collect();
    let pass = |runs: &[Run], initial: &[f64]| {
        reference::core_forward(&Core::<f64> {
            shape: sizes.shape(count),
            runs,
            x: &x,
            log_decay: &log_decay,
            scale: &scale,
            b: &b,
            c: &c,
            d: d.as_deref(),
            initial_states: Some(initial),
            states: rows.len(),
        })
    };
    let cut = |new: bool| -> Vec<Run> {
        let cut = |(run, row): (&Run, &rows::Row)| match new {
            false => Run { len: row.replay, ..*run },
            true => Run { start: run.start + row.replay, len: run.len - row.replay, ..*run },
        };
        tokens.runs.iter().zip(&rows).map(cut).collect()
    };
    let (_, before) = pass(&cut(false), &entering);
    let (mut out, behind) = pass(&cut(true), &before);
    if call.z.is_some() {
        reference::gate(&mut out, &tokens.z);
    }
    let kept = if call.options.commit { &behind } else { &before };
    let (y, new) = (y.as_slice_mut::<f64>()?, sizes.seqlen * values);
    for (number, (row, run)) in rows.iter().zip(&tokens.runs).enumerate() {
        states[row.to * len..][..len].copy_from_slice(&kept[number * len..][..len]);
        let from = &out[(run.start + row.replay) * values..][..new];
        y[row.index * new..][..new].copy_from_slice(from);
    }
    rows::leave(call, pool, &rows, &tokens)
}
