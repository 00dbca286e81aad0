//! The loop: admit, pass, choose, finish.

use super::choose::{Wanted, choices, reduce};
use super::output::Output;
use super::recorded::{GraphUse, Outcome, Recorder, Step};
use super::{Completion, Finish, Piece, Request, Sampler, State};
use crate::decoder::Decoder;
use crate::{Error, Result};
use danaus_matrix::state::Slot;
use danaus_matrix::{SeqBatch, StatePool};
use danaus_tensor::{Level, Tensor, no_grad, with_level};
use std::collections::VecDeque;
use std::time::Instant;

/// How much is computed at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batching {
    /// Sequences that run at a time; the others wait.
    pub max_sequences: usize,
    /// Tokens of a pass: running sequences take one each, prompts the rest in stretches.
    pub max_tokens: usize,
    /// What results may depend on. At [`Level::Invariant`] a text is the same to the last bit whatever
    /// else is in the batch and wherever its prompt is cut; below, long prompts are read faster.
    pub level: Level,
    /// Whether decoding steps on a GPU are recorded and replayed as graphs; the bits are the same.
    pub graph: bool,
}

impl Batching {
    /// The default for a decoder: the strictest level that its device has.
    pub fn of(decoder: &Decoder) -> Self {
        let level = match decoder.device().is_cuda() {
            true => Level::Deterministic,
            false => Level::Invariant,
        };
        Self { level, ..Self::default() }
    }
}

impl Default for Batching {
    fn default() -> Self {
        Self { max_sequences: 32, max_tokens: 2048, level: Level::Invariant, graph: true }
    }
}

/// How long a run took. A pass with prompt tokens counts as reading.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timings {
    /// Prompt tokens taken in.
    pub prompt_tokens: usize,
    /// Seconds of the passes that took them in.
    pub prompt_seconds: f64,
    /// Tokens chosen in other passes.
    pub new_tokens: usize,
    /// Seconds of the other passes.
    pub decode_seconds: f64,
    /// How many of them were replays.
    pub graph: GraphUse,
}

impl Timings {
    /// Prompt tokens a second.
    pub fn prompt_rate(&self) -> f64 {
        self.prompt_tokens as f64 / self.prompt_seconds.max(1e-9)
    }

    /// New tokens a second.
    pub fn decode_rate(&self) -> f64 {
        self.new_tokens as f64 / self.decode_seconds.max(1e-9)
    }
}

/// A text that has not begun.
struct Waiting {
    index: usize,
    request: usize,
    /// Which completion of its prompt it is.
    stream: u64,
    start: Option<State>,
    prompt: Vec<u32>,
    /// Further completions of the same prompt, which begin from its states.
    siblings: usize,
}

/// A text in the making.
pub(super) struct Sequence {
    index: usize,
    pub request: usize,
    slot: Slot,
    /// All tokens; those from `seen` on are not in the states yet.
    pub history: Vec<u32>,
    seen: usize,
    pub sampler: Sampler,
    output: Output,
    pub completion: Completion,
    siblings: usize,
    finished: Option<Finish>,
}

impl Sequence {
    fn pending(&self) -> usize {
        self.history.len() - self.seen
    }

    /// Whether it is still in its prompt.
    fn reads(&self) -> bool {
        self.completion.tokens.is_empty()
    }
}

/// Generates for any number of requests at a time.
pub struct Generator<'a> {
    decoder: &'a Decoder,
    requests: &'a [Request],
    batching: Batching,
    pool: StatePool,
    recorder: Recorder,
    waiting: VecDeque<Waiting>,
    running: Vec<Sequence>,
    completions: Vec<Completion>,
    timings: Timings,
}

impl<'a> Generator<'a> {
    /// Checks all requests. Completions are numbered through, in the order of the requests.
    ///
    /// # Errors
    /// As [`Request::check`].
    pub fn new(decoder: &'a Decoder, requests: &'a [Request], batching: Batching) -> Result<Self> {
        if batching.max_sequences == 0 || batching.max_tokens == 0 {
            let given = format!("{batching:?}");
            return Err(Error::argument("batching", given, "at least one sequence and one token"));
        }
        if batching.level == Level::Invariant && decoder.device().is_cuda() {
            let valid = "deterministic on a GPU, whose products may sum in another order per batch";
            return Err(Error::argument("level", "invariant", valid));
        }
        let mut waiting = VecDeque::new();
        let mut count = 0;
        for (number, request) in requests.iter().enumerate() {
            request.check(decoder)?;
            for prompt in &request.prompts {
                // Without a token to choose, a prompt is read only for its state.
                if request.max_tokens > 0 || request.keep_states {
                    waiting.push_back(Waiting {
                        index: count,
                        request: number,
                        stream: 0,
                        start: request.start.clone(),
                        prompt: prompt.clone(),
                        siblings: request.completions - 1,
                    });
                }
                count += request.completions;
            }
        }
        let pool = decoder.state_pool(batching.max_sequences.min(count).max(1))?;
        let recorder = Recorder::new(decoder, &pool, batching.graph);
        let completions = vec![Completion::default(); count];
        let (running, timings) = (Vec::new(), Timings::default());
        Ok(Self {
            decoder,
            requests,
            batching,
            pool,
            recorder,
            waiting,
            running,
            completions,
            timings,
        })
    }

