//! People whom another issuer vouches for: which account here they are, and what their token is
//! good for.
//!
//! Invariants: somebody is known by issuer and subject, never by a name that the issuer could give
//! to another one; an account that is here already is nobody's because it is called alike; rights
//! are those of the account here, and what a token says only narrows them.

use std::collections::BTreeSet;

use axum::http::StatusCode;
use shoal_content::{AccountName, Timestamp};
use shoal_metadata::{
    Command, Identity, Query, Read, Refusal, Scope, Secret, Subject, User, UserRole, is_email,
};
use shoal_raft::{ProposeError, View};
use tracing::warn;

use super::issuer::{Claims, Keys, Rejected};
use super::{Known, Principal, TokenUse, token};
use crate::clock::now;
use crate::http::problem::Problem;
use crate::state::App;

/// No hash is like this: nobody logs in with a password.
const NO_PASSWORD: &[u8] = b"!";
/// In a foreign token's `permissions`, and the scope that each is.
const PERMISSIONS: [(&str, Scope); 4] = [
    ("image:read", Scope::Read),
    ("image:write", Scope::Write),
    ("image:delete", Scope::Delete),
    ("image:admin", Scope::Admin),
];
/// The one of a foreign token's `roles` that is good for everything that the account may do.
const ADMIN_ROLE: &str = "admin";

impl From<Rejected> for Problem {
    fn from(rejected: Rejected) -> Self {
        match rejected {
            Rejected::Expired => Self { code: token::EXPIRED, ..Self::unauthorized() },
            Rejected::Invalid => Self::unauthorized(),
            Rejected::Away => {
                let text = "the issuer's keys cannot be fetched now; try again in a moment";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "issuer_away", text)
            }
        }
    }
}

/// Who brings a token of the issuer in the settings.
///
/// # Errors
/// 401 for one that does not hold, or whose subject has no account here.
pub async fn check(app: &App, view: &View, token: &str) -> Result<Known, Problem> {
    let settings = &app.config.jwt;
    if settings.issuer.is_empty() {
        return Err(Problem::unauthorized());
    }
    let keys = Keys::At(settings.jwks_url.clone());
    let claims = app.issuers.verify(&keys, &settings.issuer, &settings.audience, token).await?;
    let wanted = Wanted {
        name: claims.text(&settings.account_claim).unwrap_or_default(),
        email: claims.email(),
    };
    let create = settings.create_accounts;
    let user =
        account(app, view.query(), &settings.issuer, claims.subject(), wanted, create).await?;
    let used = Some(TokenUse { id: None, scopes: scopes(&claims) });
    let (name, role) = (user.name, user.role);
    let principal = Principal::User { name, role, token: used, session: None };
    let until = Timestamp::from_millis(claims.expires().saturating_mul(1000));
    Ok(Known { principal: Some(principal), granted: None, until: Some(until) })
}

/// What a token may be used for. One that says nothing of it reads.
fn scopes(claims: &Claims) -> BTreeSet<Scope> {
    if claims.list("roles").is_some_and(|roles| roles.contains(&ADMIN_ROLE)) {
        return Scope::ALL.into();
    }
    let Some(permissions) = claims.list("permissions") else { return [Scope::Read].into() };
    let scope = |text: &&str| PERMISSIONS.iter().find(|(name, _)| name == text);
    permissions.iter().filter_map(scope).map(|(_, scope)| *scope).collect()
}

/// What an account is called that is made for who is called `wanted` elsewhere.
pub fn called(wanted: &str) -> String {
    wanted.split('@').next().unwrap_or_default().to_lowercase()
}

/// What the account of somebody new is to be like.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    pub name: &'a str,
    /// Where its person gets mail, if the issuer says that.
    pub email: Option<&'a str>,
}

/// The account that the subject is here. One who comes for the first time gets one as `wanted`, where
/// that is allowed and nobody has the name.
///
/// # Errors
/// 401 where there is none and none is made; 409 where the name is somebody else's.
pub async fn account<R: Read>(
    app: &App,
    query: Query<'_, R>,
    issuer: &str,
    subject: &str,
    wanted: Wanted<'_>,
    create: bool,
) -> Result<User, Problem> {
    if let Some(identity) = query.identity(issuer, subject)? {
        return query.user(&identity.user)?.ok_or_else(Problem::unauthorized);
    }
    let unknown = |text: &str| Problem {
        code: "identity_unknown",
        message: text.to_owned(),
        ..Problem::unauthorized()
    };
    if !create {
        return Err(unknown(
            "nobody here is known by this issuer's subject; an administrator links accounts",
        ));
    }
    let name: AccountName = called(wanted.name)
        .parse()
        .map_err(|_| unknown("the issuer's name for you is no name for an account here"))?;
    let row = User {
        name: name.to_string(),
        password_hash: Secret(NO_PASSWORD.to_vec()),
        role: UserRole::User,
        created_at: now(),
    };
    let identity = Identity {
        issuer: issuer.to_owned(),
        subject: subject.to_owned(),
        user: name.to_string(),
        linked_at: row.created_at,
    };
    let made = Command::LinkIdentity { identity, create: Some(row.clone()) };
    match app.propose(made).await {
        Ok(_) => {
            if let Some(email) = wanted.email.filter(|email| is_email(email)) {
                note_email(app, &row.name, email).await;
            }
            Ok(row)
        }
        // Another request of its first moment was quicker.
        Err(ProposeError::Refused(Refusal::Exists(Subject::Identity))) => {
            let view = app.view().await?;
            // Whose it is says the link: the name that was wanted may be another person's.
            let linked = view.query().identity(issuer, subject)?;
            let linked = linked.ok_or_else(Problem::unauthorized)?;
            view.query().user(&linked.user)?.ok_or_else(Problem::unauthorized)
        }
        Err(ProposeError::Refused(Refusal::Exists(Subject::User))) => {
            let text = format!("there is an account {name} already; an administrator can link it");
            Err(Problem::new(StatusCode::CONFLICT, "account_taken", text))
        }
        Err(error) => Err(error.into()),
    }
}

/// An account is good for everything else without it.
async fn note_email(app: &App, user: &str, email: &str) {
    let set = Command::SetEmail { user: user.to_owned(), email: email.to_owned() };
    if let Err(error) = app.propose(set).await {
        warn!(user, %error, "an account's e-mail address could not be noted");
    }
}
