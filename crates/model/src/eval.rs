//! Logits of padded batches, as other libraries give them.

use crate::{Decoder, Error, Result};
use danaus_matrix::SeqBatch;
use danaus_tensor::{DType, Device, Tensor, no_grad};

/// `logits` `[batch, length, vocab]`, and with `hidden` the residual stream `hidden_00`, `hidden_01`,
/// ... as the originals list it: after the embedding and after each block, the last one after the final
/// norm. For recurrent models without attention and channel mixers (Mamba) that is after each block,
/// and then after the final norm.
///
/// `attention_mask` `[batch, length]` marks real tokens with 1; padding may stand on either side. The
/// batch is packed without it, and rows of padding are zero.
///
/// # Errors
/// When shapes or ids do not fit.
pub fn logits(
    decoder: &Decoder,
    input_ids: &Tensor,
    attention_mask: Option<&Tensor>,
    hidden: bool,
) -> Result<Vec<(String, Tensor)>> {
    let &[batch, length] = input_ids.dims() else {
        let expected = "[batch, length]";
        return Err(danaus_tensor::Error::shape(
            "logits",
            "input_ids",
            input_ids.shape(),
            expected,
        )
        .into());
    };
    let whole = |tensor: &Tensor| tensor.to_dtype(DType::I64)?.to_vec::<i64>();
    let ids = whole(input_ids)?;
    let mask = match attention_mask {
        Some(mask) if mask.shape() != input_ids.shape() => {
            let expected = format!("{} as input_ids", input_ids.shape());
            return Err(danaus_tensor::Error::shape(
                "logits",
                "attention_mask",
                mask.shape(),
                expected,
            )
            .into());
        }
        Some(mask) => whole(mask)?,
        None => vec![1; ids.len()],
    };
    let real: Vec<usize> = (0..ids.len()).filter(|&index| mask[index] != 0).collect();
    let narrow = |&index: &usize| {
        let valid = format!("0..{}", decoder.config().vocab_size);
        u32::try_from(ids[index]).map_err(|_| Error::argument("input_ids", ids[index], valid))
    };
    let tokens: Vec<u32> = real.iter().map(narrow).collect::<Result<_>>()?;
    let lengths: Vec<usize> = mask
        .chunks(length.max(1))
        .map(|row| row.iter().filter(|&&value| value != 0).count())
        .collect();
    let packed = SeqBatch::from_lengths(&lengths)?;
    no_grad(|| {
        let mut streams = Vec::new();
        let last = decoder.hidden_states(&tokens, &packed, |_, x| streams.push(x.clone()))?;
        if decoder.config().is_recurrent() {
            // The stream before the first block makes room for the last norm.
            streams.rotate_left(1);
        }
        if let Some(end) = streams.last_mut() {
            *end = last.clone();
        }
        let padded = |x: &Tensor| pad(x, &real, [batch, length]);
        let mut all = vec![("logits".to_string(), padded(&decoder.project(&last)?)?)];
        if hidden {
            for (index, stream) in streams.iter().enumerate() {
                all.push((format!("hidden_{index:02}"), padded(stream)?));
            }
        }
        Ok(all)
    })
}

/// Packed rows back at their places; the others are zero.
fn pad(x: &Tensor, real: &[usize], [batch, length]: [usize; 2]) -> Result<Tensor> {
    let width = x.dims()[1];
    let zeros = Tensor::zeros([batch * length, width], x.dtype(), &Device::Cpu)?;
    let places: Vec<i64> = real.iter().map(|&place| place as i64).collect();
    let places = Tensor::from_slice(&places, [places.len()], &Device::Cpu)?;
    Ok(zeros.index_add(0, &places, x)?.reshape([batch, length, width])?)
}
