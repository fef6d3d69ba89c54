//! What every store must do, as one suite that runs against each of them.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use bytes::Bytes;
use futures::TryStreamExt;
use shoal_content::{ObjectKey, PackId, RecipeId, Timestamp, UploadId};
use shoal_metadata::KeyOwner;
use uuid::Uuid;

use crate::clock;

use super::{BlobStore, Completion, PART_BYTES_MIN, StoreError, read};

const HOUR_MS: u64 = 3600 * 1000;
const UNDER: KeyOwner = KeyOwner::Cluster;

/// Runs the suite; leaves nothing behind in `store` when it succeeds. Drops multipart uploads under
/// way there.
///
/// # Errors
/// The first thing that does not hold.
pub async fn check_conformance(store: &dyn BlobStore) -> Result<()> {
    whole_objects(store).await?;
    multipart_uploads(store).await?;
    listings(store).await?;
    store.probe().await?;
    Ok(())
}

fn upload() -> UploadId {
    UploadId::from_uuid(Uuid::new_v4())
}

async fn whole_objects(store: &dyn BlobStore) -> Result<()> {
    let key = ObjectKey::Pack(PackId::of(upload().to_string().as_bytes()));
    ensure!(store.length(key).await?.is_none(), "an object before it was put");
    let missing = store.get(key, 0..1).await;
    ensure!(matches!(missing, Err(StoreError::NotFound(_))), "a missing object was opened");

    store.put(key, &UNDER, Bytes::from_static(b"0123456789")).await?;
    ensure!(store.length(key).await? == Some(10), "the length");
    ensure!(store.lasts(key).await?, "it does not last");
    ensure!(read(store, key, 0..10).await? == "0123456789", "the whole");
    ensure!(read(store, key, 3..5).await? == "34", "a range");
    ensure!(read(store, key, 10..10).await?.is_empty(), "an empty range at the end");
    let beyond = read(store, key, 5..11).await;
    ensure!(matches!(beyond, Err(StoreError::Range { .. })), "a range beyond the end: {beyond:?}");

    store.forget(key).await;
    ensure!(read(store, key, 3..5).await? == "34", "a range, once more");
    store.put(key, &UNDER, Bytes::from_static(b"ab")).await?;
    ensure!(read(store, key, 0..2).await? == "ab", "a replaced object");
    ensure!(store.length(key).await? == Some(2), "a replaced object's length");

    let empty = ObjectKey::Blob(upload());
    store.put(empty, &UNDER, Bytes::new()).await?;
    ensure!(store.length(empty).await? == Some(0), "an empty object");
    ensure!(read(store, empty, 0..0).await?.is_empty(), "an empty object's bytes");

    store.delete(&[key, empty]).await?;
    store.delete(&[key]).await?;
    ensure!(store.length(key).await?.is_none(), "a deleted object");
    ensure!(!store.lasts(key).await?, "a deleted object lasts");
    Ok(())
}

