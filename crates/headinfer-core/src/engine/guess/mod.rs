//! Guesses at what comes next, to be checked by the model in the pass that is due anyway: a pass that is bound by the
//! bytes of K, V and weights takes hardly longer for a few rows than for one.
//!
//! `lookup` finds what followed when the text was last like this; `pace` says how many of its guesses are worth their
//! rows. Neither can change a token: what is not what the model gives is dropped. Must not know sessions or sampling.

mod lookup;
mod pace;

pub use lookup::Lookup;
pub use pace::Pace;

/// How many guesses a pass takes along.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Speculation {
    /// As many as pay, by the time that passes take and by how often guesses were right.
    #[default]
    Auto,
    /// None.
    Off,
    /// This many, wherever there are any.
    Fixed(usize),
}

/// Guesses from the text so far.
pub trait Guesser: Send {
    /// The text's next token.
    fn push(&mut self, id: u32);

    /// Adds to `to` up to `most` tokens that may come next, and returns how many of the last tokens speak for the
    /// first of them: 0 when there is none. Each further one would have one more.
    fn guess(&self, most: usize, to: &mut Vec<u32>) -> usize;

    /// Memory it holds.
    fn bytes(&self) -> usize;
}

/// What was guessed and what came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Steps that took in a token.
    pub passes: u64,
    /// Of them, those that took guesses along.
    pub drafts: u64,
    /// Guesses taken along.
    pub guessed: u64,
    /// Those that were right.
    pub accepted: u64,
}

impl Counts {
    /// What came after `before` was counted.
    pub fn since(self, before: Self) -> Self {
        Self {
            passes: self.passes - before.passes,
            drafts: self.drafts - before.drafts,
            guessed: self.guessed - before.guessed,
            accepted: self.accepted - before.accepted,
        }
    }

    /// Tokens that a pass gave, on average: 1 without guesses; 0 without passes.
    pub fn tokens_per_pass(&self) -> f64 {
        match self.passes {
            0 => 0.0,
            passes => (passes + self.accepted) as f64 / passes as f64,
        }
    }
}
