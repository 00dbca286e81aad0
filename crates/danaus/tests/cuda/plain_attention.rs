//! Attention with the options that the Hopper kernels leave to the plain ones, against the processor's,
//! results and gradients, in f64, f32 and bf16.

use crate::{FLOATS, check, gpu, randn};
use danaus::kernel::ops::attention::{AttentionOptions, attention, attention_varlen};
use danaus::tensor::{DType, Device, Result, Tensor, backward_with};

/// q, k, v of two sequences with four heads on two key heads.
fn inputs(dtype: DType, [q_len, k_len]: [usize; 2], [dim, value_dim]: [usize; 2]) -> Vec<Tensor> {
    let small = |seed, shape: &[usize]| randn(seed, shape, DType::F64).affine(0.5, 0.0).unwrap();
    let tensors = [
        small(1, &[2, q_len, 4, dim]),
        small(2, &[2, k_len, 2, dim]),
        small(3, &[2, k_len, 2, value_dim]),
    ];
    tensors.map(|tensor| tensor.to_dtype(dtype).unwrap()).to_vec()
}

fn both(t: &[Tensor], options: &AttentionOptions) -> Result<Vec<Tensor>> {
    let (out, lse) = attention(&t[0], &t[1], &t[2], options)?;
    Ok(vec![out, lse])
}

#[test]
fn heads_of_every_width() {
    for dtype in FLOATS {
        for dims in [[8, 8], [40, 24], [96, 96], [64, 128], [256, 192]] {
            for lens in [[1, 77], [70, 90], [90, 70]] {
                let what = format!("plain attention {dtype} {dims:?} {lens:?}");
                check(&what, &inputs(dtype, lens, dims), |t| both(t, &AttentionOptions::causal()));
            }
        }
    }
}

#[test]
fn every_option() {
    let window = AttentionOptions {
        window_left: Some(30),
        window_right: Some(5),
        softcap: Some(2.0),
        softmax_scale: Some(-0.3),
        ..AttentionOptions::default()
    };
    let dropped = AttentionOptions {
        p_drop: 0.3,
        seed: 0x1234_5678_9abc,
        dropout_offset: 7,
        ..AttentionOptions::causal()
    };
    let list = |values: [i32; 2]| Tensor::from_vec(values.to_vec(), [2], &Device::Cpu).unwrap();
    let mask = |seed, shape: &[usize]| {
        let noise = randn(seed, shape, DType::F32);
        let zero = Tensor::scalar(-0.3f32, &Device::Cpu).unwrap();
        noise.gt(&zero).unwrap().to_dtype(DType::U8).unwrap()
    };
    let (blocks, keep) = (mask(5, &[2, 4, 5, 6]), mask(6, &[2, 4, 70, 90]));
    for dtype in FLOATS {
        let plain = inputs(dtype, [70, 90], [64, 64]);
        let with = |more: &[Tensor]| [&plain[..], more].concat();
        check(&format!("window {dtype}"), &plain, |t| both(t, &window));
        check(&format!("dropout {dtype}"), &plain, |t| both(t, &dropped));
        let slopes = randn(4, &[2, 4], DType::F32).mul(&randn(4, &[2, 4], DType::F32)).unwrap();
        check(&format!("alibi {dtype}"), &with(&[slopes]), |t| {
            let alibi_slopes = Some(t[3].detach());
            both(t, &AttentionOptions { alibi_slopes, ..AttentionOptions::causal() })
        });
        check(&format!("sinks {dtype}"), &with(&[randn(4, &[4], dtype)]), |t| {
            both(t, &AttentionOptions { sinks: Some(t[3].clone()), ..AttentionOptions::causal() })
        });
        check(&format!("blocks {dtype}"), &with(std::slice::from_ref(&blocks)), |t| {
            let block_mask = Some(t[3].clone());
            let block_size = Some(16);
            both(t, &AttentionOptions { block_mask, block_size, ..AttentionOptions::causal() })
        });
        check(&format!("keep {dtype}"), &with(std::slice::from_ref(&keep)), |t| {
            let keep = Some(t[3].clone());
            both(t, &AttentionOptions { keep, p_drop: 0.4, ..AttentionOptions::default() })
        });
        check(&format!("lengths {dtype}"), &with(&[list([70, 33]), list([0, 90])]), |t| {
            let (q_lens, k_lens) = (Some(t[3].clone()), Some(t[4].clone()));
            both(t, &AttentionOptions { q_lens, k_lens, ..AttentionOptions::causal() })
        });
    }
}

#[test]
fn packed_sequences_with_biases() {
    let bounds = |list: [i32; 5]| Tensor::from_vec(list.to_vec(), [5], &Device::Cpu).unwrap();
    let (q_bounds, k_bounds) = (bounds([0, 65, 65, 66, 150]), bounds([0, 40, 45, 45, 190]));
    for dtype in FLOATS {
        let inputs = [
            randn(1, &[155, 4, 80], dtype),
            randn(2, &[190, 2, 80], dtype),
            randn(3, &[190, 2, 80], dtype),
            randn(4, &[4], dtype),
        ];
        // Bounds may stay on the host.
        check(&format!("packed, plain, {dtype}"), &inputs, |t| {
            let sinks = Some(t[3].clone());
            let options = AttentionOptions { sinks, p_drop: 0.2, ..AttentionOptions::causal() };
            let (out, lse) =
                attention_varlen([&t[0], &t[1], &t[2]], &q_bounds, &k_bounds, &options)?;
            Ok(vec![out, lse])
        });
    }
}

/// What has no keys gives zeros, also where the values are no numbers.
#[test]
fn hidden_values_never_leak() {
    let Some(device) = gpu() else { return };
    for dtype in [DType::F32, DType::BF16] {
        let q = randn(1, &[1, 5, 2, 40], dtype).to_device(&device).unwrap().tracked();
        let good = randn(2, &[1, 5, 2, 40], dtype);
        let bad = Tensor::full(f32::NAN, [1, 3, 2, 40], &Device::Cpu).unwrap();
        let bad = bad.to_dtype(dtype).unwrap();
        let k = Tensor::cat(&[&good, &bad], 1).unwrap().to_device(&device).unwrap().tracked();
        let k_lens = Some(Tensor::from_vec(vec![5i32], [1], &Device::Cpu).unwrap());
        let options = AttentionOptions { k_lens, ..AttentionOptions::default() };
        let (out, _) = attention(&q, &k, &k, &options).unwrap();
        let ones = Tensor::full(1f32, out.shape(), &device).unwrap().to_dtype(dtype).unwrap();
        let grads = backward_with(&[(&out, &ones)]).unwrap();
        for tensor in [&out, grads.get(&q).unwrap(), grads.get(&k).unwrap()] {
            let values = crate::values(tensor);
            assert!(values.iter().all(|value| value.is_finite()), "{dtype}");
        }
    }
}

#[test]
fn heads_without_a_kernel_are_named() {
    let Some(device) = gpu() else { return };
    let wide = randn(1, &[1, 4, 2, 257], DType::F32).to_device(&device).unwrap();
    let error = attention(&wide, &wide, &wide, &AttentionOptions::default()).unwrap_err();
    assert!(error.is_not_on_cuda() && error.to_string().contains("257"), "{error}");
}
