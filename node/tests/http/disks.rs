//! Disks: uploaded in parts, stored as chunks, downloaded in any format.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use reqwest::{Method, StatusCode, header};
use serde_json::json;
use sha2::{Digest, Sha256};
use shoal_api::{ChunkReceived, Image, ImageDetail, Page, Resolution, UploadStarted, UploadStatus};
use shoal_content::{ImageId, ObjectKey, UploadId};
use shoal_metadata::KeyOwner;

use super::document::contract::answered;
use super::node::{Node, problem, read, run};
use super::wait::until;

const MIB: usize = 1 << 20;

/// A real file system in a real qcow2, with `seed` deciding about half of its content.
pub fn make_disk(folder: &Path, name: &str, seed: u8) -> Result<PathBuf> {
    let content = folder.join(format!("{name}-content"));
    std::fs::create_dir_all(content.join("etc"))?;
    std::fs::write(content.join("etc/hostname"), name)?;
    let mut shared = vec![0; 6 * MIB];
    fill(&mut shared, 1);
    std::fs::write(content.join("shared"), &shared)?;
    let mut own = vec![0; 3 * MIB];
    fill(&mut own, seed);
    std::fs::write(content.join("own"), &own)?;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let (raw, qcow2) = (folder.join(format!("{name}.raw")), folder.join(format!("{name}.qcow2")));
    let (content, raw_text, qcow2_text) = (text(&content), text(&raw), text(&qcow2));
    run("truncate", &["-s", "48M", &raw_text])?;
    // The same file system each time: ids and times are given.
    let uuid = "11111111-2222-3333-4444-555555555555";
    let hash = format!("hash_seed={uuid}");
    run("mke2fs", &["-q", "-F", "-t", "ext4", "-U", uuid, "-E", &hash, "-d", &content, &raw_text])?;
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &raw_text, &qcow2_text])?;
    Ok(qcow2)
}

/// Bytes that do not compress: xorshift64.
pub fn fill(bytes: &mut [u8], seed: u8) {
    let mut state = 0x9e37_79b9_7f4a_7c15 ^ (u64::from(seed) << 32 | 1);
    for byte in bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state as u8;
    }
}

pub fn checksum(part: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(part)))
}

pub async fn create_image(node: &Node, name: &str) -> Result<ImageId> {
    let image: Image = node.call(Method::POST, "images", &json!({ "name": name })).await?;
    Ok(image.id)
}

pub struct Session {
    pub path: String,
    pub parts: Vec<Vec<u8>>,
}

pub async fn begin(node: &Node, image: ImageId, file: &Path, version: &str) -> Result<Session> {
    begin_saying(node, image, file, version, &[]).await
}

/// By turns how many clusters have no content, and how many have some, is said of it.
pub async fn begin_saying(
    node: &Node,
    image: ImageId,
    file: &Path,
    version: &str,
    clusters: &[u32],
) -> Result<Session> {
    let bytes = std::fs::read(file)?;
    let wanted = json!({
        "version": version, "total_size_bytes": bytes.len(), "chunk_size_bytes": MIB, "tags": ["test"],
        "content_clusters": clusters,
    });
    let path = format!("images/{image}/versions/upload");
    let started: UploadStarted = node.call(Method::POST, &format!("{path}/init"), &wanted).await?;
    let parts: Vec<Vec<u8>> =
        bytes.chunks(started.chunk_size as usize).map(<[u8]>::to_vec).collect();
    ensure!(parts.len() == started.total_chunks as usize);
    let upload: UploadId = started.upload_id;
    Ok(Session { path: format!("{path}/{upload}"), parts })
}

pub async fn put(node: &Node, session: &Session, index: usize) -> Result<ChunkReceived> {
    let part = &session.parts[index];
    let request = node
        .request(Method::PUT, &format!("{}/chunks/{index}", session.path))
        .header("x-shoal-checksum", checksum(part))
        .body(part.clone());
    read(request.send().await?).await
}

