//! Bearer tokens: JWTs that this cluster signs for accounts, and that agents and nodes sign for
//! themselves.
//!
//! Invariants: the only algorithm is Ed25519, whatever a token's header says; a token says who it
//! is for and never what it may do beyond narrowing it, so that rights are those of now; a token
//! of the registry's flow is good for `/v2` alone, and there for what it was asked for.

use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use shoal_content::{AccountName, PeerId, Timestamp};
use shoal_metadata::{KeyPurpose, RobotName};
use shoal_raft::View;

use super::{Known, Principal, TokenUse, bearer, is_valid};
use crate::http::problem::Problem;
use crate::state::App;

/// How long a Bearer token holds.
pub const TOKEN_TTL: Duration = Duration::from_secs(3600);
/// The longest life that a token signed by an agent or node itself may have.
const SELF_SIGNED_TTL_MAX: Duration = Duration::from_secs(300);
/// Clocks of hosts may differ by this much.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(30);

const USER_TOKEN: &str = "JWT";
const AGENT_TOKEN: &str = "shoal-agent+jwt";
const NODE_TOKEN: &str = "shoal-node+jwt";
/// Between the two steps of a login; good for nothing else.
const LOGIN_TICKET: &str = "shoal-login+jwt";

/// What a token is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// Everything: a session.
    Api,
    /// `/v2`.
    Registry,
}

impl Audience {
    fn name(self, app: &App) -> String {
        match self {
            Self::Api => app.keys.cluster.to_string(),
            Self::Registry => format!("{}/v2", app.keys.cluster),
        }
    }
}

/// What a token of the registry's flow was given for (distribution's token specification,
/// "access").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// `repository` or `registry`.
    #[serde(rename = "type")]
    pub kind: String,
    pub name: String,
    pub actions: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Claims {
    iss: String,
    /// Empty for nobody: what is public can be pulled without an account.
    sub: String,
    aud: String,
    iat: u64,
    pub(super) exp: u64,
    /// The personal token that this one was got with: its scopes and its end hold here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pat: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    access: Option<Vec<Granted>>,
    /// The session that this one is of, and ends with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sid: Option<String>,
}

/// Signs a Bearer token for `principal`, which holds for [`TOKEN_TTL`]; gives the token and the
/// second it expires in. `access` makes it one of the registry's flow.
///
/// # Errors
/// Where signing fails.
pub fn issue_token(
    app: &App,
    principal: Option<&Principal>,
    access: Option<Vec<Granted>>,
) -> Result<(String, u64), Problem> {
    issue_until(app, principal, access, None)
}

/// The same, but no longer than `until`.
///
/// # Errors
/// Where signing fails.
pub fn issue_until(
    app: &App,
    principal: Option<&Principal>,
    access: Option<Vec<Granted>>,
    until: Option<Timestamp>,
) -> Result<(String, u64), Problem> {
    let iat = app.now().as_millis() / 1000;
    let until = until.map_or(u64::MAX, |until| until.as_millis() / 1000);
    let exp = (iat + TOKEN_TTL.as_secs()).min(until);
    let audience = if access.is_some() { Audience::Registry } else { Audience::Api };
    let pat = match principal {
        Some(Principal::User { token: Some(TokenUse { id, .. }), .. }) => id.clone(),
        _ => None,
    };
    let sid = match principal {
        Some(Principal::User { session, .. }) => session.clone(),
        _ => None,
    };
    let claims = Claims {
        iss: app.keys.cluster.to_string(),
        sub: principal.map(Principal::name).unwrap_or_default(),
        aud: audience.name(app),
        iat,
        exp,
        pat,
        access,
        sid,
    };
    Ok((sign(app, USER_TOKEN, &claims)?, exp))
}

/// Signs `claims` with the key that signs now, which the header names.
fn sign<T: Serialize>(app: &App, kind: &str, claims: &T) -> Result<String, Problem> {
    let signer = app.keys.ring.signer(KeyPurpose::Token, app.now());
    let kid = Some(signer.number.to_string());
    let header = Header { typ: Some(kind.to_owned()), kid, ..Header::new(Algorithm::EdDSA) };
    let key = EncodingKey::from_ed_der(signer.pair.to_pkcs8_der());
    jsonwebtoken::encode(&header, claims, &key).map_err(|error| Problem::internal(&error))
}

