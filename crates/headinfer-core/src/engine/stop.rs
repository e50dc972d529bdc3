//! Stop strings that may straddle the pieces a text comes in.

/// Most stop strings, and bytes of each.
pub const STOPS_MAX: usize = 16;
/// See [`STOPS_MAX`].
pub const STOP_BYTES_MAX: usize = 1024;

/// What a piece released.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Emit {
    /// Text that is certainly before any stop string.
    pub text: String,
    /// Which stop string was found; nothing comes after.
    pub hit: Option<usize>,
}

/// Holds text back as long as it may begin a stop string.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
    done: bool,
}

impl StopMatcher {
    /// A matcher for `stops`.
    ///
    /// # Errors
    /// A sentence, when there are too many, or one is empty or too long.
    pub fn new(stops: Vec<String>) -> Result<Self, String> {
        if stops.len() > STOPS_MAX {
            return Err(format!("at most {STOPS_MAX} stop strings, not {}", stops.len()));
        }
        if let Some(bad) = stops.iter().find(|s| s.is_empty() || s.len() > STOP_BYTES_MAX) {
            return Err(format!("a stop string has 1..={STOP_BYTES_MAX} bytes, not {}", bad.len()));
        }
        Ok(Self { stops, held: String::new(), done: false })
    }

    /// Takes the next piece of text. Of several stop strings the one that begins first wins; of those, the first
    /// given.
    pub fn push(&mut self, piece: &str) -> Emit {
        if self.done {
            return Emit::default();
        }
        self.held.push_str(piece);
        let found = self.stops.iter().enumerate().filter_map(|(i, s)| self.held.find(s).map(|at| (at, i)));
        if let Some((at, i)) = found.min() {
            // An earlier start that is still only a beginning must be waited for.
            if self.open_from() >= at {
                self.done = true;
                let text = self.held[..at].to_owned();
                self.held.clear();
                return Emit { text, hit: Some(i) };
            }
        }
        let from = self.open_from();
        let rest = self.held.split_off(from);
        Emit { text: std::mem::replace(&mut self.held, rest), hit: None }
    }

    /// What is left when no more text comes.
    pub fn finish(&mut self) -> Emit {
        if self.done {
            return Emit::default();
        }
        self.done = true;
        let found = self.stops.iter().enumerate().filter_map(|(i, s)| self.held.find(s).map(|at| (at, i)));
        let hit = found.min();
        if let Some((at, _)) = hit {
            self.held.truncate(at);
        }
        Emit { text: std::mem::take(&mut self.held), hit: hit.map(|(_, i)| i) }
    }

    /// Where the first suffix begins that is the beginning of a stop string.
    fn open_from(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let bytes = self.held.as_bytes();
        let begins = |from: &usize| self.stops.iter().any(|s| s.as_bytes().starts_with(&bytes[*from..]));
        let first = bytes.len().saturating_sub(longest.saturating_sub(1));
        (first..bytes.len()).filter(|i| self.held.is_char_boundary(*i)).find(begins).unwrap_or(bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, Option<usize>) {
        let mut matcher = StopMatcher::new(stops.iter().map(|s| (*s).to_owned()).collect()).unwrap();
        let mut text = String::new();
        for piece in pieces {
            let emit = matcher.push(piece);
            text += &emit.text;
            if emit.hit.is_some() {
                return (text, emit.hit);
            }
        }
        let emit = matcher.finish();
        (text + &emit.text, emit.hit)
    }

    #[test]
    fn a_stop_across_pieces_is_found_and_not_shown() {
        assert_eq!(run(&["</s>"], &["hello <", "/", "s> more"]), ("hello ".into(), Some(0)));
        assert_eq!(run(&["</s>"], &["a <", "/b"]), ("a </b".into(), None));
        assert_eq!(run(&["é!"], &["caf", "é", "!"]), ("caf".into(), Some(0)));
    }

    #[test]
    fn bad_stops_are_refused() {
        assert!(StopMatcher::new(vec![String::new()]).is_err());
        assert!(StopMatcher::new(vec!["x".repeat(STOP_BYTES_MAX + 1)]).is_err());
        assert!(StopMatcher::new(vec!["x".into(); STOPS_MAX + 1]).is_err());
    }

    proptest! {
        #[test]
        fn pieces_change_nothing(
            pieces in prop::collection::vec("[abé]{0,4}", 0..12),
            stops in prop::collection::vec("[abé]{1,3}", 0..3),
        ) {
            let whole: String = pieces.concat();
            let first = stops.iter().enumerate().filter_map(|(i, s)| whole.find(s.as_str()).map(|at| (at, i))).min();
            let stop_refs: Vec<&str> = stops.iter().map(String::as_str).collect();
            let piece_refs: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let (text, hit) = run(&stop_refs, &piece_refs);
            match first {
                // Text and stop agree with a search over the whole text.
                Some((at, _)) => prop_assert!(hit.is_some() && text == whole[..at]),
                None => prop_assert!(hit.is_none() && text == whole),
            }
        }
    }
}