/// Completes, and polls until the disk was read, or was found to be none.
pub async fn finish(node: &Node, session: &Session) -> Result<UploadStatus> {
    let path = format!("{}/complete", session.path);
    let answer = node.request(Method::POST, &path).send().await?;
    let (answer, body) = answered("POST", &format!("/api/v1/{path}"), None, answer).await?;
    let ended = until("the disk to be read", async || {
        let status: UploadStatus = node.get(&session.path).await?;
        Ok((status.status != "processing").then_some(status))
    })
    .await?;
    let agrees = answer.is_success() || ended.status == "failed";
    ensure!(agrees, "{answer}: {}", String::from_utf8_lossy(&body));
    Ok(ended)
}

pub async fn upload(
    node: &Node,
    image: ImageId,
    file: &Path,
    version: &str,
) -> Result<UploadStatus> {
    let session = begin(node, image, file, version).await?;
    // In parallel, from the end: order is the client's affair.
    let sent = (0..session.parts.len()).rev().map(|index| put(node, &session, index));
    futures::future::try_join_all(sent).await?;
    finish(node, &session).await
}

pub async fn download(node: &Node, image: ImageId, version: &str, format: &str) -> Result<Vec<u8>> {
    let path = format!("images/{image}/versions/{version}/download?format={format}");
    let response = node.request(Method::GET, &path).send().await?.error_for_status()?;
    let length = response.content_length().context("a download without a length")?;
    let bytes = response.bytes().await?;
    ensure!(bytes.len() as u64 == length);
    Ok(bytes.into())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_comes_back_as_it_was_in_every_format() -> Result<()> {
    let node = Node::start().await?;
    let file = make_disk(node.path(), "one", 2)?;
    let image = create_image(&node, "zedge/one").await?;
    let status = upload(&node, image, &file, "1.0.0").await?;
    ensure!(status.status == "active", "{status:?}");

    let names = ["1.0.0", "latest", "test"].map(str::to_owned);
    let id = status.version_id.context("no version id")?.to_string();
    let digest = status.manifest_digest.context("no digest")?.to_string();
    let source = file.to_string_lossy().into_owned();
    for format in ["qcow2", "raw", "vmdk", "vmdk-stream", "vhd", "vhd-fixed", "vhdx", "ova"] {
        let first = download(&node, image, &id, format).await?;
        for name in names.iter().chain([&digest]) {
            ensure!(download(&node, image, name, format).await? == first, "{name} as {format}");
        }
        let output = node.path().join(format!("back.{format}"));
        std::fs::write(&output, &first)?;
        let mut output = output.to_string_lossy().into_owned();
        let driver = match format {
            "vhd" | "vhd-fixed" => "vpc",
            "vmdk-stream" | "ova" => "vmdk",
            other => other,
        };
        if format == "ova" {
            let folder = node.path().to_string_lossy().into_owned();
            run("tar", &["-xf", &output, "-C", &folder])?;
            output = format!("{folder}/disk.vmdk");
        }
        run("qemu-img", &["compare", "-f", "qcow2", "-F", driver, &source, &output])?;
        if format == "qcow2" {
            run("qemu-img", &["check", "-f", "qcow2", &output])?;
        }
        let ranged = format!("images/{image}/versions/{id}/download?format={format}");
        let asked = node.request(Method::GET, &ranged).header(header::RANGE, "bytes=65000-1400000");
        let part = asked.send().await?;
        ensure!(part.status() == StatusCode::PARTIAL_CONTENT);
        ensure!(part.bytes().await? == first[65_000..=1_400_000]);
        let past = format!("bytes={}-", first.len());
        let outside = node.request(Method::GET, &ranged).header(header::RANGE, past).send().await?;
        problem(outside, StatusCode::RANGE_NOT_SATISFIABLE).await?;
    }
    conditions_and_odd_ranges_are_read_as_http_means_them(&node, image, &id).await?;

    let found: Resolution = node.get("resolve?reference=zedge/one:test").await?;
    ensure!(found.version == "1.0.0" && found.disk.is_some());
    let page: Page<Image> = node.get("images?page=1&page_size=10&name=one&kind=disk").await?;
    ensure!(page.pagination.total_count == 1 && page.data[0].status == "active");
    let none: Page<Image> = node.get("images?kind=container").await?;
    ensure!(none.data.is_empty());
    node.server.stop().await
}

/// As the registry reads them of blobs.
async fn conditions_and_odd_ranges_are_read_as_http_means_them(
    node: &Node,
    image: ImageId,
    version: &str,
) -> Result<()> {
    let path = format!("images/{image}/versions/{version}/download?format=raw");
    let ask = async |method: Method, headers: &[(header::HeaderName, &str)]| {
        let mut request = node.request(method, &path);
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        request.send().await
    };
    let whole = ask(Method::HEAD, &[(header::RANGE, "bytes=0-9")]).await?;
    ensure!(whole.status() == StatusCode::OK, "a range is for GET alone: {}", whole.status());
    let said = |name: header::HeaderName| {
        let value = whole.headers().get(&name).with_context(|| format!("no {name}"))?;
        anyhow::Ok(value.to_str()?.to_owned())
    };
    let (etag, length) = (said(header::ETAG)?, said(header::CONTENT_LENGTH)?.parse::<u64>()?);
    let bare = etag.trim_matches('"').to_owned();

    let (weak, listed) = (format!("W/{etag}"), format!("\"another\", {etag}"));
    for known in [&etag, &weak, &listed, &bare] {
        let answer = ask(Method::GET, &[(header::IF_NONE_MATCH, known.as_str())]).await?;
        ensure!(answer.status() == StatusCode::NOT_MODIFIED, "{known}: {}", answer.status());
    }
    // It is a part of another one's name.
    let longer = format!("\"{bare}0\"");
    let answer = ask(Method::HEAD, &[(header::IF_NONE_MATCH, longer.as_str())]).await?;
    ensure!(answer.status() == StatusCode::OK, "{}", answer.status());

    let last = format!("bytes 5-{}/{length}", length - 1);
    for (range, status, shown) in [
        ("bytes=5-99999999999999999999999", StatusCode::PARTIAL_CONTENT, Some(last)),
        ("Bytes=5-6", StatusCode::PARTIAL_CONTENT, Some(format!("bytes 5-6/{length}"))),
        ("bytes=9-1", StatusCode::RANGE_NOT_SATISFIABLE, Some(format!("bytes */{length}"))),
        ("bytes=0-1,4-5", StatusCode::OK, None),
        ("bytes=+1-2", StatusCode::OK, None),
    ] {
        let headers = [(header::RANGE, range), (header::IF_RANGE, etag.as_str())];
        let answer = ask(Method::GET, &headers).await?;
        ensure!(answer.status() == status, "{range}: {}", answer.status());
        let found = answer.headers().get(header::CONTENT_RANGE);
        let found = found.map(|value| value.to_str()).transpose()?;
        ensure!(found == shown.as_deref(), "{range}: {found:?}");
    }
    for of in ["\"another\"", weak.as_str()] {
        let headers = [(header::RANGE, "bytes=5-6"), (header::IF_RANGE, of)];
        let answer = ask(Method::GET, &headers).await?;
        ensure!(answer.status() == StatusCode::OK, "If-Range: {of}: {}", answer.status());
    }
    Ok(())
}

/// A machine's archive of one disk, as exporters make it.
fn make_ova(folder: &Path, disk: &Path) -> Result<PathBuf> {
    let name = disk.file_name().context("no name")?.to_string_lossy().into_owned();
    let ovf = format!(
        "<Envelope xmlns:ovf='urn:ovf'><References><File ovf:id='f' ovf:href='{name}'/></References>\
         <DiskSection><Disk ovf:fileRef='f' ovf:format='urn:vmdk'/></DiskSection></Envelope>"
    );
    let sum = hex::encode(Sha256::digest(std::fs::read(disk)?));
    let manifest = format!(
        "SHA256(vm.ovf)= {}\nSHA256({name})= {sum}\n",
        hex::encode(Sha256::digest(ovf.as_bytes()))
    );
    std::fs::write(folder.join("vm.ovf"), ovf)?;
    std::fs::write(folder.join("vm.mf"), manifest)?;
    let archive = folder.join("vm.ova");
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let files = ["-cf", &text(&archive), "-C", &text(folder), "vm.ovf", "vm.mf", &name];
    run("tar", &files)?;
    Ok(archive)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_disk_in_every_format_is_stored_once() -> Result<()> {
    let node = Node::start().await?;
    let file = make_disk(node.path(), "formats", 2)?;
    let source = file.to_string_lossy().into_owned();
    let image = create_image(&node, "zedge/formats").await?;
    let convert = |driver: &str, options: &str| -> Result<PathBuf> {
        let path = node.path().join(format!("formats.{driver}"));
        let name = path.to_string_lossy().into_owned();
        let mut arguments = vec!["convert", "-f", "qcow2", "-O", driver];
        if !options.is_empty() {
            arguments.extend(["-o", options]);
        }
        arguments.extend([source.as_str(), name.as_str()]);
        run("qemu-img", &arguments)?;
        Ok(path)
    };
    let vmdk = convert("vmdk", "subformat=streamOptimized")?;
    let files = [
        ("qcow2", file.clone()),
        ("raw", convert("raw", "")?),
        ("ova", make_ova(node.path(), &vmdk)?),
        ("vmdk", vmdk),
        ("vhd", convert("vpc", "force_size=on")?),
        ("vhdx", convert("vhdx", "")?),
    ];
    let mut recipes = Vec::new();
    for (format, file) in files {
        let status = upload(&node, image, &file, format).await?;
        ensure!(status.status == "active", "{format}: {status:?}");
        let found: Resolution =
            node.get(&format!("resolve?reference=zedge/formats:{format}")).await?;
        let disk = found.disk.context("no disk")?;
        ensure!(disk.source_format == format, "{disk:?}");
        recipes.push((format, disk.recipe));
    }
    // What the guest sees is cut, not what it came in: nothing but the first upload was new.
    let first = recipes[0].1;
    ensure!(recipes[1..].iter().all(|(_, recipe)| *recipe == first), "{recipes:?}");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_goes_on_where_it_stopped_and_takes_parts_again() -> Result<()> {
    let node = Node::start().await?;
    let file = make_disk(node.path(), "two", 2)?;
    let image = create_image(&node, "zedge/two").await?;
    let session = begin(&node, image, &file, "1").await?;
    let last = session.parts.len() - 1;
    for index in [last, 0, 0] {
        put(&node, &session, index).await?;
    }
    let status: UploadStatus = node.get(&session.path).await?;
    ensure!(status.received_chunks == [0, last as u32] && status.status == "receiving");
    let early = node.request(Method::POST, &format!("{}/complete", session.path)).send().await?;
    let early = problem(early, StatusCode::CONFLICT).await?;
    ensure!(early.code == "chunks_missing" && early.message.contains("1, 2"), "{early:?}");

    let wrong = node
        .request(Method::PUT, &format!("{}/chunks/1", session.path))
        .header("x-shoal-checksum", checksum(b"something else"))
        .body(session.parts[1].clone());
    let wrong = problem(wrong.send().await?, StatusCode::BAD_REQUEST).await?;
    ensure!(wrong.code == "checksum_mismatch", "{wrong:?}");
    let short = node.request(Method::PUT, &format!("{}/chunks/1", session.path)).body(vec![0; 10]);
    let short = problem(short.send().await?, StatusCode::BAD_REQUEST).await?;
    ensure!(short.code == "chunk_size_mismatch", "{short:?}");
    let status: UploadStatus = node.get(&session.path).await?;
    ensure!(status.received_chunks.len() == 2, "a refused part was kept");

    for index in 1..last {
        put(&node, &session, index).await?;
    }
    let status = finish(&node, &session).await?;
    ensure!(status.status == "active", "{status:?}");
    // Asked again, it is the same version.
    let again = finish(&node, &session).await?;
    ensure!(again.version_id == status.version_id);
    // What has become a version is not given up with its upload.
    let given_up = node.request(Method::DELETE, &session.path).send().await?;
    let given_up = problem(given_up, StatusCode::CONFLICT).await?;
    ensure!(given_up.code == "upload_state" && given_up.message.contains("version 1"));
    let kept: UploadStatus = node.get(&session.path).await?;
    ensure!(kept.version_id == status.version_id, "{kept:?}");
    // The number is taken now.
    let wanted = json!({ "version": "1", "total_size_bytes": 5 });
    let path = format!("images/{image}/versions/upload/init");
    let taken = node.request(Method::POST, &path).json(&wanted).send().await?;
    ensure!(problem(taken, StatusCode::CONFLICT).await?.code == "version_exists");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_comes_when_the_disk_is_read_is_not_stored() -> Result<()> {
    const PART: usize = 16 * MIB;
    let node = Node::start().await?;
    let image = create_image(&node, "zedge/late").await?;
    let path = format!("images/{image}/versions/upload");
    let wanted = json!({ "version": "1", "total_size_bytes": PART, "format": "raw" });
    let started: UploadStarted = node.call(Method::POST, &format!("{path}/init"), &wanted).await?;
    let upload = started.upload_id;
    ensure!(started.total_chunks == 1, "{started:?}");
    let session = Session { path: format!("{path}/{upload}"), parts: vec![vec![7; PART]] };
    // Other bytes for the part; more of them are taken than could wait on the way.
    let (sender, receiver) = tokio::sync::mpsc::channel::<std::io::Result<Vec<u8>>>(1);
    let slow = futures::stream::unfold(receiver, async |mut receiver| {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    let late = node.request(Method::PUT, &format!("{}/chunks/0", session.path));
    let late = late.header("content-length", PART).body(reqwest::Body::wrap_stream(slow));
    let late = tokio::spawn(late.send());
    for _ in 1..PART / MIB {
        sender.send(Ok(vec![8; MIB])).await?;
    }
    put(&node, &session, 0).await?;
    let status = finish(&node, &session).await?;
    ensure!(status.status == "active", "{status:?}");
    let store = node.server.app().store.clone();
    let key = ObjectKey::UploadPart { upload, part: 0 };
    until("the parts to be deleted", async || Ok(store.length(key).await?.is_none().then_some(())))
        .await?;
    sender.send(Ok(vec![8; MIB])).await?;
    drop(sender);
    let refused = problem(late.await??, StatusCode::CONFLICT).await?;
    ensure!(refused.code == "upload_state", "{refused:?}");
    ensure!(store.length(key).await?.is_none(), "it was stored all the same");
    let back = download(&node, image, "1", "raw").await?;
    ensure!(back == vec![7; PART], "other bytes came back");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_storage_has_otherwise_than_it_came_is_not_published() -> Result<()> {
    let node = Node::start().await?;
    let file = make_disk(node.path(), "rotten", 2)?;
    let image = create_image(&node, "zedge/rotten").await?;
    let session = begin(&node, image, &file, "1").await?;
    for index in 0..session.parts.len() {
        put(&node, &session, index).await?;
    }
    let upload: UploadId = session.path.rsplit('/').next().context("no id")?.parse()?;
    let mut other = session.parts[2].clone();
    other[MIB / 2] ^= 1;
    let key = ObjectKey::UploadPart { upload, part: 2 };
    let store = node.server.app().store.clone();
    store.put(key, &KeyOwner::Cluster, other.into()).await?;
    let status = finish(&node, &session).await?;
    let failure = status.failure.clone().unwrap_or_default();
    ensure!(status.status == "failed", "{status:?}");
    ensure!(failure.starts_with("checksum_mismatch: part 2 "), "{failure}");
    let detail: ImageDetail = node.get(&format!("images/{image}")).await?;
    ensure!(detail.versions.is_empty(), "{:?}", detail.versions);
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_storage_has_lost_of_one_version_is_stored_anew_with_the_next() -> Result<()> {
    let node = Node::start().await?;
    let (first, second) = (make_disk(node.path(), "lost", 2)?, make_disk(node.path(), "new", 3)?);
    let image = create_image(&node, "zedge/lost").await?;
    let status = upload(&node, image, &first, "1").await?;
    ensure!(status.status == "active", "{status:?}");
    let store = node.server.app().store.clone();
    let objects = store.list("", None, 1000).await?.into_iter().map(|object| object.key);
    let packs: Vec<ObjectKey> =
        objects.filter(|object| matches!(object, ObjectKey::Pack(_))).collect();
    ensure!(!packs.is_empty(), "no packs");
    store.delete(&packs).await?;
    let status = upload(&node, image, &second, "2").await?;
    ensure!(status.status == "active", "{status:?}");
    let back = node.path().join("back.raw");
    std::fs::write(&back, download(&node, image, "2", "raw").await?)?;
    let (second, back) = (second.to_string_lossy(), back.to_string_lossy());
    run("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", &second, &back])?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_has_so_many_disks_on_their_way_and_no_more() -> Result<()> {
    let node = Node::start_with(|config| {
        config.registry.uploads_open_max_per_account = 2;
    })
    .await?;
    let image = create_image(&node, "zedge/many").await?;
    let path = format!("images/{image}/versions/upload");
    let init = async |version: &str| {
        let wanted = json!({ "version": version, "total_size_bytes": 5, "format": "raw" });
        node.request(Method::POST, &format!("{path}/init")).json(&wanted).send().await
    };
    let first: UploadStarted = read(init("1").await?).await?;
    let second: UploadStarted = read(init("2").await?).await?;
    let third = init("3").await?;
    ensure!(third.headers().contains_key(header::RETRY_AFTER), "{third:?}");
    let third = problem(third, StatusCode::TOO_MANY_REQUESTS).await?;
    ensure!(third.code == "too_many_uploads" && third.message.contains("2 at once"), "{third:?}");
    // The end of one makes room for another, whatever the end is.
    let given_up = node.request(Method::DELETE, &format!("{path}/{}", first.upload_id));
    ensure!(given_up.send().await?.status() == StatusCode::NO_CONTENT);
    let parts = vec![vec![7; 5]];
    let session = Session { path: format!("{path}/{}", second.upload_id), parts };
    put(&node, &session, 0).await?;
    finish(&node, &session).await?;
    for version in ["3", "4"] {
        let _begun: UploadStarted = read(init(version).await?).await?;
    }
    problem(init("5").await?, StatusCode::TOO_MANY_REQUESTS).await?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_may_be_as_short_as_a_client_likes() -> Result<()> {
    let node = Node::start().await?;
    let image = create_image(&node, "zedge/short").await?;
    let content: Vec<u8> = (0..1000u32).map(|at| (at / 3) as u8).collect();
    let path = format!("images/{image}/versions/upload");
    let wanted = json!({
        "version": "1", "total_size_bytes": 1000, "chunk_size_bytes": 100, "format": "raw",
    });
    let started: UploadStarted = node.call(Method::POST, &format!("{path}/init"), &wanted).await?;
    ensure!((started.chunk_size, started.total_chunks) == (100, 10), "{started:?}");
    let parts = content.chunks(100).map(<[u8]>::to_vec).collect();
    let session = Session { path: format!("{path}/{}", started.upload_id), parts };
    futures::future::try_join_all((0..10).map(|index| put(&node, &session, index))).await?;
    let status = finish(&node, &session).await?;
    ensure!(status.status == "active", "{status:?}");
    let back = download(&node, image, "1", "raw").await?;
    ensure!(back[..1000] == content, "{} bytes came back", back.len());
    let wanted = json!({ "version": "2", "total_size_bytes": 20_001, "chunk_size_bytes": 2 });
    let longer: UploadStarted = node.call(Method::POST, &format!("{path}/init"), &wanted).await?;
    ensure!((longer.chunk_size, longer.total_chunks) == (MIB as u64, 1), "{longer:?}");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_needs_another_file_is_refused_with_the_reason() -> Result<()> {
    let node = Node::start().await?;
    let base = make_disk(node.path(), "base", 2)?.to_string_lossy().into_owned();
    let file = node.path().join("overlay.qcow2");
    let name = file.to_string_lossy().into_owned();
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", &base, "-F", "qcow2", &name])?;
    let image = create_image(&node, "zedge/overlay").await?;
    let status = upload(&node, image, &file, "1").await?;
    let failure = status.failure.clone().unwrap_or_default();
    ensure!(status.status == "failed", "{status:?}");
    ensure!(failure.contains("backing_file") && failure.contains("flatten"), "{failure}");
    // Who completes it is told so, and no less when asking again.
    let id = status.upload_id;
    let complete = format!("images/{image}/versions/upload/{id}/complete");
    for _ in 0..2 {
        let refused = node.request(Method::POST, &complete).send().await?;
        let refused = problem(refused, StatusCode::UNPROCESSABLE_ENTITY).await?;
        ensure!(refused.code == "disk_backing_file", "{refused:?}");
        ensure!(failure == format!("{}: {}", refused.code, refused.message), "{refused:?}");
    }
    let detail: ImageDetail = node.get(&format!("images/{image}")).await?;
    ensure!(detail.versions.is_empty() && detail.image.status == "pending");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_version_stores_only_what_is_new() -> Result<()> {
    let node = Node::start().await?;
    let (first, second) = (make_disk(node.path(), "v1", 2)?, make_disk(node.path(), "v2", 3)?);
    let image = create_image(&node, "zedge/versions").await?;
    for (file, version) in [(&first, "1.0.0"), (&second, "1.0.1")] {
        let status = upload(&node, image, file, version).await?;
        ensure!(status.status == "active", "{status:?}");
    }
    let detail: ImageDetail = node.get(&format!("images/{image}")).await?;
    let by_number = |number: &str| detail.versions.iter().find(|v| v.version == number);
    let (old, new) = (by_number("1.0.0").context("1.0.0")?, by_number("1.0.1").context("1.0.1")?);
    ensure!(new.is_latest && !old.is_latest);
    // 6 of 9 MiB are the same in both.
    ensure!(
        new.added_size_bytes * 2 < old.added_size_bytes,
        "{} after {}",
        new.added_size_bytes,
        old.added_size_bytes
    );
    let back = node.path().join("back.raw");
    std::fs::write(&back, download(&node, image, "1.0.1", "raw").await?)?;
    let (second, back) = (second.to_string_lossy(), back.to_string_lossy());
    run("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", &second, &back])?;

    // A tag moves back, and goes.
    let path = format!("images/{image}/tags/stable");
    let moved: shoal_api::Tag =
        node.call(Method::PUT, &path, &json!({ "version_id": old.id.to_string() })).await?;
    ensure!(moved.version == "1.0.0");
    let found: Resolution = node.get("resolve?reference=zedge/versions:stable").await?;
    ensure!(found.version_id == old.id);
    let gone = node.request(Method::DELETE, &path).send().await?;
    ensure!(gone.status() == StatusCode::NO_CONTENT);
    let missing = node.request(Method::GET, "resolve?reference=zedge/versions:stable");
    problem(missing.send().await?, StatusCode::NOT_FOUND).await?;
    node.server.stop().await
}
