//! Products of Kronecker-sparse factors as one leaf, multiplied by one operator.

use super::meet;
use danaus_kernel::ops::kronecker_sparse::{Pattern, Step, butterfly_steps, packed, twiddle_shape};
use danaus_tensor::{Error, Result, Tensor};

/// Factors in the order they are applied, with the tensors that hold their blocks.
#[derive(Clone)]
pub struct Chain {
    steps: Vec<Step>,
    sources: Vec<Tensor>,
    conjugated: bool,
}

impl Chain {
    /// A product of factors in the order they are applied.
    ///
    /// # Errors
    /// When there is none, patterns do not follow each other or values have another number of
    /// elements.
    pub fn new(factors: &[(Pattern, Tensor)]) -> Result<Self> {
        let mut previous: Option<Pattern> = None;
        for (pattern, values) in factors {
            pattern.check("Chain")?;
            if values.elem_count() != pattern.parameters() {
                let expected = format!("{} elements for {pattern}", pattern.parameters());
                return Err(Error::shape("Chain", "values", values.shape(), expected));
            }
            if let Some(before) = previous.filter(|before| before.rows() != pattern.cols()) {
                let valid = format!("one with {} columns, to follow {before}", before.rows());
                return Err(Error::argument("Chain", "pattern", pattern, valid));
            }
            previous = Some(*pattern);
        }
        if factors.is_empty() {
            return Err(Error::argument("Chain", "factors", 0, "at least one factor"));
        }
        let steps = factors.iter().enumerate();
        let steps = steps.map(|(source, (pattern, _))| Step::new(*pattern, source)).collect();
        let sources = factors.iter().map(|(_, values)| values.clone()).collect();
        Ok(Self { steps, sources, conjugated: false })
    }

    /// Factors that share tensors.
    ///
    /// # Errors
    /// When there is none.
    pub fn from_steps(steps: Vec<Step>, sources: Vec<Tensor>) -> Result<Self> {
        match steps.is_empty() {
            true => Err(Error::argument("Chain", "factors", 0, "at least one factor")),
            false => Ok(Self { steps, sources, conjugated: false }),
        }
    }

    /// The butterfly of a twiddle `[1, nblocks, log_n, n / 2, 2, 2]` (block, order of application,
    /// pair, out, in); block b has increasing strides where `increasing` XOR (b odd).
    ///
    /// # Errors
    /// When the shape is another one.
    pub fn butterfly(twiddle: &Tensor, increasing: bool) -> Result<Self> {
        let [stacks, nblocks, log_n] = twiddle_shape(twiddle)?;
        if stacks != 1 {
            let expected = "[1, nblocks, log_n, n / 2, 2, 2]: one stack";
            return Err(Error::shape("Chain::butterfly", "twiddle", twiddle.shape(), expected));
        }
        let steps = butterfly_steps([1, nblocks, log_n], increasing, 0);
        Ok(Self { steps, sources: vec![twiddle.clone()], conjugated: false })
    }

    /// The factors.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.steps.last().map_or(0, Step::rows)
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.steps.first().map_or(0, Step::cols)
    }

    /// Tensors behind the factors.
    pub fn sources(&self) -> &[Tensor] {
        &self.sources
    }

    /// Values of a factor as they are applied, `[blocks, b, c]`.
    pub(super) fn values(&self, step: &Step) -> Result<Tensor> {
        let Pattern { b, c, .. } = step.pattern;
        let source = self.sources[step.source].detach();
        let flat = source.reshape([source.elem_count()])?;
        let values = flat.narrow(0, step.offset, step.pattern.parameters())?;
        let values = values.reshape([step.pattern.blocks(), b, c])?;
        let values = if step.transposed { values.transpose(-2, -1)? } else { values };
        if self.conjugated { values.conj() } else { Ok(values) }
    }

    /// Both chains one after the other as one.
    pub(super) fn then(&self, next: &Chain) -> Option<Self> {
        if self.conjugated != next.conjugated || self.is_complex() != next.is_complex() {
            return None;
        }
        let count = self.sources.len();
        let moved = next.steps.iter().map(|step| Step { source: step.source + count, ..*step });
        Some(Self {
            steps: self.steps.iter().copied().chain(moved).collect(),
            sources: self.sources.iter().chain(&next.sources).cloned().collect(),
            conjugated: self.conjugated,
        })
    }

    pub(super) fn is_complex(&self) -> bool {
        self.sources.iter().any(|source| source.dtype().is_complex())
    }

    /// The transposed product over the same values.
    pub fn transposed(&self) -> Self {
        let steps = self.steps.iter().rev().map(|step| step.flipped()).collect();
        Self { steps, ..self.clone() }
    }

    /// With conjugate values.
    pub fn conjugated(&self) -> Self {
        Self { conjugated: !self.conjugated, ..self.clone() }
    }

    /// `[.., cols]` to `[.., rows]`.
    pub(super) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        let mut sources = Vec::with_capacity(self.sources.len());
        for source in &self.sources {
            let (wide, source) = meet(&x, source)?;
            x = wide;
            let conjugate = self.conjugated && source.dtype().is_complex();
            sources.push(if conjugate { source.conj()? } else { source });
        }
        // A source may have made x complex after the first ones were taken as they are.
        for source in &mut sources {
            *source = meet(&x, source)?.1;
        }
        packed(&x, &self.steps, &sources.iter().collect::<Vec<_>>())
    }
}
