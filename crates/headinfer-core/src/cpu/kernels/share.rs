//! One call's work among the threads of the current pool: whoever is done takes the next task, so that a slow core holds
//! up no more than the task in its hands.
//!
//! A parallel iterator hands out halves of halves instead: some thirty pieces of a call for sixteen threads, where one
//! piece more on one thread is a third of the call.

use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

/// Runs all tasks, in order of claim on as many threads as have time, and tells each what its thread does next. Few
/// tasks of much work first and small ones last keep all busy to the end: [`portion`].
pub(super) fn share<T: Send>(tasks: Vec<T>, run: impl Fn(T, Option<&T>) + Sync) {
    share_with(tasks, || (), |(), task, next| run(task, next));
}

/// As [`share`], with what a thread makes once and all its tasks use.
pub(super) fn share_with<T: Send, A>(
    tasks: Vec<T>,
    make: impl Fn() -> A + Sync,
    run: impl Fn(&mut A, T, Option<&T>) + Sync,
) {
    let workers = tasks.len().min(rayon::current_num_threads());
    let queue = Mutex::new(tasks.into_iter());
    let claim = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = |_| {
        let mut claimed = claim();
        if claimed.is_none() {
            return;
        }
        let mut own = make();
        while let Some(task) = claimed {
            claimed = claim();
            run(&mut own, task, claimed.as_ref());
        }
    };
    match workers {
        0 | 1 => work(0),
        _ => (0..workers).into_par_iter().with_max_len(1).for_each(work),
    }
}

/// How much of the `left` units of work the next task takes: a fixed share of each thread's.
pub(super) fn portion(left: usize) -> usize {
    /// Tasks that each thread would get if all were of this size.
    const TASKS: usize = 2;
    left / (TASKS * rayon::current_num_threads())
}
