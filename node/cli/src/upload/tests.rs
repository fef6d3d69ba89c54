//! Uploads to a small real HTTP server that keeps parts, is full for a while, and refuses.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicU32;
use std::time::SystemTime;

use axum::extract::{Path as Segment, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use bytes::Bytes;
use clap::Parser;

use super::sending::{CHECKSUM_HEADER, in_turn, missing, part_range};
use super::*;
use crate::arguments::{Arguments, Command, ImageCommand};
use crate::config::{Context, Trust};

const SCREEN: Screen = Screen { json: true, quiet: false };
const PART_BYTES: u64 = 1000;

fn status(total: u32, received: &[u32], chunk: u64, bytes: u64) -> UploadStatus {
    UploadStatus {
        upload_id: shoal_content::UploadId::from_uuid(Default::default()),
        status: "receiving".into(),
        total_chunks: total,
        received_chunks: received.to_vec(),
        chunk_size: chunk,
        total_size_bytes: bytes,
        processed_bytes: None,
        version_id: None,
        version: None,
        manifest_digest: None,
        created_at: None,
        failure: None,
        import_url: None,
        received_bytes: 0,
        expires_at: String::new(),
    }
}

/// The parts that arrived, how often each was sent, and what else the server is like.
#[derive(Default)]
struct Store {
    parts: Mutex<BTreeMap<u32, (Bytes, u32)>>,
    /// For the odd parts, too.
    has_room: AtomicBool,
    image_is_gone: AtomicBool,
    session_is_others: AtomicBool,
    /// What `complete` answers in place of a version.
    refusal: Mutex<Option<StatusCode>>,
    /// Then `complete` refuses, and the session says why.
    disk_is_bad: AtomicBool,
    has_failed: AtomicBool,
    /// A file that is written to when the first part comes.
    spoilt: Mutex<Option<std::path::PathBuf>>,
    begun: Mutex<Vec<InitUpload>>,
    aborted: AtomicU32,
    bytes: u64,
}

impl Store {
    fn of(source: &Source) -> Arc<Self> {
        let store = Self { bytes: source.bytes, ..Default::default() };
        store.has_room.store(true, Ordering::Relaxed);
        Arc::new(store)
    }

    fn status(&self) -> UploadStatus {
        let received: Vec<u32> = self.parts.lock().unwrap().keys().copied().collect();
        let mut status =
            status(self.bytes.div_ceil(PART_BYTES) as u32, &received, PART_BYTES, self.bytes);
        if self.has_failed.load(Ordering::Relaxed) {
            status.status = "failed".into();
            status.failure = Some("it is no disk".into());
        }
        status
    }

    fn take(&self, index: u32, headers: &HeaderMap, part: Bytes) -> StatusCode {
        if index % 2 == 1 && !self.has_room.load(Ordering::Relaxed) {
            return StatusCode::INSUFFICIENT_STORAGE;
        }
        let wanted = format!("sha256:{}", hex::encode(Sha256::digest(&part)));
        if headers.get(CHECKSUM_HEADER).is_none_or(|found| found.as_bytes() != wanted.as_bytes()) {
            return StatusCode::BAD_REQUEST;
        }
        if let Some(path) = self.spoilt.lock().unwrap().take() {
            std::fs::write(path, vec![7_u8; self.bytes as usize]).unwrap();
        }
        let mut parts = self.parts.lock().unwrap();
        parts.entry(index).or_insert((part, 0)).1 += 1;
        StatusCode::OK
    }

    fn complete(&self) -> Result<Json<UploadStatus>, StatusCode> {
        if let Some(refusal) = *self.refusal.lock().unwrap() {
            return Err(refusal);
        }
        if self.disk_is_bad.load(Ordering::Relaxed) {
            self.has_failed.store(true, Ordering::Relaxed);
            return Err(StatusCode::UNPROCESSABLE_ENTITY);
        }
        Ok(Json(UploadStatus {
            status: "active".into(),
            version: Some("7".into()),
            manifest_digest: Some(resolution().manifest_digest),
            ..self.status()
        }))
    }
}

/// What every reference is here.
fn resolution() -> Resolution {
    Resolution {
        image_id: shoal_content::ImageId::from_uuid(Default::default()),
        image: "a/b".parse().unwrap(),
        kind: "disk".into(),
        version_id: shoal_content::VersionId::from_uuid(Default::default()),
        version: "7".into(),
        manifest_digest: Digest::sha256([7; 32]),
        media_type: String::new(),
        tag: None,
        status: "active".into(),
        deprecation: None,
        disk: None,
    }
}

type Shared = State<Arc<Store>>;

/// The one image that there is.
async fn listed() -> Json<serde_json::Value> {
    let row = serde_json::json!({
        "id": resolution().image_id, "name": "a/b", "kind": "disk", "display_name": "",
        "description": "", "image_type": "", "os_type": "", "os_version": "", "architecture": "",
        "format": "", "visibility": "private", "total_size_bytes": 0, "status": "pending",
        "latest_version": null, "tags": [], "labels": {}, "owner": "u", "created_at": "",
        "updated_at": "",
    });
    let pages = serde_json::json!({
        "page": 1, "page_size": 500, "total_pages": 1, "total_count": 1,
    });
    Json(serde_json::json!({ "data": [row], "pagination": pages }))
}

async fn seen(State(store): Shared) -> StatusCode {
    match store.image_is_gone.load(Ordering::Relaxed) {
        true => StatusCode::NOT_FOUND,
        false => StatusCode::OK,
    }
}

async fn begin(State(store): Shared, Json(request): Json<InitUpload>) -> Json<serde_json::Value> {
    store.begun.lock().unwrap().push(request);
    Json(serde_json::json!({
        "upload_id": shoal_content::UploadId::from_uuid(Default::default()),
        "total_chunks": 1, "chunk_size": PART_BYTES, "expires_at": "",
    }))
}

async fn show(State(store): Shared) -> Result<Json<UploadStatus>, StatusCode> {
    match store.session_is_others.load(Ordering::Relaxed) {
        true => Err(StatusCode::FORBIDDEN),
        false => Ok(Json(store.status())),
    }
}

async fn abort(State(store): Shared) -> StatusCode {
    store.aborted.fetch_add(1, Ordering::Relaxed);
    store.parts.lock().unwrap().clear();
    StatusCode::NO_CONTENT
}

async fn take(
    State(store): Shared,
    Segment((_, _, index)): Segment<(String, String, u32)>,
    headers: HeaderMap,
    part: Bytes,
) -> StatusCode {
    store.take(index, &headers, part)
}

async fn complete(State(store): Shared) -> Result<Json<UploadStatus>, StatusCode> {
    store.complete()
}

async fn serve(store: Arc<Store>) -> Client {
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    let resolved = || async { Json(resolution()) };
    let session = "/api/v1/images/{image}/versions/upload/{upload}";
    let router = Router::new()
        .route("/api/v1/images", get(listed))
        .route("/api/v1/images/{image}/versions/upload/init", post(begin))
        .route("/api/v1/images/{image}", get(seen))
        .route("/api/v1/resolve", get(resolved))
        .route(session, get(show).delete(abort))
        .route(&format!("{session}/chunks/{{index}}"), put(take))
        .route(&format!("{session}/complete"), post(complete))
        .with_state(store);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    Client::new(&Context {
        url,
        nodes: Vec::new(),
        username: String::new(),
        token: String::new(),
        token_expires_at: String::new(),
        trust: Trust::System,
    })
    .unwrap()
}

/// A file that was last written to long ago, with a folder for what is remembered.
struct Disk {
    folder: tempfile::TempDir,
    source: Source,
}

impl Disk {
    fn new(content: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        std::fs::write(&path, content).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        let source = Source::look(&path).unwrap();
        Self { folder, source }
    }

    fn path(&self) -> &Path {
        &self.source.path
    }

    fn place(&self, reference: &ImageReference) -> Place {
        Place::of(&self.folder.path().join("uploads"), "cluster", &self.source, reference)
    }

    fn order<'a>(&self, reference: &'a ImageReference) -> Order<'a> {
        Order {
            source: self.source.clone(),
            content: Content::File(Arc::new(File::open(self.path()).unwrap())),
            reference,
            context: "default",
            image: undescribed(&reference.name),
            number: None,
            format: None,
            chunk_size: None,
            parallel: 1,
            tags: &[],
            checksum: None,
            changelog: "",
            build_info: None,
        }
    }
}

