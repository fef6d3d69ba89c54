//! The registry: OCI distribution-spec 1.1 on `/v2`.
//!
//! Reads are linearizable views of the local metadata; bytes stream from storage. Writes are one
//! command each. Invariants: what is answered is exact (`Content-Type`, `Content-Length`, digest);
//! nothing under `/v2` is compressed on the way; Locations are path-absolute.
//! Non-goal: how images of other registries come here; see `upstreams`.

mod access;
mod allowance;
mod answers;
mod blobs;
mod body;
mod byteranges;
mod checkpoint;
pub(crate) mod condition;
pub(crate) mod contention;
mod error;
pub(crate) mod hash;
mod intake;
mod manifests;
mod parts;
pub(crate) mod pieces;
mod publication;
pub(crate) mod range;
mod route;
mod tags;
mod token;
mod uploads;
mod warning;

use std::collections::HashMap;
use std::net::IpAddr;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use percent_encoding::percent_decode_str;
use shoal_content::{Digest, RepositoryName};
use shoal_metadata::{Action, Image, Who};
use shoal_raft::View;

pub use answers::{Catalogue, ReferrersIndex, RegistryErrors, RegistryToken, TagList};
pub use error::RegistryError;
pub use intake::{BlobWriter, INTAKE_BYTES_MAX, INTAKE_BYTES_USUAL, Intake, IntakeError};
pub use manifests::{digest_of, references};
#[cfg(test)]
pub(crate) use parts::PARTS_MAX;
pub(crate) use parts::PartSchedule;
pub use publication::{Publication, publish};
pub use uploads::SESSION_TTL_MS;

/// The parsers, for `fuzz`.
pub(crate) mod fuzzed {
    pub use super::access::{SCOPES_MAX, grant};
    pub use super::checkpoint::decode as decode_checkpoint;
    #[cfg(test)]
    pub use super::checkpoint::{
        Encode as EncodeCheckpoint, encode as encode_checkpoint,
        encode_long as encode_long_checkpoint,
    };
    pub use super::condition::names as names_digest;
    #[cfg(test)]
    pub use super::hash::Hash;
    #[cfg(test)]
    pub use super::pieces::encode as encode_pieces;
    pub use super::pieces::{Piece, decode as decode_pieces};
    pub use super::range::{Wanted, content_range, several, wanted};
    pub use super::route::Route;
    pub use super::tags::{PAGE_MAX, page_size};
    pub use super::token::fields_of;
}

use crate::http::auth::{Asker, Audience, Granted, Principal, authenticate, client};
use crate::http::noted;
use crate::http::problem::Problem;
use crate::http::routes::Routes;
use crate::state::App;
use route::Route;

/// Every client checks for it.
const API_VERSION: (HeaderName, HeaderValue) = (
    HeaderName::from_static("docker-distribution-api-version"),
    HeaderValue::from_static("registry/2.0"),
);
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const CHUNK_MIN_LENGTH: HeaderName = HeaderName::from_static("oci-chunk-min-length");
const NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");

type Answer = Result<Response, RegistryError>;
type Parameters = HashMap<String, String>;
/// In order, for parameters that may stand several times.
type Pairs = Vec<(String, String)>;

/// One request, with who sends it.
struct Asked {
    app: App,
    /// `None` is nobody, who reads what is public.
    principal: Option<Principal>,
    /// What its token was given for; `None` is all that its owner may do.
    granted: Option<Vec<Granted>>,
    /// The state that the asker was let in by; reads go on from it.
    view: Option<View>,
    method: Method,
    headers: HeaderMap,
    query: Parameters,
    client: Option<IpAddr>,
    pairs: Pairs,
}

pub fn router() -> Routes {
    Routes::new().dispatched("/v2", dispatch, []).dispatched("/v2/", dispatch, []).dispatched(
        "/v2/{*path}",
        dispatch,
        route::ENDPOINTS.iter().cloned(),
    )
}

async fn dispatch(State(app): State<App>, request: Request) -> Response {
    let path = request.uri().path();
    let path = path.strip_prefix("/v2").unwrap_or_default();
    let path = path.strip_prefix('/').unwrap_or(path);
    // What is no UTF-8 is no name either.
    let path = percent_decode_str(path).decode_utf8_lossy().into_owned();
    let path = path.as_str();
    let pairs = Query::<Pairs>::try_from_uri(request.uri()).map(|Query(pairs)| pairs);
    let mut response = match handle(app, path, pairs, request).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    };
    let (name, value) = API_VERSION;
    response.headers_mut().insert(name, value);
    response
}

