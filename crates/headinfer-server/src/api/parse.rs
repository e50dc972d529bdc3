//! JSON of a body. A key that is there twice is refused: two readers of such a body would see different requests.

use std::fmt;

use axum::http::StatusCode;
use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::ApiError;
use super::fields::brief;

/// # Errors
/// 400, also for what is nested deeper than serde_json follows.
pub(super) fn parse(body: &[u8]) -> Result<Value, ApiError> {
    let read = serde_json::from_slice(body).map(|Unique(value)| value);
    read.map_err(|e| ApiError::new(StatusCode::BAD_REQUEST, format!("the body is not JSON: {e}")))
}

/// A value without a key twice.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Reader.deserialize(from).map(Self)
    }
}

#[derive(Clone, Copy)]
struct Reader;

impl<'de> DeserializeSeed<'de> for Reader {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number is not finite"))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(format!("the key '{}' is there twice", brief(&key))));
            }
            map.insert(key, entries.next_value_seed(self)?);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_read_as_it_is_and_a_key_is_there_once() {
        for text in [r#"{"a":[1,-2,0.1,18446744073709551615,true,null,"\u00e9"],"b":{"a":{}}}"#, "7", "[[]]"]
        {
            assert_eq!(parse(text.as_bytes()).unwrap(), serde_json::from_str::<Value>(text).unwrap());
        }
        for (text, word) in [
            (r#"{"a": 1, "b": 2, "a": 1}"#, "'a' is there twice"),
            (r#"{"m": [{"a": 1, "\u0061": 2}]}"#, "'a' is there twice"),
            ("{\"a\": NaN}", "expected value"),
            ("{} {}", "trailing"),
            ("1e999", "out of range"),
        ] {
            let error = parse(text.as_bytes()).unwrap_err().body();
            assert!(error["error"]["message"].as_str().unwrap().contains(word), "{error}");
        }
        assert!(parse("[".repeat(1000).as_bytes()).is_err());
    }
}
