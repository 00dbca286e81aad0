//! Rotation for f32 and bf16, one pass over memory.

use super::Layout;
use crate::vector::{load, rows_of, split_rows, store};
use danaus_runtime::simd::{Kernel, Lane, Simd, dispatch};
use danaus_runtime::threads::{self, SharedMut};
use std::ops::Range;

/// What rotates and by how much.
#[derive(Clone, Copy)]
pub struct Rotation<'a> {
    /// Shape of a token.
    pub layout: Layout,
    /// `[positions, rotary_dim / 2]`.
    pub cos: &'a [f32],
    /// `[positions, rotary_dim / 2]`.
    pub sin: &'a [f32],
    /// Position of each token, below the number of rows of the tables.
    pub positions: &'a [u32],
    /// Turn the other way: the gradient.
    pub inverse: bool,
}

struct Tokens<'a, T> {
    rotation: &'a Rotation<'a>,
    tokens: Range<usize>,
    x: &'a [T],
    y: SharedMut<T>,
}

/// One head with the table rows of its token.
#[derive(Clone, Copy)]
struct Head<T> {
    x: *const T,
    y: *mut T,
    cos: *const f32,
    sin: *const f32,
    half: usize,
    /// 1, or -1 for the inverse.
    sign: f32,
}

impl<T: Lane> Head<T> {
    /// # Safety
    /// `2 * half` entries of the head and `half` of the tables are there.
    #[inline(always)]
    unsafe fn halves<S: Simd>(self, s: S) {
        let Head { x, y, cos, sin, half, sign } = self;
        let mut start = 0;
        while start < half {
            let count = (half - start).min(S::LANES);
            // SAFETY: promised by the caller.
            unsafe {
                let c = load(s, cos.add(start), count);
                let d = s.mul(load(s, sin.add(start), count), s.splat(sign));
                let a = load(s, x.add(start), count);
                let b = load(s, x.add(half + start), count);
                store(s, y.add(start), s.sub(s.mul(a, c), s.mul(b, d)), count);
                store(s, y.add(half + start), s.fma(a, d, s.mul(b, c)), count);
            }
            start += count;
        }
    }

    /// Pairs of neighbours. The plain loop over arrays of fixed size becomes shuffles.
    ///
    /// # Safety
    /// As for `halves`.
    #[inline(always)]
    unsafe fn neighbours<S: Simd>(self, s: S) {
        const PAIRS: usize = 16;
        let Head { x, y, cos, sin, half, sign } = self;
        let mut start = 0;
        while start < half {
            let pairs = (half - start).min(PAIRS);
            let (mut values, mut turned) = ([0f32; 2 * PAIRS], [0f32; 2 * PAIRS]);
            let (mut c, mut d) = ([0f32; PAIRS], [0f32; PAIRS]);
            // SAFETY: at most `pairs` pairs from `start` are read and written.
            unsafe {
                copy_in(s, x.add(2 * start), &mut values, 2 * pairs);
                copy_in(s, cos.add(start), &mut c, pairs);
                copy_in(s, sin.add(start), &mut d, pairs);
                for i in 0..PAIRS {
                    let (a, b) = (values[2 * i], values[2 * i + 1]);
                    let turn = d[i] * sign;
                    turned[2 * i] = a * c[i] - b * turn;
                    turned[2 * i + 1] = a * turn + b * c[i];
                }
                let mut at = 0;
                while at < 2 * pairs {
                    let count = (2 * pairs - at).min(S::LANES);
                    let value = load(s, turned.as_ptr().add(at), count);
                    store(s, y.add(2 * start + at), value, count);
                    at += count;
                }
            }
            start += pairs;
        }
    }
}

/// Widens `len` elements into an array.
///
/// # Safety
/// `len <= N` elements are readable at `from`.
#[inline(always)]
unsafe fn copy_in<S: Simd, T: Lane, const N: usize>(
    s: S,
    from: *const T,
    to: &mut [f32; N],
    len: usize,
) {
    let mut at = 0;
    while at < len {
        let count = (len - at).min(S::LANES);
        // SAFETY: promised by the caller.
        unsafe { store(s, to.as_mut_ptr().add(at), load(s, from.add(at), count), count) };
        at += count;
    }
}

impl<T: Lane> Kernel for Tokens<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Rotation { layout, cos, sin, positions, inverse } = *self.rotation;
        let Layout { heads, head_dim, rotary_dim, interleaved } = layout;
        let half = rotary_dim / 2;
        let sign = if inverse { -1.0 } else { 1.0 };
        for token in self.tokens {
            let table = positions[token] as usize * half;
            let (cos, sin) = (&cos[table..table + half], &sin[table..table + half]);
            for head in 0..heads {
                let offset = (token * heads + head) * head_dim;
                // SAFETY: `rotate` checked the lengths; every token belongs to one task.
                unsafe {
                    let x = self.x.as_ptr().add(offset);
                    let y = self.y.ptr().add(offset);
                    let rest = head_dim - rotary_dim;
                    std::ptr::copy_nonoverlapping(x.add(rotary_dim), y.add(rotary_dim), rest);
                    let head = Head { x, y, cos: cos.as_ptr(), sin: sin.as_ptr(), half, sign };
                    if interleaved {
                        head.neighbours(s);
                    } else {
                        head.halves(s);
                    }
                }
            }
        }
    }
}

/// Writes the rotated `x`, `[tokens, heads, head_dim]`, to `y`.
///
/// # Panics
/// If the lengths do not fit the layout or a position lies beyond the tables.
pub fn rotate<T: Lane>(rotation: &Rotation<'_>, x: &[T], y: &mut [T]) {
    let Layout { heads, head_dim, rotary_dim, .. } = rotation.layout;
    let tokens = rotation.positions.len();
    let width = heads * head_dim;
    assert!(rotary_dim <= head_dim && rotary_dim % 2 == 0, "rotary_dim {rotary_dim}");
    assert!(x.len() == tokens * width && y.len() == x.len(), "{tokens} tokens of {width} values");
    let y = SharedMut::new(y);
    let (tasks, per_task) = split_rows(tokens, width);
    threads::for_each(tasks, |task| {
        dispatch(Tokens { rotation, tokens: rows_of(task, per_task, tokens), x, y });
    });
}
