//! What images share goes from storage when all of them need little of it, and stays readable for each.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use reqwest::{Method, StatusCode};
use shoal_api::EncryptionStatus;
use shoal_content::{ImageId, ObjectKey, Timestamp};
use shoal_node::compaction::Compacted;
use shoal_node::config::Config;

use super::backup::verify;
use super::compaction::{
    FIRST, MIB, Parts, SECOND, THIRD, collect_until_gone, compact_until, compactor, delete,
    is_read_whole, packs, publish, recipe, stored,
};
use super::disks::create_image;
use super::encryption::{STATUS, master_key, sealing};
use super::node::Node;
use super::v2::expect;
use super::wait::{level_raised, until};

async fn start(change: impl FnOnce(&mut Config)) -> Result<Node> {
    let node = Node::start_with(|config| {
        config.collection.grace_seconds = 0;
        // Bundles would be stored beside what is measured.
        config.delta.enabled = false;
        change(config);
    })
    .await?;
    // Before, nobody notes what lost versions.
    level_raised(&node).await?;
    Ok(node)
}

/// An image of versions 1 and 2; the first one is the same disk in all.
async fn image(node: &Node, name: &str, second: &Parts) -> Result<ImageId> {
    let image = create_image(node, name).await?;
    publish(node, image, FIRST, "1").await?;
    publish(node, image, second, "2").await?;
    Ok(image)
}

/// The pack that the images' first versions are, and of which the others use some.
fn shared(node: &Node, images: &[ImageId]) -> Result<ObjectKey> {
    let [pack] = packs(node, images[0], "1")?[..] else { anyhow::bail!("more packs than one") };
    for image in images {
        ensure!(packs(node, *image, "1")? == [pack], "it is cut otherwise");
        ensure!(packs(node, *image, "2")?.contains(&pack), "nothing is shared");
    }
    Ok(pack)
}

async fn marks(node: &Node) -> Result<Vec<(ImageId, Timestamp)>> {
    Ok(node.server.app().raft.read().await?.query().thinned_images(None, 10)?)
}

/// A clock of whole milliseconds must have gone on for a grace of zero to be over.
async fn grace_is_over(node: &Node) -> Result<()> {
    until("the grace to be over", async || {
        let now = node.server.app().now();
        Ok(marks(node).await?.iter().all(|(_, since)| *since < now).then_some(()))
    })
    .await
}