/// Who signed what has this header, where that one is believed. Tokens of the first key need not
/// name it: there was no other when they were signed.
fn signer(app: &App, header: &Header) -> Option<PeerId> {
    let number = header.kid.as_deref().map_or(Ok(0), str::parse).ok()?;
    let key = app.keys.ring.believed(KeyPurpose::Token, number, app.now());
    key.map(|key| key.public())
}

#[derive(Debug, Serialize, Deserialize)]
struct TicketClaims {
    sub: String,
    aud: String,
    exp: u64,
    /// See `session::read_ticket`.
    bound: String,
}

fn ticket_audience(app: &App) -> String {
    format!("{}/second-factor", app.keys.cluster)
}

/// # Errors
/// Where signing fails.
pub(super) fn issue_ticket(
    app: &App,
    user: &str,
    bound: String,
    ttl: Duration,
) -> Result<(String, u64), Problem> {
    let exp = app.now().as_millis() / 1000 + ttl.as_secs();
    let claims = TicketClaims { sub: user.to_owned(), aud: ticket_audience(app), exp, bound };
    Ok((sign(app, LOGIN_TICKET, &claims)?, exp))
}

/// The user and what the ticket is bound to, if it is a good one.
pub(super) fn read_ticket(app: &App, ticket: &str) -> Option<(String, String)> {
    let header = jsonwebtoken::decode_header(ticket).ok()?;
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.set_audience(&[ticket_audience(app)]);
    validation.set_required_spec_claims(&["exp", "aud", "sub"]);
    validation.leeway = 0;
    let key = DecodingKey::from_ed_der(signer(app, &header)?.as_public_key());
    let claims = jsonwebtoken::decode::<TicketClaims>(ticket, &key, &validation).ok()?.claims;
    let right = header.typ.as_deref() == Some(LOGIN_TICKET);
    right.then_some((claims.sub, claims.bound))
}

/// What a token is answered with that was good before.
pub(super) const EXPIRED: &str = "token_expired";
/// What a token is answered with whose session has ended.
pub(super) const ENDED: &str = "session_ended";

/// Whether an agent or a node says to have signed it.
pub(super) fn is_machines(token: &str) -> bool {
    let header = jsonwebtoken::decode_header(token).ok();
    let kind = header.and_then(|header| header.typ);
    matches!(kind.as_deref(), Some(AGENT_TOKEN | NODE_TOKEN))
}

/// Whether this cluster says to have signed it for an account.
pub(super) fn is_ours(text: &str) -> bool {
    let header = jsonwebtoken::decode_header(text).ok();
    header.is_some_and(|header| {
        header.alg == Algorithm::EdDSA && header.typ.as_deref() == Some(USER_TOKEN)
    })
}

/// Who brings `token`, and what it narrows them to.
pub(super) fn check(
    app: &App,
    view: &View,
    token: &str,
    audience: Audience,
) -> Result<Known, Problem> {
    let refused = |_| Problem::unauthorized();
    if let Some(claims) = known(app, token) {
        return users(app, view, &claims, audience);
    }
    let header = jsonwebtoken::decode_header(token).map_err(refused)?;
    if header.alg != Algorithm::EdDSA {
        return Err(Problem::unauthorized());
    }
    match header.typ.as_deref() {
        Some(USER_TOKEN) => {
            let signer = match signer(app, &header) {
                Some(signer) => signer,
                // It may be newer than what was read here last.
                None => {
                    app.keys.ring.refresh(view.query())?;
                    signer(app, &header).ok_or_else(Problem::unauthorized)?
                }
            };
            let claims = app.verified.claims(token, signer, || signed(token, signer))?;
            users(app, view, &claims, audience)
        }
        Some(kind @ (AGENT_TOKEN | NODE_TOKEN)) => {
            // Who says to have signed it is only looked at; the signature decides.
            let claims =
                jsonwebtoken::dangerous::insecure_decode::<Claims>(token).map_err(refused)?.claims;
            let peer: PeerId = claims.iss.parse().map_err(|_| Problem::unauthorized())?;
            let principal = if kind == AGENT_TOKEN {
                view.query().agent(peer)?.map(|agent| Principal::Agent(agent.peer))
            } else {
                let nodes = view.query().nodes()?;
                nodes.iter().find(|node| node.peer == peer).map(|node| Principal::Node(node.id))
            };
            let principal = principal.ok_or_else(Problem::unauthorized)?;
            let claims = app.verified.claims(token, peer, || signed(token, peer))?;
            claims.ensure(app, Audience::Api)?;
            let life = claims.exp.saturating_sub(claims.iat);
            if life > SELF_SIGNED_TTL_MAX.as_secs() {
                return Err(Problem::unauthorized());
            }
            Ok(principal.into())
        }
        _ => Err(Problem::unauthorized()),
    }
}

