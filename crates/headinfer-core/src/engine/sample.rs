//! From logits to a token: greedy or drawn. Pure but for the count of draws.

use thiserror::Error;

/// How a token is chosen. The default is greedy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampling {
    /// 0: the largest logit, lowest id on a tie. Else logits are divided by it.
    pub temperature: f32,
    /// Keep this many of the likeliest tokens.
    pub top_k: Option<usize>,
    /// Keep the likeliest tokens whose probabilities reach this sum.
    pub top_p: Option<f32>,
    /// Keep tokens at least this times as likely as the likeliest.
    pub min_p: Option<f32>,
    /// Divide positive and multiply negative logits of tokens seen before (CTRL, arXiv 1909.05858).
    pub repetition_penalty: Option<f32>,
    /// Same seed, same draws.
    pub seed: u64,
}

impl Sampling {
    /// Refuses values without a meaning.
    ///
    /// # Errors
    /// A sentence naming the parameter and its range.
    pub fn validate(&self) -> Result<(), String> {
        let unit = |name: &str, value: Option<f32>| match value {
            Some(p) if !(0.0..=1.0).contains(&p) => Err(format!("{name} must be within 0..=1, not {p}")),
            _ => Ok(()),
        };
        if !(0.0..=100.0).contains(&self.temperature) {
            return Err(format!("temperature must be within 0..=100, not {}", self.temperature));
        }
        if self.top_k == Some(0) {
            return Err("top-k must be at least 1".into());
        }
        unit("top-p", self.top_p)?;
        unit("min-p", self.min_p)?;
        match self.repetition_penalty {
            Some(p) if !(p > 0.0 && p <= 100.0) => {
                Err(format!("repetition penalty must be within 0..=100 and not 0, not {p}"))
            }
            _ => Ok(()),
        }
    }
}

/// The logits hold a NaN, or +inf.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the logits are not finite")]
pub struct NotFinite;

/// Why no token was chosen.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PickError {
    /// See [`NotFinite`].
    #[error(transparent)]
    NotFinite(#[from] NotFinite),
    /// The mask failed, or left no token that has a probability.
    #[error("no token may come next: {0}")]
    Mask(String),
}

/// Says which tokens may come next, by rules the sampler does not know.
pub trait TokenMask: Send {
    /// Sets to -inf the scores, f32 `[vocab]`, of all tokens that may not come next.
    ///
    /// # Errors
    /// A sentence, when there is no saying.
    fn apply(&mut self, scores: &mut [f32]) -> Result<(), String>;

    /// Is told what was chosen of what it allowed; whether nothing can come after.
    ///
    /// # Errors
    /// As [`TokenMask::apply`].
    fn chosen(&mut self, id: u32) -> Result<bool, String>;
}

/// Chooses tokens; draw number i of a seed is always the same.
pub struct Sampler {
    sampling: Sampling,
    draws: u64,
    penalised: Vec<f32>,
    kept: Vec<(u32, f32)>,
    mask: Option<Box<dyn TokenMask>>,
    complete: bool,
}

impl Sampler {
    /// A sampler for logits of `vocab` entries.
    pub fn new(sampling: Sampling, vocab: usize) -> Self {
        let (penalised, kept) = (Vec::with_capacity(vocab), Vec::with_capacity(vocab));
        Self { sampling, draws: 0, penalised, kept, mask: None, complete: false }
    }

    /// Chooses among the tokens that `mask` allows only.
    pub fn masked(self, mask: Option<Box<dyn TokenMask>>) -> Self {
        Self { mask, ..self }
    }

    /// Whether the mask lets nothing come after what was picked last.
    pub fn complete(&self) -> bool {
        self.complete
    }

    /// The next token after `history`.
    ///
    /// # Errors
    /// [`PickError`].
    pub fn pick(&mut self, logits: &[f32], history: &[u32]) -> Result<u32, PickError> {
        let id = if self.sampling.temperature == 0.0 {
            self.score(logits, history)?;
            let (id, _) = greedy_margin(&self.penalised);
            (self.penalised[id as usize] > f32::NEG_INFINITY).then_some(id)
        } else {
            self.draw(logits, history)?
        };
        let id = id.ok_or_else(|| PickError::Mask("all that are allowed are impossible".into()))?;
        if let Some(mask) = &mut self.mask {
            self.complete = mask.chosen(id).map_err(PickError::Mask)?;
        }
        Ok(id)
    }

    fn draw(&mut self, logits: &[f32], history: &[u32]) -> Result<Option<u32>, PickError> {
        let draw = uniform(self.sampling.seed, self.draws);
        self.draws += 1;
        let kept = self.probabilities(logits, history)?;
        let mut left = draw;
        for (id, p) in kept {
            left -= f64::from(*p);
            if left < 0.0 {
                return Ok(Some(*id));
            }
        }
        // Rounding left a crumb: the least likely token that was kept.
        Ok(kept.last().map(|(id, _)| *id))
    }

