//! Haystacks in English for any model: facts of the form "The secret number of Lima is 48213." among sentences of
//! a small grammar.

use super::{Draws, Haystack, NiahError, Question, Request, check};

/// A text of at most the requested length with one fact to each depth, and a question for each. `encode` turns
/// text to ids without special tokens; `bos` is put first.
///
/// # Errors
/// [`NiahError`] naming what does not fit.
pub fn text_haystack(
    encode: &dyn Fn(&str) -> Vec<u32>,
    bos: Option<u32>,
    request: &Request,
) -> Result<Haystack, NiahError> {
    check(request)?;
    let (needles, max) = (request.depths.len(), CITIES.len());
    if needles > max {
        return Err(NiahError::Names { needles, max });
    }
    let mut draws = Draws::new(request.seed);
    let facts: Vec<Fact> = draws
        .distinct(needles, max)
        .into_iter()
        .map(|city| Fact { city: CITIES[city], number: 10_000 + draws.below(90_000) })
        .collect();
    let asked = request.depths.iter().zip(&facts);
    let questions: Vec<Question> =
        asked.map(|(depth, fact)| fact.question(*depth, encode)).collect::<Result<_, _>>()?;
    let hidden: Vec<Vec<u32>> = facts.iter().map(|fact| encode(&fact.needle())).collect();
    let longest = questions.iter().map(|q| q.ids.len() + q.answer.len()).max().unwrap_or(0);
    let fixed = bos.iter().len() + hidden.iter().map(Vec::len).sum::<usize>() + longest;
    let Some(filler) = request.context.checked_sub(fixed) else {
        return Err(NiahError::TooShort { needles, context: request.context, need: fixed });
    };
    let mut order: Vec<usize> = (0..needles).collect();
    order.sort_by(|a, b| request.depths[*a].total_cmp(&request.depths[*b]));
    let mut due = order.into_iter().peekable();
    let mut ids: Vec<u32> = bos.into_iter().collect();
    let mut written = 0;
    loop {
        let sentence = encode(&sentence(&mut draws));
        let is_last = sentence.is_empty() || written + sentence.len() > filler;
        // Nearest to its depth, between sentences; what is due when the text ends goes to the end.
        let reached = written as f64 + sentence.len() as f64 / 2.0;
        while let Some(i) = due.next_if(|i| is_last || request.depths[*i] * filler as f64 <= reached) {
            ids.extend_from_slice(&hidden[i]);
        }
        if is_last {
            break;
        }
        written += sentence.len();
        ids.extend(sentence);
    }
    Ok(Haystack { ids, questions, seed: request.seed })
}

struct Fact {
    city: &'static str,
    number: usize,
}

impl Fact {
    fn needle(&self) -> String {
        format!(" The secret number of {} is {}.", self.city, self.number)
    }

    /// The answer's ids are those that the number adds to the question's: whatever the tokenizer merges across
    /// the border is asked for.
    fn question(&self, depth: f64, encode: &dyn Fn(&str) -> Vec<u32>) -> Result<Question, NiahError> {
        let city = self.city;
        let asked = format!("\n\nWhat is the secret number of {city}?\nThe secret number of {city} is");
        let whole_text = format!("{asked} {}", self.number);
        let (mut ids, whole) = (encode(&asked), encode(&whole_text));
        let common = ids.iter().zip(&whole).take_while(|(a, b)| a == b).count();
        ids.truncate(common);
        let answer = whole[common..].to_vec();
        if ids.is_empty() || answer.is_empty() {
            return Err(NiahError::Tokenizer(whole_text));
        }
        Ok(Question { depth, ids, found_at: vec![depth; answer.len()], answer })
    }
}

fn sentence(draws: &mut Draws) -> String {
    let (a, b) = (draws.of(&PEOPLE), draws.of(&PEOPLE));
    let (verb, thing, kind) = (draws.of(&VERBS), draws.of(&THINGS), draws.of(&KINDS));
    let (place, time) = (draws.of(&PLACES), draws.of(&TIMES));
    match draws.below(4) {
        0 => format!(" {time}, the {a} {verb} a {kind} {thing} {place}."),
        1 => format!(" The {a} and the {b} {verb} the {thing} {place}."),
        2 => format!(" Nobody asked why the {kind} {a} {verb} the {thing}."),
        _ => format!(" It was {place}, where the {a} once {verb} a {thing}, that the {b} waited."),
    }
}

const CITIES: [&str; 48] = [
    "Lima", "Oslo", "Cairo", "Quito", "Hanoi", "Dakar", "Turin", "Perth", "Osaka", "Delhi", "Porto", "Riga",
    "Tunis", "Accra", "Bern", "Sofia", "Paris", "Rome", "Berlin", "Madrid", "London", "Vienna", "Prague",
    "Dublin", "Athens", "Warsaw", "Boston", "Denver", "Austin", "Sydney", "Lisbon", "Naples", "Geneva",
    "Zurich", "Moscow", "Kyoto", "Seoul", "Taipei", "Manila", "Nairobi", "Havana", "Bogota", "Santiago",
    "Toronto", "Chicago", "Helsinki", "Istanbul", "Jakarta",
];
const PEOPLE: [&str; 16] = [
    "baker", "teacher", "sailor", "painter", "farmer", "nurse", "clerk", "tailor", "miller", "judge",
    "singer", "driver", "gardener", "captain", "student", "doctor",
];
const VERBS: [&str; 12] = [
    "found",
    "sold",
    "carried",
    "painted",
    "repaired",
    "borrowed",
    "described",
    "lost",
    "drew",
    "measured",
    "bought",
    "hid",
];
const THINGS: [&str; 16] = [
    "lamp", "boat", "table", "letter", "clock", "violin", "basket", "map", "bridge", "ladder", "coat",
    "window", "kettle", "cart", "stone", "rope",
];
const KINDS: [&str; 12] = [
    "small", "red", "heavy", "broken", "quiet", "old", "green", "clever", "wooden", "tired", "bright",
    "plain",
];
const PLACES: [&str; 10] = [
    "near the river",
    "behind the mill",
    "in the market",
    "on the hill",
    "by the old wall",
    "under the trees",
    "at the harbour",
    "beside the road",
    "in the garden",
    "across the valley",
];
const TIMES: [&str; 8] = [
    "In the morning",
    "Before noon",
    "Last winter",
    "On a rainy day",
    "After the feast",
    "Late at night",
    "In early spring",
    "One evening",
];
