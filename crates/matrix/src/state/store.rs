//! Snapshots as named tensors, for files.
//!
//! Layer i of a snapshot is `layers.i.k` and `layers.i.v`, `[tokens, kv_heads, head_dim]`, or
//! `layers.i.conv` and `layers.i.scan` as in [`RecurrentState`]. The dtypes are those of the state, so
//! nothing is rounded: what is read back continues bit for bit.

use super::{LayerState, RecurrentState, Snapshot, StatePool};
use danaus_tensor::{Error, Result, Tensor};

impl LayerState {
    /// The kind, as files name it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Kv(_) => "kv",
            Self::Recurrent(_) => "recurrent",
        }
    }

    /// The content by name.
    fn tensors(&self) -> Result<[(&'static str, Tensor); 2]> {
        Ok(match self {
            Self::Kv(state) => {
                let (k, v) = state.used()?;
                [("k", k), ("v", v)]
            }
            Self::Recurrent(state) => [("conv", state.conv.clone()), ("scan", state.scan.clone())],
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
        match self {
            Self::Kv(state) => {
                let (k, v) = (named("k")?, named("v")?);
                if k.dims().first() != Some(&tokens) {
                    let expected = format!("[{tokens} tokens, kv_heads, head_dim]");
                    return Err(Error::shape(
                        "state",
                        format!("layers.{index}.k"),
                        k.shape(),
                        expected,
                    ));
                }
                Ok(Self::Kv(state.filled(&k, &v)?))
            }
            Self::Recurrent(state) => {
                let like = |part: &str, own: &Tensor| {
                    let found = named(part)?.to_device(&own.device())?;
                    let name = format!("layers.{index}.{part}");
                    if found.shape() != own.shape() {
                        let expected = own.shape().to_string();
                        return Err(Error::shape("state", name, found.shape(), expected));
                    }
                    if found.dtype() != own.dtype() {
                        return Err(Error::dtype(
                            "state",
                            name,
                            found.dtype(),
                            own.dtype().to_string(),
                        ));
                    }
                    Ok(found)
                };
                let (conv, scan) = (like("conv", &state.conv)?, like("scan", &state.scan)?);
                Ok(Self::Recurrent(RecurrentState::new(conv, scan)))
            }
        }
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
            all.extend(parts.map(|(part, tensor)| (format!("layers.{index}.{part}"), tensor)));
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
