//! Snapshots as named tensors, for files.
//!
//! Layer i of a snapshot is `layers.i.k` and `layers.i.v`, `[tokens, kv_heads, head_dim]` (with
//! `layers.i.conv` behind a convolution), or `layers.i.conv` and `layers.i.scan` as in [`RecurrentState`]. The dtypes are those of the state, so
//! nothing is rounded: what is read back continues bit for bit.

use super::{KvState, LayerState, RecurrentState, Snapshot, StatePool};
use danaus_tensor::{Error, Result, Tensor};

impl LayerState {
    /// The kind, as files name it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Kv(_) => "kv",
            Self::ConvKv(..) => "conv-kv",
            Self::Recurrent(_) | Self::Slot(_) => "recurrent",
        }
    }

    /// The content by name.
    fn tensors(&self) -> Result<Vec<(&'static str, Tensor)>> {
        Ok(match self {
            Self::Kv(state) => {
                let (k, v) = state.used()?;
                vec![("k", k), ("v", v)]
            }
            Self::ConvKv(conv, state) => {
                let (k, v) = state.used()?;
                vec![("conv", conv.clone()), ("k", k), ("v", v)]
            }
            Self::Recurrent(state) => {
                vec![("conv", state.conv.clone()), ("scan", state.scan.clone())]
            }
            Self::Slot(state) => {
                let (conv, scan) = state.values()?;
                vec![("conv", conv), ("scan", scan)]
            }
        })
    }

    /// A state of the same layer as this one with other content.
    fn with_tensors(
        &self,
        index: usize,
        tokens: usize,
        read: &impl Fn(&str) -> Result<Tensor>,
    ) -> Result<Self> {
        let named = |part: &str| read(&format!("layers.{index}.{part}"));
        let filled = |state: &KvState| -> Result<KvState> {
            let (k, v) = (named("k")?, named("v")?);
            if k.dims().first() != Some(&tokens) {
                let expected = format!("[{tokens} tokens, kv_heads, head_dim]");
                let name = format!("layers.{index}.k");
                return Err(Error::shape("state", name, k.shape(), expected));
            }
            state.filled(&k, &v)
        };
        let like = |part: &str, own: &Tensor| {
            let found = named(part)?.to_device(&own.device())?;
            let name = format!("layers.{index}.{part}");
            if found.shape() != own.shape() {
                return Err(Error::shape("state", name, found.shape(), own.shape().to_string()));
            }
            if found.dtype() != own.dtype() {
                return Err(Error::dtype("state", name, found.dtype(), own.dtype().to_string()));
            }
            Ok(found)
        };
        Ok(match self {
            Self::Kv(state) => Self::Kv(filled(state)?),
            Self::ConvKv(conv, state) => Self::ConvKv(like("conv", conv)?, filled(state)?),
            Self::Recurrent(state) => {
                let (conv, scan) = (like("conv", &state.conv)?, like("scan", &state.scan)?);
                Self::Recurrent(RecurrentState::new(conv, scan))
            }
            Self::Slot(state) => {
                let (conv, scan) = state.values()?;
                Self::Slot(state.filled(&like("conv", &conv)?, &like("scan", &scan)?)?)
            }
        })
    }
}

impl Snapshot {
    /// The kinds of the layers, separated by commas.
    pub fn kinds(&self) -> String {
        let kinds: Vec<&str> = self.layers.iter().map(LayerState::kind).collect();
        kinds.join(",")
    }

    /// All content by name.
    ///
    /// # Errors
    /// When there is no memory for copies of paged caches.
    pub fn tensors(&self) -> Result<Vec<(String, Tensor)>> {
        let mut all = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            let parts = layer.tensors()?;
            let named = parts.into_iter();
            all.extend(named.map(|(part, tensor)| (format!("layers.{index}.{part}"), tensor)));
        }
        Ok(all)
    }
}

impl StatePool {
    /// The kinds of the layers, separated by commas.
    pub fn kinds(&self) -> String {
        let kinds: Vec<&str> = self.fresh.iter().map(LayerState::kind).collect();
        kinds.join(",")
    }

    /// A snapshot for this pool from tensors that `read` finds by name.
    ///
    /// # Errors
    /// When a tensor is missing, or its shape or dtype is not that of the layer.
    pub fn snapshot_from(
        &self,
        tokens: usize,
        read: impl Fn(&str) -> Result<Tensor>,
    ) -> Result<Snapshot> {
        let layers = self.fresh.iter().enumerate();
        let layers = layers.map(|(index, layer)| layer.with_tensors(index, tokens, &read));
        Ok(Snapshot { tokens, layers: layers.collect::<Result<_>>()? })
    }
}
