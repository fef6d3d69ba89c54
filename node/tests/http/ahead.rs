//! Disks that are read while they come in.

use std::collections::BTreeSet;
use std::ops::Range;

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use shoal_content::{Digest, ImageId, ObjectKey, Timestamp};
use shoal_node::disks::DiskFile;

use super::disks::{Session, begin_saying, checksum, create_image, download, fill, finish, put};
use super::node::Node;
use super::wait::until;

const MIB: usize = 1 << 20;
/// So many that some are packed before the last part is there.
const DISK_MIB: usize = 80;

/// An upload of a raw disk of noise, in parts of 1 MiB.
async fn begin_noise(node: &Node, image: ImageId, version: &str) -> Result<Session> {
    begin_with_holes(node, image, version, &[], &[]).await
}

/// The same with zeros here and there, of which nothing in the file tells; `clusters` is what its sender
/// says.
async fn begin_with_holes(
    node: &Node,
    image: ImageId,
    version: &str,
    holes: &[Range<usize>],
    clusters: &[u32],
) -> Result<Session> {
    let file = node.path().join("noise.raw");
    let mut bytes = vec![0; DISK_MIB * MIB];
    fill(&mut bytes, 9);
    for hole in holes {
        bytes[hole.clone()].fill(0);
    }
    std::fs::write(&file, bytes)?;
    begin_saying(node, image, &file, version, clusters).await
}

/// What the registry gives for a version, as its manifest says.
fn file_of(node: &Node, image: ImageId, number: &str) -> Result<DiskFile> {
    let view = node.server.app().raft.local();
    let file = view.query().find_version(image, |version| {
        let is_it = version.disk.as_ref().is_some_and(|disk| disk.number == number);
        Ok(if is_it { DiskFile::of(&version) } else { None })
    })?;
    file.context("the version has no file")
}

/// Packs and recipes.
async fn stored(node: &Node) -> Result<BTreeSet<ObjectKey>> {
    let objects = node.server.app().store.list("", None, 1000).await?.into_iter();
    let is_kept = |key: &ObjectKey| matches!(key, ObjectKey::Pack(_) | ObjectKey::Recipe(_));
    Ok(objects.map(|object| object.key).filter(is_kept).collect())
}

/// Sends the file's end, which is looked at first, and all before it but one part, whose number it
/// gives.
async fn send_all_but_one(node: &Node, session: &Session) -> Result<usize> {
    let last = session.parts.len() - 1;
    put(node, session, last).await?;
    for index in 0..last - 1 {
        put(node, session, index).await?;
    }
    Ok(last - 1)
}

