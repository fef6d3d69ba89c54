//! A node in this process on free ports, and a client that trusts its authority only.

use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use parking_lot::Mutex;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shoal_api::{JoinTokenCreated, LoginResponse, Problem};
use shoal_node::config::Config;
use shoal_node::joining;
use shoal_node::ownership::Ownership;
use shoal_node::restore::Plan;
use shoal_node::server::{self, Server};
use tempfile::TempDir;

use super::document::contract::answered;
pub use super::ports::{free_tcp, free_udp};
use super::wait::until;

/// Whatever is waited for, is waited for no longer, also where the machine has much else to do.
pub const DEADLINE: Duration = Duration::from_secs(120);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// A running cluster of one.
pub struct Node {
    pub server: Server,
    pub folder: TempDir,
    pub url: String,
    pub http: reqwest::Client,
    token: String,
    password: String,
}

/// A node of its own folder and ports.
pub fn config(folder: &TempDir) -> Result<Config> {
    // Whoever was first has installed the same.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut config = Config::default();
    config.node.data_dir = folder.path().join("node");
    config.storage.reserve_bytes = 0;
    config.http.listen = free_tcp()?;
    config.raft.listen = free_udp()?;
    config.peer.listen = free_udp()?;
    config.discovery.listen = free_tcp()?;
    config.discovery.enabled = false;
    Ok(config)
}

/// Trusts the authority in `pem` and nobody else.
pub fn client(pem: &[u8]) -> Result<reqwest::Client> {
    // Whoever was first has installed the same.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let authority = reqwest::Certificate::from_pem(pem)?;
    let client = reqwest::Client::builder()
        .tls_certs_only([authority])
        .no_proxy()
        .timeout(REQUEST_TIMEOUT)
        .build()?;
    Ok(client)
}

impl Node {
    pub async fn start() -> Result<Self> {
        Self::start_with(|_| ()).await
    }

    /// With other settings than the usual ones.
    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Result<Self> {
        Self::start_and_trust(None, change).await
    }

    /// The same, behind a certificate of the authority in `pem`.
    pub async fn start_trusting(pem: &[u8], change: impl FnOnce(&mut Config)) -> Result<Self> {
        Self::start_and_trust(Some(pem), change).await
    }

