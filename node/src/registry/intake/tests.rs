//! What comes in, on a store in a folder.

use std::sync::atomic::Ordering;
use std::time::Duration;

use sha2::{Digest as _, Sha256, Sha512};

use super::*;
use crate::store::disturbed::DisturbedStore;
use crate::store::{self, FolderStore};

pub(super) const UNDER: KeyOwner = KeyOwner::Cluster;
pub(super) const SHORT: Duration = Duration::from_millis(20);
const LONG: Duration = Duration::from_secs(60);

pub(super) fn content(seed: &str, length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut bytes);
    bytes.into()
}

pub(super) fn digest(bytes: &[u8]) -> Digest {
    Digest::sha256(Sha256::digest(bytes).into())
}

pub(super) fn session() -> UploadId {
    UploadId::from_uuid(Uuid::new_v4())
}

fn folder_store() -> (tempfile::TempDir, Arc<dyn BlobStore>) {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(FolderStore::open(folder.path(), 0).unwrap());
    (folder, store)
}

/// Whose checkpoints the ones of these tests are.
const KEPT: UploadId = UploadId::from_uuid(Uuid::from_u128(1));

/// Where a row is to lead to, where every node knows pieces.
async fn keep(writer: &mut BlobWriter) -> (ObjectKey, Option<Multipart>) {
    let saved = writer.checkpoint(KEPT, Form::Pieces).await.unwrap();
    (saved.checkpoint, saved.multipart)
}

/// The same, where some do not.
async fn keep_whole(writer: &mut BlobWriter) -> (ObjectKey, Option<Multipart>) {
    let saved = writer.checkpoint(KEPT, Form::Whole).await.unwrap();
    (saved.checkpoint, saved.multipart)
}

async fn resume(
    intake: &Intake,
    store: Arc<dyn BlobStore>,
    turn: Turn,
    checkpoint: ObjectKey,
    multipart: Option<Multipart>,
    offset: u64,
) -> Result<BlobWriter, IntakeError> {
    let at = Resumed { checkpoint, multipart, offset };
    BlobWriter::resume(intake, store, UNDER, turn, at).await
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
            None => BlobWriter::begin(&intake, store, UNDER, turn, Algorithm::Sha256),
            Some((checkpoint, multipart)) => {
                let offset = piece.start as u64;
                let resumed = resume(&intake, store, turn, checkpoint, multipart, offset);
                resumed.await.unwrap()
            }
        };
        assert_eq!(writer.offset(), piece.start as u64);
        writer.write(bytes.slice(piece)).await.unwrap();
        kept = Some(keep(&mut writer).await);
        writer.named();
    }
    let (checkpoint, multipart) = kept.unwrap();
    let turn = intake.turn(session).await;
    let (offset, again) = (bytes.len() as u64, Arc::clone(&store));
    let writer = resume(&intake, again, turn, checkpoint, multipart, offset).await;
    let written = writer.unwrap().finish(&digest(&bytes)).await.unwrap().unwrap();
    assert_eq!(written.size, bytes.len() as u64);
    let stored = store::read(store.as_ref(), written.object, 0..written.size);
    assert!(stored.await.unwrap() == bytes);
    assert_eq!(written.recipe.length(), written.size);
}

#[tokio::test]
async fn what_was_laid_down_takes_no_room_and_goes_on_when_it_is_back() {
    let (_folder, store) = folder_store();
    let bytes = content("slow", 2 * PART_BYTES + 4321);
    let intake = Intake::of_fetches();
    let free = || (intake.small.free.available_permits(), intake.parts.free.available_permits());
    let all = free();
    let turn = intake.turn(session()).await;
    let mut writer = BlobWriter::begin(&intake, store.clone(), UNDER, turn, Algorithm::Sha256);
    let mut at = 0;
    for end in [10, SMALL_BYTES + 1, PART_BYTES + 7, bytes.len()] {
        writer.write(bytes.slice(at..end)).await.unwrap();
        at = end;
        writer.settle().await.unwrap();
        let from = writer.lay_down() as usize;
        assert!(from < at && at - from < PART_BYTES);
        assert_eq!(free(), all, "at {end}");
        assert!(matches!(writer.write(content("more", 1)).await, Err(IntakeError::Torn)));
        writer.take_up().await.unwrap();
        for piece in bytes[from..at].chunks(1 << 20) {
            assert!(writer.is_torn());
            writer.put_back(piece);
        }
        assert!(!writer.is_torn());
    }
    let written = writer.finish(&digest(&bytes)).await.unwrap().unwrap();
    let stored = store::read(store.as_ref(), written.object, 0..written.size);
    assert!(stored.await.unwrap() == bytes);
}

