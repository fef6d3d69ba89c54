//! Login at another issuer: OpenID Connect, or GitHub's OAuth 2; authorization code with PKCE
//! (RFC 7636).
//!
//! What has to be remembered while somebody is at the issuer goes along in a sealed cookie, so that
//! any node may hear the end of what another has begun. A browser gets its session as the answer; a
//! program begins with a port on its own machine and a challenge, and gets a ticket there, which is
//! worth nothing without what the challenge was made of, and gives one session.
//!
//! Invariants: the answer of an issuer is taken only by the browser that was sent there (`state`),
//! once for each question (`nonce` or the verifier, and the issuer's own code); nobody is sent anywhere but to the
//! issuer in the settings, and to this machine's loopback.

use std::net::SocketAddr;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::Json;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use shoal_api::{LoginResponse, OidcRedeem};
use shoal_content::Timestamp;
use shoal_metadata::{self as metadata, AuditResult, LoginMeans};
use tracing::warn;

use super::input::{Body, Query};
use crate::clock::rfc3339;
use crate::config::Protocol;
use crate::http::auth::github::{self, Unknown};
use crate::http::auth::issuer::{Description, Keys, Person, Rejected, read_answer};
use crate::http::auth::sealed::{open, seal, seconds};
use crate::http::auth::session::{SESSION_ID_BYTES, agent_of, begin_session, session_id};
use crate::http::auth::{Wanted, follow, foreign_account};
use crate::http::problem::{Problem, chain};
use crate::state::App;

const COOKIE: &str = "__Host-shoal-oidc";
/// How long somebody may be at the issuer, in seconds.
const LOGIN_SECONDS: u64 = 600;
/// How long a program may take to bring its ticket, in seconds.
const TICKET_SECONDS: u64 = 60;
/// For all that the issuer is asked when somebody comes back.
const ISSUER_TIMEOUT: Duration = Duration::from_secs(30);
/// Of a code, in bytes.
const TEXT_BYTES_MAX: usize = 4096;

/// What is remembered while somebody is at the issuer.
#[derive(Serialize, Deserialize)]
struct Away {
    state: String,
    nonce: String,
    verifier: String,
    until: u64,
    program: Option<Program>,
}

/// Who began the login, if that was no browser.
#[derive(Clone, Serialize, Deserialize)]
struct Program {
    /// On loopback.
    port: u16,
    /// base64url of a SHA-256.
    challenge: String,
}

/// What a program's ticket says.
#[derive(Serialize, Deserialize)]
struct Ticket {
    user: String,
    issuer: String,
    challenge: String,
    until: u64,
}

fn none() -> Problem {
    super::problem::missing("oidc_off", "no issuer is set; see [oidc] in the settings")
}

fn failed(text: &str) -> Problem {
    Problem { code: "oidc_failed", message: text.to_owned(), ..Problem::unauthorized() }
}

fn away(why: &str) -> Problem {
    warn!(why, "the issuer does not answer as it should");
    let text = "the issuer does not answer as it should; the node's log says more";
    Problem::new(StatusCode::BAD_GATEWAY, "issuer_away", text)
}

fn random() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>())
}

const OF_COOKIE: &str = "shoal 2026 oidc cookie";
const OF_TICKET: &str = "shoal 2026 oidc ticket";
const OF_SESSION: &str = "shoal 2026 oidc session";

fn callback(app: &App) -> String {
    format!("{}/api/v1/auth/oidc/callback", app.config.api_url())
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct Begin {
    port: Option<u16>,
    challenge: Option<String>,
}

/// Who guesses elsewhere is not let in here either.
///
/// # Errors
/// 403 where the address is blocked.
async fn check_address(app: &App, client: SocketAddr) -> Result<(), Problem> {
    let view = app.view().await?;
    app.lockout.check_address(view.query(), Some(client.ip()))
}

/// Sends a browser to the issuer.
pub async fn begin(
    State(app): State<App>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    Query(begin): Query<Begin>,
) -> Result<Response, Problem> {
    let settings = &app.config.oidc;
    if settings.issuer.is_empty() {
        return Err(none());
    }
    check_address(&app, client).await?;
    let program = match (begin.port, begin.challenge) {
        (None, None) => None,
        (Some(port), Some(challenge)) if challenge.len() == 43 && port >= 1024 => {
            Some(Program { port, challenge })
        }
        _ => {
            let text = "port and challenge (base64url of a SHA-256) come together";
            return Err(Problem::bad_request("query_invalid", text));
        }
    };
    let endpoint = match settings.protocol {
        Protocol::Openid => described(&app).await?.authorization_endpoint,
        Protocol::Github => github::authorization_endpoint(settings),
    };
    let until = seconds() + LOGIN_SECONDS;
    let gone = Away { state: random(), nonce: random(), verifier: random(), until, program };
    let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(gone.verifier.as_bytes()));
    let scopes = match settings.protocol {
        Protocol::Openid => format!("openid {}", settings.scopes.join(" ")),
        Protocol::Github => github::scopes(settings).to_owned(),
    };
    let mut url = reqwest::Url::parse(&endpoint).map_err(|error| away(&error.to_string()))?;
    url.query_pairs_mut()
        .append_pair("response_type", "code")
        .append_pair("client_id", &settings.client_id)
        .append_pair("redirect_uri", &callback(&app))
        .append_pair("scope", &scopes)
        .append_pair("state", &gone.state)
        .append_pair("nonce", &gone.nonce)
        .append_pair("code_challenge", &challenge)
        .append_pair("code_challenge_method", "S256");
    let cookie = cookie(&seal(&app, OF_COOKIE, &gone)?, LOGIN_SECONDS);
    Ok((StatusCode::FOUND, [(header::LOCATION, url.to_string()), (header::SET_COOKIE, cookie)])
        .into_response())
}

