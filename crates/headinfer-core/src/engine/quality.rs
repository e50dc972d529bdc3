//! How far two models of one vocabulary are apart on a text: what a lossy store of keys and values costs. Knows logits
//! only.

use super::sample::greedy_margin;

/// Sums over the tokens of a text, of the probabilities by exact logits and by others.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Apart {
    /// Tokens added.
    pub tokens: usize,
    /// Negative ln of the probability of the token that came, by exact logits and by the others, nats.
    entropy: [f64; 2],
    /// Kullback-Leibler divergence of the others from the exact distribution, nats.
    divergence: f64,
    divergence_max: f64,
    same_top: usize,
}

impl Apart {
    /// Adds a token that came where `exact` and `other` were the logits, `[vocab]` each. False, and nothing is added, when
    /// one of them is not finite.
    ///
    /// # Panics
    /// When `came` is not in the vocabulary, or the vocabularies differ.
    pub fn add(&mut self, exact: &[f32], other: &[f32], came: u32) -> bool {
        assert_eq!(exact.len(), other.len(), "logits of one vocabulary");
        if exact.iter().chain(other).any(|x| !x.is_finite()) {
            return false;
        }
        let (p_total, q_total) = (log_total(exact), log_total(other));
        let terms = exact.iter().zip(other).map(|(p, q)| {
            let (p, q) = (f64::from(*p) - p_total, f64::from(*q) - q_total);
            p.exp() * (p - q)
        });
        // Rounding may leave the sum of alike distributions just below zero.
        let divergence = terms.sum::<f64>().max(0.0);
        self.tokens += 1;
        self.entropy[0] += p_total - f64::from(exact[came as usize]);
        self.entropy[1] += q_total - f64::from(other[came as usize]);
        self.divergence += divergence;
        self.divergence_max = self.divergence_max.max(divergence);
        self.same_top += usize::from(greedy_margin(exact).0 == greedy_margin(other).0);
        true
    }

    /// e to the mean cross-entropy, by exact logits and by the others.
    pub fn perplexity(&self) -> [f64; 2] {
        self.entropy.map(|sum| self.mean(sum).exp())
    }

    /// Mean and largest Kullback-Leibler divergence of a token, nats.
    pub fn divergence(&self) -> (f64, f64) {
        (self.mean(self.divergence), self.divergence_max)
    }

    /// Share of the tokens of which both have the same likeliest one.
    pub fn same_top(&self) -> f64 {
        self.mean(self.same_top as f64)
    }

    fn mean(&self, sum: f64) -> f64 {
        sum / self.tokens.max(1) as f64
    }
}

/// ln of the sum of e^logit.
fn log_total(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + logits.iter().map(|x| (f64::from(*x) - max).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alike_logits_are_not_apart() {
        let mut apart = Apart::default();
        for came in 0..3 {
            assert!(apart.add(&[0.5, -2.0, 3.0], &[0.5, -2.0, 3.0], came));
        }
        let [exact, other] = apart.perplexity();
        assert_eq!((exact, apart.divergence(), apart.same_top()), (other, (0.0, 0.0), 1.0));
    }

    #[test]
    fn a_uniform_distribution_has_the_perplexity_of_its_size() {
        let mut apart = Apart::default();
        apart.add(&[7.0; 5], &[0.0, 0.0, 0.0, 0.0, 1000.0], 4);
        let [exact, other] = apart.perplexity();
        assert!((exact - 5.0).abs() < 1e-12 && (other - 1.0).abs() < 1e-12, "{exact} {other}");
    }

    #[test]
    fn divergence_is_that_of_the_probabilities() {
        // p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4): ½ ln 2 - ¼ ln 2.
        let logits = |p: [f32; 3]| p.map(|p| p.ln() + 3.0);
        let mut apart = Apart::default();
        apart.add(&logits([0.5, 0.25, 0.25]), &logits([0.25, 0.5, 0.25]), 2);
        apart.add(&[0.0; 3], &[1.0; 3], 0);
        let (mean, max) = apart.divergence();
        assert!((max - 0.25 * 2f64.ln()).abs() < 1e-6 && (mean - max / 2.0).abs() < 1e-6, "{mean} {max}");
        assert_eq!((apart.tokens, apart.same_top()), (2, 0.5));
    }

    #[test]
    fn what_is_not_finite_is_not_added() {
        let mut apart = Apart::default();
        assert!(!apart.add(&[0.0, f32::NAN], &[0.0; 2], 0) && !apart.add(&[0.0; 2], &[f32::INFINITY; 2], 0));
        assert_eq!(apart, Apart::default());
    }
}
