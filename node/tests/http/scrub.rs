//! What a crash left in storage is found, what is damaged is named, and nothing else is touched.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use prometheus_client::registry::Registry;
use reqwest::{Method, StatusCode};
use shoal_api::{CollectionDone, ScrubStatus, StorageStatus};
use shoal_content::{ClusterId, ObjectKey, PackId, UploadId};
use shoal_metadata::{KeyOwner, UploadPurpose};
use shoal_node::ownership::Ownership;
use shoal_node::scrub::{Limits, Scrubber};
use shoal_node::store::PART_BYTES_MIN;
use uuid::Uuid;

use super::node::{Node, problem};
use super::v2::{open_upload, push_blob, push_image, sha256, sha512};
use super::wait::until;

const SAMPLE_BYTES: u64 = 1 << 30;
/// The times of files are no finer than this.
const CLOCK_STEP: Duration = Duration::from_millis(20);

/// Takes everything for old.
fn scrubber(node: &Node) -> Scrubber {
    scrubber_of(node, SAMPLE_BYTES)
}

fn scrubber_of(node: &Node, sample_bytes: u64) -> Scrubber {
    let app = node.server.app();
    let limits = Limits {
        orphan_age: Duration::ZERO,
        leftover_age: Duration::ZERO,
        ..Limits::new(Duration::from_secs(3600), sample_bytes)
    };
    let (raft, store) = (app.raft.clone(), Arc::clone(&app.store));
    Scrubber::new(raft, store, node.ownership(), limits, &mut Registry::default())
}

async fn scrub(scrubber: &Scrubber) -> Result<ScrubStatus> {
    scrubber.start();
    let ended = async || Ok(Some(scrubber.status()).filter(|status| !status.running));
    let status = until("the end of the scrub", ended).await?;
    ensure!(status.error.is_none(), "{status:?}");
    Ok(status)
}

fn name() -> UploadId {
    UploadId::from_uuid(Uuid::now_v7())
}

