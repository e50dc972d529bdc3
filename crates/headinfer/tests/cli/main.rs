//! The command line as a user meets it: the built program, its output, its exit codes.

mod bad_input;
mod help;
mod interrupt;
mod logits;
mod niah;
mod output;
mod plan;
mod run;
mod serve;
mod support;
