//! Name maps: a table of ours and theirs, and the few ways in which the stored numbers differ.
//!
//! A row pairs two module paths; `{}` stands for a layer's number, and what follows the path
//! (`.weight`, `.bias`, a block format of quantised weights) is carried along. The table is read in
//! both directions, so that loading, exporting and loading again gives the same bits.

use crate::{Error, Result};
use danaus_tensor::Tensor;
use danaus_tensor::param::TensorSource;
use std::borrow::Cow;
use std::sync::Arc;

/// How another project stores what is ours.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum How {
    /// Alike.
    Same,
    /// Matrices as `[in, out]` (GPT-2's Conv1D).
    Transposed,
    /// Rows of q, k and v interleaved by head: `[heads, 3, head_dim]` instead of `[3, heads, head_dim]`.
    ByHead(usize),
    /// The two halves of the rows exchanged.
    Swapped,
    /// Rows of every head as neighbours that turn together, instead of two halves.
    Neighbours(usize),
    /// Without the middle dimension of a convolution's taps: `[channels, width]`.
    Flat,
    /// A vector with other dimensions, as a column.
    Column,
    /// A decay rate itself, `-e^x`, instead of its logarithm x; vectors as a column.
    Rate,
}

impl How {
    /// Theirs to ours.
    ///
    /// # Errors
    /// When the shape does not allow it.
    pub fn load(self, x: Tensor) -> danaus_tensor::Result<Tensor> {
        match self {
            How::Same => Ok(x),
            How::Transposed if x.rank() == 2 => x.transpose(0, 1)?.contiguous(),
            How::Transposed => Ok(x),
            How::ByHead(heads) => regroup(&x, [heads, 3]),
            How::Swapped => swap_halves(&x),
            How::Neighbours(heads) => {
                let pairs = rows(&x) / (2 * heads.max(1));
                regroup_within(&x, heads, [pairs, 2])
            }
            How::Flat if x.rank() == 2 => x.unsqueeze(1),
            How::Flat => Ok(x),
            How::Column => x.reshape([x.elem_count()]),
            How::Rate => {
                let x = if x.dims().last() == Some(&1) { x.reshape([x.elem_count()])? } else { x };
                x.neg()?.ln()
            }
        }
    }

    /// Ours to theirs.
    ///
    /// # Errors
    /// When the shape does not allow it.
    pub fn store(self, x: Tensor) -> danaus_tensor::Result<Tensor> {
        match self {
            How::Same | How::Transposed => self.load(x),
            How::ByHead(heads) => regroup(&x, [3, heads]),
            How::Swapped => self.load(x),
            How::Neighbours(heads) => {
                let pairs = rows(&x) / (2 * heads.max(1));
                regroup_within(&x, heads, [2, pairs])
            }
            How::Flat if x.rank() == 3 => x.squeeze(1),
            How::Flat => Ok(x),
            How::Column => x.reshape([x.elem_count(), 1]),
            How::Rate => {
                let rate = x.exp()?.neg()?;
                if rate.rank() == 1 { rate.reshape([x.elem_count(), 1]) } else { Ok(rate) }
            }
        }
    }
}

fn rows(x: &Tensor) -> usize {
    x.dims().first().copied().unwrap_or(0)
}

/// Rows `[a, b, ..]` to `[b, a, ..]`.
fn regroup(x: &Tensor, [a, b]: [usize; 2]) -> danaus_tensor::Result<Tensor> {
    regroup_within(x, 1, [a, b])
}

/// Rows `[groups, a, b, ..]` to `[groups, b, a, ..]`.
fn regroup_within(x: &Tensor, groups: usize, [a, b]: [usize; 2]) -> danaus_tensor::Result<Tensor> {
    let rows = rows(x);
    let each = groups * a * b;
    if each == 0 || !rows.is_multiple_of(each) {
        let expected = format!("rows in {groups} groups of {a} x {b}");
        return Err(danaus_tensor::Error::shape("load", "rows", x.shape(), expected));
    }
    let split = x.reshape([groups, a, b, x.elem_count() / each])?;
    split.transpose(1, 2)?.contiguous()?.reshape(x.shape())
}

fn swap_halves(x: &Tensor) -> danaus_tensor::Result<Tensor> {
    let rows = rows(x);
    if rows == 0 || !rows.is_multiple_of(2) {
        let expected = "an even number of rows";
        return Err(danaus_tensor::Error::shape("load", "rows", x.shape(), expected));
    }
    let half = rows / 2;
    let (first, second) = (x.narrow(0, 0, half)?, x.narrow(0, half, half)?);
    Tensor::cat(&[&second, &first], 0)
}

