//! How many arenas the allocator has: the one setting of the process that must come before its threads.
//!
//! glibc gives each thread an arena of its own, up to eight a core, and each keeps what its threads once needed: a process
//! that serves for days would grow whenever a thread meets its first large request. Few arenas have soon met all there
//! is. One alone would do for memory, but two long prompts that are tokenised at once then take over four times as
//! long, since they wait for each other at each word.

/// As many as there are, with some room, threads that allocate much at once: two that tokenise, the engine's, the store's.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const ARENAS: libc::c_int = 4;

/// Limits the arenas; before the first thread is started.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "the allocator's settings are C's")]
pub(crate) fn limit_arenas() {
    // SAFETY: the call takes two numbers, and no other thread runs yet. That it fails changes no result.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
}

/// Other allocators have no such arenas.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn limit_arenas() {}
