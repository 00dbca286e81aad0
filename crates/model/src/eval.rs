//! Measuring a model: logits of padded batches, as other libraries give them, and perplexity.

use crate::{Decoder, Error, Result};
use danaus_matrix::SeqBatch;
use danaus_tensor::{DType, Tensor, no_grad};
use danaus_text::tokenizer::Tokenizer;

/// Tokens of a pass.
const PASS: usize = 4096;
/// The loss ignores this target.
const IGNORED: i64 = -100;

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
    if !input_ids.dtype().is_int() {
        let (found, allowed) = (input_ids.dtype(), "a whole-number type");
        return Err(danaus_tensor::Error::dtype("logits", "input_ids", found, allowed).into());
    }
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
    let zeros = Tensor::zeros([batch * length, width], x.dtype(), &x.device())?;
    let places: Vec<i64> = real.iter().map(|&place| place as i64).collect();
    let places = Tensor::from_slice(&places, [places.len()], &x.device())?;
    Ok(zeros.index_add(0, &places, x)?.reshape([batch, length, width])?)
}

/// How well a model predicts some texts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Perplexity {
    /// Sum of the predicted tokens' surprises, in nats.
    pub nats: f64,
    /// Predicted tokens: all but the first of each text.
    pub tokens: usize,
    /// Bytes of the predicted tokens.
    pub bytes: usize,
}

impl Perplexity {
    /// Nats per token.
    pub fn loss(&self) -> f64 {
        self.nats / self.tokens as f64
    }

    /// `e` to the loss.
    pub fn perplexity(&self) -> f64 {
        self.loss().exp()
    }

    /// Independent of the vocabulary: what an ideal compressor with this model would need.
    pub fn bits_per_byte(&self) -> f64 {
        self.nats / std::f64::consts::LN_2 / self.bytes as f64
    }
}

/// Which tokens see which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Tokens that are looked at together.
    pub window: usize,
    /// How far a window moves. Only tokens that no earlier window predicted count, so with a stride
    /// below the window each of them sees at least `window - stride` tokens.
    pub stride: usize,
}

/// A window: its tokens and how many of them, from the end, count.
type Window<'a> = (&'a [u32], usize);

impl Windows {
    fn check(&self, most: usize) -> Result<()> {
        if !(2..=most).contains(&self.window) {
            let valid = format!("2..={most} (max_positions)");
            return Err(Error::argument("window", self.window, valid));
        }
        if !(1..self.window).contains(&self.stride) {
            let valid = format!("1..={} (below the window)", self.window - 1);
            return Err(Error::argument("stride", self.stride, valid));
        }
        Ok(())
    }

    fn of<'a>(&self, text: &'a [u32]) -> Vec<Window<'a>> {
        let mut windows = Vec::new();
        // The first token of a text has nothing before it.
        let mut predicted = 1;
        let mut start = 0;
        while predicted < text.len() {
            let end = text.len().min(start + self.window);
            windows.push((&text[start..end], end - predicted));
            predicted = end;
            start += self.stride;
        }
        windows
    }
}

/// Perplexity of some texts, each by itself. A text begins as prompts do: with the token that begins
/// texts, where the tokenizer has one. Spellings of special tokens are plain text.
///
/// # Errors
/// When the windows do not fit the model, or no text has two tokens.
pub fn perplexity<T: AsRef<[u8]>>(
    decoder: &Decoder,
    tokenizer: &Tokenizer,
    texts: &[T],
    windows: Windows,
) -> Result<Perplexity> {
    windows.check(decoder.config().max_positions)?;
    let beginning = tokenizer.encode_prompt("")?;
    let byte_lengths = tokenizer.byte_lengths();
    let mut total = Perplexity::default();
    for text in texts {
        let tokens = [&beginning[..], &tokenizer.encode_bytes(text.as_ref())?].concat();
        let windows = windows.of(&tokens);
        for pass in windows.chunk_by(same_pass()) {
            add_pass(decoder, pass, &mut total)?;
        }
        let predicted = tokens.iter().skip(1);
        total.bytes += predicted.map(|&id| byte_lengths[id as usize] as usize).sum::<usize>();
    }
    match total.tokens {
        0 => Err(Error::argument("text", "too short", "a text of at least two tokens")),
        _ => Ok(total),
    }
}

/// Cuts a list of windows where a pass is full.
fn same_pass<'a>() -> impl FnMut(&Window<'a>, &Window<'a>) -> bool {
    let mut tokens = 0;
    move |before, next| {
        tokens += before.0.len();
        let fits = tokens + next.0.len() <= PASS;
        tokens = if fits { tokens } else { 0 };
        fits
    }
}

fn add_pass(decoder: &Decoder, windows: &[Window], total: &mut Perplexity) -> Result<()> {
    let (mut ids, mut targets, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
    let mut counted = 0;
    for (tokens, count) in windows {
        // The last token predicts nothing here, so it is not computed.
        let inputs = tokens.len() - 1;
        ids.extend_from_slice(&tokens[..inputs]);
        targets.extend(std::iter::repeat_n(IGNORED, inputs - count));
        targets.extend(tokens[tokens.len() - count..].iter().map(|&id| i64::from(id)));
        lengths.push(inputs);
        counted += count;
    }
    let batch = SeqBatch::from_lengths(&lengths)?;
    let mean = no_grad(|| decoder.loss(&ids, &targets, &batch))?.to_scalar()?;
    total.nats += mean * counted as f64;
    total.tokens += counted;
    Ok(())
}

#[cfg(test)]
mod tests;
