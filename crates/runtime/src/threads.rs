//! The one pool of compute threads.
//!
//! Every parallel loop of the engine goes through [`for_each`] (or [`join`]); nothing else may spawn
//! compute threads. The number of *tasks* is a function of the problem's shape alone. Threads only
//! decide who runs a task, so results do not depend on their number (the *deterministic* level).

use std::sync::OnceLock;

static POOL: OnceLock<rayon::ThreadPool> = OnceLock::new();

/// Number of threads asked for by the environment (`DANAUS_THREADS`), else the machine's cores.
fn default_threads() -> usize {
    let from_env = std::env::var("DANAUS_THREADS").ok().and_then(|text| text.parse().ok());
    let cores = || std::thread::available_parallelism().map_or(1, |n| n.get());
    from_env.filter(|&n| n > 0).unwrap_or_else(cores)
}

/// As much as a main thread usually has, because whole programs run in the pool ([`enter`]).
const STACK: usize = 8 << 20;

fn build(n: usize) -> Result<rayon::ThreadPool, rayon::ThreadPoolBuildError> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(n)
        .thread_name(|index| format!("danaus-{index}"))
        .stack_size(STACK)
        .build()
}

fn pool() -> &'static rayon::ThreadPool {
    POOL.get_or_init(|| {
        // A process that may not even start threads cannot do any work: this is not a user error.
        build(default_threads()).unwrap_or_else(|error| panic!("cannot start threads: {error}"))
    })
}

/// Sets the number of compute threads. Only the first call before any work has an effect; returns
/// whether it had.
pub fn set_threads(n: usize) -> bool {
    match build(n.max(1)) {
        Ok(pool) => POOL.set(pool).is_ok(),
        Err(_) => false,
    }
}

/// The number of threads that share the current work.
pub fn count() -> usize {
    if rayon::current_thread_index().is_some() {
        rayon::current_num_threads()
    } else {
        pool().current_num_threads()
    }
}

/// Runs `work` on a private pool of `n` threads, for tests of thread-count independence and for
/// benchmarks.
pub fn with_threads<R: Send>(n: usize, work: impl FnOnce() -> R + Send) -> R {
    match build(n.max(1)) {
        Ok(pool) => pool.install(work),
        Err(_) => work(),
    }
}

/// Runs `work` on a thread of the pool and waits for it.
///
/// A program that computes a lot should be one call of this. Parallel loops that start on a thread of
/// the pool wake one thread less, and the operating system has as many busy threads as cores to place;
/// loops that start outside it let a thread wait for others in every operator.
pub fn enter<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    if rayon::current_thread_index().is_some() { work() } else { pool().install(work) }
}

/// Calls `task(0..n)`, each index exactly once, in parallel and in no particular order.
///
/// A single task runs on the calling thread, so small problems pay nothing.
pub fn for_each(n: usize, task: impl Fn(usize) + Sync + Send) {
    use rayon::prelude::*;
    if n == 0 {
        return;
    }
    if n == 1 || count() == 1 {
        (0..n).for_each(task);
    } else if rayon::current_thread_index().is_some() {
        (0..n).into_par_iter().with_max_len(1).for_each(task);
    } else {
        pool().install(|| (0..n).into_par_iter().with_max_len(1).for_each(task));
    }
}

/// Runs both closures, possibly at the same time, and returns both results.
pub fn join<A: Send, B: Send>(
    a: impl FnOnce() -> A + Send,
    b: impl FnOnce() -> B + Send,
) -> (A, B) {
    if rayon::current_thread_index().is_some() {
        rayon::join(a, b)
    } else {
        pool().install(|| rayon::join(a, b))
    }
}

/// Splits `len` items into tasks of at least `grain` items: `(tasks, items per task)`.
///
/// Depends on `len` and `grain` only. At most 64 tasks, which balances any thread count we run on.
pub fn split(len: usize, grain: usize) -> (usize, usize) {
    let tasks = len.div_ceil(grain.max(1)).clamp(1, 64);
    let per_task = len.div_ceil(tasks).max(1);
    (len.div_ceil(per_task).max(1), per_task)
}

/// A raw pointer that may cross threads; each task must touch its own elements only.
#[derive(Clone, Copy)]
pub struct SharedMut<T>(*mut T);

// SAFETY: the pointer is only dereferenced through `slice`, whose caller promises disjoint ranges.
unsafe impl<T: Send> Send for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<T> {}

impl<T> SharedMut<T> {
    /// Wraps the start of a buffer that outlives the parallel loop.
    pub fn new(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr())
    }

    /// Wraps a raw pointer under the same rules.
    pub fn from_ptr(pointer: *mut T) -> Self {
        Self(pointer)
    }

    /// The raw pointer.
    pub fn ptr(self) -> *mut T {
        self.0
    }

    /// Elements `start..start + len`.
    ///
    /// # Safety
    /// The range lies in the buffer and no other task touches it while the slice lives.
    pub unsafe fn slice<'a>(self, start: usize, len: usize) -> &'a mut [T] {
        // SAFETY: promised by the caller.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn every_index_runs_once() {
        let hits: Vec<AtomicUsize> = (0..1000).map(|_| AtomicUsize::new(0)).collect();
        for_each(1000, |i| {
            hits[i].fetch_add(1, Ordering::Relaxed);
        });
        assert!(hits.iter().all(|hit| hit.load(Ordering::Relaxed) == 1));
    }

    #[test]
    fn split_covers_everything_and_ignores_threads() {
        for len in [0, 1, 7, 64, 65, 1000, 1 << 20] {
            let (tasks, per_task) = split(len, 16);
            assert!(tasks * per_task >= len && tasks <= 64);
            assert_eq!(split(len, 16), with_threads(3, || split(len, 16)));
        }
    }
}
