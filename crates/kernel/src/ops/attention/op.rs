//! The operator on the tape: dispatch on the dtype, allocation of gradients.

use super::options::Attributes;
use super::prepare::{self, Prepared, SINKS, operand, readable};
use super::problem::{Cotangents, Gradients, Inputs as Operands, Outputs, Problem};
use super::{backward, cuda, forward, reference};
use danaus_runtime::threads::SharedMut;
use danaus_tensor::{
    Backward, DType, Device, Element, Error, Inputs, Level, Meta, Op, Result, Tensor,
};
use half::{bf16, f16};

/// Attention with these attributes.
pub(super) struct AttentionOp(pub Attributes);

/// Type of log-sum-exps and sums.
pub(super) fn sum_dtype(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

impl Op for AttentionOp {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let sizes = Prepared::new(inputs, self.0)?.sizes;
        let dtype = inputs[prepare::Q].map_or(DType::F32, Tensor::dtype);
        let (out, lse) = if sizes.packed {
            (vec![sizes.q_rows, sizes.heads, sizes.value_dim], vec![sizes.heads, sizes.q_rows])
        } else {
            (
                vec![sizes.batch, sizes.q_rows, sizes.heads, sizes.value_dim],
                vec![sizes.batch, sizes.heads, sizes.q_rows],
            )
        };
        Ok(vec![Meta::new(out, dtype), Meta::new(lse, sum_dtype(dtype))])
    }

    fn level(&self) -> Level {
        Level::Deterministic
    }

    fn on_cuda(&self) -> bool {
        true
    }

    fn host_inputs(&self) -> &'static [usize] {
        // Work lists are made from bounds and lengths on the host.
        &[prepare::CU_SEQLENS_Q, prepare::CU_SEQLENS_K, prepare::Q_LENS, prepare::K_LENS]
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let prepared = Prepared::new(inputs, self.0)?;
        if outputs.first().is_some_and(|out| out.device().is_cuda()) {
            return cuda::forward(&prepared, inputs, outputs);
        }
        let problem = prepared.problem()?;
        let fill = !prepared.covers_queries;
        let tensor = |position: usize| {
            let found = inputs[position].map(readable).transpose()?;
            found.ok_or_else(|| Error::internal("attention runs after its arguments are checked"))
        };
        let qkv = [tensor(prepare::Q)?, tensor(prepare::K)?, tensor(prepare::V)?];
        let stride = out_batch_stride(&prepared);
        // SAFETY: `Prepared` checked every row against the shapes.
        unsafe {
            match qkv[0].dtype() {
                DType::F64 => {
                    run::<f64, f64>(&problem, &qkv, outputs, (fill, stride), |p, i, o| {
                        reference::forward(p, i, o)
                    })
                }
                DType::F32 => {
                    run::<f32, f32>(&problem, &qkv, outputs, (fill, stride), |p, i, o| {
                        forward::forward(p, i, o)
                    })
                }
                DType::F16 => {
                    run::<f16, f32>(&problem, &qkv, outputs, (fill, stride), |p, i, o| {
                        forward::forward(p, i, o)
                    })
                }
                _ => run::<bf16, f32>(&problem, &qkv, outputs, (fill, stride), |p, i, o| {
                    forward::forward(p, i, o)
                }),
            }
        }
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let inputs: Vec<Option<&Tensor>> = ctx.inputs.iter().map(Option::as_ref).collect();
        let prepared = Prepared::new(&inputs, self.0)?;
        if ctx.input(prepare::Q)?.device().is_cuda() {
            return cuda::backward(ctx, &prepared);
        }
        // SAFETY: `Prepared` checked every row against the shapes.
        unsafe {
            match ctx.input(prepare::Q)?.dtype() {
                DType::F64 => pull::<f64, f64>(ctx, &prepared, |p, i, c, g| {
                    reference::backward(p, i, c, g);
                }),
                DType::F32 => pull::<f32, f32>(ctx, &prepared, |p, i, c, g| {
                    backward::backward(p, i, c, g);
                }),
                DType::F16 => pull::<f16, f32>(ctx, &prepared, |p, i, c, g| {
                    backward::backward(p, i, c, g);
                }),
                _ => pull::<bf16, f32>(ctx, &prepared, |p, i, c, g| {
                    backward::backward(p, i, c, g);
                }),
            }
        }
    }
}

