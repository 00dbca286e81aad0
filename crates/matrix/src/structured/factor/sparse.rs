//! Block-sparse plus low rank near a dense matrix.
//!
//! With the blocks B of a fixed layout free, the distance of `B + U V` is that of U V outside of the
//! blocks alone. Two steps in turn, each the best for the other part: U V from the leading singular
//! triples of `A - B`, B from `A - U V` on the blocks. The error never grows; the first round takes most
//! of it.

use super::{Entries, project_low_rank};
use crate::structured::PixelflySizes;
use danaus_tensor::{DType, Device, Error, Result, Tensor};

/// Rounds at most: a decomposition each.
const ROUNDS: usize = 6;
/// Part of the error that a round must win for another one.
const GAIN: f64 = 1e-3;

/// Blocks, U, V and gamma of the weight; the error is for the caller to measure.
pub(super) fn sparse_plus_low_rank(
    entries: &Entries,
    sizes: PixelflySizes,
) -> Result<[(&'static str, Tensor); 4]> {
    let (rows, cols) = (entries.rows, entries.cols);
    let most = rows.min(cols);
    if !(1..=most).contains(&sizes.rank) {
        return Err(Error::argument("project", "rank", sizes.rank, format!("1..={most}")));
    }
    let layout = sizes.layout([rows, cols])?;
    let block = layout.block();
    // Where in the blocks an element is.
    let mut places = vec![None; rows * cols];
    for (index, (row, col)) in layout.places().enumerate() {
        for at in 0..block * block {
            let (i, j) = (row * block + at / block, col * block + at % block);
            if i < rows && j < cols {
                places[i * cols + j] = Some(index * block * block + at);
            }
        }
    }
    let mut low = vec![0.0; rows * cols];
    let (mut last, mut factors) = (f64::INFINITY, None);
    for _ in 0..ROUNDS {
        // A - B is U V on the blocks and A outside of them; in the first round 0 and A.
        let target = places.iter().zip(&low).zip(&entries.values);
        let target = target.map(|((place, low), z)| if place.is_some() { *low } else { z.re });
        let target = Tensor::from_vec(target.collect(), [rows, cols], &Device::Cpu)?;
        let found = project_low_rank(&target, sizes.rank)?;
        low = found.u.matmul(&found.v)?.to_vec::<f64>()?;
        factors = Some((found.u, found.v));
        let outside = places.iter().zip(&low).zip(&entries.values);
        let outside = outside.filter(|((place, _), _)| place.is_none());
        let error: f64 = outside.map(|((_, low), z)| (z.re - low).powi(2)).sum();
        if error >= last * (1.0 - GAIN) {
            break;
        }
        last = error;
    }
    let (u, v) = factors.ok_or_else(|| Error::internal("no round"))?;
    let mut blocks = vec![0.0; layout.len() * block * block];
    for ((place, low), z) in places.iter().zip(&low).zip(&entries.values) {
        if let Some(place) = place {
            // gamma is 1/2.
            blocks[*place] = 2.0 * (z.re - low);
        }
    }
    let blocks = Tensor::from_vec(blocks, [layout.len(), block, block], &Device::Cpu)?;
    let root = 2f64.sqrt();
    let gamma = Tensor::full(0.5f64, [1], &Device::Cpu)?.to_dtype(DType::F64)?;
    let (u, v) = (u.affine(root, 0.0)?, v.affine(root, 0.0)?);
    Ok([("blocks", blocks), ("u", u), ("v", v), ("gamma", gamma)])
}
