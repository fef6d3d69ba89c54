//! What versions leave in packs that others use a little of goes from storage, and nobody who reads,
//! uploads or restores sees anything of that.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use prometheus_client::registry::Registry;
use reqwest::{Method, StatusCode, header};
use serde_json::json;
use shoal_api::{CollectionDone, CompactionStatus, StorageStatus, VersionDetail};
use shoal_content::{ImageId, ObjectKey, RecipeId};
use shoal_metadata::{Command, KeyOwner, Version};
use shoal_node::collection::{Collector, Timing};
use shoal_node::compaction::{Compacted, Compactor, Limits};
use shoal_node::origin::Origin;
use shoal_p2p::ChunkStore;
use tokio::time::{Instant, timeout};

use super::backup::{save, verify};
use super::disks::{create_image, download, fill, upload};
use super::node::Node;
use super::wait::{level_raised, until};

pub const MIB: usize = 1 << 20;
/// What a disk is made of: seeds, and how many MiB of each.
pub type Parts = [(u8, usize)];
/// The second and the third one use some of the first one's pack, each something else.
pub const FIRST: &Parts = &[(2, 14), (1, 4), (9, 4)];
pub const SECOND: &Parts = &[(3, 12), (1, 4)];
pub const THIRD: &Parts = &[(4, 12), (9, 4)];
const OBJECTS_MAX: usize = 1000;
/// How long uploads race against compaction and collection.
const RACE: Duration = Duration::from_secs(20);

fn content(parts: &Parts) -> Vec<u8> {
    let part = |(seed, mib): &(u8, usize)| {
        let mut bytes = vec![0; mib * MIB];
        fill(&mut bytes, *seed);
        bytes
    };
    parts.iter().flat_map(part).collect()
}

async fn start() -> Result<Node> {
    let node = Node::start_with(|config| {
        config.collection.grace_seconds = 0;
        // Bundles would be stored beside what is measured.
        config.delta.enabled = false;
    })
    .await?;
    // Before, nobody notes what lost versions.
    level_raised(&node).await?;
    Ok(node)
}

pub async fn publish(node: &Node, image: ImageId, parts: &Parts, number: &str) -> Result<()> {
    let file = node.path().join(format!("{image}-{number}.raw"));
    std::fs::write(&file, content(parts))?;
    let status = upload(node, image, &file, number).await?;
    ensure!(status.status == "active", "{status:?}");
    Ok(())
}

pub async fn delete(node: &Node, image: ImageId, number: &str) -> Result<()> {
    let path = format!("images/{image}/versions/{number}");
    let answer = node.request(Method::DELETE, &path).send().await?;
    ensure!(answer.status().is_success(), "{}", answer.text().await?);
    Ok(())
}

pub fn compactor(node: &Node, below_percent: u8) -> Compactor {
    let app = node.server.app();
    let limits = Limits {
        below_percent,
        bytes_per_second: u64::MAX,
        grace: Duration::ZERO,
        interval: Duration::from_secs(1),
    };
    let (raft, store) = (app.raft.clone(), Arc::clone(&app.store));
    let origin = Origin::new(Arc::clone(&store)).following(raft.clone());
    Compactor::new(raft, store, origin, limits, &mut Registry::default())
}

/// A clock of whole milliseconds must have gone on for a grace of zero to be over.
pub async fn compact_until(compactor: &Compactor, packs: u64) -> Result<Compacted> {
    let mut sum = Compacted::default();
    let all = until("all packs that are to be compacted", async || {
        let more = compactor.compact(false).await?;
        sum.packs += more.packs;
        sum.written_bytes += more.written_bytes;
        sum.saved_bytes += more.saved_bytes;
        Ok((sum.packs >= packs).then_some(()))
    });
    all.await.with_context(|| format!("{:?}", compactor.status()))?;
    Ok(sum)
}

pub async fn collect_until_gone(node: &Node, object: ObjectKey) -> Result<()> {
    until("the pack to be deleted", async || {
        let nothing = json!({});
        let _: CollectionDone = node.call(Method::POST, "storage/collect", &nothing).await?;
        Ok(node.server.app().store.length(object).await?.is_none().then_some(()))
    })
    .await
}

/// Packs and recipes in storage, and what they take.
pub async fn stored(node: &Node) -> Result<(Vec<ObjectKey>, u64)> {
    let mut all = node.server.app().store.list("", None, OBJECTS_MAX).await?;
    all.retain(|object| matches!(object.key, ObjectKey::Pack(_) | ObjectKey::Recipe(_)));
    let bytes = all.iter().map(|object| object.length).sum();
    Ok((all.into_iter().map(|object| object.key).collect(), bytes))
}

