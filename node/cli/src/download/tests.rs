//! Downloads from a small real HTTP server that knows ranges, breaks off, and changes its mind.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use axum::Router;
use axum::body::Body;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response as Answer};
use axum::routing::get;
use bytes::Bytes;

use super::*;
use crate::config::{Context, Trust};

const SCREEN: Screen = Screen { json: true, quiet: false };

/// One file, with what was asked of it.
#[derive(Default)]
struct Origin {
    content: Vec<u8>,
    etag: String,
    /// The first answer breaks off after so many bytes.
    break_after: usize,
    requests: AtomicU32,
    sent: AtomicU64,
}

impl Origin {
    fn answer(&self, headers: &HeaderMap) -> Answer {
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let start = text(RANGE)
            .filter(|_| text(IF_RANGE) == Some(&self.etag))
            .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        let all = self.content.len();
        let rest = Bytes::copy_from_slice(&self.content[start.unwrap_or(0)..]);
        let first = self.requests.fetch_add(1, Ordering::Relaxed) == 0;
        let breaks = first && self.break_after > 0;
        let sent = if breaks { rest.slice(..self.break_after) } else { rest.clone() };
        self.sent.fetch_add(sent.len() as u64, Ordering::Relaxed);
        let pieces: Vec<Result<Bytes, std::io::Error>> = if breaks {
            vec![Ok(sent), Err(std::io::Error::other("cable cut"))]
        } else {
            vec![Ok(sent)]
        };
        let mut answer =
            Answer::builder().header(ETAG, &self.etag).header(CONTENT_LENGTH, rest.len());
        if let Some(start) = start {
            let range = format!("bytes {start}-{}/{all}", all - 1);
            answer = answer.status(206).header(CONTENT_RANGE, range);
        }
        answer.body(Body::from_stream(futures::stream::iter(pieces))).unwrap().into_response()
    }
}

async fn serve(origin: Arc<Origin>) -> Client {
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    let answer = move |headers: HeaderMap| async move { origin.answer(&headers) };
    let router = Router::new().route("/disk", get(answer));
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

fn content() -> Vec<u8> {
    (0..3_000_000_u32).map(|number| (number % 251) as u8).collect()
}

fn digest_etag(content: &[u8]) -> String {
    format!("\"sha256:{}\"", hex::encode(Sha256::digest(content)))
}

#[tokio::test]
async fn goes_on_after_the_connection_broke_and_gets_no_byte_twice() {
    let content = content();
    let origin = Arc::new(Origin {
        etag: digest_etag(&content),
        content: content.clone(),
        break_after: 1_000_000,
        ..Default::default()
    });
    let client = serve(origin.clone()).await;
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("disk.raw");
    let whole = content.len() as u64;
    assert_eq!(fetch(&client, "disk", &output, SCREEN).await.unwrap(), (whole, whole));
    assert_eq!(fs::read(&output).unwrap(), content);
    assert_eq!(origin.requests.load(Ordering::Relaxed), 2);
    let again = origin.sent.load(Ordering::Relaxed) - content.len() as u64;
    assert!(again < 1_000_000, "{again} bytes came twice, though some had arrived");
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "only the file is left");
}

#[tokio::test]
async fn goes_on_with_what_an_earlier_call_left() {
    let content = content();
    let origin = Arc::new(Origin { etag: digest_etag(&content), content, ..Default::default() });
    let client = serve(origin.clone()).await;
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("disk.raw");
    fs::write(folder.path().join("disk.raw.part"), &origin.content[..2_000_000]).unwrap();
    fs::write(folder.path().join("disk.raw.part.etag"), &origin.etag).unwrap();
    let ends = fetch(&client, "disk", &output, SCREEN).await.unwrap();
    assert_eq!(ends, (3_000_000, 1_000_000), "its length, and what came now");
    assert_eq!(fs::read(&output).unwrap(), origin.content);
    assert_eq!(origin.sent.load(Ordering::Relaxed), 1_000_000);
}

#[tokio::test]
async fn starts_anew_when_the_content_is_another_by_now() {
    let content = content();
    let origin = Arc::new(Origin { etag: digest_etag(&content), content, ..Default::default() });
    let client = serve(origin.clone()).await;
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("disk.raw");
    fs::write(folder.path().join("disk.raw.part"), b"of another version").unwrap();
    fs::write(folder.path().join("disk.raw.part.etag"), "\"old\"").unwrap();
    fetch(&client, "disk", &output, SCREEN).await.unwrap();
    assert_eq!(fs::read(&output).unwrap(), origin.content);
}

#[tokio::test]
async fn wrong_bytes_never_get_the_files_name() {
    let origin = Arc::new(Origin {
        etag: digest_etag(b"something else"),
        content: content(),
        ..Default::default()
    });
    let client = serve(origin).await;
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("disk.raw");
    let refused = fetch(&client, "disk", &output, SCREEN).await.unwrap_err();
    assert!(refused.to_string().contains("SHA-256"), "{refused}");
    assert!(!output.exists());
}

#[tokio::test]
async fn two_calls_do_not_write_one_file() {
    let content = content();
    let origin = Arc::new(Origin { etag: digest_etag(&content), content, ..Default::default() });
    let client = serve(origin.clone()).await;
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("disk.raw");
    let other = Part::open(&output).unwrap();
    let refused = fetch(&client, "disk", &output, SCREEN).await.unwrap_err();
    assert!(refused.to_string().contains("another call"), "{refused}");
    assert_eq!(origin.requests.load(Ordering::Relaxed), 0);
    drop(other);
    fetch(&client, "disk", &output, SCREEN).await.unwrap();
    assert_eq!(fs::read(&output).unwrap(), origin.content);
}

#[test]
fn a_name_for_the_file_follows_from_the_image() {
    let name = |text: &str| default_output(&text.parse().unwrap(), "qcow2");
    assert_eq!(name("zedge/win10:v1"), PathBuf::from("win10-v1.qcow2"));
    assert_eq!(name("win10"), PathBuf::from("win10-latest.qcow2"));
}

#[test]
fn a_folder_takes_the_file_under_its_own_name_and_is_never_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let named = || PathBuf::from("disk-v1.qcow2");
    let inside = folder.path().join("disk-v1.qcow2");
    assert_eq!(placed(Some(folder.path()), named()).unwrap(), inside);
    assert_eq!(placed(Some(&inside), named()).unwrap(), inside);
    assert_eq!(placed(None, named()).unwrap(), named());
    fs::create_dir(&inside).unwrap();
    assert!(matches!(placed(Some(folder.path()), named()), Err(Error::Usage(_))));
}
