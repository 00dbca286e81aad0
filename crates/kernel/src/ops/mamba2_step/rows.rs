//! The slots of a call on the processor: which tokens a row takes in, and what it leaves in its rings.

use super::{Call, Mamba2Pool, OP};
use crate::ops::ssd::arrays::{Held, plain};
use crate::ops::ssd::runs::Run;
use danaus_tensor::{DType, Element, Error, Result, Tensor};

/// A row that is not skipped.
pub(super) struct Row {
    /// Among the rows of the call.
    pub index: usize,
    pub from: usize,
    pub to: usize,
    /// Tokens of the last draft to take in first.
    pub replay: usize,
    /// Place of the first of them.
    cursor: i64,
}

fn integers(tensor: Option<&Tensor>) -> Result<Option<Vec<i64>>> {
    tensor.map(|tensor| plain(&tensor.to_dtype(DType::I64)?)?.to_vec::<i64>()).transpose()
}

/// The rows of a call, checked.
pub(super) fn resolve(call: &Call, pool: &Mamba2Pool) -> Result<Vec<Row>> {
    let sizes = &call.sizes;
    let slots = integers(Some(call.rows.slots))?.unwrap_or_default();
    let (targets, accepted) = (integers(call.rows.to_slots)?, integers(call.rows.accepted)?);
    let cursors = pool.cursor.as_slice::<i64>()?;
    let place = |name: &str, slot: i64| {
        let found = usize::try_from(slot).ok().filter(|&slot| slot < sizes.slots);
        let valid = format!("0..{} slots, or -1 in slots to skip a row", sizes.slots);
        found.ok_or_else(|| Error::argument(OP, name, slot, valid))
    };
    let mut rows = Vec::with_capacity(slots.len());
    let mut writer = vec![None; sizes.slots];
    for (index, &slot) in slots.iter().enumerate().filter(|(_, slot)| **slot != -1) {
        let from = place("slots", slot)?;
        let to = targets.as_ref().map_or(Ok(from), |list| place("to_slots", list[index]))?;
        let given = accepted.as_ref().map_or(0, |list| list[index]);
        let most = sizes.most_replayed();
        let replay = usize::try_from(given).ok().filter(|&count| count <= most);
        let valid = format!("0..={most} for {} places and {} new", sizes.places, sizes.seqlen);
        let replay = replay.ok_or_else(|| Error::argument(OP, "accepted", given, valid))?;
        if writer[to].replace(index).is_some() {
            return Err(Error::argument(OP, "to_slots", to, "every slot written by one row only"));
        }
        rows.push(Row { index, from, to, replay, cursor: cursors[2 * from] });
    }
    for row in &rows {
        if writer[row.from].is_some_and(|writer| writer != row.index) {
            let valid = "slots that no other row writes";
            return Err(Error::argument(OP, "slots", row.from, valid));
        }
    }
    Ok(rows)
}

/// Tokens of all rows one after the other, replayed ones first.
pub(super) struct Tokens<T> {
    /// Of each row; `initial` and `last` are its number.
    pub runs: Vec<Run>,
    /// `[tokens, channels]`.
    pub xbc: Vec<T>,
    /// `[tokens, heads]`.
    pub dt: Vec<T>,
    /// `[tokens, heads * head_dim]`, zero where replayed; empty without a gate.
    pub z: Vec<T>,
    /// Inputs before the first token, `[rows, channels, width - 1]`.
    pub history: Vec<T>,
}

impl<T> Tokens<T> {
    pub(super) fn count(&self) -> usize {
        self.runs.last().map_or(0, |run| run.start + run.len)
    }
}

/// Place of a token in a ring, `offset` after the state.
fn place(row: &Row, offset: usize, back: usize, places: usize) -> usize {
    let at = row.cursor.wrapping_add(offset as i64).wrapping_sub(back as i64);
    at.rem_euclid(places.max(1) as i64) as usize
}

