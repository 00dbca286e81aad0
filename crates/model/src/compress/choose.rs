//! One choice a layer: the least sum of losses whose parameters fit a budget.
//!
//! A knapsack with several choices a layer. Layers start with their largest choice; steps along the
//! lower convex hulls of (parameters, loss) are taken in the order of loss a parameter saved, until the
//! budget holds. That is optimal for every budget on which a step ends (the hulls are what Lagrange
//! multipliers reach), and in between what a step saved too much is spent again: as long as some layer
//! has a choice of less loss that still fits, the one that gains most is taken.

/// One way to store a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// What the caller calls it.
    pub index: usize,
    /// Parameters.
    pub count: usize,
    /// What it adds to the sum that is made small.
    pub loss: f64,
}

impl Choice {
    /// A choice whose loss is the square of a relative error.
    pub fn new(index: usize, count: usize, error: f64) -> Self {
        Self { index, count, loss: error * error }
    }
}

/// The choice of fewest parameters of every layer, of those the one of least loss.
///
/// Layers without choices give 0.
pub fn least(layers: &[Vec<Choice>]) -> Vec<usize> {
    let smallest = |layer: &Vec<Choice>| {
        let order =
            |a: &&Choice, b: &&Choice| a.count.cmp(&b.count).then(a.loss.total_cmp(&b.loss));
        layer.iter().min_by(order).map_or(0, |choice| choice.index)
    };
    layers.iter().map(smallest).collect()
}

/// The index of the choice of every layer.
///
/// # Errors
/// With the fewest parameters that can be reached, if these are above the budget.
pub fn choose(layers: &[Vec<Choice>], budget: usize) -> Result<Vec<usize>, usize> {
    let hulls: Vec<Vec<Choice>> = layers.iter().map(|layer| hull(layer)).collect();
    let mut at = vec![0; layers.len()];
    let mut total: usize = hulls.iter().filter_map(|hull| hull.first()).map(|c| c.count).sum();
    while total > budget {
        // Few thousand layers with a handful of steps: looking at all of them is quick.
        let step = |layer: usize| {
            let (now, next) = (hulls[layer].get(at[layer])?, hulls[layer].get(at[layer] + 1)?);
            Some((slope(now, next), layer))
        };
        let steps = (0..layers.len()).filter_map(step);
        let Some((_, layer)) = steps.min_by(|a, b| a.0.total_cmp(&b.0)) else { return Err(total) };
        total -= hulls[layer][at[layer]].count - hulls[layer][at[layer] + 1].count;
        at[layer] += 1;
    }
    let mut chosen: Vec<Option<Choice>> =
        hulls.iter().zip(at).map(|(hull, at)| hull.get(at).copied()).collect();
    while let Some((layer, better)) = improvement(layers, &chosen, budget - total) {
        total = total + better.count - chosen[layer].map_or(0, |choice| choice.count);
        chosen[layer] = Some(better);
    }
    Ok(chosen.into_iter().map(|choice| choice.map_or(0, |choice| choice.index)).collect())
}

/// Loss a parameter saved.
fn slope(from: &Choice, to: &Choice) -> f64 {
    (to.loss - from.loss) / (from.count - to.count) as f64
}

/// The choices that are best for some price of a parameter, from the largest to the smallest.
fn hull(layer: &[Choice]) -> Vec<Choice> {
    let mut sorted = layer.to_vec();
    sorted.sort_by(|a, b| a.loss.total_cmp(&b.loss).then(a.count.cmp(&b.count)));
    let mut hull: Vec<Choice> = Vec::new();
    for choice in sorted {
        if hull.last().is_some_and(|last| choice.count >= last.count) {
            continue;
        }
        while let [.., before, last] = &hull[..] {
            if slope(before, last) < slope(last, &choice) {
                break;
            }
            hull.pop();
        }
        hull.push(choice);
    }
    hull
}

/// The layer and choice that lowers the loss most with at most `room` more parameters.
fn improvement(
    layers: &[Vec<Choice>],
    chosen: &[Option<Choice>],
    room: usize,
) -> Option<(usize, Choice)> {
    let mut best: Option<(f64, usize, Choice)> = None;
    for (layer, now) in chosen.iter().enumerate() {
        let Some(now) = now else { continue };
        for other in &layers[layer] {
            let gain = now.loss - other.loss;
            let more = best.as_ref().is_none_or(|best| gain > best.0);
            if gain > 0.0 && more && other.count <= now.count + room {
                best = Some((gain, layer, *other));
            }
        }
    }
    best.map(|(_, layer, choice)| (layer, choice))
}

