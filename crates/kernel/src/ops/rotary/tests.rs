//! Both layouts against the f64 reference; the identities of a rotation.

use super::cpu::Rotation;
use super::*;
use danaus_runtime::simd::{Isa, Lane, with_isa};
use danaus_tensor::DType;
use danaus_testkit::{assert_close, gradcheck, randn};
use half::bf16;

const POSITIONS: [u32; 7] = [0, 1, 2, 900, 3, 4095, 17];

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919) % 2003) as f32 / 1001.5 - 1.0).collect()
}

fn layouts() -> impl Iterator<Item = Layout> {
    let dims = [(4, 4), (80, 80), (64, 32), (50, 18), (128, 128), (6, 0)];
    dims.into_iter().flat_map(|(head_dim, rotary_dim)| {
        [false, true].map(|interleaved| Layout { heads: 3, head_dim, rotary_dim, interleaved })
    })
}

fn compare<T: Lane + PartialEq + std::fmt::Debug>(tolerance: f64) {
    for layout in layouts() {
        let (cos, sin) = angle_tables(4096, &frequencies(layout.rotary_dim, 10_000.0));
        let n = POSITIONS.len() * layout.heads * layout.head_dim;
        let x: Vec<T> = values(n).into_iter().map(T::round).collect();
        let wide = |x: &[T]| -> Vec<f64> { x.iter().map(|x| f64::from(x.widen())).collect() };
        let table64 = |table: &[f32]| -> Vec<f64> { table.iter().map(|&x| x.into()).collect() };
        for inverse in [false, true] {
            let mut exact = vec![0.0; n];
            let angles = (&table64(&cos)[..], &table64(&sin)[..]);
            reference::rotate(&layout, angles, &POSITIONS, inverse, &wide(&x), &mut exact);
            for isa in Isa::ALL {
                let mut y = vec![T::default(); n];
                let (cos, sin) = (&cos[..], &sin[..]);
                let rotation = Rotation { layout, cos, sin, positions: &POSITIONS, inverse };
                if with_isa(isa, || cpu::rotate(&rotation, &x, &mut y)).is_none() {
                    continue;
                }
                for (got, exact) in wide(&y).iter().zip(&exact) {
                    let error = (got - exact).abs();
                    assert!(error < tolerance, "{isa:?} {layout:?}: {got} instead of {exact}");
                }
            }
        }
    }
}

#[test]
fn kernels_equal_the_reference() {
    // Three roundings of values up to 2; bf16 stores 8 bits.
    compare::<f32>(4e-7);
    compare::<bf16>(2.0 / 256.0);
}

/// The gradient (the inverse) undoes the rotation, and lengths are kept.
#[test]
fn the_inverse_undoes() {
    for layout in layouts() {
        let (cos, sin) = angle_tables(4096, &frequencies(layout.rotary_dim, 10_000.0));
        let x = values(POSITIONS.len() * layout.heads * layout.head_dim);
        let (mut y, mut back) = (x.clone(), x.clone());
        let mut rotation =
            Rotation { layout, cos: &cos, sin: &sin, positions: &POSITIONS, inverse: false };
        cpu::rotate(&rotation, &x, &mut y);
        rotation.inverse = true;
        cpu::rotate(&rotation, &y, &mut back);
        for (x, back) in x.iter().zip(&back) {
            assert!((x - back).abs() < 1e-6, "{layout:?}");
        }
    }
}

/// The product of a rotated query and key depends on the distance of their positions alone.
#[test]
fn products_see_the_distance() {
    for interleaved in [false, true] {
        let layout = Layout { heads: 1, head_dim: 32, rotary_dim: 32, interleaved };
        let (cos, sin) = angle_tables(300, &frequencies(32, 10_000.0));
        let x = values(64);
        let product = |positions: [u32; 2]| -> f32 {
            let mut y = x.clone();
            let rotation =
                Rotation { layout, cos: &cos, sin: &sin, positions: &positions, inverse: false };
            cpu::rotate(&rotation, &x, &mut y);
            y[..32].iter().zip(&y[32..]).map(|(q, k)| q * k).sum()
        };
        assert!((product([7, 3]) - product([207, 203])).abs() < 1e-4);
        assert!((product([7, 3]) - product([7, 4])).abs() > 1e-3);
    }
}

#[test]
fn gradients_through_the_tape() -> Result<()> {
    let x = randn(1, &[2, 3, 2, 6], DType::F64);
    let (cos, sin) = tables(9, 4, 10_000.0)?;
    for interleaved in [false, true] {
        let run =
            |t: &[Tensor]| Ok(vec![rotary(&t[0], (&cos, &sin), Positions::From(5), interleaved)?]);
        gradcheck(run, std::slice::from_ref(&x), 1e-8);
    }
    Ok(())
}

/// Offsets, explicit positions and packed sequences say the same in three ways.
#[test]
fn ways_to_say_positions() -> Result<()> {
    let x = randn(1, &[2, 3, 2, 6], DType::F32);
    let (cos, sin) = tables(9, 6, 10_000.0)?;
    let tables = (&cos, &sin);
    let at = Tensor::from_vec(vec![4i64, 5, 6, 4, 5, 6], [2, 3], &Device::Cpu)?;
    let from = rotary(&x, tables, Positions::From(4), false)?;
    assert_close("positions", &rotary(&x, tables, Positions::At(&at), false)?, &from, 0.0);
    let ends = Tensor::from_vec(vec![0i32, 3, 6], [3], &Device::Cpu)?;
    let packed = rotary(&x.reshape([6, 2, 6])?, tables, Positions::Packed(&ends), false)?;
    let zero = rotary(&x, tables, Positions::From(0), false)?.reshape([6, 2, 6])?;
    assert_close("packed", &packed, &zero, 0.0);
    let message = |result: Result<Tensor>| result.map(|_| ()).unwrap_err().to_string();
    let late = message(rotary(&x, tables, Positions::From(7), false));
    assert!(late.starts_with("rotary: position is 9, valid is below the rows of cos, 9"), "{late}");
    let ends = Tensor::from_vec(vec![0i32, 4], [2], &Device::Cpu)?;
    let short = rotary(&x.reshape([6, 2, 6])?, tables, Positions::Packed(&ends), false);
    assert!(message(short).contains("cu_seqlens is [0, 4], valid is rising from 0 to tokens = 6"));
    Ok(())
}
