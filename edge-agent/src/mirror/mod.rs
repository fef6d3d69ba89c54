//! The registry mirror on this host: what `docker pull 127.0.0.1:5055/name:tag`, a docker
//! `registry-mirrors` entry and containerd's `hosts.toml` talk to (distribution-spec, "Pull").
//!
//! Manifests are resolved at a node; when none answers, the last known resolution serves for as
//! long as its tickets are valid. Blobs stream while the swarm still fetches. What the cluster does
//! not have is 404, so that clients go on to where it came from. Tags and referrers are a node's to
//! list. Nothing can be pushed here.
//!
//! Invariants: only verified chunks leave; a blob is served only against a valid ticket for it, and
//! nothing before a node has allowed it to whoever asks (`rights`). `?ns=` names another registry that
//! the cluster pulls through, or nothing (`upstreams`): what of that no node holds yet, a node streams.

mod blob;
mod error;
mod lists;
mod login;
mod manifest;
mod passed;
mod range;
mod rights;
mod upstreams;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use shoal_content::{Digest, PeerId, Pin, RecipeId, RepositoryName, Ticket, Timestamp};
use shoal_p2p::TicketKeys;

use crate::fetch::Fetcher;
use crate::metrics::AgentMetrics;
use crate::transfers::Transfers;
use error::Error;
use lists::List;
use login::Caller;
pub use login::Logins;
pub use rights::Rights;
use rights::Thing;
pub use upstreams::{DOCKER_HUB, Upstream, Upstreams, read as read_upstreams};

/// What the mirror's handlers share.
#[derive(Debug)]
pub struct Mirror {
    pub fetcher: Fetcher,
    pub transfers: Transfers,
    pub metrics: AgentMetrics,
    pub peer: PeerId,
    pub ticket_keys: TicketKeys,
    /// `http` or `https`: how clients come here.
    pub scheme: &'static str,
    pub rights: Rights,
    pub logins: Logins,
    pub upstreams: Arc<Upstreams>,
}

/// Which of the mirror's listeners a request came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Front {
    /// Names are the cluster's, unless `?ns=` says another registry.
    Cluster,
    /// Names are Docker Hub's.
    Hub,
}

impl Mirror {
    /// Whether the node's `ticket` (base64) gives this agent a right to `recipe` now.
    fn entitles(&self, recipe: RecipeId, ticket: &str) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = Timestamp::from_millis(u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
        let ticket = STANDARD.decode(ticket).ok().and_then(|b| Ticket::from_bytes(&b).ok());
        ticket.is_some_and(|ticket| self.ticket_keys.entitles(&ticket, recipe, self.peer, now))
    }
}

/// `/v2/…`, and an answer to everything else.
pub fn router(mirror: Arc<Mirror>, front: Front) -> Router {
    Router::new().fallback(any(serve)).with_state((mirror, front))
}

enum Target {
    Base,
    Token,
    Manifest(RepositoryName, Pin),
    Blob(RepositoryName, Digest),
    List(RepositoryName, List),
}

impl Target {
    const fn kind(&self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Token => "token",
            Self::Manifest(..) => "manifest",
            Self::Blob(..) => "blob",
            Self::List(..) => "list",
        }
    }

    const fn name(&self) -> Option<&RepositoryName> {
        match self {
            Self::Base | Self::Token => None,
            Self::Manifest(name, _) | Self::Blob(name, _) | Self::List(name, _) => Some(name),
        }
    }
}