    /// The distribution drawn from, likeliest first, after repetition penalty, temperature, top-k, top-p and
    /// min-p in this order (as transformers does). At least one token is kept, unless all are masked.
    ///
    /// # Errors
    /// [`PickError`].
    pub fn probabilities(&mut self, logits: &[f32], history: &[u32]) -> Result<&[(u32, f32)], PickError> {
        self.score(logits, history)?;
        let temperature = if self.sampling.temperature > 0.0 { self.sampling.temperature } else { 1.0 };
        self.kept.clear();
        let possible = self.penalised.iter().zip(0u32..).filter(|(x, _)| **x > f32::NEG_INFINITY);
        self.kept.extend(possible.map(|(x, id)| (id, x / temperature)));
        let by_score = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let k = self.sampling.top_k.unwrap_or(self.kept.len()).min(self.kept.len());
        if k < self.kept.len() {
            self.kept.select_nth_unstable_by(k, by_score);
            self.kept.truncate(k);
        }
        self.kept.sort_unstable_by(by_score);
        self.normalise();
        if let Some(top_p) = self.sampling.top_p {
            let mut sum = 0.0;
            // A token stays while those before it have not reached top_p.
            let keep = self.kept.iter().take_while(|(_, p)| {
                let before = sum;
                sum += *p;
                before < top_p
            });
            let keep = keep.count().max(1);
            self.kept.truncate(keep);
            self.renormalise();
        }
        if let Some(min_p) = self.sampling.min_p {
            let least = min_p * self.kept.first().map_or(0.0, |(_, p)| *p);
            let keep = self.kept.iter().take_while(|(_, p)| *p >= least).count().max(1);
            self.kept.truncate(keep);
            self.renormalise();
        }
        Ok(&self.kept)
    }

    /// Logits after penalty and mask.
    fn score(&mut self, logits: &[f32], history: &[u32]) -> Result<(), PickError> {
        self.penalise(logits, history)?;
        match &mut self.mask {
            Some(mask) => mask.apply(&mut self.penalised).map_err(PickError::Mask),
            None => Ok(()),
        }
    }

    fn penalise(&mut self, logits: &[f32], history: &[u32]) -> Result<(), NotFinite> {
        if logits.is_empty() || logits.iter().any(|x| x.is_nan() || *x == f32::INFINITY) {
            return Err(NotFinite);
        }
        self.penalised.clear();
        self.penalised.extend_from_slice(logits);
        if let Some(penalty) = self.sampling.repetition_penalty {
            for id in history.iter().map(|id| *id as usize).filter(|id| *id < logits.len()) {
                // From the original logit: a token seen twice is penalised once.
                let x = logits[id];
                self.penalised[id] = if x > 0.0 { x / penalty } else { x * penalty };
            }
        }
        Ok(())
    }

    /// Scores to probabilities: softmax.
    fn normalise(&mut self) {
        let max = self.kept.first().map_or(0.0, |(_, x)| *x);
        let sum: f64 = self.kept.iter().map(|(_, x)| f64::from(*x - max).exp()).sum();
        self.kept.iter_mut().for_each(|(_, x)| *x = (f64::from(*x - max).exp() / sum) as f32);
    }

    fn renormalise(&mut self) {
        let sum: f32 = self.kept.iter().map(|(_, p)| p).sum();
        self.kept.iter_mut().for_each(|(_, p)| *p /= sum);
    }
}

/// The largest logit's id (lowest on a tie) and its lead over the runner-up.
pub fn greedy_margin(logits: &[f32]) -> (u32, f32) {
    let (mut best, mut first, mut second) = (0, f32::NEG_INFINITY, f32::NEG_INFINITY);
    for (id, x) in logits.iter().enumerate() {
        if *x > first {
            (best, second, first) = (id as u32, first, *x);
        } else if *x > second {
            second = *x;
        }
    }
    (best, first - second)
}

/// ln of the probability of `id`, in f64.
pub fn log_softmax_at(logits: &[f32], id: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from(x - max).exp()).sum();
    f64::from(logits[id as usize] - max) - sum.ln()
}

