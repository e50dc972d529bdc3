//! Cuts a long text where its tokens certainly part, so that the pieces can be encoded on their own: less
//! memory, and all cores.
//!
//! A cut lies between a newline that follows a visible ASCII character and an ASCII letter or digit. In the
//! patterns below no match spans that place, none looks past it but `\s+(?!\S)`, which finds the single newline
//! by itself either way, and none looks back. A tokenizer that is not known to be like this is never cut.

use tokenizers::models::ModelWrapper;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::split::SplitPattern;
use tokenizers::tokenizer::normalizer::SplitDelimiterBehavior;

/// Least bytes of a piece: long against the cost of a piece, short against a core's share of a long text.
const PIECE_BYTES: usize = 256 << 10;

/// Patterns before a byte-level step, by the family that brought them.
const PATTERNS: [&str; 3] = [
    // Llama 3
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    // Qwen2, Qwen3
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    // Mistral's Tekken
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

/// Cuts texts for one tokenizer.
pub(crate) struct Splitter {
    piece_bytes: usize,
}

impl Splitter {
    /// A splitter, where the tokenizer is known to allow it.
    pub(crate) fn new(tokenizer: &tokenizers::Tokenizer) -> Option<Self> {
        // Neither form of a newline nor of an ASCII character depends on what stands beside it.
        let normalizer = matches!(tokenizer.get_normalizer(), None | Some(NormalizerWrapper::NFC(_)));
        let model = matches!(tokenizer.get_model(), ModelWrapper::BPE(_));
        let added = tokenizer.get_added_vocabulary();
        // A token that takes white space on its left could begin at the cut.
        let added = added.get_added_tokens_decoder().values().all(|t| !t.lstrip && !t.content.contains('\n'));
        let known = tokenizer.get_pre_tokenizer().is_some_and(parts_at_newlines);
        (normalizer && model && added && known).then_some(Splitter { piece_bytes: PIECE_BYTES })
    }

    /// Pieces of `text`, in order, together all of it.
    pub(crate) fn parts<'a>(&self, text: &'a str) -> Vec<&'a str> {
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some(cut) = first_cut(rest.as_bytes(), self.piece_bytes) {
            let (part, after) = rest.split_at(cut);
            parts.push(part);
            rest = after;
        }
        parts.push(rest);
        parts
    }
}

fn first_cut(bytes: &[u8], from: usize) -> Option<usize> {
    let from = from.saturating_sub(2);
    let safe = |w: &[u8; 3]| w[0].is_ascii_graphic() && w[1] == b'\n' && w[2].is_ascii_alphanumeric();
    bytes.get(from..)?.array_windows().position(safe).map(|at| from + at + 2)
}

fn parts_at_newlines(pre_tokenizer: &PreTokenizerWrapper) -> bool {
    match pre_tokenizer {
        PreTokenizerWrapper::ByteLevel(b) => b.use_regex && !b.add_prefix_space,
        PreTokenizerWrapper::Sequence(list) => match list.as_ref() {
            [PreTokenizerWrapper::Split(split), PreTokenizerWrapper::ByteLevel(b)] => {
                let known =
                    matches!(&split.pattern, SplitPattern::Regex(r) if PATTERNS.contains(&r.as_str()));
                let isolated = split.behavior == SplitDelimiterBehavior::Isolated && !split.invert;
                known && isolated && !b.use_regex && !b.add_prefix_space
            }
            _ => false,
        },
        _ => false,
    }
}

#[cfg(test)]
#[path = "split_tests.rs"]
mod tests;
