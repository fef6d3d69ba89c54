//! Join tokens: made here, shown once, and taken apart again when somebody joins.
//!
//! Text: `shoal-join-v1.<base64url SHA-256 of the authority's certificate>.<id>.<secret>`.
//! Invariant: only the BLAKE3 of the secret is kept, and nothing of a token is logged but its id.

use std::fmt;
use std::net::SocketAddr;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use shoal_api::{CreateJoinToken, JoinTokenCreated, JoinTokenInfo};
use shoal_metadata::{Command, JoinRole, JoinToken, Refusal};
use shoal_p2p::identity::AuthorityPin;
use zeroize::Zeroizing;

use super::caller::Admin;
use super::input::{Body, Path};
use crate::authorities::Held;
use crate::clock::{now, rfc3339};
use crate::http::auth::wrong_token;
use crate::http::problem::Problem;
use crate::state::App;

const PREFIX: &str = "shoal-join-v1";
/// In bytes, before encoding.
const ID_BYTES: usize = 10;
const SECRET_BYTES: usize = 32;
const TTL_SECONDS_MAX: u64 = 365 * 24 * 3600;
const TOKEN_TEXT_BYTES_MAX: usize = 512;

/// A token as a joiner brought it.
pub(super) struct Brought {
    pub id: String,
    pub secret_hash: [u8; 32],
    /// The authority that it was made under.
    pin: Option<AuthorityPin>,
}

impl fmt::Debug for Brought {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Brought").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What `fuzz` asks of it: what is looked up is a part of what was brought.
pub fn check_join_token(text: &str) {
    if let Ok(brought) = Brought::parse(text) {
        assert!(text.len() <= TOKEN_TEXT_BYTES_MAX && !brought.id.is_empty());
        assert!(text.contains(&format!(".{}.", brought.id)) && !brought.id.contains('.'));
    }
}

impl Brought {
    /// # Errors
    /// 403, as for every other token that is no good.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let refused = || Problem::from(Refusal::JoinToken);
        let pin = AuthorityPin::of_token(text.trim()).ok();
        let parts: Vec<&str> = text.trim().split('.').collect();
        match parts.as_slice() {
            [PREFIX, _, id, secret] if text.len() <= TOKEN_TEXT_BYTES_MAX && !id.is_empty() => {
                let secret_hash = *blake3::hash(secret.as_bytes()).as_bytes();
                Ok(Self { id: (*id).to_owned(), secret_hash, pin })
            }
            _ => Err(refused()),
        }
    }

    /// That there is such a token, before anything is signed or proposed for whoever brings it. One
    /// that there is not counts like every other wrong token.
    ///
    /// # Errors
    /// 403 for every token that is no good, and for who has brought too many of them. Who brings one that
    /// names an authority which is not to be trusted any more hears that: whoever has that one's key may
    /// have read the token, so it is good for nothing, and its bearer has done nothing wrong.
    pub async fn check(
        &self,
        app: &App,
        client: SocketAddr,
        role: JoinRole,
    ) -> Result<(), Problem> {
        let client = Some(client.ip());
        app.lockout.check_address(app.raft.local().query(), client)?;
        let authorities = app.keys.authorities.refresh(app.raft.local().query())?;
        if self.pin.is_some_and(|pin| authorities.distrusts(pin)) {
            let text = "the join token was made under an authority of the cluster that is not trusted any \
                        more; make a new one ('shoal token create', or 'shoal cluster add')";
            return Err(Problem::new(StatusCode::FORBIDDEN, "join_token_distrusted", text));
        }
        let known = app.raft.local().query().join_token(&self.id)?;
        let row = match known {
            Some(row) => Some(row),
            // This node may not have heard of it yet.
            None => app.view().await?.query().join_token(&self.id)?,
        };
        if row.is_some_and(|row| self.is_of(&row, role)) {
            return Ok(());
        }
        wrong_token(app, client);
        Err(Refusal::JoinToken.into())
    }

