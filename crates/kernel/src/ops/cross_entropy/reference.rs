//! Cross-entropy token by token, plainly; the oracle and the f64 path.

use super::CrossEntropy;
use num_traits::Float;

fn number<T: Float>(value: f64) -> T {
    T::from(value).unwrap_or_else(T::nan)
}

/// Writes `loss` and `lse` of each token.
pub fn forward<T: Float>(
    args: &CrossEntropy,
    (logits, targets): (&[T], &[i64]),
    (loss, lse): (&mut [T], &mut [T]),
) {
    for (token, row) in logits.chunks_exact(args.vocab).enumerate() {
        let largest = row.iter().copied().fold(T::neg_infinity(), T::max);
        let sum = row.iter().fold(T::zero(), |sum, &z| sum + (z - largest).exp());
        let log = largest + sum.ln();
        lse[token] = log;
        loss[token] = T::zero();
        if targets[token] != args.ignore_index {
            let target = row[targets[token] as usize];
            let mut value = log - number::<T>(1.0 - args.label_smoothing) * target;
            if args.label_smoothing > 0.0 {
                let total = row.iter().fold(T::zero(), |sum, &z| sum + z);
                let share = args.label_smoothing / args.vocab as f64;
                value = value - number::<T>(share) * total;
            }
            loss[token] = value + number::<T>(args.z_loss) * log * log;
        }
    }
}

/// Writes the gradient of the logits from the cotangents of `loss` and `lse`.
pub fn backward<T: Float>(
    args: &CrossEntropy,
    (logits, targets, lse): (&[T], &[i64], &[T]),
    (dloss, dlse): (&[T], &[T]),
    dlogits: &mut [T],
) {
    let rows = logits.chunks_exact(args.vocab).zip(dlogits.chunks_exact_mut(args.vocab));
    for (token, (row, out)) in rows.enumerate() {
        let counted = targets[token] != args.ignore_index;
        let g = if counted { dloss[token] } else { T::zero() };
        let slope = g * (T::one() + number::<T>(2.0 * args.z_loss) * lse[token]) + dlse[token];
        let share = g * number(args.label_smoothing / args.vocab as f64);
        for (z, dz) in row.iter().zip(out.iter_mut()) {
            *dz = slope * (*z - lse[token]).exp() - share;
        }
        if counted {
            let target = targets[token] as usize;
            out[target] = out[target] - g * number(1.0 - args.label_smoothing);
        }
    }
}
