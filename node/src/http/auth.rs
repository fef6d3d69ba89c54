//! Who asks: Basic and Bearer credentials, and the tokens this cluster signs.
//!
//! Invariants: a password is checked against an argon2id hash and never kept; an unknown user
//! costs as much time as a wrong password; tokens are Ed25519-signed JWTs of this cluster only.
//! Non-goal: what the one who asks may do.

use std::sync::Arc;
use std::time::Duration;

use argon2::Argon2;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use axum::extract::FromRequestParts;
use axum::http::{HeaderMap, header, request};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use moka::future::Cache;
use serde::{Deserialize, Serialize};
use shoal_content::{NodeId, PeerId};
use shoal_metadata::{Secret, UserRole};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::noted;
use super::problem::Problem;
use crate::state::App;

/// How long a Bearer token holds.
pub const TOKEN_TTL: Duration = Duration::from_secs(3600);
/// The longest life that a token signed by an agent or node itself may have.
const SELF_SIGNED_TTL_MAX: Duration = Duration::from_secs(300);
/// Clocks of hosts may differ by this much.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(30);
/// A password that was right is not hashed again for this long.
const VERIFIED_TTL: Duration = Duration::from_secs(60);
const VERIFIED_MAX: u64 = 10_000;
/// Argon2 takes 19 MiB and tens of milliseconds each: more at once only wait.
const HASHES_AT_ONCE_MAX: usize = 2;
/// Longer credentials are refused unread, in bytes.
const CREDENTIALS_BYTES_MAX: usize = 8 * 1024;

const USER_TOKEN: &str = "JWT";
const AGENT_TOKEN: &str = "shoal-agent+jwt";
const NODE_TOKEN: &str = "shoal-node+jwt";

/// Someone whose credentials were right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    User { name: String, role: UserRole },
    Agent(PeerId),
    Node(NodeId),
}

impl Principal {
    /// The name that rows and logs carry.
    pub fn name(&self) -> String {
        match self {
            Self::User { name, .. } => name.clone(),
            Self::Agent(peer) => format!("agent:{peer}"),
            Self::Node(id) => format!("node:{id}"),
        }
    }

    pub fn is_admin(&self) -> bool {
        matches!(self, Self::User { role: UserRole::Admin, .. })
    }

    /// # Errors
    /// 403 for everyone but administrators.
    pub fn ensure_admin(&self) -> Result<(), Problem> {
        if self.is_admin() {
            Ok(())
        } else {
            Err(Problem::forbidden("only an administrator may do this"))
        }
    }

