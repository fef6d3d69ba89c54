//! A client of the registry that knows what it does not know.
//!
//! An answer of 4xx says that nothing happened; a 5xx, a timeout or a broken connection says
//! nothing. No request is repeated here.

use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::header::{CONTENT_TYPE, LOCATION};
use reqwest::{Method, Url};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// What is known after a request.
#[derive(Debug)]
pub enum Outcome<T> {
    Done(T),
    /// It did not take effect.
    Refused(u16),
    /// It may have taken effect, or may yet.
    Unknown(String),
}

#[derive(Debug)]
pub struct Answer {
    pub location: Option<String>,
    pub digest: Option<String>,
    pub body: Vec<u8>,
}

/// One request.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    pub method: Method,
    /// After `https://HOST`.
    pub path: &'a str,
    pub content_type: Option<&'static str>,
    pub body: Vec<u8>,
    pub timeout: Duration,
}

impl<'a> Request<'a> {
    pub fn new(method: Method, path: &'a str, timeout: Duration) -> Self {
        Self { method, path, content_type: None, body: Vec::new(), timeout }
    }
}

/// Connections to all nodes.
#[derive(Debug, Clone)]
pub struct Registry {
    http: reqwest::Client,
    nodes: Vec<Url>,
    password: String,
}

impl Registry {
    /// `authority` is the cluster's, in PEM.
    pub fn new(authority: &[u8], nodes: &[String], password: &str, http2: bool) -> Result<Self> {
        // Whoever was first has installed the same.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut http = reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(authority)?])
            .connect_timeout(Duration::from_secs(3))
            .no_proxy();
        if !http2 {
            http = http.http1_only();
        }
        let nodes = nodes.iter().map(|node| Url::parse(node).context("a node's address"));
        let nodes = nodes.collect::<Result<_>>()?;
        Ok(Self { http: http.build()?, nodes, password: password.to_owned() })
    }

    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    pub async fn send(&self, node: usize, request: Request<'_>) -> Outcome<Answer> {
        match self.try_send(node, request).await {
            Ok(outcome) => outcome,
            // It was never sent.
            Err(error) if error.is_connect() || error.is_builder() => Outcome::Refused(0),
            Err(error) => Outcome::Unknown(format!("{:#}", anyhow::Error::from(error))),
        }
    }

    async fn try_send(
        &self,
        node: usize,
        request: Request<'_>,
    ) -> reqwest::Result<Outcome<Answer>> {
        let Ok(url) = self.nodes[node].join(request.path) else { return Ok(Outcome::Refused(0)) };
        let mut sending = self
            .http
            .request(request.method, url)
            .basic_auth("admin", Some(&self.password))
            .timeout(request.timeout)
            .body(request.body);
        if let Some(content_type) = request.content_type {
            sending = sending.header(CONTENT_TYPE, content_type);
        }
        let response = sending.send().await?;
        let status = response.status();
        let header = |name: &str| {
            response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        let (location, digest) = (header(LOCATION.as_str()), header("docker-content-digest"));
        if status.is_success() {
            let body = response.bytes().await?.to_vec();
            return Ok(Outcome::Done(Answer { location, digest, body }));
        }
        if status.is_client_error() {
            return Ok(Outcome::Refused(status.as_u16()));
        }
        let text = response.text().await.unwrap_or_default();
        Ok(Outcome::Unknown(format!("{status}: {text}")))
    }

    /// What a node tells programs about itself, such as `/api/v1/storage`.
    pub async fn json(&self, node: usize, path: &str) -> Result<Value> {
        let request = Request::new(Method::GET, path, Duration::from_secs(15));
        match self.send(node, request).await {
            Outcome::Done(answer) => Ok(serde_json::from_slice(&answer.body)?),
            other => anyhow::bail!("{path} at node {}: {other:?}", node + 1),
        }
    }
}

/// `sha256:HEX`.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}
