//! Asks one upstream, as distribution-spec and its token authentication have it.
//!
//! Invariants: only the upstream that was configured is asked, and where it sends one itself; what
//! is not its own host has a public address, or one that the operator has named ([import]
//! allowed_networks), looked at for each hop and connection. The login goes to the upstream's own
//! host and to those of `login_hosts`, tokens to its own host only, and nothing of it along a
//! redirect to another. Never from TLS to the open. Redirects, waiting and answers are bounded.
//! Behind a proxy, which looks names up itself, other hosts are those of `proxy_hosts` (`proxy`).
//! Non-goals: what is done with an answer; when not to ask (see `standing`).

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use parking_lot::Mutex;
use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RANGE, RETRY_AFTER,
};
use reqwest::{Client as Http, Method, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use thiserror::Error as ThisError;
use zeroize::Zeroizing;

use super::challenge::Challenge;
use super::error::Error;
use super::proxy;
use super::standing::Standing;
use crate::config::Upstream;
use crate::http::problem::chain;
use crate::remote::{guarded, is_allowed, refused_by_name};

const REDIRECTS_MAX: usize = 5;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An answer begins within so many times the silence that is borne, whatever it leads through; and
/// one that is read as a whole ends within as many more.
const SILENCES_MAX: u32 = 2;
/// What texts show of a host that an upstream names.
const HOST_CHARS_MAX: usize = 120;
const TOKEN_TIMEOUT: Duration = Duration::from_secs(20);
const TOKEN_BYTES_MAX: usize = 64 * 1024;
/// Repositories whose tokens are kept.
const TOKENS_MAX: usize = 2048;
/// How long a token is good where that is not said, and at least (distribution's specification).
const TOKEN_SECONDS_MIN: u64 = 60;
const TOKEN_SECONDS_MAX: u64 = 3600;
/// A token is not used for so long before its end.
const TOKEN_MARGIN: Duration = Duration::from_secs(10);
const PASSWORD_BYTES_MAX: u64 = 64 * 1024;
/// What hyper-util says of a proxy that answers 407 to a CONNECT; its type for that is private.
const TUNNEL_REFUSED: &str = "proxy authorization required";

/// Why there is no client.
#[derive(Debug, ThisError)]
pub enum ClientError {
    #[error("the url is none")]
    Url,
    #[error("ca_file {0} holds no certificate that can be used")]
    Authority(String),
    #[error("proxy_password_file {path} cannot be read")]
    Password { path: PathBuf, source: std::io::Error },
    #[error("TLS could not be set up")]
    Tls(#[from] reqwest::Error),
}

struct Token {
    value: HeaderValue,
    until: Instant,
}

/// See the module's documentation.
pub struct Client {
    name: String,
    settings: Upstream,
    url: Url,
    networks: Vec<IpNet>,
    own: Http,
    outside: Http,
    tokens: Mutex<HashMap<String, Token>>,
    /// Whether it has asked for Basic, which is sent along from then on.
    basic: AtomicBool,
    standing: Arc<Standing>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("name", &self.name).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Client {
    /// `networks` are those that may be asked besides public addresses.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn new(
        name: &str,
        settings: &Upstream,
        networks: &[IpNet],
        standing: Arc<Standing>,
    ) -> Result<Self, ClientError> {
        let url: Url = settings.url.parse().map_err(|_| ClientError::Url)?;
        let authorities = settings.ca_file.as_deref().map(authorities).transpose()?;
        let open = || Http::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
        let (mut own, mut outside) = match proxy::of(settings)? {
            Some(proxy) => (open().proxy(proxy.clone()), open().proxy(proxy)),
            None => (open(), guarded(networks)),
        };
        let silence = Duration::from_secs(settings.silence_seconds);
        for builder in [&mut own, &mut outside] {
            let bounded = std::mem::take(builder).connect_timeout(CONNECT_TIMEOUT);
            *builder = bounded.read_timeout(silence).http1_only();
        }
        if let Some(authorities) = authorities {
            own = own.tls_certs_only(authorities.clone());
            outside = outside.tls_certs_merge(authorities);
        }
        Ok(Self {
            name: name.to_owned(),
            settings: settings.clone(),
            url,
            networks: networks.to_vec(),
            own: own.build()?,
            outside: outside.build()?,
            tokens: Mutex::default(),
            basic: AtomicBool::new(false),
            standing,
        })
    }

    /// Asks for `/v2/PATH/TAIL`. An answer is 200 or 206.
    ///
    /// # Errors
    /// Anything else, as what it means.
    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        tail: &str,
        headers: HeaderMap,
    ) -> Result<Response, Error> {
        // What was begun goes on, though a connection broke a moment ago.
        match headers.contains_key(RANGE) {
            true => self.standing.check_limit()?,
            false => self.standing.check()?,
        }
        let base = self.url.as_str().trim_end_matches('/');
        let url: Url = format!("{base}/v2/{path}/{tail}").parse().map_err(|_| Error::Odd {
            name: self.name.clone(),
            why: "no address can be made of that name".to_owned(),
        })?;
        let asking = Box::pin(self.ask_authorized(&method, &url, path, &headers));
        let answer = tokio::time::timeout(self.silence() * SILENCES_MAX, asking).await;
        let answer = answer.unwrap_or_else(|_| Err(self.slow("no answer in time")));
        self.standing.note(answer.as_ref().map(|_| ()));
        answer
    }

    /// An upstream that sends nothing for so long is given up, or asked for the rest.
    pub fn silence(&self) -> Duration {
        Duration::from_secs(self.settings.silence_seconds)
    }

    /// All of an answer of at most `most` bytes, in bounded time.
    ///
    /// # Errors
    /// Where it is longer, or breaks off, or takes too long; which is noted.
    pub async fn whole(&self, response: Response, most: usize) -> Result<Vec<u8>, Error> {
        let reading = bounded(response, most);
        let body = match tokio::time::timeout(self.silence() * SILENCES_MAX, reading).await {
            Ok(Ok(Some(body))) => return Ok(body),
            Ok(Ok(None)) => Err(self.odd("its manifest is too long")),
            Ok(Err(error)) => Err(self.away(&error)),
            Err(_) => Err(self.slow("its manifest takes too long")),
        };
        self.standing.note(body.as_ref().map(|_: &Vec<u8>| ()));
        body
    }

    async fn ask_authorized(
        &self,
        method: &Method,
        url: &Url,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Response, Error> {
        let scope = format!("repository:{path}:pull");
        let authorization = self.known(&scope)?;
        let response = self.follow(method, url, headers, authorization.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return self.judged(response);
        }
        let Some(challenge) = Challenge::of(response.headers()) else {
            return Err(Error::Denied(self.name.clone()));
        };
        self.tokens.lock().remove(&scope);
        let authorization = self.authorize(&challenge, &scope).await?;
        self.judged(self.follow(method, url, headers, Some(&authorization)).await?)
    }

    /// What is sent along without being asked for.
    fn known(&self, scope: &str) -> Result<Option<HeaderValue>, Error> {
        if self.basic.load(Ordering::Relaxed) {
            return self.login();
        }
        let tokens = self.tokens.lock();
        let token = tokens.get(scope).filter(|token| token.until > Instant::now());
        Ok(token.map(|token| token.value.clone()))
    }

    fn judged(&self, response: Response) -> Result<Response, Error> {
        let name = self.name.clone();
        Err(match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(response),
            StatusCode::NOT_FOUND | StatusCode::GONE => Error::Unknown(name),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::Denied(name),
            StatusCode::TOO_MANY_REQUESTS => {
                Error::Limited { name, after: retry_after(response.headers()) }
            }
            status => Error::Odd { name, why: format!("it answers {status}") },
        })
    }

    /// Sends a request, and goes where its answers lead.
    async fn follow(
        &self,
        method: &Method,
        start: &Url,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, Error> {
        let (mut url, mut authorization) = (start.clone(), authorization);
        for _ in 0..=REDIRECTS_MAX {
            let own = self.is_own(&url);
            let http = self.http_for(&url)?;
            let mut request = http
                .request(method.clone(), url.clone())
                .headers(headers.clone())
                .header(ACCEPT_ENCODING, "identity");
            if let Some(authorization) = authorization {
                request = request.header(AUTHORIZATION, authorization);
            }
            let response = self.sent(request, &url).await?;
            if own {
                self.standing.note_limits(response.headers());
            }
            if !response.status().is_redirection() {
                return Ok(response);
            }
            url = self.next(&url, &response)?;
            if !self.is_own(&url) {
                // For good: nobody comes back with it either.
                authorization = None;
            }
        }
        Err(self.odd("it redirects without end"))
    }

    fn next(&self, url: &Url, response: &Response) -> Result<Url, Error> {
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let next = location.and_then(|location| url.join(location).ok());
        let next = next.ok_or_else(|| self.odd("it redirects to nowhere"))?;
        if url.scheme() == "https" && next.scheme() != "https" {
            return Err(self.odd("it redirects out of TLS"));
        }
        Ok(next)
    }

    /// Scheme, host and port.
    fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.url.origin()
    }

    /// # Errors
    /// Where nobody may be sent there.
    fn http_for(&self, url: &Url) -> Result<&Http, Error> {
        if self.is_own(url) {
            return Ok(&self.own);
        }
        if !matches!(url.scheme(), "https" | "http") || !url.has_host() {
            return Err(self.odd("it sends to what is no address of a registry"));
        }
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        // A name is looked at when it is looked up.
        if host.parse().is_ok_and(|address: IpAddr| !is_allowed(address, &self.networks)) {
            return Err(self.private(url));
        }
        if self.is_proxied() && !proxy::may_ask(&self.settings, host) {
            let host = shown_host(url);
            return Err(self.odd(&format!(
                "it sends to {host}, which its proxy may not be asked for; proxy_hosts may allow it"
            )));
        }
        Ok(&self.outside)
    }

    fn is_proxied(&self) -> bool {
        self.settings.proxy.is_some()
    }

    fn private(&self, url: &Url) -> Error {
        let host = shown_host(url);
        self.odd(&format!(
            "it sends to {host}, which has no public address; [import] allowed_networks may allow it"
        ))
    }

    pub fn slow(&self, why: &str) -> Error {
        Error::Away { name: self.name.clone(), why: why.to_owned() }
    }

    fn refused_by_proxy(&self) -> Error {
        let why = "its proxy wants another proxy_username and proxy_password_file".to_owned();
        Error::Login { name: self.name.clone(), why }
    }

    fn odd(&self, why: &str) -> Error {
        Error::Odd { name: self.name.clone(), why: why.to_owned() }
    }

    async fn sent(&self, request: RequestBuilder, url: &Url) -> Result<Response, Error> {
        let response = request.send().await.map_err(|error| match refused_by_name(&error) {
            true => self.private(url),
            false if self.is_proxied() && error.source_text().contains(TUNNEL_REFUSED) => {
                self.refused_by_proxy()
            }
            false => self.away(&error),
        })?;
        if self.is_proxied() {
            // The address is the proxy's.
            return match response.status() {
                StatusCode::PROXY_AUTHENTICATION_REQUIRED => Err(self.refused_by_proxy()),
                _ => Ok(response),
            };
        }
        let address = response.remote_addr().map(|address| address.ip());
        let allowed = address.is_some_and(|address| is_allowed(address, &self.networks));
        match self.is_own(url) || allowed {
            true => Ok(response),
            false => Err(self.private(url)),
        }
    }

    pub fn away(&self, error: &reqwest::Error) -> Error {
        // URLs of storage behind a registry have signatures in them.
        let why = match self.is_proxied() {
            true => format!("by its proxy: {}", error.source_text()),
            false => error.source_text(),
        };
        Error::Away { name: self.name.clone(), why }
    }

    /// What answers a challenge.
    async fn authorize(&self, challenge: &Challenge, scope: &str) -> Result<HeaderValue, Error> {
        match challenge {
            Challenge::Basic => {
                self.basic.store(true, Ordering::Relaxed);
                self.login()?.ok_or_else(|| Error::Denied(self.name.clone()))
            }
            Challenge::Bearer { realm, service } => {
                let (value, lasts) = self.token(realm, service.as_deref(), scope).await?;
                let mut tokens = self.tokens.lock();
                if tokens.len() >= TOKENS_MAX {
                    let now = Instant::now();
                    tokens.retain(|_, token| token.until > now);
                }
                if tokens.len() < TOKENS_MAX {
                    let until = Instant::now() + lasts.saturating_sub(TOKEN_MARGIN);
                    tokens.insert(scope.to_owned(), Token { value: value.clone(), until });
                }
                Ok(value)
            }
        }
    }

    async fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: &str,
    ) -> Result<(HeaderValue, Duration), Error> {
        let mut url: Url = realm.parse().map_err(|_| self.odd("its token realm is no URL"))?;
        if self.url.scheme() == "https" && url.scheme() != "https" {
            return Err(self.odd("its tokens do not come by TLS"));
        }
        url.query_pairs_mut().extend_pairs(service.map(|service| ("service", service)));
        url.query_pairs_mut().append_pair("scope", scope);
        let mut request = self.http_for(&url)?.get(url.clone()).timeout(TOKEN_TIMEOUT);
        let login = self.login()?;
        if let Some(login) = &login {
            if !self.may_know_login(&url) {
                let host = shown_host(&url);
                let why = format!("it sends logins to {host}, which is not in login_hosts");
                return Err(Error::Login { name: self.name.clone(), why });
            }
            request = request.header(AUTHORIZATION, login);
        }
        let response = self.sent(request, &url).await?;
        let response = match response.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if login.is_some() => {
                let why = format!("{} answers {}", shown_host(&url), response.status());
                return Err(Error::Login { name: self.name.clone(), why });
            }
            _ => self.judged(response)?,
        };
        let body = bounded(response, TOKEN_BYTES_MAX).await;
        let answer: Option<TokenAnswer> =
            body.ok().flatten().and_then(|body| serde_json::from_slice(&body).ok());
        let answer = answer.ok_or_else(|| self.odd("its tokens cannot be read"))?;
        let token = answer.token.or(answer.access_token).map(Zeroizing::new);
        let value = token.and_then(|token| {
            HeaderValue::from_str(&Zeroizing::new(format!("Bearer {}", token.as_str()))).ok()
        });
        let mut value = value.ok_or_else(|| self.odd("its token service gives none"))?;
        value.set_sensitive(true);
        let seconds = answer.expires_in.unwrap_or(TOKEN_SECONDS_MIN);
        let lasts = Duration::from_secs(seconds.clamp(TOKEN_SECONDS_MIN, TOKEN_SECONDS_MAX));
        Ok((value, lasts))
    }

    fn may_know_login(&self, url: &Url) -> bool {
        let host = url.host_str().unwrap_or_default();
        let listed = self.settings.login_hosts.iter().any(|one| one.eq_ignore_ascii_case(host));
        self.is_own(url) || (listed && url.scheme() == "https")
    }

    /// Basic credentials, where there are any.
    fn login(&self) -> Result<Option<HeaderValue>, Error> {
        let Some(path) = &self.settings.password_file else { return Ok(None) };
        let unread = |why: &str| Error::Login { name: self.name.clone(), why: why.to_owned() };
        let size = std::fs::metadata(path).map_or(0, |file| file.len());
        if size > PASSWORD_BYTES_MAX {
            return Err(unread("password_file is too long"));
        }
        let password = std::fs::read_to_string(path).map(Zeroizing::new);
        let password = password.map_err(|_| unread("password_file cannot be read"))?;
        let username = &self.settings.username;
        let pair =
            Zeroizing::new(format!("{username}:{}", password.trim_end_matches(['\r', '\n'])));
        let text = Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())));
        let mut value = HeaderValue::from_str(&text).map_err(|_| unread("no header carries it"))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

