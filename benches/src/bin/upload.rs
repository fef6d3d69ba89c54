//! A disk uploaded to a node in each format: how long after its last byte it is a version.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::Parser;
use futures::future::try_join_all;
use serde::Serialize;
use serde_json::json;
use shoal_benches::http::{Connection, Request};
use shoal_benches::registries::{
    Ceph, Contestant, Storage, StorageKind, node_program, start_cluster,
};
use shoal_benches::sample::{copies, file_system};
use shoal_formats::{ContentMap, Format, open, read_first};

const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Which a node reads a disk's content by; the parts of the sample differ by a byte each.
const SAMPLE_MIB: u64 = 512;

/// Measures how long an upload takes, and how much of that comes after its last byte.
///
/// A node reads a disk while it comes in, and lets no more of it come than it can read soon. One who
/// uploads is answered when the disk is a version that can be fetched: hashed, cut along its files,
/// compressed, stored and in the metadata. Beside it stands what a plain copy of the same file to the
/// same disk takes, synced as an upload is.
#[derive(Debug, Parser)]
#[command(name = "upload", version, about, long_about)]
struct Arguments {
    /// Content of the disk, in MiB, a multiple of 512.
    #[arg(long, default_value_t = 2048)]
    mib: u64,
    /// Parts under way at once, as 'shoal image upload --parallel'.
    #[arg(long, default_value_t = 4)]
    parallel: usize,
    /// The formats, by qemu-img's names.
    #[arg(long, value_delimiter = ',', default_value = "raw,qcow2,vmdk,vpc,vhdx")]
    formats: Vec<String>,
    /// Say nothing of where the disk has content, as clients other than 'shoal image upload'.
    #[arg(long)]
    blind: bool,
    /// What the nodes store in.
    #[arg(long, value_enum, default_value = "folder")]
    storage: StorageKind,
    /// Nodes of the cluster.
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// The shoal-node program; beside this one where missing.
    #[arg(long)]
    node: Option<PathBuf>,
    /// Where all is kept; a temporary folder where missing.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// One JSON object in place of the table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    format: String,
    file_mib: f64,
    /// From the first look at the file to the version.
    seconds: f64,
    /// From the answer to the last part to the answer that all has come.
    seconds_to_answer: f64,
    /// From the answer to the last part to the version.
    seconds_after: f64,
    copy_seconds: f64,
    /// Of the node that took the upload.
    peak_mib: f64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let temporary = match &arguments.folder {
        Some(folder) => tempfile::tempdir_in(folder)?,
        None => tempfile::tempdir()?,
    };
    let folder = temporary.path();
    let raw = disk(folder, arguments.mib)?;
    let program = node_program(arguments.node.as_deref())?;
    let mut rows = Vec::new();
    for format in &arguments.formats {
        let file = in_format(&raw, format)?;
        // A storage of its own for each, so that each finds nothing there.
        let home = folder.join(format!("with-{format}"));
        fs::create_dir(&home)?;
        let ceph = match arguments.storage {
            StorageKind::Folder => None,
            StorageKind::Ceph => Some(Ceph::start(&home.join("ceph"))?),
        };
        let storage = ceph.as_ref().map_or(Storage::Folder, Ceph::storage);
        let cluster = start_cluster(&program, &home, &storage, arguments.nodes).await?;
        rows.push(upload(&cluster, &file, format, &arguments, &home).await?);
        drop((cluster, ceph));
        fs::remove_dir_all(&home)?;
        if file != raw {
            fs::remove_file(&file)?;
        }
    }
    print(&arguments, &rows)
}

fn disk(folder: &Path, mib: u64) -> Result<PathBuf> {
    ensure!(mib > 0 && mib.is_multiple_of(SAMPLE_MIB), "--mib is a multiple of {SAMPLE_MIB}");
    let sample = file_system(folder, SAMPLE_MIB << 20)?;
    let raw = folder.join("content.raw");
    copies(&sample, &raw, mib / SAMPLE_MIB)?;
    fs::remove_file(sample)?;
    Ok(raw)
}

fn in_format(raw: &Path, format: &str) -> Result<PathBuf> {
    if format == "raw" {
        return Ok(raw.to_owned());
    }
    let file = raw.with_extension(format);
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", "raw", "-O", format]);
    if format == "vpc" {
        convert.args(["-o", "force_size=on"]);
    }
    let output = convert.arg(raw).arg(&file).output();
    let output = output.context("qemu-img did not start; install qemu-utils")?;
    ensure!(output.status.success(), "qemu-img: {}", String::from_utf8_lossy(&output.stderr));
    Ok(file)
}

