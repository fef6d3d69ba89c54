//! Uploads to a small real HTTP server that keeps parts, and is full for a while.

use std::collections::BTreeMap;
use std::sync::Mutex;

use axum::extract::Path as Segment;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use clap::Parser;

use super::*;
use crate::arguments::{Arguments, Command, ImageCommand};
use crate::config::{Context, Trust};

const SCREEN: Screen = Screen { json: true };
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

/// The parts that arrived, how often each was sent, and whether there is room for odd ones.
#[derive(Default)]
struct Store {
    parts: Mutex<BTreeMap<u32, (Bytes, u32)>>,
    has_room: std::sync::atomic::AtomicBool,
    image_is_gone: std::sync::atomic::AtomicBool,
    is_refused: bool,
    bytes: u64,
}

impl Store {
    fn status(&self) -> UploadStatus {
        let received: Vec<u32> = self.parts.lock().unwrap().keys().copied().collect();
        let mut status =
            status(self.bytes.div_ceil(PART_BYTES) as u32, &received, PART_BYTES, self.bytes);
        if self.is_refused {
            status.status = "failed".into();
            status.failure = Some("disk_truncated: the image ends".into());
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
        let mut parts = self.parts.lock().unwrap();
        parts.entry(index).or_insert((part, 0)).1 += 1;
        StatusCode::OK
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
        manifest_digest: shoal_content::Digest::sha256([7; 32]),
        media_type: String::new(),
        tag: None,
        status: "active".into(),
        deprecation: None,
        disk: None,
    }
}

async fn serve(store: Arc<Store>) -> Client {
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    let (shown, kept, ended, image) = (store.clone(), store.clone(), store.clone(), store);
    let image = move || async move {
        match image.image_is_gone.load(Ordering::Relaxed) {
            true => StatusCode::NOT_FOUND,
            false => StatusCode::OK,
        }
    };
    let resolved = || async { Json(resolution()) };
    let begun = || async {
        Json(serde_json::json!({
            "upload_id": shoal_content::UploadId::from_uuid(Default::default()),
            "total_chunks": 1, "chunk_size": PART_BYTES, "expires_at": "",
        }))
    };
    let show = move || async move { Json(shown.status()) };
    let take = move |Segment((_, _, index)): Segment<(String, String, u32)>,
                     headers: HeaderMap,
                     part: Bytes| async move { kept.take(index, &headers, part) };
    let end = move || async move {
        if ended.is_refused {
            let problem = serde_json::json!({ "code": "disk_truncated", "message": "it ends" });
            return Err((StatusCode::UNPROCESSABLE_ENTITY, Json(problem)));
        }
        let done = UploadStatus { status: "active".into(), ..ended.status() };
        Ok(Json(UploadStatus { version: Some("7".into()), ..done }))
    };
    let session = "/api/v1/images/{image}/versions/upload/{upload}";
    let router = Router::new()
        .route("/api/v1/images/{image}/versions/upload/init", post(begun))
        .route("/api/v1/images/{image}", get(image))
        .route("/api/v1/resolve", get(resolved))
        .route(session, get(show))
        .route(&format!("{session}/chunks/{{index}}"), put(take))
        .route(&format!("{session}/complete"), post(end));
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

fn session(source: Source) -> Session {
    Session {
        source,
        image: shoal_content::ImageId::from_uuid(Default::default()),
        upload: shoal_content::UploadId::from_uuid(Default::default()),
        version: "7".into(),
        finished: None,
    }
}

#[tokio::test]
async fn goes_on_with_the_missing_parts_and_sends_none_twice() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let content: Vec<u8> = (0..6_500_u32).map(|number| (number % 241) as u8).collect();
    std::fs::write(&path, &content).unwrap();
    let source = Source::look(&path).unwrap();
    let store = Arc::new(Store { bytes: source.bytes, ..Default::default() });
    let client = serve(store.clone()).await;
    let reference: ImageReference = "a/b:c".parse().unwrap();
    let place = Place::of(folder.path(), "cluster", &source, &reference);
    assert!(resumed(&client, &place, &source).await.unwrap().is_none(), "nothing was begun yet");
    place.save(&session(source.clone())).unwrap();

    let (found, there) = resumed(&client, &place, &source).await.unwrap().unwrap();
    let file = Arc::new(File::open(&path).unwrap());
    let from = Content::File(file);
    let sender = Sender { client: &client, content: from, session: found, screen: SCREEN };
    let refused = sender.send_missing(&there, 1).await.unwrap_err();
    assert!(matches!(refused, Error::Refused { status: 507, .. }), "{refused}");

    store.has_room.store(true, Ordering::Relaxed);
    let (_, there) = resumed(&client, &place, &source).await.unwrap().unwrap();
    assert_eq!(there.received_chunks, [0], "the part before the refusal is safe");
    sender.send_missing(&there, 3).await.unwrap();
    assert_eq!(sender.complete().await.unwrap().version.as_deref(), Some("7"));

    let parts = store.parts.lock().unwrap();
    let whole: Vec<u8> = parts.values().flat_map(|(part, _)| part.to_vec()).collect();
    assert_eq!(whole, content);
    assert!(parts.values().all(|(_, times)| *times == 1), "a part came twice");
}

#[tokio::test]
async fn a_disk_that_is_refused_at_once_ends_in_the_words_of_its_session() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    std::fs::write(&path, b"content").unwrap();
    let source = Source::look(&path).unwrap();
    let store = Store { bytes: source.bytes, is_refused: true, ..Default::default() };
    let client = serve(Arc::new(store)).await;
    let content = Content::File(Arc::new(File::open(&path).unwrap()));
    let sender = Sender { client: &client, content, session: session(source), screen: SCREEN };
    let failed = sender.complete().await.unwrap_err();
    let words = "reading the disk failed: disk_truncated: the image ends";
    assert_eq!((failed.code(), failed.to_string().as_str()), ("failed", words));
}

