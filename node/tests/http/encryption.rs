//! Encryption at rest: what lies in storage says nothing, what is asked for comes as it was.

use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use reqwest::{Method, StatusCode};
use serde_json::json;
use shoal_api::{EncryptionRotated, EncryptionStatus};
use shoal_content::{ObjectKey, RepositoryName};
use shoal_formats::backup::{Frame, Reader};
use shoal_metadata::{Command, KeyOwner, KeyPurpose, SecretPlace};
use shoal_node::config::Config;
use shoal_node::server::Server;
use shoal_node::store::{StoreError, read};

use super::backup::save;
use super::disks::{create_image, download, make_disk, upload};
use super::members::Agent;
use super::node::{DEADLINE, Node, problem};
use super::v2::{expect, open_upload, push_blob, push_image, sha256};
use super::wait::until;

pub const STATUS: &str = "cluster/encryption";
const MIB: usize = 1024 * 1024;

/// A master key in a file of its own.
pub fn master_key(folder: &Path, seed: u8) -> Result<PathBuf> {
    let path = folder.join(format!("master-{seed}"));
    if path.exists() {
        return Ok(path);
    }
    std::fs::write(&path, hex::encode([seed; 32]))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400))?;
    Ok(path)
}

pub async fn sealing(node: &Node) -> Result<()> {
    until("the beginning of sealing", async || {
        let status: EncryptionStatus = node.get(STATUS).await?;
        Ok((status.state == "on").then_some(()))
    })
    .await
}

async fn start(folder: &Path, change: impl FnOnce(&mut Config)) -> Result<Node> {
    let master = master_key(folder, 1)?;
    let node = Node::start_with(|config| {
        config.encryption.master_key_file = Some(master);
        change(config);
    })
    .await?;
    sealing(&node).await?;
    Ok(node)
}

/// Text that nothing else has.
pub fn content(length: usize) -> Vec<u8> {
    b"what only its owner should read; ".iter().copied().cycle().take(length).collect()
}

/// Files below `folder` that hold it.
fn files_with(folder: &Path, needle: &[u8]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files_with(&path, needle)?);
            continue;
        }
        let content = match std::fs::read(&path) {
            // The node has removed it meanwhile.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            read => read?,
        };
        if content.windows(needle.len()).any(|window| window == needle) {
            found.push(path);
        }
    }
    Ok(found)
}

pub async fn pull(node: &Node, repository: &str, content: &[u8]) -> Result<()> {
    let path = format!("{repository}/blobs/{}", sha256(content));
    let whole = node.v2(Method::GET, &path).send().await?;
    expect(&whole, StatusCode::OK)?;
    ensure!(whole.bytes().await? == content, "other bytes");
    let length = content.len();
    for (first, last) in [(0, 0), (65_530, 65_545), (length / 2, length - 1)] {
        if last >= length {
            continue;
        }
        let range = node.v2(Method::GET, &path).header("range", format!("bytes={first}-{last}"));
        let range = range.send().await?;
        expect(&range, StatusCode::PARTIAL_CONTENT)?;
        ensure!(range.bytes().await? == content[first..=last], "bytes {first} to {last}");
    }
    Ok(())
}