#[tokio::test]
async fn what_is_not_accepted_is_not_published_and_leaves_nothing() {
    let (folder, store) = folder_store();
    let intake = Intake::default();
    for length in [100, PART_BYTES + 1] {
        let id = session();
        let turn = intake.turn(id).await;
        let mut writer =
            BlobWriter::begin(&intake, Arc::clone(&store), UNDER, turn, Algorithm::Sha256);
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
        let mut writer =
            BlobWriter::begin(&intake, Arc::clone(&store), UNDER, turn, Algorithm::Sha256);
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
        let mut writer =
            BlobWriter::begin(&intake, Arc::clone(&store), UNDER, turn, Algorithm::Sha256);
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
    let mut writer = BlobWriter::begin(
        &here,
        Arc::clone(&store),
        UNDER,
        here.turn(session).await,
        Algorithm::Sha256,
    );
    writer.write(bytes.clone()).await.unwrap();
    let (checkpoint, multipart) = keep(&mut writer).await;
    writer.named();
    let resumed = async |rest: &'static [u8]| {
        let elsewhere = Intake::default();
        let (store, turn) = (Arc::clone(&store), elsewhere.turn(session).await);
        let (multipart, offset) = (multipart.clone(), 2 * PART_BYTES as u64);
        let resumed = resume(&elsewhere, store, turn, checkpoint, multipart, offset);
        let mut writer = resumed.await.unwrap();
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
            let mut writer = BlobWriter::begin(&intake, store, UNDER, turn, Algorithm::Sha256);
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
    assert_eq!(intake.parts.free.available_permits(), PARTS_HELD_MAX);
    assert_eq!(intake.small.free.available_permits(), SMALL_MAX);
}

/// As the standard one, only smaller: parts of 1,000 bytes up to 4,000, then growing to 5,000.
const TINY: PartSchedule = PartSchedule {
    first_bytes: 1_000,
    share: 4,
    longest_bytes: 5_000,
    step_bytes: 500,
    blob_bytes_max: 60_000,
};

fn tiny() -> Intake {
    Intake::new(TINY, Patience::STANDARD)
}

#[tokio::test]
async fn parts_grow_with_the_blob_wherever_its_requests_end() {
    let (_folder, store) = folder_store();
    let (intake, session) = (tiny(), session());
    let bytes = content("long", TINY.blob_bytes_max as usize);
    // In the middle of short parts and of long ones, and on a cut of each.
    let ends = [500, 1_000, 4_300, 9_999, 30_000, 30_001, 59_999, bytes.len()];
    let turn = intake.turn(session).await;
    let mut writer = BlobWriter::begin(&intake, Arc::clone(&store), UNDER, turn, Algorithm::Sha256);
    let mut start = 0;
    for end in ends {
        writer.write(bytes.slice(start..end)).await.unwrap();
        let (checkpoint, multipart) = keep_whole(&mut writer).await;
        let stored = store.get(checkpoint, 0..1).await.unwrap().next().await.unwrap().unwrap();
        let long = !TINY.is_short(writer.flushed);
        assert_eq!(stored[0], 1 + u8::from(long), "programs before read short ones, at {end}");
        writer.named();
        let (store, turn) = (Arc::clone(&store), intake.turn(session).await);
        let offset = end as u64;
        let resumed = resume(&intake, store, turn, checkpoint, multipart, offset);
        writer = resumed.await.unwrap();
        start = end;
    }
    let mut at = 0;
    for part in &writer.parts {
        assert_eq!(part.length, TINY.part_bytes(at), "the part at {at}");
        at += part.length;
    }
    assert!(writer.parts.last().unwrap().length == TINY.longest_bytes);
    let written = writer.finish(&digest(&bytes)).await.unwrap().unwrap();
    let stored = store::read(store.as_ref(), written.object, 0..written.size).await.unwrap();
    assert!(stored == bytes);
    for (lane, all) in [(&intake.long, 10), (&intake.parts, PARTS_HELD_MAX), (&intake.copies, 1)] {
        assert_eq!(lane.free.available_permits(), all);
    }
}

#[tokio::test]
async fn a_blob_that_is_longer_than_any_may_be_is_refused_at_once() {
    let (_folder, store) = folder_store();
    let intake = tiny();
    let most = TINY.blob_bytes_max;
    intake.check_length(most).unwrap();
    assert!(matches!(intake.check_length(most + 1), Err(IntakeError::TooLong(at)) if at == most));
    let turn = intake.turn(session()).await;
    let mut writer = BlobWriter::begin(&intake, store, UNDER, turn, Algorithm::Sha256);
    writer.write(content("much", most as usize)).await.unwrap();
    let refused = writer.write(Bytes::from_static(b"x")).await;
    assert!(matches!(refused, Err(IntakeError::TooLong(at)) if at == most));
    assert_eq!(writer.offset(), most, "what was refused counts as taken");
}

#[tokio::test]
async fn long_blobs_share_their_own_room_and_all_come_through() {
    let (_folder, store) = folder_store();
    let intake = tiny();
    let bytes = content("crowd", 40_000);
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..12 {
        let (intake, store, bytes) = (intake.clone(), Arc::clone(&store), bytes.clone());
        writers.spawn(async move {
            let turn = intake.turn(session()).await;
            let mut writer = BlobWriter::begin(&intake, store, UNDER, turn, Algorithm::Sha256);
            for start in (0..bytes.len()).step_by(700) {
                writer.write(bytes.slice(start..bytes.len().min(start + 700))).await.unwrap();
                assert!(writer.buffer.len() <= TINY.longest_bytes as usize);
                tokio::task::yield_now().await;
            }
            writer.finish(&digest(&bytes)).await.unwrap().unwrap().size
        });
    }
    while let Some(size) = writers.join_next().await {
        assert_eq!(size.unwrap(), bytes.len() as u64);
    }
    assert_eq!(intake.long.free.available_permits(), 10);
}

#[tokio::test]
async fn a_checkpoint_that_was_cut_off_or_is_of_another_place_is_none() {
    let (_folder, store) = folder_store();
    let (intake, session) = (tiny(), session());
    let turn = intake.turn(session).await;
    let mut writer = BlobWriter::begin(&intake, Arc::clone(&store), UNDER, turn, Algorithm::Sha256);
    writer.write(content("cut", 20_123)).await.unwrap();
    let (checkpoint, multipart) = keep(&mut writer).await;
    writer.named();
    let length = store.length(checkpoint).await.unwrap().unwrap();
    let whole = store::read(store.as_ref(), checkpoint, 0..length).await.unwrap();
    let resumed = async |bytes: Bytes, offset: u64| {
        store.put(checkpoint, &UNDER, bytes).await.unwrap();
        let (store, turn) = (Arc::clone(&store), intake.turn(session).await);
        let multipart = multipart.clone();
        resume(&intake, store, turn, checkpoint, multipart, offset).await
    };
    assert_eq!(resumed(whole.clone(), 20_123).await.unwrap().offset(), 20_123);
    for (bytes, offset) in [
        (whole.slice(..whole.len() - 1), 20_123),
        (whole.slice(..3), 20_123),
        (Bytes::new(), 20_123),
        ([&whole[..], b"x"].concat().into(), 20_123),
        (whole.clone(), 20_124),
    ] {
        let refused = resumed(bytes, offset).await;
        assert!(matches!(refused, Err(IntakeError::Checkpoint)), "{refused:?}");
    }
}

#[tokio::test]
async fn a_part_that_fails_leaves_the_session_where_it_stood() {
    let folder = tempfile::tempdir().unwrap();
    let disturbed = DisturbedStore::open(folder.path());
    let store: Arc<dyn BlobStore> = disturbed.clone();
    let (intake, session, bytes) = (tiny(), session(), content("failing", 20_000));
    let turn = intake.turn(session).await;
    let mut writer = BlobWriter::begin(&intake, Arc::clone(&store), UNDER, turn, Algorithm::Sha256);
    writer.write(bytes.slice(..5_500)).await.unwrap();
    let (checkpoint, multipart) = keep(&mut writer).await;
    writer.named();
    let resumed = async || {
        let (store, turn) = (Arc::clone(&store), intake.turn(session).await);
        resume(&intake, store, turn, checkpoint, multipart.clone(), 5_500).await.unwrap()
    };
    // It is noticed while more comes, or when all has come.
    for (end, is_noticed) in [(bytes.len(), true), (6_500, false)] {
        let mut writer = resumed().await;
        disturbed.failing_parts.store(1, Ordering::Relaxed);
        let wrote = writer.write(bytes.slice(5_500..end)).await;
        assert_eq!((wrote.is_err(), writer.is_torn()), (is_noticed, is_noticed));
        for _ in 0..2 {
            let kept = writer.checkpoint(session, Form::Pieces).await;
            assert!(kept.is_err(), "a row would name bytes that are not there");
            assert!(writer.is_torn());
        }
        let more = writer.write(Bytes::from_static(b"more")).await;
        assert!(matches!(more, Err(IntakeError::Torn)), "{more:?}");
    }
    let mut writer = resumed().await;
    writer.write(bytes.slice(5_500..)).await.unwrap();
    let written = writer.finish(&digest(&bytes)).await.unwrap().unwrap();
    let stored = store::read(store.as_ref(), written.object, 0..written.size).await.unwrap();
    assert!(stored == bytes);
}

/// As after an answer that did not come: the object is there, and its row is not.
#[tokio::test]
async fn a_blob_that_is_closed_once_more_is_the_one_that_is_there() {
    let (_folder, store) = folder_store();
    let (intake, session, bytes) = (tiny(), session(), content("again", 7_300));
    let turn = intake.turn(session).await;
    let mut writer = BlobWriter::begin(&intake, Arc::clone(&store), UNDER, turn, Algorithm::Sha256);
    writer.write(bytes.slice(..7_200)).await.unwrap();
    let (checkpoint, multipart) = keep(&mut writer).await;
    writer.named();
    let closed = async |end: Bytes| {
        let (store, turn) = (Arc::clone(&store), intake.turn(session).await);
        let writer = resume(&intake, store, turn, checkpoint, multipart.clone(), 7_200);
        let mut writer = writer.await.unwrap();
        writer.write(end.clone()).await.unwrap();
        writer.finish(&digest(&[&bytes[..7_200], &end[..]].concat())).await
    };
    let end = bytes.slice(7_200..);
    let object = closed(end.clone()).await.unwrap().unwrap().object;
    assert_eq!(closed(end).await.unwrap().unwrap().object, object);
    let other = closed(Bytes::from_static(b"another end")).await;
    assert!(matches!(other, Err(IntakeError::Store(StoreError::Multipart))), "{other:?}");
    let stored = store::read(store.as_ref(), object, 0..bytes.len() as u64).await.unwrap();
    assert!(stored == bytes);
}

/// An intake of which other uploads hold the room for all parts, each with so much of its first.
pub(super) async fn crowded(
    store: &Arc<dyn BlobStore>,
    (fill_max, wait_max): (Duration, Duration),
    first: &Bytes,
) -> (Intake, Vec<BlobWriter>) {
    let patience = Patience { fill_max, long_fill_max: fill_max, wait_max };
    let intake = Intake::new(PartSchedule::STANDARD, patience);
    let mut holders = Vec::new();
    for _ in 0..PARTS_HELD_MAX {
        let mut writer = begin(&intake, store).await;
        writer.write(first.clone()).await.unwrap();
        holders.push(writer);
    }
    assert_eq!(intake.parts.free.available_permits(), 0);
    (intake, holders)
}

async fn begin(intake: &Intake, store: &Arc<dyn BlobStore>) -> BlobWriter {
    let turn = intake.turn(session()).await;
    BlobWriter::begin(intake, Arc::clone(store), UNDER, turn, Algorithm::Sha256)
}

#[tokio::test]
async fn one_slow_client_gives_way_to_who_waits_and_goes_on_where_it_was() {
    let (_folder, store) = folder_store();
    let bytes = content("slow", SMALL_BYTES + 1_000);
    let first = bytes.slice(..SMALL_BYTES + 1);
    let (intake, mut slow) = crowded(&store, (SHORT, LONG), &first).await;
    let kept = tokio::time::timeout(SHORT * 3, slow[0].is_wanted()).await;
    assert!(kept.is_err(), "nobody waits, and it is cut off");
    let mut quick = begin(&intake, &store).await;
    let whole = bytes.clone();
    let quick = tokio::spawn(async move {
        quick.write(whole.clone()).await.unwrap();
        quick.finish(&digest(&whole)).await.unwrap().unwrap().size
    });
    let wanted = slow.iter().map(|writer| Box::pin(writer.is_wanted()));
    let ((), which, others) = futures::future::select_all(wanted).await;
    drop(others);
    let mut gives_way = slow.swap_remove(which);
    let (checkpoint, multipart) = keep(&mut gives_way).await;
    gives_way.named();
    assert_eq!(quick.await.unwrap(), bytes.len() as u64);
    for writer in &slow {
        let kept = tokio::time::timeout(SHORT, writer.is_wanted()).await;
        assert!(kept.is_err(), "room for one part was wanted");
    }
    let (turn, offset) = (intake.turn(session()).await, first.len());
    let resumed =
        resume(&intake, Arc::clone(&store), turn, checkpoint, multipart, offset as u64).await;
    let mut resumed = resumed.unwrap();
    resumed.write(bytes.slice(offset..)).await.unwrap();
    assert_eq!(resumed.finish(&digest(&bytes)).await.unwrap().unwrap().size, bytes.len() as u64);
    drop(slow);
    assert_eq!(intake.parts.free.available_permits(), PARTS_HELD_MAX);
}

#[tokio::test]
async fn nobody_waits_for_room_for_ever_and_what_came_before_is_kept() {
    let (_folder, store) = folder_store();
    let bytes = content("late", SMALL_BYTES + 1_000);
    let first = bytes.slice(..SMALL_BYTES + 1);
    let (intake, holders) = crowded(&store, (LONG, SHORT), &first).await;
    let mut late = begin(&intake, &store).await;
    late.write(bytes.slice(..SMALL_BYTES)).await.unwrap();
    let refused = late.write(bytes.slice(SMALL_BYTES..)).await;
    assert!(matches!(refused, Err(IntakeError::Crowded)), "{refused:?}");
    assert!(!late.is_torn() && late.offset() == SMALL_BYTES as u64);
    let (checkpoint, multipart) = keep_whole(&mut late).await;
    late.named();
    let resumed = async || {
        let (store, turn) = (Arc::clone(&store), intake.turn(session()).await);
        resume(&intake, store, turn, checkpoint, multipart.clone(), SMALL_BYTES as u64).await
    };
    let refused = resumed().await;
    assert!(matches!(refused, Err(IntakeError::Crowded)), "{refused:?}");
    drop(holders);
    let mut resumed = resumed().await.unwrap();
    resumed.write(bytes.slice(SMALL_BYTES..)).await.unwrap();
    assert_eq!(resumed.finish(&digest(&bytes)).await.unwrap().unwrap().size, bytes.len() as u64);
}

#[tokio::test]
async fn who_waits_for_room_hears_that_the_node_stops_and_what_came_before_is_kept() {
    let (_folder, store) = folder_store();
    let bytes = content("stopped", SMALL_BYTES + 1_000);
    let first = bytes.slice(..SMALL_BYTES + 1);
    let (intake, _holders) = crowded(&store, (LONG, LONG), &first).await;
    let mut late = begin(&intake, &store).await;
    late.write(bytes.slice(..SMALL_BYTES)).await.unwrap();
    let closes = async { intake.close() };
    let (refused, ()) = tokio::join!(late.write(bytes.slice(SMALL_BYTES..)), closes);
    assert!(matches!(refused, Err(IntakeError::Stopping)), "{refused:?}");
    assert!(!late.is_torn() && late.offset() == SMALL_BYTES as u64);
    let (checkpoint, _) = keep(&mut late).await;
    late.named();
    assert!(store.length(checkpoint).await.unwrap().is_some());
}

#[tokio::test]
async fn a_short_blob_does_not_wait_behind_all_who_wait_for_parts() {
    let (_folder, store) = folder_store();
    let bytes = content("queue", SMALL_BYTES + 1);
    let (intake, _holders) = crowded(&store, (SHORT, LONG), &bytes).await;
    let mut queue = tokio::task::JoinSet::new();
    for _ in 0..SMALL_MAX {
        let mut writer = begin(&intake, &store).await;
        writer.write(bytes.slice(..1)).await.unwrap();
        let rest = bytes.slice(1..);
        queue.spawn(async move { writer.write(rest).await });
    }
    assert_eq!(intake.small.free.available_permits(), 0);
    let mut short = begin(&intake, &store).await;
    short.write(Bytes::from_static(b"{}")).await.unwrap();
    assert_eq!(short.finish(&digest(b"{}")).await.unwrap().unwrap().size, 2);
    let gave_way = queue.join_next().await.unwrap().unwrap();
    assert!(matches!(gave_way, Err(IntakeError::Crowded)), "{gave_way:?}");
    assert!(queue.try_join_next().is_none(), "one place was wanted");
}
