//! Talks to the cluster's REST API through whichever node answers.
//!
//! Invariants: the token goes to nodes of this cluster only; rounds over the nodes, redirects and
//! the size of answers are bounded. A request may reach the cluster twice when its answer was
//! lost; every call here is one that bears it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, LINK, LOCATION};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shoal_api::{Page, Problem};

use crate::config::{Context, Trust};
use crate::error::Error;
use crate::trust::http_client;

/// How often the list of nodes is gone through before giving up. With the pauses between, this
/// outlasts the election of a new leader several times.
const ROUNDS_MAX: u32 = 6;
const PAUSE_FIRST: Duration = Duration::from_millis(300);
const PAUSE_MAX: Duration = Duration::from_secs(4);
const REDIRECTS_MAX: u32 = 4;
/// Until the head of an answer is there; a node itself gives up on the cluster after 10 s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// For a part of an upload, which has to cross the network first.
const PART_TIMEOUT: Duration = Duration::from_secs(600);
/// A body that brings nothing for so long is given up.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Parts that one list may have.
const PARTS_MAX: usize = 2500;
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How finely the sending of a part is reported.
const PIECE_BYTES: usize = 128 * 1024;

/// What a request carries.
#[derive(Clone, Copy)]
pub enum Body<'a> {
    Empty,
    Json(&'a serde_json::Value),
    /// Bytes of a part. The counter grows as they go out, and falls back when the part has to be
    /// sent again.
    Part(&'a Bytes, &'a Arc<AtomicU64>),
}

/// One request, to be tried on several nodes.
pub struct Request<'a> {
    pub method: Method,
    /// Without a leading slash, with its query.
    pub path: String,
    pub headers: HeaderMap,
    pub body: Body<'a>,
}

impl Request<'_> {
    pub fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path, Body::Empty)
    }
}

impl<'a> Request<'a> {
    pub fn new(method: Method, path: impl Into<String>, body: Body<'a>) -> Self {
        Self { method, path: path.into(), headers: HeaderMap::new(), body }
    }
}

/// The way to one cluster.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    nodes: Vec<Url>,
    /// Index of the node that answered last.
    preferred: AtomicUsize,
    token: Option<String>,
}

/// How one try on one node ended.
enum Try {
    Answered(Response),
    /// Another node, or this one later, may do better.
    Again(Error),
    Over(Error),
}

impl Client {
    pub fn new(context: &Context) -> Result<Self, Error> {
        let mut nodes = Vec::new();
        for text in std::iter::once(&context.url).chain(&context.nodes) {
            let url = crate::trust::parse_url(text)?;
            if !nodes.contains(&url) {
                nodes.push(url);
            }
        }
        let http = http_client(&context.trust)?;
        let token = Some(context.token.clone());
        Ok(Self { http, nodes, preferred: AtomicUsize::new(0), token })
    }

    /// Towards one node, by nobody yet.
    pub fn anonymous(url: Url, trust: &Trust) -> Result<Self, Error> {
        let http = http_client(trust)?;
        Ok(Self { http, nodes: vec![url], preferred: AtomicUsize::new(0), token: None })
    }

    #[must_use]
    pub fn with_token(self, token: String) -> Self {
        Self { token: Some(token), ..self }
    }

    pub async fn get<T: DeserializeOwned>(&self, path: impl Into<String>) -> Result<T, Error> {
        json(self.send(&Request::get(path)).await?).await
    }

    /// All of a list that comes in parts.
    ///
    /// # Errors
    /// Those of [`Self::get`]; for more than [`PARTS_MAX`] parts.
    pub async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, Error> {
        self.parts(path, |items: Vec<T>| items).await
    }

    /// The same of a list that has pages.
    ///
    /// # Errors
    /// Those of [`Self::list`].
    pub async fn pages<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, Error> {
        self.parts(path, |page: Page<T>| page.data).await
    }

