//! What a run measured of itself, as one line for people and as data.

use std::time::Duration;

use headinfer_core::backend::Stats;
use headinfer_core::engine::Decoder;
use headinfer_core::plan::{Lane, Plan};
use headinfer_core::units::Bytes;
use serde::Serialize;

/// Tokens and time of a prefill and the decode after it, and what memory and link did meanwhile.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Summary {
    pub(crate) prompt_tokens: usize,
    /// Of the prompt, brought back from the session store instead of computed.
    pub(crate) restored_tokens: usize,
    pub(crate) prefill_s: f64,
    pub(crate) prefill_tokens_per_s: f64,
    pub(crate) new_tokens: usize,
    pub(crate) decode_s: f64,
    pub(crate) decode_tokens_per_s: f64,
    /// Decode steps, the guesses they took along, and how many of these were right.
    pub(crate) passes: u64,
    pub(crate) guessed_tokens: u64,
    pub(crate) accepted_tokens: u64,
    /// Tokens that a decode step gave, on average: 1 without guesses, 0 without steps.
    pub(crate) tokens_per_pass: f64,
    /// Host memory of the index that guesses come from, besides the plan's.
    pub(crate) guess_bytes: usize,
    /// Weights and KV read by arithmetic during decode, GB/s.
    pub(crate) decode_gb_s: f64,
    /// Copies between host and device while they ran, GB/s; 0 when nothing was copied.
    pub(crate) link_gb_s: f64,
    /// Share of copy time during which arithmetic ran too.
    pub(crate) copy_hidden_fraction: f64,
    pub(crate) device_peak_bytes: u64,
    pub(crate) plan_device_bytes: u64,
    pub(crate) host_bytes: u64,
    pub(crate) plan_host_bytes: u64,
    /// Of the last logits.
    pub(crate) logits_hash: String,
}

/// One phase: tokens, steps that ran and their time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Phase {
    /// Tokens taken in (prefill) or given out (decode).
    pub(crate) tokens: usize,
    /// Tokens before those, brought back from the session store.
    pub(crate) restored: usize,
    /// Time.
    pub(crate) time: Duration,
    /// Totals of the backend at the end.
    pub(crate) stats: Stats,
}

impl Summary {
    /// Sums up.
    pub(crate) fn new(plan: &Plan, prefill: &Phase, decode: &Phase, decoder: &Decoder) -> Self {
        let (stats, counts) = (&decode.stats, decoder.counts());
        let rate = |amount: f64, s: f64| if s > 0.0 { amount / s } else { 0.0 };
        let of = |stats: &Stats, lanes: [Lane; 2]| lanes.map(|l| stats.bytes[l.index()]).iter().sum::<u64>();
        let read = of(stats, [Lane::Compute, Lane::Host]) - of(&prefill.stats, [Lane::Compute, Lane::Host]);
        let (prefill_s, decode_s) = (prefill.time.as_secs_f64(), decode.time.as_secs_f64());
        Self {
            prompt_tokens: prefill.restored + prefill.tokens,
            restored_tokens: prefill.restored,
            prefill_s,
            prefill_tokens_per_s: rate(prefill.tokens as f64, prefill_s),
            new_tokens: decode.tokens,
            decode_s,
            // The first token comes from the prefill.
            decode_tokens_per_s: rate(decode.tokens.saturating_sub(1) as f64, decode_s),
            passes: counts.passes,
            guess_bytes: decoder.guess_bytes(),
            guessed_tokens: counts.guessed,
            accepted_tokens: counts.accepted,
            tokens_per_pass: counts.tokens_per_pass(),
            decode_gb_s: rate(read as f64 / 1e9, decode_s),
            link_gb_s: rate(of(stats, [Lane::In, Lane::Out]) as f64 / 1e9, stats.copy.as_secs_f64()),
            copy_hidden_fraction: stats.hidden_fraction(),
            device_peak_bytes: stats.device_bytes,
            plan_device_bytes: plan.device_bytes(),
            host_bytes: stats.host_bytes,
            plan_host_bytes: plan.host_bytes(),
            logits_hash: hash(decoder.logits()),
        }
    }

    /// One line.
    pub(crate) fn line(&self) -> String {
        let link = match self.link_gb_s {
            0.0 => "nothing copied, so no overlap".to_owned(),
            rate => format!("link {rate:.1} GB/s, overlap {:.0} %", 100.0 * self.copy_hidden_fraction),
        };
        let restored = match self.restored_tokens {
            0 => String::new(),
            tokens => format!(", {tokens} of them restored"),
        };
        let guessed = match self.guessed_tokens {
            0 => String::new(),
            guessed => format!(
                ", {:.2} a pass ({} of {guessed} guesses right)",
                self.tokens_per_pass, self.accepted_tokens
            ),
        };
        format!(
            "{} prompt tokens{restored}, {:.1} tok/s | {} new, {:.1} tok/s{guessed}, {:.1} GB/s | {link} | peak device {} \
             of {} planned, host {} of {} planned | logits {}",
            self.prompt_tokens,
            self.prefill_tokens_per_s,
            self.new_tokens,
            self.decode_tokens_per_s,
            self.decode_gb_s,
            Bytes(self.device_peak_bytes),
            Bytes(self.plan_device_bytes),
            Bytes(self.host_bytes),
            Bytes(self.plan_host_bytes),
            self.logits_hash,
        )
    }
}

/// 64-bit FNV-1a over the bits of the logits, little-endian, as 16 hex digits.
pub(crate) fn hash(logits: &[f32]) -> String {
    let bytes = logits.iter().flat_map(|x| x.to_le_bytes());
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_published_one() {
        // From the authors' table of test vectors: "" and "foob", whose bytes are those of one f32.
        assert_eq!(hash(&[]), "cbf29ce484222325");
        assert_eq!(hash(&[f32::from_le_bytes(*b"foob")]), "dd120e790c2512af");
    }
}
