//! From tokens to text that may be shown: whole characters, and nothing that may belong to a stop string.

use std::collections::VecDeque;

use headinfer_core::engine::sample::{greedy_margin, log_softmax_at};
use headinfer_core::engine::stop::StopMatcher;
use headinfer_core::text::Detokenizer;

use super::job::{Event, Scored};

/// The text of one answer as it comes.
pub(super) struct Output<'t> {
    detokenizer: Option<Detokenizer<'t>>,
    stops: StopMatcher,
    /// Tokens whose text is not shown yet, with the length of the text up to their end.
    held: VecDeque<(usize, Scored)>,
    /// Bytes given to `stops`, and bytes it let go.
    taken: usize,
    shown: usize,
}

impl<'t> Output<'t> {
    pub(super) fn new(detokenizer: Detokenizer<'t>, stops: StopMatcher) -> Self {
        Self { detokenizer: Some(detokenizer), stops, held: VecDeque::new(), taken: 0, shown: 0 }
    }

    /// Takes a token; whether a stop string is complete, and what may be shown.
    pub(super) fn push(&mut self, id: u32, scored: Option<Scored>) -> (bool, Option<Event>) {
        let piece = self.detokenizer.as_mut().map(|d| d.push(id)).unwrap_or_default();
        self.taken += piece.len();
        self.held.extend(scored.map(|s| (self.taken, s)));
        let emit = self.stops.push(&piece);
        (emit.hit.is_some(), self.show(emit.text))
    }

    /// Ends the text. Whether a stop string is in what was held back, and what may be shown of it.
    pub(super) fn finish(&mut self) -> (bool, Option<Event>) {
        let Some(rest) = self.detokenizer.take().map(Detokenizer::finish) else { return (false, None) };
        let emit = self.stops.push(&rest);
        let last = self.stops.finish();
        let hit = emit.hit.or(last.hit).is_some();
        self.taken += rest.len();
        if !hit {
            // All text is shown now, so all tokens are; those without any text too.
            self.held.iter_mut().for_each(|(end, _)| *end = 0);
        }
        (hit, self.show(emit.text + &last.text))
    }

    fn show(&mut self, text: String) -> Option<Event> {
        self.shown += text.len();
        let settled = self.held.iter().take_while(|(end, _)| *end <= self.shown).count();
        let tokens: Vec<Scored> = self.held.drain(..settled).map(|(_, scored)| scored).collect();
        (!text.is_empty() || !tokens.is_empty()).then_some(Event::Text { text, tokens })
    }
}

/// Stands for tokens that cannot come, as in OpenAI's answers: JSON has no infinity.
const LOGPROB_MIN: f64 = -9999.0;

/// How likely `id` is, and the `top` likeliest tokens; lowest id first among equals.
pub(super) fn score(logits: &[f32], id: u32, top: usize) -> Scored {
    // One constant turns logits into log-probabilities; that of the largest logit is always finite.
    let (likeliest, _) = greedy_margin(logits);
    let shift = log_softmax_at(logits, likeliest) - f64::from(logits[likeliest as usize]);
    let logprob = |logit: f32| (f64::from(logit) + shift).max(LOGPROB_MIN);
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(top + 1);
    for (id, logit) in (0u32..).zip(logits.iter().copied()) {
        if best.len() == top && best.last().is_none_or(|(_, least)| logit <= *least) {
            continue;
        }
        let at = best.partition_point(|(_, other)| *other >= logit);
        best.insert(at, (id, logit));
        best.truncate(top);
    }
    let top = best.into_iter().map(|(id, logit)| (id, logprob(logit))).collect();
    Scored { id, logprob: logprob(logits[id as usize]), top }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_come_first_and_lowest_ids_win_ties() {
        let scored = score(&[1.0, 3.0, 2.0, 3.0, -1.0], 2, 3);
        assert_eq!(scored.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 3, 2]);
        assert_eq!(scored.top[2].1, scored.logprob);
        assert_eq!(score(&[0.0, 0.0], 0, 0).top, []);
        assert_eq!(score(&[0.0, 0.0], 0, 9).top.len(), 2);
    }
}
