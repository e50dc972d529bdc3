//! Reads JSON, as far as the figures of runs need it.

use std::iter::Peekable;
use std::str::Chars;

/// Values inside one another at most.
const DEPTH_MAX: usize = 64;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Json {
    /// `null`, `true` or `false`, as written.
    Word(String),
    Number(f64),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    /// Reads one value, and nothing after it.
    ///
    /// # Errors
    /// What was expected where the text is none.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut reader = Reader { rest: text.chars().peekable() };
        let value = reader.value(0)?;
        reader.space();
        match reader.rest.next() {
            None => Ok(value),
            Some(c) => Err(format!("'{c}' after the end of the JSON")),
        }
    }

    /// The value at a path of field names and positions in lists: `rows.0.in_gb_s`.
    pub(crate) fn at(&self, path: &str) -> Option<&Self> {
        path.split('.').try_fold(self, |value, step| match value {
            Self::Object(fields) => fields.iter().find(|(name, _)| name == step).map(|(_, value)| value),
            Self::List(values) => values.get(step.parse::<usize>().ok()?),
            _ => None,
        })
    }
}

struct Reader<'a> {
    rest: Peekable<Chars<'a>>,
}

impl Reader<'_> {
    fn value(&mut self, depth: usize) -> Result<Json, String> {
        if depth > DEPTH_MAX {
            return Err(format!("JSON deeper than {DEPTH_MAX}"));
        }
        self.space();
        match self.rest.peek() {
            Some('{') => {
                let mut fields = Vec::new();
                self.items('}', |reader| {
                    let name = reader.text()?;
                    reader.expect(':')?;
                    fields.push((name, reader.value(depth + 1)?));
                    Ok(())
                })?;
                Ok(Json::Object(fields))
            }
            Some('[') => {
                let mut values = Vec::new();
                self.items(']', |reader| {
                    values.push(reader.value(depth + 1)?);
                    Ok(())
                })?;
                Ok(Json::List(values))
            }
            Some('"') => self.text().map(Json::Text),
            _ => self.word(),
        }
    }

    /// What lies between brackets, with commas between.
    fn items(
        &mut self,
        end: char,
        mut item: impl FnMut(&mut Self) -> Result<(), String>,
    ) -> Result<(), String> {
        self.rest.next();
        self.space();
        if self.rest.next_if_eq(&end).is_some() {
            return Ok(());
        }
        loop {
            item(self)?;
            self.space();
            match self.rest.next() {
                Some(',') => {}
                Some(c) if c == end => return Ok(()),
                _ => return Err(format!("a list or object without its '{end}'")),
            }
        }
    }

    fn text(&mut self) -> Result<String, String> {
        self.expect('"')?;
        let mut text = String::new();
        loop {
            match self.rest.next().ok_or("a string without its end")? {
                '"' => return Ok(text),
                '\\' => text.push(match self.rest.next().ok_or("a string without its end")? {
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    'u' => {
                        let code: String = self.rest.by_ref().take(4).collect();
                        let code = u32::from_str_radix(&code, 16).map_err(|_| "a wrong \\u in a string")?;
                        char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
                    }
                    other => other,
                }),
                c => text.push(c),
            }
        }
    }

    fn word(&mut self) -> Result<Json, String> {
        let mut word = String::new();
        while let Some(c) = self.rest.next_if(|c| c.is_ascii_alphanumeric() || "+-.".contains(*c)) {
            word.push(c);
        }
        match word.as_str() {
            "null" | "true" | "false" => Ok(Json::Word(word)),
            _ => word.parse().map(Json::Number).map_err(|_| format!("'{word}' where a value belongs")),
        }
    }

    fn expect(&mut self, c: char) -> Result<(), String> {
        self.space();
        self.rest.next_if_eq(&c).map(drop).ok_or_else(|| format!("no '{c}' where one belongs"))
    }

    fn space(&mut self) {
        while self.rest.next_if(|c| c.is_ascii_whitespace()).is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_their_path() {
        let json =
            Json::parse(r#" {"a": [1, {"b": -2.5e3}], "c": "x\"\u0041\n", "d": null, "e": {}} "#).unwrap();
        assert_eq!(json.at("a.1.b"), Some(&Json::Number(-2500.0)));
        assert_eq!(json.at("c"), Some(&Json::Text("x\"A\n".into())));
        assert_eq!(json.at("d"), Some(&Json::Word("null".into())));
        assert_eq!(json.at("e"), Some(&Json::Object(Vec::new())));
        for path in ["a.2", "a.x", "b", "c.d"] {
            assert_eq!(json.at(path), None, "{path}");
        }
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for text in ["", "{", "[1,]", "{\"a\" 1}", "\"a", "1 2", "nul", &"[".repeat(100)] {
            assert!(Json::parse(text).is_err(), "{text}");
        }
    }
}