    async fn parts<B: DeserializeOwned, T>(
        &self,
        path: &str,
        items: impl Fn(B) -> Vec<T>,
    ) -> Result<Vec<T>, Error> {
        let (mut all, mut path) = (Vec::new(), path.to_owned());
        for _ in 0..PARTS_MAX {
            let response = self.send(&Request::get(path.as_str())).await?;
            let next = next_part(response.headers());
            all.extend(items(json::<B>(response).await?));
            match next {
                Some(next) => path = next,
                None => return Ok(all),
            }
        }
        Err(Error::Answer(format!("{path}: a list of more than {PARTS_MAX} parts")))
    }

    pub async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: impl Into<String>,
        content: &impl Serialize,
    ) -> Result<T, Error> {
        let value = serde_json::to_value(content).map_err(|e| Error::Answer(e.to_string()))?;
        json(self.send(&Request::new(method, path, Body::Json(&value))).await?).await
    }

    pub async fn delete(&self, path: impl Into<String>) -> Result<(), Error> {
        self.send(&Request::new(Method::DELETE, path, Body::Empty)).await.map(drop)
    }

    /// Gives the first good answer of any node, its body unread.
    ///
    /// # Errors
    /// The refusal of a node that answered; or, after [`ROUNDS_MAX`] rounds, the last failure.
    pub async fn send(&self, request: &Request<'_>) -> Result<Response, Error> {
        let mut pause = PAUSE_FIRST;
        let mut last = None;
        for round in 0..ROUNDS_MAX {
            if round > 0 {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
            let first = self.preferred.load(Ordering::Relaxed);
            for step in 0..self.nodes.len() {
                let index = (first + step) % self.nodes.len();
                match self.attempt(&self.nodes[index], request).await {
                    Try::Answered(response) => {
                        self.preferred.store(index, Ordering::Relaxed);
                        return Ok(response);
                    }
                    Try::Again(error) => last = Some(error),
                    Try::Over(error) => return Err(error),
                }
            }
            // An internal error on every node does not go away by waiting.
            if let Some(Error::Refused { status: 500 | 501 | 507, .. }) = last {
                break;
            }
        }
        Err(last.unwrap_or_else(|| Error::Unreachable("no node is known".into())))
    }

    /// One node, following its redirects.
    async fn attempt(&self, node: &Url, request: &Request<'_>) -> Try {
        let mut url = match node.join(&request.path) {
            Ok(url) => url,
            Err(error) => return Try::Over(Error::Answer(format!("{}: {error}", request.path))),
        };
        for _ in 0..=REDIRECTS_MAX {
            let response = match self.once(&url, request).await {
                Ok(response) => response,
                Err(error) => return Try::Again(Error::Unreachable(format!("{node} {error}"))),
            };
            let status = response.status();
            if status.is_success() {
                return Try::Answered(response);
            }
            let Some(target) = redirection(&url, &response) else {
                let refused = refusal(response).await;
                let again = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
                return if again { Try::Again(refused) } else { Try::Over(refused) };
            };
            url = target;
        }
        Try::Again(Error::Unreachable(format!("{node} redirects in a circle")))
    }

    /// One request to one address. The error says why there was no answer.
    async fn once(&self, url: &Url, request: &Request<'_>) -> Result<Response, String> {
        let mut builder = self.http.request(request.method.clone(), url.clone());
        builder = builder.headers(request.headers.clone());
        let ours = self.nodes.iter().any(|node| node.origin() == url.origin());
        if let (true, Some(token)) = (ours, &self.token) {
            builder = builder.bearer_auth(token);
        }
        match request.body {
            Body::Empty => answer(builder, ANSWER_TIMEOUT).await,
            Body::Json(value) => answer(builder.json(value), ANSWER_TIMEOUT).await,
            Body::Part(bytes, counter) => {
                let sent = Arc::new(AtomicU64::new(0));
                let builder = builder
                    .header(CONTENT_TYPE, "application/octet-stream")
                    .header(CONTENT_LENGTH, bytes.len())
                    .body(part_body(bytes.clone(), sent.clone(), counter.clone()));
                let result = answer(builder, PART_TIMEOUT).await;
                if !result.as_ref().is_ok_and(|response| response.status().is_success()) {
                    counter.fetch_sub(sent.load(Ordering::Relaxed), Ordering::Relaxed);
                }
                result
            }
        }
    }
}

