//! The registry mirror on this host: what `docker pull 127.0.0.1:5055/name:tag`, a docker
//! `registry-mirrors` entry and containerd's `hosts.toml` talk to (distribution-spec, "Pull").
//!
//! Manifests are resolved at a node; when none answers, the last known resolution serves for as
//! long as its tickets are valid. Blobs stream while the swarm still fetches. What the cluster does
//! not have is 404, so that clients go on to where it came from. Nothing can be pushed here.
//!
//! Invariants: only verified chunks leave; a blob is served only against a valid ticket for it;
//! `?ns=` is accepted and changes nothing, since repositories here have no host.

mod blob;
mod error;
mod manifest;
mod range;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use shoal_content::{Digest, PeerId, Pin, RecipeId, RepositoryName, Ticket, Timestamp};
use shoal_p2p::identity::verify_ed25519;

use crate::fetch::Fetcher;
use crate::metrics::AgentMetrics;
use crate::transfers::Transfers;
use error::Error;

/// What the mirror's handlers share.
#[derive(Debug)]
pub struct Mirror {
    pub fetcher: Fetcher,
    pub transfers: Transfers,
    pub metrics: AgentMetrics,
    pub peer: PeerId,
    pub ticket_public_key: [u8; 32],
}

impl Mirror {
    /// Whether the node's `ticket` (base64) gives this agent a right to `recipe` now.
    fn entitles(&self, recipe: RecipeId, ticket: &str) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = Timestamp::from_millis(u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
        let ticket = STANDARD.decode(ticket).ok().and_then(|b| Ticket::from_bytes(&b).ok());
        let verify = |message: &[u8], signature: &[u8]| {
            <&[u8; 64]>::try_from(signature)
                .is_ok_and(|signature| verify_ed25519(&self.ticket_public_key, message, signature))
        };
        ticket.is_some_and(|ticket| ticket.check(recipe, self.peer, now, verify).is_ok())
    }
}

/// `/v2/…`, and an answer to everything else.
pub fn router(mirror: Arc<Mirror>) -> Router {
    Router::new().fallback(any(serve)).with_state(mirror)
}

enum Target {
    Base,
    Manifest(RepositoryName, Pin),
    Blob(RepositoryName, Digest),
}

async fn serve(State(mirror): State<Arc<Mirror>>, request: Request) -> Response {
    let head = request.method() == Method::HEAD;
    let kind;
    let outcome = match target(&mirror, &request) {
        Err(error) => {
            kind = "other";
            Err(error)
        }
        Ok(Target::Base) => {
            kind = "base";
            Ok(axum::Json(serde_json::json!({})).into_response())
        }
        Ok(Target::Manifest(name, pin)) => {
            kind = "manifest";
            manifest::serve(&mirror, name, pin, head).await
        }
        Ok(Target::Blob(name, digest)) => {
            kind = "blob";
            blob::serve(mirror.clone(), name, digest, head, request.headers()).await
        }
    };
    let label = match &outcome {
        Ok(_) => "ok",
        Err(error) if error.is_not_found() => "not_found",
        Err(_) => "failed",
    };
    mirror.metrics.mirror_requests.get_or_create(&[("kind", kind), ("outcome", label)]).inc();
    let mut response = outcome.unwrap_or_else(|error| error.into_response());
    let version = HeaderValue::from_static("registry/2.0");
    response.headers_mut().insert("docker-distribution-api-version", version);
    response
}

fn target(mirror: &Mirror, request: &Request) -> Result<Target, Error> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(Error::ReadOnly { node: mirror.fetcher.nodes.preferred() });
    }
    let path = request.uri().path();
    let rest = path.strip_prefix("/v2").ok_or(Error::NotFound)?;
    if rest.is_empty() || rest == "/" {
        return Ok(Target::Base);
    }
    let rest = rest.strip_prefix('/').ok_or(Error::NotFound)?;
    let name = |text: &str| text.parse::<RepositoryName>().map_err(|_| Error::UnknownName);
    if let Some((repository, reference)) = rest.rsplit_once("/manifests/") {
        // Names that mirrors are asked for need not follow our grammar: those we do not have.
        let pin = reference.replace("%3A", ":").parse().map_err(|_| Error::UnknownManifest)?;
        return Ok(Target::Manifest(name(repository)?, pin));
    }
    if let Some((repository, digest)) = rest.rsplit_once("/blobs/") {
        let digest = digest.replace("%3A", ":").parse().map_err(|_| Error::UnknownBlob)?;
        return Ok(Target::Blob(name(repository)?, digest));
    }
    Err(Error::NotFound)
}