fn version(node: &Node, image: ImageId, number: &str) -> Result<Version> {
    let view = node.server.app().raft.local();
    view.query().version_by_number(image, number)?.context("no such version")
}

pub fn recipe(node: &Node, image: ImageId, number: &str) -> Result<RecipeId> {
    Ok(version(node, image, number)?.disk.context("no disk")?.recipe)
}

pub fn packs(node: &Node, image: ImageId, number: &str) -> Result<Vec<ObjectKey>> {
    let objects = version(node, image, number)?.disk.context("no disk")?.objects;
    Ok(objects.into_iter().filter(|object| matches!(object, ObjectKey::Pack(_))).collect())
}

/// As somebody who has read nothing of it before.
pub async fn is_read_whole(node: &Node, image: ImageId, number: &str, parts: &Parts) -> Result<()> {
    let app = node.server.app();
    let origin = Origin::new(Arc::clone(&app.store)).following(app.raft.clone());
    let (id, origin) = (recipe(node, image, number)?, &origin as &dyn ChunkStore);
    let read = origin.recipe(id).await?.context("no recipe")?;
    let bytes = content(parts);
    ensure!(read.length() == bytes.len() as u64);
    let mut found = vec![0; bytes.len()];
    for extent in read.extents() {
        let content = origin.read(id, extent.chunk).await?.context("no chunk")?;
        let at = extent.offset as usize;
        found[at..at + content.len()].copy_from_slice(&content);
    }
    ensure!(found == bytes, "{number} is something else");
    Ok(())
}