fn cookie(value: &str, seconds: u64) -> String {
    format!("{COOKIE}={value}; Path=/; Max-Age={seconds}; Secure; HttpOnly; SameSite=Lax")
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct Back {
    code: Option<String>,
    state: Option<String>,
    error: Option<String>,
}

/// Hears what the issuer says.
pub async fn end(
    State(app): State<App>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    Query(back): Query<Back>,
) -> Result<Response, Problem> {
    if app.config.oidc.issuer.is_empty() {
        return Err(none());
    }
    check_address(&app, client).await?;
    let over = || failed("the login took too long, or began in another browser; begin again");
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|text| text.split(';')).filter_map(|one| one.split_once('='));
    let sealed = pairs.find(|(name, _)| name.trim() == COOKIE).ok_or_else(over)?.1;
    let gone: Away = open(&app, OF_COOKIE, sealed.trim()).ok_or_else(over)?;
    let state = back.state.unwrap_or_default();
    let same = verify_slices_are_equal(state.as_bytes(), gone.state.as_bytes()).is_ok();
    if !same || gone.until < seconds() {
        return Err(over());
    }
    if let Some(error) = back.error {
        let error: String = error.chars().filter(|c| c.is_ascii_graphic()).take(64).collect();
        return Err(failed(&format!("the issuer did not let you in: {error}")));
    }
    let code = back.code.filter(|code| code.len() <= TEXT_BYTES_MAX).ok_or_else(over)?;
    let person = tokio::time::timeout(ISSUER_TIMEOUT, person(&app, &code, &gone))
        .await
        .map_err(|_| away("it takes too long"))??;
    let user = admitted(&app, person).await?;
    crate::http::noted::note_user(|| user.name.clone());
    let clear = (header::SET_COOKIE, cookie("", 0));
    if let Some(Program { port, challenge }) = gone.program {
        let issuer = app.config.oidc.issuer.clone();
        let until = seconds() + TICKET_SECONDS;
        let ticket = Ticket { user: user.name, issuer, challenge, until };
        let ticket = seal(&app, OF_TICKET, &ticket)?;
        let target = format!("http://127.0.0.1:{port}/?ticket={ticket}");
        let headers = [(header::LOCATION, target), clear];
        return Ok((StatusCode::FOUND, headers).into_response());
    }
    let answer = begun(&app, session_id(), &user, client, &headers).await?;
    Ok(([clear], answer).into_response())
}

async fn begun(
    app: &App,
    id: String,
    user: &metadata::User,
    client: SocketAddr,
    headers: &HeaderMap,
) -> Result<Json<LoginResponse>, Problem> {
    let means = LoginMeans::Issuer(app.config.oidc.issuer.clone());
    let begun = begin_session(app, id, user, means, Some(client.ip()), agent_of(headers)).await?;
    app.services.audit.note("session.login", user.name.clone(), AuditResult::Done);
    let expires_at = rfc3339(Timestamp::from_millis(begun.expires.saturating_mul(1000)));
    Ok(Json(LoginResponse { token: begun.token, expires_at }))
}

/// What the session of a ticket is called by, at whichever node: so it begins no other one.
fn session_of(ticket: &str) -> String {
    hex::encode(&blake3::derive_key(OF_SESSION, ticket.as_bytes())[..SESSION_ID_BYTES])
}

/// A program's ticket for a session.
pub async fn redeem(
    State(app): State<App>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    Body(request): Body<OidcRedeem>,
) -> Result<Json<LoginResponse>, Problem> {
    check_address(&app, client).await?;
    let over = || failed("the ticket is not good any more; begin again");
    let ticket: Ticket = open(&app, OF_TICKET, &request.ticket).ok_or_else(over)?;
    let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(request.verifier.as_bytes()));
    let right = verify_slices_are_equal(challenge.as_bytes(), ticket.challenge.as_bytes()).is_ok();
    if !right || ticket.until < seconds() || ticket.issuer != app.config.oidc.issuer {
        return Err(over());
    }
    let view = app.view().await?;
    let user = view.query().user(&ticket.user)?.ok_or_else(over)?;
    drop(view);
    crate::http::noted::note_user(|| user.name.clone());
    let id = session_of(&request.ticket);
    begun(&app, id, &user, client, &headers).await.map_err(|problem| match problem.status {
        StatusCode::CONFLICT => over(),
        _ => problem,
    })
}

