//! The tape: recording operators and walking them backwards.
//!
//! There is one way to be differentiable: implement [`Op`] and call it through [`apply`]. A node
//! keeps only what [`Op::saves`] asks for, and backward frees it as it goes. Gradients are returned,
//! never stored in tensors: `loss.backward()? -> Gradients`, keyed by the leaves made with
//! [`Tensor::tracked`].
//!
//! Nodes carry increasing numbers, so that walking them by descending number is a reverse topological
//! order and every gradient is summed in the same order on every run.

mod backward;
mod checkpoint;
mod level;
mod op;

pub use backward::{Gradients, backward_with};
pub use checkpoint::checkpoint;
pub use level::{asked_level, with_level};
pub use op::{Backward, Inputs, Level, Meta, Op, Saves, apply};

use crate::{Result, Tensor, TensorId};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

thread_local! {
    static RECORDING: Cell<bool> = const { Cell::new(true) };
}

/// Runs `work` without recording: nothing is kept for gradients.
pub fn no_grad<R>(work: impl FnOnce() -> R) -> R {
    with_recording(false, work)
}

pub(crate) fn with_recording<R>(on: bool, work: impl FnOnce() -> R) -> R {
    /// Restores the state even when `work` panics (as failing tests do).
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            RECORDING.set(self.0);
        }
    }
    let _restore = Restore(RECORDING.replace(on));
    work()
}

/// Whether operators called on this thread are recorded.
pub fn is_recording() -> bool {
    RECORDING.get()
}

/// Where a tensor comes from.
#[derive(Clone)]
pub(crate) enum Lineage {
    /// Not tracked.
    None,
    /// Tracked by the user or a parameter.
    Leaf,
    /// Output number `usize` of a recorded operator.
    Node(Arc<Node>, usize),
}

/// A recorded call.
pub(crate) struct Node {
    pub(crate) number: u64,
    pub(crate) name: &'static str,
    pub(crate) parents: Vec<Parent>,
    /// Shape and dtype of each output, to check what comes back.
    pub(crate) outputs: usize,
    /// The rule, taken by the first backward pass, which frees what it saved.
    pub(crate) rule: Mutex<Option<Box<dyn Rule>>>,
}

/// Where an input's gradient goes.
#[derive(Clone)]
pub(crate) enum Parent {
    /// Not tracked: no gradient wanted.
    None,
    /// Reported to the caller under this identity.
    Leaf(TensorId),
    /// Passed on to another node's output.
    Node(Arc<Node>, usize),
}

/// How gradients pass through a node, with whatever it saved.
pub(crate) trait Rule: Send {
    /// Gradients of the inputs from those of the outputs.
    fn pull(
        &self,
        grads: &[Option<Tensor>],
        sink: &mut dyn FnMut(Leafy),
    ) -> Result<Vec<Option<Tensor>>>;
}

/// A gradient for a leaf that is not among the node's inputs (a parameter inside a checkpoint).
pub(crate) struct Leafy {
    pub(crate) id: TensorId,
    pub(crate) grad: Tensor,
}

impl Parent {
    pub(crate) fn of(tensor: Option<&Tensor>) -> Self {
        match tensor.map(|tensor| (tensor.id(), tensor.lineage())) {
            None | Some((_, Lineage::None)) => Parent::None,
            Some((id, Lineage::Leaf)) => Parent::Leaf(id),
            Some((_, Lineage::Node(node, output))) => Parent::Node(node.clone(), *output),
        }
    }

    pub(crate) fn is_tracked(&self) -> bool {
        !matches!(self, Parent::None)
    }
}

impl Node {
    pub(crate) fn new(
        name: &'static str,
        parents: Vec<Parent>,
        outputs: usize,
        rule: Box<dyn Rule>,
    ) -> Arc<Self> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self { number, name, parents, outputs, rule: Mutex::new(Some(rule)) })
    }
}

impl Drop for Node {
    /// Long chains are taken apart in a loop: the default recursion would overflow the stack.
    fn drop(&mut self) {
        let mut pending: Vec<Parent> = std::mem::take(&mut self.parents);
        while let Some(parent) = pending.pop() {
            if let Parent::Node(node, _) = parent
                && let Some(mut node) = Arc::into_inner(node)
            {
                pending.append(&mut node.parents);
            }
        }
    }
}

/// Connects a view (the same storage under another layout) to its source.
pub(crate) fn record_view(
    name: &'static str,
    source: &Tensor,
    layout: crate::Layout,
    pull: impl Fn(&Tensor) -> Result<Tensor> + Send + 'static,
) -> Tensor {
    source.with_layout(layout, view_lineage(name, source, pull))
}

/// Connects the same elements on another device to their source.
pub(crate) fn record_moved(
    name: &'static str,
    source: &Tensor,
    moved: Tensor,
    pull: impl Fn(&Tensor) -> Result<Tensor> + Send + 'static,
) -> Tensor {
    moved.with_lineage(view_lineage(name, source, pull))
}

/// What a tensor with the elements of `source` remembers of it.
fn view_lineage(
    name: &'static str,
    source: &Tensor,
    pull: impl Fn(&Tensor) -> Result<Tensor> + Send + 'static,
) -> Lineage {
    struct ViewRule<F>(F);
    impl<F: Fn(&Tensor) -> Result<Tensor> + Send> Rule for ViewRule<F> {
        fn pull(
            &self,
            grads: &[Option<Tensor>],
            _: &mut dyn FnMut(Leafy),
        ) -> Result<Vec<Option<Tensor>>> {
            Ok(vec![grads[0].as_ref().map(&self.0).transpose()?])
        }
    }
    if is_recording() && source.is_tracked() && source.dtype().is_differentiable() {
        let parents = vec![Parent::of(Some(source))];
        Lineage::Node(Node::new(name, parents, 1, Box::new(ViewRule(pull))), 0)
    } else {
        Lineage::None
    }
}

/// Connects several views of one tensor to it with a single node, whose rule sees all cotangents at
/// once: parts of a projection get their gradients joined in one pass instead of padded and summed.
pub(crate) fn record_views(
    name: &'static str,
    source: &Tensor,
    layouts: Vec<crate::Layout>,
    pull: impl Fn(&[Option<Tensor>]) -> Result<Tensor> + Send + 'static,
) -> Vec<Tensor> {
    struct ViewsRule<F>(F);
    impl<F: Fn(&[Option<Tensor>]) -> Result<Tensor> + Send> Rule for ViewsRule<F> {
        fn pull(
            &self,
            grads: &[Option<Tensor>],
            _: &mut dyn FnMut(Leafy),
        ) -> Result<Vec<Option<Tensor>>> {
            Ok(vec![Some((self.0)(grads)?)])
        }
    }
    if !(is_recording() && source.is_tracked() && source.dtype().is_differentiable()) {
        let plain = |layout| source.with_layout(layout, Lineage::None);
        return layouts.into_iter().map(plain).collect();
    }
    let parents = vec![Parent::of(Some(source))];
    let node = Node::new(name, parents, layouts.len(), Box::new(ViewsRule(pull)));
    let view =
        |(position, layout)| source.with_layout(layout, Lineage::Node(node.clone(), position));
    layouts.into_iter().enumerate().map(view).collect()
}

#[cfg(test)]
mod tests;