async fn object_of(node: &Node, content: &[u8]) -> Result<ObjectKey> {
    let view = node.server.app().view().await?;
    let blob = view.query().blob(&sha256(content).parse()?)?;
    Ok(blob.context("there is no such blob")?.object)
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_holds_nothing_that_can_be_read_and_every_node_reads_it() -> Result<()> {
    let keys = tempfile::tempdir()?;
    let first = start(keys.path(), |_| ()).await?;
    let storage = first.path().join("node/storage");
    let master = master_key(keys.path(), 1)?;
    let token = first.join_token("node", Some(1)).await?;
    let second = Node::join_with("node-2", &first.url, &token, &storage, |config| {
        config.encryption.master_key_file = Some(master);
    })
    .await?
    .logged_in_as(&first);

    let small = content(1000);
    push_image(&first, "a/small", "v1", &small).await?;
    // Begun at one node and ended at the other, in the middle of a part.
    let long = content(20 * MIB + 5);
    let path = open_upload(&first, "a/long").await?;
    let (head, tail) = long.split_at(9 * MIB + 3);
    let sent = first.v2(Method::PATCH, &path).body(head.to_vec()).send().await?;
    expect(&sent, StatusCode::ACCEPTED)?;
    let closing = format!("{path}?digest={}", sha256(&long));
    let ended = first.http.put(format!("{}/v2/{closing}", second.url)).bearer_auth(first.token());
    expect(&ended.body(tail.to_vec()).send().await?, StatusCode::CREATED)?;

    let disk = make_disk(first.path(), "sealed", 3)?;
    let image = create_image(&first, "a/vm").await?;
    upload(&first, image, &disk, "1.0.0").await?;

    ensure!(files_with(&storage, &small[..33])?.is_empty(), "it can be read in storage");
    for node in [&first, &second] {
        pull(node, "a/small", &small).await?;
        pull(node, "a/long", &long).await?;
    }
    let raw = std::fs::read(disk.with_extension("raw"))?;
    ensure!(download(&first, image, "1.0.0", "raw").await? == raw, "the disk has other bytes");

    let status: EncryptionStatus = first.get(STATUS).await?;
    let projects: Vec<_> = status.data_keys.iter().map(|key| key.project.as_deref()).collect();
    ensure!(projects.contains(&Some("a")) && projects.contains(&None), "{projects:?}");
    ensure!(status.waiting_for.is_empty() && status.wrapped_by.len() == 1, "{status:?}");
    second.server.stop().await?;
    first.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_go_over_to_another_master_key_and_no_object_is_touched() -> Result<()> {
    let keys = tempfile::tempdir()?;
    let (old, new) = (master_key(keys.path(), 1)?, master_key(keys.path(), 2)?);
    let node = Node::start().await?;
    let plain = content(70_000);
    push_blob(&node, "a/plain", &plain).await?;
    let refused = node.request(Method::POST, &format!("{STATUS}/rotate")).json(&json!({}));
    let refused = problem(refused.send().await?, StatusCode::CONFLICT).await?;
    ensure!(refused.code == "encryption_off", "{refused:?}");

    // What was there before stays readable.
    let first = old.clone();
    let node = node.restart(|config| config.encryption.master_key_file = Some(first)).await?;
    sealing(&node).await?;
    let sealed = [&b"sealed "[..], &content(70_000)].concat();
    push_blob(&node, "a/sealed", &sealed).await?;
    pull(&node, "a/plain", &plain).await?;
    let storage = node.path().join("node/storage");
    ensure!(files_with(&storage, &plain[..33])?.len() == 1, "one object is as it was pushed");
    let object = storage.join("objects").join(object_of(&node, &sealed).await?.to_string());
    let before = std::fs::read(&object)?;

    let (newest, previous) = (new.clone(), old.clone());
    let node = node
        .restart(|config| {
            config.encryption.master_key_file = Some(newest);
            config.encryption.previous_master_key_files = vec![previous];
        })
        .await?;
    let status = until("what the node says of its master keys", async || {
        let status: EncryptionStatus = node.get(STATUS).await?;
        Ok(status.waiting_for.is_empty().then_some(status))
    })
    .await?;
    ensure!(status.master_key != status.newest_master_key, "{status:?}");
    let rotate = format!("{STATUS}/rotate");
    let rotated: EncryptionRotated = node.call(Method::POST, &rotate, &json!({})).await?;
    ensure!(rotated.data_keys == 2, "{rotated:?}");
    let again: EncryptionRotated = node.call(Method::POST, &rotate, &json!({})).await?;
    ensure!(again.data_keys == 0 && Some(again.master_key) == status.newest_master_key);
    let of_project = json!({ "project": "a" });
    let _made: EncryptionRotated = node.call(Method::POST, &rotate, &of_project).await?;
    let later = content(71_000);
    push_blob(&node, "a/sealed", &later).await?;

    let newest = new.clone();
    let node = node
        .restart(|config| {
            config.encryption.master_key_file = Some(newest);
            config.encryption.previous_master_key_files.clear();
        })
        .await?;
    for (repository, content) in [("a/plain", &plain), ("a/sealed", &sealed), ("a/sealed", &later)]
    {
        pull(&node, repository, content).await?;
    }
    ensure!(std::fs::read(&object)? == before, "an object was rewritten");
    let status: EncryptionStatus = node.get(&format!("{STATUS}?project=a")).await?;
    let states: Vec<&str> = status.data_keys.iter().map(|key| key.state.as_str()).collect();
    ensure!(states == ["seals", "opens"], "{states:?}");

    // It says what it lacks, and does not start.
    let config = node.server.app().config.clone();
    node.server.stop().await?;
    for (master, word) in [(Some(old), "previous_master_key_files"), (None, "master_key_file")] {
        let free = async || Ok(UdpSocket::bind(config.raft.listen).ok().map(drop));
        until("the port that is given back", free).await?;
        let mut config = config.clone();
        config.encryption.master_key_file = master;
        match Server::start(config, |_| ()).await {
            Ok(_) => bail!("a node without the key starts"),
            Err(error) => ensure!(format!("{error:#}").contains(word), "{error:#}"),
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_a_removed_project_had_is_gone_and_what_others_hold_stays() -> Result<()> {
    let keys = tempfile::tempdir()?;
    let node = start(keys.path(), |config| config.encryption.shred_after_seconds = 0).await?;
    let (own, shared) = (content(70_001), content(70_002));
    push_image(&node, "gone/app", "v1", &own).await?;
    push_blob(&node, "gone/app", &shared).await?;
    push_blob(&node, "stays/other", b"so that there is a repository").await?;
    let mount = format!("stays/other/blobs/uploads/?mount={}&from=gone/app", sha256(&shared));
    expect(&node.v2(Method::POST, &mount).send().await?, StatusCode::CREATED)?;
    push_image(&node, "stays/other", "v1", &shared).await?;
    let app = node.server.app().clone();
    let (own_object, shared_object) =
        (object_of(&node, &own).await?, object_of(&node, &shared).await?);

    let name: RepositoryName = "gone/app".parse()?;
    let image = app.view().await?.query().image_by_name(&name)?.context("its image")?.id;
    let purge = node.request(Method::DELETE, &format!("images/{image}?purge=true"));
    expect(&purge.send().await?, StatusCode::NO_CONTENT)?;
    let trail: serde_json::Value = node.get("audit?action=encryption.begin").await?;
    ensure!(trail.to_string().contains("file-"), "{trail}");
    let copy = read(&*app.store, own_object, 0..70_001).await?;
    ensure!(copy == own, "it is readable until the project goes");
    let removed = node.request(Method::DELETE, "projects/gone").send().await?;
    ensure!(removed.status().is_success(), "{}", removed.status());

    let status = until("the end of the project's key", async || {
        let status: EncryptionStatus = node.get(STATUS).await?;
        Ok((status.destroyed_keys == 1).then_some(status))
    })
    .await?;
    ensure!(status.retired_keys == 0, "{status:?}");
    let trail: serde_json::Value = node.get("audit?action=data_key.destroy").await?;
    ensure!(trail.to_string().contains("gone datakey-"), "{trail}");
    let gone = read(&*app.store, own_object, 0..70_001).await;
    ensure!(matches!(gone, Err(StoreError::Shredded(_))), "{gone:?}");
    ensure!(app.store.length(own_object).await?.is_some(), "its bytes are the collection's");
    pull(&node, "stays/other", &shared).await?;
    let handed = app.view().await?.query().handed_key(&shared_object)?.context("a row of it")?;
    let heir = app.view().await?.query().data_key(handed.to)?.context("its key")?.owner;
    ensure!(heir == KeyOwner::Project("stays".parse()?), "{heir}");

    // The same content pushed again is another object, and the project's name may be used again.
    push_image(&node, "gone/app", "v1", &own).await?;
    pull(&node, "gone/app", &own).await?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_in_the_trash_keeps_what_a_removed_project_had_sealed_of_it() -> Result<()> {
    let keys = tempfile::tempdir()?;
    let node = start(keys.path(), |config| config.encryption.shred_after_seconds = 0).await?;
    let disk = make_disk(node.path(), "shared", 3)?;
    let first = create_image(&node, "gone/vm").await?;
    upload(&node, first, &disk, "1.0.0").await?;
    let second = create_image(&node, "stays/vm").await?;
    upload(&node, second, &disk, "1.0.0").await?;
    let trashed = node.request(Method::DELETE, &format!("images/{second}")).send().await?;
    expect(&trashed, StatusCode::NO_CONTENT)?;
    let purged = node.request(Method::DELETE, &format!("images/{first}?purge=true")).send().await?;
    expect(&purged, StatusCode::NO_CONTENT)?;
    let removed = node.request(Method::DELETE, "projects/gone").send().await?;
    ensure!(removed.status().is_success(), "{}", removed.status());
    until("the end of the project's key", async || {
        let status: EncryptionStatus = node.get(STATUS).await?;
        Ok((status.destroyed_keys == 1).then_some(()))
    })
    .await?;

    let view = node.server.app().view().await?;
    let version = view.query().versions(second)?.pop().context("its version")?;
    for object in version.disk.context("its disk")?.objects {
        let handed = view.query().handed_key(&object)?;
        let handed = handed.with_context(|| format!("{object} was not handed over"))?;
        let heir = view.query().data_key(handed.to)?.context("its key")?.owner;
        ensure!(heir == KeyOwner::Project("stays".parse()?), "{object} went to {heir}");
    }
    let restore = format!("images/{second}/restore");
    let restored = node.request(Method::POST, &restore).json(&json!({})).send().await?;
    ensure!(restored.status().is_success(), "{}", restored.status());
    let raw = std::fs::read(disk.with_extension("raw"))?;
    ensure!(download(&node, second, "1.0.0", "raw").await? == raw, "the disk has other bytes");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sealed_before_every_node_can_read_it() -> Result<()> {
    let keys = tempfile::tempdir()?;
    let master = master_key(keys.path(), 1)?;
    let first = Node::start().await?;
    let second = first.join("node-2").await?;
    let first = {
        let master = master.clone();
        first.restart(|config| config.encryption.master_key_file = Some(master)).await?
    };
    let other = second.server.app().node.number();
    until("what the first node says", async || {
        let status: EncryptionStatus = first.get(STATUS).await?;
        Ok((status.state == "waiting" && status.waiting_for == [other]).then_some(()))
    })
    .await?;
    let early = content(500);
    push_blob(&first, "a/app", &early).await?;
    let second = second.restart(|config| config.encryption.master_key_file = Some(master)).await?;
    sealing(&first).await?;
    let late = content(600);
    push_blob(&first, "a/app", &late).await?;
    pull(&second, "a/app", &early).await?;
    pull(&second, "a/app", &late).await?;
    let token = first.join_token("node", Some(1)).await?;
    let storage = first.path().join("node/storage");
    let third = Node::join_with("node-3", &first.url, &token, &storage, |_| ()).await;
    match third {
        Ok(_) => bail!("a node without the master key is let in"),
        Err(error) => ensure!(format!("{error:#}").contains("master_key_file"), "{error:#}"),
    }
    second.server.stop().await?;
    first.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_lost_its_master_key_says_so_and_is_waited_for() -> Result<()> {
    let keys = tempfile::tempdir()?;
    let master = master_key(keys.path(), 1)?;
    let first = Node::start().await?;
    let second = first.join("node-2").await?;
    let number = second.server.app().node;
    let file = master.clone();
    let second = second.restart(|config| config.encryption.master_key_file = Some(file)).await?;
    until("what the second node says", async || {
        let view = first.server.app().view().await?;
        Ok((!view.query().node_master_keys(number)?.is_empty()).then_some(()))
    })
    .await?;
    let mut second = second.restart(|config| config.encryption.master_key_file = None).await?;
    let said = second.server.app().view().await?.query().node_master_keys(number)?;
    ensure!(said.is_empty(), "it serves, and others think that it has {said:?}");
    let file = master.clone();
    let first = first.restart(|config| config.encryption.master_key_file = Some(file)).await?;
    until("what the first node says", async || {
        let status: EncryptionStatus = first.get(STATUS).await?;
        Ok((status.state == "waiting" && status.waiting_for == [number.number()]).then_some(()))
    })
    .await?;

    // Only a leader that has the key begins.
    until("the first node to lead", async || {
        let _next = second.server.app().raft.hand_over().await;
        Ok(first.server.app().raft.status().is_leader.then_some(()))
    })
    .await?;

    // Should the others begin all the same, it does not go on.
    let masters =
        first.server.app().view().await?.query().node_master_keys(first.server.app().node)?;
    first.server.app().propose(Command::NoteMasterKeys { node: number, masters }).await?;
    sealing(&first).await?;
    let failure = tokio::time::timeout(DEADLINE, second.server.failed()).await?;
    let address = second.server.app().config.http.listen;
    let stopped = second.server.fail(failure).await;
    let said = format!("{:#}", stopped.err().context("it has not failed")?);
    ensure!(said.contains("[encryption] master_key_file"), "{said}");
    ensure!(std::net::TcpListener::bind(address).is_ok(), "it listens on");
    first.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_cluster_seals_what_it_gets_back_and_needs_the_master_key() -> Result<()> {
    let keys = tempfile::tempdir()?;
    let node = start(keys.path(), |_| ()).await?;
    let (short, long) = (content(1000), content(21 * MIB));
    push_image(&node, "a/app", "v1", &short).await?;
    push_blob(&node, "a/app", &long).await?;
    sealed_secrets(&node).await?;
    let folder = tempfile::tempdir()?;
    let saved = save(&node, folder.path()).await?;
    let refused = node.restored(&saved.file, Some(&saved.objects)).await;
    let said = refused.err().context("restored without the master key")?;
    ensure!(format!("{said:#}").contains("master_key_file"), "{said:#}");

    let master = master_key(keys.path(), 1)?;
    let new = node
        .restored_with(&saved.file, Some(&saved.objects), |config| {
            config.encryption.master_key_file = Some(master);
        })
        .await?;
    sealing(&new).await?;
    ensure!(files_with(&new.path().join("node/storage"), &short[..33])?.is_empty());
    pull(&new, "a/app", &short).await?;
    pull(&new, "a/app", &long).await?;
    new.server.stop().await?;
    node.server.stop().await
}

/// The cluster's own secrets, once none of them is stored as it is.
async fn sealed_secrets(node: &Node) -> Result<Vec<SecretPlace>> {
    until("the cluster's secrets to be sealed", async || {
        let secrets = node.server.app().view().await?.query().secrets()?;
        let sealed = secrets.iter().all(|(_, secret)| secret.0.starts_with(b"\0sealed"));
        Ok(sealed.then(|| secrets.into_iter().map(|(place, _)| place).collect()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clusters_own_secrets_are_sealed_and_every_node_works_with_them() -> Result<()> {
    let keys = tempfile::tempdir()?;
    // A cluster that has worked without a master key for a while.
    let first = Node::start().await?;
    let storage = first.path().join("node/storage");
    let token = first.join_token("node", Some(1)).await?;
    let second = Node::join_with("node-2", &first.url, &token, &storage, |_| ()).await?;
    let second = second.logged_in_as(&first);
    let plain = first.server.app().view().await?.query().secrets()?;
    ensure!(plain.iter().any(|(_, secret)| secret.0.starts_with(b"-----BEGIN")));
    let _rotated: serde_json::Value =
        first.call(Method::POST, "cluster/keys/token/rotate", &json!({})).await?;

    let master = master_key(keys.path(), 1)?;
    let give = |config: &mut Config| config.encryption.master_key_file = Some(master.clone());
    let (first, second) = tokio::try_join!(first.restart(give), second.restart(give))?;
    sealing(&first).await?;
    let places = sealed_secrets(&first).await?;
    let token_key = |number| SecretPlace::Signing(KeyPurpose::Token, number);
    for place in [SecretPlace::Authority, SecretPlace::Network, token_key(0), token_key(1)] {
        ensure!(places.contains(&place), "{place} is not among {places:?}");
    }
    // What is made later is sealed from the start.
    let _rotated: serde_json::Value =
        second.call(Method::POST, "cluster/keys/ticket/rotate", &json!({})).await?;
    let secrets = second.server.app().view().await?.query().secrets()?;
    ensure!(secrets.iter().all(|(_, secret)| secret.0.starts_with(b"\0sealed")));
    ensure!(secrets.len() == places.len() + 1, "{} secrets", secrets.len());

    // No row says any of them.
    let folder = tempfile::tempdir()?;
    let saved = save(&first, folder.path()).await?;
    let mut reader = Reader::new(std::io::BufReader::new(std::fs::File::open(&saved.file)?))?;
    let mut rows = 0;
    while let Some(frame) = reader.next_frame()? {
        let Frame::Rows(page) = frame else { continue };
        for row in page {
            rows += 1;
            for (place, secret) in &plain {
                let secret = &secret.0[..];
                let said = row.row.windows(secret.len()).any(|window| window == secret);
                ensure!(!said, "a row of table {} says {place}", row.table);
            }
        }
    }
    ensure!(rows > 10, "{rows} rows");

    // They work on, from a fresh start, too: at either node, with what the other has signed.
    let before = first.server.app().keys.sealing.to_pkcs8_der().to_vec();
    let (first, second) = tokio::try_join!(first.restart(|_| ()), second.restart(|_| ()))?;
    ensure!(*first.server.app().keys.sealing.to_pkcs8_der() == before[..]);
    let login = json!({ "username": "admin", "password": first.password() });
    let given: serde_json::Value = second.call(Method::POST, "auth/login", &login).await?;
    let given = given["token"].as_str().context("a token")?;
    let me = first.http.get(format!("{}/api/v1/auth/me", first.url)).bearer_auth(given);
    expect(&me.send().await?, StatusCode::OK)?;
    let _agent = Agent::enrol(&second, "host-1").await?;

    // Another master key opens none of it.
    let other = master_key(keys.path(), 2)?;
    let change = |config: &mut Config| config.encryption.master_key_file = Some(other);
    let refused = second.restart(change).await.err().context("it has started")?;
    ensure!(format!("{refused:#}").contains("wrapped by the master key"), "{refused:#}");
    first.server.stop().await
}
