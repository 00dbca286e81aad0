//! From tensors to a [`Problem`]: every argument is checked here.

use super::dropout::Dropout;
use super::mask::BlockMask;
use super::options::Attributes;
use super::problem::{Operand, Problem, Sequence, Slopes, WHOLE};
use danaus_tensor::{DType, Element, Error, Inputs, Result, Tensor};

/// Positions of the operator's inputs.
pub(super) const Q: usize = 0;
pub(super) const K: usize = 1;
pub(super) const V: usize = 2;
pub(super) const CU_SEQLENS_Q: usize = 3;
pub(super) const CU_SEQLENS_K: usize = 4;
pub(super) const ALIBI_SLOPES: usize = 5;
pub(super) const SINKS: usize = 6;
pub(super) const BLOCK_MASK: usize = 7;
pub(super) const KEEP: usize = 8;
pub(super) const Q_LENS: usize = 9;
pub(super) const K_LENS: usize = 10;
pub(super) const INPUTS: usize = 11;

const NAMES: [&str; INPUTS] = [
    "q",
    "k",
    "v",
    "cu_seqlens_q",
    "cu_seqlens_k",
    "alibi_slopes",
    "sinks",
    "block_mask",
    "keep",
    "q_lens",
    "k_lens",
];

const OP: &str = "attention";

/// Sizes of a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Sequences.
    pub batch: usize,
    /// Query rows per sequence (dense), or of all (packed).
    pub q_rows: usize,
    /// Key rows per sequence (dense), or of all (packed).
    pub k_rows: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub value_dim: usize,
    /// Whether sequences are packed along one axis.
    pub packed: bool,
}

/// A checked call. Small inputs are copied; masks are held as contiguous bytes.
pub(super) struct Prepared {
    pub sizes: Sizes,
    pub sequences: Vec<Sequence>,
    pub attributes: Attributes,
    /// Read on the processor only; GPU kernels take the tensors.
    alibi: Option<Slopes>,
    sinks: Option<Vec<f64>>,
    /// Whether biases or sinks were given.
    pub has_biases: bool,
    pub block_mask: Option<Tensor>,
    pub keep: Option<Tensor>,
    /// Whether every query row belongs to a sequence.
    pub covers_queries: bool,
    /// Whether sequences use only a prefix of their rows.
    pub uses_lengths: bool,
}

fn required<'a>(inputs: Inputs<'a>, position: usize) -> Result<&'a Tensor> {
    let found = inputs.get(position).copied().flatten();
    found.ok_or_else(|| Error::argument(OP, NAMES[position], "missing", "a tensor"))
}

fn optional<'a>(inputs: Inputs<'a>, position: usize) -> Option<&'a Tensor> {
    inputs.get(position).copied().flatten()
}

/// Integers of a rank-1 tensor.
fn integers(op: &'static str, name: &'static str, tensor: &Tensor) -> Result<Vec<i64>> {
    if !matches!(tensor.dtype(), DType::I32 | DType::I64) {
        return Err(Error::dtype(op, name, tensor.dtype(), "i32 or i64"));
    }
    if tensor.rank() != 1 {
        return Err(Error::shape(op, name, tensor.shape(), "one axis"));
    }
    tensor.detach().to_dtype(DType::I64)?.to_vec::<i64>()
}

/// Integers in `0..=most`, `count` of them; shared with the cache form.
pub(super) fn lengths(
    op: &'static str,
    name: &'static str,
    tensor: &Tensor,
    count: usize,
    most: impl Fn(usize) -> usize,
) -> Result<Vec<usize>> {
    let values = integers(op, name, tensor)?;
    if values.len() != count {
        return Err(Error::shape(op, name, tensor.shape(), format!("[{count}]")));
    }
    let check = |(index, &value): (usize, &i64)| {
        let most = most(index);
        if value < 0 || value as u64 > most as u64 {
            let given = format!("{value} at {index}");
            return Err(Error::argument(op, name, given, format!("0 to {most}")));
        }
        Ok(value as usize)
    };
    values.iter().enumerate().map(check).collect()
}

fn bounds(name: &'static str, tensor: &Tensor, total: usize) -> Result<Vec<usize>> {
    let values = integers(OP, name, tensor)?;
    let rising = values.windows(2).all(|pair| pair[0] <= pair[1]);
    let ends = values.first() == Some(&0) && values.last().is_some_and(|&v| v <= total as i64);
    if !rising || !ends {
        let valid = format!("a non-decreasing list from 0 to at most {total}");
        return Err(Error::argument(OP, name, format!("{values:?}"), valid));
    }
    Ok(values.iter().map(|&value| value as usize).collect())
}