    async fn start_and_trust(pem: Option<&[u8]>, change: impl FnOnce(&mut Config)) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut config = config(&folder)?;
        change(&mut config);
        let url = config.api_url();
        let password = Mutex::new(String::new());
        let server = Server::start(config, |text| text.clone_into(&mut password.lock())).await?;
        let http = match pem {
            Some(pem) => client(pem)?,
            None => client(&std::fs::read(folder.path().join("node/ca.pem"))?)?,
        };
        let password = password.into_inner();
        let (token, secret) = (String::new(), password.clone());
        let mut node = Self { server, folder, url, http, token, password };
        let login = serde_json::json!({ "username": "admin", "password": secret });
        let answer: LoginResponse = node.call(Method::POST, "auth/login", &login).await?;
        node.token = answer.token;
        Ok(node)
    }

    /// Another node of the same cluster, on the same storage.
    pub async fn join(&self, name: &str) -> Result<Self> {
        let token = self.join_token("node", Some(1)).await?;
        let mut joined =
            Self::join_at(name, &self.url, &token, &self.path().join("node/storage")).await?;
        (joined.token, joined.password) = (self.token.clone(), self.password.clone());
        Ok(joined)
    }

    /// Another node of the cluster at `cluster`, on the storage in that folder. It has no login.
    pub async fn join_at(name: &str, cluster: &str, token: &str, storage: &Path) -> Result<Self> {
        Self::join_with(name, cluster, token, storage, |_| ()).await
    }

    /// With other settings than the usual ones.
    pub async fn join_with(
        name: &str,
        cluster: &str,
        token: &str,
        storage: &Path,
        change: impl FnOnce(&mut Config),
    ) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut config = config(&folder)?;
        config.node.name = name.to_owned();
        config.storage.path = Some(storage.to_owned());
        change(&mut config);
        let url = config.api_url();
        joining::join(&config, cluster, token).await?;
        let server = Server::start(config, |_| ()).await?;
        let http = client(&std::fs::read(folder.path().join("node/ca.pem"))?)?;
        Ok(Self { server, folder, url, http, token: String::new(), password: String::new() })
    }

    /// With the login of another node's client.
    pub fn logged_in_as(mut self, other: &Self) -> Self {
        (self.token, self.password) = (other.token.clone(), other.password.clone());
        self
    }

    /// The same node, stopped and started with other settings.
    pub async fn restart(self, change: impl FnOnce(&mut Config)) -> Result<Self> {
        let mut config = self.server.app().config.clone();
        change(&mut config);
        self.restart_after(config, || Ok(())).await
    }

    /// The same, after something was done while it does not run.
    pub async fn restart_after(
        self,
        config: Config,
        meanwhile: impl FnOnce() -> Result<()>,
    ) -> Result<Self> {
        let Self { server, folder, url, http, token, password } = self;
        server.stop().await?;
        // In this process the endpoint of its group ends a moment after the group.
        let free = async || Ok(UdpSocket::bind(config.raft.listen).ok().map(drop));
        until("the port that is given back", free).await?;
        meanwhile()?;
        let server = Server::start(config, |_| ()).await?;
        Ok(Self { server, folder, url, http, token, password })
    }

    /// A cluster that is made out of a backup of this one, on a node of its own.
    pub async fn restored(&self, file: &Path, objects: Option<&Path>) -> Result<Self> {
        self.restored_with(file, objects, |_| ()).await
    }

    /// With other settings than the usual ones.
    pub async fn restored_with(
        &self,
        file: &Path,
        objects: Option<&Path>,
        change: impl FnOnce(&mut Config),
    ) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut config = config(&folder)?;
        config.node.name = "restored".to_owned();
        change(&mut config);
        let url = config.api_url();
        let restored = server::restore(&config, Plan { file, objects }).await?;
        ensure!(restored.missing == 0, "{restored:?}");
        // In this process the endpoint of the restoring group ends a moment after the group.
        let free = async || Ok(UdpSocket::bind(config.raft.listen).ok().map(drop));
        until("the port that is given back", free).await?;
        let server = Server::start(config, |_| ()).await?;
        let http = client(&std::fs::read(folder.path().join("node/ca.pem"))?)?;
        let password = self.password.clone();
        let mut node = Self { server, folder, url, http, token: String::new(), password };
        let login = serde_json::json!({ "username": "admin", "password": self.password });
        let answer: LoginResponse = node.call(Method::POST, "auth/login", &login).await?;
        node.token = answer.token;
        Ok(node)
    }

    /// That of its cluster in its storage.
    pub fn ownership(&self) -> Ownership {
        let app = self.server.app();
        Ownership::new(Arc::clone(&app.store), app.keys.cluster, app.lineage.clone())
    }

    /// The administrator's.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// The administrator's Bearer token.
    pub fn token(&self) -> &str {
        &self.token
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}/api/v1/{path}", self.url));
        if self.token.is_empty() { request } else { request.bearer_auth(&self.token) }
    }

    /// A request to the registry, as the administrator.
    pub fn v2(&self, method: Method, path: &str) -> RequestBuilder {
        self.anonymous_v2(method, path).bearer_auth(&self.token)
    }

    pub fn anonymous_v2(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}/v2/{path}", self.url))
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.exchange(self.request(Method::GET, path), &Method::GET, path, None).await
    }

    /// What is sent and answered has to be in the document of the API.
    async fn exchange<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
        method: &Method,
        path: &str,
        sent: Option<&serde_json::Value>,
    ) -> Result<T> {
        let path = format!("/api/v1/{path}");
        let (status, body) = answered(method.as_str(), &path, sent, request.send().await?).await?;
        ensure!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).with_context(|| String::from_utf8_lossy(&body).into_owned())
    }

    pub async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T> {
        let body = serde_json::to_value(body)?;
        let request = self.request(method.clone(), path).json(&body);
        self.exchange(request, &method, path, Some(&body)).await
    }

    /// The join token's text.
    pub async fn join_token(&self, role: &str, uses: Option<u32>) -> Result<String> {
        let wanted = serde_json::json!({ "role": role, "ttl_seconds": 600, "uses": uses });
        let made: JoinTokenCreated = self.call(Method::POST, "join-tokens", &wanted).await?;
        Ok(made.token)
    }
}

pub async fn read<T: DeserializeOwned>(response: Response) -> Result<T> {
    let status = response.status();
    let body = response.bytes().await?;
    ensure!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&body));
    serde_json::from_slice(&body).with_context(|| String::from_utf8_lossy(&body).into_owned())
}

/// The problem that a request is expected to end in.
pub async fn problem(response: Response, status: StatusCode) -> Result<Problem> {
    let found = response.status();
    let body = response.bytes().await?;
    ensure!(found == status, "{found}: {}", String::from_utf8_lossy(&body));
    Ok(serde_json::from_slice(&body)?)
}

/// Runs a program to its end, and fails with what it said.
pub fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output =
        Command::new(program).args(arguments).output().with_context(|| program.to_owned())?;
    if !output.status.success() {
        bail!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