/// Of an image of versions 1 and 2, version 1 is deleted. Gives the pack that it leaves.
async fn thinned(node: &Node, image: ImageId) -> Result<ObjectKey> {
    publish(node, image, FIRST, "1").await?;
    publish(node, image, SECOND, "2").await?;
    let [pack] = packs(node, image, "1")?[..] else { anyhow::bail!("more packs than one") };
    ensure!(packs(node, image, "2")?.contains(&pack), "nothing is shared");
    delete(node, image, "1").await?;
    Ok(pack)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_version_leaves_goes_and_another_is_read_as_before() -> Result<()> {
    let node = start().await?;
    let image = create_image(&node, "vm/a").await?;
    let pack = thinned(&node, image).await?;
    let qcow2 = download(&node, image, "2", "qcow2").await?;
    let (_, before) = stored(&node).await?;
    let id = recipe(&node, image, "2")?;

    let compactor = compactor(&node, 50);
    let done = compact_until(&compactor, 1).await?;
    ensure!(done.packs == 1 && done.saved_bytes > 10 * MIB as u64, "{done:?}");
    ensure!(done.written_bytes <= 4 * MIB as u64, "{done:?}");
    ensure!(recipe(&node, image, "2")? == id, "its recipe is another");
    ensure!(!packs(&node, image, "2")?.contains(&pack));
    // Whoever has begun to read finds it yet.
    ensure!(node.server.app().store.length(pack).await?.is_some());
    is_read_whole(&node, image, "2", SECOND).await?;
    collect_until_gone(&node, pack).await?;
    let (_, after) = stored(&node).await?;
    ensure!(after + 10 * (MIB as u64) < before, "{after} bytes of {before}");
    ensure!(compactor.compact(false).await? == Compacted::default());
    let marks = node.server.app().raft.read().await?.query().thinned_images(None, 10)?;
    ensure!(marks.is_empty(), "it was not looked through: {marks:?}");

    is_read_whole(&node, image, "2", SECOND).await?;
    drop(compactor);
    let node = node.restart(|_| ()).await?;
    is_read_whole(&node, image, "2", SECOND).await?;
    ensure!(download(&node, image, "2", "qcow2").await? == qcow2);
    let raw = content(SECOND);
    let path = format!("images/{image}/versions/2/download?format=raw");
    for range in [0..100, 12 * MIB - 70_000..13 * MIB, raw.len() - 5..raw.len()] {
        let asked = format!("bytes={}-{}", range.start, range.end - 1);
        let asked = node.request(Method::GET, &path).header(header::RANGE, asked);
        let answer = asked.send().await?;
        ensure!(answer.status() == StatusCode::PARTIAL_CONTENT);
        ensure!(answer.bytes().await? == raw[range.clone()], "{range:?}");
    }
    let verified = verify(&node, true).await?;
    ensure!(verified.flaws.is_empty(), "{verified:?}");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_version_shares_what_was_moved_and_the_same_content_may_come_again() -> Result<()> {
    let node = start().await?;
    let image = create_image(&node, "vm/a").await?;
    let pack = thinned(&node, image).await?;
    compact_until(&compactor(&node, 50), 1).await?;
    collect_until_gone(&node, pack).await?;
    let (_, before) = stored(&node).await?;
    let later: &Parts = &[(5, 12), (1, 4)];
    publish(&node, image, later, "3").await?;
    let (_, after) = stored(&node).await?;
    ensure!(after < before + 13 * MIB as u64, "what was moved is stored twice");
    is_read_whole(&node, image, "3", later).await?;

    // The names of what the first version had are free once their deletion is forgotten.
    let app = node.server.app();
    let gone = app.raft.read().await?.query().deleting_objects(None, OBJECTS_MAX)?;
    let objects: BTreeSet<ObjectKey> = gone.into_iter().map(|(object, _)| object).collect();
    ensure!(objects.contains(&pack), "{objects:?}");
    let forget = Command::ForgetObjects { objects, deleting_before: app.now().plus_millis(1) };
    app.raft.propose(app.now(), forget).await?;
    let again = create_image(&node, "vm/again").await?;
    publish(&node, again, FIRST, "1").await?;
    ensure!(packs(&node, again, "1")? == [pack], "it is cut otherwise");
    is_read_whole(&node, again, "1", FIRST).await?;
    for (number, parts) in [("2", SECOND), ("3", later)] {
        is_read_whole(&node, image, number, parts).await?;
    }
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_moved_is_moved_again() -> Result<()> {
    let node = start().await?;
    let image = create_image(&node, "vm/a").await?;
    for (number, parts) in [("1", FIRST), ("2", SECOND), ("3", THIRD)] {
        publish(&node, image, parts, number).await?;
    }
    let [first] = packs(&node, image, "1")?[..] else { anyhow::bail!("more packs than one") };
    delete(&node, image, "1").await?;
    let compactor = compactor(&node, 70);
    compact_until(&compactor, 1).await?;
    let (second, third) = (packs(&node, image, "2")?, packs(&node, image, "3")?);
    let both: Vec<ObjectKey> = second.into_iter().filter(|pack| third.contains(pack)).collect();
    let [moved] = both[..] else { anyhow::bail!("{both:?}") };
    for (number, parts) in [("2", SECOND), ("3", THIRD)] {
        is_read_whole(&node, image, number, parts).await?;
    }
    // Made of another, it lives where that one does, also when that is gone.
    let promoted = json!({ "version": "4", "from": "2" });
    let path = format!("images/{image}/versions");
    let _: VersionDetail = node.call(Method::POST, &path, &promoted).await?;
    is_read_whole(&node, image, "4", SECOND).await?;
    delete(&node, image, "2").await?;
    delete(&node, image, "3").await?;
    let again = compact_until(&compactor, 1).await?;
    ensure!(again.packs == 1 && again.saved_bytes > 3 * MIB as u64, "{again:?}");
    for pack in [first, moved] {
        ensure!(!packs(&node, image, "4")?.contains(&pack));
        collect_until_gone(&node, pack).await?;
    }
    is_read_whole(&node, image, "4", SECOND).await?;
    // The last one leaves nothing.
    delete(&node, image, "4").await?;
    until("all packs to be deleted", async || {
        let nothing = json!({});
        let _: CollectionDone = node.call(Method::POST, "storage/collect", &nothing).await?;
        Ok(stored(&node).await?.0.is_empty().then_some(()))
    })
    .await?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_changes_nothing_and_administrators_see_how_far_it_is() -> Result<()> {
    let node = start().await?;
    let image = create_image(&node, "vm/a").await?;
    let pack = thinned(&node, image).await?;
    let before = stored(&node).await?;
    let status = async || anyhow::Ok(node.get::<StorageStatus>("storage").await?.compaction);
    let compact = async |dry_run: bool| -> Result<CompactionStatus> {
        let wanted = json!({ "dry_run": dry_run });
        let begun: CompactionStatus = node.call(Method::POST, "storage/compact", &wanted).await?;
        ensure!(begun.dry_run == dry_run && begun.started_at.is_some(), "{begun:?}");
        let ended = async || anyhow::Ok(Some(status().await?).filter(|status| !status.running));
        until("the end of the compaction", ended).await
    };
    ensure!(status().await? == CompactionStatus::default());
    let dry = until("the grace to be over", async || {
        Ok(Some(compact(true).await?).filter(|status| status.packs > 0))
    })
    .await?;
    ensure!(dry.packs == 1 && dry.saved_bytes > 10 * MIB as u64, "{dry:?}");
    ensure!(dry.error.is_none() && dry.ended_at.is_some(), "{dry:?}");
    ensure!(stored(&node).await? == before && packs(&node, image, "2")?.contains(&pack));

    let done = compact(false).await?;
    let shown = |of: &CompactionStatus| (of.packs, of.written_bytes, of.saved_bytes);
    ensure!(shown(&done) == shown(&dry), "{done:?} is not {dry:?}");
    let metrics = node.http.get(format!("{}/metrics", node.url)).bearer_auth(node.token());
    let metrics = metrics.send().await?.error_for_status()?.text().await?;
    for (name, value) in [
        ("packs", done.packs),
        ("written_bytes", done.written_bytes),
        ("saved_bytes", done.saved_bytes),
        ("failures", 0),
    ] {
        let line = format!("shoal_compaction_{name}_total {value}");
        ensure!(metrics.lines().any(|one| one == line), "no {line} in {metrics}");
    }
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_takes_along_where_chunks_were_moved_to() -> Result<()> {
    let node = start().await?;
    let image = create_image(&node, "vm/a").await?;
    let pack = thinned(&node, image).await?;
    compact_until(&compactor(&node, 50), 1).await?;
    collect_until_gone(&node, pack).await?;
    let folder = tempfile::tempdir()?;
    let saved = save(&node, folder.path()).await?;
    let new = node.restored(&saved.file, Some(&saved.objects)).await?;
    let verified = verify(&new, true).await?;
    ensure!(verified.flaws.is_empty(), "{verified:?}");
    is_read_whole(&new, image, "2", SECOND).await?;
    new.server.stop().await?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_dies_while_chunks_are_moved_has_lost_nothing() -> Result<()> {
    let node = start().await?;
    let image = create_image(&node, "vm/a").await?;
    let pack = thinned(&node, image).await?;
    let compactor = compactor(&node, 50);
    // At whatever moment that is.
    for millis in [1, 2, 4, 8, 16, 32, 64, 128] {
        let _given_up = timeout(Duration::from_millis(millis), compactor.compact(false)).await;
        ensure!(!compactor.status().running, "{:?}", compactor.status());
        is_read_whole(&node, image, "2", SECOND).await?;
    }
    until("the pack to be nobody's", async || {
        compactor.compact(false).await?;
        Ok((!packs(&node, image, "2")?.contains(&pack)).then_some(()))
    })
    .await?;
    collect_until_gone(&node, pack).await?;
    is_read_whole(&node, image, "2", SECOND).await?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_pack_is_left_as_it_is() -> Result<()> {
    let node = start().await?;
    let image = create_image(&node, "vm/a").await?;
    let pack = thinned(&node, image).await?;
    let store = &node.server.app().store;
    let length = store.length(pack).await?.context("it is stored")?;
    store.put(pack, &KeyOwner::Cluster, vec![7; length as usize].into()).await?;
    let compactor = compactor(&node, 50);
    let (before, _) = stored(&node).await?;
    until("the image to be looked through", async || {
        compactor.compact(false).await?;
        let view = node.server.app().raft.read().await?;
        Ok(view.query().thinned_images(None, 10)?.is_empty().then_some(()))
    })
    .await?;
    ensure!(packs(&node, image, "2")?.contains(&pack));
    ensure!(stored(&node).await?.0 == before);
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_race_against_compaction_and_collection_and_lose_nothing() -> Result<()> {
    let node = Arc::new(start().await?);
    let app = node.server.app();
    let timing = Timing {
        grace: Duration::ZERO,
        interval: Duration::from_secs(1),
        window: Duration::from_millis(200),
        forget: Duration::from_secs(2),
    };
    let (raft, store) = (app.raft.clone(), Arc::clone(&app.store));
    let ownership = node.ownership();
    let collector = Collector::new(raft, store, ownership, timing, &mut Registry::default());
    let compactor = compactor(&node, 95);
    let compacting = tokio::spawn(async move {
        loop {
            let done = async {
                collector.collect().await?;
                compactor.compact(false).await?;
                anyhow::Ok(())
            };
            if let Err(error) = done.await {
                return error;
            }
            tokio::task::yield_now().await;
        }
    });
    let image = create_image(&node, "vm/racer").await?;
    publish(&node, image, FIRST, "0").await?;
    let end = Instant::now() + RACE;
    let mut round = 0_usize;
    while Instant::now() < end {
        round += 1;
        // Few contents, so that names come again that are just being deleted.
        let parts = [SECOND, THIRD, FIRST][round % 3];
        publish(&node, image, parts, &round.to_string()).await?;
        is_read_whole(&node, image, &round.to_string(), parts).await?;
        delete(&node, image, &(round - 1).to_string()).await?;
        is_read_whole(&node, image, &round.to_string(), parts).await?;
    }
    ensure!(!compacting.is_finished(), "it ended: {:?}", compacting.await?);
    compacting.abort();
    ensure!(round >= 2, "nothing raced");
    Ok(())
}