fn out_batch_stride(prepared: &Prepared) -> usize {
    let sizes = &prepared.sizes;
    sizes.q_rows * sizes.heads * sizes.value_dim
}

fn run<T: Element, A: Element + num_traits::Float>(
    problem: &Problem,
    [q, k, v]: &[Tensor; 3],
    outputs: &mut [Tensor],
    (fill, out_batch_stride): (bool, usize),
    kernel: impl Fn(&Problem, Operands<T>, Outputs<T, A>),
) -> Result<()> {
    let [out, lse] = outputs else {
        return Err(Error::internal("attention has two outputs"));
    };
    let (out, lse) = (out.as_slice_mut::<T>()?, lse.as_slice_mut::<A>()?);
    if fill {
        out.fill(T::default());
        lse.fill(A::neg_infinity());
    }
    let operands = Operands { q: operand(q)?, k: operand(k)?, v: operand(v)? };
    let outputs = Outputs { out: SharedMut::new(out), out_batch_stride, lse: SharedMut::new(lse) };
    kernel(problem, operands, outputs);
    Ok(())
}

fn pull<T: Element, A: Element + num_traits::Float + std::ops::AddAssign>(
    ctx: &Backward,
    prepared: &Prepared,
    kernel: impl Fn(&Problem, Operands<T>, Cotangents<T, A>, Gradients<T, A>),
) -> Result<Vec<Option<Tensor>>> {
    let (problem, sizes) = (prepared.problem()?, prepared.sizes);
    let [q, k, v] = [prepare::Q, prepare::K, prepare::V];
    let [q, k, v] = [readable(ctx.input(q)?)?, readable(ctx.input(k)?)?, readable(ctx.input(v)?)?];
    let (out, lse) = (ctx.output(0)?.detach(), ctx.output(1)?.detach());
    let grad_out = readable(&ctx.grad_or_zeros(0, &out)?)?;
    let grad_lse = ctx.grads[1].as_ref().map(|grad| grad.detach().contiguous()).transpose()?;
    let zeros = |like: &Tensor| Tensor::zeros(like.shape(), like.dtype(), &Device::Cpu);
    let (mut grad_q, mut grad_k, mut grad_v) = (zeros(&q)?, zeros(&k)?, zeros(&v)?);
    let mut sinks = vec![A::zero(); sizes.batch * sizes.heads];
    let key_rows = sizes.k_rows * sizes.kv_heads;
    kernel(
        &problem,
        Operands { q: operand(&q)?, k: operand(&k)?, v: operand(&v)? },
        Cotangents {
            out: operand(&out)?,
            grad_out: operand(&grad_out)?,
            lse: lse.as_slice::<A>()?,
            grad_lse: grad_lse.as_ref().map(Tensor::as_slice::<A>).transpose()?,
        },
        Gradients {
            q: SharedMut::new(grad_q.as_slice_mut::<T>()?),
            q_batch_stride: sizes.q_rows * sizes.heads * sizes.head_dim,
            k: SharedMut::new(grad_k.as_slice_mut::<T>()?),
            k_batch_stride: key_rows * sizes.head_dim,
            v: SharedMut::new(grad_v.as_slice_mut::<T>()?),
            v_batch_stride: key_rows * sizes.value_dim,
            sinks: problem.sinks.is_some().then(|| SharedMut::new(&mut sinks)),
        },
    );
    let mut grads = vec![None; prepare::INPUTS];
    grads[prepare::Q] = Some(grad_q);
    grads[prepare::K] = Some(grad_k);
    grads[prepare::V] = Some(grad_v);
    if let Some(given) = ctx.inputs.get(SINKS).and_then(Option::as_ref) {
        let mut total = vec![A::zero(); sizes.heads];
        for of_sequence in sinks.chunks_exact(sizes.heads.max(1)) {
            total.iter_mut().zip(of_sequence).for_each(|(total, &x)| *total += x);
        }
        let total = Tensor::from_vec(total, [sizes.heads], &Device::Cpu)?;
        grads[SINKS] = Some(total.to_dtype(given.dtype())?);
    }
    Ok(grads)
}
