//! The ways that cuBLASLt knows for a product, each timed: how near the one that runs use comes to the best of them.

use headinfer_core::cpu::measure::median;

use super::{Bed, Product};
use crate::error::CudaError;

/// Candidates asked for.
const CANDIDATES_MAX: usize = 64;
/// Turns of all of them, before…
const TURNS: usize = 3;
/// …so many of the fastest are compared with the one that runs use.
const FINALISTS: usize = 4;

/// What a search found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Searched {
    /// Candidates that compute the product, the one that runs use among them.
    pub candidates: usize,
    /// Seconds by the one that runs use.
    pub chosen_s: f64,
    /// Seconds by the fastest, which may be the same.
    pub best_s: f64,
    /// Place of the fastest in the order of the heuristic, 0 for the one that runs use.
    pub best: usize,
}

impl Bed {
    /// Times a product by every candidate of the heuristic, then the fastest in turns with the one that runs use.
    ///
    /// # Errors
    /// [`CudaError`] when the device failed or cuBLASLt knows no way.
    ///
    /// # Panics
    /// When the bed is too small.
    pub fn search(&mut self, p: &Product) -> Result<Searched, CudaError> {
        self.context.enter()?;
        self.scatter()?;
        let places = self.places_of(p);
        let all = self.gemm.candidates(p.shape(), CANDIDATES_MAX)?;
        let run = |bed: &mut Self, index| bed.gemm.run_candidate(bed.lanes[0].raw(), &all, index, places);
        // Loads their kernels. What the heuristic names and the library then refuses is no candidate.
        let mut usable = Vec::with_capacity(all.len());
        for index in 0..all.len() {
            let refused = run(self, index).err();
            self.lanes[0].synchronize()?;
            match refused {
                None => usable.push((index, Vec::new())),
                Some(error) if index == 0 => return Err(error),
                Some(_) => (),
            }
        }
        for _ in 0..TURNS {
            for (index, times) in &mut usable {
                times.push(self.timed(|bed| run(bed, *index))?.as_secs_f64());
            }
        }
        let candidates = usable.len();
        let mut others: Vec<(f64, usize)> =
            usable[1..].iter().map(|(index, times)| (median(times), *index)).collect();
        others.sort_by(|a, b| a.0.total_cmp(&b.0));
        let fastest = others.iter().take(FINALISTS).map(|(_, index)| *index);
        let finalists: Vec<usize> = std::iter::once(0).chain(fastest).collect();
        let times = self.in_turns(finalists.len(), |bed, i| bed.timed(|bed| run(bed, finalists[i])))?;
        let best = (0..times.len()).min_by(|a, b| times[*a].total_cmp(&times[*b])).unwrap_or(0);
        Ok(Searched { candidates, chosen_s: times[0], best_s: times[best], best: finalists[best] })
    }
}
