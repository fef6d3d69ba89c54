//! A certificate of the operator's own, renewed without a stop.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use shoal_content::ClusterId;
use shoal_p2p::identity::Authority;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::node::{DEADLINE, Node, client};

/// Writes a certificate for loopback, of an authority that nobody knew before.
fn issue(folder: &Path) -> Result<Authority> {
    let authority = Authority::create(&ClusterId::from_uuid(Uuid::new_v4()))?;
    let made = authority.issue_http(&["127.0.0.1".to_owned()])?;
    std::fs::write(folder.join("https.key"), made.key_pem.as_bytes())?;
    std::fs::write(folder.join("https.pem"), made.chain_pem)?;
    Ok(authority)
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
    let health = format!("{}/health", node.url);

    std::fs::write(folder.path().join("https.pem"), "no certificate")?;
    sleep(Duration::from_secs(7)).await;
    let fresh = client(first.certificate_pem().as_bytes())?;
    ensure!(fresh.get(&health).send().await?.status().is_success(), "the old one is gone");

    let second = issue(folder.path())?;
    let fresh = client(second.certificate_pem().as_bytes())?;
    let deadline = Instant::now() + DEADLINE;
    while fresh.get(&health).send().await.is_err() {
        ensure!(Instant::now() < deadline, "the new certificate is not served");
        sleep(Duration::from_millis(100)).await;
    }
    // Who was connected stays so.
    ensure!(node.http.get(&health).send().await?.status().is_success());
    node.server.stop().await
}