async fn serve(State((mirror, front)): State<(Arc<Mirror>, Front)>, request: Request) -> Response {
    let target = target(&mirror, front, &request);
    let kind = target.as_ref().map_or("other", Target::kind);
    let name = target.as_ref().ok().and_then(Target::name);
    let challenge =
        login::challenge(mirror.scheme, (request.headers(), request.uri().authority()), name);
    let outcome = match target {
        Ok(target) => answer(&mirror, front, target, request).await,
        Err(error) => Err(error),
    };
    let label = match &outcome {
        Ok(_) => "ok",
        Err(Error::Unauthorized) => "unauthorized",
        Err(error) if error.is_not_found() => "not_found",
        Err(_) => "failed",
    };
    mirror.metrics.mirror_requests.get_or_create(&[("kind", kind), ("outcome", label)]).inc();
    let mut response = outcome.unwrap_or_else(|error| {
        let refused = matches!(error, Error::Unauthorized);
        let mut response = error.into_response();
        if refused {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    });
    let version = HeaderValue::from_static("registry/2.0");
    response.headers_mut().insert("docker-distribution-api-version", version);
    response
}

async fn answer(
    mirror: &Arc<Mirror>,
    front: Front,
    target: Target,
    request: Request,
) -> Result<Response, Error> {
    let head = request.method() == Method::HEAD;
    let headers = request.headers();
    match target {
        Target::Token => login::token(mirror, request).await,
        Target::Base => {
            let caller = mirror.logins.caller(headers)?;
            // Who is asked here would send the login that it has for Docker Hub.
            if front == Front::Hub && mirror.upstreams.hub_is_public() {
                return Ok(axum::Json(serde_json::json!({})).into_response());
            }
            // docker and podman log in only where they are asked to here.
            if caller.was_never_asked() {
                return Err(Error::Unauthorized);
            }
            mirror.rights.check_login(&mirror.fetcher, &caller).await?;
            Ok(axum::Json(serde_json::json!({})).into_response())
        }
        Target::Manifest(name, pin) => {
            allow(mirror, headers, &name, Thing::Manifest(&pin)).await?;
            manifest::serve(mirror, name, pin, head).await
        }
        Target::Blob(name, digest) => {
            let caller = allow(mirror, headers, &name, Thing::Blob(&digest)).await?;
            blob::serve(mirror.clone(), &caller, name, digest, head, headers).await
        }
        Target::List(name, list) => {
            let caller = mirror.logins.caller(headers)?;
            lists::serve(mirror, &caller, &name, &list, request.uri().query(), head).await
        }
    }
}

async fn allow(
    mirror: &Mirror,
    headers: &HeaderMap,
    name: &RepositoryName,
    thing: Thing<'_>,
) -> Result<Caller, Error> {
    let caller: Caller = mirror.logins.caller(headers)?;
    mirror.rights.check(&mirror.fetcher, &caller, name, thing).await?;
    Ok(caller)
}

fn target(mirror: &Mirror, front: Front, request: &Request) -> Result<Target, Error> {
    let path = request.uri().path();
    if path == "/v2/token" && matches!(*request.method(), Method::GET | Method::POST) {
        return Ok(Target::Token);
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(Error::ReadOnly { node: mirror.fetcher.nodes.preferred() });
    }
    let rest = path.strip_prefix("/v2").ok_or(Error::NotFound)?;
    if rest.is_empty() || rest == "/" {
        return Ok(Target::Base);
    }
    let rest = rest.strip_prefix('/').ok_or(Error::NotFound)?;
    let pairs = Query::<Vec<(String, String)>>::try_from_uri(request.uri());
    let pairs = pairs.map(|Query(pairs)| pairs).unwrap_or_default();
    let namespace = pairs.iter().find(|(key, _)| key == "ns").map(|(_, value)| value.as_str());
    let name = |text: &str| {
        let name = text.parse::<RepositoryName>().map_err(|_| Error::UnknownName)?;
        match front {
            Front::Cluster => mirror.upstreams.meant(namespace, name).ok_or(Error::UnknownName),
            Front::Hub if namespace.is_some_and(|other| other != DOCKER_HUB) => {
                Err(Error::UnknownName)
            }
            Front::Hub => mirror.upstreams.of_hub(&name).ok_or(Error::UnknownName),
        }
    };
    // Whose list it would be is known only where no other registry is named.
    if front == Front::Cluster && namespace.is_none() {
        if let Some(repository) = rest.strip_suffix("/tags/list") {
            return Ok(Target::List(name(repository)?, List::Tags));
        }
        if let Some((repository, subject)) = rest.rsplit_once("/referrers/")
            && !subject.contains('/')
        {
            let subject = subject.replace("%3A", ":").parse();
            let subject = subject.map_err(|_| Error::UnknownManifest)?;
            return Ok(Target::List(name(repository)?, List::Referrers(subject)));
        }
    }
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

#[cfg(test)]
mod tests;
