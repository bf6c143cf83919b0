//! Dynamic batching: requests that come at about the same time are run in one go.
//!
//! Only for models whose rows are independent of each other ([`crate::independent_rows`]). No thread of its own is needed: the first
//! request of a batch waits for others, runs all, and gives each its part. Whatever goes wrong with a batch, every request is then
//! run alone: no client's values fail another's request, and errors are about one's own values only.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::{DataType, Engine, RunError, Tensor, check};

/// Most rows of a batch that may be asked for.
pub const MAX_BATCH: usize = 256;
/// Longest that may be asked for a request to wait for others.
pub const MAX_DELAY: Duration = Duration::from_secs(1);

/// Gathers requests to one model.
pub struct Batcher {
    max_size: usize,
    max_delay: Duration,
    /// Those that wait for more requests. Locked before a batch's state is, never after.
    open: Mutex<Vec<Arc<Batch>>>,
}

/// Requests that go together have the same types, and the same dimensions behind the first.
type Key = Vec<(DataType, Vec<usize>)>;

struct Batch {
    key: Key,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Inputs of each request, and how many rows it has.
    members: Vec<(Arc<Vec<Tensor>>, usize)>,
    /// Of all members.
    rows: usize,
    /// No more requests come.
    is_closed: bool,
    outcome: Option<Outcome>,
}

enum Outcome {
    /// By member; each takes its own.
    Results(Vec<Option<Vec<Tensor>>>),
    /// Every member is to run by itself.
    Alone,
}

impl Batcher {
    /// Of `max_size` rows at most, up to [`MAX_BATCH`]; the first of them waits for `max_delay` at most, up to [`MAX_DELAY`].
    pub(crate) fn new(max_size: usize, max_delay: Duration) -> Self {
        let (max_size, max_delay) = (max_size.clamp(1, MAX_BATCH), max_delay.min(MAX_DELAY));
        Self { max_size, max_delay, open: Mutex::default() }
    }

    /// Most rows that are run in one go, but for a request that has more by itself.
    pub fn max_size(&self) -> usize {
        self.max_size
    }

    /// Longest that a request waits for others.
    pub fn max_delay(&self) -> Duration {
        self.max_delay
    }

    /// One inference, perhaps together with those of other threads. `engine` must be the same in all calls.
    ///
    /// # Errors
    /// As [`Engine::run`], as if it had run alone.
    pub fn run(&self, engine: &dyn Engine, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, RunError> {
        check(engine.inputs(), &inputs)?;
        let rows = rows(&inputs).filter(|rows| *rows < self.max_size);
        let Some(rows) = rows else { return engine.run(&inputs) };
        let inputs = Arc::new(inputs);
        match self.enter(&inputs, rows) {
            (batch, 0) => self.lead(engine, batch, &inputs),
            (batch, place) => follow(engine, &batch, place, &inputs),
        }
    }

    /// A batch that this request is now in, and which of its members it is: 0 opened it.
    fn enter(&self, inputs: &Arc<Vec<Tensor>>, rows: usize) -> (Arc<Batch>, usize) {
        let key = key(inputs);
        let mut open = lock(&self.open);
        if let Some(at) = open.iter().position(|batch| batch.key == key) {
            let batch = open[at].clone();
            let mut state = lock(&batch.state);
            let fits = state.rows + rows <= self.max_size;
            if fits {
                state.members.push((inputs.clone(), rows));
                state.rows += rows;
            }
            let place = state.members.len() - 1;
            // What this one does not fit in waits no longer.
            if !fits || state.rows == self.max_size {
                state.is_closed = true;
                open.swap_remove(at);
                batch.changed.notify_all();
            }
            drop(state);
            if fits {
                return (batch, place);
            }
        }
        let state = State { members: vec![(inputs.clone(), rows)], rows, ..State::default() };
        let batch = Arc::new(Batch { key, state: Mutex::new(state), changed: Condvar::new() });
        open.push(batch.clone());
        (batch, 0)
    }

    /// Waits for others, and runs all.
    fn lead(
        &self,
        engine: &dyn Engine,
        batch: Arc<Batch>,
        inputs: &[Tensor],
    ) -> Result<Vec<Tensor>, RunError> {
        // Whatever happens here, the others are not left waiting.
        let lead = Lead { batcher: self, batch: &batch };
        let state = lock(&batch.state);
        let waited = batch.changed.wait_timeout_while(state, self.max_delay, |state| !state.is_closed);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        let members = self.close(&batch);
        if members.len() > 1
            && let Some(mut parts) = together(engine, &members)
        {
            let own = parts[0].take();
            lead.end(Outcome::Results(parts));
            if let Some(own) = own {
                return Ok(own);
            }
        } else {
            lead.end(Outcome::Alone);
        }
        engine.run(inputs)
    }

    /// Takes no more requests into it. Those that are in it.
    fn close(&self, batch: &Arc<Batch>) -> Vec<(Arc<Vec<Tensor>>, usize)> {
        let mut open = lock(&self.open);
        open.retain(|other| !Arc::ptr_eq(other, batch));
        let mut state = lock(&batch.state);
        state.is_closed = true;
        std::mem::take(&mut state.members)
    }
}

/// Who runs a batch.
struct Lead<'a> {
    batcher: &'a Batcher,
    batch: &'a Arc<Batch>,
}