/// Who comes back with `code`.
async fn person(app: &App, code: &str, gone: &Away) -> Result<Person, Problem> {
    let answer = redeem_code(app, code, gone).await?;
    match app.config.oidc.protocol {
        Protocol::Openid => stated(app, answer, gone).await,
        Protocol::Github => github::person(app.issuers.http(), &app.config.oidc, answer)
            .await
            .map_err(|unknown| match unknown {
                Unknown::Code => spent(),
                Unknown::Away(why) => away(&why),
            }),
    }
}

#[derive(Deserialize)]
struct Tokens {
    id_token: String,
}

fn spent() -> Problem {
    failed("the issuer does not know this login any more; begin again")
}

async fn described(app: &App) -> Result<Description, Problem> {
    app.issuers.describe(&app.config.oidc.issuer).await.map_err(|why| away(&why))
}

/// What the issuer gives for `code`.
async fn redeem_code(app: &App, code: &str, gone: &Away) -> Result<reqwest::Response, Problem> {
    let settings = &app.config.oidc;
    let endpoint = match settings.protocol {
        Protocol::Openid => described(app).await?.token_endpoint,
        Protocol::Github => github::token_endpoint(settings),
    };
    let mut form = vec![
        ("grant_type", "authorization_code".to_owned()),
        ("code", code.to_owned()),
        ("redirect_uri", callback(app)),
        ("client_id", settings.client_id.clone()),
        ("code_verifier", gone.verifier.clone()),
    ];
    let mut request = app.issuers.http().post(&endpoint).header(header::ACCEPT, "application/json");
    let secret = match &settings.client_secret_file {
        Some(path) => tokio::fs::read_to_string(path)
            .await
            .map_err(|error| Problem::internal(&error))?
            .trim()
            .to_owned(),
        None => settings.client_secret.clone(),
    };
    if settings.protocol == Protocol::Github {
        form.push(("client_secret", secret));
    } else if !secret.is_empty() {
        request = request.basic_auth(&settings.client_id, Some(secret));
        form.retain(|(name, _)| *name != "client_id");
    }
    let mut body =
        reqwest::Url::parse("http://form/").map_err(|error| Problem::internal(&error))?;
    body.query_pairs_mut().extend_pairs(&form);
    let body = body.query().unwrap_or_default().to_owned();
    let request = request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
    let answer = request.body(body).send().await.map_err(|error| away(&chain(&error)))?;
    // Asked too often, which is no reason to begin again at once.
    if matches!(answer.status(), StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS) {
        return Err(away(&format!("{endpoint} answers {}", answer.status())));
    }
    if answer.status().is_client_error() {
        return Err(spent());
    }
    answer.error_for_status().map_err(|error| away(&chain(&error)))
}

/// Who came back, by the issuer's signed statement.
async fn stated(app: &App, answer: reqwest::Response, gone: &Away) -> Result<Person, Problem> {
    let settings = &app.config.oidc;
    let tokens: Tokens = read_answer(answer).await.map_err(|why| away(&why))?;
    let keys = Keys::OfIssuer(settings.issuer.clone());
    let claims = app
        .issuers
        .verify(&keys, &settings.issuer, &settings.client_id, &tokens.id_token)
        .await
        .map_err(|rejected| match rejected {
            Rejected::Away => rejected.into(),
            Rejected::Expired | Rejected::Invalid => failed("the issuer's token does not hold"),
        })?;
    let nonce = claims.text("nonce").unwrap_or_default();
    if verify_slices_are_equal(nonce.as_bytes(), gone.nonce.as_bytes()).is_err() {
        return Err(failed("the issuer's token is not for this login"));
    }
    let groups = claims.list(&settings.groups_claim).unwrap_or_default();
    let email = claims.email().map(str::to_owned);
    Ok(Person {
        subject: claims.subject().to_owned(),
        account: claims.text(&settings.account_claim).unwrap_or_default().to_owned(),
        email,
        groups: groups.into_iter().map(str::to_owned).collect(),
    })
}

/// The account, with the role and groups that the issuer's groups give it.
async fn admitted(app: &App, person: Person) -> Result<metadata::User, Problem> {
    let settings = &app.config.oidc;
    let view = app.view().await?;
    let Person { subject, account, email, groups } = person;
    let required = &settings.required_groups;
    if !required.is_empty() && !required.iter().any(|group| groups.contains(group)) {
        return Err(failed("none of your groups there is one that is let in here"));
    }
    let create = settings.create_accounts;
    let wanted = Wanted { name: &account, email: email.as_deref() };
    let user =
        foreign_account(app, view.query(), &settings.issuer, &subject, wanted, create).await?;
    drop(view);
    let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
    let mapped = settings.mapped().unwrap_or_default();
    follow(app, user, &groups, &settings.admin_groups, mapped).await
}