/// f64 values of a small floating-point tensor; `None` where they lie on a GPU and stay there.
fn floats(name: &'static str, tensor: &Tensor) -> Result<Option<Vec<f64>>> {
    if !tensor.dtype().is_float() {
        return Err(Error::dtype(OP, name, tensor.dtype(), "a floating-point dtype"));
    }
    if tensor.device().is_cuda() {
        return Ok(None);
    }
    tensor.detach().to_dtype(DType::F64)?.to_vec::<f64>().map(Some)
}

/// A mask as contiguous bytes.
fn bytes(name: &'static str, tensor: &Tensor) -> Result<Tensor> {
    if !matches!(tensor.dtype(), DType::U8 | DType::Bool) {
        return Err(Error::dtype(OP, name, tensor.dtype(), "u8 or bool"));
    }
    tensor.to_dtype(DType::U8)?.contiguous()
}

/// Checks the shapes and dtypes of q, k, v.
pub(super) fn sizes(op: &'static str, [q, k, v]: [&Tensor; 3], packed: bool) -> Result<Sizes> {
    if !matches!(q.dtype(), DType::F64 | DType::F32 | DType::BF16 | DType::F16) {
        return Err(Error::dtype(op, "q", q.dtype(), "f64, f32, bf16 or f16; cast with to_dtype"));
    }
    for (name, tensor) in [("k", k), ("v", v)] {
        if tensor.dtype() != q.dtype() {
            return Err(Error::dtype(op, name, tensor.dtype(), format!("{} as q", q.dtype())));
        }
    }
    let rank = if packed { 3 } else { 4 };
    let formula = if packed { "[rows, heads, dim]" } else { "[batch, rows, heads, dim]" };
    for (name, tensor) in [("q", q), ("k", k), ("v", v)] {
        if tensor.rank() != rank {
            return Err(Error::shape(op, name, tensor.shape(), formula));
        }
    }
    let [q_dims, k_dims, v_dims] = [q, k, v].map(|tensor| &tensor.dims()[rank - 3..]);
    let batch = if packed { 0 } else { q.dims()[0] };
    let sizes = Sizes {
        batch,
        q_rows: q_dims[0],
        k_rows: k_dims[0],
        heads: q_dims[1],
        kv_heads: k_dims[1],
        head_dim: q_dims[2],
        value_dim: v_dims[2],
        packed,
    };
    if sizes.kv_heads == 0 || !sizes.heads.is_multiple_of(sizes.kv_heads) {
        let given = format!("{} heads of q for {} heads of k", sizes.heads, sizes.kv_heads);
        return Err(Error::argument(op, "heads", given, "a multiple of the heads of k"));
    }
    let mut k_expected = vec![sizes.k_rows, sizes.kv_heads, sizes.head_dim];
    let mut v_expected = vec![sizes.k_rows, sizes.kv_heads, sizes.value_dim];
    if !packed {
        k_expected.insert(0, batch);
        v_expected.insert(0, batch);
    }
    for (name, tensor, expected) in [("k", k, k_expected), ("v", v, v_expected)] {
        if tensor.dims() != expected {
            return Err(Error::shape(op, name, tensor.shape(), format!("{expected:?}")));
        }
    }
    if sizes.head_dim == 0 || sizes.value_dim == 0 {
        return Err(Error::shape(op, "q", q.shape(), "a head dimension of at least 1"));
    }
    Ok(sizes)
}

/// Checks the plain values.
pub(super) fn check_attributes(op: &'static str, attributes: &Attributes) -> Result<()> {
    if let Some(scale) = attributes.softmax_scale.filter(|scale| !scale.is_finite()) {
        return Err(Error::argument(op, "softmax_scale", scale, "a finite number"));
    }
    if let Some(cap) = attributes.softcap.filter(|&cap| !(cap.is_finite() && cap > 0.0)) {
        return Err(Error::argument(op, "softcap", cap, "a finite number above 0"));
    }
    if !(0.0..1.0).contains(&attributes.p_drop) {
        return Err(Error::argument(op, "p_drop", attributes.p_drop, "at least 0 and below 1"));
    }
    Ok(())
}