fn reference() -> ImageReference {
    "a/b:c".parse().unwrap()
}

fn tag(text: &str) -> TagName {
    text.parse().unwrap()
}

async fn finish_here(order: &Order<'_>, client: &Client, place: &Place) -> Result<Ended, Error> {
    finish(order, client, place, SCREEN, &AtomicBool::new(false)).await
}

fn session(source: &Source) -> Session {
    Session {
        source: source.clone(),
        image: shoal_content::ImageId::from_uuid(Default::default()),
        upload: shoal_content::UploadId::from_uuid(Default::default()),
        version: "7".into(),
        order: None,
        finished: None,
    }
}

#[tokio::test]
async fn goes_on_with_the_missing_parts_and_sends_none_twice() {
    let content: Vec<u8> = (0..6_500_u32).map(|number| (number % 241) as u8).collect();
    let (disk, reference) = (Disk::new(&content), reference());
    let store = Store::of(&disk.source);
    store.has_room.store(false, Ordering::Relaxed);
    let client = serve(store.clone()).await;
    let (place, order) = (disk.place(&reference), disk.order(&reference));
    assert!(resumed(&client, &place, &order).await.unwrap().is_none(), "nothing was begun yet");
    place.save(&session(&disk.source)).unwrap();

    let (found, there) = resumed(&client, &place, &order).await.unwrap().unwrap();
    let content_of = &order.content;
    let sender = Sender { client: &client, content: content_of, session: found, screen: SCREEN };
    let refused = sender.send_missing(&there, 1).await.unwrap_err();
    assert!(matches!(refused, Error::Refused { status: 507, .. }), "{refused}");

    store.has_room.store(true, Ordering::Relaxed);
    let (_, there) = resumed(&client, &place, &order).await.unwrap().unwrap();
    assert_eq!(there.received_chunks, [0], "the part before the refusal is safe");
    assert_eq!(sender.send_missing(&there, 3).await.unwrap(), 5_500);
    assert_eq!(sender.complete().await.unwrap().version.as_deref(), Some("7"));

    let parts = store.parts.lock().unwrap();
    let whole: Vec<u8> = parts.values().flat_map(|(part, _)| part.to_vec()).collect();
    assert_eq!(whole, content);
    assert!(parts.values().all(|(_, times)| *times == 1), "a part came twice");
}