/// Draw `index` of `seed` in [0, 1): splitmix64 (Steele, Lea and Flood, 2014), 53 bits.
fn uniform(seed: u64, index: u64) -> f64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    for _ in 0..2 {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
    }
    (z >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(sampling: Sampling) -> Sampler {
        Sampler::new(sampling, 5)
    }

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, -1.0, 3.0];

    #[test]
    fn greedy_takes_the_lowest_id_on_a_tie() {
        assert_eq!(sampler(Sampling::default()).pick(&LOGITS, &[]), Ok(1));
        assert_eq!(greedy_margin(&LOGITS), (1, 0.0));
    }

    #[test]
    fn nan_and_infinity_are_refused() {
        for bad in [f32::NAN, f32::INFINITY] {
            assert_eq!(sampler(Sampling::default()).pick(&[0.0, bad], &[]), Err(NotFinite.into()));
        }
        assert_eq!(sampler(Sampling::default()).pick(&[f32::NEG_INFINITY, 0.0], &[]), Ok(1));
    }

    #[test]
    fn draws_follow_the_distribution() {
        let sampling = Sampling { temperature: 1.0, seed: 7, ..Sampling::default() };
        let mut s = sampler(sampling.clone());
        let expected: Vec<(u32, f32)> = sampler(sampling).probabilities(&LOGITS, &[]).unwrap().to_vec();
        const DRAWS: usize = 20_000;
        let mut counts = [0usize; 5];
        (0..DRAWS).for_each(|_| counts[s.pick(&LOGITS, &[]).unwrap() as usize] += 1);
        let chi: f64 = expected
            .iter()
            .map(|(id, p)| {
                let want = f64::from(*p) * DRAWS as f64;
                (counts[*id as usize] as f64 - want).powi(2) / want
            })
            .sum();
        // 99.9 % of chi-square with 4 degrees of freedom lies below 18.5.
        assert!(chi < 18.5, "{chi} {counts:?}");
    }

    #[test]
    fn filters_keep_what_they_say_and_at_least_one() {
        let kept = |sampling: Sampling| {
            let mut s = sampler(Sampling { temperature: 1.0, ..sampling });
            let kept = s.probabilities(&LOGITS, &[]).unwrap();
            assert!((kept.iter().map(|(_, p)| p).sum::<f32>() - 1.0).abs() < 1e-6);
            kept.iter().map(|(id, _)| *id).collect::<Vec<_>>()
        };
        assert_eq!(kept(Sampling { top_k: Some(3), ..Sampling::default() }), [1, 4, 2]);
        assert_eq!(kept(Sampling { top_p: Some(0.5), ..Sampling::default() }), [1, 4]);
        assert_eq!(kept(Sampling { top_p: Some(0.0), ..Sampling::default() }), [1]);
        assert_eq!(kept(Sampling { min_p: Some(0.3), ..Sampling::default() }), [1, 4, 2]);
        assert_eq!(kept(Sampling { min_p: Some(1.0), ..Sampling::default() }), [1, 4]);
    }

    #[test]
    fn a_penalty_pushes_both_signs_down_once() {
        let mut s = sampler(Sampling { repetition_penalty: Some(2.0), ..Sampling::default() });
        assert_eq!(s.pick(&LOGITS, &[1, 1, 4]), Ok(2));
        s.penalise(&LOGITS, &[1, 1, 3]).unwrap();
        assert_eq!(s.penalised, [1.0, 1.5, 2.0, -2.0, 3.0]);
    }

    #[test]
    fn values_without_a_meaning_are_refused() {
        for bad in [
            Sampling { temperature: -1.0, ..Sampling::default() },
            Sampling { temperature: f32::NAN, ..Sampling::default() },
            Sampling { top_k: Some(0), ..Sampling::default() },
            Sampling { top_p: Some(1.5), ..Sampling::default() },
            Sampling { min_p: Some(f32::NAN), ..Sampling::default() },
            Sampling { repetition_penalty: Some(0.0), ..Sampling::default() },
        ] {
            assert!(bad.validate().is_err(), "{bad:?}");
        }
        assert_eq!(Sampling::default().validate(), Ok(()));
    }

    /// Allows the ids it is given, then says that all is done.
    struct Only(Vec<u32>);

    impl TokenMask for Only {
        fn apply(&mut self, scores: &mut [f32]) -> Result<(), String> {
            let forbidden = scores.iter_mut().zip(0..).filter(|(_, id)| !self.0.contains(id));
            forbidden.for_each(|(score, _)| *score = f32::NEG_INFINITY);
            Ok(())
        }

        fn chosen(&mut self, id: u32) -> Result<bool, String> {
            self.0.retain(|allowed| *allowed != id);
            Ok(self.0.is_empty())
        }
    }

    #[test]
    fn a_mask_bounds_what_is_picked_at_any_temperature() {
        for temperature in [0.0, 1.0, 100.0] {
            for seed in 0..50 {
                let sampling = Sampling { temperature, seed, top_p: Some(0.9), ..Sampling::default() };
                let mut s = sampler(sampling).masked(Some(Box::new(Only(vec![0, 3]))));
                let first = s.pick(&LOGITS, &[]).unwrap();
                assert!([0, 3].contains(&first) && !s.complete());
                assert_eq!((s.pick(&LOGITS, &[]), s.complete()), (Ok(3 - first), true));
            }
        }
    }

    #[test]
    fn a_mask_that_leaves_nothing_is_an_error() {
        for temperature in [0.0, 1.0] {
            let mut s = sampler(Sampling { temperature, ..Sampling::default() });
            s = s.masked(Some(Box::new(Only(vec![0]))));
            let refused = s.pick(&[f32::NEG_INFINITY, 1.0], &[]);
            assert!(matches!(refused, Err(PickError::Mask(_))), "{refused:?}");
        }
    }

    #[test]
    fn log_softmax_is_exact_on_a_known_case() {
        assert!((log_softmax_at(&[0.0, 0.0], 1) + std::f64::consts::LN_2).abs() < 1e-12);
    }
}
