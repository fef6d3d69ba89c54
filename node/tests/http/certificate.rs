//! A certificate of the operator's own, renewed without a stop.

use std::io::Write;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Result, ensure};
use shoal_content::ClusterId;
use shoal_node::config::Config;
use shoal_node::joining;
use shoal_p2p::identity::{Authority, Trust, member_client};
use tempfile::TempDir;
use uuid::Uuid;

use super::node::{Node, client, free_tcp, free_udp};
use super::wait::until;

fn joining_config(folder: &TempDir) -> Result<Config> {
    let mut config = Config::default();
    config.node.name = "node-2".into();
    config.node.data_dir = folder.path().join("node-2");
    config.http.listen = free_tcp()?;
    config.raft.listen = free_udp()?;
    config.peer.listen = free_udp()?;
    Ok(config)
}

/// Writes a certificate for loopback, of an authority that nobody knew before.
fn issue(folder: &Path) -> Result<Authority> {
    let authority = Authority::create(&ClusterId::from_uuid(Uuid::new_v4()))?;
    let made = authority.issue_http(&["127.0.0.1".to_owned()])?;
    std::fs::write(folder.join("https.key"), made.key_pem.as_bytes())?;
    std::fs::write(folder.join("https.pem"), made.chain_pem)?;
    Ok(authority)
}

/// Whether the files are known to hold what cannot be served.
fn metric(text: &str) -> Option<u64> {
    let value =
        text.lines().find_map(|line| line.strip_prefix("shoal_https_certificate_unusable "));
    value?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_served_without_a_stop_and_a_broken_one_is_not() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let first = issue(folder.path())?;
    let node = Node::start_trusting(first.certificate_pem().as_bytes(), |config| {
        config.http.certificate_file = Some(folder.path().join("https.pem"));
        config.http.key_file = Some(folder.path().join("https.key"));
    });
    let node = node.await?;
    // Members trust the cluster's authority only, and get its certificate.
    let token = node.join_token("node", Some(1)).await?;
    let joined = joining_config(&folder)?;
    joining::join(&joined, &node.url, &token).await?;
    let trust = Trust::of_pem(&std::fs::read_to_string(node.path().join("node/ca.pem"))?)?;
    let member = reqwest::Client::builder().tls_backend_preconfigured(member_client(trust)?);
    let member = member.no_proxy().build()?;
    ensure!(member.get(format!("{}/health", node.url)).send().await?.status().is_success());

    let health = format!("{}/health", node.url);

    let elsewhere = tempfile::tempdir()?;
    let second = issue(elsewhere.path())?;
    let chain = std::fs::read(elsewhere.path().join("https.pem"))?;
    std::fs::copy(elsewhere.path().join("https.key"), folder.path().join("https.key"))?;
    let written = SystemTime::now();
    let write = |bytes: &[u8]| {
        let mut file = std::fs::File::create(folder.path().join("https.pem"))?;
        file.write_all(bytes)?;
        file.set_modified(written)
    };
    write(&vec![b'x'; chain.len()])?;
    let unusable = || Ok::<_, anyhow::Error>(metric(&node.server.app().metrics.text()?));
    until("word of what cannot be used", async || Ok((unusable()? == Some(1)).then_some(())))
        .await?;
    let fresh = client(first.certificate_pem().as_bytes())?;
    ensure!(fresh.get(&health).send().await?.status().is_success(), "the old one is gone");

    // As if it had been there, and had not been the node's to read: nothing tells it that it can.
    write(&chain)?;
    let fresh = client(second.certificate_pem().as_bytes())?;
    until("the new certificate", async || Ok(fresh.get(&health).send().await.ok())).await?;
    ensure!(unusable()? == Some(0));
    // Who was connected stays so.
    ensure!(node.http.get(&health).send().await?.status().is_success());
    node.server.stop().await
}
