//! Who may call what: extractors that a handler names in its signature.
//!
//! Invariant: every handler of `/api/v1` takes one of these, but those whose body carries the
//! authentication (login, enrolment, joining).

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use shoal_content::{PeerId, RepositoryName, Timestamp};
use shoal_metadata::{Action, Denial, Scope, UserRole, What, Who};
use shoal_raft::View;

use crate::clock::CLOCKS_APART_MS;
use crate::config::Orders;
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

/// A node and nobody else, for what its owner does on its machine: whoever can read its key could do
/// anything to the cluster.
#[derive(Debug)]
pub struct MemberNode;

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

    /// To be asked before what is not a matter of rights in a place: a new project, an order to
    /// hosts.
    ///
    /// # Errors
    /// 403 for an auditor, who changes nothing, whatever it may pull or own.
    pub fn changes(&self) -> Result<(), Problem> {
        match self.principal {
            Principal::User { role: UserRole::Auditor, .. } => {
                Err(Problem::forbidden(Denial::Role.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// To be asked before an order to hosts.
    ///
    /// # Errors
    /// 403 where not every account may give one (`accounts.orders`), and as [`Caller::changes`].
    pub fn orders(&self, app: &App) -> Result<(), Problem> {
        self.changes()?;
        if app.config.accounts.orders != Some(Orders::Administrators) {
            return Ok(());
        }
        self.permit(Action::Manage, What::System).map_err(|_| {
            Problem::forbidden("here only administrators order images onto hosts (accounts.orders)")
        })
    }

    /// What may be done with something that is about an image: by who made it at `made` whatever
    /// changes it, as long as that account may still have the image; by others what they may do with
    /// the image.
    ///
    /// # Errors
    /// Where the caller may not do that.
    pub fn permit_about(
        &self,
        image: &RepositoryName,
        (by, made): (&str, Timestamp),
        action: Action,
    ) -> Result<(), Problem> {
        let what = What::Repository(image);
        if self.has_made(by, made)? && self.permit(Action::Pull, what).is_ok() {
            return match action {
                Action::Pull | Action::List => Ok(()),
                _ => self.changes().and_then(|()| self.scope(Scope::Write)),
            };
        }
        self.permit(action, what)
    }

    /// Whether the caller has made what `by` made at `made`: not an earlier account of its name.
    ///
    /// # Errors
    /// Where the rows cannot be read.
    pub fn has_made(&self, by: &str, made: Timestamp) -> Result<bool, Problem> {
        let made = made.plus_millis(CLOCKS_APART_MS);
        Ok(self.principal.name() == by && self.view.query().was_there(by, made)?)
    }

    /// # Errors
    /// 403 where the caller came with a token that lacks the scope, or is a robot that does.
    pub fn scope(&self, scope: Scope) -> Result<(), Problem> {
        let has = match self.who() {
            Who::User { scopes: Some(scopes), .. } => scopes.contains(&scope),
            Who::Robot(robot) => {
                let row = self.view.query().robot(&robot)?;
                row.is_some_and(|row| row.scopes.contains(&scope))
            }
            _ => true,
        };
        match has {
            true => Ok(()),
            false => Err(Problem::forbidden(Denial::Scope(scope).to_string())),
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

    /// The person itself, and nothing that acts for it.
    ///
    /// # Errors
    /// 403 for everyone else.
    pub fn itself(&self) -> Result<&str, Problem> {
        let name = self.person()?;
        match &self.principal {
            Principal::User { token: None, .. } => Ok(name),
            _ => Err(Problem::forbidden("log in for that; a token does not do")),
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

impl FromRequestParts<App> for MemberNode {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        match Principal::from_request_parts(parts, app).await? {
            Principal::Node(_) => Ok(Self),
            _ => Err(Problem::forbidden("this is done on a node's own machine, by shoal-node")),
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

lets_in! {
    Caller: Known
    Reader: Known
    Principal: Known
    Admin: Admin
    Host: Host
    Sibling: Sibling
    MemberNode: Node
}
