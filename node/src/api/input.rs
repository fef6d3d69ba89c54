//! What comes with a request, taken apart so that a mistake in it is answered with a `Problem`.

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, OptionalFromRequest, RawPathParams, Request};
use axum::http::request::Parts;
use schemars::JsonSchema;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use shoal_content::{DeploymentId, ImageId, UploadId};

use super::problem::missing;
use crate::http::problem::Problem;
use crate::http::signature::{Argument, Schemas, Signature};

/// A JSON body.
#[derive(Debug, FromRequest)]
#[from_request(via(axum::Json), rejection(Problem))]
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> OptionalFromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Option<Self>, Problem> {
        let found = <Json<T> as OptionalFromRequest<S>>::from_request(request, state).await?;
        Ok(found.map(|Json(body)| Self(body)))
    }
}

/// The variable parts of the path. A text that is no id is answered like the id of nothing.
#[derive(Debug)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let found =
            <axum::extract::Path<T> as FromRequestParts<S>>::from_request_parts(parts, state);
        let rejection = match found.await {
            Ok(axum::extract::Path(path)) => return Ok(Self(path)),
            Err(rejection) => rejection,
        };
        let texts = RawPathParams::from_request_parts(parts, state).await;
        let absent = texts.ok().and_then(|texts| texts.iter().find_map(absent));
        Err(absent.unwrap_or_else(|| rejection.into()))
    }
}

/// What is not there, where a part of the path, by its name in the router, is to be an id.
fn absent((part, text): (&str, &str)) -> Option<Problem> {
    const SHOWN_CHARS_MAX: usize = 80;
    let (code, is_id) = match part {
        "image" => ("image_not_found", text.parse::<ImageId>().is_ok()),
        "upload" => ("upload_not_found", text.parse::<UploadId>().is_ok()),
        "deployment" => ("deployment_not_found", text.parse::<DeploymentId>().is_ok()),
        _ => return None,
    };
    if is_id {
        return None;
    }
    let shown = text.chars().filter(|c| !c.is_control()).take(SHOWN_CHARS_MAX);
    let shown: String = shown.collect();
    Some(missing(code, format!("there is no {part} {shown}")))
}

/// What follows the question mark.
#[derive(Debug, FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(Problem))]
pub struct Query<T>(pub T);

/// A number after the question mark; none where nothing stands behind its name, as forms send it.
pub fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    let given = text.filter(|text| !text.is_empty());
    given.map(|text| text.parse::<u64>().map_err(D::Error::custom)).transpose()
}

/// The same of what is so or not, in the words of several languages.
pub fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
    match text.to_ascii_lowercase().as_str() {
        "" => Ok(None),
        "true" | "1" => Ok(Some(true)),
        "false" | "0" => Ok(Some(false)),
        _ => Err(D::Error::custom("true or false is wanted")),
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(rejection.status(), "body_invalid", rejection.body_text())
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        Self::new(rejection.status(), "path_invalid", rejection.body_text())
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(rejection.status(), "query_invalid", rejection.body_text())
    }
}

impl<T: JsonSchema> Argument for Body<T> {
    fn describe(signature: &mut Signature, schemas: &mut Schemas) {
        signature.body = Some(schemas.taken.subschema_for::<T>());
    }
}

impl<T: JsonSchema> Argument for Path<T> {
    fn describe(signature: &mut Signature, schemas: &mut Schemas) {
        signature.path = Some(schemas.taken.subschema_for::<T>());
    }
}

impl<T: JsonSchema> Argument for Query<T> {
    /// Its fields are parameters of their own, and it needs no name.
    fn describe(signature: &mut Signature, schemas: &mut Schemas) {
        signature.query = Some(T::json_schema(&mut schemas.taken));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, Eq, Deserialize)]
    #[serde(default)]
    struct Wanted {
        #[serde(deserialize_with = "count")]
        page: Option<u64>,
        #[serde(deserialize_with = "flag")]
        starred: Option<bool>,
    }

    #[test]
    fn what_stands_after_the_question_mark_is_read_as_clients_write_it() {
        let read = |text: &str| {
            let uri = format!("/?{text}").parse::<axum::http::Uri>().unwrap();
            axum::extract::Query::<Wanted>::try_from_uri(&uri).ok().map(|query| query.0)
        };
        for (text, page, starred) in [
            ("", None, None),
            ("page=&starred=", None, None),
            ("page=2&starred=true", Some(2), Some(true)),
            ("starred=True", None, Some(true)),
            ("page=1&starred=0", Some(1), Some(false)),
        ] {
            assert_eq!(read(text), Some(Wanted { page, starred }), "{text}");
        }
        for text in ["page=-1", "page=x", "starred=maybe", "page=1.5"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