async fn upload(
    cluster: &Contestant,
    path: &Path,
    format: &str,
    arguments: &Arguments,
    home: &Path,
) -> Result<Row> {
    let (file, length) = (Arc::new(File::open(path)?), fs::metadata(path)?.len());
    let copy_seconds = copied(path, &home.join("copy"))?;
    let mut admin = Connection::open(&cluster.host, &cluster.administrator).await?;
    let image = admin.call("POST", "/api/v1/images", &json!({ "name": "bench/disk" }), 201).await?;
    let id = image["id"].as_str().context("an image without an id")?;
    let path = format!("/api/v1/images/{id}/versions/upload");
    let started = Instant::now();
    let content = if arguments.blind { Vec::new() } else { content_clusters(&file).await? };
    let asked = json!({ "version": "1", "total_size_bytes": length, "content_clusters": content });
    let begun = admin.call("POST", &format!("{path}/init"), &asked, 200).await?;
    let path = format!("{path}/{}", begun["upload_id"].as_str().context("no upload id")?);
    let part_bytes = begun["chunk_size"].as_u64().context("no length of parts")?;
    let parts = begun["total_chunks"].as_u64().context("no count of parts")?;

    let next = Arc::new(AtomicUsize::new(0));
    let looked_at = file.clone();
    let first = tokio::task::spawn_blocking(move || read_first(looked_at, None, part_bytes));
    let first = first.await??;
    let turns = in_turn(&first, parts);
    try_join_all((0..arguments.parallel).map(async |_| {
        let mut connection = Connection::open(&cluster.host, &cluster.administrator).await?;
        loop {
            let turn = next.fetch_add(1, Ordering::Relaxed);
            let Some(&number) = turns.get(turn) else { return anyhow::Ok(()) };
            let (file, at) = (file.clone(), number * part_bytes);
            let read = move || {
                let mut part = vec![0; part_bytes.min(length - at) as usize];
                file.read_exact_at(&mut part, at).map(|()| Bytes::from(part))
            };
            let body = tokio::task::spawn_blocking(read).await??;
            let request =
                Request { method: "PUT", body, ..Request::get(format!("{path}/chunks/{number}")) };
            connection.send(&request).await?;
        }
    }))
    .await?;
    let last = Instant::now();
    // A disk that was read while it came is a version by now.
    let complete = Request {
        method: "POST",
        headers: "Content-Type: application/json\r\n".into(),
        body: Bytes::from_static(b"{}"),
        expect: 202,
        or_expect: Some(201),
        ..Request::get(format!("{path}/complete"))
    };
    let mut status: serde_json::Value = serde_json::from_str(&admin.send(&complete).await?.text)?;
    let seconds_to_answer = last.elapsed().as_secs_f64();
    while status["status"] != "active" {
        ensure!(status["status"] != "failed", "the upload failed: {status}");
        tokio::time::sleep(POLL_INTERVAL).await;
        status = serde_json::from_str(&admin.send(&Request::get(path.as_str())).await?.text)?;
    }
    Ok(Row {
        format: format.to_owned(),
        file_mib: length as f64 / f64::from(1 << 20),
        seconds: started.elapsed().as_secs_f64(),
        seconds_to_answer,
        seconds_after: last.elapsed().as_secs_f64(),
        copy_seconds,
        peak_mib: cluster.memory_mib("VmHWM")?,
    })
}

/// Where the disk has content, as 'shoal image upload' says it of formats that do not.
async fn content_clusters(file: &Arc<File>) -> Result<Vec<u32>> {
    let file = Arc::clone(file);
    let look = move || -> Result<Vec<u32>> {
        let mut disk = open(Box::new(file), None)?;
        if !matches!(disk.format(), Format::Raw | Format::Vhd | Format::Vhdx) {
            return Ok(Vec::new());
        }
        let map = ContentMap::of(disk.as_mut())?;
        Ok(map.map(ContentMap::into_runs).unwrap_or_default())
    };
    tokio::task::spawn_blocking(look).await?
}

/// All parts in the order in which 'shoal image upload' sends them: those that are read first, and then
/// the rest.
fn in_turn(first: &[u64], parts: u64) -> Vec<u64> {
    let mut begun = BTreeSet::new();
    first.iter().copied().chain(0..parts).filter(|&part| begun.insert(part)).collect()
}

/// The physical limit: how long the file takes to be on the disk once more.
fn copied(from: &Path, to: &Path) -> Result<f64> {
    let started = Instant::now();
    fs::copy(from, to)?;
    File::open(to)?.sync_all()?;
    let seconds = started.elapsed().as_secs_f64();
    fs::remove_file(to)?;
    Ok(seconds)
}

fn print(arguments: &Arguments, rows: &[Row]) -> Result<()> {
    if arguments.json {
        println!("{}", json!({ "benchmark": "upload", "nodes": arguments.nodes, "rows": rows }));
        return Ok(());
    }
    println!(
        "{} MiB of content, {} nodes, {} parts at once\n\n{:<8} {:>9} {:>9} {:>9} {:>12} {:>9} {:>10} {:>9}",
        arguments.mib,
        arguments.nodes,
        arguments.parallel,
        "format",
        "file MiB",
        "seconds",
        "answered",
        "after last",
        "copy",
        "copy/ours",
        "peak MiB"
    );
    for row in rows {
        println!(
            "{:<8} {:>9.0} {:>9.1} {:>9.3} {:>12.2} {:>9.1} {:>10.2} {:>9.0}",
            row.format,
            row.file_mib,
            row.seconds,
            row.seconds_to_answer,
            row.seconds_after,
            row.copy_seconds,
            row.copy_seconds / row.seconds,
            row.peak_mib
        );
    }
    Ok(())
}
