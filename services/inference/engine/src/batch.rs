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
fn together(engine: &dyn Engine, members: &[(Arc<Vec<Tensor>>, usize)]) -> Option<Vec<Option<Vec<Tensor>>>> {
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::time::Instant;

    use super::*;
    use crate::testing::{TREE, convolutions, labels, linear, model, perceptron};
    use crate::{Data, Kind, Port, load};

    const LONG: Duration = MAX_DELAY;

    /// Doubles numbers. Rows with a negative number fail, and with 666 it panics.
    struct Doubles {
        ports: Vec<Port>,
        calls: Mutex<Vec<usize>>,
        /// It says one row too few when there are several.
        is_short: AtomicBool,
    }

    impl Doubles {
        fn new(length: Option<usize>) -> Self {
            let shape = Some(vec![None, length]);
            let port = Port { name: "x".into(), data_type: DataType::F32, shape };
            Self { ports: vec![port], calls: Mutex::default(), is_short: AtomicBool::new(false) }
        }

        /// Of each call how many rows it had, in order.
        fn calls(&self) -> Vec<usize> {
            let mut calls = std::mem::take(&mut *lock(&self.calls));
            calls.sort_unstable();
            calls
        }
    }

    impl Engine for Doubles {
        fn name(&self) -> &'static str {
            "doubles"
        }
        fn inputs(&self) -> &[Port] {
            &self.ports
        }
        fn outputs(&self) -> &[Port] {
            &self.ports
        }
        fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
            let (x, rows) = (inputs[0].floats().unwrap(), inputs[0].shape()[0]);
            lock(&self.calls).push(rows);
            assert!(!x.contains(&666.0), "on purpose");
            if x.iter().any(|x| *x < 0.0) {
                return Err(RunError::Engine { engine: "doubles", reason: "negative".into() });
            }
            let all = Tensor::new(inputs[0].shape().to_vec(), Data::F32(x.iter().map(|x| 2.0 * x).collect()));
            let all = all.unwrap();
            match self.is_short.load(Ordering::SeqCst) && rows > 1 {
                true => Ok(vec![all.rows(0, rows - 1).unwrap()]),
                false => Ok(vec![all]),
            }
        }
    }

    fn tensor(rows: usize, length: usize, first: f32) -> Vec<Tensor> {
        let data = (0..rows * length).map(|i| first + i as f32).collect();
        vec![Tensor::new(vec![rows, length], Data::F32(data)).unwrap()]
    }

    fn doubled(inputs: &[Tensor]) -> Vec<Tensor> {
        let data = inputs[0].floats().unwrap().iter().map(|x| 2.0 * x).collect();
        vec![Tensor::new(inputs[0].shape().to_vec(), Data::F32(data)).unwrap()]
    }

    /// Until so many rows wait in open batches.
    fn wait_for(batcher: &Batcher, rows: usize) {
        let begun = Instant::now();
        while lock(&batcher.open).iter().map(|batch| lock(&batch.state).rows).sum::<usize>() != rows {
            assert!(begun.elapsed() < LONG, "{rows} rows never came");
            std::thread::yield_now();
        }
    }

    #[test]
    fn requests_run_in_one_go_and_each_gets_its_rows() {
        let (engine, batcher) = (Doubles::new(Some(3)), Batcher::new(8, LONG));
        // One after the other, so that each finds the batch as expected; the last fills it.
        std::thread::scope(|scope| {
            for (waiting, rows, first) in [(0, 1, 10.0), (1, 3, 20.0), (4, 2, 40.0), (6, 2, 60.0)] {
                let (engine, batcher) = (&engine, &batcher);
                wait_for(batcher, waiting);
                scope.spawn(move || {
                    let inputs = tensor(rows, 3, first);
                    assert_eq!(batcher.run(engine, inputs.clone()), Ok(doubled(&inputs)));
                });
            }
        });
        assert_eq!(engine.calls(), [8]);
        assert!(lock(&batcher.open).is_empty());
    }

    #[test]
    fn nobody_waits_longer_than_the_delay() {
        let (engine, batcher) = (Doubles::new(Some(3)), Batcher::new(8, Duration::from_millis(20)));
        let begun = Instant::now();
        let inputs = tensor(2, 3, 1.0);
        assert_eq!(batcher.run(&engine, inputs.clone()), Ok(doubled(&inputs)));
        assert!(begun.elapsed() >= Duration::from_millis(20) && begun.elapsed() < LONG);
        assert_eq!(engine.calls(), [2]);
        // As many rows as a batch has wait for nobody; nor do none.
        let batcher = Batcher::new(8, LONG);
        let begun = Instant::now();
        for rows in [8, 9, 0] {
            let inputs = tensor(rows, 3, 1.0);
            assert_eq!(batcher.run(&engine, inputs.clone()), Ok(doubled(&inputs)));
        }
        assert!(begun.elapsed() < LONG / 2);
        assert_eq!(engine.calls(), [0, 8, 9]);
    }

    /// What does not fit begins another batch, and the one before waits no longer.
    #[test]
    fn a_batch_has_no_more_rows_than_it_may() {
        let (engine, batcher) = (Doubles::new(Some(3)), Batcher::new(4, LONG));
        std::thread::scope(|scope| {
            for (waiting, rows, first) in [(0, 3, 10.0), (3, 2, 20.0), (2, 2, 40.0)] {
                let (engine, batcher) = (&engine, &batcher);
                wait_for(batcher, waiting);
                scope.spawn(move || {
                    let inputs = tensor(rows, 3, first);
                    assert_eq!(batcher.run(engine, inputs.clone()), Ok(doubled(&inputs)));
                });
            }
        });
        assert_eq!(engine.calls(), [3, 4]);
    }

    #[test]
    fn other_shapes_go_to_another_batch() {
        let (engine, batcher) = (Doubles::new(None), Batcher::new(2, LONG));
        std::thread::scope(|scope| {
            for (waiting, length) in [(0, 3), (1, 5), (2, 3), (1, 5)] {
                let (engine, batcher) = (&engine, &batcher);
                wait_for(batcher, waiting);
                scope.spawn(move || {
                    let inputs = tensor(1, length, 7.0);
                    assert_eq!(batcher.run(engine, inputs.clone()), Ok(doubled(&inputs)));
                });
            }
        });
        assert_eq!(engine.calls(), [2, 2]);
    }

    #[test]
    fn a_bad_request_fails_alone() {
        let (engine, batcher) = (Doubles::new(Some(3)), Batcher::new(3, LONG));
        std::thread::scope(|scope| {
            for (waiting, first) in [(0, 1.0), (1, -7.0), (2, 4.0)] {
                let (engine, batcher) = (&engine, &batcher);
                wait_for(batcher, waiting);
                scope.spawn(move || {
                    let inputs = tensor(1, 3, first);
                    match (batcher.run(engine, inputs.clone()), first < 0.0) {
                        (Err(RunError::Engine { reason, .. }), true) => assert_eq!(reason, "negative"),
                        (result, is_bad) => {
                            assert!(!is_bad);
                            assert_eq!(result, Ok(doubled(&inputs)));
                        }
                    }
                });
            }
        });
        assert_eq!(engine.calls(), [1, 1, 1, 3]);
        // What the model does not take never gets into a batch.
        let begun = Instant::now();
        assert!(matches!(batcher.run(&engine, tensor(1, 4, 1.0)), Err(RunError::Input { .. })));
        assert!(matches!(batcher.run(&engine, vec![]), Err(RunError::Input { .. })));
        assert!(begun.elapsed() < LONG / 2 && engine.calls().is_empty());
    }

    #[test]
    fn results_without_their_rows_are_not_given_out() {
        let (engine, batcher) = (Doubles::new(Some(3)), Batcher::new(2, LONG));
        engine.is_short.store(true, Ordering::SeqCst);
        std::thread::scope(|scope| {
            for (waiting, first) in [(0, 1.0), (1, 5.0)] {
                let (engine, batcher) = (&engine, &batcher);
                wait_for(batcher, waiting);
                scope.spawn(move || {
                    let inputs = tensor(1, 3, first);
                    assert_eq!(batcher.run(engine, inputs.clone()), Ok(doubled(&inputs)));
                });
            }
        });
        assert_eq!(engine.calls(), [1, 1, 2]);
    }

    /// A panic of the thread that runs a batch is that thread's; the others run by themselves.
    #[test]
    fn a_panic_leaves_nobody_waiting() {
        let (engine, batcher) = (Doubles::new(Some(1)), Batcher::new(3, LONG));
        let answered = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let (engine, batcher, answered) = (&engine, &batcher, &answered);
            let leader = scope.spawn(move || batcher.run(engine, tensor(1, 1, 666.0)));
            for waiting in [1, 2] {
                wait_for(batcher, waiting);
                scope.spawn(move || {
                    let inputs = tensor(1, 1, waiting as f32);
                    assert_eq!(batcher.run(engine, inputs.clone()), Ok(doubled(&inputs)));
                    answered.fetch_add(1, Ordering::SeqCst);
                });
            }
            assert!(leader.join().is_err());
        });
        assert_eq!(answered.into_inner(), 2);
        assert_eq!(engine.calls(), [1, 1, 3]);
        let inputs = tensor(3, 1, 1.0);
        assert_eq!(batcher.run(&engine, inputs.clone()), Ok(doubled(&inputs)));
    }

    /// Every engine, with every model that it runs: rows come out together as alone, whatever is before and behind them.
    #[test]
    fn rows_of_models_that_are_proven_come_out_alike() {
        let files =
            [TREE.to_vec(), model(perceptron()), model(labels()), model(linear()), model(convolutions())];
        let mut compared = 0;
        for file in &files {
            assert_eq!(crate::independent_rows(file), Ok(()));
            for engine in Kind::ALL.iter().filter_map(|kind| kind.load(file, false).ok()) {
                let shape = engine.inputs()[0].shape.clone().unwrap();
                let row: Vec<usize> = shape[1..].iter().map(|d| d.unwrap()).collect();
                let length = row.iter().product::<usize>();
                let rows = 40;
                let data = (0..rows * length).map(|i| ((i * 37 + i / length * 11) % 101) as f32 / 7.0 - 5.0);
                let all = Tensor::new([vec![rows], row].concat(), Data::F32(data.collect())).unwrap();
                let alone: Vec<Vec<Tensor>> =
                    (0..rows).map(|i| engine.run(&[all.rows(i, 1).unwrap()]).unwrap()).collect();
                let mut at = 0;
                for size in [1, 2, 3, 5, 8, 13, 8] {
                    let together = engine.run(&[all.rows(at, size).unwrap()]).unwrap();
                    for i in 0..size {
                        for (together, alone) in together.iter().zip(&alone[at + i]) {
                            let is = together.rows(i, 1).unwrap();
                            assert!(
                                crate::choice::is_close(&is, alone),
                                "{}: {is:?}, {alone:?}",
                                engine.name()
                            );
                            compared += 1;
                        }
                    }
                    at += size;
                }
                assert_eq!(at, rows);
            }
        }
        // The evaluator runs all but the convolutions.
        assert!(compared >= 40 * (2 + 1 + 1 + 2), "{compared}");
    }

    #[test]
    fn what_is_not_proven_is_not_batched() {
        let choice = load(TREE).unwrap();
        let batcher = choice.batcher(TREE, 1000, Duration::from_secs(60)).unwrap();
        assert_eq!((batcher.max_size(), batcher.max_delay()), (MAX_BATCH, MAX_DELAY));
        let mut graph = perceptron();
        graph.initializer[1].dims = vec![2, 5];
        graph.initializer[1].float_data = vec![0.5; 10];
        let file = model(graph);
        // It loads, and even runs one row; but not into one row.
        let choice = load(&file).unwrap();
        let reason = choice.batcher(&file, 8, MAX_DELAY).err().unwrap();
        assert!(reason.contains("the-Add") && reason.contains("across rows"), "{reason}");
    }
}