/// Waits for the head of the answer. Bounding its body is left to whoever reads it: a download or
/// a stream of events has no bound but its stalls.
async fn answer(builder: reqwest::RequestBuilder, limit: Duration) -> Result<Response, String> {
    match tokio::time::timeout(limit, builder.send()).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) => Err(innermost(&error)),
        Err(_) => Err(format!("no answer within {} s", limit.as_secs())),
    }
}

/// The cause at the end of the chain: "Connection refused" rather than "error sending request".
pub fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

fn part_body(bytes: Bytes, sent: Arc<AtomicU64>, counter: Arc<AtomicU64>) -> reqwest::Body {
    let starts = (0..bytes.len()).step_by(PIECE_BYTES);
    let pieces = starts.map(move |start| {
        let piece = bytes.slice(start..bytes.len().min(start + PIECE_BYTES));
        sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
        counter.fetch_add(piece.len() as u64, Ordering::Relaxed);
        Ok::<_, std::io::Error>(piece)
    });
    reqwest::Body::wrap_stream(futures::stream::iter(pieces))
}

fn redirection(from: &Url, response: &Response) -> Option<Url> {
    if !response.status().is_redirection() {
        return None;
    }
    let location = response.headers().get(LOCATION)?.to_str().ok()?;
    let target = from.join(location).ok()?;
    // Never from TLS to the open.
    (target.scheme() == "https" || from.scheme() == "http").then_some(target)
}

/// Where an answer leads on to (RFC 8288), as a path of ours.
fn next_part(headers: &HeaderMap) -> Option<String> {
    let links = headers.get_all(LINK).iter().filter_map(|link| link.to_str().ok());
    let next = links.filter_map(|link| link.strip_prefix('<')?.split_once('>'));
    let next = next.filter(|(_, about)| about.contains("rel=\"next\"")).map(|(target, _)| target);
    next.map(|target| target.trim_start_matches('/').to_owned()).next()
}

/// What a node says when it refuses, as far as it can be understood.
async fn refusal(response: Response) -> Error {
    let status = response.status();
    let body = read_body(response).await.unwrap_or_default();
    let problem = serde_json::from_slice(&body).unwrap_or_else(|_| Problem {
        code: format!("http_{}", status.as_u16()),
        message: format!("the node answered {status}"),
        request_id: None,
        quota: None,
    });
    Error::Refused { status: status.as_u16(), problem }
}

async fn json<T: DeserializeOwned>(response: Response) -> Result<T, Error> {
    let body = read_body(response).await?;
    serde_json::from_slice(&body).map_err(|error| Error::Answer(error.to_string()))
}