async fn handle(
    app: App,
    path: &str,
    pairs: Result<Pairs, QueryRejection>,
    request: Request,
) -> Answer {
    let (parts, body) = request.into_parts();
    let asker = authenticate(&app, &parts, Audience::Registry).await;
    let namespace = pairs.as_ref().ok().and_then(|pairs| {
        pairs.iter().find(|(name, _)| name == "ns").map(|(_, namespace)| namespace.as_str())
    });
    let route = Route::parse(path);
    let named = route.as_ref().ok().and_then(Route::repository).cloned();
    let route =
        route.map(|route| route.of(|repository| app.upstreams.meant(repository, namespace)));
    // Said where the parameter has counted (distribution-spec, "Registry Proxying").
    let counted = |route: &Route<'_>| route.repository() != named.as_ref();
    let namespace =
        route.as_ref().is_ok_and(counted).then(|| namespace.map(str::to_owned)).flatten();
    if matches!(route, Ok(Route::Token)) {
        let pairs = pairs.map_err(query_invalid)?;
        return token::handle(&app, asker, &parts, &pairs, body).await;
    }
    // Who is not let in learns nothing, not even whether a path is well formed.
    let asker = match asker {
        Ok(asker) => asker,
        Err(problem) if problem.status == StatusCode::UNAUTHORIZED => {
            let challenge = token::challenge(&parts, route.as_ref().ok(), false);
            return Err(challenge.saying(&problem));
        }
        Err(problem) => return Err(problem.into()),
    };
    let route = match route {
        Ok(route) => route,
        Err(_) if asker.principal.is_none() => return Err(token::challenge(&parts, None, false)),
        Err(error) => return Err(error),
    };
    if let Some(repository) = route.repository() {
        noted::note_image_name(repository.as_str());
    }
    let hidden = match access::check(&asker, &route, &parts.method) {
        Ok(()) => false,
        Err(access::Refused::Nothing) => true,
        Err(access::Refused::Challenge) => {
            return Err(token::challenge(&parts, Some(&route), asker.granted.is_some()));
        }
        Err(access::Refused::Answer(error)) => return Err(error),
    };
    if !route.takes(&parts.method) {
        return Err(RegistryError::unsupported().with(header::ALLOW, &route.allowed()));
    }
    if let Some(upstream) = route.repository().and_then(|repository| app.upstreams.of(repository))
        && route.pushes(&parts.method)
    {
        let name = &upstream.name;
        let message = format!("{name} holds what is pulled from there; nothing is pushed to it");
        return Err(RegistryError::new(StatusCode::FORBIDDEN, "DENIED", message));
    }
    if parts.method == Method::DELETE && !app.config.registry.deletes {
        route.check_deletes()?;
    }
    let pairs = pairs.map_err(query_invalid)?;
    if let Some(from) = uploads::mounted_from(&route, &parts.method, &pairs)
        && let (Some(granted), Some(to)) = (&asker.granted, route.repository())
        && !access::covers(granted, &from, Action::Pull)
        && !access::was_asked(granted, &from)
    {
        let scope = format!("repository:{to}:pull,push repository:{from}:pull");
        return Err(token::challenge_for(&parts, Some(scope), true));
    }
    let Asker { principal, view, granted, .. } = asker;
    // A snapshot must not outlive a long upload.
    let reads = matches!(parts.method, Method::GET | Method::HEAD);
    let view = Some(view).filter(|_| reads);
    noted::note_action(route.action(&parts.method));
    let query = pairs.iter().cloned().collect();
    let client = client(&parts);
    let (method, headers) = (parts.method, parts.headers);
    let asked = Asked { app, principal, granted, view, method, headers, query, client, pairs };
    let mut response = match route {
        Route::Base => Ok(StatusCode::OK.into_response()),
        Route::Token => Err(RegistryError::unsupported()),
        Route::Catalogue => tags::catalogue(asked).await,
        Route::Tags(repository) => tags::list(asked, repository).await,
        Route::Manifest(repository, reference) => {
            manifests::handle(asked, body, repository, reference).await
        }
        Route::Blob(repository, digest) => blobs::handle(asked, repository, digest).await,
        Route::Uploads(repository) => uploads::begin(asked, body, repository).await,
        Route::Upload(repository, upload) => uploads::handle(asked, body, repository, upload).await,
        Route::Referrers(repository, digest) => {
            tags::referrers(asked, repository, digest, hidden).await
        }
    }?;
    if let Some(namespace) = namespace {
        let (name, value) = text_header(NAMESPACE, &namespace)?;
        response.headers_mut().insert(name, value);
    }
    Ok(response)
}

fn query_invalid(error: QueryRejection) -> RegistryError {
    RegistryError::new(StatusCode::BAD_REQUEST, "UNSUPPORTED", error.body_text())
}

impl Asked {
    /// The account that what is written belongs to.
    fn account(&self) -> Result<String, RegistryError> {
        let principal = self.principal.as_ref().ok_or_else(Problem::unauthorized)?;
        Ok(principal.ensure_account()?)
    }

    fn who(&self) -> Who {
        self.principal.as_ref().map_or(Who::Anonymous, Principal::who)
    }

    /// Whether another node asks, which has let its own asker in.
    fn forwarded(&self) -> bool {
        matches!(self.principal, Some(Principal::Node(_)))
    }

    /// The metadata as of this request.
    async fn view(&self) -> Result<View, RegistryError> {
        match &self.view {
            Some(view) => Ok(view.clone()),
            None => Ok(self.app.view().await?),
        }
    }
}

/// The repository's row.
fn image(view: &View, repository: &RepositoryName) -> Result<Image, RegistryError> {
    let image = view.query().image_by_name(repository)?.ok_or_else(RegistryError::name_unknown)?;
    noted::note_image(image.id, image.name.as_str());
    Ok(image)
}

/// A header made of text that is one by construction.
fn text_header(name: HeaderName, text: &str) -> Result<(HeaderName, HeaderValue), RegistryError> {
    let value = HeaderValue::from_str(text).map_err(|_| {
        RegistryError::new(
            StatusCode::BAD_REQUEST,
            "MANIFEST_INVALID",
            "a header cannot carry this text",
        )
    })?;
    Ok((name, value))
}

/// A status with some headers and no body.
fn empty(status: StatusCode, headers: &[(HeaderName, String)]) -> Answer {
    let mut response = status.into_response();
    for (name, text) in headers {
        let (name, value) = text_header(name.clone(), text)?;
        response.headers_mut().insert(name, value);
    }
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    Ok(response)
}

fn blob_location(repository: &RepositoryName, digest: &Digest) -> String {
    format!("/v2/{repository}/blobs/{digest}")
}
