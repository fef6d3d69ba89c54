//! What comes in, on a store in a folder.

use super::*;
use crate::store::FolderStore;

fn content(seed: &str, length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut bytes);
    bytes.into()
}

fn digest(bytes: &[u8]) -> Digest {
    Digest::sha256(Sha256::digest(bytes).into())
}

fn session() -> UploadId {
    UploadId::from_uuid(Uuid::new_v4())
}

fn folder_store() -> (tempfile::TempDir, Arc<dyn BlobStore>) {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(FolderStore::open(folder.path(), 0).unwrap());
    (folder, store)
}

#[tokio::test]
async fn a_blob_may_come_in_requests_of_any_size() {
    let (_folder, store) = folder_store();
    let bytes = content("blob", 4 * PART_BYTES + 4321);
    let (intake, session) = (Intake::default(), session());
    let mut kept = None;
    for piece in [0..10, 10..10, 10..PART_BYTES + 7, PART_BYTES + 7..bytes.len()] {
        let (store, turn) = (Arc::clone(&store), intake.turn(session).await);
        let mut writer = match kept.take() {
            None => BlobWriter::begin(&intake, store, turn, Algorithm::Sha256),
            Some((checkpoint, multipart)) => {
                let writer = BlobWriter::resume(&intake, store, turn, checkpoint, multipart);
                writer.await.unwrap()
            }
        };
        assert_eq!(writer.offset(), piece.start as u64);
        writer.write(bytes.slice(piece)).await.unwrap();
        kept = Some(writer.checkpoint().await.unwrap());
        writer.named();
    }
    let (checkpoint, multipart) = kept.unwrap();
    let turn = intake.turn(session).await;
    let writer = BlobWriter::resume(&intake, Arc::clone(&store), turn, checkpoint, multipart).await;
    let written = writer.unwrap().finish(&digest(&bytes)).await.unwrap().unwrap();
    assert_eq!(written.size, bytes.len() as u64);
    let stored = store::read(store.as_ref(), written.object, 0..written.size);
    assert!(stored.await.unwrap() == bytes);
    assert_eq!(written.recipe.length(), written.size);
}

#[tokio::test]
async fn what_is_not_accepted_is_not_published_and_leaves_nothing() {
    let (folder, store) = folder_store();
    let intake = Intake::default();
    for length in [100, PART_BYTES + 1] {
        let id = session();
        let turn = intake.turn(id).await;
        let mut writer = BlobWriter::begin(&intake, Arc::clone(&store), turn, Algorithm::Sha256);
        writer.write(content("refused", length)).await.unwrap();
        let refused = writer.finish(&digest(b"other")).await.unwrap().unwrap_err();
        assert!(!refused.ended && refused.is == digest(&content("refused", length)));
        // The parts hold the turn until they are gone.
        drop(intake.turn(id).await);
    }
    let partial = || std::fs::read_dir(folder.path().join("partial")).unwrap().count();
    while partial() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(store.list("", None, 10).await.unwrap(), []);
}

#[tokio::test]
async fn another_algorithm_than_the_expected_one_is_read_back() {
    let (_folder, store) = folder_store();
    let intake = Intake::default();
    for (length, right) in [(100, true), (PART_BYTES + 1, true), (PART_BYTES + 1, false)] {
        let turn = intake.turn(session()).await;
        let mut writer = BlobWriter::begin(&intake, Arc::clone(&store), turn, Algorithm::Sha256);
        let bytes = content("long", length);
        writer.write(bytes.clone()).await.unwrap();
        let is = Digest::sha512(Sha512::digest(&bytes).into());
        let wanted = if right { is } else { Digest::sha512([7; 64]) };
        let before = store.list("", None, 10).await.unwrap().len();
        let finished = writer.finish(&wanted).await.unwrap();
        assert_eq!(finished.is_ok(), right);
        let kept = store.list("", None, 10).await.unwrap().len() - before;
        assert_eq!(kept, usize::from(right));
    }
}

