//! Disks that nodes get from elsewhere: over redirects, breaks and changes, and never from where
//! they must not go.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, ensure};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use reqwest::Method;
use serde_json::{Value, json};
use shoal_api::{UploadStatus, VersionDetail};
use shoal_content::ImageId;

use super::disks::{create_image, download};
use super::node::{Node, problem};
use super::v2::{sha256, sha512};
use super::wait::until;

/// Bytes after which the flaky address breaks off the first times: in the second part.
const BREAK_AT: usize = 20_000_000;

struct Shelf {
    file: Bytes,
    asked: AtomicU32,
}

/// The file, or its end, under an entity tag.
fn answer(shelf: &Shelf, headers: &HeaderMap, tag: &str, most: usize) -> Response {
    let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let from = range.and_then(|text| text.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let (from, length): (usize, usize) = (from.unwrap_or(0), shelf.file.len());
    let status = if from > 0 { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let body = shelf.file.slice(from..length);
    let whole = body.len();
    let pieces: Vec<Result<Bytes, std::io::Error>> = if whole > most {
        vec![Ok(body.slice(..most)), Err(std::io::ErrorKind::ConnectionReset.into())]
    } else {
        vec![Ok(body)]
    };
    Response::builder()
        .status(status)
        .header(header::ETAG, tag)
        .header(header::CONTENT_LENGTH, whole)
        .header(header::CONTENT_RANGE, format!("bytes {from}-{}/{length}", length - 1))
        .body(Body::from_stream(futures::stream::iter(pieces)))
        .unwrap_or_default()
}

/// Breaks off in the second part until it was asked four times.
async fn flaky(State(shelf): State<Arc<Shelf>>, headers: HeaderMap) -> Response {
    let asked = shelf.asked.fetch_add(1, Ordering::Relaxed);
    // The first one is only asked how long the file is.
    let most = if asked < 4 { BREAK_AT } else { usize::MAX };
    answer(&shelf, &headers, "\"a\"", most)
}

/// Another file each time.
async fn changing(State(shelf): State<Arc<Shelf>>, headers: HeaderMap) -> Response {
    let asked = shelf.asked.fetch_add(1, Ordering::Relaxed);
    answer(&shelf, &headers, &format!("\"{asked}\""), usize::MAX)
}

/// Says nothing of which file it is: at first another one, which breaks off in the second part.
async fn unnamed(State(shelf): State<Arc<Shelf>>, headers: HeaderMap) -> Response {
    let asked = shelf.asked.fetch_add(1, Ordering::Relaxed);
    let other = Shelf { file: vec![7; shelf.file.len()].into(), asked: AtomicU32::new(0) };
    let mut response = match asked {
        0 | 1 => answer(&other, &headers, "", BREAK_AT),
        _ => answer(&shelf, &headers, "", usize::MAX),
    };
    response.headers_mut().remove(header::ETAG);
    response
}

async fn serve(file: Vec<u8>) -> Result<SocketAddr> {
    let shelf = Arc::new(Shelf { file: file.into(), asked: AtomicU32::new(0) });
    let endless = || async {
        let pieces = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from("x")));
        Body::from_stream(pieces).into_response()
    };
    let router = Router::new()
        .route("/disk.raw", get(flaky))
        .route("/changing", get(changing))
        .route("/unnamed", get(unnamed))
        .route("/endless", get(endless))
        .route("/moved", get(|| async { Redirect::temporary("/disk.raw") }))
        .route("/round", get(|| async { Redirect::temporary("/round") }))
        .route("/inside", get(|| async { Redirect::temporary("http://127.0.0.2:9/secret") }))
        .route("/elsewhere", get(|| async { Redirect::temporary("http://example.com/x") }))
        .with_state(shelf);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(address)
}

async fn order(node: &Node, image: ImageId, request: &Value) -> Result<reqwest::Response> {
    let path = format!("images/{image}/versions/import");
    Ok(node.request(Method::POST, &path).json(request).send().await?)
}

