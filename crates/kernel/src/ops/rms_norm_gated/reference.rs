//! The norm written down, any float type: the oracle of the tests and the f64 path.

use num_traits::Float;

/// What the norm does besides normalising.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Elements that share one mean square; divides the row.
    pub group_size: usize,
    /// Added to the mean square.
    pub eps: f64,
    /// Gate after the norm instead of before it.
    pub norm_before_gate: bool,
}

fn sigmoid<T: Float>(z: T) -> T {
    T::one() / (T::one() + (-z).exp())
}

/// Mean square of a group plus eps, to the power -1/2.
fn inverse_root<T: Float>(values: &[T], eps: f64) -> T {
    let sum = values.iter().fold(T::zero(), |sum, &v| sum + v * v);
    let count = T::from(values.len()).unwrap_or_else(T::one);
    (sum / count + T::from(eps).unwrap_or_else(T::zero)).sqrt().recip()
}

/// `y` for contiguous rows as long as `weight`.
pub fn forward<T: Float>(x: &[T], z: Option<&[T]>, weight: &[T], options: &Options) -> Vec<T> {
    let gate = |at: usize| z.map_or(T::one(), |z| z[at] * sigmoid(z[at]));
    let before = |at: usize| if options.norm_before_gate { x[at] } else { x[at] * gate(at) };
    let after = |at: usize| if options.norm_before_gate { gate(at) } else { T::one() };
    let mut y = Vec::with_capacity(x.len());
    for start in (0..x.len()).step_by(options.group_size) {
        let group = start..start + options.group_size;
        let values: Vec<T> = group.clone().map(before).collect();
        let factor = inverse_root(&values, options.eps);
        for (at, value) in group.zip(values) {
            y.push(weight[at % weight.len()] * value * factor * after(at));
        }
    }
    y
}

/// `(dx, dz, dweight)`; dz is empty without a gate.
pub fn backward<T: Float>(
    x: &[T],
    z: Option<&[T]>,
    weight: &[T],
    options: &Options,
    dy: &[T],
) -> (Vec<T>, Vec<T>, Vec<T>) {
    let one = T::one();
    let gate = |at: usize| z.map_or(one, |z| z[at] * sigmoid(z[at]));
    let slope = |at: usize| {
        z.map_or(T::zero(), |z| {
            let s = sigmoid(z[at]);
            s * (one + z[at] * (one - s))
        })
    };
    let mut dx = vec![T::zero(); x.len()];
    let mut dz = vec![T::zero(); z.map_or(0, <[T]>::len)];
    let mut dweight = vec![T::zero(); weight.len()];
    for start in (0..x.len()).step_by(options.group_size) {
        let group = start..start + options.group_size;
        let before = |at: usize| if options.norm_before_gate { x[at] } else { x[at] * gate(at) };
        let values: Vec<T> = group.clone().map(before).collect();
        let factor = inverse_root(&values, options.eps);
        let upstream =
            |at: usize| if options.norm_before_gate { dy[at] * gate(at) } else { dy[at] };
        let count = T::from(options.group_size).unwrap_or(one);
        let mut mean = T::zero();
        for (at, &value) in group.clone().zip(&values) {
            let unit = value * factor;
            dweight[at % weight.len()] = dweight[at % weight.len()] + upstream(at) * unit;
            mean = mean + upstream(at) * weight[at % weight.len()] * unit / count;
        }
        for (at, &value) in group.zip(&values) {
            let (unit, w) = (value * factor, weight[at % weight.len()]);
            let dvalue = factor * (upstream(at) * w - unit * mean);
            if options.norm_before_gate {
                dx[at] = dvalue;
            } else {
                dx[at] = dvalue * gate(at);
            }
            if !dz.is_empty() {
                let into_gate =
                    if options.norm_before_gate { dy[at] * unit * w } else { dvalue * x[at] };
                dz[at] = into_gate * slope(at);
            }
        }
    }
    (dx, dz, dweight)
}
