//! Attention row by row in plain Rust: the oracle of all kernels and the f64 path.
//!
//! Generic over f32 and f64. Every option is evaluated element by element from its definition; only
//! one row of scores exists at a time.

use super::dropout::RowIndex;
use super::problem::{Cotangents, Gradients, Inputs, Outputs, Problem};
use super::tile_range::Band;
use danaus_runtime::threads;
use num_traits::Float;

/// Number types of the reference.
pub trait Real: Float + std::ops::AddAssign + std::iter::Sum + Default + Send + Sync {
    /// Rounds from f64.
    fn real(value: f64) -> Self;
}
impl Real for f32 {
    fn real(value: f64) -> f32 {
        value as f32
    }
}
impl Real for f64 {
    fn real(value: f64) -> f64 {
        value
    }
}

/// A row of the score matrix.
struct Row<T> {
    /// Scores after all transforms; -inf where masked.
    scores: Vec<T>,
    /// Derivative of the score by the scaled dot product.
    slopes: Vec<T>,
    /// Dropout factors.
    factors: Vec<T>,
}

fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    a.iter().zip(b).map(|(&a, &b)| a * b).sum()
}

/// Evaluates the recipe for one query.
///
/// # Safety
/// The problem's rows exist in the operands.
unsafe fn score_row<T: Real>(
    problem: &Problem,
    inputs: &Inputs<T>,
    batch: usize,
    head: usize,
    query: usize,
) -> Row<T> {
    let sequence = problem.sequences[batch];
    let band = Band::new(problem.window, sequence.q_len, sequence.k_len);
    let kv_head = head / problem.group();
    let width = problem.head_dim;
    let k_len = sequence.k_len;
    let mut row = Row {
        scores: vec![T::neg_infinity(); k_len],
        slopes: vec![T::zero(); k_len],
        factors: vec![T::one(); k_len],
    };
    // SAFETY: promised by the caller.
    let q = unsafe { inputs.q.slice(sequence.q_batch, sequence.q_start + query, head, width) };
    for j in sequence.covered(band.visible_keys(query..query + 1)) {
        let block = |size: usize| (query / size, j / size);
        if problem.block_mask.is_some_and(|mask| {
            let (row, column) = block(mask.block_size);
            !mask.kept(batch, head, row, column)
        }) {
            continue;
        }
        // SAFETY: promised by the caller.
        let k = unsafe { inputs.k.slice(sequence.kv_batch, sequence.k_start + j, kv_head, width) };
        let mut score = T::real(problem.softmax_scale) * dot(q, k);
        let mut slope = T::one();
        if let Some(cap) = problem.softcap {
            let t = (score / T::real(cap)).tanh();
            score = T::real(cap) * t;
            slope = T::one() - t * t;
        }
        if let Some(alibi) = &problem.alibi {
            let diagonal = query as i64 + k_len as i64 - sequence.q_len as i64;
            let distance = (diagonal - j as i64).abs() as f64;
            score = score - T::real(alibi.get(batch, head, problem.heads) * distance);
        }
        row.scores[j] = score;
        row.slopes[j] = slope;
    }
    if let Some(dropout) = problem.dropout {
        let index = RowIndex { batch_head: batch * problem.heads + head, query };
        dropout.factors(index, 0, |j, factor| row.factors[j] = T::real(factor), k_len);
    }
    row
}

/// Computes `out` and `lse` of all rows that belong to a sequence.
///
/// # Safety
/// The operands and outputs cover every row that the problem's sequences name.
pub unsafe fn forward<T: Real>(problem: &Problem, inputs: Inputs<T>, outputs: Outputs<T, T>) {
    threads::for_each(problem.sequences.len() * problem.heads, |task| {
        let (batch, head) = (task / problem.heads, task % problem.heads);
        let sequence = problem.sequences[batch];
        for query in 0..sequence.q_len {
            // SAFETY: promised by the caller; every task owns the rows of its head.
            unsafe {
                let row = score_row(problem, &inputs, batch, head, query);
                forward_row(problem, &inputs, &outputs, &row, [batch, head, query]);
            }
        }
    });
}

unsafe fn forward_row<T: Real>(
    problem: &Problem,
    inputs: &Inputs<T>,
    outputs: &Outputs<T, T>,
    row: &Row<T>,
    [batch, head, query]: [usize; 3],
) {
    let sequence = problem.sequences[batch];
    let width = problem.value_dim;
    let sink = problem.sinks.as_ref().map_or(T::neg_infinity(), |sinks| T::real(sinks[head]));
    let top = row.scores.iter().fold(sink, |top, &score| top.max(score));
    let mut total = T::zero();
    let mut sums = vec![T::zero(); width];
    let weight =
        |score: T| if score == T::neg_infinity() { T::zero() } else { (score - top).exp() };
    for (j, &score) in row.scores.iter().enumerate() {
        if score == T::neg_infinity() {
            continue;
        }
        let p = weight(score);
        total += p;
        let (batch, kv_head) = (sequence.kv_batch, head / problem.group());
        // SAFETY: promised by the caller of `forward`.
        let v = unsafe { inputs.v.slice(batch, sequence.k_start + j, kv_head, width) };
        sums.iter_mut().zip(v).for_each(|(sum, &v)| *sum += row.factors[j] * p * v);
    }
    total += weight(sink);
    let start = sequence.out_batch * outputs.out_batch_stride
        + ((sequence.q_start + query) * problem.heads + head) * width;
    let lse_at = sequence.lse_start + head * problem.lse_head_stride + query;
    // SAFETY: promised by the caller of `forward`.
    unsafe {
        let out = outputs.out.slice(start, width);
        let divide = |sum: T| if total == T::zero() { T::zero() } else { sum / total };
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = divide(sum));
        let empty = total == T::zero();
        outputs.lse.slice(lse_at, 1)[0] = if empty { T::neg_infinity() } else { top + total.ln() };
    }
}

