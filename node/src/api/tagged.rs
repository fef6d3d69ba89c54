//! Entity tags of what a request changes: whoever names the one that it was shown changes nothing
//! that it has not seen (RFC 9110, 8.8.3 and 13.1.1).
//!
//! Non-goal: answers that need not be sent again; whoever has one asks for it to change it.

use axum::Json;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;
use shoal_metadata::encode_row;

use crate::http::problem::Problem;
use crate::http::signature::{Answer, Outcome, Schemas};

const HASH_CHARACTERS: usize = 32;

/// In its quotes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntityTag(String);

impl EntityTag {
    /// Another one for anything else. A node of another version may give the same content another
    /// one, so it is compared with what was shown, and never kept.
    pub fn of<T: Serialize>(content: &T) -> Self {
        let hash = blake3::hash(&encode_row(content)).to_hex();
        Self(format!("\"{}\"", &hash[..HASH_CHARACTERS]))
    }

    /// # Errors
    /// 412 where `If-Match` names others only.
    pub fn check(&self, headers: &HeaderMap) -> Result<(), Problem> {
        if !headers.contains_key(header::IF_MATCH) {
            return Ok(());
        }
        let named = headers.get_all(header::IF_MATCH).iter().filter_map(|text| text.to_str().ok());
        let mut named = named.flat_map(|text| text.split(',')).map(str::trim);
        if named.any(|named| named == "*" || named == self.0) {
            return Ok(());
        }
        Err(Problem::new(
            StatusCode::PRECONDITION_FAILED,
            "changed",
            "it was changed since If-Match's tag was given; look at it again",
        ))
    }
}

/// An answer with the tag of what may be changed of it.
#[derive(Debug)]
pub struct Tagged<T>(pub EntityTag, pub T);

impl<T: Serialize> IntoResponse for Tagged<T> {
    fn into_response(self) -> Response {
        let Self(EntityTag(tag), body) = self;
        ([(header::ETAG, tag)], Json(body)).into_response()
    }
}

impl<T: JsonSchema> Outcome for Tagged<T> {
    fn describe(schemas: &mut Schemas) -> Answer {
        Json::<T>::describe(schemas)
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn a_condition_holds_for_its_own_tag_for_any_and_where_there_is_none() {
        let tag = EntityTag::of(&("a", 1));
        assert_ne!(tag, EntityTag::of(&("a", 2)));
        let with = |texts: &[String]| {
            let mut headers = HeaderMap::new();
            for text in texts {
                headers.append(header::IF_MATCH, HeaderValue::from_str(text).unwrap());
            }
            tag.check(&headers).map_err(|problem| problem.status.as_u16())
        };
        let own = tag.0.clone();
        let others = [own.clone(), "*".into(), format!("\"x\", {own}")];
        for text in others {
            assert_eq!(with(std::slice::from_ref(&text)), Ok(()), "{text}");
        }
        assert_eq!(with(&[]), Ok(()));
        assert_eq!(with(&["\"x\"".into(), own.clone()]), Ok(()));
        // A weak one does not say that it is the same.
        for text in ["\"x\"".to_owned(), format!("W/{own}"), String::new()] {
            assert_eq!(with(std::slice::from_ref(&text)), Err(412), "{text}");
        }
    }
}
