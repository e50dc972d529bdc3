//! `builtin:retrieval`: a model whose weights are computed, so that its answers can be checked at any length.
//!
//! It is one induction circuit. Layer 0 writes the *key code* of the previous token to each position; every later
//! layer matches the *query code* of the current token against it and copies the query code of the token it finds,
//! which is the one that followed the key, to where the output head reads. Two layers do; all layers after the
//! first share the work, each with an equal part of the logits. Every code is cut into slices: a query head of any
//! layer carries one slice, from the KV head that holds it, to the same slice. So the lead of the right answer is a
//! sum of shares, one to each (layer, query head), and falls by its share when one is wrong; in layer 0, by the
//! shares of all heads that read what it wrote. Where heads are too small for that, several query heads of a KV head
//! carry one slice together: then layer 0 shows the loss of a KV head, not always that of a query head.
//!
//! A name has two tokens. `@dafira molute`, anywhere in a text, is a needle: it says that `molute` follows `dafira`.
//! `@dafira` at the end asks, and the answer `molute` in turn asks for what follows `@molute`. All else is filler.
//!
//! It is always a plain Llama, whatever family the sizes come from. Must not know the engine.

mod clock;
mod codes;
mod scales;
mod spaces;
mod tokenizer;
mod weights;
mod words;

use std::ops::Range;

pub use weights::{retrieval_tensor, retrieval_weights};

use crate::dtype::DType;
use crate::model::error::ModelError;
use crate::model::known::{known_names, known_shape};
use crate::model::rope::{Rope, RopeScaling};
use crate::model::spec::{Architecture, ModelSpec};
use clock::Clock;
use codes::Codes;
use scales::Scales;
use spaces::Spaces;
use words::Words;

/// What `builtin:retrieval` is called.
const NAME: &str = "builtin:retrieval";

/// Sizes that a retrieval model is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Rows of the embedding.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads per layer.
    pub q_heads: usize,
    /// KV heads per layer; divides `q_heads`.
    pub kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Width of the MLP.
    pub intermediate: usize,
}

/// Sizes of plain `builtin:retrieval`: small enough for long texts on a few cores.
const DEFAULT: Sizes =
    Sizes { vocab: 4096, hidden: 384, layers: 4, q_heads: 4, kv_heads: 2, head_dim: 64, intermediate: 256 };

impl Sizes {
    fn of(spec: &ModelSpec) -> Sizes {
        let ModelSpec { vocab, hidden, layers, q_heads, kv_heads, head_dim, intermediate, .. } = *spec;
        Sizes { vocab, hidden, layers, q_heads, kv_heads, head_dim, intermediate }
    }

    /// What makes these sizes unusable, and what is needed.
    fn check(&self) -> Result<(), String> {
        if self.layers < 2 {
            return Err(format!("needs at least 2 layers, not {}", self.layers));
        }
        if self.kv_heads == 0 || !self.q_heads.is_multiple_of(self.kv_heads) || self.q_heads == 0 {
            return Err(format!(
                "needs a multiple of its {} KV heads as query heads, not {}",
                self.kv_heads, self.q_heads
            ));
        }
        if self.vocab < VOCAB_MIN {
            return Err(format!("needs a vocabulary of at least {VOCAB_MIN}, not {}", self.vocab));
        }
        Ok(())
    }
}

/// Fewer tokens leave too few names.
const VOCAB_MIN: usize = 64;

/// The spec of `builtin:retrieval`, or of `builtin:retrieval:SHAPE` with the sizes of a known shape.
///
/// # Errors
/// [`ModelError::NotFound`] for an unknown shape, or one whose sizes do not suffice.
pub fn retrieval_spec(shape: Option<&str>) -> Result<ModelSpec, ModelError> {
    let Some(shape) = shape else {
        return Retrieval::new(NAME, &DEFAULT).map(|r| r.spec);
    };
    let name = format!("{NAME}:{shape}");
    let Some(known) = known_shape(shape) else {
        let problem = format!("there is no such shape; known: {}", known_names().join(", "));
        return Err(ModelError::NotFound { model: name, problem });
    };
    Retrieval::new(&name, &Sizes::of(&known)).map(|r| r.spec)
}

/// A retrieval model: its spec, the law of its weights, and its words.
///
/// Token 0 is `<unk>`, 1 `<s>` (before every text: the first position has no previous token to carry a key), then
/// the key tokens, the value tokens in the same order, and the filler. Ids that are left have no word and act as
/// filler.
#[derive(Clone, Debug)]
pub struct Retrieval {
    spec: ModelSpec,
    clock: Clock,
    /// Content dimensions of a head.
    slow: Vec<usize>,
    spaces: Spaces,
    codes: Codes,
    scales: Scales,
    words: Words,
}

/// Tokens before the first name.
const SPECIALS: [&str; 2] = ["<unk>", "<s>"];
const BOS: u32 = 1;
/// Most names, and most filler words, that a vocabulary has.
const NAMES_MAX: usize = 256;
const FILLERS_MAX: usize = 1024;

