//! One call's work among the threads of the current pool: whoever is done takes the next task, so that a slow core holds
//! up no more than the task in its hands, or the leg of it: [`relay`].
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

/// Runs tasks that go on from leg to leg, each leg on whatever thread has time: `left` says how much is left of one, 0 when
/// it is done, and `leg` does some of it.
///
/// Tasks can then be large, where small ones cost more, and a core may be slow or late all the same. At last there are two
/// tasks a thread; who ends a leg puts its task back and takes of the others the one with most left, so that all end
/// together. Tasks before them are run through, to have fewer begun at a time.
pub(super) fn relay<T: Send, A>(
    mut tasks: Vec<T>,
    left: impl Fn(&T) -> usize + Sync,
    make: impl Fn() -> A + Sync,
    leg: impl Fn(&mut A, &mut T) + Sync,
) {
    /// Tasks handed from thread to thread, for each thread.
    const HANDED: usize = 2;
    let threads = rayon::current_num_threads();
    let workers = tasks.len().min(threads);
    let handed = tasks.split_off(tasks.len().saturating_sub(HANDED * threads));
    let (whole, handed) = (Mutex::new(tasks.into_iter()), Mutex::new(handed));
    let work = |_| {
        let mut own = make();
        loop {
            let claimed = whole.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(mut task) = claimed else { break };
            while left(&task) > 0 {
                leg(&mut own, &mut task);
            }
        }
        let mut held = None;
        while let Some(mut task) = exchange(&handed, held.take(), &left) {
            leg(&mut own, &mut task);
            held = (left(&task) > 0).then_some(task);
        }
    };
    match workers {
        0 | 1 => work(0),
        _ => (0..workers).into_par_iter().with_max_len(1).for_each(work),
    }
}

/// The waiting task with most left for the one held, if any waits.
fn exchange<T>(waiting: &Mutex<Vec<T>>, held: Option<T>, left: &impl Fn(&T) -> usize) -> Option<T> {
    let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
    let most = (0..waiting.len()).max_by_key(|i| left(&waiting[*i]));
    match (most, held) {
        (Some(most), Some(held)) => Some(std::mem::replace(&mut waiting[most], held)),
        (Some(most), None) => Some(waiting.swap_remove(most)),
        (None, held) => held,
    }
}

/// How much of the `left` units of work the next task takes: a fixed share of each thread's.
pub(super) fn portion(left: usize) -> usize {
    /// Tasks that each thread would get if all were of this size.
    const TASKS: usize = 2;
    left / (TASKS * rayon::current_num_threads())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_ends_all_tasks_and_hands_them_on_in_order() {
        for (threads, count) in [(1, 1), (1, 9), (4, 2), (4, 7), (4, 40)] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let ended = Mutex::new(Vec::new());
            pool.install(|| {
                // (which, what is left of it, legs run)
                let tasks = (0..count).map(|i| (i, 3 + i % 5, 0)).collect();
                let leg = |own: &mut usize, task: &mut (usize, usize, usize)| {
                    *own += 1;
                    *task = (task.0, task.1 - 1, task.2 + 1);
                    if task.1 == 0 {
                        ended.lock().unwrap().push((task.0, task.2));
                    }
                };
                relay(tasks, |task| task.1, || 0, leg);
            });
            let mut ended = ended.into_inner().unwrap();
            ended.sort_unstable();
            assert_eq!(ended, (0..count).map(|i| (i, 3 + i % 5)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_task_with_most_left_is_taken_for_the_one_held() {
        let waiting = Mutex::new(vec![3, 9, 5]);
        let left = |task: &usize| *task;
        assert_eq!(exchange(&waiting, Some(11), &left), Some(9));
        assert_eq!(exchange(&waiting, None, &left), Some(11));
        assert_eq!(exchange(&waiting, Some(1), &left), Some(5));
        assert_eq!(exchange(&Mutex::new(Vec::new()), Some(1), &left), Some(1));
        assert_eq!(waiting.into_inner().unwrap(), [3, 1]);
    }
}
