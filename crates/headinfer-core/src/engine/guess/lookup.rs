//! Prompt lookup: what followed when the text last ended in the same tokens, after the longest of a few lengths that
//! was there before. One table for each length, of the last position of each sequence: with the text at most 40
//! bytes a token.

use super::Guesser;

/// Lengths of the sequences that are looked for, in this order.
const GRAMS: [usize; 3] = [8, 4, 2];
/// Most tokens by which a match is told to be long.
const REACH: usize = 32;
/// Positions are 32-bit: a text that reaches this length gets no more guesses.
const TOKENS_MAX: usize = u32::MAX as usize;
/// Slots of a new table, a power of two.
const SLOTS_MIN: usize = 1 << 6;

/// A text and where its sequences were last.
#[derive(Debug)]
pub struct Lookup {
    text: Vec<u32>,
    tables: [Table; GRAMS.len()],
}

impl Default for Lookup {
    fn default() -> Self {
        Self { text: Vec::new(), tables: GRAMS.map(Table::new) }
    }
}

impl Lookup {
    /// Of a text so far.
    pub fn new(text: &[u32]) -> Self {
        let mut lookup = Self::default();
        text.iter().for_each(|id| lookup.push(*id));
        lookup
    }

    /// Tokens that the text's end shares with what ends at `end`, up to [`REACH`].
    fn shared(&self, end: usize) -> usize {
        let last = self.text.iter().rev();
        self.text[..end].iter().rev().zip(last).take(REACH).take_while(|(a, b)| a == b).count()
    }
}

impl Guesser for Lookup {
    fn push(&mut self, id: u32) {
        if self.text.len() < TOKENS_MAX {
            // Only now do the sequences that end here have a successor.
            self.tables.iter_mut().for_each(|table| table.add_last(&self.text));
            self.text.push(id);
        }
    }

    fn guess(&self, most: usize, to: &mut Vec<u32>) -> usize {
        if most == 0 || self.text.len() == TOKENS_MAX {
            return 0;
        }
        let Some(end) = self.tables.iter().find_map(|table| table.last(&self.text)) else { return 0 };
        let first = to.len();
        for at in end..end + most {
            // Past the text's end what was guessed repeats itself.
            let id = self.text.get(at).copied().unwrap_or_else(|| to[first + at - self.text.len()]);
            to.push(id);
        }
        self.shared(end)
    }

    fn bytes(&self) -> usize {
        let slots: usize = self.tables.iter().map(|table| table.slots.capacity()).sum();
        size_of::<u32>() * (self.text.capacity() + slots)
    }
}

/// The last end of each sequence of `length` tokens that has a successor, found by its hash: open addressing, at most
/// three quarters full. 0 is a free slot, as no sequence ends there.
#[derive(Debug)]
struct Table {
    length: usize,
    slots: Vec<u32>,
    used: usize,
}

impl Table {
    fn new(length: usize) -> Self {
        Self { length, slots: vec![0; SLOTS_MIN], used: 0 }
    }

    /// Where the sequence at the text's end last ended before.
    fn last(&self, text: &[u32]) -> Option<usize> {
        let sequence = text.last_chunk_of(self.length)?;
        match self.slots[self.find(text, sequence)] {
            0 => None,
            end => Some(end as usize),
        }
    }

    /// Takes in the sequence at the text's end.
    fn add_last(&mut self, text: &[u32]) {
        let Some(sequence) = text.last_chunk_of(self.length) else { return };
        let slot = self.find(text, sequence);
        self.used += usize::from(self.slots[slot] == 0);
        self.slots[slot] = text.len() as u32;
        if self.used * 4 > self.slots.len() * 3 {
            self.grow(text);
        }
    }

    /// The slot that holds `sequence`, or the free one where it belongs.
    fn find(&self, text: &[u32], sequence: &[u32]) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = hash(sequence) as usize & mask;
        loop {
            let end = self.slots[slot] as usize;
            if end == 0 || text[end - self.length..end] == *sequence {
                return slot;
            }
            slot = (slot + 1) & mask;
        }
    }

    fn grow(&mut self, text: &[u32]) {
        let larger = vec![0; 2 * self.slots.len()];
        for end in std::mem::replace(&mut self.slots, larger).into_iter().filter(|end| *end > 0) {
            let slot = self.find(text, &text[end as usize - self.length..end as usize]);
            self.slots[slot] = end;
        }
    }
}

trait LastChunk {
    /// The last `length` tokens, if there are so many.
    fn last_chunk_of(&self, length: usize) -> Option<&[u32]>;
}

impl LastChunk for [u32] {
    fn last_chunk_of(&self, length: usize) -> Option<&[u32]> {
        self.len().checked_sub(length).map(|from| &self[from..])
    }
}

/// Multiplicative (Knuth, TAOCP 3, 6.4), the high bits folded onto the low ones that choose the slot.
fn hash(sequence: &[u32]) -> u64 {
    let mixed = sequence
        .iter()
        .fold(0u64, |h, id| (h.rotate_left(26) ^ u64::from(*id)).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed ^ (mixed >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The end of the last earlier occurrence, by looking at all of them.
    fn naive(text: &[u32]) -> Option<usize> {
        GRAMS.iter().find_map(|length| {
            let sequence = text.last_chunk_of(*length)?;
            (*length..text.len()).rev().find(|end| text[end - length..*end] == *sequence)
        })
    }

    proptest! {
        #[test]
        fn the_index_finds_what_a_search_finds(
            text in prop::collection::vec(0u32..4, 0..300),
            wide in prop::collection::vec(0u32..40, 0..300),
            most in 0usize..20,
        ) {
            for text in [text, wide] {
                let mut lookup = Lookup::default();
                for (at, id) in text.iter().enumerate() {
                    lookup.push(*id);
                    let text = &text[..=at];
                    let mut guesses = Vec::new();
                    let matched = lookup.guess(most, &mut guesses);
                    let Some(end) = naive(text).filter(|_| most > 0) else {
                        prop_assert!(guesses.is_empty() && matched == 0);
                        continue;
                    };
                    let mut whole = text.to_vec();
                    (0..most).for_each(|i| whole.push(whole[end + i]));
                    prop_assert_eq!(&guesses, &whole[text.len()..]);
                    let shared = (1..=REACH.min(end)).take_while(|i| text[end - i] == text[text.len() - i]);
                    prop_assert_eq!(matched, shared.count());
                }
            }
        }
    }

    #[test]
    fn memory_is_some_bytes_a_token() {
        // All sequences differ: the most there can be of them.
        const TOKENS: usize = 100_000;
        let lookup = Lookup::new(&(0..TOKENS as u32).collect::<Vec<_>>());
        assert!(lookup.bytes() <= 40 * TOKENS, "{}", lookup.bytes());
    }
}