async fn multipart_uploads(store: &dyn BlobStore) -> Result<()> {
    let part = PART_BYTES_MIN as usize;
    let content: Vec<u8> = (0..part * 2 + 17).map(|n| (n / 7) as u8).collect();
    let content = Bytes::from(content);
    let key = ObjectKey::Blob(upload());
    let id = store.begin(key, &UNDER).await?;
    // Out of order, in parallel, and one of them again.
    let (third, first) = tokio::join!(
        store.put_part(key, &id, 3, part as u64 * 2, content.slice(part * 2..)),
        store.put_part(key, &id, 1, 0, content.slice(..part)),
    );
    let second = store.put_part(key, &id, 2, part as u64, content.slice(part..part * 2)).await?;
    let first = (first?, store.put_part(key, &id, 1, 0, content.slice(..part)).await?).1;
    ensure!(store.length(key).await?.is_none(), "visible before it was complete");
    let parts = [first, second, third?];
    ensure!(store.complete(key, &id, &parts).await? == Completion::Now, "not made of its parts");
    // Ceph compares the parts and says that it is so; others know the upload no more.
    store.complete(key, &id, &parts).await?;
    ensure!(store.length(key).await? == Some(content.len() as u64), "the length of the parts");
    let pieces: Vec<Bytes> = store.get(key, 0..content.len() as u64).await?.try_collect().await?;
    ensure!(pieces.concat() == content, "the bytes of the parts");
    let across = part as u64 - 3..part as u64 + 3;
    ensure!(
        read(store, key, across.clone()).await?
            == content.slice(across.start as usize..across.end as usize),
        "a range across parts"
    );
    store.delete(&[key]).await?;

    let dropped = ObjectKey::Blob(upload());
    let id = store.begin(dropped, &UNDER).await?;
    store.put_part(dropped, &id, 1, 0, content.slice(..part)).await?;
    store.abort(dropped, &id).await?;
    ensure!(store.length(dropped).await?.is_none(), "an aborted upload is visible");
    let late = store.put_part(dropped, &id, 2, part as u64, content.slice(..part)).await;
    ensure!(late.is_err(), "a part was taken after the abort");

    let (left, named) = (store.begin(dropped, &UNDER).await?, store.begin(dropped, &UNDER).await?);
    let part_of = |id: String| async move {
        store.put_part(dropped, &id, 1, 0, Bytes::from_static(b"x")).await
    };
    // An hour each way: clocks of storage and node differ.
    let now = clock::now();
    let before = Timestamp::from_millis(now.as_millis().saturating_sub(HOUR_MS));
    store.abort_stale(before, &BTreeSet::new()).await?;
    part_of(left.clone()).await?;
    let names = BTreeSet::from([named.clone()]);
    let count = store.abort_stale(now.plus_millis(HOUR_MS), &names).await?;
    ensure!(count >= 1, "an abandoned upload was not found");
    ensure!(part_of(left).await.is_err(), "an abandoned upload goes on");
    part_of(named.clone()).await?;
    store.abort(dropped, &named).await?;
    Ok(())
}

/// What a store must do with its owner, whom nothing removes: run against one that has none.
///
/// # Errors
/// The first thing that does not hold.
pub async fn check_owner(store: &dyn BlobStore) -> Result<()> {
    let [first, second] = [&b"the first"[..], b"the second"].map(Bytes::from_static);
    ensure!(store.owner().await?.is_none(), "an owner of nobody's storage");
    ensure!(!store.set_owner(Some(&first), second.clone()).await?, "written over nothing");
    ensure!(store.set_owner(None, first.clone()).await?, "the first one");
    ensure!(!store.set_owner(None, second.clone()).await?, "written over another one");
    ensure!(store.owner().await? == Some(first.clone()), "whose it is");
    ensure!(store.set_owner(Some(&first), second.clone()).await?, "the next one");
    let late = store.set_owner(Some(&first), first.clone()).await?;
    ensure!(!late, "written over the next one");
    ensure!(store.owner().await? == Some(second), "whose it is now");
    Ok(())
}

async fn listings(store: &dyn BlobStore) -> Result<()> {
    let session = upload();
    let mut parts: Vec<ObjectKey> =
        (0..5).map(|part| ObjectKey::UploadPart { upload: session, part }).collect();
    let other = ObjectKey::Recipe(RecipeId::of(session.to_string().as_bytes()));
    for key in parts.iter().rev().chain([&other]) {
        store.put(*key, &UNDER, Bytes::from_static(b"x")).await?;
    }
    let prefix = format!("uploads/{}/", session.as_uuid().simple());
    let first = store.list(&prefix, None, 3).await?;
    let keys: Vec<ObjectKey> = first.iter().map(|object| object.key).collect();
    ensure!(keys == parts[..3], "the first page: {keys:?}");
    let rest = store.list(&prefix, Some(parts[2]), 10).await?;
    let keys: Vec<ObjectKey> = rest.iter().map(|object| object.key).collect();
    ensure!(keys == parts[3..], "the rest: {keys:?}");
    ensure!(rest.iter().all(|object| object.length >= 1), "the lengths");
    parts.push(other);
    store.delete(&parts).await?;
    ensure!(store.list(&prefix, None, 10).await?.is_empty(), "what is left");
    Ok(())
}