#[tokio::test]
async fn it_is_said_what_was_sent_and_what_was_there() {
    let (disk, reference) = (Disk::new(&[1; 2500]), reference());
    let store = Store::of(&disk.source);
    let client = serve(store.clone()).await;
    let (place, order) = (disk.place(&reference), disk.order(&reference));
    place.save(&session(&disk.source)).unwrap();
    store.parts.lock().unwrap().insert(0, (Bytes::from(vec![1_u8; 1000]), 1));
    let Ended::Now(outcome) = finish_here(&order, &client, &place).await.unwrap() else {
        panic!("nothing was made")
    };
    assert_eq!((outcome.sent_bytes, outcome.there_bytes), (1500, 1000));
    let text = sentence(&outcome, &reference);
    assert!(text.contains("Sent 1.46 KiB in "), "{text}");
    assert!(text.contains("; 1000 B were there from an earlier call"), "{text}");
    let shown = serde_json::to_value(&outcome).unwrap();
    assert_eq!((&shown["status"], &shown["sent_bytes"]), (&"active".into(), &1500.into()));
    assert!(store.begun.lock().unwrap().is_empty(), "it was begun before");
}

#[tokio::test]
async fn a_session_that_is_gone_is_begun_anew() {
    let (disk, reference) = (Disk::new(b"content"), reference());
    // The node knows a session of another length: not ours.
    let client = serve(Arc::new(Store { bytes: 9, ..Default::default() })).await;
    let (place, order) = (disk.place(&reference), disk.order(&reference));
    place.save(&session(&disk.source)).unwrap();
    assert!(resumed(&client, &place, &order).await.unwrap().is_none());
}

#[tokio::test]
async fn a_session_whose_image_is_gone_or_that_is_somebody_elses_is_begun_anew() {
    let (disk, reference) = (Disk::new(b"content"), reference());
    let store = Store::of(&disk.source);
    let client = serve(store.clone()).await;
    let (place, order) = (disk.place(&reference), disk.order(&reference));
    place.save(&session(&disk.source)).unwrap();
    assert!(resumed(&client, &place, &order).await.unwrap().is_some());
    store.session_is_others.store(true, Ordering::Relaxed);
    assert!(resumed(&client, &place, &order).await.unwrap().is_none());
    store.session_is_others.store(false, Ordering::Relaxed);
    store.image_is_gone.store(true, Ordering::Relaxed);
    assert!(resumed(&client, &place, &order).await.unwrap().is_none());
}

