//! A node with content is backed up, a fresh one is made of that, and everything is there.

use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::StreamExt;
use reqwest::{Method, StatusCode};
use serde_json::json;
use shoal_api::{
    ClusterStatus, JoinTokenInfo, LevelRaised, StorageStatus, UploadStatus, VerificationStatus,
};
use shoal_content::ObjectKey;
use shoal_formats::backup::{Frame, Head, Needed, Reader, Totals};
use shoal_metadata::{COMMAND_VERSION, KeyOwner};
use shoal_node::config::Config;
use shoal_node::restore::Plan;
use shoal_node::server;
use shoal_p2p::identity::{Credentials, KeyPair, Role};

use super::disks::{create_image, download, make_disk, upload};
use super::members::Agent;
use super::node::{Node, config, problem};
use super::v2::{push_blob, push_image, sha256};
use super::wait::until;

/// A backup as `shoal backup --objects` makes it: the file, and a folder of its objects.
pub struct Saved {
    pub file: PathBuf,
    pub objects: PathBuf,
    head: Head,
    needed: Vec<Needed>,
    totals: Totals,
}

pub async fn save(node: &Node, folder: &Path) -> Result<Saved> {
    let answer = node.request(Method::GET, "backup").send().await?.error_for_status()?;
    let bytes = answer.bytes().await?;
    let (file, objects) = (folder.join("saved.backup"), folder.join("objects"));
    std::fs::write(&file, &bytes)?;
    let mut reader = Reader::new(&bytes[..])?;
    let head = reader.head().clone();
    let mut needed = Vec::new();
    let totals = loop {
        match reader.next_frame()?.context("the end is a frame")? {
            Frame::Rows(_) => {}
            Frame::Objects(more) => needed.extend(more),
            Frame::End(totals) => break totals,
        }
    };
    for object in &needed {
        let path = format!("backup/objects/{}", object.key);
        let answer = node.request(Method::GET, &path).send().await?.error_for_status()?;
        let target = objects.join(object.key.to_string());
        std::fs::create_dir_all(target.parent().context("a folder")?)?;
        std::fs::write(target, answer.bytes().await?)?;
    }
    Ok(Saved { file, objects, head, needed, totals })
}

pub async fn verify(node: &Node, read: bool) -> Result<VerificationStatus> {
    let wanted = json!({ "read": read });
    let _begun: VerificationStatus = node.call(Method::POST, "storage/verify", &wanted).await?;
    let status = until("the verification", async || {
        let status = node.get::<StorageStatus>("storage").await?.verification;
        Ok((!status.running).then_some(status))
    })
    .await?;
    ensure!(status.error.is_none(), "{status:?}");
    Ok(status)
}

