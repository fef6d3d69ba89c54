//! Another authority takes the place of the one that signs.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use reqwest::{Method, StatusCode};
use serde_json::json;
use shoal_api::{
    AuthorityNews, AuthorityStatus, CertificateResponse, ClusterStatus, EnrolResponse, OrderMessage,
};
use shoal_p2p::identity::{Credentials, KeyPair};

use super::backup::save;
use super::members::{Agent, try_enrol};
use super::node::{Node, problem, read};
use super::orders::{Lines, orders};
use super::wait::{level_raised, until};

async fn rotate(node: &Node, now: bool) -> Result<AuthorityStatus> {
    node.call(Method::POST, "cluster/authority/rotate", &json!({ "now": now })).await
}

fn states(status: &AuthorityStatus) -> Vec<&str> {
    status.authorities.iter().map(|one| one.state.as_str()).collect()
}

async fn until_replaced(node: &Node) -> Result<()> {
    until("the first authority to be believed no longer", async || {
        let status: AuthorityStatus = node.get("cluster/authority").await?;
        let replaced = states(&status) == ["distrusted", "signs"] && status.rotation.is_none();
        Ok(replaced.then_some(()))
    })
    .await
}

fn certificates(pem: &str) -> usize {
    pem.matches("BEGIN CERTIFICATE").count()
}

fn believed(node: &Path) -> Result<String> {
    Ok(std::fs::read_to_string(node.join("node/ca.pem"))?)
}

/// What an agent hears of authorities next that is as `wanted`.
async fn told(
    stream: &mut Lines,
    wanted: impl Fn(&AuthorityNews) -> bool,
) -> Result<AuthorityNews> {
    loop {
        let news = match stream.order().await? {
            OrderMessage::Nodes { authorities, .. } => authorities.context("the node says none")?,
            other => bail!("{other:?}"),
        };
        if wanted(&news) {
            return Ok(news);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_is_replaced_and_what_it_signed_is_good_no_longer() -> Result<()> {
    let first = Node::start().await?;
    level_raised(&first).await?;
    let second = first.join("node-2").await?;
    let agent = Agent::enrol(&first, "host-1").await?;
    let old_token = first.join_token("agent", None).await?;
    let mut stream = orders(&first, &agent).await?;
    let old = told(&mut stream, |_| true).await?;
    ensure!(old.believed_pem == old.signs_pem && old.signs_pem == believed(first.path())?);

    let begun = rotate(&first, false).await?;
    ensure!(states(&begun) == ["signs", "announced"], "{begun:?}");
    let rotation = begun.rotation.context("none is under way")?;
    ensure!((rotation.number, rotation.next.as_str(), rotation.hurried) == (1, "sign", false));
    let both = told(&mut stream, |news| certificates(&news.believed_pem) == 2).await?;
    ensure!(both.signs_pem == old.signs_pem, "it signs before others have heard of it");
    for node in [&first, &second] {
        until("both to be believed", async || {
            Ok((believed(node.path())? == both.believed_pem).then_some(()))
        })
        .await?;
    }
    let again = first.request(Method::POST, "cluster/authority/rotate").json(&json!({}));
    let again = problem(again.send().await?, StatusCode::CONFLICT).await?;
    ensure!(again.code == "rotation_under_way", "{again:?}");

    rotate(&second, true).await?;
    until_replaced(&first).await?;
    let new = told(&mut stream, |news| certificates(&news.believed_pem) == 1).await?;
    ensure!(new.believed_pem == new.signs_pem && new.signs_pem != old.signs_pem);
    for node in [&first, &second] {
        until("the new one alone to be believed", async || {
            Ok((believed(node.path())? == new.believed_pem).then_some(()))
        })
        .await?;
    }

    // What an agent gets is good for it before it has heard of the new one.
    let EnrolResponse { certificate_pem, authority_pem, .. } = agent.enrolment.clone();
    let key = KeyPair::from_pkcs8_der(agent.key.to_pkcs8_der())?;
    let credentials = Credentials::new(Arc::new(key), &certificate_pem, authority_pem)?;
    let request = json!({ "csr_pem": agent.key.csr_pem()? });
    let asked = agent.request(&second, Method::POST, "certificate")?.json(&request);
    let given: CertificateResponse = read(asked.send().await?).await?;
    credentials.renew(&given.certificate_pem)?;
    ensure!(credentials.is_of(&new.signs_pem) && !credentials.is_of(&old.signs_pem));

    let stranger = KeyPair::generate()?;
    let refused = try_enrol(&first, &stranger, "host-2", &old_token).await?;
    let refused = problem(refused, StatusCode::FORBIDDEN).await?;
    ensure!(refused.code == "join_token_distrusted", "{refused:?}");
    ensure!(refused.message.contains("make a new one"), "{refused:?}");
    let token = first.join_token("agent", Some(1)).await?;
    let enrolled: EnrolResponse =
        read(try_enrol(&first, &stranger, "host-2", &token).await?).await?;
    ensure!(enrolled.authority_pem == new.signs_pem);
    ensure!(enrolled.believed_pem.as_deref() == Some(new.believed_pem.as_str()));

    // Its client knows the first alone, and so does a connection that begins now.
    let second = second.restart(|_| ()).await?;
    until_replaced(&second).await?;
    let third = first.join("node-3").await?;
    ensure!(believed(third.path())? == new.believed_pem);
    let status: ClusterStatus = third.get("cluster").await?;
    ensure!(status.nodes.len() == 3, "{status:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_cluster_has_the_authorities_of_the_backup() -> Result<()> {
    let node = Node::start().await?;
    level_raised(&node).await?;
    let begun = rotate(&node, false).await?;
    let folder = tempfile::tempdir()?;
    let saved = save(&node, folder.path()).await?;
    let restored = node.restored(&saved.file, None).await?;
    let status: AuthorityStatus = restored.get("cluster/authority").await?;
    ensure!(states(&status) == ["signs", "announced"], "{status:?}");
    ensure!(status.authorities == begun.authorities, "they are others");
    ensure!(certificates(&believed(restored.path())?) == 2);
    // It goes on there, with the one node that there is.
    rotate(&restored, true).await?;
    until_replaced(&restored).await?;
    let saved = save(&restored, folder.path()).await?;
    let again = restored.restored(&saved.file, None).await?;
    let status: AuthorityStatus = again.get("cluster/authority").await?;
    ensure!(states(&status) == ["distrusted", "signs"], "{status:?}");
    ensure!(certificates(&believed(again.path())?) == 1);
    Ok(())
}