async fn ended(node: &Node, image: ImageId, request: &Value) -> Result<UploadStatus> {
    let answer = order(node, image, request).await?;
    ensure!(answer.status() == 202, "{}: {}", answer.status(), answer.text().await?);
    let begun: UploadStatus = answer.json().await?;
    let path = format!("images/{image}/versions/upload/{}", begun.upload_id);
    until("the import to end", async || {
        let status: UploadStatus = node.get(&path).await?;
        Ok(matches!(status.status.as_str(), "active" | "failed").then_some(status))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_comes_whole_though_its_server_moves_it_and_breaks_off() -> Result<()> {
    let node = Node::start_with(|config| {
        config.import.allowed_hosts = vec!["127.0.0.1".to_owned()];
        config.import.allowed_networks = vec!["127.0.0.1/32".parse().expect("a network")];
        config.import.max_bytes = 100_000_000;
    })
    .await?;
    let image = create_image(&node, "zedge/vm").await?;
    // Three parts; most of it is the same again and again, so that it is quick to store.
    let file: Vec<u8> = (0..35_000_320usize).map(|at| (at / 5_000_000) as u8).collect();
    let sum = sha256(&file);
    let address = serve(file.clone()).await?;
    let url = |path: &str| format!("http://{address}/{path}");
    // As lists of checksums have it.
    let digits = sum["sha256:".len()..].to_uppercase();
    let request = json!({
        "version": "1.0.0", "url": format!("{}?secret=1", url("moved")), "checksum": digits,
        "tags": ["stable"], "changelog": "from elsewhere", "format": "raw",
    });
    let status = ended(&node, image, &request).await?;
    ensure!(status.status == "active", "{status:?}");
    ensure!(status.import_url.as_deref() == Some(url("moved").as_str()), "{status:?}");
    let back = download(&node, image, "stable", "raw").await?;
    ensure!(back == file, "{} bytes came back", back.len());
    let detail: VersionDetail = node.get(&format!("images/{image}/versions/1.0.0")).await?;
    ensure!(detail.version.changelog == "from elsewhere" && detail.version.is_latest);

    let trail: Value = node.get("audit?action=image.import").await?;
    let trail = trail.to_string();
    ensure!(trail.contains("zedge/vm:1.0.0") && !trail.contains("secret"), "{trail}");

    let wrong = json!({ "version": "2", "url": url("disk.raw"), "checksum": sha256(b"other") });
    let status = ended(&node, image, &wrong).await?;
    let failure = status.failure.unwrap_or_default();
    ensure!(status.status == "failed" && failure.starts_with("checksum_mismatch"), "{failure}");
    // As Debian publishes them.
    for (version, sum, wanted) in
        [("1.0.1", sha512(&file), "active"), ("1.0.2", sha512(b"other"), "failed")]
    {
        let request = json!({
            "version": version, "url": url("disk.raw"), "checksum": sum, "format": "raw",
        });
        let status = ended(&node, image, &request).await?;
        ensure!(status.status == wanted, "{sum}: {status:?}");
        let failure = status.failure.unwrap_or_default();
        ensure!(failure.is_empty() || failure.starts_with("checksum_mismatch"), "{failure}");
    }
    let changed = json!({ "version": "3", "url": url("changing"), "checksum": sum });
    let status = ended(&node, image, &changed).await?;
    let failure = status.failure.unwrap_or_default();
    ensure!(status.status == "failed" && failure.contains("another one"), "{failure}");

    // Of a file that has no name there is no second half: it is got anew.
    let address = serve(file.clone()).await?;
    let unnamed = format!("http://{address}/unnamed");
    let unnamed = json!({ "version": "4", "url": unnamed, "checksum": sum, "format": "raw" });
    let status = ended(&node, image, &unnamed).await?;
    ensure!(status.status == "active", "{status:?}");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_got_from_where_a_node_must_not_go() -> Result<()> {
    let closed = Node::start().await?;
    let image = create_image(&closed, "zedge/vm").await?;
    let any = json!({ "version": "1", "url": "https://images.example/f" });
    let refused = order(&closed, image, &any).await?;
    ensure!(problem(refused, StatusCode::FORBIDDEN).await?.code == "import_disabled");
    closed.server.stop().await?;

    let node = Node::start_with(|config| {
        config.import.allowed_hosts =
            ["127.0.0.1", "127.0.0.2", "localhost", "::1"].map(str::to_owned).into();
        config.import.allowed_networks = vec!["127.0.0.1/32".parse().expect("a network")];
        config.import.max_bytes = 1000;
    })
    .await?;
    let image = create_image(&node, "zedge/vm").await?;
    let address = serve(vec![1; 5000]).await?;
    let at = |path: &str| format!("http://{address}/{path}");
    let sum = sha256(b"x");
    for (url, status, code) in [
        (at("disk.raw"), 413, "import_too_long"),
        (at("endless"), 502, "import_unreachable"),
        (at("missing"), 502, "import_unreachable"),
        (at("round"), 502, "import_unreachable"),
        // On the list, but no address to be asked; and reached over a redirect all the same.
        ("http://127.0.0.2:9/".to_owned(), 403, "import_not_allowed"),
        ("http://[::1]:9/".to_owned(), 403, "import_not_allowed"),
        (at("inside"), 403, "import_not_allowed"),
        (at("elsewhere"), 403, "import_not_allowed"),
        ("https://images.example/f".to_owned(), 403, "import_not_allowed"),
        ("file:///etc/passwd".to_owned(), 400, "url_invalid"),
        (format!("http://user:pass@{address}/"), 400, "url_invalid"),
    ] {
        let request = json!({ "version": "1", "url": url, "checksum": sum });
        let refused = order(&node, image, &request).await?;
        let found = problem(refused, StatusCode::from_u16(status)?).await?;
        ensure!(found.code == code, "{url}: {found:?}");
    }
    let open = json!({ "version": "1", "url": at("disk.raw") });
    let open = problem(order(&node, image, &open).await?, StatusCode::BAD_REQUEST).await?;
    ensure!(open.code == "checksum_missing", "{open:?}");
    // Nothing was begun.
    let storage: Value = node.get("storage/uploads").await?;
    ensure!(storage.as_array().is_some_and(Vec::is_empty), "{storage}");
    node.server.stop().await
}
