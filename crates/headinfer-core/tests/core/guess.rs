//! Guesses: a row has the same bits in any company, and no guess, right or wrong, changes what is generated.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use headinfer_core::backend::BackendError;
use headinfer_core::cpu::kernels::Isa;
use headinfer_core::cpu::{Cpu, CpuOptions};
use headinfer_core::engine::generate::{Finish, Limits, generate};
use headinfer_core::engine::guess::{Counts, Guesser, Lookup, Pace, Speculation};
use headinfer_core::engine::sample::{Sampler, Sampling, TokenMask};
use headinfer_core::engine::{Decoder, EngineError, Session};
use headinfer_core::model::random::random_weights;
use headinfer_core::model::retrieval::{Retrieval, retrieval_spec, retrieval_weights};
use headinfer_core::model::spec::ModelSpec;
use headinfer_core::niah::{Request as Hidden, code_haystack};
use headinfer_core::plan::{DeviceKind, Overrides, PlacementMode, Plan, Request, SPLIT, Schedule};

use crate::around::{Around, Surrounded};
use crate::placement::{bounded, cases, random_request};
use crate::run::{logits, open};
use crate::support::{Draw, request, slow_link, stepwise, tiny};

#[test]
fn a_row_has_the_same_bits_in_any_company() {
    let mut draw = Draw(31);
    for case in cases() {
        for round in 0..8 {
            // From nothing, from the middle of a split, across the end of one, and from its start.
            let seam = SPLIT * (1 + draw.below(case.ids.len() / SPLIT));
            let past = [0, seam - 100, seam - draw.below(30), seam][round % 4].min(case.ids.len());
            let request = match round {
                0..4 => bounded(&case, Overrides::default()),
                _ => random_request(&case, &mut draw),
            };
            let isa = Some(draw.of(&Isa::available()));
            let options = CpuOptions { isa, ..CpuOptions::default() };
            let text: Vec<u32> = (0..60).map(|_| draw.below(case.spec.vocab) as u32).collect();
            let run = |rows: &mut dyn FnMut() -> usize| {
                let mut session = open(&case.spec, &case.weights, &request, &options);
                if past > 0 {
                    logits(&mut session, &case.ids[..past], 1);
                }
                stepwise(&mut session, &text, rows)
            };
            let alone = run(&mut || 1);
            let most = session_rows(&case.spec, &request);
            let together = run(&mut || 1 + draw.below(most));
            assert!(alone == together, "past {past} {options:?} {:?}", request.overrides);
        }
    }
}

fn session_rows(spec: &ModelSpec, request: &Request) -> usize {
    let plan = Plan::new(spec, request).unwrap();
    plan.knobs().logit_rows.min(plan.knobs().chunk)
}

/// Proposes what it was told will come, or what will surely not.
struct Told {
    text: Vec<u32>,
    made: usize,
    /// Added to each token, modulo the vocabulary.
    wrong_by: u32,
    /// Every so many tokens, all are wrong.
    lapse: usize,
}

const VOCAB: u32 = 97;

impl Guesser for Told {
    fn push(&mut self, _: u32) {
        self.made += 1;
    }

    fn guess(&self, most: usize, to: &mut Vec<u32>) -> usize {
        let left = &self.text[self.made.min(self.text.len())..];
        let one = |(i, id): (usize, &u32)| {
            let lapsed = self.lapse > 0 && (self.made + i).is_multiple_of(self.lapse);
            (id + self.wrong_by + u32::from(lapsed)) % VOCAB
        };
        to.extend(left.iter().take(most).enumerate().map(one));
        8
    }

    fn bytes(&self) -> usize {
        0
    }
}

/// Allows every token but those that leave the same remainder as the one before.
struct Alternating {
    last: u32,
    left: usize,
}

impl TokenMask for Alternating {
    fn apply(&mut self, scores: &mut [f32]) -> Result<(), String> {
        let last = self.last % 3;
        scores.iter_mut().skip(last as usize).step_by(3).for_each(|score| *score = f32::NEG_INFINITY);
        Ok(())
    }

    fn chosen(&mut self, id: u32) -> Result<bool, String> {
        self.last = id;
        self.left -= 1;
        Ok(self.left == 0)
    }
}

