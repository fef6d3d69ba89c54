//! What nothing refers to goes from storage, and nothing else does, whatever happens meanwhile.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use prometheus_client::registry::Registry;
use reqwest::Method;
use shoal_api::{CollectionDone, CollectionStatus, StorageStatus};
use shoal_content::{ImageId, ObjectKey};
use shoal_metadata::KeyOwner;
use shoal_node::collection::{Collected, Collector, Timing};
use shoal_node::store::{StoredObject, read};
use tokio::time::Instant;

use super::disks::{create_image, download, make_disk, upload};
use super::node::Node;
use super::v2::{push_blob, push_image, sha256};
use super::wait::until;

/// How long pushes race against collection.
const RACE: Duration = Duration::from_secs(20);
const OBJECTS_MAX: usize = 1000;

fn collector(node: &Node, window: Duration, forget: Duration) -> Collector {
    let app = node.server.app();
    let timing = Timing { grace: Duration::ZERO, interval: Duration::from_secs(1), window, forget };
    let (raft, store) = (app.raft.clone(), Arc::clone(&app.store));
    Collector::new(raft, store, node.ownership(), timing, &mut Registry::default())
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_of_a_deleted_image_and_of_a_push_that_never_ended_go() -> Result<()> {
    let node = Node::start().await?;
    let kept = push_image(&node, "a/kept", "v1", b"shared layer").await?;
    push_blob(&node, "a/kept", b"pushed and never used").await?;
    let gone = push_image(&node, "a/gone", "v1", b"a layer of its own").await?;
    push_blob(&node, "a/gone", b"shared layer").await?;
    let path = format!("a/gone/manifests/{}", sha256(&gone));
    ensure!(node.v2(Method::DELETE, &path).send().await?.status().is_success());
    let before = stored_bytes(&node).await?;
    let collector = collector(&node, Duration::from_secs(60), Duration::from_secs(3600));
    ensure!(collector.status() == CollectionStatus::default());
    let mut freed = 0;
    collect_until(&collector, |sum| {
        freed = sum.freed_bytes;
        sum.unlinked >= 4 && sum.swept >= 4
    })
    .await?;
    ensure!(freed == before - stored_bytes(&node).await?, "{freed} of {before} bytes");
    for (blob, status) in [
        ("a/kept", &b"shared layer"[..], 200),
        ("a/kept", b"{}", 200),
        ("a/kept", b"pushed and never used", 404),
        ("a/gone", b"a layer of its own", 404),
        ("a/gone", b"shared layer", 404),
    ]
    .map(|(name, content, status)| (format!("{name}/blobs/{}", sha256(content)), status))
    {
        let answer = node.v2(Method::GET, &blob).send().await?;
        ensure!(answer.status().as_u16() == status, "{blob}: {}", answer.status());
    }
    let path = format!("a/kept/manifests/{}", sha256(&kept));
    ensure!(node.v2(Method::GET, &path).send().await?.status().is_success());
    // Two blobs with their recipes are what is left.
    ensure!(node.server.app().store.list("", None, OBJECTS_MAX).await?.len() == 4);
    node.server.stop().await
}

async fn stored_bytes(node: &Node) -> Result<u64> {
    let all = node.server.app().store.list("", None, OBJECTS_MAX).await?;
    Ok(all.iter().map(|object| object.length).sum())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_says_how_far_it_is_and_what_it_freed() -> Result<()> {
    let node = Node::start_with(|config| config.collection.grace_seconds = 0).await?;
    push_image(&node, "a/gone", "v1", b"a layer of its own").await?;
    let path =
        format!("a/gone/manifests/{}", sha256(&push_image(&node, "a/gone", "v1", b"x").await?));
    ensure!(node.v2(Method::DELETE, &path).send().await?.status().is_success());
    let status =
        async || Ok::<_, anyhow::Error>(node.get::<StorageStatus>("storage").await?.collection);
    ensure!(status().await? == CollectionStatus::default());
    let before = stored_bytes(&node).await?;
    let nothing = serde_json::json!({});
    let mut sum = CollectionDone::default();
    // The first lets go of the blob, a later one of what it lay in.
    until("the blob that nothing needs", async || {
        let done: CollectionDone = node.call(Method::POST, "storage/collect", &nothing).await?;
        let shown = status().await?;
        ensure!(shown.done == done && !shown.running && shown.left == 0, "{shown:?}");
        ensure!(shown.error.is_none() && shown.ended_at >= shown.started_at, "{shown:?}");
        sum.deleted += done.deleted;
        sum.unlinked += done.unlinked;
        sum.freed_bytes += done.freed_bytes;
        Ok((sum.deleted >= 2).then_some(()))
    })
    .await?;
    ensure!(sum.unlinked >= 1, "{sum:?}");
    ensure!(sum.freed_bytes == before - stored_bytes(&node).await?, "{sum:?}");
    let metrics = node.http.get(format!("{}/metrics", node.url)).bearer_auth(node.token());
    let metrics = metrics.send().await?.error_for_status()?.text().await?;
    for (name, value) in [
        ("shoal_collection_objects_total", sum.deleted),
        ("shoal_collection_freed_bytes_total", sum.freed_bytes),
        ("shoal_collection_unlinked_total", sum.unlinked),
        ("shoal_collection_left", 0),
    ] {
        let line = format!("{name} {value}");
        ensure!(metrics.lines().any(|one| one == line), "no {line} in {metrics}");
    }
    node.server.stop().await
}

/// Packs and recipes in storage.
async fn stored(node: &Node) -> Result<Vec<ObjectKey>> {
    let all = node.server.app().store.list("", None, OBJECTS_MAX).await?;
    let content =
        |object: &StoredObject| matches!(object.key, ObjectKey::Pack(_) | ObjectKey::Recipe(_));
    Ok(all.iter().filter(|object| content(object)).map(|object| object.key).collect())
}

/// A clock of whole milliseconds must have gone on for a grace of zero to be over.
async fn collect_until(
    collector: &Collector,
    mut done: impl FnMut(&Collected) -> bool,
) -> Result<()> {
    let mut sum = Collected::default();
    let collected = until("all that is to be collected", async || {
        let more = collector.collect().await?;
        sum.swept += more.swept;
        sum.freed_bytes += more.freed_bytes;
        sum.again += more.again;
        sum.forgotten += more.forgotten;
        sum.unlinked += more.unlinked;
        Ok(done(&sum).then_some(()))
    });
    let collected = collected.await;
    collected.with_context(|| format!("only {sum:?} was collected"))
}

/// What was stored before and what is stored after cannot be confused, however coarse the clock of
/// the file system is.
async fn clock_goes_on(node: &Node) -> Result<()> {
    let (app, over) = (node.server.app(), node.server.app().now().plus_millis(50));
    until("the clock to go on", async || Ok((app.now() > over).then_some(()))).await
}

async fn delete(node: &Node, image: ImageId) -> Result<()> {
    let answer = node.request(Method::DELETE, &format!("images/{image}?purge=true")).send().await?;
    ensure!(answer.status().is_success(), "{}", answer.text().await?);
    Ok(())
}

async fn published(node: &Node, image: ImageId, file: &Path) -> Result<()> {
    let status = upload(node, image, file, "1.0").await?;
    ensure!(status.status == "active", "{status:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_disk_leaves_storage_and_may_come_again() -> Result<()> {
    let node = Node::start().await?;
    let (kept, gone) =
        (create_image(&node, "vm/kept").await?, create_image(&node, "vm/gone").await?);
    let kept_disk = make_disk(node.path(), "kept", 1)?;
    let gone_disk = make_disk(node.path(), "gone", 2)?;
    published(&node, kept, &kept_disk).await?;
    let before = stored(&node).await?;
    published(&node, gone, &gone_disk).await?;
    ensure!(stored(&node).await?.len() > before.len(), "the second disk stored nothing");
    delete(&node, gone).await?;
    let added = stored(&node).await?.len() - before.len();

    let patient = collector(&node, Duration::from_secs(60), Duration::from_secs(3600));
    collect_until(&patient, |sum| sum.swept == added).await?;
    ensure!(stored(&node).await? == before, "something else is stored than before");
    // Another leader, later: the names are free again.
    let quick = collector(&node, Duration::ZERO, Duration::from_millis(1));
    collect_until(&quick, |sum| sum.forgotten == added).await?;
    let again = create_image(&node, "vm/again").await?;
    published(&node, again, &gone_disk).await?;
    for image in [kept, again] {
        ensure!(!download(&node, image, "1.0", "raw").await?.is_empty());
    }
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_that_was_not_followed_by_deletion_is_found_again() -> Result<()> {
    let node = Node::start().await?;
    let image = create_image(&node, "vm/a").await?;
    published(&node, image, &make_disk(node.path(), "a", 3)?).await?;
    delete(&node, image).await?;
    // A window of nothing is a leader that dies between the mark and the deletion.
    let dying = collector(&node, Duration::ZERO, Duration::from_secs(3600));
    collect_until(&dying, |sum| sum.swept > 0).await?;
    let left = stored(&node).await?.len();
    ensure!(left > 0, "nothing was left behind");
    let next = collector(&node, Duration::from_secs(60), Duration::from_millis(1));
    let objects = left;
    // The mark is within the new leader's window, so that it deletes.
    collect_until(&next, |_| true).await?;
    next.collect().await?;
    ensure!(stored(&node).await?.is_empty(), "{objects} objects stayed");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_outlive_their_deletion_are_deleted_again() -> Result<()> {
    let node = Node::start().await?;
    let image = create_image(&node, "vm/a").await?;
    published(&node, image, &make_disk(node.path(), "a", 4)?).await?;
    delete(&node, image).await?;
    let window = Duration::from_millis(500);
    let app = node.server.app();
    // What is stored within a window before its mark may have been stored anew.
    let over = app.now().plus_millis(window.as_millis() as u64 + 50);
    until("objects older than a window", async || Ok((app.now() > over).then_some(()))).await?;
    let dying = collector(&node, Duration::ZERO, Duration::from_secs(3600));
    collect_until(&dying, |sum| sum.swept > 0).await?;
    let left = stored(&node).await?.len();
    // The marks get older than the next leader's window, and the bytes are there.
    let marked = app.raft.read().await?.query().deleting_objects(None, OBJECTS_MAX)?;
    let newest = marked.iter().map(|(_, since)| *since).max().context("nothing is marked")?;
    let over = newest.plus_millis(window.as_millis() as u64);
    until("the end of the window", async || Ok((app.now() > over).then_some(()))).await?;
    let next = collector(&node, window, Duration::from_secs(1));
    collect_until(&next, |sum| sum.again >= left && sum.forgotten == left).await?;
    ensure!(stored(&node).await?.is_empty());
    node.server.stop().await
}

/// An upload stores what it needs as often as it is gone.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_upload_stores_again_while_it_is_deleted_can_be_named_afterwards() -> Result<()> {
    let node = Node::start().await?;
    let store = Arc::clone(&node.server.app().store);
    let image = create_image(&node, "vm/gone").await?;
    let disk = make_disk(node.path(), "gone", 6)?;
    published(&node, image, &disk).await?;
    let mut objects = Vec::new();
    for key in stored(&node).await? {
        let length = store.length(key).await?.context("it is stored")?;
        objects.push((key, read(&*store, key, 0..length).await?));
    }
    delete(&node, image).await?;
    let patient = collector(&node, Duration::from_secs(1), Duration::from_secs(3600));
    collect_until(&patient, |sum| sum.swept == objects.len()).await?;
    let app = node.server.app();
    let marked = app.raft.read().await?.query().deleting_objects(None, OBJECTS_MAX)?;
    ensure!(marked.len() == objects.len(), "{marked:?}");
    clock_goes_on(&node).await?;
    for (key, bytes) in &objects {
        store.put(*key, &KeyOwner::Cluster, bytes.clone()).await?;
    }
    // The grace period is far longer than the upload that follows.
    let timing = Timing {
        grace: Duration::from_secs(3600),
        interval: Duration::from_secs(1),
        window: Duration::ZERO,
        forget: Duration::from_millis(1),
    };
    let (raft, again) = (app.raft.clone(), Arc::clone(&store));
    let later = Collector::new(raft, again, node.ownership(), timing, &mut Registry::default());
    let mut again = 0;
    collect_until(&later, |sum| {
        again = sum.again;
        sum.forgotten == objects.len()
    })
    .await?;
    ensure!(again == 0, "what is wanted was deleted again");
    for (key, _) in &objects {
        ensure!(store.length(*key).await?.is_some(), "{key} is gone");
        let row = app.raft.read().await?.query().object(key)?.context("it is adopted")?;
        ensure!(row.count == 0 && row.unreferenced_since.is_some(), "{row:?}");
    }
    let again = create_image(&node, "vm/again").await?;
    published(&node, again, &disk).await?;
    ensure!(!download(&node, again, "1.0", "raw").await?.is_empty());
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_race_against_collection_and_lose_nothing() -> Result<()> {
    let node = Arc::new(Node::start().await?);
    let disk = make_disk(node.path(), "racer", 5)?;
    let expected = {
        let image = create_image(&node, "vm/first").await?;
        published(&node, image, &disk).await?;
        let expected = download(&node, image, "1.0", "raw").await?;
        delete(&node, image).await?;
        expected
    };
    let collector = collector(&node, Duration::from_millis(200), Duration::from_secs(2));
    let collecting = tokio::spawn(async move {
        let mut swept = 0;
        loop {
            match collector.collect().await {
                Ok(done) => swept += done.swept,
                Err(error) => return (swept, error),
            }
            tokio::task::yield_now().await;
        }
    });
    let end = Instant::now() + RACE;
    let mut rounds = 0;
    while Instant::now() < end {
        rounds += 1;
        // The same content each time, so that its names are always just being deleted.
        let image = create_image(&node, &format!("vm/racer-{rounds}")).await?;
        published(&node, image, &disk).await?;
        let got = download(&node, image, "1.0", "raw").await?;
        ensure!(got == expected, "round {rounds} lost something");
        delete(&node, image).await?;
    }
    ensure!(!collecting.is_finished(), "collection ended: {:?}", collecting.await?);
    collecting.abort();
    ensure!(rounds >= 2, "nothing raced");
    Ok(())
}
