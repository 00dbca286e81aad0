//! The seam between tensors and operators.

use super::{Leafy, Lineage, Node, Parent, Rule, is_recording};
use crate::{DType, Device, Error, Result, Shape, Tensor};

/// The inputs of an operator; an optional one that is absent is `None`.
pub type Inputs<'a> = &'a [Option<&'a Tensor>];

/// Shape and element type of an output before it exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Shape.
    pub shape: Shape,
    /// Element type.
    pub dtype: DType,
}

impl Meta {
    /// Shape and element type together.
    pub fn new(shape: impl Into<Shape>, dtype: DType) -> Self {
        Self { shape: shape.into(), dtype }
    }

    /// Bytes of such a tensor.
    pub fn bytes(&self) -> usize {
        self.shape.elem_count() * self.dtype.size()
    }
}

/// What a result may depend on besides its inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Within tolerance; bits may differ from run to run.
    Fast,
    /// Same build, device and instruction set: same bits, at any number of threads. The default.
    Deterministic,
    /// Besides, a row's bits do not depend on what else is in the batch.
    Invariant,
}

/// Which inputs and outputs backward needs, as bit sets by position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Saves {
    inputs: u32,
    outputs: u32,
}

impl Saves {
    /// Everything: right for every operator, wasteful for some.
    pub const fn all() -> Self {
        Self { inputs: u32::MAX, outputs: u32::MAX }
    }

    /// Nothing.
    pub const fn none() -> Self {
        Self { inputs: 0, outputs: 0 }
    }

    /// These inputs, no outputs.
    pub const fn inputs(positions: &[usize]) -> Self {
        Self { inputs: bits(positions), outputs: 0 }
    }

    /// Adds outputs.
    pub const fn and_outputs(self, positions: &[usize]) -> Self {
        Self { inputs: self.inputs, outputs: self.outputs | bits(positions) }
    }

    /// Whether input `position` is kept.
    pub const fn keeps_input(self, position: usize) -> bool {
        position < 32 && self.inputs >> position & 1 == 1
    }

    /// Whether output `position` is kept.
    pub const fn keeps_output(self, position: usize) -> bool {
        position < 32 && self.outputs >> position & 1 == 1
    }
}

const fn bits(positions: &[usize]) -> u32 {
    let (mut set, mut index) = (0, 0);
    while index < positions.len() {
        set |= 1 << positions[index];
        index += 1;
    }
    set
}

/// What backward gets: the saved tensors and the cotangent of every output.
pub struct Backward<'a> {
    /// Inputs that [`Op::saves`] kept; `None` where absent or not kept.
    pub inputs: &'a [Option<Tensor>],
    /// Outputs that [`Op::saves`] kept.
    pub outputs: &'a [Option<Tensor>],
    /// Cotangents; `None` means zero. At least one is there.
    pub grads: &'a [Option<Tensor>],
    /// Which inputs want a gradient; the others' slots are ignored.
    pub needs: &'a [bool],
}

impl<'a> Backward<'a> {
    /// A kept input that must be there.
    ///
    /// # Errors
    /// An internal error if the operator did not save it.
    pub fn input(&self, position: usize) -> Result<&'a Tensor> {
        let kept = self.inputs.get(position).and_then(Option::as_ref);
        kept.ok_or_else(|| Error::internal(format!("backward: input {position} was not saved")))
    }

    /// A kept output that must be there.
    ///
    /// # Errors
    /// An internal error if the operator did not save it.
    pub fn output(&self, position: usize) -> Result<&'a Tensor> {
        let kept = self.outputs.get(position).and_then(Option::as_ref);
        kept.ok_or_else(|| Error::internal(format!("backward: output {position} was not saved")))
    }

    /// The cotangent of output `position`, or zeros like the given tensor.
    ///
    /// # Errors
    /// When there is no memory for the zeros.
    pub fn grad_or_zeros(&self, position: usize, like: &Tensor) -> Result<Tensor> {
        match &self.grads[position] {
            Some(grad) => Ok(grad.clone()),
            None => Tensor::zeros(like.shape(), like.dtype(), &like.device()),
        }
    }
}

