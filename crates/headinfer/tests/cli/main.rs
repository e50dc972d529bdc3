//! The command line as a user meets it: the built program, its output, its exit codes.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod bad_input;
mod bench;
mod faults;
mod help;
mod interrupt;
mod kill;
mod logits;
mod niah;
mod output;
mod plan;
mod run;
mod serve;
mod support;
