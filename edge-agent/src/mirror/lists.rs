//! What clients look at beside a pull, as a node gives it to whoever asks here: a repository's tags, and
//! what refers to a manifest (distribution-spec, "Listing Tags", "Listing Referrers").
//!
//! Without the second, whoever looks for signatures or a bill of materials finds none and takes the image
//! to have none. Nothing is kept: a list changes at any time. Where no node answers there is none.
//! Where a request names another registry (`?ns=`) there is none either, since nodes know what was pulled
//! from there and no more.
//!
//! Invariant: a list has at most [`LIST_BYTES_MAX`], and comes without a silence of [`SILENCE_MAX`].

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::Response;
use reqwest::Method;
use shoal_content::{Digest, RepositoryName};
use tokio::time::timeout;

use super::Mirror;
use super::error::Error;
use super::login::Caller;
use crate::nodes::chain;

/// More than any page that a node gives.
const LIST_BYTES_MAX: usize = 8 << 20;
/// A node that sends nothing for so long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Which list of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum List {
    Tags,
    /// What has this manifest as its subject.
    Referrers(Digest),
}

impl List {
    fn path(&self, name: &RepositoryName) -> String {
        match self {
            Self::Tags => format!("/v2/{name}/tags/list"),
            Self::Referrers(subject) => format!("/v2/{name}/referrers/{subject}"),
        }
    }
}

/// Answers GET and HEAD; `query` is the request's.
///
/// # Errors
/// What a node answered, or that none did.
pub async fn serve(
    mirror: &Mirror,
    caller: &Caller,
    name: &RepositoryName,
    list: &List,
    query: Option<&str>,
    head: bool,
) -> Result<Response, Error> {
    // Wrong credentials are remembered here, so that they do not lock anybody out there.
    mirror.rights.check_login(&mirror.fetcher, caller).await?;
    let mut path = list.path(name);
    if let Some(query) = query {
        path = format!("{path}?{query}");
    }
    let method = if head { Method::HEAD } else { Method::GET };
    let opened = mirror.fetcher.nodes.open_for(method, &path, caller.authorization(), None).await;
    let answer = opened.map_err(|error| Error::NoSource(error.to_string()))?;
    match answer.status() {
        // What is wrong with the request, the node says.
        StatusCode::OK | StatusCode::BAD_REQUEST => {}
        StatusCode::UNAUTHORIZED => {
            mirror.rights.note_refused(caller, name);
            return Err(Error::Unauthorized);
        }
        StatusCode::TOO_MANY_REQUESTS => {
            let retry_after = answer.headers().get(header::RETRY_AFTER).cloned();
            return Err(Error::Busy { retry_after });
        }
        StatusCode::NOT_FOUND | StatusCode::FORBIDDEN => return Err(Error::UnknownName),
        status => return Err(Error::NoSource(format!("a node answers {status}"))),
    }
    let mut response = Response::builder().status(answer.status());
    for name in [
        header::CONTENT_TYPE,
        header::CONTENT_LENGTH,
        header::LINK,
        HeaderName::from_static("oci-filters-applied"),
    ] {
        if let Some(value) = answer.headers().get(&name) {
            response = response.header(name, value.clone());
        }
    }
    let body = if head { Body::empty() } else { Body::from(whole(answer).await?) };
    response.body(body).map_err(|error| Error::NoSource(error.to_string()))
}

async fn whole(mut answer: reqwest::Response) -> Result<Vec<u8>, Error> {
    let broken = |why: &str| Error::NoSource(why.to_owned());
    let mut bytes = Vec::new();
    loop {
        let piece = timeout(SILENCE_MAX, answer.chunk()).await;
        let piece = piece.map_err(|_| broken("the node sends nothing any more"))?;
        let piece = piece.map_err(|error| broken(&chain(&error)))?;
        let Some(piece) = piece else { return Ok(bytes) };
        if bytes.len() + piece.len() > LIST_BYTES_MAX {
            return Err(broken("a node's list is too long"));
        }
        bytes.extend_from_slice(&piece);
    }
}
