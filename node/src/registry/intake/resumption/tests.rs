//! Sessions whose requests come to several nodes with one folder, of which some are killed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;

use super::super::lane::Patience;
use super::super::tests::{SHORT, UNDER, content, crowded, digest, session};
use super::super::{PART_BYTES, Written};
use super::*;
use crate::registry::parts::PartSchedule;
use crate::store::disturbed::DisturbedStore;
use crate::store::{FolderStore, StoreError, read};

const CHUNK: u64 = BLOB_CHUNK_BYTES as u64;

/// As the standard one, only smaller: parts of four chunks, then growing to six.
const SMALL: PartSchedule = PartSchedule {
    first_bytes: 4 * CHUNK,
    share: 4,
    longest_bytes: 6 * CHUNK,
    step_bytes: CHUNK,
    blob_bytes_max: 128 * CHUNK,
};

/// What a session's row says.
#[derive(Debug, Default)]
struct Row {
    checkpoint: Option<ObjectKey>,
    multipart: Option<Multipart>,
    offset: u64,
}

#[derive(Debug)]
struct Node {
    intake: Intake,
    store: Arc<dyn BlobStore>,
}

impl Node {
    fn start(folder: &Path, schedule: PartSchedule) -> Self {
        let store = Arc::new(FolderStore::open(folder, 0).unwrap());
        Self { intake: Intake::new(schedule, Patience::STANDARD), store }
    }

    async fn request(&self, session: UploadId, row: &Row) -> Result<BlobWriter, IntakeError> {
        let (store, turn) = (Arc::clone(&self.store), self.intake.turn(session).await);
        let Some(checkpoint) = row.checkpoint else {
            return Ok(BlobWriter::begin(&self.intake, store, UNDER, turn, Algorithm::Sha256));
        };
        let at = Resumed { checkpoint, multipart: row.multipart.clone(), offset: row.offset };
        BlobWriter::resume(&self.intake, store, UNDER, turn, at).await
    }
}

/// Writes down where a request ended.
async fn advance(row: &mut Row, writer: BlobWriter, saved: Saved) {
    let (offset, store) = (writer.offset(), Arc::clone(&writer.store));
    *row = Row { checkpoint: Some(saved.checkpoint), multipart: saved.multipart, offset };
    writer.named();
    store.delete(&saved.superseded).await.unwrap();
}

#[derive(Debug, Clone, Copy)]
enum Fate {
    Answered,
    /// The node is killed before the command.
    Killed,
    /// The other node goes on from the same point with other bytes: it begins before, is ready after,
    /// and its command is refused.
    Raced,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        4 => Just(Fate::Answered),
        1 => Just(Fate::Killed),
        1 => Just(Fate::Raced),
    ]
}

#[derive(Debug, Clone)]
struct Request {
    bytes: usize,
    node: usize,
    fate: Fate,
}

fn request() -> impl Strategy<Value = Request> {
    let bytes = prop_oneof![
        2 => 0..5_000usize,
        3 => 60_000..300_000usize,
        1 => Just(BLOB_CHUNK_BYTES),
        2 => 300_000..1_500_000usize,
    ];
    (bytes, 0..2usize, fate()).prop_map(|(bytes, node, fate)| Request { bytes, node, fate })
}

