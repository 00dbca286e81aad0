//! Errors of FP8 attention on data with outliers: `danaus attention fp8-error`.
//!
//! Entries are N(0, 1) + N(0, 100) Bernoulli(0.001), one sequence and one head. The root mean square
//! difference from exact attention in f64 is measured for scales a head (what a tensor has in common
//! practice) and a tile, each with and without rotation of q and k.

use super::{Fp8, Fp8Scales, signs};
use crate::ops::attention::{AttentionOptions, attention};
use danaus_tensor::rng::Rng;
use danaus_tensor::{DType, Device, Result, Tensor};

/// Share of entries with an outlier, and its standard deviation.
const OUTLIERS: (f64, f64) = (0.001, 10.0);

/// One scheme's error.
#[derive(Clone, Copy, Debug)]
pub struct SchemeError {
    /// Where a scale holds.
    pub scales: Fp8Scales,
    /// Whether q and k were rotated.
    pub rotated: bool,
    /// Root mean square difference from exact attention.
    pub rmse: f64,
}

/// q, k or v in the dtype that a device's kernels take.
fn outlier_data(rng: &Rng, [len, head_dim]: [usize; 2]) -> Result<Tensor> {
    let count = (len * head_dim) as u64;
    let entry = |i: u64| {
        let outlier = rng.uniform_at(2 * count + i) < OUTLIERS.0;
        rng.normal_at(i) + if outlier { OUTLIERS.1 * rng.normal_at(count + i) } else { 0.0 }
    };
    let entries = (0..count).map(entry).collect();
    Tensor::from_vec::<f64>(entries, [1, len, 1, head_dim], &Device::Cpu)
}

/// Errors of the four schemes, scale a head without rotation first. On a GPU inputs and outputs are bf16
/// and exact attention is that of the same bf16 inputs.
///
/// # Errors
/// When the device has no kernel for the head dimension.
pub fn measure(
    len: usize,
    head_dim: usize,
    seed: u64,
    device: &Device,
) -> Result<Vec<SchemeError>> {
    let input = |stream: u64| -> Result<Tensor> {
        let x = outlier_data(&Rng::new(seed, stream), [len, head_dim])?;
        if device.is_cuda() { x.to_dtype(DType::BF16)?.to_dtype(DType::F64) } else { Ok(x) }
    };
    let qkv = [input(1)?, input(2)?, input(3)?];
    let (exact, _) = attention(&qkv[0], &qkv[1], &qkv[2], &AttentionOptions::default())?;
    let exact = exact.to_vec::<f64>()?;
    let dtype = if device.is_cuda() { DType::BF16 } else { DType::F64 };
    let there = |x: &Tensor| x.to_dtype(dtype)?.to_device(device);
    let [q, k, v] = [there(&qkv[0])?, there(&qkv[1])?, there(&qkv[2])?];
    let mut errors = Vec::new();
    for scales in [Fp8Scales::Head, Fp8Scales::Tile] {
        for rotated in [false, true] {
            let signs = rotated.then(|| signs(seed, head_dim)).transpose()?;
            let fp8 = Fp8 { scales, signs, tile: None };
            let options = AttentionOptions { fp8: Some(fp8), ..AttentionOptions::default() };
            let (out, _) = attention(&q, &k, &v, &options)?;
            let out = out.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec::<f64>()?;
            let squares: f64 = out.iter().zip(&exact).map(|(a, b)| (a - b) * (a - b)).sum();
            errors.push(SchemeError { scales, rotated, rmse: (squares / out.len() as f64).sqrt() });
        }
    }
    Ok(errors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotation_and_tiles_lower_the_error() {
        let errors = measure(512, 64, 0, &Device::Cpu).unwrap();
        let [head, head_rotated, _, tile_rotated] = [0, 1, 2, 3].map(|i| errors[i].rmse);
        assert!(head > 1.2 * head_rotated, "{errors:?}");
        assert!(tile_rotated < 1.1 * head_rotated, "{errors:?}");
    }
}