#[tokio::test(flavor = "multi_thread")]
async fn orphans_and_leftovers_go_and_sessions_stay() -> Result<()> {
    let node = Node::start_with(|config| config.collection.grace_seconds = 0).await?;
    push_image(&node, "a/kept", "v1", b"a layer").await?;
    let store = Arc::clone(&node.server.app().store);
    let session = open_upload(&node, "a/kept").await?;
    // Enough for a multipart upload and a tail, of which the first request's end stays where it is.
    let half = vec![7; 10 << 20];
    for body in [&half[..9 << 20], &half[9 << 20..]] {
        let answer = node.v2(Method::PATCH, &session).body(body.to_vec()).send().await?;
        ensure!(answer.status() == StatusCode::ACCEPTED);
    }

    // As crashes at different moments would leave them.
    let orphan = ObjectKey::Blob(name());
    let pack = ObjectKey::Pack(PackId::of(b"a pack"));
    store.put(orphan, &KeyOwner::Cluster, Bytes::from_static(b"never named")).await?;
    store.put(pack, &KeyOwner::Cluster, Bytes::from_static(b"a pack")).await?;
    let checkpoint = ObjectKey::UploadCheckpoint { upload: name(), number: 9 };
    let part = ObjectKey::UploadPart { upload: name(), part: 1 };
    store.put(checkpoint, &KeyOwner::Cluster, Bytes::from_static(b"left")).await?;
    store.put(part, &KeyOwner::Cluster, Bytes::from_static(b"left")).await?;
    let broken = ObjectKey::Blob(name());
    let multipart = store.begin(broken, &KeyOwner::Cluster).await?;
    let bytes = Bytes::from(vec![1; PART_BYTES_MIN as usize]);
    let stored = store.put_part(broken, &multipart, 1, 0, bytes).await?;

    let written = SystemTime::now();
    let clock = async || Ok((SystemTime::now() > written + CLOCK_STEP).then_some(()));
    until("the clock to leave what was stored behind", clock).await?;
    let status = scrub(&scrubber(&node)).await?;
    ensure!(status.orphans == 2 && status.leftovers == 3 && status.damaged == 0, "{status:?}");
    ensure!(status.verified > 0 && status.objects >= 6, "{status:?}");
    for gone in [checkpoint, part] {
        ensure!(store.length(gone).await?.is_none(), "{gone} is there");
    }
    ensure!(store.complete(broken, &multipart, &[stored]).await.is_err());
    // Again: what is adopted is no orphan any more.
    let status = scrub(&scrubber(&node)).await?;
    ensure!(status.orphans == 0 && status.leftovers == 0, "{status:?}");

    // They are shown before they go, and go.
    let waiting: StorageStatus = node.get("storage").await?;
    let names = &waiting.unreferenced.examples;
    ensure!(names.contains(&orphan.to_string()) && names.contains(&pack.to_string()), "{names:?}");
    ensure!(store.length(orphan).await?.is_some(), "asking changed something");
    let nothing = serde_json::json!({});
    let done: CollectionDone = node.call(Method::POST, "storage/collect", &nothing).await?;
    ensure!(done.deleted >= 2, "{done:?}");
    for gone in [orphan, pack] {
        ensure!(store.length(gone).await?.is_none(), "{gone} is there");
    }

    let whole = [half.as_slice(), b"the rest"].concat();
    let closing = format!("{session}?digest={}", sha256(&whole));
    let answer = node.v2(Method::PUT, &closing).body("the rest").send().await?;
    ensure!(answer.status() == StatusCode::CREATED, "the session was harmed");
    let sessions = node.server.app().view().await?.query().uploads()?;
    ensure!(!sessions.iter().any(|row| matches!(row.purpose, UploadPurpose::Blob { .. })));
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_found_and_counted() -> Result<()> {
    let node = Node::start().await?;
    let digest = push_blob(&node, "a/blob", b"as it was pushed").await?;
    let app = node.server.app();
    let blob = app.view().await?.query().blob(&digest.parse()?)?.context("the row")?;
    ensure!(scrub(&scrubber(&node)).await?.damaged == 0);
    // A flipped bit, a lost end, a lost object.
    app.store.put(blob.object, &KeyOwner::Cluster, Bytes::from_static(b"bs it was pushed")).await?;
    ensure!(scrub(&scrubber(&node)).await?.damaged == 1);
    app.store.put(blob.object, &KeyOwner::Cluster, Bytes::from_static(b"as it was")).await?;
    ensure!(scrub(&scrubber(&node)).await?.damaged == 1);
    app.store.delete(&[blob.object]).await?;
    let status = scrub(&scrubber(&node)).await?;
    ensure!(status.damaged == 1, "{status:?}");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_to_a_blob_longer_than_the_sample_is_found_and_its_reading_paid_for() -> Result<()> {
    const SHARE_BYTES: usize = 1000;
    let node = Node::start().await?;
    let digest = push_blob(&node, "a/long", &[7; 3 * SHARE_BYTES]).await?;
    let app = node.server.app();
    let blob = app.view().await?.query().blob(&digest.parse()?)?.context("the row")?;
    let damaged = Bytes::from(vec![8; 3 * SHARE_BYTES]);
    app.store.put(blob.object, &KeyOwner::Cluster, damaged).await?;
    let scrubber = scrubber_of(&node, 2 * SHARE_BYTES as u64);
    for found in [1, 0, 0, 1] {
        let status = scrub(&scrubber).await?;
        ensure!(status.damaged == found, "{found}: {status:?}");
    }
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_to_the_one_blob_of_another_algorithm_is_found_among_many() -> Result<()> {
    let node = Node::start().await?;
    // Several times as many as are looked at.
    for number in 0..250_u32 {
        push_blob(&node, "a/many", &number.to_le_bytes()).await?;
    }
    let digest = sha512(b"as it was pushed");
    let path = format!("a/many/blobs/uploads/?digest={digest}");
    let answer = node.v2(Method::POST, &path).body("as it was pushed").send().await?;
    ensure!(answer.status() == StatusCode::CREATED, "{}", answer.status());
    ensure!(scrub(&scrubber(&node)).await?.damaged == 0);
    let app = node.server.app();
    let blob = app.view().await?.query().blob(&digest.parse()?)?.context("the row")?;
    app.store.put(blob.object, &KeyOwner::Cluster, Bytes::from_static(b"bs it was pushed")).await?;
    ensure!(scrub(&scrubber(&node)).await?.damaged == 1);
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_deleted_from_the_storage_of_another_cluster() -> Result<()> {
    let node = Node::start_with(|config| config.collection.grace_seconds = 0).await?;
    let storage = node.path().join("node/storage");
    let second = Node::start_with(|config| config.storage.path = Some(storage.clone())).await;
    let refused = format!("{:#}", second.err().context("two clusters have one storage")?);
    ensure!(refused.contains("belongs to another cluster"), "{refused}");

    let store = Arc::clone(&node.server.app().store);
    let orphan = ObjectKey::Blob(name());
    let part = ObjectKey::UploadPart { upload: name(), part: 1 };
    for key in [orphan, part] {
        store.put(key, &KeyOwner::Cluster, Bytes::from_static(b"never named")).await?;
    }
    let written = SystemTime::now();
    let clock = async || Ok((SystemTime::now() > written + CLOCK_STEP).then_some(()));
    until("the clock to leave what was stored behind", clock).await?;
    // As if somebody had given the storage to another one while this one runs.
    let owner = storage.join("shoal-owner.json");
    let own = std::fs::read(&owner)?;
    std::fs::remove_file(&owner)?;
    let other = ClusterId::from_uuid(Uuid::now_v7());
    Ownership::new(Arc::clone(&store), other, None).hold().await?;
    let scrubber = scrubber(&node);
    scrubber.start();
    let ended = async || Ok(Some(scrubber.status()).filter(|status| !status.running));
    let status = until("the end of the scrub", ended).await?;
    let error = status.error.context("another cluster's storage was scrubbed")?;
    ensure!(error.contains(&other.to_string()), "{error}");
    let answer = node.request(Method::POST, "storage/collect").json(&serde_json::json!({}));
    let refused = problem(answer.send().await?, StatusCode::CONFLICT).await?;
    ensure!(refused.code == "storage_not_owned", "{refused:?}");
    for key in [orphan, part] {
        ensure!(store.length(key).await?.is_some(), "{key} was deleted");
        ensure!(node.server.app().view().await?.query().object(&key)?.is_none(), "{key} has a row");
    }
    std::fs::write(&owner, own)?;
    let status = scrub(&scrubber).await?;
    ensure!(status.orphans == 1 && status.leftovers == 1, "{status:?}");
    node.server.stop().await
}