/// Two nodes may be asked to close one session at once: each has its own turns.
#[tokio::test]
async fn writers_that_go_on_from_one_point_do_not_overwrite_each_other() {
    let (_folder, store) = folder_store();
    let session = session();
    let mut written = Vec::new();
    for seed in ["first", "second"] {
        let intake = Intake::default();
        let turn = intake.turn(session).await;
        let mut writer = BlobWriter::begin(&intake, Arc::clone(&store), turn, Algorithm::Sha256);
        writer.write(content(seed, 1000)).await.unwrap();
        written.push(writer);
    }
    for (writer, seed) in written.into_iter().zip(["first", "second"]).rev() {
        let wanted = digest(&content(seed, 1000));
        let written = writer.finish(&wanted).await.unwrap().unwrap();
        let stored = store::read(store.as_ref(), written.object, 0..1000).await.unwrap();
        assert!(stored == content(seed, 1000));
    }
    assert_eq!(store.list("blobs/", None, 10).await.unwrap().len(), 2);
}

#[tokio::test]
async fn two_nodes_that_close_one_session_make_one_object_or_none() {
    let (_folder, store) = folder_store();
    let (session, bytes) = (session(), content("twice", 2 * PART_BYTES));
    let here = Intake::default();
    let mut writer =
        BlobWriter::begin(&here, Arc::clone(&store), here.turn(session).await, Algorithm::Sha256);
    writer.write(bytes.clone()).await.unwrap();
    let (checkpoint, multipart) = writer.checkpoint().await.unwrap();
    writer.named();
    let resumed = async |rest: &'static [u8]| {
        let elsewhere = Intake::default();
        let (store, turn) = (Arc::clone(&store), elsewhere.turn(session).await);
        let resumed =
            BlobWriter::resume(&elsewhere, store, turn, checkpoint, multipart.clone()).await;
        let mut writer = resumed.unwrap();
        writer.write(Bytes::from_static(rest)).await.unwrap();
        writer
    };
    let (first, again, other) = (resumed(b"").await, resumed(b"").await, resumed(b"x").await);
    let object = first.finish(&digest(&bytes)).await.unwrap().unwrap().object;
    // The same bytes: the object is theirs as well, and stays.
    assert_eq!(again.finish(&digest(&bytes)).await.unwrap().unwrap().object, object);
    // Others: what is there is not theirs.
    let longer = digest(&[&bytes[..], b"x"].concat());
    let refused = other.finish(&longer).await;
    assert!(matches!(refused, Err(IntakeError::Store(StoreError::Multipart))));
    let stored = store::read(store.as_ref(), object, 0..bytes.len() as u64).await.unwrap();
    assert!(stored == bytes);
}

#[tokio::test]
async fn any_number_of_writers_shares_the_budget_and_all_come_through() {
    let (_folder, store) = folder_store();
    let intake = Intake::default();
    let bytes = content("many", PART_BYTES + SMALL_BYTES);
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..2 * PARTS_HELD_MAX {
        let (intake, store, bytes) = (intake.clone(), Arc::clone(&store), bytes.clone());
        let wanted = digest(&bytes);
        writers.spawn(async move {
            let turn = intake.turn(session()).await;
            let mut writer = BlobWriter::begin(&intake, store, turn, Algorithm::Sha256);
            for start in (0..bytes.len()).step_by(SMALL_BYTES) {
                writer.write(bytes.slice(start..start + SMALL_BYTES)).await.unwrap();
                tokio::task::yield_now().await;
            }
            writer.finish(&wanted).await.unwrap().unwrap().size
        });
    }
    while let Some(size) = writers.join_next().await {
        assert_eq!(size.unwrap(), bytes.len() as u64);
    }
    assert_eq!(intake.parts.available_permits(), PARTS_HELD_MAX);
    assert_eq!(intake.small.available_permits(), SMALL_MAX);
}
