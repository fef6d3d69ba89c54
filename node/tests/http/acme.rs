//! A certificate from a real ACME server (pebble), in a cluster: the leader orders, another node is
//! asked, all serve it, and it is renewed.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use reqwest::{Client, StatusCode};
use serde_json::json;
use shoal_content::ClusterId;
use shoal_metadata::HttpCertificate;
use shoal_p2p::identity::Authority;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use uuid::Uuid;

use super::node::{Node, client, free_tcp};
use super::wait::until;

/// As short as the server can be made to issue them: it is renewed after two thirds.
const LIFE_SECONDS: u64 = 15;

/// The server; it looks at names through port `http_port` of theirs.
struct Pebble {
    _child: Child,
    directory_url: String,
    /// Trusts the server itself.
    authority: PathBuf,
    /// The authority of the certificates that it issues.
    issuer: Vec<u8>,
}

impl Pebble {
    async fn start(folder: &Path, http_port: u16) -> Result<Self> {
        let authority = Authority::create(&ClusterId::from_uuid(Uuid::new_v4()))?;
        let made = authority.issue_http(&["127.0.0.1".to_owned()])?;
        let file = |name: &str| folder.join(name);
        std::fs::write(file("pebble.pem"), made.chain_pem)?;
        std::fs::write(file("pebble.key"), made.key_pem.as_bytes())?;
        std::fs::write(file("pebble-ca.pem"), authority.certificate_pem())?;
        let (listen, management) = (free_tcp()?, free_tcp()?);
        let config = json!({ "pebble": {
            "listenAddress": listen.to_string(),
            "managementListenAddress": management.to_string(),
            "certificate": file("pebble.pem"),
            "privateKey": file("pebble.key"),
            "httpPort": http_port,
            "tlsPort": 1,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
            "retryAfter": { "authz": 1, "order": 1 },
            // Older and newer versions of it.
            "certificateValidityPeriod": LIFE_SECONDS,
            "profiles": { "default": { "description": "short", "validityPeriod": LIFE_SECONDS } },
        } });
        std::fs::write(file("pebble.json"), config.to_string())?;
        let log = std::fs::File::create(file("pebble.log"))?;
        let mut command = Command::new("pebble");
        command.arg("-config").arg(file("pebble.json")).env("PEBBLE_VA_NOSLEEP", "1");
        command.stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        let child = command.spawn().context("pebble is not here; ./dev test installs it")?;
        let trusting = client(authority.certificate_pem().as_bytes())?;
        let root = format!("https://{management}/roots/0");
        let issuer = until("pebble's root", async || {
            let Ok(answer) = trusting.get(&root).send().await else { return Ok(None) };
            Ok(Some(answer.bytes().await?.to_vec()))
        });
        Ok(Self {
            _child: child,
            directory_url: format!("https://{listen}/dir"),
            authority: file("pebble-ca.pem"),
            issuer: issuer.await?,
        })
    }
}

/// The load balancer: hands each connection to the first address that `choose` gives.
async fn balance(listener: TcpListener, choose: impl Fn() -> Option<SocketAddr>) {
    loop {
        let Ok((mut client, _)) = listener.accept().await else { return };
        let Some(address) = choose() else { continue };
        tokio::spawn(async move {
            let mut server = TcpStream::connect(address).await?;
            tokio::io::copy_bidirectional(&mut client, &mut server).await
        });
    }
}

fn certificate(node: &Node) -> Option<HttpCertificate> {
    node.server.app().raft.local().query().http_certificate().ok().flatten()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_get_a_certificate_by_any_of_them_and_renew_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let asked = TcpListener::bind("127.0.0.1:0").await?;
    let pebble = Pebble::start(folder.path(), asked.local_addr()?.port()).await?;
    let outcome = Box::pin(order(&pebble, asked)).await;
    let log = std::fs::read_to_string(folder.path().join("pebble.log")).unwrap_or_default();
    outcome.context(log)
}

async fn order(pebble: &Pebble, asked: TcpListener) -> Result<()> {
    let founder = Node::start().await?;
    let storage = founder.path().join("node/storage");
    let mut listens = Vec::new();
    let mut ordering = Vec::new();
    for name in ["node-2", "node-3"] {
        let (listen, token) = (free_tcp()?, founder.join_token("node", Some(1)).await?);
        let node = Node::join_with(name, &founder.url, &token, &storage, |config| {
            config.acme.domains = vec!["127.0.0.1".into()];
            config.acme.directory_url = pebble.directory_url.clone();
            config.acme.contact = vec!["mailto:operator@shoal.example".into()];
            config.acme.terms_of_service_agreed = true;
            config.acme.ca_file = Some(pebble.authority.clone());
            config.acme.listen = listen;
        });
        ordering.push(node.await?);
        listens.push(listen);
    }
    let Ok([second, third]) = <[Node; 2]>::try_from(ordering) else { bail!("two nodes") };
    let raft = founder.server.app().raft.clone();
    until("three voters", async || Ok((raft.status().voters.len() == 3).then_some(()))).await?;

    // Whoever orders, it is the other one that the server asks.
    let rafts = [second.server.app().raft.clone(), third.server.app().raft.clone()];
    let others = listens.clone();
    tokio::spawn(balance(asked, move || {
        let followers = rafts.iter().zip(&others).filter(|(raft, _)| !raft.status().is_leader);
        followers.map(|(_, listen)| *listen).next()
    }));
    // The first node orders nothing, and may be elected again.
    let hand_over = async || {
        if raft.status().is_leader {
            let _next = raft.hand_over().await;
        }
    };
    // An order that failed is tried again after half a minute.
    let first = until("a certificate", async || {
        hand_over().await;
        Ok(certificate(&second))
    });
    let first = first.await?;
    ensure!(first.names == ["127.0.0.1"]);
    let account = second.server.app().view().await?.query().acme_account()?;
    ensure!(account.is_some());

    // Everyone is served with it who is no member.
    for node in [&second, &third] {
        until("the certificate to be served", async || {
            let fresh = client(&pebble.issuer)?;
            let answer = fresh.get(format!("{}/health", node.url)).send().await;
            Ok(answer.is_ok_and(|answer| answer.status().is_success()).then_some(()))
        })
        .await?;
    }
    let plain = Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build()?;
    let other = plain.get(format!("http://{}/v2/?n=1", listens[0])).send().await?;
    ensure!(other.status() == StatusCode::PERMANENT_REDIRECT);
    ensure!(other.headers()["location"] == format!("{}/v2/?n=1", second.url), "{other:?}");
    let challenges = format!("http://{}/.well-known/acme-challenge", listens[0]);
    for unknown in ["unknown", "..%2f..%2fetc"] {
        let answer = plain.get(format!("{challenges}/{unknown}")).send().await?;
        ensure!(answer.status() == StatusCode::NOT_FOUND, "{answer:?}");
    }

    let renewed = until("the renewal", async || {
        hand_over().await;
        Ok(certificate(&third).filter(|renewed| renewed.chain != first.chain))
    });
    let renewed = renewed.await?;
    ensure!(renewed.valid_from > first.valid_from && renewed.valid_until > first.valid_until);
    let view = third.server.app().view().await?;
    ensure!(view.query().acme_account()? == account, "a renewal needs no new account");
    drop(view);
    for node in [second, third, founder] {
        node.server.stop().await?;
    }
    Ok(())
}
