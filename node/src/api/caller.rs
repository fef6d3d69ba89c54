//! Who may call what: extractors that a handler names in its signature.
//!
//! Invariant: every handler of `/api/v1` takes one of these, but those whose body carries the
//! authentication (login, enrolment, joining).

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use shoal_content::PeerId;
use shoal_metadata::{Action, Denial, Scope, What, Who};
use shoal_raft::View;

use crate::http::auth::{Asker, Principal};
use crate::http::permit::permit;
use crate::http::problem::Problem;
use crate::http::signature::{Access, Argument, Schemas, Signature};
use crate::state::App;

/// Anyone whom the cluster knows: people, robots, agents, nodes. What they may do is asked for each
/// thing.
#[derive(Debug)]
pub struct Caller {
    pub principal: Principal,
    /// The metadata as of this request.
    pub view: View,
}

/// Anyone whom the cluster knows, for what all of them may see.
#[derive(Debug)]
pub struct Reader;

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

impl Caller {
    pub fn who(&self) -> Who {
        self.principal.who()
    }

    /// # Errors
    /// Where the caller may not do that.
    pub fn permit(&self, action: Action, what: What<'_>) -> Result<(), Problem> {
        permit(&self.view, &self.who(), action, what)
    }

    /// The account that what is written belongs to.
    ///
    /// # Errors
    /// 403 for agents and nodes.
    pub fn account(&self) -> Result<String, Problem> {
        self.principal.ensure_account()
    }

    /// # Errors
    /// 403 where the caller came with a token that lacks the scope.
    pub fn scope(&self, scope: Scope) -> Result<(), Problem> {
        match self.who() {
            Who::User { scopes: Some(scopes), .. } if !scopes.contains(&scope) => {
                Err(Problem::forbidden(Denial::Scope(scope).to_string()))
            }
            _ => Ok(()),
        }
    }

    /// The person, for what is its own.
    ///
    /// # Errors
    /// 403 for everyone else.
    pub fn person(&self) -> Result<&str, Problem> {
        match &self.principal {
            Principal::User { name, .. } => Ok(name),
            _ => Err(Problem::forbidden("only a person may do this")),
        }
    }
}

impl FromRequestParts<App> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let Asker { principal, view, .. } = Asker::from_request_parts(parts, app).await?;
        Ok(Self { principal: principal.ok_or_else(Problem::unauthorized)?, view })
    }
}

impl FromRequestParts<App> for Reader {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        Principal::from_request_parts(parts, app).await.map(|_| Self)
    }
}

impl FromRequestParts<App> for Admin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let caller = Caller::from_request_parts(parts, app).await?;
        caller.principal.ensure_admin(&caller.view).map(|()| Self)
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
        let caller = Caller::from_request_parts(parts, app).await?;
        match &caller.principal {
            Principal::Node(_) => Ok(Self),
            principal if principal.ensure_admin(&caller.view).is_ok() => Ok(Self),
            _ => Err(Problem::forbidden("only nodes ask each other for this")),
        }
    }
}

macro_rules! lets_in {
    ($($name:ty: $access:ident)*) => {
        $(impl Argument for $name {
            fn describe(signature: &mut Signature, _: &mut Schemas) {
                signature.access = Access::$access;
            }
        })*
    };
}

lets_in! { Caller: Known Reader: Known Principal: Known Admin: Admin Host: Host Sibling: Sibling }