/// Adds the gradients of all rows that belong to a sequence to `gradients`, which start at zero.
///
/// # Safety
/// As [`forward`]; the gradients have the shapes of their inputs.
pub unsafe fn backward<T: Real>(
    problem: &Problem,
    inputs: Inputs<T>,
    cotangents: Cotangents<T, T>,
    gradients: Gradients<T, T>,
) {
    let group = problem.group();
    threads::for_each(problem.sequences.len() * problem.kv_heads, |task| {
        let (batch, kv_head) = (task / problem.kv_heads, task % problem.kv_heads);
        for head in kv_head * group..(kv_head + 1) * group {
            for query in 0..problem.sequences[batch].q_len {
                // SAFETY: promised by the caller; a task owns its key head and the query heads of
                // its group.
                unsafe {
                    let row = score_row(problem, &inputs, batch, head, query);
                    let at = [batch, head, query];
                    backward_row(problem, &inputs, &cotangents, &gradients, &row, at);
                }
            }
        }
    });
}

unsafe fn backward_row<T: Real>(
    problem: &Problem,
    inputs: &Inputs<T>,
    cotangents: &Cotangents<T, T>,
    gradients: &Gradients<T, T>,
    row: &Row<T>,
    [batch, head, query]: [usize; 3],
) {
    let sequence = problem.sequences[batch];
    let (group, scale) = (problem.group(), T::real(problem.softmax_scale));
    let (head_dim, value_dim) = (problem.head_dim, problem.value_dim);
    let kv_head = head / group;
    let q_row = sequence.q_start + query;
    let lse_at = sequence.lse_start + head * problem.lse_head_stride + query;
    let lse = cotangents.lse[lse_at];
    if lse == T::neg_infinity() {
        return;
    }
    // SAFETY: promised by the caller of `backward`, here and below.
    let (out, grad_out, q, grad_q) = unsafe {
        let start =
            sequence.q_batch * gradients.q_batch_stride + (q_row * problem.heads + head) * head_dim;
        (
            cotangents.out.slice(sequence.q_batch, q_row, head, value_dim),
            cotangents.grad_out.slice(sequence.q_batch, q_row, head, value_dim),
            inputs.q.slice(sequence.q_batch, q_row, head, head_dim),
            gradients.q.slice(start, head_dim),
        )
    };
    let grad_lse = cotangents.grad_lse.map_or(T::zero(), |grad| grad[lse_at]);
    let delta = dot(out, grad_out) - grad_lse;
    for (j, &score) in row.scores.iter().enumerate() {
        if score == T::neg_infinity() {
            continue;
        }
        let key_row = sequence.k_start + j;
        // SAFETY: as above.
        unsafe {
            let k = inputs.k.slice(sequence.kv_batch, key_row, kv_head, head_dim);
            let v = inputs.v.slice(sequence.kv_batch, key_row, kv_head, value_dim);
            let index = key_row * problem.kv_heads + kv_head;
            let k_start = sequence.kv_batch * gradients.k_batch_stride + index * head_dim;
            let v_start = sequence.kv_batch * gradients.v_batch_stride + index * value_dim;
            let grad_k = gradients.k.slice(k_start, head_dim);
            let grad_v = gradients.v.slice(v_start, value_dim);
            let p = (score - lse).exp();
            let factor = row.factors[j];
            grad_v.iter_mut().zip(grad_out).for_each(|(to, &g)| *to += factor * p * g);
            let grad_p = factor * dot(grad_out, v);
            let grad_score = p * (grad_p - delta) * row.slopes[j] * scale;
            grad_q.iter_mut().zip(k).for_each(|(to, &k)| *to += grad_score * k);
            grad_k.iter_mut().zip(q).for_each(|(to, &q)| *to += grad_score * q);
        }
    }
    if let (Some(grad_sinks), Some(sinks)) = (gradients.sinks, &problem.sinks) {
        let p = (T::real(sinks[head]) - lse).exp();
        // SAFETY: (batch, heads) values, and the task owns its heads.
        let to = unsafe { grad_sinks.slice(batch * problem.heads + head, 1) };
        to[0] = to[0] - p * delta;
    }
}