impl Prepared {
    /// Checks everything.
    ///
    /// # Errors
    /// Naming the argument, what was given and what is valid.
    pub fn new(inputs: Inputs, attributes: Attributes) -> Result<Self> {
        let qkv = [required(inputs, Q)?, required(inputs, K)?, required(inputs, V)?];
        let cu_q = optional(inputs, CU_SEQLENS_Q);
        let cu_k = optional(inputs, CU_SEQLENS_K);
        if cu_q.is_some() != cu_k.is_some() {
            let missing = if cu_q.is_some() { CU_SEQLENS_K } else { CU_SEQLENS_Q };
            return Err(Error::argument(OP, NAMES[missing], "missing", "given with the other one"));
        }
        let mut sizes = sizes(OP, qkv, cu_q.is_some())?;
        check_attributes(OP, &attributes)?;
        let sequences = match (cu_q, cu_k) {
            (Some(cu_q), Some(cu_k)) => packed_sequences(&mut sizes, cu_q, cu_k)?,
            _ => dense_sequences(&sizes),
        };
        let mut prepared = Self {
            sizes,
            covers_queries: covers(&sizes, &sequences),
            sequences,
            attributes,
            uses_lengths: [Q_LENS, K_LENS].iter().any(|&p| optional(inputs, p).is_some()),
            alibi: None,
            sinks: None,
            has_biases: [ALIBI_SLOPES, SINKS].iter().any(|&p| optional(inputs, p).is_some()),
            block_mask: None,
            keep: None,
        };
        prepared.use_lengths(inputs)?;
        prepared.biases(inputs)?;
        prepared.masks(inputs)?;
        Ok(prepared)
    }

    fn use_lengths(&mut self, inputs: Inputs) -> Result<()> {
        let batch = self.sizes.batch;
        if let Some(tensor) = optional(inputs, Q_LENS) {
            let most = |b: usize| self.sequences[b].q_len;
            let lens = lengths(OP, "q_lens", tensor, batch, most)?;
            self.sequences.iter_mut().zip(lens).for_each(|(sequence, len)| sequence.q_len = len);
            self.covers_queries = false;
        }
        if let Some(tensor) = optional(inputs, K_LENS) {
            let most = |b: usize| self.sequences[b].k_len;
            let lens = lengths(OP, "k_lens", tensor, batch, most)?;
            self.sequences.iter_mut().zip(lens).for_each(|(sequence, len)| sequence.k_len = len);
        }
        Ok(())
    }

    fn biases(&mut self, inputs: Inputs) -> Result<()> {
        let Sizes { batch, heads, .. } = self.sizes;
        if let Some(tensor) = optional(inputs, ALIBI_SLOPES) {
            let per_batch = tensor.rank() == 2;
            if tensor.dims() != [heads] && tensor.dims() != [batch, heads] {
                let expected = format!("[{heads}] or [{batch}, {heads}]");
                return Err(Error::shape(OP, "alibi_slopes", tensor.shape(), expected));
            }
            if let Some(values) = floats("alibi_slopes", tensor)? {
                self.alibi = Some(Slopes { values, per_batch });
            }
        }
        if let Some(tensor) = optional(inputs, SINKS) {
            if tensor.dims() != [heads] {
                return Err(Error::shape(OP, "sinks", tensor.shape(), format!("[{heads}]")));
            }
            self.sinks = floats("sinks", tensor)?;
        }
        Ok(())
    }

    fn masks(&mut self, inputs: Inputs) -> Result<()> {
        let Sizes { batch, heads, q_rows, k_rows, packed, .. } = self.sizes;
        let block_mask = optional(inputs, BLOCK_MASK);
        let keep = optional(inputs, KEEP);
        if packed && keep.is_some() {
            let remedy = "use a dense batch with q_lens and k_lens, or a seed";
            return Err(Error::unsupported(OP, "keep with cu_seqlens_q", remedy));
        }
        match (block_mask, self.attributes.block_size) {
            (Some(tensor), Some(size)) if size > 0 => {
                // The blocks of packed sequences are counted from each one's start.
                let longest =
                    |len: fn(&Sequence) -> usize| self.sequences.iter().map(len).max().unwrap_or(0);
                let (q_most, k_most) = match packed {
                    true => {
                        (longest(|sequence| sequence.q_len), longest(|sequence| sequence.k_len))
                    }
                    false => (q_rows, k_rows),
                };
                let (rows, columns) = (q_most.div_ceil(size), k_most.div_ceil(size));
                let dims = tensor.dims();
                let full = [batch, heads, rows, columns];
                if !(2..=4).contains(&dims.len()) || *dims != full[4 - dims.len()..] {
                    let expected = format!("the last two, three or four of {full:?}");
                    return Err(Error::shape(OP, "block_mask", tensor.shape(), expected));
                }
                self.block_mask = Some(bytes("block_mask", tensor)?);
            }
            (None, None) => {}
            (_, size) => {
                let given = size.map_or("missing".to_string(), |size| size.to_string());
                let valid = "a positive number, given together with block_mask";
                return Err(Error::argument(OP, "block_size", given, valid));
            }
        }
        if let Some(tensor) = keep {
            let expected = [batch, heads, q_rows, k_rows];
            if tensor.dims() != expected {
                return Err(Error::shape(OP, "keep", tensor.shape(), format!("{expected:?}")));
            }
            self.keep = Some(bytes("keep", tensor)?);
        }
        Ok(())
    }

    /// Whether elements are masked by tensors.
    pub fn has_masks(&self) -> bool {
        self.block_mask.is_some() || self.keep.is_some()
    }

