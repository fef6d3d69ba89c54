//! Logging in at the mirror: who asks, the challenge, and the token endpoint that it leads to.
//!
//! The challenge names this mirror as its realm, by the name that the client came by: a node need
//! not be reachable by the client, nor trusted by it. Credentials are a node's to judge. What the
//! client gets for them is a token of this mirror's, which stands for them here and nowhere else,
//! so that they are the same credentials at each pull, and are so while no node answers. Nobody gets
//! a token, too: docker takes one before it asks for anything once it was challenged.
//!
//! Invariants: a token is kept by its hash, ends after [`TOKEN_TTL`], is lost with the process, and
//! there are at most [`TOKENS_MAX`]; it is given only for credentials that a node has taken.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::{Body, to_bytes};
use axum::extract::{Query, Request};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use serde_json::json;
use shoal_content::RepositoryName;
use zeroize::Zeroizing;

use super::Mirror;
use super::error::Error;

const TOKEN_TTL: Duration = Duration::from_secs(300);
const TOKENS_MAX: usize = 4096;
/// What tokens of this mirror's begin with.
const TOKEN_PREFIX: &str = "shoal-mirror-";
/// The token of nobody.
const NOBODY: &str = "shoal-mirror-nobody";
/// The longest form of a token request, in bytes.
const FORM_BYTES_MAX: usize = 16 * 1024;
/// The longest credentials that are passed on, in bytes.
const CREDENTIALS_BYTES_MAX: usize = 8 * 1024;

/// Who asks, as a node will be told.
#[derive(Debug, Clone)]
pub struct Caller {
    authorization: Option<HeaderValue>,
    /// Whether anything was brought, be it the token of nobody.
    asked: bool,
}

impl Caller {
    pub const fn nobody() -> Self {
        Self { authorization: None, asked: false }
    }

    #[cfg(test)]
    pub fn bringing(text: &str) -> Self {
        Self { authorization: Some(HeaderValue::from_str(text).unwrap()), asked: true }
    }

    pub const fn authorization(&self) -> Option<&HeaderValue> {
        self.authorization.as_ref()
    }

    pub const fn is_nobody(&self) -> bool {
        self.authorization.is_none()
    }

    /// Whether a node's no can only mean that the password is wrong.
    pub fn brings_password(&self) -> bool {
        let value = self.authorization.as_ref().and_then(|value| value.to_str().ok());
        value.is_some_and(is_basic)
    }

    /// Whether it came without so much as the token of nobody.
    pub const fn was_never_asked(&self) -> bool {
        !self.asked
    }

    fn with(text: &str) -> Result<Self, Error> {
        let mut value = HeaderValue::from_str(text).map_err(|_| Error::Unauthorized)?;
        value.set_sensitive(true);
        Ok(Self { authorization: Some(value), asked: true })
    }
}

#[derive(Debug)]
struct Login {
    authorization: Zeroizing<String>,
    until: Instant,
}

/// The tokens that this mirror has given.
#[derive(Debug, Default)]
pub struct Logins {
    tokens: Mutex<HashMap<[u8; 32], Login>>,
}

impl Logins {
    /// Who sends these headers.
    ///
    /// # Errors
    /// For what no node would take, and for a token of this mirror's that is not good any more.
    pub fn caller(&self, headers: &HeaderMap) -> Result<Caller, Error> {
        let mut all = headers.get_all(header::AUTHORIZATION).iter();
        let Some(value) = all.next() else { return Ok(Caller::nobody()) };
        let text = value.to_str().map_err(|_| Error::Unauthorized)?;
        if all.next().is_some() || text.len() > CREDENTIALS_BYTES_MAX {
            return Err(Error::Unauthorized);
        }
        let token =
            text.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        match token.map(|(_, token)| token.trim()) {
            Some(NOBODY) => Ok(Caller { authorization: None, asked: true }),
            Some(token) if token.starts_with(TOKEN_PREFIX) => {
                let tokens = self.tokens.lock();
                let login = tokens.get(blake3::hash(token.as_bytes()).as_bytes());
                let login = login.filter(|login| login.until > Instant::now());
                Caller::with(&login.ok_or(Error::Unauthorized)?.authorization)
            }
            _ => Caller::with(text),
        }
    }

    fn issue(&self, authorization: &str) -> String {
        let token = format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>()));
        let mut tokens = self.tokens.lock();
        if tokens.len() >= TOKENS_MAX {
            let now = Instant::now();
            tokens.retain(|_, login| login.until > now);
        }
        if tokens.len() >= TOKENS_MAX {
            let first = tokens.iter().min_by_key(|(_, login)| login.until).map(|(key, _)| *key);
            if let Some(first) = first {
                tokens.remove(&first);
            }
        }
        let login = Login {
            authorization: Zeroizing::new(authorization.to_owned()),
            until: Instant::now() + TOKEN_TTL,
        };
        tokens.insert(*blake3::hash(token.as_bytes()).as_bytes(), login);
        token
    }
}

fn is_basic(text: &str) -> bool {
    text.get(..6).is_some_and(|start| start.eq_ignore_ascii_case("basic "))
}