#[cfg(test)]
mod tests {
    use super::*;
    use danaus_tensor::rng::Rng;

    fn layers(seed: u64, count: usize, ways: usize) -> Vec<Vec<Choice>> {
        let numbers = Rng::new(seed, 0).uniform(0.0, 1.0, [count, ways, 2]).unwrap();
        let numbers = numbers.to_dtype(danaus_tensor::DType::F64).unwrap().to_vec::<f64>().unwrap();
        let mut layers: Vec<Vec<Choice>> = vec![Vec::new(); count];
        for (at, pair) in numbers.chunks_exact(2).enumerate() {
            let index = at % ways;
            // The first way is the layer as it is: the largest, without loss.
            let (count, loss) = match index {
                0 => (100, 0.0),
                _ => ((pair[0] * 100.0) as usize, pair[1]),
            };
            layers[at / ways].push(Choice { index, count, loss });
        }
        layers
    }

    fn sums(layers: &[Vec<Choice>], chosen: &[usize]) -> (usize, f64) {
        let picked = layers.iter().zip(chosen).map(|(layer, &index)| layer[index]);
        picked.fold((0, 0.0), |sum, choice| (sum.0 + choice.count, sum.1 + choice.loss))
    }

    /// The best sum of losses, by trying everything.
    fn brute(layers: &[Vec<Choice>], budget: usize) -> Option<f64> {
        let Some((first, rest)) = layers.split_first() else { return Some(0.0) };
        let each = first.iter().filter(|choice| choice.count <= budget);
        let sums = each.filter_map(|c| Some(c.loss + brute(rest, budget - c.count)?));
        sums.min_by(f64::total_cmp)
    }

    #[test]
    fn choices_are_near_the_best_and_within_the_budget() {
        for seed in 0..40 {
            let layers = layers(seed, 5, 5);
            for budget in [60, 120, 200, 300, 420, 500] {
                let best = brute(&layers, budget);
                match choose(&layers, budget) {
                    Err(smallest) => {
                        assert!(best.is_none() && smallest > budget, "seed {seed}, {budget}");
                        let fewest = sums(&layers, &least(&layers)).0;
                        assert_eq!(smallest, fewest);
                    }
                    Ok(chosen) => {
                        let (count, loss) = sums(&layers, &chosen);
                        assert!(count <= budget);
                        // The hulls lose at most the one step that is not taken in parts.
                        let largest = layers.iter().flatten().map(|c| c.loss).fold(0.0, f64::max);
                        let best = best.unwrap();
                        assert!(loss >= best - 1e-12 && loss <= best + largest, "{loss} {best}");
                    }
                }
            }
        }
    }

    #[test]
    fn steps_of_the_hull_are_optimal() {
        for seed in 0..40 {
            let layers = layers(seed, 5, 5);
            // Budgets at which a step ends are those that are used up exactly.
            for budget in 1..500 {
                let Ok(chosen) = choose(&layers, budget) else { continue };
                let (count, loss) = sums(&layers, &chosen);
                let price = |price: f64| -> f64 {
                    let least = |layer: &Vec<Choice>| {
                        let costs = layer.iter().map(|c| c.loss + price * c.count as f64);
                        costs.fold(f64::INFINITY, f64::min)
                    };
                    layers.iter().map(least).sum::<f64>() - price * budget as f64
                };
                // A Lagrange bound: no choice within the budget is below it for any price.
                let bound = (0..400).map(|k| price(k as f64 * 5e-4)).fold(0.0, f64::max);
                assert!(loss >= bound - 1e-12);
                if count == budget && (loss - bound).abs() < 1e-3 {
                    assert!(loss <= brute(&layers, budget).unwrap() + 1e-3);
                }
            }
        }
    }

    #[test]
    fn everything_stays_where_everything_fits() {
        let layers = layers(3, 4, 4);
        let chosen = choose(&layers, 400).unwrap();
        assert_eq!(sums(&layers, &chosen).1, 0.0);
    }
}
