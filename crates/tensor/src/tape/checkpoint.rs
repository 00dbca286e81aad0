//! Activation checkpointing: keep a block's inputs, compute the block again in backward.

use super::{
    Leafy, Lineage, Node, Parent, Rule, backward_with, is_recording, no_grad, with_recording,
};
use crate::{Result, Tensor};
use std::collections::HashMap;

/// Runs `block` without keeping its intermediate results; backward runs it a second time.
///
/// Tracked tensors that `block` captures must be leaves (parameters); anything computed must be
/// passed in `inputs`. Random operators are keyed by counters, so both runs agree.
///
/// # Errors
/// Whatever `block` reports.
pub fn checkpoint(
    inputs: &[&Tensor],
    block: impl Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + 'static,
) -> Result<Vec<Tensor>> {
    let plain: Vec<Tensor> = inputs.iter().map(|tensor| tensor.detach()).collect();
    if !is_recording() {
        return block(&plain);
    }
    let outputs = no_grad(|| block(&plain))?;
    let parents: Vec<Parent> = inputs.iter().map(|tensor| Parent::of(Some(tensor))).collect();
    let rule = Recompute { block, inputs: plain };
    let node = Node::new("checkpoint", parents, outputs.len(), Box::new(rule));
    let connect = |(position, tensor): (usize, Tensor)| {
        tensor.with_lineage(Lineage::Node(node.clone(), position))
    };
    Ok(outputs.into_iter().enumerate().map(connect).collect())
}

struct Recompute<F> {
    block: F,
    inputs: Vec<Tensor>,
}

impl<F: Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send> Rule for Recompute<F> {
    fn pull(
        &self,
        grads: &[Option<Tensor>],
        sink: &mut dyn FnMut(Leafy),
    ) -> Result<Vec<Option<Tensor>>> {
        let leaves: Vec<Tensor> = self.inputs.iter().map(Tensor::tracked).collect();
        let outputs = with_recording(true, || (self.block)(&leaves))?;
        let pairs: Vec<(&Tensor, &Tensor)> = outputs
            .iter()
            .zip(grads)
            .filter_map(|(output, grad)| Some((output, grad.as_ref()?)))
            .filter(|(output, _)| output.is_tracked())
            .collect();
        if pairs.is_empty() {
            return Ok(vec![None; leaves.len()]);
        }
        let mut found: HashMap<_, _> = backward_with(&pairs)?.into_iter().collect();
        let inputs = leaves.iter().map(|leaf| found.remove(&leaf.id())).collect();
        // What is left belongs to captured parameters. By identity, so that the order is fixed.
        let mut captured: Vec<_> = found.into_iter().collect();
        captured.sort_by_key(|(id, _)| *id);
        captured.into_iter().for_each(|(id, grad)| sink(Leafy { id, grad }));
        Ok(inputs)
    }
}