/// One pair of module paths.
#[derive(Clone, Debug)]
struct Row {
    ours: &'static str,
    theirs: &'static str,
    /// Letters of the layers it holds for; empty is all.
    letters: &'static str,
    how: How,
}

/// The table of one model.
#[derive(Clone, Debug, Default)]
pub struct NameMap {
    rows: Vec<Row>,
    layers: Vec<char>,
    /// A leading part of their names that some files leave out.
    optional: &'static str,
    /// Their tensors that hold nothing a model needs.
    ignored: Vec<&'static str>,
}

impl NameMap {
    /// An empty table for a model with these layers (letters of our config).
    pub fn new(layers: &str) -> Self {
        Self { layers: layers.chars().collect(), ..Self::default() }
    }

    /// Adds a pair of paths.
    #[must_use]
    pub fn row(self, ours: &'static str, theirs: &'static str) -> Self {
        self.row_as(ours, theirs, How::Same)
    }

    /// Adds a pair of paths whose numbers are stored differently.
    #[must_use]
    pub fn row_as(self, ours: &'static str, theirs: &'static str, how: How) -> Self {
        self.row_for("", ours, theirs, how)
    }

    /// As [`Self::row_as`], for layers with one of these letters.
    #[must_use]
    pub fn row_for(
        mut self,
        letters: &'static str,
        ours: &'static str,
        theirs: &'static str,
        how: How,
    ) -> Self {
        self.rows.push(Row { ours, theirs, letters, how });
        self
    }

    /// Files may leave out this leading part of their names.
    #[must_use]
    pub fn optional_prefix(mut self, prefix: &'static str) -> Self {
        self.optional = prefix;
        self
    }

    /// Their tensors of this path hold nothing a model needs.
    #[must_use]
    pub fn ignore(mut self, path: &'static str) -> Self {
        self.ignored.push(path);
        self
    }

    /// Their name of one of our tensors.
    pub fn theirs(&self, ours: &str) -> Option<(String, How)> {
        self.find(ours, |row| (row.ours, row.theirs))
    }

    /// Our name of one of their tensors.
    pub fn ours(&self, theirs: &str) -> Option<(String, How)> {
        self.find(theirs, |row| (row.theirs, row.ours))
    }

    fn find(
        &self,
        name: &str,
        sides: impl Fn(&Row) -> (&'static str, &'static str),
    ) -> Option<(String, How)> {
        self.rows.iter().find_map(|row| {
            let (from, to) = sides(row);
            let (layer, rest) = matched(from, name)?;
            let fits = match layer.and_then(|layer| self.layers.get(layer)) {
                Some(letter) => row.letters.is_empty() || row.letters.contains(*letter),
                None => row.letters.is_empty(),
            };
            let path = match layer {
                Some(layer) => Cow::Owned(to.replacen("{}", &layer.to_string(), 1)),
                None => Cow::Borrowed(to),
            };
            fits.then(|| (format!("{path}{rest}"), row.how))
        })
    }

    fn is_ignored(&self, theirs: &str) -> bool {
        self.ignored.iter().any(|path| matched(path, theirs).is_some())
    }
}

/// The layer's number and what follows a path that ends at a dot or the end of the name.
fn matched<'a>(path: &str, name: &'a str) -> Option<(Option<usize>, &'a str)> {
    let (layer, rest) = match path.split_once("{}") {
        None => (None, name.strip_prefix(path)?),
        Some((before, after)) => {
            let rest = name.strip_prefix(before)?;
            let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let (number, rest) = rest.split_at(digits);
            (Some(number.parse().ok()?), rest.strip_prefix(after)?)
        }
    };
    (rest.is_empty() || rest.starts_with('.')).then_some((layer, rest))
}

/// Parts that other projects store apart: ours, and theirs in our spelling.
pub(crate) const JOINED: &[(&str, &[&str])] =
    &[(".qkv.", &[".q.", ".k.", ".v."]), (".gate_up.", &[".gate.", ".up."])];

const BIAS: &str = ".bias";

/// Our names of the parts of a tensor that others store apart.
pub(crate) fn parts_of(name: &str) -> Option<Vec<String>> {
    let (whole, parts) = JOINED.iter().find(|(whole, _)| name.contains(whole))?;
    Some(parts.iter().map(|part| name.replacen(whole, part, 1)).collect())
}

