//! Which keys a range of queries sees, and the reverse: pure integer arithmetic.
//!
//! Query `i` sees key `j` iff `i + k_len - q_len - left <= j <= i + k_len - q_len + right` (aligned
//! at the bottom right corner). Causal attention is `right = 0`. Everything that decides which tiles
//! exist, and which need an element mask, is here, so that forward, backward and decoding agree.

use std::ops::Range;

/// Sliding window; `None` is unbounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Keys visible to the left of the diagonal.
    pub left: Option<usize>,
    /// Keys visible to the right of the diagonal.
    pub right: Option<usize>,
}

/// The diagonal and the lengths of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Band {
    window: Window,
    q_len: i64,
    k_len: i64,
}

impl Band {
    /// The band of a sequence.
    pub fn new(window: Window, q_len: usize, k_len: usize) -> Self {
        Self { window, q_len: q_len as i64, k_len: k_len as i64 }
    }

    /// First key the window lets query `i` see, not clipped to the sequence.
    pub fn first_key(&self, i: i64) -> i64 {
        self.window.left.map_or(i64::MIN / 2, |left| i + self.k_len - self.q_len - left as i64)
    }

    /// Last key the window lets query `i` see, not clipped to the sequence.
    pub fn last_key(&self, i: i64) -> i64 {
        self.window.right.map_or(i64::MAX / 2, |right| i + self.k_len - self.q_len + right as i64)
    }

    fn clip(range: Range<i64>, len: i64) -> Range<usize> {
        let start = range.start.clamp(0, len);
        start as usize..range.end.clamp(start, len) as usize
    }

    /// Keys that at least one of the queries sees.
    pub fn visible_keys(&self, queries: Range<usize>) -> Range<usize> {
        if queries.is_empty() {
            return 0..0;
        }
        let first = self.first_key(queries.start as i64);
        let last = self.last_key(queries.end as i64 - 1);
        Self::clip(first..last + 1, self.k_len)
    }

    /// Keys that all of the queries see.
    pub fn common_keys(&self, queries: Range<usize>) -> Range<usize> {
        if queries.is_empty() {
            return 0..0;
        }
        let first = self.first_key(queries.end as i64 - 1);
        let last = self.last_key(queries.start as i64);
        Self::clip(first..last + 1, self.k_len)
    }

    /// Queries that see at least one of the keys.
    pub fn visible_queries(&self, keys: Range<usize>) -> Range<usize> {
        if keys.is_empty() {
            return 0..0;
        }
        let shift = self.q_len - self.k_len;
        let first = self.window.right.map_or(0, |right| keys.start as i64 + shift - right as i64);
        let end = self
            .window
            .left
            .map_or(i64::MAX / 2, |left| keys.end as i64 - 1 + shift + left as i64 + 1);
        Self::clip(first..end, self.q_len)
    }
}

/// Cuts `range` at multiples of `tile`, so that tiles lie at absolute positions.
pub fn tiles(range: Range<usize>, tile: usize) -> impl Iterator<Item = Range<usize>> {
    let first = range.start / tile;
    let end = if range.is_empty() { first } else { range.end.div_ceil(tile) };
    (first..end).map(move |t| (t * tile).max(range.start)..((t + 1) * tile).min(range.end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sees(window: Window, q_len: usize, k_len: usize, i: usize, j: usize) -> bool {
        let diagonal = i as i64 + k_len as i64 - q_len as i64;
        let j = j as i64;
        window.left.is_none_or(|left| j >= diagonal - left as i64)
            && window.right.is_none_or(|right| j <= diagonal + right as i64)
    }

    fn hull(flags: &[bool]) -> Range<usize> {
        let first = flags.iter().position(|&f| f);
        let last = flags.iter().rposition(|&f| f);
        first.map_or(0..0, |first| first..last.unwrap_or(first) + 1)
    }

    fn same(found: Range<usize>, expected: Range<usize>) -> bool {
        found == expected || (found.is_empty() && expected.is_empty())
    }

    /// Every alignment of lengths, windows and query ranges up to 7 against the definition.
    #[test]
    fn ranges_match_the_definition_at_every_alignment() {
        let bounds = [None, Some(0), Some(1), Some(3), Some(9)];
        for q_len in 1..=7 {
            for k_len in 0..=7 {
                for left in bounds {
                    for right in bounds {
                        check_window(Window { left, right }, q_len, k_len);
                    }
                }
            }
        }
    }

    fn check_window(window: Window, q_len: usize, k_len: usize) {
        let band = Band::new(window, q_len, k_len);
        for start in 0..q_len {
            for end in start + 1..=q_len {
                let any = |j| (start..end).any(|i| sees(window, q_len, k_len, i, j));
                let all = |j| (start..end).all(|i| sees(window, q_len, k_len, i, j));
                let any: Vec<bool> = (0..k_len).map(any).collect();
                let all: Vec<bool> = (0..k_len).map(all).collect();
                let visible = band.visible_keys(start..end);
                let common = band.common_keys(start..end);
                // A hole is impossible unless the window is empty; then the hull may be larger.
                assert!(hull(&any).is_empty() || same(visible.clone(), hull(&any)));
                assert!(same(common, hull(&all)), "{window:?} {q_len} {k_len} {start}..{end}");
                assert!((0..k_len).all(|j| !any[j] || visible.contains(&j)));
            }
        }
        for start in 0..k_len {
            for end in start + 1..=k_len {
                let any = |i| (start..end).any(|j| sees(window, q_len, k_len, i, j));
                let any: Vec<bool> = (0..q_len).map(any).collect();
                let found = band.visible_queries(start..end);
                assert!(same(found, hull(&any)), "{window:?} {q_len} {k_len} {start}..{end}");
            }
        }
    }

    #[test]
    fn tiles_lie_at_absolute_positions() {
        let cut: Vec<_> = tiles(5..21, 8).collect();
        assert_eq!(cut, [5..8, 8..16, 16..21]);
        assert_eq!(tiles(8..8, 8).count(), 0);
    }
}