/// The account that a token is for, as it stands now; nobody where it is for nobody.
fn account(app: &App, view: &View, claims: &Claims) -> Result<Option<Principal>, Problem> {
    let query = view.query();
    if claims.sub.is_empty() && claims.access.is_some() {
        return Ok(None);
    }
    let principal = if let Some(id) = &claims.pat {
        let user: AccountName = claims.sub.parse().map_err(|_| Problem::unauthorized())?;
        let mut tokens = query.personal_tokens(&user)?;
        let at = tokens.iter().position(|token| token.id == *id);
        match at {
            Some(at) => bearer(app, query, tokens.swap_remove(at))?,
            None => None,
        }
    } else if let Ok(robot) = claims.sub.parse::<RobotName>() {
        let row = query.robot(&robot)?.filter(|row| is_valid(row, app));
        row.map(|row| Principal::Robot(row.name))
    } else {
        let user = query.user(&claims.sub)?;
        if let Some(id) = &claims.sid {
            let session = query.session(&claims.sub, id)?;
            if session.is_none_or(|session| session.expires_at <= app.now()) {
                let message = "the session has ended; log in again";
                return Err(Problem {
                    code: ENDED,
                    message: message.into(),
                    ..Problem::unauthorized()
                });
            }
        }
        let session = claims.sid.clone();
        user.map(|user| Principal::User { name: user.name, role: user.role, token: None, session })
    };
    principal.map(Some).ok_or_else(Problem::unauthorized)
}

/// The claims of a token that this cluster is known to have signed for an account.
fn known(app: &App, token: &str) -> Option<Arc<Claims>> {
    let now = app.now();
    let keys = app.keys.ring.keys(KeyPurpose::Token);
    let mut believed = keys.iter().rev().filter(|key| key.is_believed(now));
    // Nothing else that its key signs is looked at here.
    believed.find_map(|key| app.verified.known(token, key.public()))
}

/// Whether that is known, without a look at the token.
pub(super) fn is_known(app: &App, token: &str) -> bool {
    known(app, token).is_some()
}

/// What a token of this cluster says, if it holds for `audience` now.
fn users(app: &App, view: &View, claims: &Claims, audience: Audience) -> Result<Known, Problem> {
    claims.ensure(app, audience)?;
    let principal = account(app, view, claims)?;
    let until = Timestamp::from_millis(claims.exp.saturating_mul(1000));
    Ok(Known { principal, granted: claims.access.clone(), until: Some(until) })
}

/// Whether `token` is one that `signer` signed for `audience` and that holds now, by its own words.
pub fn holds(token: &str, signer: PeerId, audience: &str, now: u64) -> bool {
    is_machines(token);
    let claims = signed(token, signer);
    let holds = claims.is_ok_and(|it| it.aud == audience && it.ensure_time(now).is_ok());
    // What its header says of the algorithm is looked at besides.
    holds && jsonwebtoken::decode_header(token).is_ok_and(|it| it.alg == Algorithm::EdDSA)
}

/// What `signer` signed, whatever it says of its time and audience.
fn signed(token: &str, signer: PeerId) -> Result<Claims, Problem> {
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
    // Both are asked for at each use: see `Claims::ensure`.
    validation.validate_aud = false;
    validation.validate_exp = false;
    let key = DecodingKey::from_ed_der(signer.as_public_key());
    let checked = jsonwebtoken::decode::<Claims>(token, &key, &validation);
    checked.map(|token| token.claims).map_err(|_| Problem::unauthorized())
}

impl Claims {
    /// That it is for `audience`, and holds now.
    fn ensure(&self, app: &App, audience: Audience) -> Result<(), Problem> {
        // A session is good for the registry, too.
        if self.aud != Audience::Api.name(app) && self.aud != audience.name(app) {
            return Err(Problem::unauthorized());
        }
        self.ensure_time(app.now().as_millis() / 1000)
    }

    /// That it holds at the second `now`.
    fn ensure_time(&self, now: u64) -> Result<(), Problem> {
        let skew = CLOCK_SKEW_MAX.as_secs();
        if self.iat > now.saturating_add(skew) {
            return Err(Problem::unauthorized());
        }
        if self.exp.saturating_add(skew) < now {
            return Err(Problem { code: EXPIRED, ..Problem::unauthorized() });
        }
        Ok(())
    }
}
