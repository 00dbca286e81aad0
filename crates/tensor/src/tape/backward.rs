//! The reverse walk.

use super::{Leafy, Lineage, Node, Parent, no_grad};
use crate::{Error, Result, Tensor, TensorId};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Gradients of the leaves that a backward pass reached.
#[derive(Default)]
pub struct Gradients(HashMap<TensorId, Tensor>);

impl Gradients {
    /// The gradient of a leaf made with [`Tensor::tracked`]; `None` if the result does not depend
    /// on it.
    pub fn get(&self, leaf: &Tensor) -> Option<&Tensor> {
        self.0.get(&leaf.id())
    }

    /// Takes the gradient of a leaf out, so that it can be changed in place.
    pub fn take(&mut self, leaf: &Tensor) -> Option<Tensor> {
        self.0.remove(&leaf.id())
    }

    /// By identity, for parameters that keep only that.
    pub fn take_id(&mut self, id: TensorId) -> Option<Tensor> {
        self.0.remove(&id)
    }

    /// Number of leaves reached.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no leaf was reached.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn add(&mut self, id: TensorId, grad: Tensor) -> Result<()> {
        let sum = match self.0.remove(&id) {
            Some(before) => crate::ops::accumulate(before, &grad)?,
            None => grad,
        };
        self.0.insert(id, sum);
        Ok(())
    }
}

impl Tensor {
    /// Gradients of this scalar with respect to every tracked leaf it depends on.
    ///
    /// What the tape saved is freed on the way: a second call on the same graph is an error.
    ///
    /// # Errors
    /// When this is not a tracked scalar, or an operator's backward fails.
    pub fn backward(&self) -> Result<Gradients> {
        if self.elem_count() != 1 {
            return Err(Error::shape("backward", "loss", self.shape(), "exactly one element"));
        }
        let one = Tensor::full(1.0f64, self.shape(), &self.device())?.to_dtype(self.dtype())?;
        backward_with(&[(self, &one)])
    }
}

/// Gradients of `sum over pairs <output, cotangent>`.
///
/// # Errors
/// When no output is tracked, a cotangent's shape differs, or an operator's backward fails.
pub fn backward_with(pairs: &[(&Tensor, &Tensor)]) -> Result<Gradients> {
    for (output, cotangent) in pairs {
        if output.shape() != cotangent.shape() {
            let expected = format!("{} as the output", output.shape());
            return Err(Error::shape("backward", "cotangent", cotangent.shape(), expected));
        }
    }
    if !pairs.iter().any(|(output, _)| output.is_tracked()) {
        let (given, valid) = ("untracked", "a result of tensors made with tracked()");
        return Err(Error::argument("backward", "loss", given, valid));
    }
    no_grad(|| {
        let mut walk = Walk::default();
        for (output, cotangent) in pairs {
            let grad = cotangent.to_dtype(output.dtype())?;
            match output.lineage() {
                Lineage::None => {}
                Lineage::Leaf => walk.done.add(output.id(), grad)?,
                Lineage::Node(node, position) => walk.push(node, *position, grad)?,
            }
        }
        walk.finish()
    })
}

/// Nodes that have part of their cotangents, by number.
#[derive(Default)]
struct Walk {
    pending: BTreeMap<u64, (Arc<Node>, Vec<Option<Tensor>>)>,
    done: Gradients,
}

impl Walk {
    fn push(&mut self, node: &Arc<Node>, position: usize, grad: Tensor) -> Result<()> {
        let entry = self.pending.entry(node.number);
        let (_, grads) = entry.or_insert_with(|| (node.clone(), vec![None; node.outputs]));
        let sum = match grads[position].take() {
            Some(before) => crate::ops::accumulate(before, &grad)?,
            None => grad,
        };
        grads[position] = Some(sum);
        Ok(())
    }

    fn finish(mut self) -> Result<Gradients> {
        while let Some((_, (node, grads))) = self.pending.pop_last() {
            let rule = node.rule.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
            let Some(rule) = rule else {
                let valid = "a graph that backward has not run through yet; compute it again";
                return Err(Error::argument("backward", node.name, "already used", valid));
            };
            let mut inner: Vec<Leafy> = Vec::new();
            let inputs = rule.pull(&grads, &mut |leaf| inner.push(leaf))?;
            drop((rule, grads));
            for leaf in inner {
                self.done.add(leaf.id, leaf.grad)?;
            }
            for (parent, grad) in node.parents.iter().zip(inputs) {
                match (parent, grad) {
                    (_, None) | (Parent::None, _) => {}
                    (Parent::Leaf(id), Some(grad)) => self.done.add(*id, grad)?,
                    (Parent::Node(node, output), Some(grad)) => self.push(node, *output, grad)?,
                }
            }
        }
        Ok(self.done)
    }
}

impl IntoIterator for Gradients {
    type Item = (TensorId, Tensor);
    type IntoIter = std::collections::hash_map::IntoIter<TensorId, Tensor>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}
