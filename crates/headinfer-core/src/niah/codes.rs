//! Haystacks for the retrieval model, in its own tokens: `@a b` in one place says that b follows a, `@b c` in
//! another that c follows b, and the question is `@a`.

use super::{Draws, Haystack, NiahError, Question, Request, check};
use crate::model::retrieval::Retrieval;

/// A text with one needle to each depth, and to each of them a question whose answer takes `chain` steps from
/// needle to needle. All needles together form one ring in an order drawn by the seed. Where `chain` exceeds the
/// number of depths, more needles are spread evenly over the text.
///
/// # Errors
/// [`NiahError`] naming what does not fit.
pub fn code_haystack(retrieval: &Retrieval, request: &Request, chain: usize) -> Result<Haystack, NiahError> {
    check(request)?;
    let (context, max) = (request.context, retrieval.spec().max_position);
    if context > max {
        return Err(NiahError::TooLong { context, max });
    }
    if chain == 0 {
        return Err(NiahError::Chain);
    }
    let needles = request.depths.len().max(chain);
    // A single needle answers with a name of which nothing is said.
    let names = needles.max(2);
    if names > retrieval.names() {
        return Err(NiahError::Names { needles, max: retrieval.names() });
    }
    // The first token, the needles, the question, and all of the answer.
    let need = 1 + 2 * needles + 1 + chain;
    if context < need {
        return Err(NiahError::TooShort { needles, context, need });
    }
    let mut draws = Draws::new(request.seed);
    let names = draws.distinct(names, retrieval.names());
    let next = if needles == 1 { vec![1] } else { ring(needles, &mut draws) };
    let extra = needles - request.depths.len();
    let spread = (0..extra).map(|i| (i as f64 + 0.5) / extra as f64);
    let depths: Vec<f64> = request.depths.iter().copied().chain(spread).collect();
    let mut ids = filler(retrieval, context - 1 - chain, &mut draws);
    for (i, start) in starts(&depths, ids.len()).into_iter().enumerate() {
        ids[start] = retrieval.key(names[i]);
        ids[start + 1] = retrieval.value(names[next[i]]);
    }
    let question = |first: usize| {
        let steps: Vec<usize> = std::iter::successors(Some(first), |i| Some(next[*i])).take(chain).collect();
        Question {
            depth: depths[first],
            ids: vec![retrieval.key(names[first])],
            answer: steps.iter().map(|i| retrieval.value(names[next[*i]])).collect(),
            found_at: steps.iter().map(|i| depths[*i]).collect(),
        }
    };
    let questions = (0..request.depths.len()).map(question).collect();
    Ok(Haystack { ids, questions, seed: request.seed })
}

/// The first token, and words of which some are much more frequent than others.
fn filler(retrieval: &Retrieval, count: usize, draws: &mut Draws) -> Vec<u32> {
    let words = retrieval.fillers();
    let mut word = || {
        let below = 1 + draws.below(words.len());
        words.start + draws.below(below) as u32
    };
    std::iter::once(retrieval.bos()).chain(std::iter::repeat_with(&mut word)).take(count).collect()
}

/// One ring through all of `count`: where each leads (Sattolo, 1986).
fn ring(count: usize, draws: &mut Draws) -> Vec<usize> {
    let mut next: Vec<usize> = (0..count).collect();
    for i in (1..count).rev() {
        next.swap(i, draws.below(i));
    }
    next
}

/// Where needles of two tokens start in a text of `len` tokens, after the first token and clear of one another.
fn starts(depths: &[f64], len: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..depths.len()).collect();
    order.sort_by(|a, b| depths[*a].total_cmp(&depths[*b]));
    let mut starts = vec![0; depths.len()];
    let mut free = 1;
    for &i in &order {
        let wished = 1 + (depths[i] * (len - 3) as f64).round() as usize;
        starts[i] = wished.max(free);
        free = starts[i] + 2;
    }
    let mut end = len;
    for &i in order.iter().rev() {
        starts[i] = starts[i].min(end - 2);
        end = starts[i];
    }
    starts
}