#[tokio::test]
async fn another_number_or_other_words_begin_anew_and_free_what_was_begun() {
    let (disk, reference) = (Disk::new(b"content"), reference());
    let store = Store::of(&disk.source);
    let client = serve(store.clone()).await;
    let place = disk.place(&reference);
    let other = Order { number: Some("8".into()), ..disk.order(&reference) };
    place.save(&session(&disk.source)).unwrap();
    finish_here(&other, &client, &place).await.unwrap();
    assert_eq!(store.aborted.load(Ordering::Relaxed), 1, "what was begun holds room");
    assert_eq!(store.begun.lock().unwrap()[0].version, "8");

    let tags = [tag("stable")];
    let described = Order { tags: &tags, changelog: "faster", ..disk.order(&reference) };
    let begun = Session { order: Some(described.fingerprint()), ..session(&disk.source) };
    place.save(&begun).unwrap();
    assert!(resumed(&client, &place, &described).await.unwrap().is_some());
    let silent = disk.order(&reference);
    assert!(resumed(&client, &place, &silent).await.unwrap().is_none());
    let done = Session { finished: Some(resolution().manifest_digest), ..begun };
    place.save(&done).unwrap();
    assert!(finished(&client, &place, &described).await.unwrap().is_some());
    assert!(finished(&client, &place, &silent).await.unwrap().is_none(), "its tags are others");
}

#[tokio::test]
async fn a_refusal_at_the_end_keeps_what_was_sent_and_a_bad_disk_does_not() {
    let (disk, reference) = (Disk::new(&[1; 2500]), reference());
    let store = Store::of(&disk.source);
    let client = serve(store.clone()).await;
    let (place, order) = (disk.place(&reference), disk.order(&reference));
    *store.refusal.lock().unwrap() = Some(StatusCode::UNAUTHORIZED);
    let refused = finish_here(&order, &client, &place).await.unwrap_err();
    assert!(matches!(refused, Error::Refused { status: 401, .. }), "{refused}");
    let kept = place.load(&disk.source).expect("the token ended, the session did not");
    assert!(order.advice(Some(&kept)).contains(&format!("upload-abort a/b {}", kept.upload)));

    *store.refusal.lock().unwrap() = None;
    store.disk_is_bad.store(true, Ordering::Relaxed);
    let failed = finish_here(&order, &client, &place).await.unwrap_err();
    assert!(failed.to_string().contains("it is no disk"), "{failed}");
    assert_eq!(place.last(), None, "nothing can be gone on with");
    assert_eq!(store.begun.lock().unwrap().len(), 1);
    assert!(store.parts.lock().unwrap().values().all(|(_, times)| *times == 1));
}

#[tokio::test]
async fn a_file_that_is_written_to_meanwhile_becomes_no_version() {
    let (disk, reference) = (Disk::new(&[1; 2500]), reference());
    let store = Store::of(&disk.source);
    let client = serve(store.clone()).await;
    let (place, order) = (disk.place(&reference), disk.order(&reference));
    *store.spoilt.lock().unwrap() = Some(disk.path().to_owned());
    let refused = finish_here(&order, &client, &place).await.unwrap_err();
    assert!(refused.to_string().contains("written to meanwhile"), "{refused}");
    assert_eq!(store.aborted.load(Ordering::Relaxed), 1);
    assert_eq!(place.last(), None);
}

#[tokio::test]
async fn a_second_call_for_one_file_and_name_is_refused() {
    let (disk, reference) = (Disk::new(b"content"), reference());
    let store = Store::of(&disk.source);
    let client = serve(store.clone()).await;
    let (place, order) = (disk.place(&reference), disk.order(&reference));
    let first = place.hold().unwrap();
    let refused = carry_out(&order, &client, &place, SCREEN).await.unwrap_err();
    assert!(refused.to_string().contains("another call"), "{refused}");
    assert!(store.begun.lock().unwrap().is_empty());
    drop(first);
}

#[tokio::test]
async fn an_upload_that_is_done_is_seen_to_be_unless_another_version_is_wanted() {
    let (disk, reference) = (Disk::new(b"content"), reference());
    let client = serve(Store::of(&disk.source)).await;
    let place = disk.place(&reference);
    let mut done = session(&disk.source);
    let is_done = async |number: Option<&str>| {
        let order = Order { number: number.map(str::to_owned), ..disk.order(&reference) };
        finished(&client, &place, &order).await.unwrap().is_some()
    };
    place.save(&done).unwrap();
    assert!(!is_done(None).await, "an upload under way is not done");
    done.finished = Some(resolution().manifest_digest);
    place.save(&done).unwrap();
    assert!(is_done(None).await && is_done(Some("7")).await);
    assert!(!is_done(Some("8")).await, "another version was asked for");
    let order = disk.order(&reference);
    assert!(resumed(&client, &place, &order).await.unwrap().is_none());
    done.finished = Some(Digest::sha256([8; 32]));
    place.save(&done).unwrap();
    assert!(!is_done(None).await, "the tag is something else by now");
}