async fn read_body(mut response: Response) -> Result<Vec<u8>, Error> {
    let mut body = Vec::new();
    while let Some(piece) = next_piece(&mut response).await? {
        if body.len() + piece.len() > ANSWER_BYTES_MAX {
            return Err(Error::Answer("it is too long".into()));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

/// The next bytes of a body; none at its end.
///
/// # Errors
/// Where the connection breaks or brings nothing for [`STALL_TIMEOUT`].
pub async fn next_piece(response: &mut Response) -> Result<Option<Bytes>, Error> {
    match tokio::time::timeout(STALL_TIMEOUT, response.chunk()).await {
        Ok(Ok(piece)) => Ok(piece),
        Ok(Err(error)) => Err(Error::Unreachable(innermost(&error))),
        Err(_) => Err(Error::Unreachable(format!("no data for {} s", STALL_TIMEOUT.as_secs()))),
    }
}

/// One segment of a path or one value of a query, with everything special escaped.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// What narrows a list, to be put behind its page: those that are given.
pub fn filter<'a>(given: impl IntoIterator<Item = (&'a str, &'a Option<String>)>) -> String {
    let mut text = String::new();
    for (key, value) in given {
        if let Some(value) = value {
            text += &format!("&{key}={}", escaped(value));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use axum::Router;
    use axum::http::StatusCode as Status;
    use axum::routing::get;

    use super::*;

    async fn serve(router: Router) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        url
    }

    async fn closed_port() -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    }

    fn client(nodes: &[String]) -> Client {
        rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
        Client::new(&Context {
            url: nodes[0].clone(),
            nodes: nodes.to_vec(),
            username: "u".into(),
            token: "t".into(),
            token_expires_at: String::new(),
            trust: Trust::System,
        })
        .unwrap()
    }

    #[tokio::test]
    async fn another_node_answers_when_one_is_down_and_one_is_ill() {
        let ill = serve(Router::new().route("/x", get(|| async { Status::BAD_GATEWAY }))).await;
        let well = serve(Router::new().route("/x", get(|| async { "7" }))).await;
        let client = client(&[closed_port().await, ill, well]);
        assert_eq!(client.get::<u32>("x").await.unwrap(), 7);
        assert_eq!(client.preferred.load(Ordering::Relaxed), 2, "the next call starts there");
    }

    #[tokio::test]
    async fn a_list_is_all_of_its_parts() {
        let part = |uri: axum::http::Uri| async move {
            let (content, next) = match uri.query() {
                None => ("[1, 2]", Some("/x?limit=2&after=a%2Fb")),
                Some("limit=2&after=a%2Fb") => ("[]", Some("/x?after=c")),
                Some("after=c") => ("[3]", None),
                Some(other) => panic!("{other}"),
            };
            let mut headers = HeaderMap::new();
            if let Some(next) = next {
                headers.insert(LINK, format!("<{next}>; rel=\"next\"").parse().unwrap());
            }
            (headers, content)
        };
        let endless = || async { ([(LINK, "</y>; rel=\"next\"")], "[]") };
        let router = Router::new().route("/x", get(part)).route("/y", get(endless));
        let client = client(&[serve(router).await]);
        assert_eq!(client.list::<u32>("x").await.unwrap(), [1, 2, 3]);
        let refused = client.list::<u32>("y").await.unwrap_err();
        assert!(matches!(refused, Error::Answer(_)), "{refused}");
    }

    #[tokio::test]
    async fn waits_out_an_election_but_not_a_refusal() {
        static CALLS: AtomicU32 = AtomicU32::new(0);
        let answer = || async {
            match CALLS.fetch_add(1, Ordering::Relaxed) {
                0 | 1 => (Status::SERVICE_UNAVAILABLE, "electing"),
                _ => (Status::OK, "1"),
            }
        };
        let refuse = || async { (Status::CONFLICT, r#"{"code":"taken","message":"no"}"#) };
        let router = Router::new().route("/later", get(answer)).route("/never", get(refuse));
        let client = client(&[serve(router).await]);
        assert_eq!(client.get::<u32>("later").await.unwrap(), 1);
        let refused = client.get::<u32>("never").await.unwrap_err();
        assert_eq!((refused.code(), refused.to_string().as_str()), ("taken", "no"));
    }

    #[tokio::test]
    async fn the_token_follows_a_redirect_to_a_known_node_only() {
        let show = |headers: HeaderMap| async move {
            serde_json::json!(headers.contains_key("authorization")).to_string()
        };
        let other = serve(Router::new().route("/seen", get(show))).await;
        let to = format!("{other}/seen");
        let redirect = move || async move { axum::response::Redirect::temporary(&to) };
        let first = serve(Router::new().route("/x", get(redirect))).await;
        let stranger = client(std::slice::from_ref(&first)).get::<bool>("x").await.unwrap();
        assert!(!stranger, "a stranger saw the token");
        assert!(client(&[first, other]).get::<bool>("x").await.unwrap());
    }

    #[test]
    fn escapes_what_would_change_a_path() {
        assert_eq!(escaped("a/b:c d@é"), "a%2Fb%3Ac%20d%40%C3%A9");
        let given = [("image", &Some("a/b".to_owned())), ("by", &None), ("q", &Some("x&y".into()))];
        assert_eq!(filter(given), "&image=a%2Fb&q=x%26y");
    }
}
