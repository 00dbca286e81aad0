//! Which rows of a packed `[tokens, ...]` array form one sequence.
//!
//! Recurrent operators never mix two sequences. Instead of masks inside the kernels the rows are cut
//! into runs beforehand, and every run is processed as if it were alone: a packed batch gives the same
//! bits as its sequences one by one, and boundaries cost nothing in the inner loops.

/// A stretch of consecutive rows that share one recurrent state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First row.
    pub start: usize,
    /// Number of rows, possibly 0.
    pub len: usize,
    /// Index of the initial state it starts from; `None` starts from zero.
    pub initial: Option<usize>,
    /// Index of the final state that it leaves behind; `None` for a run that is followed by another
    /// one of the same batch row.
    pub last: Option<usize>,
}

/// One run per batch row.
pub fn from_batch(batch: usize, seqlen: usize) -> Vec<Run> {
    let row = |b| Run { start: b * seqlen, len: seqlen, initial: Some(b), last: Some(b) };
    (0..batch).map(row).collect()
}

/// Cuts one state slot's rows where `seq_idx` changes. The first run takes the initial state, the last
/// one leaves the final state.
fn cut_at_changes(slot: usize, rows: std::ops::Range<usize>, seq_idx: &[i64], runs: &mut Vec<Run>) {
    let mut start = rows.start;
    let mut initial = Some(slot);
    for row in rows.start + 1..rows.end {
        if seq_idx[row] != seq_idx[row - 1] {
            runs.push(Run { start, len: row - start, initial, last: None });
            start = row;
            initial = None;
        }
    }
    runs.push(Run { start, len: rows.end - start, initial, last: Some(slot) });
}

/// Runs of a `[batch, seqlen]` array of sequence numbers: the state is reset wherever the number
/// changes. States are per batch row.
pub fn from_seq_idx(seq_idx: &[i64], batch: usize, seqlen: usize) -> Vec<Run> {
    let mut runs = Vec::new();
    for b in 0..batch {
        cut_at_changes(b, b * seqlen..(b + 1) * seqlen, seq_idx, &mut runs);
    }
    runs
}

/// Runs of packed sequences: sequence `i` is rows `cu_seqlens[i]..cu_seqlens[i + 1]` and owns initial
/// and final state `i`. Changes of `seq_idx` inside a sequence reset its state as well.
pub fn from_cu_seqlens(cu_seqlens: &[i64], seq_idx: Option<&[i64]>) -> Vec<Run> {
    let mut runs = Vec::new();
    for (sequence, bounds) in cu_seqlens.windows(2).enumerate() {
        let rows = bounds[0] as usize..bounds[1] as usize;
        match seq_idx {
            Some(seq_idx) => cut_at_changes(sequence, rows, seq_idx, &mut runs),
            None => runs.push(Run {
                start: rows.start,
                len: rows.len(),
                initial: Some(sequence),
                last: Some(sequence),
            }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seq_idx_and_cu_seqlens_combine() {
        let seq_idx = [0, 0, 1, 1, 1, 2, 2, 2];
        let runs = from_cu_seqlens(&[0, 3, 3, 8], Some(&seq_idx));
        let expected = [
            Run { start: 0, len: 2, initial: Some(0), last: None },
            Run { start: 2, len: 1, initial: None, last: Some(0) },
            Run { start: 3, len: 0, initial: Some(1), last: Some(1) },
            Run { start: 3, len: 2, initial: Some(2), last: None },
            Run { start: 5, len: 3, initial: None, last: Some(2) },
        ];
        assert_eq!(runs, expected);
        let rows: usize = from_seq_idx(&seq_idx, 2, 4).iter().map(|run| run.len).sum();
        assert_eq!(rows, 8);
    }
}