#[tokio::test]
async fn a_session_that_is_gone_is_begun_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    std::fs::write(&path, b"content").unwrap();
    let source = Source::look(&path).unwrap();
    // The node knows a session of another length: not ours.
    let client = serve(Arc::new(Store { bytes: 9, ..Default::default() })).await;
    let place = Place::of(folder.path(), "cluster", &source, &"a/b:c".parse().unwrap());
    place.save(&session(source.clone())).unwrap();
    assert!(resumed(&client, &place, &source).await.unwrap().is_none());
}

#[tokio::test]
async fn a_session_whose_image_is_gone_is_begun_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    std::fs::write(&path, b"content").unwrap();
    let source = Source::look(&path).unwrap();
    let store = Arc::new(Store { bytes: source.bytes, ..Default::default() });
    let client = serve(store.clone()).await;
    let place = Place::of(folder.path(), "cluster", &source, &"a/b:c".parse().unwrap());
    place.save(&session(source.clone())).unwrap();
    assert!(resumed(&client, &place, &source).await.unwrap().is_some());
    store.image_is_gone.store(true, Ordering::Relaxed);
    assert!(resumed(&client, &place, &source).await.unwrap().is_none());
}

#[tokio::test]
async fn an_upload_that_is_done_is_seen_to_be_unless_another_version_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    std::fs::write(&path, b"content").unwrap();
    let source = Source::look(&path).unwrap();
    let client = serve(Arc::new(Store { bytes: source.bytes, ..Default::default() })).await;
    let place = Place::of(folder.path(), "cluster", &source, &"a/b:c".parse().unwrap());
    let asked = |more: &str| {
        let line = format!("shoal image upload f a/b:c{more}");
        let command = Arguments::try_parse_from(line.split(' ')).unwrap().command;
        let Command::Image(ImageCommand::Upload(arguments)) = command else {
            panic!("not an upload")
        };
        arguments
    };
    let mut done = session(source.clone());
    let is_done = async |more: &str| {
        let Upload { reference, number, .. } = asked(more);
        let found = finished(&client, &place, &source, &reference, number.as_deref()).await;
        found.unwrap().is_some()
    };
    place.save(&done).unwrap();
    assert!(!is_done("").await, "an upload under way is not done");
    done.finished = Some(resolution().manifest_digest);
    place.save(&done).unwrap();
    assert!(is_done("").await && is_done(" --version 7").await);
    assert!(!is_done(" --version 8").await, "another version was asked for");
    assert!(resumed(&client, &place, &source).await.unwrap().is_none());
    done.finished = Some(shoal_content::Digest::sha256([8; 32]));
    place.save(&done).unwrap();
    assert!(!is_done("").await, "the tag is something else by now");
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
fn the_next_version_counts_on() {
    assert_eq!(next_version(None), "1.0.0");
    assert_eq!(next_version(Some("1.0.9")), "1.0.10");
    assert_eq!(next_version(Some("7")), "8");
    assert_eq!(next_version(Some("stable")), "stable.1");
}