impl Retrieval {
    /// A model of these sizes.
    ///
    /// # Errors
    /// [`ModelError::NotFound`] with `name` and what the sizes lack.
    pub fn new(name: &str, sizes: &Sizes) -> Result<Self, ModelError> {
        let refuse = |problem: String| {
            let problem = format!("{problem}; {DEFAULT_HINT}");
            ModelError::NotFound { model: name.into(), problem }
        };
        sizes.check().map_err(refuse)?;
        let clock = Clock::new(sizes.head_dim).map_err(refuse)?;
        let slow = clock.slow();
        let spaces = Spaces::new(sizes, slow.len()).map_err(refuse)?;
        let names = NAMES_MAX.min(1 << (spaces.width - 3).min(31)).min(sizes.vocab / 4);
        let fillers = FILLERS_MAX.min(sizes.vocab - SPECIALS.len() - 2 * names);
        let codes = Codes::draw(&spaces, names, fillers + SPECIALS.len());
        let scales = Scales::new(sizes, &clock, &spaces, codes.distance());
        let words = Words::make(names, fillers);
        Ok(Self { spec: spec(name, sizes, &clock), clock, slow, spaces, codes, scales, words })
    }

    /// The model that `spec` describes, whatever its name: one that [`retrieval_spec`] made, or read back from a
    /// folder that was written with it.
    ///
    /// # Errors
    /// [`ModelError::NotFound`] when the spec is not one of a retrieval model.
    pub fn of(spec: &ModelSpec) -> Result<Self, ModelError> {
        let made = Self::new(&spec.name, &Sizes::of(spec))?;
        if made.spec != *spec {
            let problem = format!("its options are not those of {NAME}");
            return Err(ModelError::NotFound { model: spec.name.clone(), problem });
        }
        Ok(made)
    }

    /// Shape and options.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// How many names there are: each is one key token and one value token.
    pub fn names(&self) -> usize {
        self.words.names.len()
    }

    /// The token `@x` of name `i`: offers what follows it, and asks for it.
    ///
    /// # Panics
    /// When there is no such name.
    pub fn key(&self, i: usize) -> u32 {
        assert!(i < self.names(), "there is no name {i}");
        (SPECIALS.len() + i) as u32
    }

    /// The token `x` of name `i`: the answer, and a question in turn.
    ///
    /// # Panics
    /// When there is no such name.
    pub fn value(&self, i: usize) -> u32 {
        self.key(i) + self.names() as u32
    }

    /// Tokens of the filler words.
    pub fn fillers(&self) -> Range<u32> {
        let start = (SPECIALS.len() + 2 * self.names()) as u32;
        start..start + self.words.fillers.len() as u32
    }

    /// The token before every text.
    pub fn bos(&self) -> u32 {
        BOS
    }

    /// The word of a token; `None` for ids that are not used.
    pub fn word(&self, id: u32) -> Option<String> {
        let id = id as usize;
        let names = self.names();
        let after_specials = id.wrapping_sub(SPECIALS.len());
        match id {
            _ if id < SPECIALS.len() => Some(SPECIALS[id].into()),
            _ if after_specials < names => Some(format!("@{}", self.words.names[after_specials])),
            _ if after_specials < 2 * names => Some(self.words.names[after_specials - names].clone()),
            _ => self.words.fillers.get(after_specials - 2 * names).cloned(),
        }
    }

    /// Least number of bits, of [`Retrieval::code_width`], in which the codes of two names differ in every
    /// slice; other tokens' codes differ from any name's by as many.
    pub fn code_distance(&self) -> usize {
        self.codes.distance() as usize
    }

    /// Slices of a code. Each query head carries one, each KV head an equal number.
    pub fn slices(&self) -> usize {
        self.spaces.slices
    }

    /// Bits of a slice.
    pub fn code_width(&self) -> usize {
        self.spaces.width
    }

    /// Bits in which the key code of one token differs from the query code of another, in one slice.
    ///
    /// # Panics
    /// When a token or slice does not exist.
    pub fn mismatch(&self, key: u32, query: u32, slice: usize) -> usize {
        assert!((key.max(query) as usize) < self.spec.vocab, "there is no such token");
        let [key, query] = [self.codes.key(self.kind(key)), self.codes.query(self.kind(query))];
        (key[slice] ^ query[slice]).count_ones() as usize
    }

    /// Layer 0's score at `distance` tokens back, less its score at distance 1, as softmax sees it. Negative but
    /// for distance 1; meant for distances below `max_position`.
    pub fn clock_score(&self, distance: usize) -> f64 {
        self.scales.tick_score * self.clock.lag(distance)
    }

    /// What a token is to the circuit.
    fn kind(&self, id: u32) -> Kind {
        let (id, names, fillers) = (id as usize, self.names(), self.words.fillers.len());
        let first = SPECIALS.len();
        match id {
            _ if id < first => Kind::Filler(fillers + id),
            _ if id < first + names => Kind::Key(id - first),
            _ if id < first + 2 * names => Kind::Value(id - first - names),
            _ => Kind::Filler((id - first - 2 * names) % fillers),
        }
    }
}

const DEFAULT_HINT: &str = "builtin:retrieval and builtin:retrieval:llama-3-8b work";

/// A token as the circuit sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Key(usize),
    Value(usize),
    Filler(usize),
}

fn spec(name: &str, sizes: &Sizes, clock: &Clock) -> ModelSpec {
    let Sizes { vocab, hidden, layers, q_heads, kv_heads, head_dim, intermediate } = *sizes;
    ModelSpec {
        name: name.into(),
        architecture: Architecture::Llama,
        vocab,
        hidden,
        layers,
        q_heads,
        kv_heads,
        head_dim,
        intermediate,
        norm_eps: 1e-5,
        rope: Rope { theta: clock.theta(), scaling: RopeScaling::Default },
        max_position: clock.max_position(),
        tied: false,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        qk_norm: false,
        windows: vec![None; layers],
        dtype: DType::Bf16,
        bos: Some(BOS),
        eos: Vec::new(),
    }
}