/// How a generation is asked for.
#[derive(Clone, Debug)]
struct Ask {
    sampling: Sampling,
    limits: Limits,
    masked: Option<usize>,
    /// The sink has enough after so many.
    enough: usize,
}

/// All that a generation leaves behind.
#[derive(Debug, PartialEq)]
struct Left {
    made: Vec<u32>,
    finish: Option<Finish>,
    tokens: Vec<u32>,
    clean: usize,
    logits: Vec<f32>,
}

fn run(
    session: &mut Session,
    prompt: usize,
    first: &[f32],
    ask: &Ask,
    decoder: impl FnOnce(&Session) -> Decoder,
) -> (Left, Counts) {
    session.rewind(prompt);
    let mut decoder = decoder(session);
    let mask = ask.masked.map(|left| Box::new(Alternating { last: 0, left }) as Box<dyn TokenMask>);
    let mut sampler = Sampler::new(ask.sampling.clone(), first.len()).masked(mask);
    let mut made = Vec::new();
    let mut sink = |id| {
        made.push(id);
        if made.len() == ask.enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let finish = match generate(session, &mut decoder, &mut sampler, &ask.limits, &mut sink) {
        Ok(finish) => Some(finish),
        Err(EngineError::Mask(_)) => None,
        Err(error) => panic!("{error}"),
    };
    let (tokens, logits) = (session.tokens().to_vec(), decoder.logits().to_vec());
    (Left { made, finish, tokens, clean: session.clean(), logits }, decoder.counts())
}

fn small(context: usize, chunk: usize) -> Session {
    let spec = tiny(2, 4, 2, 16);
    let weights = Arc::new(random_weights(&spec, 5));
    let overrides = Overrides { chunk: Some(chunk), tile: Some(256), ..Overrides::default() };
    let request =
        Request { placement: PlacementMode::Offload, overrides, ..request(DeviceKind::Cpu, context) };
    open(&spec, &weights, &request, &CpuOptions::default())
}

fn asks(draw: &mut Draw) -> Vec<Ask> {
    let greedy = Sampling::default();
    let warm = Sampling { temperature: 0.7, seed: 3, top_p: Some(0.9), ..greedy.clone() };
    let hot = Sampling { temperature: 1.5, seed: 9, top_k: Some(40), ..greedy.clone() };
    let shy = Sampling { repetition_penalty: Some(1.3), min_p: Some(0.02), ..warm.clone() };
    let mut all = Vec::new();
    for sampling in [greedy.clone(), warm, hot, shy, Sampling { repetition_penalty: Some(1.2), ..greedy }] {
        for masked in [None, Some(20 + draw.below(60))] {
            let limits = Limits { max_tokens: 1 + draw.below(70), stop_tokens: vec![draw.below(97) as u32] };
            let enough = if draw.below(2) == 0 { 1 + draw.below(60) } else { usize::MAX };
            all.push(Ask { sampling: sampling.clone(), limits, masked, enough });
        }
    }
    all
}

#[test]
fn guesses_never_change_what_is_generated() {
    let mut draw = Draw(32);
    let mut accepted = 0;
    for (context, chunk) in [(300, 32), (330, 16), (290, 5), (400, 2)] {
        let mut session = small(context, chunk);
        // A prompt that repeats itself, up to the end of a split.
        let piece: Vec<u32> = (0..30).map(|_| draw.below(97) as u32).collect();
        let prompt: Vec<u32> = piece.iter().cycle().take(240 + draw.below(20)).copied().collect();
        let first = logits(&mut session, &prompt, 1);
        for ask in asks(&mut draw) {
            let plain = |session: &Session| Decoder::plain(session, &first);
            let (expected, counts) = run(&mut session, prompt.len(), &first, &ask, plain);
            assert_eq!((counts.guessed, counts.accepted), (0, 0));
            let told = |wrong_by, lapse| Told { text: expected.made.clone(), made: 0, wrong_by, lapse };
            for (guesser, fixed) in [
                (told(0, 0), Some(15)),
                (told(0, 3), Some(15)),
                (told(0, 7), None),
                (told(1, 0), Some(4)),
                (told(0, 0), Some(1)),
            ] {
                let wrong = guesser.wrong_by > 0;
                let guessing =
                    |session: &Session| Decoder::guessing(session, &first, Box::new(guesser), fixed);
                let (got, counts) = run(&mut session, prompt.len(), &first, &ask, guessing);
                assert_eq!(got, expected, "{ask:?} {fixed:?}");
                assert!(counts.accepted <= counts.guessed && (!wrong || counts.accepted == 0), "{counts:?}");
                accepted += counts.accepted;
            }
            for speculation in [Speculation::Auto, Speculation::Off, Speculation::Fixed(6)] {
                let looking = |session: &Session| Decoder::new(session, &first, speculation);
                let (got, counts) = run(&mut session, prompt.len(), &first, &ask, looking);
                assert_eq!(got, expected, "{ask:?} {speculation:?}");
                assert!(speculation != Speculation::Off || counts.guessed == 0);
            }
        }
    }
    assert!(accepted > 1000, "only {accepted} guesses were right: the test sees little");
}

/// The likeliest token is the number of heads that the CPU attends to in the step: as if it rounded as far off as that.
struct Telling {
    plan: Arc<Plan>,
    share: usize,
    told: Vec<f32>,
}

impl Around for Telling {
    fn before_step(&mut self, _: &mut Cpu, schedule: &Schedule) -> Result<(), BackendError> {
        self.share = self.plan.host_attended_heads(&schedule.step);
        Ok(())
    }

    fn logits<'a>(&'a mut self, computed: &'a [f32]) -> &'a [f32] {
        self.told = computed.to_vec();
        self.told.chunks_exact_mut(VOCAB as usize).for_each(|row| row[self.share] = 1e3);
        &self.told
    }
}

/// A plan that gives the CPU more heads in every split.
fn balanced(context: usize) -> (ModelSpec, Request) {
    let spec = tiny(2, 8, 8, 16);
    let overrides = Overrides { chunk: Some(128), balance_host: true, ..Overrides::default() };
    let (placement, machine) = (PlacementMode::Offload, slow_link(DeviceKind::Cpu));
    (spec, Request { placement, overrides, machine, ..request(DeviceKind::Cpu, context) })
}

#[test]
fn no_pass_goes_on_where_another_share_of_heads_is_the_cpus() {
    let mut draw = Draw(34);
    let (spec, request) = balanced(1000);
    let plan = Arc::new(Plan::new(&spec, &request).unwrap());
    let weights = Arc::new(random_weights(&spec, 5));
    let prompt: Vec<u32> = (0..200).map(|_| draw.below(97) as u32).collect();
    let limits = Limits { max_tokens: 790, stop_tokens: Vec::new() };
    let ask = Ask { sampling: Sampling::default(), limits, masked: None, enough: usize::MAX };
    for telling in [true, false] {
        let mut session = open(&spec, &weights, &request, &CpuOptions::default());
        if telling {
            let inner = Cpu::open(plan.clone(), weights.clone(), &CpuOptions::default()).unwrap();
            let around = Telling { plan: plan.clone(), share: 0, told: Vec::new() };
            session = Session::new(plan.clone(), Box::new(Surrounded { inner, around }));
        }
        let first = logits(&mut session, &prompt, 1);
        let (plain, _) = run(&mut session, 200, &first, &ask, |s| Decoder::plain(s, &first));
        let shares: BTreeSet<_> = plain.made.iter().collect();
        assert!(!telling || shares.len() > 2, "the share hardly moves: {shares:?}");
        for (wrong_by, lapse, fixed) in [(0, 0, Some(15)), (0, 5, Some(15)), (0, 3, None), (1, 0, Some(6))] {
            let told = Told { text: plain.made.clone(), made: 0, wrong_by, lapse };
            let guessing = |session: &Session| Decoder::guessing(session, &first, Box::new(told), fixed);
            let (guessed, counts) = run(&mut session, 200, &first, &ask, guessing);
            assert_eq!(guessed, plain, "{fixed:?}");
            assert!(wrong_by > 0 || fixed.is_none() || counts.accepted > 500, "{counts:?}");
        }
        let looking = |session: &Session| Decoder::new(session, &first, Speculation::Auto);
        assert_eq!(run(&mut session, 200, &first, &ask, looking).0, plain);
    }
}

#[test]
fn a_guesser_that_knows_saves_most_passes() {
    let mut session = small(400, 32);
    let first = logits(&mut session, &[1, 2, 3], 1);
    let limits = Limits { max_tokens: 65, stop_tokens: Vec::new() };
    let ask = Ask { sampling: Sampling::default(), limits, masked: None, enough: usize::MAX };
    let (expected, counts) = run(&mut session, 3, &first, &ask, |s| Decoder::plain(s, &first));
    assert_eq!((counts.passes, counts.tokens_per_pass()), (64, 1.0));
    let told = Told { text: expected.made.clone(), made: 0, wrong_by: 0, lapse: 0 };
    let guessing = |session: &Session| Decoder::guessing(session, &first, Box::new(told), Some(15));
    let (_, counts) = run(&mut session, 3, &first, &ask, guessing);
    assert_eq!(counts, Counts { passes: 4, drafts: 4, guessed: 60, accepted: 60 });
    assert_eq!(counts.tokens_per_pass(), 16.0);
}

/// A step of the model below costs about the same with a few more rows.
fn flat() -> Plan {
    let request = Request { placement: PlacementMode::Offload, ..request(DeviceKind::Cuda, 1 << 20) };
    Plan::new(&crate::support::llama_3_8b(), &request).unwrap()
}

#[test]
fn wrong_guesses_are_soon_given_up_and_right_ones_grow() {
    let (plan, past) = (flat(), 1 << 19);
    let mut pace = Pace::new(&plan, past, 16);
    assert!(pace.worth(2, 15) > 0, "nothing is tried");
    (0..60).for_each(|_| pace.guessed(2, false));
    assert_eq!(pace.worth(2, 15), 0);
    assert!(pace.worth(8, 15) > 8, "short matches say nothing of long ones");
    for matched in [2, 4, 8, 16, 32] {
        (0..100).for_each(|_| pace.guessed(matched, true));
    }
    assert_eq!((pace.worth(2, 15), pace.worth(2, 7)), (15, 7));
}

#[test]
fn rows_that_take_as_long_as_steps_are_not_worth_it() {
    let (plan, past) = (flat(), 1 << 19);
    let mut pace = Pace::new(&plan, past, 16);
    for _ in 0..40 {
        (1..=16).for_each(|rows| pace.took(&plan, past, rows, rows as f64));
    }
    assert_eq!(pace.worth(2, 15), 0);
    // One slow pass is no verdict.
    let mut pace = Pace::new(&plan, past, 16);
    (0..20).for_each(|_| pace.took(&plan, past, 1, 1.0));
    let before = pace.worth(8, 15);
    pace.took(&plan, past, before + 1, 100.0);
    assert!(before > 0 && pace.worth(8, 15) > 0);
}

#[test]
fn the_retrieval_model_is_told_from_its_own_text() {
    let spec = retrieval_spec(None).unwrap();
    let model = Retrieval::of(&spec).unwrap();
    let hidden = Hidden { context: 1000, depths: vec![0.5], seed: 1 };
    let haystack = code_haystack(&model, &hidden, 40).unwrap();
    let question = &haystack.questions[0];
    let request = request(DeviceKind::Cpu, 1400);
    let weights = Arc::new(retrieval_weights(&spec));
    let mut session = open(&spec, &weights, &request, &CpuOptions::default());
    // The answer stands in the text already, after what it is found from.
    let prompt = [&haystack.ids[..], &question.answer, &question.ids].concat();
    let first = logits(&mut session, &prompt, 1);
    let limits = Limits { max_tokens: 40, stop_tokens: Vec::new() };
    let ask = Ask { sampling: Sampling::default(), limits, masked: None, enough: usize::MAX };
    let (plain, _) = run(&mut session, prompt.len(), &first, &ask, |s| Decoder::plain(s, &first));
    assert_eq!(plain.made, question.answer);
    let looking = |session: &Session| Decoder::new(session, &first, Speculation::Fixed(15));
    let (guessed, counts) = run(&mut session, prompt.len(), &first, &ask, looking);
    assert_eq!(guessed, plain);
    assert!(counts.tokens_per_pass() > 5.0, "{counts:?}");
}

#[test]
fn a_text_of_its_own_gives_few_guesses() {
    let mut draw = Draw(33);
    let text: Vec<u32> = (0..20_000).map(|_| draw.below(4096) as u32).collect();
    let mut lookup = Lookup::default();
    let mut found = 0;
    for id in text {
        lookup.push(id);
        found += usize::from(lookup.guess(1, &mut Vec::new()) > 0);
    }
    assert!(found < 40, "{found}");
}