    /// Generates everything; `on_piece(completion, piece)` is called as text comes.
    ///
    /// # Errors
    /// When the model fails.
    pub fn run(
        mut self,
        mut on_piece: impl FnMut(usize, &Piece),
    ) -> Result<(Vec<Completion>, Timings)> {
        with_level(self.batching.level, || {
            no_grad(|| {
                loop {
                    self.admit(&mut on_piece)?;
                    if self.running.is_empty() {
                        let timings = Timings { graph: self.recorder.used, ..self.timings };
                        return Ok((self.completions, timings));
                    }
                    self.pass(&mut on_piece)?;
                }
            })
        })
    }

    /// Lets waiting texts begin while there are slots.
    fn admit(&mut self, on_piece: &mut dyn FnMut(usize, &Piece)) -> Result<()> {
        while self.running.len() < self.batching.max_sequences
            && let Some(waiting) = self.waiting.pop_front()
        {
            let request = &self.requests[waiting.request];
            let slot = self.pool.reserve()?;
            let mut history = Vec::new();
            if let Some(start) = &waiting.start {
                self.pool.restore(slot, &start.snapshot)?;
                history.extend_from_slice(&start.tokens);
            }
            let seen = history.len();
            history.extend_from_slice(&waiting.prompt);
            let mut sampler = Sampler::new(&request.sampling, waiting.stream);
            sampler.note(&history);
            self.running.push(Sequence {
                index: waiting.index,
                request: waiting.request,
                slot,
                history,
                seen,
                sampler,
                output: Output::new(request.tokenizer.as_ref(), &request.stop_strings)?,
                completion: Completion::default(),
                siblings: waiting.siblings,
                finished: None,
            });
            if waiting.prompt.is_empty()
                && let Some(logits) = waiting.start.and_then(|start| start.logits)
            {
                let last = self.running.len() - 1;
                let logits = logits.unsqueeze(0)?;
                let device = logits.device();
                let wanted = Wanted::of(&self.running, self.requests, &[last], &device);
                let reduced = reduce(&logits, wanted)?;
                self.choose(&[last], &Outcome { logits, reduced }, wanted, on_piece)?;
            }
        }
        Ok(())
    }

    /// How many tokens each running sequence takes in: single ones first, then stretches of prompts.
    fn plan(&self) -> Vec<(usize, usize)> {
        let (single, long): (Vec<usize>, Vec<usize>) =
            (0..self.running.len()).partition(|&at| self.running[at].pending() == 1);
        let mut left = self.batching.max_tokens.saturating_sub(single.len()).max(1);
        let mut plan: Vec<(usize, usize)> = single.into_iter().map(|at| (at, 1)).collect();
        for at in long {
            let count = self.running[at].pending().min(left);
            left -= count;
            if count > 0 {
                plan.push((at, count));
            }
        }
        plan
    }

    /// Takes in tokens and chooses the next ones of the sequences that have no others left.
    fn pass(&mut self, on_piece: &mut dyn FnMut(usize, &Piece)) -> Result<()> {
        let begin = Instant::now();
        let plan = self.plan();
        let mut ids = Vec::new();
        let (mut slots, mut lengths) = (Vec::new(), Vec::new());
        let (mut ready, mut rows) = (Vec::new(), Vec::new());
        let mut prompt_tokens = 0;
        for &(at, count) in &plan {
            let sequence = &mut self.running[at];
            ids.extend_from_slice(&sequence.history[sequence.seen..][..count]);
            prompt_tokens += if sequence.reads() { count } else { 0 };
            slots.push(sequence.slot);
            lengths.push(count);
            sequence.seen += count;
            if sequence.pending() == 0 {
                ready.push(at);
                rows.push(ids.len() as i64 - 1);
            }
        }
        if prompt_tokens == 0 && ready.len() == plan.len() && lengths.iter().all(|&n| n == 1) {
            let wanted = Wanted::of(&self.running, self.requests, &ready, &self.decoder.device());
            let (pool, decoder) = (&mut self.pool, self.decoder);
            let step = Step { decoder, ids: &ids, slots: &slots, wanted };
            let outcome = self.recorder.step(step, pool)?;
            self.choose(&ready, &outcome, wanted, on_piece)?;
        } else {
            self.recorder.interrupt();
            self.read(&ids, &lengths, &slots, (&ready, &rows), on_piece)?;
        }
        let seconds = begin.elapsed().as_secs_f64();
        if prompt_tokens > 0 {
            self.timings.prompt_tokens += prompt_tokens;
            self.timings.prompt_seconds += seconds;
        } else {
            self.timings.new_tokens += ready.len();
            self.timings.decode_seconds += seconds;
        }
        Ok(())
    }