/// A body of at most `most` bytes; `None` where it is longer.
///
/// # Errors
/// Where the connection breaks.
async fn bounded(mut response: Response, most: usize) -> Result<Option<Vec<u8>>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(part) = response.chunk().await? {
        if body.len() + part.len() > most {
            return Ok(None);
        }
        body.extend_from_slice(&part);
    }
    Ok(Some(body))
}

/// As texts have it: an upstream may name what is as long as it likes.
fn shown_host(url: &Url) -> String {
    url.host_str().unwrap_or_default().chars().take(HOST_CHARS_MAX).collect()
}

fn authorities(path: &Path) -> Result<Vec<reqwest::Certificate>, ClientError> {
    let unusable = || ClientError::Authority(path.display().to_string());
    let pem = std::fs::read(path).map_err(|_| unusable())?;
    let all = reqwest::Certificate::from_pem_bundle(&pem);
    all.ok().filter(|all| !all.is_empty()).ok_or_else(unusable)
}

/// In seconds; dates are not understood, and are as good as none (RFC 9110, 10.2.3).
fn retry_after(headers: &HeaderMap) -> Duration {
    const USUAL: Duration = Duration::from_secs(60);
    const LONGEST: Duration = Duration::from_secs(3600);
    let value = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let seconds = value.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
    seconds.unwrap_or(USUAL).clamp(Duration::from_secs(1), LONGEST)
}

trait SourceText {
    fn source_text(&self) -> String;
}

impl SourceText for reqwest::Error {
    /// Without the URL.
    fn source_text(&self) -> String {
        match std::error::Error::source(self) {
            Some(source) => chain(source),
            None if self.is_timeout() => "no answer in time".to_owned(),
            None => "the connection broke".to_owned(),
        }
    }
}
