//! Who may call what: extractors that a handler names in its signature.
//!
//! Invariant: every handler of `/api/v1` takes one of these, but those whose body carries the
//! authentication (login, enrolment, joining).

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use shoal_content::PeerId;

use crate::http::auth::Principal;
use crate::http::problem::Problem;
use crate::state::App;

/// Anyone whom the cluster knows: people, agents, nodes.
#[derive(Debug)]
pub struct Reader;

/// A person.
#[derive(Debug)]
pub struct Writer {
    pub name: String,
}

/// An administrator.
#[derive(Debug)]
pub struct Admin;

/// An enrolled agent.
#[derive(Debug)]
pub struct Host {
    pub peer: PeerId,
}

/// Another node, or an administrator who looks over its shoulder.
#[derive(Debug)]
pub struct Sibling;

impl FromRequestParts<App> for Reader {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        Principal::from_request_parts(parts, app).await.map(|_| Self)
    }
}

impl FromRequestParts<App> for Writer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let principal = Principal::from_request_parts(parts, app).await?;
        Ok(Self { name: principal.ensure_user()?.to_owned() })
    }
}

impl FromRequestParts<App> for Admin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        Principal::from_request_parts(parts, app).await?.ensure_admin().map(|()| Self)
    }
}

impl FromRequestParts<App> for Host {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        match Principal::from_request_parts(parts, app).await? {
            Principal::Agent(peer) => Ok(Self { peer }),
            _ => Err(Problem::forbidden("only an enrolled agent may do this")),
        }
    }
}

impl FromRequestParts<App> for Sibling {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        match Principal::from_request_parts(parts, app).await? {
            Principal::Node(_) => Ok(Self),
            principal if principal.is_admin() => Ok(Self),
            _ => Err(Problem::forbidden("only nodes ask each other for this")),
        }
    }
}
