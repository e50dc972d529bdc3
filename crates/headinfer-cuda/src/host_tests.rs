//! The lane and its flags, with threads in place of streams.

use std::sync::atomic::AtomicUsize;

use super::*;

/// Flags in memory of the test's own.
fn flags<const N: usize>() -> [Flag; N] {
    // SAFETY: leaked, so that it lives; touched through flags only.
    std::array::from_fn(|_| unsafe { Flag::new(Box::leak(Box::new(0u32))) })
}

fn job(command: usize, waits: Vec<Ticket>, done: Ticket, run: impl FnOnce() + Send + 'static) -> Job {
    Job { command, waits, done, timed: false, run: Box::new(run) }
}

fn until(flag: Flag, number: u32) {
    while !flag.reached(number) {
        std::thread::yield_now();
    }
}

#[test]
fn a_flag_counts_past_its_end() {
    let [flag] = flags();
    flag.raise(u32::MAX - 1);
    assert!(flag.reached(u32::MAX - 1) && !flag.reached(u32::MAX) && !flag.reached(1));
    flag.raise(1);
    assert!(flag.reached(u32::MAX) && flag.reached(1) && !flag.reached(2));
}

/// Two sides take turns a thousand times, each only after the other, whatever the number of threads.
#[test]
fn commands_run_in_order_each_after_what_it_waits_for() {
    for threads in [1, 2, 3] {
        let [given, taken] = flags();
        let lane = HostLane::start(threads).unwrap();
        let turn = Arc::new(AtomicUsize::new(0));
        const ROUNDS: u32 = 1000;
        for round in 1..=ROUNDS {
            let turn = turn.clone();
            let ticket = |flag| Ticket { flag, number: round };
            lane.put(job(round as usize, vec![ticket(given)], ticket(taken), move || {
                assert_eq!(turn.fetch_add(1, Ordering::Relaxed), 2 * round as usize - 1);
            }));
        }
        for round in 1..=ROUNDS {
            assert!(!taken.reached(round));
            assert_eq!(turn.fetch_add(1, Ordering::Relaxed), 2 * round as usize - 2);
            given.raise(round);
            until(taken, round);
        }
        assert_eq!(lane.failure(), None);
    }
}

#[test]
fn a_panic_is_told_and_nobody_waits_for_ever() {
    let [given, taken] = flags();
    let lane = HostLane::start(2).unwrap();
    let ticket = |flag, number| Ticket { flag, number };
    lane.put(job(0, Vec::new(), ticket(taken, 1), || panic!("broken arithmetic")));
    lane.put(job(1, vec![ticket(given, 1)], ticket(taken, 2), || unreachable!("runs after a failure")));
    until(taken, 1);
    given.raise(1);
    until(taken, 2);
    assert!(lane.failure().unwrap().contains("panicked"));
}

#[test]
fn a_lane_that_goes_leaves_what_it_waits_for() {
    let [given, taken] = flags();
    let lane = HostLane::start(2).unwrap();
    for number in 1..=3 {
        let wait = Ticket { flag: given, number };
        lane.put(job(0, vec![wait], Ticket { flag: taken, number }, || unreachable!("nothing was given")));
    }
    drop(lane);
    assert!(taken.reached(3));
}

#[test]
fn times_are_kept_when_asked_for() {
    let [taken] = flags();
    let lane = HostLane::start(1).unwrap();
    for (number, timed) in [(1, false), (2, true)] {
        let job = job(number as usize, Vec::new(), Ticket { flag: taken, number }, || {});
        lane.put(Job { timed, ..job });
        until(taken, number);
    }
    let times = lane.take_times();
    assert_eq!(times.iter().map(|ran| ran.command).collect::<Vec<_>>(), [2]);
    assert!(times[0].begun <= times[0].ended && lane.take_times().is_empty());
}