/// Plays `requests`, of which the first so many find a node that knows no pieces.
async fn play(folder: PathBuf, requests: Vec<Request>, older: usize) {
    let (session, mut row) = (session(), Row::default());
    let mut nodes = [(); 2].map(|()| Node::start(&folder, SMALL));
    let length: usize = requests.iter().map(|request| request.bytes).sum();
    let bytes = content("played", length);
    let mut left = BTreeSet::new();
    for (number, Request { bytes: length, node, fate }) in requests.into_iter().enumerate() {
        let form = if number < older { Form::Whole } else { Form::Pieces };
        let start = row.offset as usize;
        let other = content(&format!("other {number}"), length);
        if matches!(fate, Fate::Killed) {
            let mut killed = nodes[node].request(session, &row).await.unwrap();
            killed.write(other.clone()).await.unwrap();
            left.insert(killed.checkpoint(session, form).await.unwrap().checkpoint);
            // Nothing of it is dropped in order.
            std::mem::forget(killed);
            nodes[node] = Node::start(&folder, SMALL);
        }
        let mut loser = None;
        if matches!(fate, Fate::Raced) {
            loser = Some(nodes[1 - node].request(session, &row).await.unwrap());
        }
        let mut writer = nodes[node].request(session, &row).await.unwrap();
        assert_eq!(writer.offset(), row.offset);
        writer.write(bytes.slice(start..start + length)).await.unwrap();
        let saved = writer.checkpoint(session, form).await.unwrap();
        if let Some(mut loser) = loser {
            loser.write(other).await.unwrap();
            let refused = loser.checkpoint(session, form).await.unwrap();
            assert_ne!(refused.checkpoint, saved.checkpoint);
            nodes[1 - node].store.delete(&[refused.checkpoint]).await.unwrap();
        }
        advance(&mut row, writer, saved).await;
        assert_eq!(row.offset, (start + length) as u64);
    }
    let writer = nodes[0].request(session, &row).await.unwrap();
    let found = writer.found().to_vec();
    let Written { size, object, .. } = writer.finish(&digest(&bytes)).await.unwrap().unwrap();
    let store = &nodes[1].store;
    assert!(read(&**store, object, 0..size).await.unwrap() == bytes, "other bytes are published");
    store.delete(&found).await.unwrap();
    let listed = store.list("uploads/", None, 1000).await.unwrap();
    let listed: BTreeSet<ObjectKey> = listed.into_iter().map(|object| object.key).collect();
    assert_eq!(listed, left, "not what the killed left");
    pieces::delete_all(&**store, session, row.checkpoint).await.unwrap();
    assert!(store.list("uploads/", None, 1).await.unwrap().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn requests_of_any_length_at_any_node_make_the_blob(
        requests in proptest::collection::vec(request(), 1..14),
        older in 0..6usize,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(play(folder.path().to_owned(), requests, older));
    }
}

#[tokio::test]
async fn a_request_costs_its_own_bytes_however_long_the_tail_is() {
    /// Of the state beside the tail.
    const BODY_BYTES: u64 = 16 * 1024;
    for (request, at_one_node) in [(64 << 10, true), (64 << 10, false), (1 << 20, true)] {
        let (folder, session) = (tempfile::tempdir().unwrap(), session());
        let storage = DisturbedStore::open(folder.path());
        let mut node = Node { intake: Intake::default(), store: storage.clone() };
        let bytes = content("cheap", PART_BYTES + request);
        let mut row = Row::default();
        for start in (0..bytes.len()).step_by(request) {
            let (reads, written) = (storage.reads(), storage.written_bytes());
            if !at_one_node {
                node.intake = Intake::default();
            }
            let mut writer = node.request(session, &row).await.unwrap();
            writer.write(bytes.slice(start..start + request)).await.unwrap();
            let saved = writer.checkpoint(session, Form::Pieces).await.unwrap();
            advance(&mut row, writer, saved).await;
            let (reads, written) = (storage.reads() - reads, storage.written_bytes() - written);
            if start + request == PART_BYTES {
                // All of the part, in pieces of a chunk at least.
                assert!(reads <= 2 + (PART_BYTES / BLOB_CHUNK_BYTES) as u64, "{reads} reads");
                assert!(written <= PART_BYTES as u64 + BODY_BYTES, "{written} bytes");
            } else {
                let most = if at_one_node { 0 } else { 2 };
                assert!(reads <= most, "{reads} reads at {start}");
                let own = request as u64 + CHUNK + BODY_BYTES;
                assert!(written <= own, "{written} bytes for {request} at {start}");
            }
        }
        let listed = storage.list("uploads/", None, 10).await.unwrap();
        assert_eq!(listed.len(), 1, "what the part has stays: {listed:?}");
        let writer = node.request(session, &row).await.unwrap();
        let written = writer.finish(&digest(&bytes)).await.unwrap().unwrap();
        let stored = read(&*storage, written.object, 0..written.size).await.unwrap();
        assert!(stored == bytes);
    }
}

#[tokio::test]
async fn a_piece_that_is_gone_fails_who_needs_it_and_tears_nothing() {
    let (folder, session) = (tempfile::tempdir().unwrap(), session());
    let node = Node::start(folder.path(), SMALL);
    let bytes = content("gone", 5 * BLOB_CHUNK_BYTES);
    let (first, rest) = (2 * BLOB_CHUNK_BYTES + 7, 3 * BLOB_CHUNK_BYTES);
    let mut row = Row::default();
    let mut writer = node.request(session, &row).await.unwrap();
    writer.write(bytes.slice(..first)).await.unwrap();
    let saved = writer.checkpoint(session, Form::Pieces).await.unwrap();
    let gone = saved.checkpoint;
    advance(&mut row, writer, saved).await;
    node.store.delete(&[gone]).await.unwrap();

    let mut writer = node.request(session, &row).await.unwrap();
    writer.write(bytes.slice(first..rest)).await.unwrap();
    let failed = writer.write(bytes.slice(rest..)).await;
    let missing = |error: &IntakeError| match error {
        IntakeError::Store(StoreError::NotFound(key)) => Some(*key),
        _ => None,
    };
    assert_eq!(failed.as_ref().err().and_then(missing), Some(gone), "{failed:?}");
    assert_eq!((writer.is_torn(), writer.offset()), (false, rest as u64));
    let saved = writer.checkpoint(session, Form::Pieces).await.unwrap();
    assert_eq!(saved.superseded, [], "the row still leads there");
    let refused = writer.finish(&digest(&bytes[..rest])).await;
    assert_eq!(refused.as_ref().err().and_then(missing), Some(gone), "{refused:?}");
    // Where it is not remembered, the session is at its end at once.
    let other = Node::start(folder.path(), SMALL);
    let refused = other.request(session, &row).await.map(drop);
    assert!(matches!(refused, Err(IntakeError::Checkpoint)), "{refused:?}");
}

#[tokio::test]
async fn what_was_damaged_in_storage_is_not_published() {
    let (folder, session) = (tempfile::tempdir().unwrap(), session());
    let bytes = content("damaged", 2 * BLOB_CHUNK_BYTES + 7);
    let node = Node::start(folder.path(), SMALL);
    let mut row = Row::default();
    let mut writer = node.request(session, &row).await.unwrap();
    writer.write(bytes.clone()).await.unwrap();
    let saved = writer.checkpoint(session, Form::Pieces).await.unwrap();
    let key = saved.checkpoint;
    advance(&mut row, writer, saved).await;
    let length = node.store.length(key).await.unwrap().unwrap();
    let sound = read(&*node.store, key, 0..length).await.unwrap();
    // At once where it is read at once, else when it is needed.
    for (from_the_end, at_once) in [(3, true), (CHUNK, false)] {
        let mut damaged = sound.to_vec();
        damaged[(length - from_the_end) as usize] ^= 1;
        node.store.put(key, &UNDER, damaged.into()).await.unwrap();
        let other = Node::start(folder.path(), SMALL);
        let refused = match other.request(session, &row).await {
            Ok(writer) => {
                assert!(!at_once, "it is taken as it is");
                writer.finish(&digest(&bytes)).await.map(drop)
            }
            refused => refused.map(drop),
        };
        assert!(matches!(refused, Err(IntakeError::Checkpoint)), "{refused:?}");
    }
    assert!(node.store.list("blobs/", None, 1).await.unwrap().is_empty());
    node.store.put(key, &UNDER, sound).await.unwrap();
    let writer = node.request(session, &row).await.unwrap();
    writer.finish(&digest(&bytes)).await.unwrap().unwrap();
}

#[tokio::test]
async fn who_finds_no_room_for_a_part_keeps_what_came_before() {
    let folder = tempfile::tempdir().unwrap();
    let (node, session) = (Node::start(folder.path(), PartSchedule::STANDARD), session());
    let bytes = content("crowded", PART_BYTES + 9);
    let first = PART_BYTES - 100;
    let mut row = Row::default();
    let mut writer = node.request(session, &row).await.unwrap();
    writer.write(bytes.slice(..first)).await.unwrap();
    let saved = writer.checkpoint(session, Form::Pieces).await.unwrap();
    advance(&mut row, writer, saved).await;

    let long = Duration::from_secs(60);
    let more = bytes.slice(..SMALL_BYTES + 1);
    let (intake, holders) = crowded(&node.store, (long, SHORT), &more).await;
    let node = Node { intake, store: Arc::clone(&node.store) };
    let mut late = node.request(session, &row).await.unwrap();
    late.write(bytes.slice(first..first + 10)).await.unwrap();
    let refused = late.write(bytes.slice(first + 10..)).await;
    assert!(matches!(refused, Err(IntakeError::Crowded)), "{refused:?}");
    assert_eq!((late.is_torn(), late.offset()), (false, first as u64 + 10));
    let saved = late.checkpoint(session, Form::Pieces).await.unwrap();
    advance(&mut row, late, saved).await;

    drop(holders);
    let mut writer = node.request(session, &row).await.unwrap();
    writer.write(bytes.slice(first + 10..)).await.unwrap();
    let written = writer.finish(&digest(&bytes)).await.unwrap().unwrap();
    assert!(read(&*node.store, written.object, 0..written.size).await.unwrap() == bytes);
}
