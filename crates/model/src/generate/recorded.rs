//! Decoding steps on a GPU as graphs: recorded once, replayed while nothing but numbers changes.
//!
//! A step of a small batch is a thousand short kernels, and launching one takes the host longer than the
//! kernel runs. A replay is one launch. What changes from step to step lies in device memory that is
//! rewritten before ([`StepMemory`]); a step is recorded anew when
//!
//! * the number of sequences changes, or what is wanted of the logits;
//! * a text grows beyond the room of its page tables, or a cache's arena grows and moves;
//! * somebody holds states that the step would overwrite.
//!
//! The first step of a kind runs as it always does, the next one in a row is a rehearsal in the places of the
//! recording, the third is recorded and replayed: batches that change with every step are never recorded.
//! Prompts that are read between steps change nothing.
//! All have the same bits. Where a step cannot be recorded, the reason is reported and steps run one
//! launch at a time.

use super::choose::{Wanted, reduce};
use crate::decoder::Decoder;
use crate::{Error, Result};
use danaus_kernel::recording::{Constants, Held, record, rehearse};
use danaus_matrix::state::{Fit, Slot, StepMemory};
use danaus_matrix::{SeqBatch, StatePool};
use danaus_runtime::cuda::Graph;
use danaus_tensor::{Tensor, no_grad};

/// How many steps were replayed, and why the others were not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GraphUse {
    /// Steps of one token a sequence, each by a replay.
    pub replayed: usize,
    /// Steps of one token a sequence, launch by launch.
    pub launched: usize,
    /// Recordings made.
    pub recorded: usize,
    /// Why steps are not recorded: `off`, or what the model or its device lacks.
    pub refused: Option<String>,
}

/// What a step leaves on the device.
#[derive(Clone)]
pub(super) struct Outcome {
    /// `[sequences, vocab]`.
    pub logits: Tensor,
    /// What the host reads to choose tokens.
    pub reduced: Tensor,
}

/// A step of one token a slot.
#[derive(Clone, Copy)]
pub(super) struct Step<'a> {
    pub decoder: &'a Decoder,
    pub ids: &'a [u32],
    pub slots: &'a [Slot],
    pub wanted: Wanted,
}

impl Step<'_> {
    fn kind(&self) -> Kind {
        Kind { sequences: self.slots.len(), wanted: self.wanted }
    }
}

/// What a recording holds for.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Kind {
    sequences: usize,
    wanted: Wanted,
}

struct Recording {
    graph: Graph,
    outcome: Outcome,
    /// What the graph reads besides parameters, caches and the memory.
    _held: Held,
}

/// A kind of step that may be worth recording.
struct Place {
    kind: Kind,
    memory: StepMemory,
    /// There after the rehearsal.
    constants: Option<Constants>,
    recording: Option<Recording>,
}

/// The steps of one generator.
pub(super) struct Recorder {
    on: bool,
    /// The kind of the step before.
    last: Option<Kind>,
    place: Option<Place>,
    pub used: GraphUse,
}

impl Recorder {
    pub fn new(decoder: &Decoder, pool: &StatePool, asked: bool) -> Self {
        let refused = match (decoder.device().is_cuda(), asked, pool.unrecorded_kind()) {
            (false, ..) => Some("graphs need a GPU".to_string()),
            (_, false, _) => Some("off".into()),
            (.., Some(kind)) => Some(format!("layers with {kind} states are not recorded")),
            _ => None,
        };
        let used = GraphUse { refused, ..GraphUse::default() };
        Self { on: used.refused.is_none(), last: None, place: None, used }
    }

    /// Something else than a decoding step comes between.
    pub fn interrupt(&mut self) {
        self.last = None;
    }