/// Does so, and waits until some of the disk has been read and packed.
async fn send_most(node: &Node, session: &Session) -> Result<usize> {
    let missing = send_all_but_one(node, session).await?;
    until("a pack of a disk that is still to come", async || {
        Ok((!stored(node).await?.is_empty()).then_some(()))
    })
    .await?;
    Ok(missing)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_read_while_it_comes_in_is_stored_like_any_other() -> Result<()> {
    let node = Node::start().await?;
    let image = create_image(&node, "zedge/ahead").await?;
    let session = begin_noise(&node, image, "1").await?;
    let missing = send_most(&node, &session).await?;
    put(&node, &session, missing).await?;
    let status = finish(&node, &session).await?;
    ensure!(status.status == "active", "{status:?}");
    let back = download(&node, image, "1", "raw").await?;
    ensure!(back == session.parts.concat(), "other bytes came back");
    let ahead = stored(&node).await?;

    // While these are waited for, others are read when they are there.
    let busy = create_image(&node, "zedge/busy").await?;
    for number in 0..shoal_node::disks::AHEAD_AT_ONCE_MAX {
        let session = begin_noise(&node, busy, &number.to_string()).await?;
        for index in [0, session.parts.len() - 1] {
            put(&node, &session, index).await?;
        }
    }
    let image = create_image(&node, "zedge/whole").await?;
    let session = begin_noise(&node, image, "1").await?;
    let missing = send_all_but_one(&node, &session).await?;
    put(&node, &session, missing).await?;
    let status = finish(&node, &session).await?;
    ensure!(status.status == "active", "{status:?}");
    ensure!(stored(&node).await? == ahead, "it was cut or packed otherwise");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_of_a_disk_is_the_same_whenever_it_is_hashed() -> Result<()> {
    let node = Node::start().await?;
    // A part and a half, one cluster, and less than one that is not at its border.
    let holes = [9 * MIB..10 * MIB + MIB / 2, 50 * MIB..50 * MIB + 65_536, 60 * MIB - 3..60 * MIB];
    let image = create_image(&node, "zedge/ahead").await?;
    let session = begin_with_holes(&node, image, "1", &holes, &[]).await?;
    let missing = send_most(&node, &session).await?;
    put(&node, &session, missing).await?;
    let status = finish(&node, &session).await?;
    ensure!(status.status == "active", "{status:?}");
    let file = file_of(&node, image, "1")?;
    let back = download(&node, image, "1", "qcow2").await?;
    let found: Digest = checksum(&back).parse()?;
    ensure!(file == DiskFile { digest: found, length: back.len() as u64 }, "it has {file:?}");

    // All of it is in packs of the version before, out of which it is read.
    let session = begin_with_holes(&node, image, "2", &holes, &[]).await?;
    let missing = send_all_but_one(&node, &session).await?;
    put(&node, &session, missing).await?;
    let status = finish(&node, &session).await?;
    ensure!(status.status == "active", "{status:?}");
    ensure!(file_of(&node, image, "2")? == file, "out of packs it is another");

    // What is looked at first comes last: it is read when it is there.
    let image = create_image(&node, "zedge/whole").await?;
    let session = begin_with_holes(&node, image, "1", &holes, &[]).await?;
    for index in 0..session.parts.len() {
        put(&node, &session, index).await?;
    }
    let status = finish(&node, &session).await?;
    ensure!(status.status == "active", "{status:?}");
    ensure!(file_of(&node, image, "1")? == file, "read when it is there it is another");

    // Right, wrong in one cluster that has content, and far beyond the disk.
    let right = [0, 144, 24, 632, 1, 479];
    let wrong = [0, 144, 24, 632, 2, 478];
    let said: [&[u32]; 3] = [&right, &wrong, &[u32::MAX; 5000]];
    for (number, clusters) in said.into_iter().enumerate() {
        let image = create_image(&node, &format!("zedge/said-{number}")).await?;
        let session = begin_with_holes(&node, image, "1", &holes, clusters).await?;
        let missing = send_all_but_one(&node, &session).await?;
        put(&node, &session, missing).await?;
        let status = finish(&node, &session).await?;
        ensure!(status.status == "active", "{status:?}");
        ensure!(file_of(&node, image, "1")? == file, "by what was said it is another: {number}");
    }
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_comes_anew_after_it_was_read_counts_as_it_came_last() -> Result<()> {
    let node = Node::start().await?;
    let image = create_image(&node, "zedge/anew").await?;
    let mut session = begin_noise(&node, image, "1").await?;
    let missing = send_most(&node, &session).await?;
    session.parts[3].reverse();
    put(&node, &session, 3).await?;
    put(&node, &session, missing).await?;
    let status = finish(&node, &session).await?;
    ensure!(status.status == "active", "{status:?}");
    let back = download(&node, image, "1", "raw").await?;
    ensure!(back == session.parts.concat(), "it is not what came last");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn packs_of_an_upload_that_is_given_up_are_known_to_be_garbage() -> Result<()> {
    let node = Node::start().await?;
    let image = create_image(&node, "zedge/given-up").await?;
    let session = begin_noise(&node, image, "1").await?;
    send_most(&node, &session).await?;
    let given_up = node.request(Method::DELETE, &session.path).send().await?;
    ensure!(given_up.status().is_success(), "{}", given_up.text().await?);
    until("all of its packs to have a row", async || {
        let known: BTreeSet<ObjectKey> = {
            let view = node.server.app().raft.local();
            let long_after = Timestamp::from_millis(u64::MAX);
            view.query().unreferenced_objects(long_after, 1000)?.into_iter().collect()
        };
        Ok((!known.is_empty() && stored(&node).await?.is_subset(&known)).then_some(()))
    })
    .await?;
    node.server.stop().await
}