impl Lead<'_> {
    fn end(&self, outcome: Outcome) {
        lock(&self.batch.state).outcome.get_or_insert(outcome);
        self.batch.changed.notify_all();
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        self.batcher.close(self.batch);
        self.end(Outcome::Alone);
    }
}

/// Waits for a part of what the first member runs.
fn follow(
    engine: &dyn Engine,
    batch: &Batch,
    place: usize,
    inputs: &[Tensor],
) -> Result<Vec<Tensor>, RunError> {
    let state = lock(&batch.state);
    let waited = batch.changed.wait_while(state, |state| state.outcome.is_none());
    let mut state = waited.unwrap_or_else(PoisonError::into_inner);
    let own = match &mut state.outcome {
        Some(Outcome::Results(parts)) => parts.get_mut(place).and_then(Option::take),
        _ => None,
    };
    drop(state);
    match own {
        Some(own) => Ok(own),
        None => engine.run(inputs),
    }
}

/// The results of each, of one run for all. `None`: there are none, or not as many rows as there should be.
fn together(
    engine: &dyn Engine,
    members: &[(Arc<Vec<Tensor>>, usize)],
) -> Option<Vec<Option<Vec<Tensor>>>> {
    let inputs = (0..engine.inputs().len())
        .map(|i| Tensor::joined(members.iter().map(|(inputs, _)| &inputs[i])))
        .collect::<Option<Vec<_>>>()?;
    let results = engine.run(&inputs).ok()?;
    let rows = members.iter().map(|(_, rows)| *rows);
    if results.iter().any(|result| result.shape().first() != Some(&rows.clone().sum())) {
        return None;
    }
    let mut from = 0;
    let parts = rows.map(|rows| {
        let part = results.iter().map(|result| result.rows(from, rows)).collect::<Option<Vec<_>>>();
        from += rows;
        part.map(Some)
    });
    parts.collect()
}

/// How many rows a request has, if all of its inputs have as many, and at least one.
fn rows(inputs: &[Tensor]) -> Option<usize> {
    let mut all = inputs.iter().map(|tensor| tensor.shape().first().copied());
    let first = all.next()??;
    (first > 0 && all.all(|rows| rows == Some(first))).then_some(first)
}

fn key(inputs: &[Tensor]) -> Key {
    inputs.iter().map(|tensor| (tensor.data().data_type(), tensor.shape()[1..].to_vec())).collect()
}

/// What a panicking thread left behind is whole: every change under these locks is one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