    /// A step of one token a slot.
    ///
    /// # Errors
    /// As [`Decoder::advance`].
    pub fn step(&mut self, of: Step, pool: &mut StatePool) -> Result<Outcome> {
        let kind = of.kind();
        let known = self.last.replace(kind) == Some(kind);
        self.place = self.place.take().filter(|place| place.kind == kind);
        if !self.on || (self.place.is_none() && !known) {
            return self.launched(of, pool);
        }
        match &mut self.place {
            None => return self.rehearse(of, pool),
            Some(place) => {
                match of.decoder.enter_step(of.ids, pool, of.slots, &mut place.memory)? {
                    Fit::Fits => {}
                    // By its own launches it leaves those states to whoever holds them.
                    Fit::Shared => return self.launched(of, pool),
                    Fit::Longer | Fit::Moved => {
                        self.place = None;
                        return self.rehearse(of, pool);
                    }
                }
            }
        }
        let counted = self.record(of, pool)?;
        match self.place.as_mut().and_then(|place| place.recording.as_mut()) {
            Some(recording) => {
                recording.graph.replay().map_err(danaus_tensor::Error::from)?;
                self.used.replayed += 1;
                let outcome = recording.outcome.clone();
                if !counted {
                    pool.leave_step(of.slots)?;
                }
                Ok(outcome)
            }
            None => self.launched(of, pool),
        }
    }

    /// A step as it would run without any of this.
    fn launched(&mut self, of: Step, pool: &mut StatePool) -> Result<Outcome> {
        self.used.launched += 1;
        let batch = SeqBatch::equal(of.slots.len(), 1)?;
        launch(of, &batch, pool)
    }

    /// A step in the places of the recording that follows it.
    fn rehearse(&mut self, of: Step, pool: &mut StatePool) -> Result<Outcome> {
        let mut memory = pool.step_memory(of.slots, &of.decoder.device())?;
        if of.decoder.enter_step(of.ids, pool, of.slots, &mut memory)? != Fit::Fits {
            return self.launched(of, pool);
        }
        let batch = SeqBatch::of_step(memory.lists().clone())?;
        let (outcome, constants) = rehearse(|| {
            let outcome = launch(of, &batch, pool)?;
            pool.close_step(of.slots, &memory)?;
            Ok::<_, Error>(outcome)
        });
        self.used.launched += 1;
        self.place =
            Some(Place { kind: of.kind(), memory, constants: Some(constants), recording: None });
        outcome
    }

    /// Records the step that was entered, unless it is recorded already. Nothing runs, but where it says
    /// so, the slots have counted the step.
    fn record(&mut self, of: Step, pool: &mut StatePool) -> Result<bool> {
        let Some(place) = self.place.as_mut().filter(|place| place.recording.is_none()) else {
            return Ok(false);
        };
        let constants = place.constants.take().unwrap_or_default();
        let gpu = of.decoder.device().gpu()?;
        let batch = SeqBatch::of_step(place.memory.lists().clone())?;
        let point = pool.point(of.slots)?;
        let (made, held) = record(&constants, || {
            Graph::capture(&gpu, || {
                let outcome = launch(of, &batch, pool)?;
                pool.close_step(of.slots, &place.memory)?;
                Ok::<_, Error>(outcome)
            })
        });
        match made {
            Ok((graph, outcome)) => {
                place.recording = Some(Recording { graph, outcome, _held: held });
                self.used.recorded += 1;
                Ok(true)
            }
            Err(error) => {
                pool.return_to(of.slots, &point)?;
                self.used.refused = Some(error.to_string());
                (self.on, self.place) = (false, None);
                Ok(false)
            }
        }
    }
}

/// A step launch by launch.
fn launch(of: Step, batch: &SeqBatch, pool: &mut StatePool) -> Result<Outcome> {
    no_grad(|| {
        let hidden = of.decoder.advance(of.ids, batch, pool, of.slots)?;
        let logits = of.decoder.project(&hidden)?;
        let reduced = reduce(&logits, of.wanted)?;
        Ok(Outcome { logits, reduced })
    })
}