/// Whether a node of the cluster's lineage `protocol` gets in at a node's Raft port.
async fn knocks(of: &Node, at: &Node, protocol: &[u8]) -> Result<bool> {
    let home = of.path().join("node");
    let text = |name: &str| std::fs::read_to_string(home.join(name));
    let key = Arc::new(KeyPair::load_or_create(&home.join("key"))?);
    let credentials = Credentials::new(key, &text("node.pem")?, text("ca.pem")?)?;
    let client = credentials.quinn_client(protocol, &[Role::Node])?;
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse()?)?;
    let address = at.server.app().config.raft.listen;
    let connected = endpoint.connect_with(client, address, Role::Node.server_name())?.await;
    Ok(connected.is_ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_cluster_has_everything_and_lives_on() -> Result<()> {
    let node = Node::start().await?;
    let manifest = push_image(&node, "a/app", "v1", b"a layer").await?;
    let long = vec![7; 30 << 20];
    let blob = push_blob(&node, "a/long", &long).await?;
    let file = make_disk(node.path(), "one", 2)?;
    let image = create_image(&node, "zedge/one").await?;
    let uploaded: UploadStatus = upload(&node, image, &file, "1.0.0").await?;
    ensure!(uploaded.status == "active", "{uploaded:?}");
    let disk = download(&node, image, "1.0.0", "qcow2").await?;
    let agent = Agent::enrol(&node, "host-1").await?;
    node.join_token("agent", None).await?;

    let folder = tempfile::tempdir()?;
    let saved = save(&node, folder.path()).await?;
    ensure!(saved.head.level == COMMAND_VERSION && saved.head.index > 0, "{:?}", saved.head);
    ensure!(saved.totals.objects == saved.needed.len() as u64 && saved.totals.rows > 20);
    // What comes later is not in it.
    push_image(&node, "a/later", "v1", b"another layer").await?;

    let new = node.restored(&saved.file, Some(&saved.objects)).await?;
    let verified = verify(&new, true).await?;
    ensure!(verified.flaws.is_empty(), "{verified:?}");
    ensure!(verified.objects == saved.totals.objects, "{verified:?}");
    let pulled = new.v2(Method::GET, "a/app/manifests/v1").send().await?.error_for_status()?;
    ensure!(pulled.bytes().await? == manifest);
    for (path, content) in [("a/app", &b"a layer"[..]), ("a/long", &long)] {
        let path = format!("{path}/blobs/{}", sha256(content));
        let pulled = new.v2(Method::GET, &path).send().await?.error_for_status()?;
        ensure!(pulled.bytes().await? == content, "{path} is another");
    }
    ensure!(sha256(&long) == blob);
    ensure!(download(&new, image, "1.0.0", "qcow2").await? == disk);
    let later = new.v2(Method::GET, "a/later/manifests/v1").send().await?;
    ensure!(later.status() == StatusCode::NOT_FOUND);

    // The agent goes on with the certificate and key that it has; tokens to join with are gone.
    let asked = agent.request(&new, Method::POST, "resolve")?;
    let asked = asked.json(&json!({ "reference": "zedge/one:1.0.0" })).send().await?;
    ensure!(asked.status().is_success(), "{}", asked.text().await?);
    ensure!(new.get::<Vec<JoinTokenInfo>>("join-tokens").await?.is_empty());

    // It is another Raft group: the old node, whose certificate is good, is not let in.
    let member = std::fs::read_to_string(new.path().join("node/member.json"))?;
    let member: serde_json::Value = serde_json::from_str(&member)?;
    let lineage = member["lineage"].as_str().context("no lineage")?.to_owned();
    ensure!(!knocks(&node, &new, b"shoal-raft/1").await?);
    ensure!(knocks(&node, &node, b"shoal-raft/1").await?);
    ensure!(knocks(&new, &new, format!("shoal-raft/1+{lineage}").as_bytes()).await?);

    // It takes new content and new members, and says what they run.
    push_image(&new, "a/new", "v1", b"new").await?;
    let second = new.join("second").await?;
    let status = until("two voters that say what they run", async || {
        let status: ClusterStatus = second.get("cluster").await?;
        let described = status.nodes.iter().all(|node| node.program.is_some());
        let voting = status.nodes.iter().all(|node| node.role != "learner");
        Ok((described && voting && status.nodes.len() == 2).then_some(status))
    })
    .await?;
    // An id is never given out twice, nor is one of the old cluster's.
    ensure!(status.nodes[0].id.number() == 2 && status.nodes[1].id.number() == 3, "{status:?}");
    ensure!((status.level, status.level_possible) == (COMMAND_VERSION, COMMAND_VERSION));
    let raised: LevelRaised = second.call(Method::POST, "cluster/upgrade", &json!({})).await?;
    ensure!(raised == LevelRaised { from: COMMAND_VERSION, to: COMMAND_VERSION });
    let pulled = second.v2(Method::GET, "a/app/manifests/v1").send().await?.error_for_status()?;
    ensure!(pulled.bytes().await? == manifest);
    second.server.stop().await?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_cluster_takes_over_the_storage_that_the_old_one_had() -> Result<()> {
    let node = Node::start().await?;
    push_image(&node, "a/app", "v1", b"a layer").await?;
    let folder = tempfile::tempdir()?;
    let saved = save(&node, folder.path()).await?;
    let storage = node.path().join("node/storage");
    let stranger = Node::start().await?;
    let fresh = tempfile::tempdir()?;
    let mut taken = config(&fresh)?;
    taken.storage.path = Some(stranger.path().join("node/storage"));
    let refused = server::restore(&taken, Plan { file: &saved.file, objects: None }).await;
    let refused = format!("{:#}", refused.err().context("restored into another one's storage")?);
    ensure!(refused.contains("belongs to another cluster"), "{refused}");
    stranger.server.stop().await?;

    let place = |config: &mut Config| config.storage.path = Some(storage);
    let new = node.restored_with(&saved.file, None, place).await?;
    new.v2(Method::GET, "a/app/manifests/v1").send().await?.error_for_status()?;
    new.ownership().hold().await?;
    let old = node.ownership().hold().await.err().context("both lives have the storage")?;
    ensure!(old.to_string().contains("another life"), "{old}");
    new.server.stop().await?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_sound_backup_is_refused_and_leaves_nothing() -> Result<()> {
    let node = Node::start().await?;
    push_image(&node, "a/app", "v1", b"a layer").await?;
    let folder = tempfile::tempdir()?;
    let saved = save(&node, folder.path()).await?;
    let sound = std::fs::read(&saved.file)?;
    let mut flipped = sound.clone();
    flipped[sound.len() / 2] ^= 1;
    let mut later = sound.clone();
    later[9] = 9;
    for (bytes, says) in [
        (sound[..sound.len() - 3].to_vec(), "cut off"),
        (flipped, "damaged"),
        (later, "version 9"),
        (b"PK a zip file of some kind".to_vec(), "no backup"),
    ] {
        let fresh = tempfile::tempdir()?;
        let config = config(&fresh)?;
        let file = fresh.path().join("bad.backup");
        std::fs::write(&file, bytes)?;
        let refused = server::restore(&config, Plan { file: &file, objects: None }).await;
        let text = format!("{:#}", refused.err().context(says)?);
        ensure!(text.contains(says), "{text}");
        ensure!(!config.node.data_dir.exists(), "something was left of it: {text}");
    }

    // An object that is missing from the folder, or is another than it is named by.
    let victim = saved.needed.iter().find(|needed| needed.size == Some(7)).context("the layer")?;
    let path = saved.objects.join(victim.key.to_string());
    for damage in [None, Some(b"b layer")] {
        match damage {
            None => std::fs::remove_file(&path)?,
            Some(bytes) => std::fs::write(&path, bytes)?,
        }
        let fresh = tempfile::tempdir()?;
        let config = config(&fresh)?;
        let plan = Plan { file: &saved.file, objects: Some(&saved.objects) };
        let refused = server::restore(&config, plan).await;
        let text = format!("{:#}", refused.err().context("an object is missing")?);
        ensure!(text.contains(&victim.key.to_string()), "{text}");
        ensure!(!config.node.data_dir.exists(), "something was left of it: {text}");
    }

    // Not over a node that there is.
    let plan = Plan { file: &saved.file, objects: None };
    let running = node.server.app().config.clone();
    ensure!(server::restore(&running, plan).await.is_err());
    let stopped = running.node.data_dir.clone();
    node.server.stop().await?;
    // In this process the endpoint of its group ends a moment after the group.
    let free = async || Ok(UdpSocket::bind(running.raft.listen).ok().map(drop));
    until("the port that is given back", free).await?;
    let plan = Plan { file: &saved.file, objects: None };
    let refused = server::restore(&running, plan).await.err().context("restored over a node")?;
    ensure!(refused.to_string().contains("member of a cluster already"), "{refused}");
    ensure!(stopped.join("member.json").exists() && stopped.join("raft").exists());

    // A crash in the middle leaves its marker; the next restore clears what lies beside it.
    let (fresh, other) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let (config, unfounded) = (config(&fresh)?, config(&other)?);
    let storage = config.node.data_dir.join("storage");
    std::fs::create_dir_all(config.node.data_dir.join("raft/state-1"))?;
    let refused = server::restore(&config, Plan { file: &saved.file, objects: None }).await;
    ensure!(refused.is_err() && config.node.data_dir.join("raft/state-1").exists());
    std::fs::write(config.node.data_dir.join("restoring"), b"")?;
    let restored = server::restore(&config, Plan { file: &saved.file, objects: None }).await?;
    ensure!(restored.missing == saved.totals.objects, "{restored:?}");
    ensure!(!config.node.data_dir.join("restoring").exists() && storage.exists());

    // So it does with what a founding has left that was cut off.
    std::fs::create_dir_all(unfounded.node.data_dir.join("raft/state-1"))?;
    std::fs::write(unfounded.node.data_dir.join("founding"), b"")?;
    server::restore(&unfounded, Plan { file: &saved.file, objects: None }).await?;
    ensure!(!unfounded.node.data_dir.join("founding").exists());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verification_names_what_is_missing_short_or_damaged() -> Result<()> {
    let node = Node::start().await?;
    push_image(&node, "a/app", "v1", b"a layer").await?;
    let file = make_disk(node.path(), "one", 2)?;
    let image = create_image(&node, "zedge/one").await?;
    upload(&node, image, &file, "1.0.0").await?;
    let sound = verify(&node, true).await?;
    ensure!(sound.flaws.is_empty() && sound.objects >= 6 && sound.bytes > 1 << 20, "{sound:?}");

    let app = node.server.app();
    let rows = app.view().await?.query().objects_after(None, 100)?;
    let pack = rows.iter().find(|(key, _)| matches!(key, ObjectKey::Pack(_)));
    let (pack, _) = pack.context("a pack")?;
    let blob = app.view().await?.query().blob(&sha256(b"a layer").parse()?)?.context("a blob")?;
    let empty = app.view().await?.query().blob(&sha256(b"{}").parse()?)?.context("a blob")?;
    let length = app.store.length(*pack).await?.context("its length")?;
    let mut pieces = app.store.get(*pack, 0..length).await?;
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.next().await {
        bytes.extend_from_slice(&piece?);
    }
    bytes[100] ^= 1;
    app.store.put(*pack, &KeyOwner::Cluster, Bytes::from(bytes)).await?;
    app.store.put(blob.object, &KeyOwner::Cluster, Bytes::from_static(b"a lay")).await?;
    app.store.delete(&[empty.object]).await?;

    let looked = verify(&node, false).await?;
    ensure!((looked.missing, looked.wrong_size, looked.damaged) == (1, 1, 0), "{looked:?}");
    let read = verify(&node, true).await?;
    ensure!((read.missing, read.wrong_size, read.damaged) == (1, 1, 1), "{read:?}");
    let named: Vec<&str> = read.flaws.iter().map(|flaw| flaw.object.as_str()).collect();
    for object in [*pack, blob.object, empty.object] {
        ensure!(named.contains(&object.to_string().as_str()), "{object} is not in {named:?}");
    }
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_for_administrators() -> Result<()> {
    let node = Node::start().await?;
    let agent = Agent::enrol(&node, "host-1").await?;
    let some = "backup/objects/packs/00/00";
    for path in ["backup", some] {
        let url = format!("{}/api/v1/{path}", node.url);
        problem(node.http.get(&url).send().await?, StatusCode::UNAUTHORIZED).await?;
        let asked = node.http.get(&url).bearer_auth(agent.token()?).send().await?;
        problem(asked, StatusCode::FORBIDDEN).await?;
    }
    let missing = problem(node.request(Method::GET, some).send().await?, StatusCode::NOT_FOUND);
    ensure!(missing.await?.code == "object_not_found");
    node.server.stop().await
}