#[tokio::test]
async fn a_new_version_gets_all_that_is_said_of_it() {
    let (disk, reference) = (Disk::new(b"content"), reference());
    let store = Store::of(&disk.source);
    let client = serve(store.clone()).await;
    let tags = [tag("stable"), tag("c")];
    let info = BuildInfo::joined(&["by=ci".parse().unwrap(), r#"{"n": 1}"#.parse().unwrap()]);
    let order = Order {
        tags: &tags,
        checksum: Some(Digest::sha256([9; 32])),
        changelog: "faster",
        build_info: info,
        format: Some(Format::Raw),
        ..disk.order(&reference)
    };
    finish_here(&order, &client, &disk.place(&reference)).await.unwrap();
    let begun = store.begun.lock().unwrap();
    let InitUpload { tags, manifest, changelog, build_info, format, version, .. } = &begun[0];
    let tags: Vec<&str> = tags.iter().map(TagName::as_str).collect();
    assert_eq!(tags, ["stable", "c"], "the reference's is among them");
    let layers = &manifest.as_ref().unwrap().layers;
    assert_eq!((layers[0].size, &layers[0].digest), (7, &Digest::sha256([9; 32])));
    assert_eq!((changelog.as_str(), format.as_deref()), ("faster", Some("raw")));
    assert_eq!(version, "1.0.0");
    let built = serde_json::to_value(build_info).unwrap();
    assert_eq!(built, serde_json::json!({ "by": "ci", "n": 1 }));
}

#[test]
fn the_tag_of_the_reference_comes_first_and_latest_by_itself() {
    let tags = |reference: &str, more: &[TagName]| {
        let tags = tags_of(&reference.parse().unwrap(), more).unwrap();
        tags.iter().map(TagName::to_string).collect::<Vec<_>>().join(" ")
    };
    let stable = [tag("stable")];
    assert_eq!(tags("a/b", &[]), "");
    assert_eq!(tags("a/b", &stable), "stable");
    assert_eq!(tags("a/b:v1", &stable), "v1 stable");
    assert_eq!(tags("a/b:v1", &[tag("latest")]), "v1 latest");
}

#[tokio::test]
async fn an_upload_to_a_digest_is_refused_before_anything_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let line = format!("shoal image upload f a/b@sha256:{}", "0".repeat(64));
    let Command::Image(ImageCommand::Upload(arguments)) =
        Arguments::try_parse_from(line.split(' ')).unwrap().command
    else {
        panic!("not an upload")
    };
    let client = serve(Arc::default()).await;
    let config = Config::load(Some(folder.path().join("config.toml")), None).unwrap();
    let refused = upload(&arguments, &client, &config, SCREEN).await.unwrap_err();
    assert!(matches!(refused, Error::Usage(_)), "{refused}");
}

#[test]
fn only_what_is_missing_is_sent_and_the_last_part_is_short() {
    let status = status(4, &[2, 0], 10, 35);
    assert_eq!(missing(&status), [1, 3]);
    assert_eq!(part_range(1, &status), (10, 10));
    assert_eq!(part_range(3, &status), (30, 5));
}

#[test]
fn what_is_read_first_goes_first_and_nothing_goes_twice() {
    let status = status(6, &[2], 10, 55);
    assert_eq!(in_turn(missing(&status), &[0, 5, 2, 0, 3, 7]), [0, 5, 3, 1, 4]);
    assert_eq!(in_turn(missing(&status), &[]), [0, 1, 3, 4, 5]);
    assert!(in_turn(Vec::new(), &[1]).is_empty());
}

#[test]
fn the_next_version_counts_on() {
    assert_eq!(next_version(None), "1.0.0");
    assert_eq!(next_version(Some("1.0.9")), "1.0.10");
    assert_eq!(next_version(Some("7")), "8");
    assert_eq!(next_version(Some("stable")), "stable.1");
    let tags = ["v1.0.1", "1.0.2", "stable"].map(|tag| tag.parse::<TagName>().unwrap());
    assert_eq!(next_free(Some("1.0.0"), &tags, &[]), "1.0.3", "those are tags of others");
    assert_eq!(next_free(Some("1.0.0"), &tags, &tags[..1]), "1.0.1", "and this moves along");
}