/// What a client that is not let in is to do: get a token here, for `name` where that is known.
/// Clients that tell no fit host are asked for Basic.
pub fn challenge(
    scheme: &str,
    request: (&HeaderMap, Option<&Authority>),
    name: Option<&RepositoryName>,
) -> HeaderValue {
    let (headers, authority) = request;
    // HTTP/2 has the host in its `:authority`.
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.or(authority.map(Authority::as_str)).unwrap_or_default();
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_:[]".contains(c);
    let scope = name.map(|name| format!(",scope=\"repository:{name}:pull\"")).unwrap_or_default();
    let text = format!("Bearer realm=\"{scheme}://{host}/v2/token\",service=\"{host}\"{scope}");
    let fit = !host.is_empty() && host.chars().all(plain) && host.parse::<Authority>().is_ok();
    let text = Some(text).filter(|_| fit);
    text.and_then(|text| HeaderValue::from_str(&text).ok())
        .unwrap_or(HeaderValue::from_static("Basic realm=\"shoal\""))
}

/// `GET /v2/token` with Basic or nothing, `POST` with a form of `grant_type=password`.
///
/// # Errors
/// 401 for credentials that a node does not take, 404 for another grant, on which containerd falls
/// back to GET.
pub async fn token(mirror: &Mirror, request: Request) -> Result<Response, Error> {
    let caller = match *request.method() {
        Method::POST => password_grant(request.into_body()).await?,
        _ => {
            let headers = request.headers();
            let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
            // A token is not good for another token: it would outlive what it was given for.
            if value.is_some_and(|text| !is_basic(text)) {
                return Err(Error::Unauthorized);
            }
            mirror.logins.caller(headers)?
        }
    };
    let token = match caller.authorization().map(|value| value.to_str().unwrap_or_default()) {
        None => NOBODY.to_owned(),
        Some(text) => {
            mirror.rights.check_login(&mirror.fetcher, &caller).await?;
            mirror.logins.issue(text)
        }
    };
    let lasts = TOKEN_TTL.as_secs();
    let body = json!({ "token": token, "access_token": token, "expires_in": lasts });
    let mut response = Json(body).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

async fn password_grant(body: Body) -> Result<Caller, Error> {
    let form = to_bytes(body, FORM_BYTES_MAX).await.map_err(|_| Error::Form)?;
    let form = Zeroizing::new(format!("/?{}", String::from_utf8_lossy(&form)));
    let fields = form.parse().ok().and_then(|uri| {
        Query::<Vec<(String, String)>>::try_from_uri(&uri).ok().map(|query| query.0)
    });
    let fields = fields.unwrap_or_default();
    let field =
        |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let (Some("password"), Some(name), Some(password)) =
        (field("grant_type"), field("username"), field("password"))
    else {
        return Err(Error::Grant);
    };
    if name.contains(':') {
        return Err(Error::Unauthorized);
    }
    let pair = Zeroizing::new(format!("{name}:{password}"));
    Caller::with(&format!("Basic {}", STANDARD.encode(pair.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_token_stands_for_its_credentials_and_a_forged_one_for_nothing() {
        let logins = Logins::default();
        let token = logins.issue("Basic YTpi");
        let caller = logins.caller(&headers(&[&format!("bearer {token}")])).unwrap();
        assert_eq!(caller.authorization().unwrap(), "Basic YTpi");
        let forged = format!("Bearer {TOKEN_PREFIX}{}", "A".repeat(43));
        assert!(logins.caller(&headers(&[&forged])).is_err());
        assert!(Logins::default().caller(&headers(&[&format!("Bearer {token}")])).is_err());
        let nobody = logins.caller(&headers(&[&format!("Bearer {NOBODY}")])).unwrap();
        assert!(nobody.is_nobody() && !nobody.was_never_asked());
        assert!(logins.caller(&headers(&[])).unwrap().was_never_asked());
        // Others' tokens are a node's to judge.
        let passed = logins.caller(&headers(&["Bearer pat_v1_x"])).unwrap();
        assert_eq!(passed.authorization().unwrap(), "Bearer pat_v1_x");
        assert!(logins.caller(&headers(&["Basic YTpi", "Basic YTpj"])).is_err());
        assert!(logins.caller(&headers(&[&"x".repeat(9000)])).is_err());
    }

    #[test]
    fn tokens_are_bounded() {
        let logins = Logins::default();
        let first = logins.issue("Basic MQ==");
        for _ in 0..TOKENS_MAX {
            logins.issue("Basic Mg==");
        }
        assert_eq!(logins.tokens.lock().len(), TOKENS_MAX);
        assert!(logins.caller(&headers(&[&format!("Bearer {first}")])).is_err());
    }

    #[test]
    fn a_challenge_leads_back_to_where_the_client_came() {
        let of = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            let name = "shop/app".parse().unwrap();
            challenge("http", (&headers, None), Some(&name)).to_str().unwrap().to_owned()
        };
        assert_eq!(
            of("127.0.0.1:5055"),
            "Bearer realm=\"http://127.0.0.1:5055/v2/token\",service=\"127.0.0.1:5055\",\
             scope=\"repository:shop/app:pull\""
        );
        for odd in ["a\"b", "", "a b", "x/y", "a,realm=b"] {
            assert_eq!(of(odd), "Basic realm=\"shoal\"", "{odd}");
        }
    }

    #[tokio::test]
    async fn a_form_gives_a_name_and_a_password_or_nothing() {
        let caller = |form: &'static str| password_grant(Body::from(form));
        let got = caller("grant_type=password&username=a&password=b%20c").await.unwrap();
        assert_eq!(got.authorization().unwrap(), "Basic YTpiIGM=");
        assert!(matches!(caller("grant_type=refresh_token").await, Err(Error::Grant)));
        let two = caller("grant_type=password&username=a:b&password=c").await;
        assert!(matches!(two, Err(Error::Unauthorized)));
        let long = Body::from("x".repeat(FORM_BYTES_MAX + 1));
        assert!(matches!(password_grant(long).await, Err(Error::Form)));
    }
}