    /// The authority that the token names, as far as it is known yet, PEM: its bearer knows that one.
    pub fn authority_pem(&self, authorities: &Held) -> String {
        let named = self.pin.and_then(|pin| authorities.named(pin));
        let named = named.map(|one| one.certificate.clone());
        named.unwrap_or_else(|| authorities.signer().certificate_pem().to_owned())
    }

    /// Whether a row's token is this one and still holds, whatever uses are left: for a joiner
    /// whose first request was carried out and whose answer was lost.
    pub fn is_of(&self, row: &JoinToken, role: JoinRole) -> bool {
        row.id == self.id
            && blake3::Hash::from_bytes(row.secret_hash)
                == blake3::Hash::from_bytes(self.secret_hash)
            && row.role == role
            && row.expires_at > now()
    }
}

fn role_name(role: JoinRole) -> &'static str {
    match role {
        JoinRole::Agent => "agent",
        JoinRole::Node => "node",
    }
}

pub async fn create(
    State(app): State<App>,
    _caller: Admin,
    Body(request): Body<CreateJoinToken>,
) -> Result<(StatusCode, Json<JoinTokenCreated>), Problem> {
    let role = match request.role.as_str() {
        "agent" => JoinRole::Agent,
        "node" => JoinRole::Node,
        _ => return Err(Problem::bad_request("role_invalid", "role is agent or node")),
    };
    if !(1..=TTL_SECONDS_MAX).contains(&request.ttl_seconds) {
        let text = format!("ttl_seconds is from 1 to {TTL_SECONDS_MAX}");
        return Err(Problem::bad_request("ttl_invalid", text));
    }
    if request.uses == Some(0) {
        return Err(Problem::bad_request("uses_invalid", "a token is good for at least one use"));
    }
    let id = hex::encode(rand::random::<[u8; ID_BYTES]>());
    let secret = Zeroizing::new(rand::random::<[u8; SECRET_BYTES]>());
    let secret = Zeroizing::new(URL_SAFE_NO_PAD.encode(secret.as_slice()));
    let at = now();
    let row = JoinToken {
        id: id.clone(),
        secret_hash: *blake3::hash(secret.as_bytes()).as_bytes(),
        role,
        created_at: at,
        expires_at: at.plus_millis(request.ttl_seconds.saturating_mul(1000)),
        uses_left: request.uses,
    };
    let expires_at = rfc3339(row.expires_at);
    if let Err(error) = app.propose(Command::CreateJoinToken(row)).await {
        let tokens = app.raft.local().query().join_tokens()?;
        let ends = tokens.iter().map(|token| token.expires_at).filter(|end| *end > at).min();
        return Err(Problem::from(error).passing(ends));
    }
    let authorities = app.keys.authorities.refresh(app.raft.local().query())?;
    let fingerprint = URL_SAFE_NO_PAD.encode(authorities.signer().fingerprint());
    let token = format!("{PREFIX}.{fingerprint}.{id}.{}", *secret);
    Ok((StatusCode::CREATED, Json(JoinTokenCreated { id, token, expires_at })))
}

pub async fn list(
    State(app): State<App>,
    _caller: Admin,
) -> Result<Json<Vec<JoinTokenInfo>>, Problem> {
    let rows = app.view().await?.query().join_tokens()?;
    let shown = rows.into_iter().map(|row| JoinTokenInfo {
        id: row.id,
        role: role_name(row.role).to_owned(),
        uses_left: row.uses_left,
        created_at: rfc3339(row.created_at),
        expires_at: rfc3339(row.expires_at),
    });
    Ok(Json(shown.collect()))
}

pub async fn revoke(
    State(app): State<App>,
    _caller: Admin,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    app.propose(Command::RevokeJoinToken { id }).await?;
    Ok(StatusCode::NO_CONTENT)
}