/// An operator: what it makes of its inputs, and how gradients come back.
///
/// `infer` validates everything, so that `run` can trust its arguments; `run` neither synchronises
/// nor allocates beyond pooled workspace, so that it can be captured in a graph.
pub trait Op: Send + Sync + 'static {
    /// Name on the tape and in messages.
    fn name(&self) -> &'static str;

    /// Shapes and dtypes of the outputs. Every bad argument is refused here.
    ///
    /// # Errors
    /// Naming the argument, what was given and what is valid.
    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>>;

    /// Bytes of scratch that `run` takes from the pool at most.
    fn workspace_bytes(&self, _inputs: Inputs) -> usize {
        0
    }

    /// Bytes that the tape keeps for backward, besides tensors that live anyway.
    fn saved_bytes(&self, inputs: Inputs) -> Result<usize> {
        let saves = self.saves();
        let kept = |(position, tensor): (usize, &Option<&Tensor>)| {
            tensor.filter(|_| saves.keeps_input(position)).map_or(0, Tensor::bytes)
        };
        let inputs_kept: usize = inputs.iter().enumerate().map(kept).sum();
        let outputs = self.infer(inputs)?;
        let positions = outputs.iter().enumerate();
        let outputs_kept = positions.filter(|(position, _)| saves.keeps_output(*position));
        Ok(inputs_kept + outputs_kept.map(|(_, meta)| meta.bytes()).sum::<usize>())
    }

    /// Inputs whose storage `run` changes (state objects). Empty for pure operators.
    fn mutates(&self) -> &'static [usize] {
        &[]
    }

    /// The promise about bits.
    fn level(&self) -> Level {
        Level::Deterministic
    }

    /// Inputs that the host reads in any case, such as the bounds of packed sequences: they may be on
    /// the processor while the others are on a GPU.
    fn host_inputs(&self) -> &'static [usize] {
        &[]
    }

    /// Whether `run` and `backward` work on a GPU, for the dtypes that their messages name. Operators
    /// that say no are refused there by [`apply`].
    fn on_cuda(&self) -> bool {
        false
    }

    /// What backward needs.
    fn saves(&self) -> Saves {
        Saves::all()
    }

    /// Computes the outputs, which are fresh, contiguous and of the inferred shapes.
    ///
    /// # Errors
    /// Lack of memory or of a device path.
    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()>;

    /// Gradients of the inputs, one slot each; `None` means zero or not wanted.
    ///
    /// # Errors
    /// Lack of memory, or an operator that has no gradient says so.
    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>>;
}

/// Validates, allocates, runs and records an operator.
///
/// # Errors
/// Whatever [`Op::infer`] or [`Op::run`] report, and inputs on different devices.
pub fn apply(op: impl Op, inputs: Inputs) -> Result<Vec<Tensor>> {
    let device = common_device(op.name(), inputs, op.host_inputs())?;
    if device.is_cuda() && !op.on_cuda() {
        return Err(Error::not_on_cuda(op.name(), "this operator"));
    }
    let metas = op.infer(inputs)?;
    let mut outputs = metas
        .into_iter()
        .map(|meta| Tensor::empty(meta.shape, meta.dtype, &device))
        .collect::<Result<Vec<_>>>()?;
    op.run(inputs, &mut outputs)?;
    Ok(record(op, inputs, outputs))
}

fn common_device(op: &'static str, inputs: Inputs, host: &[usize]) -> Result<Device> {
    let mut common = None;
    for (position, tensor) in inputs.iter().enumerate() {
        let Some(found) = tensor.map(Tensor::device) else { continue };
        if found == Device::Cpu && host.contains(&position) {
            continue;
        }
        match common {
            None => common = Some(found),
            Some(expected) if expected != found => {
                let arg = format!("input {position}");
                return Err(Error::DeviceMismatch { op, arg, found, expected });
            }
            Some(_) => {}
        }
    }
    Ok(common.unwrap_or_default())
}

/// An operator with what it saved.
struct OpRule<O> {
    op: O,
    inputs: Vec<Option<Tensor>>,
    outputs: Vec<Option<Tensor>>,
    needs: Vec<bool>,
}

impl<O: Op> Rule for OpRule<O> {
    fn pull(
        &self,
        grads: &[Option<Tensor>],
        _: &mut dyn FnMut(Leafy),
    ) -> Result<Vec<Option<Tensor>>> {
        let (inputs, outputs, needs) = (&self.inputs, &self.outputs, &self.needs);
        self.op.backward(&Backward { inputs, outputs, grads, needs })
    }
}

fn record<O: Op>(op: O, inputs: Inputs, outputs: Vec<Tensor>) -> Vec<Tensor> {
    let parents: Vec<Parent> = inputs.iter().map(|tensor| Parent::of(*tensor)).collect();
    if !is_recording() || !parents.iter().any(Parent::is_tracked) {
        return outputs;
    }
    let saves = op.saves();
    let kept_inputs = inputs.iter().enumerate().map(|(position, tensor)| {
        tensor.filter(|_| saves.keeps_input(position)).map(Tensor::detach)
    });
    let kept_outputs = outputs.iter().enumerate().map(|(position, tensor)| {
        // Outputs have no lineage yet, so the node does not hold itself alive.
        saves.keeps_output(position).then(|| tensor.clone())
    });
    let (name, count) = (op.name(), outputs.len());
    let rule = OpRule {
        inputs: kept_inputs.collect(),
        outputs: kept_outputs.collect(),
        needs: parents.iter().map(Parent::is_tracked).collect(),
        op,
    };
    let node = Node::new(name, parents, count, Box::new(rule));
    let connect = |(position, tensor): (usize, Tensor)| {
        if tensor.dtype().is_differentiable() {
            tensor.with_lineage(Lineage::Node(node.clone(), position))
        } else {
            tensor
        }
    };
    outputs.into_iter().enumerate().map(connect).collect()
}
