//! The document of the whole API, OpenAPI 3.1, made of the code: the router's own list of routes, the
//! types of their handlers, and a note for each (see `assembly`). Served as JSON and as a page.
//!
//! Invariants: what is served is the same at every node of one version, and asks for nobody's name.
//! Tests hold that every route is in it, and that what is answered is what it says.

mod assembly;
mod note;
mod page;
mod sample;
mod subjects;
mod usual;

use std::sync::LazyLock;

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::input::Query;
use crate::http::problem::Problem;

pub use assembly::{Assembled, assemble};
pub use sample::sample;

/// The longest text that is looked for, in bytes.
const SEARCH_BYTES_MAX: usize = 100;

/// Made when it is first asked for.
static PUBLISHED: LazyLock<Published> = LazyLock::new(Published::new);

struct Published {
    document: Value,
    json: Bytes,
    etag: HeaderValue,
}

impl Published {
    fn new() -> Self {
        let document = assemble(crate::http::routes().into_operations()).document;
        let json = Bytes::from(document.to_string());
        let hash = blake3::hash(&json).to_hex();
        let etag = HeaderValue::from_str(&format!("\"{}\"", &hash[..32]));
        Self { document, json, etag: etag.unwrap_or(HeaderValue::from_static("\"none\"")) }
    }
}

/// `GET /api/v1/openapi.json`.
pub async fn json(headers: HeaderMap) -> Response {
    let Published { json, etag, .. } = &*PUBLISHED;
    let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|it| it.to_str().ok());
    let mut known = known.flat_map(|text| text.split(',')).map(str::trim);
    let is_known = known.any(|one| one == "*" || one.trim_start_matches("W/") == etag);
    let cached = [
        (header::ETAG, etag.clone()),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    if is_known {
        return (StatusCode::NOT_MODIFIED, cached).into_response();
    }
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (cached, kind, json.clone()).into_response()
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PageQuery {
    /// Words that all have to be in an operation: in its path, summary, parameters or schemas.
    q: String,
}

/// `GET /api/docs`: the same for people, without a script.
pub async fn page(Query(PageQuery { q }): Query<PageQuery>) -> Result<Response, Problem> {
    if q.len() > SEARCH_BYTES_MAX {
        return Err(Problem::bad_request("query_invalid", "that is too long to look for"));
    }
    Ok(page::shown(&PUBLISHED.document, &q))
}
