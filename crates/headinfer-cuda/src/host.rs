//! The Host lane: one thread that runs its commands in order, with the threads of a pool of its own, and the flags by
//! which it and the device's streams wait for one another. Knows neither plans nor what a command does.

use std::hint::spin_loop;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

/// Looks at a flag before a thread goes to sleep: some hundred microseconds, what a layer's products take.
const SPINS: u32 = 1 << 13;

/// A number in memory that both sides see. It only grows, one side raises it, and it may pass its end.
#[derive(Clone, Copy)]
pub(crate) struct Flag(*const AtomicU32);

// SAFETY: the number is atomic, and lives as long as `new` was promised.
unsafe impl Send for Flag {}
// SAFETY: as above.
unsafe impl Sync for Flag {}

impl Flag {
    /// # Safety
    /// `at` is aligned, outlives all copies of the flag, and nobody accesses it but by atomic operations.
    pub(crate) unsafe fn new(at: *mut u32) -> Self {
        Self(at.cast())
    }

    pub(crate) fn raise(self, number: u32) {
        self.atomic().store(number, Ordering::Release);
    }

    pub(crate) fn reached(self, number: u32) -> bool {
        self.atomic().load(Ordering::Acquire).wrapping_sub(number).cast_signed() >= 0
    }

    fn atomic(&self) -> &AtomicU32 {
        // SAFETY: the promise of `new`.
        unsafe { &*self.0 }
    }
}

/// A flag and the number it is to reach.
#[derive(Clone, Copy)]
pub(crate) struct Ticket {
    pub(crate) flag: Flag,
    pub(crate) number: u32,
}

impl Ticket {
    fn reached(self) -> bool {
        self.flag.reached(self.number)
    }
}

/// A command.
pub(crate) struct Job {
    /// Its place in the schedule.
    pub(crate) command: usize,
    /// All are reached before it starts.
    pub(crate) waits: Vec<Ticket>,
    /// Raised when it is done, or will never be.
    pub(crate) done: Ticket,
    /// Whether it is kept when it ran.
    pub(crate) timed: bool,
    /// Runs inside the pool.
    pub(crate) run: Box<dyn FnOnce() + Send>,
}

/// When a command ran.
#[derive(Clone, Copy)]
pub(crate) struct Ran {
    pub(crate) command: usize,
    pub(crate) begun: Instant,
    pub(crate) ended: Instant,
}

/// The lane; dropping it lets what is left of its commands go undone.
pub(crate) struct HostLane {
    /// As long as the steps in flight have commands.
    jobs: Option<Sender<Job>>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl HostLane {
    /// A lane with as many `threads`.
    ///
    /// # Errors
    /// The system's, when it refuses threads.
    pub(crate) fn start(threads: usize) -> io::Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.max(1)).stack_size(8 << 20);
        let pool = pool.thread_name(|i| format!("host-{i}")).build().map_err(io::Error::other)?;
        let (jobs, queue) = channel();
        let shared = Arc::new(Shared::default());
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new().name("host lane".into());
        // The lane's thread is one of the pool: none has to be woken to go on with the next command.
        let thread = thread.spawn(move || pool.install(move || of_thread.run(queue)))?;
        Ok(Self { jobs: Some(jobs), shared, thread: Some(thread) })
    }

    /// Puts a command behind the others.
    pub(crate) fn put(&self, job: Job) {
        let done = job.done;
        let put = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if !put {
            // Whoever waits for it must not wait for ever.
            self.shared.fail("its thread ended");
            done.flag.raise(done.number);
        }
    }

    /// Why commands go undone.
    pub(crate) fn failure(&self) -> Option<String> {
        self.shared.failed.load(Ordering::Acquire).then(|| self.shared.state().why.clone())
    }

    /// When timed commands ran since this was asked last.
    pub(crate) fn take_times(&self) -> Vec<Ran> {
        std::mem::take(&mut self.shared.state().times)
    }
}

impl Drop for HostLane {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(Default)]
struct Shared {
    closed: AtomicBool,
    failed: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    why: String,
    times: Vec<Ran>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, why: &str) {
        self.state().why = why.to_owned();
        self.failed.store(true, Ordering::Release);
    }

    fn run(&self, jobs: Receiver<Job>) {
        for Job { command, waits, done, timed, run } in jobs {
            let ready = self.wait(&waits) && !self.failed.load(Ordering::Acquire);
            let begun = Instant::now();
            if ready && catch_unwind(AssertUnwindSafe(run)).is_err() {
                self.fail("one of its threads panicked");
            }
            if timed {
                self.state().times.push(Ran { command, begun, ended: Instant::now() });
            }
            done.flag.raise(done.number);
        }
    }

    /// Whether all of `waits` were reached; not when the lane goes before.
    fn wait(&self, waits: &[Ticket]) -> bool {
        let over = || waits.iter().all(|ticket| ticket.reached()) || self.closed.load(Ordering::Acquire);
        if !over() {
            // Threads that watch are awake when the work comes; waking them then would take as long as some of it.
            rayon::broadcast(|_| {
                (0..SPINS).any(|_| {
                    spin_loop();
                    over()
                })
            });
        }
        while !over() {
            std::thread::yield_now();
        }
        !self.closed.load(Ordering::Acquire)
    }
}

#[cfg(test)]
#[path = "host_tests.rs"]
mod tests;
