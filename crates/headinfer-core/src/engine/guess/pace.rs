//! How many guesses are worth their rows: tokens that a pass is likely to give, over the time it is likely to take.
//!
//! Chances come from how often guesses were right after matches as long, also those that were not tried: every token
//! that comes tells. Times start as the cost model's and follow what passes took. Reads no clock itself.

use crate::plan::{Plan, Step};

/// Lengths of matches from which chances are counted apart, and the chances before anything was seen.
const CLASSES: [(usize, f64); 5] = [(1, 0.3), (4, 0.5), (8, 0.8), (16, 0.9), (32, 0.97)];
/// What one more guess, right or wrong, weighs against all before it.
const CHANCE_RATE: f64 = 1.0 / 16.0;
/// What one more time of a pass weighs.
const TIME_RATE: f64 = 0.25;
/// Passes after which a number of rows that was not met is judged by others again, and what one of them weighs.
const FORGOTTEN: u32 = 64;
const DRIFT_RATE: f64 = 1.0 / 16.0;
/// A time this many times the expected one says that something else was going on.
const OUTLIER: f64 = 2.0;
/// Guesses must promise this many times the tokens per second that a single row gives.
const WORTH: f64 = 1.03;
/// The cost model is asked again when the past has grown by this factor.
const STALE: f64 = 1.125;

/// What guesses and passes were like so far.
#[derive(Clone, Debug)]
pub struct Pace {
    chances: [f64; CLASSES.len()],
    /// By rows less one: seconds by the cost model.
    model_s: Vec<f64>,
    /// By rows less one: seconds expected.
    pass_s: Vec<f64>,
    /// By rows less one: passes since there was one of so many.
    ago: Vec<u32>,
    /// Tokens before the step that the model was asked for.
    past: usize,
    measured: bool,
}

impl Pace {
    /// For steps of up to `rows` rows after `past` tokens.
    pub fn new(plan: &Plan, past: usize, rows: usize) -> Self {
        let model_s = times(plan, past, rows);
        Self {
            chances: CLASSES.map(|(_, chance)| chance),
            pass_s: model_s.clone(),
            ago: vec![FORGOTTEN; model_s.len()],
            model_s,
            past,
            measured: false,
        }
    }

    /// How many of `guesses`, the first of which `matched` tokens speak for, to take along.
    pub fn worth(&self, matched: usize, guesses: usize) -> usize {
        let (mut tokens, mut chance) = (1.0, 1.0);
        let mut best = (WORTH / self.pass_s[0], 0);
        for guess in 0..guesses.min(self.pass_s.len() - 1) {
            chance *= self.chances[class(matched + guess)];
            tokens += chance;
            let rate = tokens / self.pass_s[guess + 1];
            if rate > best.0 {
                best = (rate, guess + 1);
            }
        }
        best.1
    }

    /// A guess that `matched` tokens spoke for was right or not.
    pub fn guessed(&mut self, matched: usize, right: bool) {
        let chance = &mut self.chances[class(matched)];
        *chance += CHANCE_RATE * (f64::from(u8::from(right)) - *chance);
    }

    /// A pass of `rows` rows after `past` tokens took so long.
    pub fn took(&mut self, plan: &Plan, past: usize, rows: usize, seconds: f64) {
        if past as f64 > self.past as f64 * STALE {
            let model_s = times(plan, past, self.model_s.len());
            let grown = self.pass_s.iter_mut().zip(model_s.iter().zip(&self.model_s));
            grown.for_each(|(pass_s, (new, old))| *pass_s *= new / old);
            (self.model_s, self.past) = (model_s, past);
        }
        let modelled = self.model_s[rows - 1];
        if !std::mem::replace(&mut self.measured, true) {
            // The model knows ratios better than seconds.
            self.pass_s = self.model_s.iter().map(|model_s| model_s * seconds / modelled).collect();
            return;
        }
        let expected = self.pass_s[rows - 1];
        let seconds = seconds.clamp(expected / OUTLIER, expected * OUTLIER);
        let expected = expected + TIME_RATE * (seconds - expected);
        (self.pass_s[rows - 1], self.ago[rows - 1]) = (expected, 0);
        for (at, ago) in self.ago.iter_mut().enumerate() {
            if *ago >= FORGOTTEN {
                let by_model = expected * self.model_s[at] / modelled;
                self.pass_s[at] += DRIFT_RATE * (by_model - self.pass_s[at]);
            }
            *ago = ago.saturating_add(1);
        }
    }
}

/// Seconds of steps of 1 to `rows` rows after `past` tokens, by the cost model.
fn times(plan: &Plan, past: usize, rows: usize) -> Vec<f64> {
    let time = |rows| {
        let cost = plan.step_cost(&Step { past, rows, logit_rows: rows });
        cost.floor_s(&plan.request.machine).max(f64::MIN_POSITIVE)
    };
    (1..=rows).map(time).collect()
}

fn class(matched: usize) -> usize {
    CLASSES.iter().rposition(|(from, _)| *from <= matched).unwrap_or(0)
}
