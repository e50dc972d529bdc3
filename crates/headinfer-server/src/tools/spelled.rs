//! A call that a grammar spells: it is told while it is made, for its arguments may be long.

use super::Said;

/// How far a call is. It is `{"name": "NAME", "KEY": ARGUMENTS}` and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelled {
    /// Up to the arguments.
    Head,
    /// Within so many braces and brackets.
    Arguments { depth: usize, string: bool, escaped: bool },
    /// After the arguments.
    Tail,
}

impl Spelled {
    /// One step through what is `held` of a call; the next stage when there may be another step.
    pub(super) fn step(self, key: &str, held: &mut String, said: &mut Vec<Said>) -> Option<Self> {
        match self {
            Self::Head => {
                let mark = format!("\"{key}\": ");
                let end = held.find(&mark)? + mark.len();
                let head: String = held.drain(..end).collect();
                said.push(Said::Call(head.split('"').nth(3)?.to_owned()));
                Some(Self::Arguments { depth: 0, string: false, escaped: false })
            }
            Self::Arguments { depth, string, escaped } => {
                let mut at = (depth, string, escaped);
                let end = held.char_indices().find(|(_, c)| ends(&mut at, *c)).map(|(i, c)| i + c.len_utf8());
                let piece: String = held.drain(..end.unwrap_or(held.len())).collect();
                if !piece.is_empty() {
                    said.push(Said::Arguments(piece));
                }
                let (depth, string, escaped) = at;
                Some(if end.is_some() { Self::Tail } else { Self::Arguments { depth, string, escaped } })
            }
            Self::Tail => None,
        }
    }
}

/// Goes on by a character of JSON; whether it ends the value.
fn ends((depth, string, escaped): &mut (usize, bool, bool), c: char) -> bool {
    match c {
        _ if *escaped => *escaped = false,
        '\\' if *string => *escaped = true,
        '"' => *string = !*string,
        _ if *string => {}
        '{' | '[' => *depth += 1,
        '}' | ']' => *depth = depth.saturating_sub(1),
        _ => {}
    }
    *depth == 0 && !*string && matches!(c, '}' | ']')
}