async fn purge(node: &Node, image: ImageId) -> Result<()> {
    let purged = node.request(Method::DELETE, &format!("images/{image}?purge=true"));
    expect(&purged.send().await?, StatusCode::NO_CONTENT)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_image_needs_of_a_shared_pack_goes() -> Result<()> {
    let node = start(|_| ()).await?;
    let a = image(&node, "vm/a", SECOND).await?;
    // It may be another project's where nothing is sealed.
    let b = image(&node, "other/b", THIRD).await?;
    let pack = shared(&node, &[a, b])?;
    delete(&node, a, "1").await?;
    delete(&node, b, "1").await?;
    grace_is_over(&node).await?;
    let before = stored(&node).await?;

    let compactor = compactor(&node, 50);
    let dry = compactor.compact(true).await?;
    ensure!(dry.packs == 1 && dry.saved_bytes > 10 * MIB as u64, "{dry:?}");
    ensure!(stored(&node).await? == before && packs(&node, a, "2")?.contains(&pack));
    let done = compactor.compact(false).await?;
    ensure!(done == dry, "{done:?} is not {dry:?}");
    ensure!(marks(&node).await?.is_empty(), "they were not looked through");
    for (image, parts) in [(a, SECOND), (b, THIRD)] {
        ensure!(!packs(&node, image, "2")?.contains(&pack));
        is_read_whole(&node, image, "2", parts).await?;
    }
    collect_until_gone(&node, pack).await?;
    let (_, after) = stored(&node).await?;
    ensure!(after + 10 * (MIB as u64) < before.1, "{after} bytes of {}", before.1);
    drop(compactor);
    let node = node.restart(|_| ()).await?;
    for (image, parts) in [(a, SECOND), (b, THIRD)] {
        is_read_whole(&node, image, "2", parts).await?;
    }
    let verified = verify(&node, true).await?;
    ensure!(verified.flaws.is_empty(), "{verified:?}");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_another_image_needs_goes_once_that_one_is_gone() -> Result<()> {
    let node = start(|_| ()).await?;
    let a = image(&node, "vm/a", SECOND).await?;
    let b = image(&node, "vm/b", THIRD).await?;
    let pack = shared(&node, &[a, b])?;
    delete(&node, a, "1").await?;
    grace_is_over(&node).await?;
    let (before, _) = stored(&node).await?;
    let compactor = compactor(&node, 50);
    // The second time it is remembered.
    for _ in 0..2 {
        let nothing = compactor.compact(false).await?;
        ensure!(nothing == Compacted::default(), "{nothing:?}");
        let marked: Vec<ImageId> = marks(&node).await?.into_iter().map(|(id, _)| id).collect();
        ensure!(marked == [a], "{marked:?}");
    }
    ensure!(stored(&node).await?.0 == before && packs(&node, a, "2")?.contains(&pack));
    is_read_whole(&node, b, "1", FIRST).await?;

    // Nothing says then that the first one lost anything.
    purge(&node, b).await?;
    let done = compact_until(&compactor, 1).await?;
    ensure!(done.packs == 1 && done.saved_bytes > 10 * MIB as u64, "{done:?}");
    collect_until_gone(&node, pack).await?;
    is_read_whole(&node, a, "2", SECOND).await?;
    until("all images to be looked through", async || {
        Ok(marks(&node).await?.is_empty().then_some(()))
    })
    .await?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_of_one_content_in_two_images_are_moved_again_together() -> Result<()> {
    let node = start(|_| ()).await?;
    let (a, b) = (image(&node, "vm/a", SECOND).await?, image(&node, "vm/b", SECOND).await?);
    let first = shared(&node, &[a, b])?;
    for image in [a, b] {
        publish(&node, image, THIRD, "3").await?;
        delete(&node, image, "1").await?;
    }
    let id = recipe(&node, a, "2")?;
    ensure!(recipe(&node, b, "2")? == id, "it is cut otherwise");
    let compactor = compactor(&node, 70);
    compact_until(&compactor, 1).await?;
    let placement = || node.server.app().raft.local().query().relocation(id);
    let before = placement()?.context("it was not moved")?;
    ensure!(before.versions == 2, "{before:?}");
    let (second, third): (BTreeSet<_>, BTreeSet<_>) =
        (packs(&node, a, "2")?.into_iter().collect(), packs(&node, b, "3")?.into_iter().collect());
    let both: Vec<ObjectKey> = second.intersection(&third).copied().collect();
    let [moved] = both[..] else { anyhow::bail!("{both:?}") };
    for image in [a, b] {
        delete(&node, image, "3").await?;
    }
    let again = compact_until(&compactor, 1).await?;
    ensure!(again.packs == 1 && again.saved_bytes > 3 * MIB as u64, "{again:?}");
    let after = placement()?.context("it lies nowhere")?;
    ensure!(after.versions == 2 && after.placement != before.placement, "{after:?}");
    for pack in [first, moved] {
        collect_until_gone(&node, pack).await?;
    }
    for image in [a, b] {
        is_read_whole(&node, image, "2", SECOND).await?;
    }
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sealed_is_put_together_within_a_project_only() -> Result<()> {
    let keys = tempfile::tempdir()?;
    let master = master_key(keys.path(), 1)?;
    let node = start(|config| {
        config.encryption.master_key_file = Some(master);
        config.encryption.shred_after_seconds = 0;
    })
    .await?;
    sealing(&node).await?;
    // The first one's key seals what they share.
    let other = image(&node, "gone/vm", SECOND).await?;
    let (a, b) = (image(&node, "stays/a", SECOND).await?, image(&node, "stays/b", THIRD).await?);
    let pack = shared(&node, &[other, a, b])?;
    for image in [other, a, b] {
        delete(&node, image, "1").await?;
    }
    grace_is_over(&node).await?;
    let (before, _) = stored(&node).await?;
    let compactor = compactor(&node, 50);
    let nothing = compactor.compact(false).await?;
    ensure!(nothing == Compacted::default(), "{nothing:?}");
    for image in [other, a, b] {
        ensure!(packs(&node, image, "2")?.contains(&pack));
    }
    ensure!(compactor.compact(true).await? == Compacted::default());

    purge(&node, other).await?;
    let done = compact_until(&compactor, 1).await?;
    ensure!(done.packs == 1 && done.saved_bytes > 10 * MIB as u64, "{done:?}");
    let written: BTreeSet<ObjectKey> = packs(&node, a, "2")?
        .into_iter()
        .chain(packs(&node, b, "2")?)
        .filter(|pack| !before.contains(pack))
        .collect();
    ensure!(!written.is_empty() && !packs(&node, a, "2")?.contains(&pack));
    let removed = node.request(Method::DELETE, "projects/gone").send().await?;
    ensure!(removed.status().is_success(), "{}", removed.status());
    until("the end of the project's key", async || {
        let status: EncryptionStatus = node.get(STATUS).await?;
        Ok((status.destroyed_keys == 1).then_some(()))
    })
    .await?;
    for pack in written {
        let handed = node.server.app().view().await?.query().handed_key(&pack)?;
        ensure!(handed.is_none(), "{pack} was sealed with another project's key");
    }
    for (image, parts) in [(a, SECOND), (b, THIRD)] {
        is_read_whole(&node, image, "2", parts).await?;
    }
    node.server.stop().await
}