    /// # Errors
    /// 403 for agents and nodes: they read, people write.
    pub fn ensure_user(&self) -> Result<&str, Problem> {
        match self {
            Self::User { name, .. } => Ok(name),
            Self::Agent(_) | Self::Node(_) => Err(Problem::forbidden("only a person may do this")),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: String,
    iat: u64,
    exp: u64,
}

/// Checks passwords, remembering for a while which were right.
#[derive(Debug)]
pub struct Accounts {
    /// Keyed BLAKE3 of name, password and the stored hash: a changed password misses.
    verified: Cache<[u8; 32], ()>,
    key: [u8; 32],
    hashing: Arc<Semaphore>,
    /// What an unknown user's password is compared with.
    nobody: Secret,
}

impl Accounts {
    /// # Errors
    /// Where hashing fails, which only a broken system brings about.
    pub fn new() -> Result<Self, argon2::password_hash::Error> {
        Ok(Self {
            verified: Cache::builder()
                .time_to_live(VERIFIED_TTL)
                .max_capacity(VERIFIED_MAX)
                .build(),
            key: rand::random(),
            hashing: Arc::new(Semaphore::new(HASHES_AT_ONCE_MAX)),
            nobody: hash_password("nobody")?,
        })
    }

    async fn check(&self, name: &str, password: Zeroizing<String>, stored: Option<Secret>) -> bool {
        let known = stored.is_some();
        let stored = stored.unwrap_or_else(|| self.nobody.clone());
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        for part in [name.as_bytes(), password.as_bytes(), &stored.0] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        let key = *hasher.finalize().as_bytes();
        if known && self.verified.contains_key(&key) {
            return true;
        }
        let Ok(_permit) = self.hashing.acquire().await else { return false };
        let check = move || {
            let hash = std::str::from_utf8(&stored.0).unwrap_or_default();
            Argon2::default().verify_password(password.as_bytes(), hash).is_ok()
        };
        let right = known & tokio::task::spawn_blocking(check).await.unwrap_or(false);
        if right {
            self.verified.insert(key, ()).await;
        }
        right
    }
}

/// An argon2id hash in PHC form, with the library's recommended costs.
///
/// # Errors
/// Where there is no randomness for a salt.
pub fn hash_password(password: &str) -> Result<Secret, argon2::password_hash::Error> {
    let hash = Argon2::default().hash_password(password.as_bytes())?;
    Ok(Secret(hash.to_string().into_bytes()))
}

/// Checks a name and password.
///
/// # Errors
/// 401, the same for an unknown name and a wrong password; 503 where the metadata cannot be read.
pub async fn check_password(
    app: &App,
    name: &str,
    password: Zeroizing<String>,
) -> Result<Principal, Problem> {
    let user = app.view().await?.query().user(name)?;
    let stored = user.as_ref().map(|user| user.password_hash.clone());
    let right = app.accounts.check(name, password, stored).await;
    match user {
        Some(user) if right => Ok(Principal::User { name: user.name, role: user.role }),
        _ => Err(Problem {
            message: "the name or the password is wrong".into(),
            ..Problem::unauthorized()
        }),
    }
}

/// Signs a Bearer token for `principal`, which holds for [`TOKEN_TTL`]; gives the token and the
/// second it expires in.
///
/// # Errors
/// Where signing fails.
pub fn issue_token(app: &App, name: &str) -> Result<(String, u64), Problem> {
    let iat = app.now().as_millis() / 1000;
    let exp = iat + TOKEN_TTL.as_secs();
    let cluster = app.keys.cluster.to_string();
    let claims = Claims { iss: cluster.clone(), sub: name.to_owned(), aud: cluster, iat, exp };
    let key = EncodingKey::from_ed_der(app.keys.token.to_pkcs8_der());
    let token = jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &claims, &key)
        .map_err(|error| Problem::internal(&error))?;
    Ok((token, exp))
}

/// Who sends these headers; `None` is nobody.
///
/// # Errors
/// 401 for credentials that are wrong, expired or malformed.
pub async fn authenticate(app: &App, headers: &HeaderMap) -> Result<Option<Principal>, Problem> {
    let principal = credentials(app, headers).await?;
    if let Some(principal) = &principal {
        noted::note_user(|| principal.name());
    }
    Ok(principal)
}

async fn credentials(app: &App, headers: &HeaderMap) -> Result<Option<Principal>, Problem> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    if text.len() > CREDENTIALS_BYTES_MAX {
        return Err(Problem::unauthorized());
    }
    let (scheme, rest) = text.split_once(' ').ok_or_else(Problem::unauthorized)?;
    if scheme.eq_ignore_ascii_case("basic") {
        let decoded = BASE64.decode(rest.trim()).map_err(|_| Problem::unauthorized())?;
        let decoded =
            Zeroizing::new(String::from_utf8(decoded).map_err(|_| Problem::unauthorized())?);
        let (name, password) = decoded.split_once(':').ok_or_else(Problem::unauthorized)?;
        check_password(app, name, Zeroizing::new(password.to_owned())).await.map(Some)
    } else if scheme.eq_ignore_ascii_case("bearer") {
        check_token(app, rest.trim()).await.map(Some)
    } else {
        Err(Problem::unauthorized())
    }
}

async fn check_token(app: &App, token: &str) -> Result<Principal, Problem> {
    let refused = |_| Problem::unauthorized();
    let header = jsonwebtoken::decode_header(token).map_err(refused)?;
    if header.alg != Algorithm::EdDSA {
        return Err(Problem::unauthorized());
    }
    let view = app.view().await?;
    match header.typ.as_deref() {
        Some(USER_TOKEN) => {
            let claims = verify(app, token, app.keys.token.peer_id())?;
            let user = view.query().user(&claims.sub)?.ok_or_else(Problem::unauthorized)?;
            Ok(Principal::User { name: user.name, role: user.role })
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
            let claims = verify(app, token, peer)?;
            let life = claims.exp.saturating_sub(claims.iat);
            if life > SELF_SIGNED_TTL_MAX.as_secs() {
                return Err(Problem::unauthorized());
            }
            Ok(principal)
        }
        _ => Err(Problem::unauthorized()),
    }
}

/// Checks signature, audience and time.
fn verify(app: &App, token: &str, signer: PeerId) -> Result<Claims, Problem> {
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.set_audience(&[app.keys.cluster.to_string()]);
    validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
    validation.leeway = CLOCK_SKEW_MAX.as_secs();
    let key = DecodingKey::from_ed_der(signer.as_public_key());
    let checked = jsonwebtoken::decode::<Claims>(token, &key, &validation);
    let claims = checked.map_err(|_| Problem::unauthorized())?.claims;
    let now = app.now().as_millis() / 1000;
    if claims.iat > now + CLOCK_SKEW_MAX.as_secs() {
        return Err(Problem::unauthorized());
    }
    Ok(claims)
}

impl FromRequestParts<App> for Principal {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut request::Parts, app: &App) -> Result<Self, Problem> {
        authenticate(app, &parts.headers).await?.ok_or_else(Problem::unauthorized)
    }
}