    /// Takes in tokens of any number a sequence; the sequences of `ready` go on after the tokens of `rows`.
    fn read(
        &mut self,
        ids: &[u32],
        lengths: &[usize],
        slots: &[Slot],
        (ready, rows): (&[usize], &[i64]),
        on_piece: &mut dyn FnMut(usize, &Piece),
    ) -> Result<()> {
        let batch = SeqBatch::from_lengths(lengths)?;
        let hidden = self.decoder.advance(ids, &batch, &mut self.pool, slots)?;
        if !ready.is_empty() {
            let hidden = match rows.len() == ids.len() {
                true => hidden,
                false => {
                    let rows = Tensor::from_slice(rows, [rows.len()], &hidden.device())?;
                    hidden.index_select(0, &rows)?
                }
            };
            let logits = self.decoder.project(&hidden)?;
            let wanted = Wanted::of(&self.running, self.requests, ready, &logits.device());
            let reduced = reduce(&logits, wanted)?;
            self.choose(ready, &Outcome { logits, reduced }, wanted, on_piece)?;
        }
        Ok(())
    }

    /// Chooses the next tokens of some sequences from what a step left.
    fn choose(
        &mut self,
        ready: &[usize],
        Outcome { logits, reduced }: &Outcome,
        wanted: Wanted,
        on_piece: &mut dyn FnMut(usize, &Piece),
    ) -> Result<()> {
        for (row, &at) in ready.iter().enumerate() {
            self.fork(at, &logits.select(0, row)?)?;
        }
        let choices = choices(&self.running, self.requests, ready, (reduced, wanted))?;
        for (choice, &at) in choices.into_iter().zip(ready) {
            let sequence = &mut self.running[at];
            let request = &self.requests[sequence.request];
            let Some(choice) = choice? else {
                sequence.finished = Some(Finish::Length);
                continue;
            };
            if request.stop.contains(&choice.token) {
                sequence.finished = Some(Finish::Stop);
                continue;
            }
            sequence.history.push(choice.token);
            sequence.sampler.note(&[choice.token]);
            let completion = &mut sequence.completion;
            completion.tokens.push(choice.token);
            completion.log_probs.push(choice.log_prob);
            if request.top_log_probs > 0 {
                completion.top_log_probs.push(choice.top);
            }
            let search = completion.tokens.len() > request.min_tokens;
            let (text, stopped) = sequence.output.push(choice.token, search)?;
            on_piece(sequence.index, &Piece { token: Some(choice.token), text });
            if stopped {
                sequence.finished = Some(Finish::StopString);
            } else if completion.tokens.len() == request.max_tokens {
                sequence.finished = Some(Finish::Length);
            }
        }
        self.retire(ready, logits, on_piece)
    }

    /// Lets the siblings of a sequence begin where its prompt ends.
    fn fork(&mut self, at: usize, logits: &Tensor) -> Result<()> {
        let sequence = &mut self.running[at];
        let siblings = std::mem::take(&mut sequence.siblings);
        if siblings == 0 {
            return Ok(());
        }
        let snapshot = self.pool.snapshot(sequence.slot)?;
        let tokens = sequence.history.clone();
        let start = State { tokens, snapshot, logits: Some(logits.copy()?) };
        for stream in (1..=siblings).rev() {
            self.waiting.push_front(Waiting {
                index: sequence.index + stream,
                request: sequence.request,
                stream: stream as u64,
                start: Some(start.clone()),
                prompt: Vec::new(),
                siblings: 0,
            });
        }
        Ok(())
    }

    /// Hands finished sequences over and frees their slots.
    fn retire(
        &mut self,
        ready: &[usize],
        logits: &Tensor,
        on_piece: &mut dyn FnMut(usize, &Piece),
    ) -> Result<()> {
        // From the end, so that the places of the others stay what they are.
        let mut order: Vec<(usize, usize)> = ready.iter().copied().zip(0..).collect();
        order.sort_unstable_by(|a, b| b.cmp(a));
        for (at, row) in order {
            let Some(finish) = self.running[at].finished else { continue };
            let mut sequence = self.running.remove(at);
            let text = sequence.output.finish(finish);
            if !text.is_empty() {
                on_piece(sequence.index, &Piece { token: None, text });
            }
            let mut completion = sequence.completion;
            (completion.text, completion.finish) = (sequence.output.text, finish);
            if self.requests[sequence.request].keep_states {
                let snapshot = self.pool.snapshot(sequence.slot)?;
                let whole = sequence.seen == sequence.history.len();
                let logits = if whole { Some(logits.select(0, row)?.copy()?) } else { None };
                sequence.history.truncate(sequence.seen);
                completion.state = Some(State { tokens: sequence.history, snapshot, logits });
            }
            self.pool.release(sequence.slot)?;
            self.completions[sequence.index] = completion;
        }
        Ok(())
    }
}