/// Another project's tensors under our names.
pub struct Renamed {
    inner: Arc<dyn TensorSource>,
    map: NameMap,
    /// Whether the files leave out the optional prefix.
    short: bool,
}

impl Renamed {
    /// Wraps their tensors.
    pub fn new(inner: Arc<dyn TensorSource>, map: NameMap) -> Self {
        let names = inner.names();
        let short =
            !map.optional.is_empty() && !names.iter().any(|name| name.starts_with(map.optional));
        Self { inner, map, short }
    }

    /// Their name of one of our tensors.
    pub fn label(&self, ours: &str) -> String {
        self.map.theirs(ours).map_or(ours.to_string(), |(theirs, _)| theirs)
    }

    /// Whether their table has one of our tensors as a whole, and not in parts.
    pub fn is_whole(&self, ours: &str) -> bool {
        self.map.theirs(ours).is_some()
    }

    fn fetch(&self, theirs: &str) -> danaus_tensor::Result<Option<Tensor>> {
        match theirs.strip_prefix(self.map.optional).filter(|_| self.short) {
            Some(rest) => self.inner.tensor(rest),
            None => self.inner.tensor(theirs),
        }
    }

    /// A bias that is stored in parts, joined; matrices are stacked where they are used.
    fn joined(&self, name: &str) -> danaus_tensor::Result<Option<Tensor>> {
        let Some(parts) = parts_of(name).filter(|_| name.ends_with(BIAS)) else { return Ok(None) };
        let mut found = Vec::new();
        for part in parts {
            match self.tensor(&part)? {
                Some(tensor) => found.push(tensor),
                None => return Ok(None),
            }
        }
        let borrowed: Vec<&Tensor> = found.iter().collect();
        Tensor::cat(&borrowed, 0).map(Some)
    }
}

impl TensorSource for Renamed {
    fn tensor(&self, name: &str) -> danaus_tensor::Result<Option<Tensor>> {
        match self.map.theirs(name) {
            Some((theirs, how)) => self.fetch(&theirs)?.map(|tensor| how.load(tensor)).transpose(),
            None => self.joined(name),
        }
    }

    fn contains(&self, name: &str) -> danaus_tensor::Result<bool> {
        match self.map.theirs(name) {
            Some((theirs, _)) => match theirs.strip_prefix(self.map.optional) {
                Some(rest) if self.short => self.inner.contains(rest),
                _ => self.inner.contains(&theirs),
            },
            None => Ok(self.joined(name)?.is_some()),
        }
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for theirs in self.inner.names() {
            let full = match self.short && !theirs.starts_with("lm_head") {
                true => format!("{}{theirs}", self.map.optional),
                false => theirs,
            };
            if self.map.is_ignored(&full) {
                continue;
            }
            let Some((ours, _)) = self.map.ours(&full) else {
                names.push(full);
                continue;
            };
            let whole = JOINED.iter().find_map(|(whole, parts)| {
                let part = parts.iter().find(|part| ours.contains(**part))?;
                // `up` alone is a channel mixer without gate.
                self.map.theirs(&ours.replacen(part, parts[0], 1))?;
                ours.ends_with(BIAS).then(|| ours.replacen(part, whole, 1))
            });
            let ours = whole.unwrap_or(ours);
            if names.last() != Some(&ours) && !names.contains(&ours) {
                names.push(ours);
            }
        }
        names
    }
}

/// One of our tensors as they store it: names and values. Joined tensors may become several, of `sizes`
/// rows.
///
/// # Errors
/// When their table has no place for it.
pub fn stored(
    map: &NameMap,
    name: &str,
    tensor: &Tensor,
    sizes: &[usize],
) -> Result<Vec<(String, Tensor)>> {
    if let Some((theirs, how)) = map.theirs(name) {
        return Ok(vec![(theirs, how.store(tensor.clone())?)]);
    }
    let homeless =
        || Error::argument("tensor", name, "a tensor that the chosen spelling has a name for");
    let parts = parts_of(name).ok_or_else(homeless)?;
    let mut all = Vec::new();
    for (ours, value) in parts.into_iter().zip(tensor.split(0, sizes)?) {
        let (theirs, how) = map.theirs(&ours).ok_or_else(homeless)?;
        all.push((theirs, how.store(value.contiguous()?)?));
    }
    Ok(all)
}

#[cfg(test)]
mod tests;