    /// The problem that the kernels solve.
    ///
    /// # Errors
    /// None in practice: the masks were made contiguous before.
    pub fn problem(&self) -> Result<Problem<'_>> {
        let (sizes, attributes) = (&self.sizes, &self.attributes);
        let block_mask = match (&self.block_mask, attributes.block_size) {
            (Some(tensor), Some(block_size)) => Some(block_mask(tensor, block_size)?),
            _ => None,
        };
        let seeded =
            || Dropout::seeded(attributes.p_drop, attributes.seed, attributes.dropout_offset);
        let dropout = match &self.keep {
            Some(keep) => Some(Dropout::Explicit {
                keep: keep.as_slice::<u8>()?,
                lens: [sizes.q_rows, sizes.k_rows],
                scale: 1.0 / (1.0 - attributes.p_drop),
            }),
            None => (attributes.p_drop > 0.0).then(seeded),
        };
        Ok(Problem {
            sequences: self.sequences.clone(),
            heads: sizes.heads,
            kv_heads: sizes.kv_heads,
            head_dim: sizes.head_dim,
            value_dim: sizes.value_dim,
            lse_head_stride: sizes.q_rows,
            softmax_scale: attributes
                .softmax_scale
                .unwrap_or_else(|| 1.0 / (sizes.head_dim as f64).sqrt()),
            softcap: attributes.softcap,
            window: attributes.window,
            alibi: self.alibi.clone(),
            block_mask,
            sinks: self.sinks.clone(),
            dropout,
        })
    }
}

fn block_mask(tensor: &Tensor, block_size: usize) -> Result<BlockMask<'_>> {
    let dims = tensor.dims();
    let rank = dims.len();
    let (rows, columns) = (dims[rank - 2], dims[rank - 1]);
    let area = rows * columns;
    Ok(BlockMask {
        mask: tensor.as_slice::<u8>()?,
        batch_stride: if rank == 4 { dims[1] * area } else { 0 },
        head_stride: if rank >= 3 { area } else { 0 },
        columns,
        block_size,
    })
}

fn dense_sequences(sizes: &Sizes) -> Vec<Sequence> {
    let sequence = |b: usize| Sequence {
        q_batch: b,
        out_batch: b,
        kv_batch: b,
        q_start: 0,
        q_len: sizes.q_rows,
        k_start: 0,
        k_len: sizes.k_rows,
        lse_start: b * sizes.heads * sizes.q_rows,
        part: WHOLE,
    };
    (0..sizes.batch).map(sequence).collect()
}

fn packed_sequences(sizes: &mut Sizes, cu_q: &Tensor, cu_k: &Tensor) -> Result<Vec<Sequence>> {
    let q = bounds("cu_seqlens_q", cu_q, sizes.q_rows)?;
    let k = bounds("cu_seqlens_k", cu_k, sizes.k_rows)?;
    if q.len() != k.len() {
        let expected = format!("[{}] as cu_seqlens_q", q.len());
        return Err(Error::shape(OP, "cu_seqlens_k", cu_k.shape(), expected));
    }
    sizes.batch = q.len() - 1;
    let sequence = |(q, k): (&[usize], &[usize])| Sequence {
        q_batch: 0,
        out_batch: 0,
        kv_batch: 0,
        q_start: q[0],
        q_len: q[1] - q[0],
        k_start: k[0],
        k_len: k[1] - k[0],
        lse_start: q[0],
        part: WHOLE,
    };
    Ok(q.windows(2).zip(k.windows(2)).map(sequence).collect())
}

fn covers(sizes: &Sizes, sequences: &[Sequence]) -> bool {
    let rows: usize = sequences.iter().map(|sequence| sequence.q_len).sum();
    rows == sizes.q_rows * if sizes.packed { 1 } else { sizes.batch }
}

/// A tensor whose last axis is contiguous, without history.
pub(super) fn readable(tensor: &Tensor) -> Result<Tensor> {
    let tensor = tensor.detach();
    let rank = tensor.rank();
    let plain = tensor.dims()[rank - 1] <= 1 || tensor.strides()[rank - 1] == 1;
    if plain { Ok(tensor) } else { tensor.contiguous() }
}

/// The operand of a [`readable`] tensor (batch, rows, heads, dim) or (rows, heads, dim).
pub(super) fn operand<T: Element>(tensor: &Tensor) -> Result<Operand<'_, T>> {
    let view = tensor.view::<T>()?;
    let strides = match *view.strides {
        [batch, row, head, _] => [batch, row, head],
        [row, head, _] => [0, row, head],
        _ => return Err(Error::internal("an operand of attention has three or four axes")),
    };
    // SAFETY: the tensor lives as long as the operand, and sequences were checked against its shape.
    Ok(unsafe { Operand::from_strides(view.ptr, strides) })
}
