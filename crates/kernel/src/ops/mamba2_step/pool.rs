//! The states of many sequences in one layer, by slot.

use super::{OP, cuda};
use crate::ops::ssd::arrays::{check_dtype, check_shape, plain, wide};
use danaus_tensor::{DType, Device, Element, Error, Result, Tensor, no_grad};

/// States by slot; shapes are in the module's table. Tensors are written in place where nobody else holds
/// them, and copied once otherwise.
#[derive(Clone)]
pub struct Mamba2Pool {
    /// Raw inputs of the convolution, `[slots, places, channels]`.
    pub conv: Tensor,
    /// Raw step sizes, `[slots, places, heads]`.
    pub dt: Tensor,
    /// States, `[slots, heads, head_dim, d_state]`, f32 (f64 beside f64).
    pub scan: Tensor,
    /// Place of the token behind the state, and a counter of the GPU's, `[slots, 2]`.
    pub cursor: Tensor,
}

/// Sizes of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolShape {
    /// Sequences.
    pub slots: usize,
    /// Inputs that a slot's rings hold.
    pub places: usize,
    /// Channels of the convolution.
    pub channels: usize,
    /// Heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of a state.
    pub d_state: usize,
}

impl Mamba2Pool {
    /// A pool of empty sequences for inputs of `dtype`.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new(shape: &PoolShape, dtype: DType, device: &Device) -> Result<Self> {
        let PoolShape { slots, places, channels, heads, head_dim, d_state } = *shape;
        Ok(Self {
            conv: Tensor::zeros([slots, places, channels], dtype, device)?,
            dt: Tensor::zeros([slots, places, heads], dtype, device)?,
            scan: Tensor::zeros([slots, heads, head_dim, d_state], wide(dtype), device)?,
            cursor: Tensor::zeros([slots, 2], DType::I64, device)?,
        })
    }

    /// Number of slots.
    pub fn slots(&self) -> usize {
        self.scan.dims().first().copied().unwrap_or(0)
    }

    fn tensors(&mut self) -> [&mut Tensor; 4] {
        [&mut self.conv, &mut self.dt, &mut self.scan, &mut self.cursor]
    }

    /// Makes the tensors this pool's alone.
    pub(super) fn own(&mut self) -> Result<()> {
        for tensor in self.tensors() {
            if !(tensor.is_unique() && tensor.is_contiguous()) {
                *tensor = tensor.detach().copy()?;
            }
        }
        Ok(())
    }

    /// More slots, empty ones behind those there are. Addresses change.
    ///
    /// # Errors
    /// When there is no memory for them.
    pub fn grow(&mut self, slots: usize) -> Result<()> {
        no_grad(|| {
            let more = slots.saturating_sub(self.slots());
            for tensor in self.tensors() {
                let mut dims = tensor.dims().to_vec();
                dims[0] = more;
                let room = Tensor::zeros(dims, tensor.dtype(), &tensor.device())?;
                *tensor = Tensor::cat(&[tensor, &room], 0)?;
            }
            Ok(())
        })
    }

    /// Its sizes.
    ///
    /// # Errors
    /// When the tensors have other ranks than those of the table.
    pub fn shape(&self) -> Result<PoolShape> {
        let (&[slots, heads, head_dim, d_state], &[_, places, channels]) =
            (self.scan.dims(), self.conv.dims())
        else {
            let expected = "[slots, heads, head_dim, d_state]";
            return Err(Error::shape(OP, "scan_states", self.scan.shape(), expected));
        };
        Ok(PoolShape { slots, places, channels, heads, head_dim, d_state })
    }

    /// Bytes of all slots.
    pub fn bytes(&self) -> usize {
        self.conv.bytes() + self.dt.bytes() + self.scan.bytes() + self.cursor.bytes()
    }

    /// Makes a slot an empty sequence.
    ///
    /// # Errors
    /// When there is no such slot.
    pub fn clear(&mut self, slot: usize) -> Result<()> {
        let (conv, scan) = self.zeros(1)?;
        self.fill(slot, &conv, &scan)
    }

    /// What [`Mamba2Pool::read`] gives for an empty sequence.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn zeros(&self, width: usize) -> Result<(Tensor, Tensor)> {
        let PoolShape { channels, heads, head_dim, d_state, .. } = self.shape()?;
        let (dtype, device) = (self.scan.dtype(), self.scan.device());
        let conv = Tensor::zeros([1, channels, width.saturating_sub(1)], dtype, &device)?;
        Ok((conv, Tensor::zeros([1, heads, head_dim, d_state], dtype, &device)?))
    }

    /// Puts the states that `causal_conv1d` and `ssd` leave, `[1, channels, width - 1]` (the last inputs,
    /// oldest first) and `[1, heads, head_dim, d_state]`, into a slot.
    ///
    /// # Errors
    /// When they do not fit, or there is no such slot.
    pub fn fill(&mut self, slot: usize, conv: &Tensor, scan: &Tensor) -> Result<()> {
        if slot >= self.slots() {
            let valid = format!("0..{} slots", self.slots());
            return Err(Error::argument(OP, "slot", slot, valid));
        }
        let PoolShape { places, channels, .. } = self.shape()?;
        let history = conv.dims().last().copied().unwrap_or(0);
        let mut expected = self.scan.dims().to_vec();
        expected[0] = 1;
        check_shape(OP, "scan", scan, &expected, "a slot's state")?;
        check_shape(OP, "conv", conv, &[1, channels, history], "[1, channels, width - 1]")?;
        check_dtype(OP, "scan", scan, self.scan.dtype())?;
        if history > places {
            let valid = format!("at most {places}, the places of the pool");
            return Err(Error::argument(OP, "width - 1 (of conv)", history, valid));
        }
        no_grad(|| {
            let device = self.scan.device();
            let empty = [1, places - history, channels];
            let before = Tensor::zeros(empty, self.conv.dtype(), &device)?;
            let inputs = conv.detach().transpose(1, 2)?.to_dtype(self.conv.dtype())?;
            // The cursor is 0: the last input lies at the last place.
            let ring = Tensor::cat(&[&before, &inputs.contiguous()?], 1)?;
            let steps = [1, places, self.dt.dims()[2]];
            let steps = Tensor::zeros(steps, self.dt.dtype(), &device)?;
            let cursor = Tensor::zeros([1, 2], DType::I64, &device)?;
            self.put(slot, [&ring, &steps, &scan.detach(), &cursor])
        })
    }

    /// Overwrites a slot, in place.
    fn put(&mut self, slot: usize, rows: [&Tensor; 4]) -> Result<()> {
        self.own()?;
        for (tensor, row) in self.tensors().into_iter().zip(rows) {
            if tensor.device().is_cuda() {
                cuda::write_row(tensor, slot, row)?;
                continue;
            }
            match tensor.dtype() {
                DType::BF16 => write_row::<half::bf16>(tensor, slot, row)?,
                DType::F32 => write_row::<f32>(tensor, slot, row)?,
                DType::F64 => write_row::<f64>(tensor, slot, row)?,
                _ => write_row::<i64>(tensor, slot, row)?,
            }
        }
        Ok(())
    }

    /// The states of a slot as `causal_conv1d` and `ssd` take them, for `width` taps: the inverse of
    /// [`Mamba2Pool::fill`]. Draft tokens are not part of it.
    ///
    /// # Errors
    /// When there is no such slot.
    pub fn read(&self, slot: usize, width: usize) -> Result<(Tensor, Tensor)> {
        if slot >= self.slots() {
            let valid = format!("0..{} slots", self.slots());
            return Err(Error::argument(OP, "slot", slot, valid));
        }
        let places = self.shape()?.places;
        if width > places + 1 {
            let valid = format!("at most {}, one more than the places of the pool", places + 1);
            return Err(Error::argument(OP, "width", width, valid));
        }
        no_grad(|| {
            let (mut conv, scan) = (self.zeros(width)?.0, self.scan.narrow(0, slot, 1)?.copy()?);
            match (self.scan.device().is_cuda(), self.conv.dtype()) {
                (true, _) => cuda::read_ring(self, slot, &mut conv)?,
                (false, DType::BF16) => self.read_ring(slot, &mut conv, half::bf16::to_f32)?,
                (false, DType::F32) => self.read_ring(slot, &mut conv, |input: f32| input)?,
                (false, _) => self.read_ring(slot, &mut conv, |input: f64| input)?,
            }
            Ok((conv, scan))
        })
    }

    /// The last inputs of a slot, oldest first, `[1, channels, history]`.
    fn read_ring<T: Element, A: Element>(
        &self,
        slot: usize,
        conv: &mut Tensor,
        widen: impl Fn(T) -> A,
    ) -> Result<()> {
        let (places, channels) = (self.conv.dims()[1], self.conv.dims()[2]);
        let cursor = self.cursor.as_slice::<i64>()?[2 * slot];
        let ring = &self.conv.as_slice::<T>()?[slot * places * channels..][..places * channels];
        let history = conv.dims()[2];
        let to = conv.as_slice_mut::<A>()?;
        for place in 0..history {
            let at = cursor.wrapping_add(place as i64).wrapping_sub(history as i64);
            let from = at.rem_euclid(places.max(1) as i64) as usize;
            for channel in 0..channels {
                to[channel * history + place] = widen(ring[from * channels + channel]);
            }
        }
        Ok(())
    }
}

/// Overwrites a slot of a tensor on the processor.
fn write_row<T: Element>(tensor: &mut Tensor, slot: usize, row: &Tensor) -> Result<()> {
    let row = plain(row)?;
    let row = row.as_slice::<T>()?;
    tensor.as_slice_mut::<T>()?[slot * row.len()..][..row.len()].copy_from_slice(row);
    Ok(())
}