/// What the rows take in.
pub(super) fn gather<T: Element>(
    call: &Call,
    pool: &Mamba2Pool,
    rows: &[Row],
) -> Result<Tokens<T>> {
    let sizes = &call.sizes;
    let (channels, history) = (sizes.channels(), sizes.width - 1);
    let (rings, steps) = (pool.conv.as_slice::<T>()?, pool.dt.as_slice::<T>()?);
    let fresh = |held: &Held| plain(held.tensor());
    let (xbc, dt, z) = (fresh(&call.xbc)?, fresh(&call.dt)?, call.z.as_ref().map(fresh));
    let z = z.transpose()?;
    let (xbc, dt) = (xbc.as_slice::<T>()?, dt.as_slice::<T>()?);
    let z = z.as_ref().map(|z| z.as_slice::<T>()).transpose()?;
    let (zero, s) = (T::default(), sizes.seqlen);
    let mut tokens = Tokens { runs: vec![], xbc: vec![], dt: vec![], z: vec![], history: vec![] };
    for (number, row) in rows.iter().enumerate() {
        let (start, len) = (tokens.count(), row.replay + s);
        tokens.runs.push(Run { start, len, initial: Some(number), last: Some(number) });
        let ring = &rings[row.from * sizes.places * channels..][..sizes.places * channels];
        let own = &steps[row.from * sizes.places * sizes.heads..][..sizes.places * sizes.heads];
        let before: Vec<&[T]> = (1..=history)
            .rev()
            .map(|back| &ring[place(row, 0, back, sizes.places) * channels..][..channels])
            .collect();
        for channel in 0..channels {
            tokens.history.extend(before.iter().map(|inputs| inputs[channel]));
        }
        for offset in 0..row.replay {
            let at = place(row, offset, 0, sizes.places);
            tokens.xbc.extend_from_slice(&ring[at * channels..][..channels]);
            tokens.dt.extend_from_slice(&own[at * sizes.heads..][..sizes.heads]);
        }
        let part = |width: usize| row.index * s * width..(row.index + 1) * s * width;
        tokens.xbc.extend_from_slice(&xbc[part(channels)]);
        tokens.dt.extend_from_slice(&dt[part(sizes.heads)]);
        if let Some(z) = z {
            let values = sizes.width_out();
            tokens.z.extend(std::iter::repeat_n(zero, row.replay * values));
            tokens.z.extend_from_slice(&z[part(values)]);
        }
    }
    Ok(tokens)
}

/// Writes the rings and counts of the slots that rows leave.
pub(super) fn leave<T: Element>(
    call: &Call,
    pool: &mut Mamba2Pool,
    rows: &[Row],
    tokens: &Tokens<T>,
) -> Result<()> {
    let sizes = &call.sizes;
    let (channels, heads, places) = (sizes.channels(), sizes.heads, sizes.places);
    let rings = pool.conv.as_slice_mut::<T>()?;
    for (row, run) in rows.iter().zip(&tokens.runs) {
        if row.to != row.from {
            for back in 1..sizes.width {
                let at = place(row, row.replay, back, places) * channels;
                let from = row.from * places * channels + at;
                rings.copy_within(from..from + channels, row.to * places * channels + at);
            }
        }
        for token in 0..sizes.seqlen {
            let at = place(row, row.replay + token, 0, places);
            let new = &tokens.xbc[(run.start + row.replay + token) * channels..][..channels];
            rings[(row.to * places + at) * channels..][..channels].copy_from_slice(new);
        }
    }
    let steps = pool.dt.as_slice_mut::<T>()?;
    for (row, run) in rows.iter().zip(&tokens.runs).filter(|_| !call.options.commit) {
        for token in 0..sizes.seqlen {
            let at = place(row, row.replay + token, 0, places);
            let new = &tokens.dt[(run.start + row.replay + token) * heads..][..heads];
            steps[(row.to * places + at) * heads..][..heads].copy_from_slice(new);
        }
    }
    let cursors = pool.cursor.as_slice_mut::<i64>()?;
    for row in rows {
        let new = if call.options.commit { sizes.seqlen } else { 0 };
        cursors[2 * row.to] = place(row, row.replay + new, 0, places) as i64;
    }
    Ok(())
}
