//! Lets somebody in again from a node's own machine: who is locked out, and the administrator who has
//! lost what it logs in with.
//!
//! The only administrator may be the one. Whoever can read this node's key could do anything to the
//! cluster, so the key is proof enough: the request is signed with it, and goes to the node that runs
//! here, which proposes a command like any other. So one node is enough, and the audit trail has it.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use reqwest::{Method, Response};
use shoal_api::{AccountRecovered, Problem};
use shoal_p2p::identity::{self, KeyPair, Trust};

use crate::clock;
use crate::config::Config;
use crate::deploy::node_token;
use crate::home::Member;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// `who` is `account:NAME` or `address:IP`.
///
/// # Errors
/// With what could not be done, or the node's refusal.
pub async fn unblock(config: &Config, who: &str) -> Result<()> {
    ask(config, Method::DELETE, &["blocks", who]).await.map(drop)
}

/// Gives the administrator `name` another password, and takes its second factor, its passkeys and its
/// sessions away.
///
/// # Errors
/// With what could not be done, or the node's refusal.
pub async fn recover_administrator(config: &Config, name: &str) -> Result<AccountRecovered> {
    let answer = ask(config, Method::POST, &["users", name, "recovery"]).await?;
    answer.json().await.context("the node has done it, and its answer cannot be read; ask again")
}

/// Asks the node that runs on this machine, in this node's own name.
async fn ask(config: &Config, method: Method, path: &[&str]) -> Result<Response> {
    let folder = &config.node.data_dir;
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read(&path).with_context(|| {
            format!(
                "{} cannot be read; run this where a node runs, as its user and with its --config",
                path.display()
            )
        })
    };
    let member: Member = serde_json::from_slice(&read("member.json")?)?;
    // Made by founding or joining; a new one would be nobody's.
    ensure!(folder.join("key").exists(), "the node has no key");
    let key = KeyPair::load_or_create(&folder.join("key"))?;
    let trust = Trust::new(identity::roots([&read("ca.pem")?[..]])?)?;
    let http = reqwest::Client::builder()
        .tls_backend_preconfigured(identity::member_client(trust)?)
        .https_only(true)
        .no_proxy()
        .timeout(REQUEST_TIMEOUT)
        .build()?;
    let mut url: reqwest::Url = config.api_url().parse()?;
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.clear().extend(["api", "v1"]).extend(path);
    }
    let token = node_token::issue(&key, member.cluster, clock::now())?;
    let answer = http.request(method, url).bearer_auth(token).send().await;
    let answer = answer.context("the node does not answer; does it run?")?;
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    match answer.json::<Problem>().await {
        Ok(problem) => bail!("{} ({})", problem.message, problem.code),
        Err(_) => bail!("{status}"),
    }
}
