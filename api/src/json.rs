//! JSON that clients send.

use std::fmt;
use std::marker::PhantomData;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, DeserializeOwned, Deserializer, MapAccess, Visitor};

use crate::error::ApiError;

/// Largest body that is read whole and is not an image (settings of topics, of keys and such), bytes.
pub(crate) const SETTINGS_BYTES_MAX: usize = 64 * 1024;

/// A body of settings: one JSON object.
pub(crate) struct Settings<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Settings<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let body = Bytes::from_request(request, state).await.map_err(|rejection| {
            if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
                return ApiError::SettingsTooLarge { limit: SETTINGS_BYTES_MAX };
            }
            ApiError::BodyBroken(rejection.body_text())
        })?;
        parse(&body).map(Self)
    }
}

/// Reads a body that must be one object.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    let parsed: Result<Object<T>, _> = serde_json::from_slice(body);
    let Object(value) = parsed.map_err(|error| ApiError::Json(error.to_string()))?;
    if serde_json::from_slice(body).is_ok_and(|value| has_nul(&value)) {
        return Err(ApiError::Json("a text in it holds a NUL character; remove it".into()));
    }
    Ok(value)
}

/// Whether any text in it contains NUL, which databases cannot store.
fn has_nul(value: &serde_json::Value) -> bool {
    match value {
        serde_json::Value::String(text) => text.contains('\0'),
        serde_json::Value::Array(values) => values.iter().any(has_nul),
        serde_json::Value::Object(fields) => fields.iter().any(|(name, value)| name.contains('\0') || has_nul(value)),
        _ => false,
    }
}

/// A struct that must be written as an object. By default serde also accepts an array, field by field, which no
/// client intends.
pub(crate) struct Object<T>(pub(crate) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields(PhantomData))
    }
}

struct Fields<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Object)
    }
}

/// For `deserialize_with`.
pub(crate) fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Object::deserialize(deserializer).map(|Object(value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Pair {
        a: u8,
        b: u8,
    }

    #[test]
    fn an_object_is_no_array_and_says_a_thing_once() {
        assert_eq!(parse::<Pair>(br#"{"a": 1, "b": 2}"#).expect("good"), Pair { a: 1, b: 2 });
        for (body, words) in [
            ("[1, 2]", "an object"),
            (r#"{"a": 1, "b": 2, "a": 3}"#, "duplicate field `a`"),
            (r#"{"a": 1, "b": 2, "c": 3}"#, "unknown field `c`"),
            ("", "EOF"),
            (r#"{"a": 1, "b": 2, "\u0000": 3}"#, "unknown field"),
        ] {
            let error = parse::<Pair>(body.as_bytes()).expect_err(body).to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
