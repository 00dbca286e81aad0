//! The numeric level that operators are asked to keep, for the current thread.
//!
//! The default is [`Level::Deterministic`]. [`Level::Invariant`] costs speed where the fastest order of
//! sums depends on the batch: a prompt cut anywhere, a batch of any company and one step at a time then
//! give the same bits. Operators read the level when they run; each says in its module what it does.

use super::Level;
use std::cell::Cell;

thread_local! {
    static ASKED: Cell<Level> = const { Cell::new(Level::Deterministic) };
}

/// Runs `work` at a numeric level.
pub fn with_level<R>(level: Level, work: impl FnOnce() -> R) -> R {
    /// Restores the level even when `work` panics (as failing tests do).
    struct Restore(Level);
    impl Drop for Restore {
        fn drop(&mut self) {
            ASKED.set(self.0);
        }
    }
    let _restore = Restore(ASKED.replace(level));
    work()
}

/// The level that operators called on this thread keep at least.
pub fn asked_level() -> Level {
    ASKED.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_ends_with_its_scope() {
        assert_eq!(asked_level(), Level::Deterministic);
        with_level(Level::Invariant, || {
            assert_eq!(asked_level(), Level::Invariant);
            with_level(Level::Fast, || assert_eq!(asked_level(), Level::Fast));
            assert_eq!(asked_level(), Level::Invariant);
        });
        assert_eq!(asked_level(), Level::Deterministic);
    }
}
