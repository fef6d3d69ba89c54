//! An upload that is stopped by Ctrl-C, and the same command again, as people meet it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{Path as Segment, State};
use axum::http::StatusCode;
use axum::routing::{get, post, put};
use axum::{Json, Router};
use serde_json::{Value, json};

const PART_BYTES: usize = 1 << 20;
const PARTS: usize = 3;
const DEADLINE: Duration = Duration::from_secs(60);
const IMAGE: &str = "img-00000000000000000000000000000000";
const UPLOAD: &str = "upload-00000000000000000000000000000000";

/// How often each part came. While it is held up, only the first one is taken.
#[derive(Default)]
struct Node {
    parts: Mutex<BTreeMap<u32, u32>>,
    is_held_up: AtomicBool,
}

type Shared = State<Arc<Node>>;

fn status(node: &Node, state: &str) -> Json<Value> {
    let received: Vec<u32> = node.parts.lock().unwrap().keys().copied().collect();
    Json(json!({
        "upload_id": UPLOAD, "status": state, "total_chunks": PARTS, "received_chunks": received,
        "chunk_size": PART_BYTES, "total_size_bytes": PARTS * PART_BYTES, "version": "1.0.0",
        "manifest_digest": format!("sha256:{}", "7".repeat(64)), "expires_at": "",
    }))
}

async fn images() -> Json<Value> {
    let image = json!({
        "id": IMAGE, "name": "a/b", "kind": "disk", "display_name": "", "description": "",
        "image_type": "", "os_type": "", "os_version": "", "architecture": "", "format": "",
        "visibility": "private", "total_size_bytes": 0, "status": "pending",
        "latest_version": null, "tags": [], "labels": {}, "owner": "u", "created_at": "",
        "updated_at": "",
    });
    let pages = json!({ "page": 1, "page_size": 500, "total_pages": 1, "total_count": 1 });
    Json(json!({ "data": [image], "pagination": pages }))
}

async fn begin() -> Json<Value> {
    Json(json!({
        "upload_id": UPLOAD, "total_chunks": PARTS, "chunk_size": PART_BYTES, "expires_at": "",
    }))
}

async fn take(
    State(node): Shared,
    Segment((_, part)): Segment<(String, u32)>,
    body: Bytes,
) -> StatusCode {
    if part > 0 && node.is_held_up.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
    if body.len() != PART_BYTES {
        return StatusCode::BAD_REQUEST;
    }
    *node.parts.lock().unwrap().entry(part).or_default() += 1;
    StatusCode::OK
}

async fn serve(node: Arc<Node>) -> String {
    let session = format!("/api/v1/images/{{image}}/versions/upload/{UPLOAD}");
    let show = |State(node): Shared| async move { status(&node, "receiving") };
    let complete = |State(node): Shared| async move { status(&node, "active") };
    let router = Router::new()
        .route("/api/v1/images", get(images))
        .route("/api/v1/images/{image}", get(|| async { StatusCode::OK }))
        .route("/api/v1/images/{image}/versions/upload/init", post(begin))
        .route(&session, get(show))
        .route(&format!("{session}/chunks/{{part}}"), put(take))
        .route(&format!("{session}/complete"), post(complete))
        .with_state(node);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

/// `shoal image upload`, logged in to `url`.
fn upload(folder: &Path, url: &str) -> Command {
    let config = folder.join("config.toml");
    let context = format!(
        "current = 'lab'\n[contexts.lab]\nurl = '{url}'\nusername = 'u'\ntoken = 't'\n\
         token_expires_at = ''\n"
    );
    fs::write(&config, context).unwrap();
    fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
    command.arg("--config").arg(config).args(["image", "upload"]).arg(folder.join("disk"));
    command.args(["a/b:v1", "--format", "raw", "--parallel", "1"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

async fn ended(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ctrl_c_stopped_goes_on_with_the_same_command() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("disk"), vec![5_u8; PARTS * PART_BYTES]).unwrap();
    let node = Arc::new(Node::default());
    node.is_held_up.store(true, Ordering::Relaxed);
    let url = serve(node.clone()).await;

    let stopped = upload(folder.path(), &url).spawn().unwrap();
    let begun = Instant::now();
    while node.parts.lock().unwrap().is_empty() {
        assert!(begun.elapsed() < DEADLINE, "no part came");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let second = ended(upload(folder.path(), &url)).await;
    assert_eq!(second.status.code(), Some(1), "{second:?}");
    assert!(text(&second.stderr).contains("another call"), "{second:?}");

    let kill = format!("kill -INT {}", stopped.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    let waited = tokio::task::spawn_blocking(move || stopped.wait_with_output());
    let stopped = waited.await.unwrap().unwrap();
    assert_eq!(stopped.status.code(), Some(130), "{stopped:?}");
    let said = text(&stopped.stderr);
    assert!(said.contains("the same command again sends only what is missing"), "{said}");
    assert!(said.contains(&format!("image upload-abort a/b {UPLOAD}")), "{said}");

    node.is_held_up.store(false, Ordering::Relaxed);
    let done = ended(upload(folder.path(), &url)).await;
    assert!(done.status.success(), "{done:?}");
    let said = text(&done.stderr);
    assert!(said.contains("1 of 3 parts (1.00 MiB of 3.00 MiB) are there"), "{said}");
    let said = text(&done.stdout);
    assert!(said.contains("Sent 2.00 MiB in "), "{said}");
    assert!(said.contains("1.00 MiB were there from an earlier call"), "{said}");
    let parts = node.parts.lock().unwrap();
    assert_eq!(*parts, BTreeMap::from([(0, 1), (1, 1), (2, 1)]), "a part came twice");
}
