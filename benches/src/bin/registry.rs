//! Pulls and pushes through a cluster's node, beside Debian's docker-registry on the same storage.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::Parser;
use serde::Serialize;
use sha2::{Digest, Sha256};
use shoal_benches::http::{Connection, Request};
use shoal_benches::load::{self, quantile_ms};
use shoal_benches::registries::{
    Ceph, Contestant, Storage, StorageKind, node_program, start_cluster, start_peer,
};
use shoal_benches::report::median;
use shoal_benches::sample::noise;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// How long both do nothing before their idle memory is read.
const IDLE: Duration = Duration::from_secs(6);
const TAGS_MAX: usize = 100_000;
/// Tags that one request of ours sets.
const TAGS_PER_REQUEST: usize = 50;
const MIB: usize = 1 << 20;

/// Measures a registry's requests: rate, latency, CPU and memory of both servers.
///
/// Both listen on loopback without TLS and store in a folder, then in one Ceph. One node of the
/// cluster is asked, with a Bearer token, as docker sends it; docker-registry asks for nothing. What
/// is pushed to the node is synced, and its metadata is in the synced logs of most nodes, before it
/// answers; docker-registry syncs nothing.
#[derive(Debug, Parser)]
#[command(name = "registry", version, about, long_about)]
struct Arguments {
    /// How long each case lasts for each server, in seconds.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// How often the servers take turns.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Clients at once.
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// Run only cases whose name contains this.
    #[arg(long, default_value = "")]
    case: String,
    /// The docker-registry program (Debian's package docker-registry).
    #[arg(long, default_value = "/usr/bin/docker-registry")]
    peer: PathBuf,
    /// The shoal-node program; beside this one where missing.
    #[arg(long)]
    node: Option<PathBuf>,
    /// Where both keep their data; a temporary folder where missing.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// What both store in, one after the other.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "folder,ceph")]
    storage: Vec<StorageKind>,
    /// Nodes of the cluster.
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// One JSON object in place of the table.
    #[arg(long)]
    json: bool,
}

/// What a case asks for, again and again.
#[derive(Debug, Clone)]
enum Work {
    Read(Request),
    /// A blob of so many bytes, new each time.
    Push(usize),
}

#[derive(Debug, Clone)]
struct Case {
    name: &'static str,
    clients: usize,
    work: Work,
}

#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Figures {
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// Of the server, for one operation.
    cpu_ms: f64,
}

#[derive(Debug, Serialize)]
struct Row {
    case: &'static str,
    shoal: Figures,
    peer: Figures,
    /// Our rate over the peer's: the median of the runs.
    ratio: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    benchmark: &'static str,
    nodes: usize,
    stages: Vec<Stage>,
}

/// Everything on one storage.
#[derive(Debug, Serialize)]
struct Stage {
    storage: String,
    rows: Vec<Row>,
    /// Of one node, the one that is asked.
    memory_mib: BTreeMap<&'static str, f64>,
    /// In all cases together; ours of all nodes.
    cpu_seconds: BTreeMap<&'static str, f64>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    ensure!(
        arguments.peer.exists(),
        "{} is missing; 'apt-get install docker-registry' brings it",
        arguments.peer.display()
    );
    let temporary = tempfile::tempdir()?;
    let folder = arguments.folder.as_deref().unwrap_or(temporary.path());
    let mut stages = Vec::new();
    for kind in &arguments.storage {
        let folder = folder.join(format!("{kind:?}").to_lowercase());
        std::fs::create_dir_all(&folder)?;
        // Dropped when the stage is over: after what stands on it.
        let ceph = match kind {
            StorageKind::Folder => None,
            StorageKind::Ceph => Some(Ceph::start(&folder.join("ceph"))?),
        };
        let storage = ceph.as_ref().map_or(Storage::Folder, Ceph::storage);
        let stage = contest(&arguments, &folder, &storage).await?;
        if !arguments.json {
            print(arguments.nodes, &stage);
        }
        stages.push(stage);
    }
    if arguments.json {
        let report = Report { benchmark: "registry", nodes: arguments.nodes, stages };
        println!("{}", serde_json::to_string(&report)?);
    }
    Ok(())
}

async fn contest(arguments: &Arguments, folder: &Path, storage: &Storage) -> Result<Stage> {
    let program = node_program(arguments.node.as_deref())?;
    let ours = start_cluster(&program, folder, storage, arguments.nodes).await?;
    let peer = start_peer(&arguments.peer, folder, storage).await?;
    let mut memory = BTreeMap::new();
    tokio::time::sleep(IDLE).await;
    memory.insert("shoal, idle", ours.memory_mib("VmRSS")?);
    memory.insert("docker-registry, idle", peer.memory_mib("VmRSS")?);

    progress(arguments, &format!("{storage}: preparing: blobs, and tags"));
    let digest = prepare(&ours).await?;
    ensure!(prepare(&peer).await? == digest, "the servers disagree about a digest");
    // The peer's tags are written into its folder: by its own requests they would take hours.
    let tags = wants(arguments, "tags") && *storage == Storage::Folder;
    if tags {
        tag_ours(&ours).await?;
        tag_peer(&folder.join("peer"), &digest)?;
    }
    let before = (ours.cpu()?, peer.cpu()?);
    let mut rows = Vec::new();
    for case in cases(arguments, &digest) {
        if tags || !case.name.starts_with("tags") {
            progress(arguments, &format!("{storage}: {}", case.name));
            rows.push(compare(arguments, &case, &ours, &peer).await?);
        }
    }
    memory.insert("shoal, peak", ours.memory_mib("VmHWM")?);
    memory.insert("docker-registry, peak", peer.memory_mib("VmHWM")?);
    let seconds = |now: Duration, before: Duration| now.saturating_sub(before).as_secs_f64();
    let cpu_seconds = BTreeMap::from([
        ("shoal", seconds(ours.cpu()?, before.0)),
        ("docker-registry", seconds(peer.cpu()?, before.1)),
    ]);
    Ok(Stage { storage: storage.to_string(), rows, memory_mib: memory, cpu_seconds })
}

fn wants(arguments: &Arguments, name: &str) -> bool {
    name.contains(&arguments.case) || arguments.case.is_empty()
}

fn progress(arguments: &Arguments, what: &str) {
    if !arguments.json {
        eprintln!("… {what}");
    }
}

fn cases(arguments: &Arguments, manifest: &str) -> Vec<Case> {
    let clients = arguments.clients;
    let accept = |mut request: Request| {
        request.headers = format!("Accept: {MANIFEST}\r\n");
        Work::Read(request)
    };
    let by_tag = accept(Request::get("/v2/bench/image/manifests/latest"));
    let by_digest = accept(Request::get(format!("/v2/bench/image/manifests/{manifest}")));
    let blob = |mib: usize| Request::get(format!("/v2/bench/image/blobs/{}", digest_of_blob(mib)));
    let head = Work::Read(Request { method: "HEAD", ..blob(1) });
    let page = Request::get("/v2/bench/image/tags/list?n=100&last=tag-050000");
    let case = |name, clients, work| Case { name, clients, work };
    let all = [
        case("manifest by tag", clients, by_tag.clone()),
        case("manifest by digest", clients, by_digest),
        case("manifest, 500 clients", 500, by_tag),
        case("HEAD blob", clients, head),
        case("GET blob, 1 MiB", clients, Work::Read(blob(1))),
        case("GET blob, 100 MiB", 2, Work::Read(blob(100))),
        case("push blob, 1 MiB", clients, Work::Push(MIB)),
        case("push blob, 100 MiB", 2, Work::Push(100 * MIB)),
        case("tags, 100 of 100,000", clients, Work::Read(page)),
    ];
    all.into_iter().filter(|case| wants(arguments, case.name)).collect()
}

async fn compare(
    arguments: &Arguments,
    case: &Case,
    ours: &Contestant,
    peer: &Contestant,
) -> Result<Row> {
    let (mut of_ours, mut of_peer) = (Vec::new(), Vec::new());
    for run in 0..arguments.runs {
        of_ours.push(measure(arguments, case, ours, run).await.context("shoal")?);
        of_peer.push(measure(arguments, case, peer, run).await.context("docker-registry")?);
    }
    let ratios = of_ours.iter().zip(&of_peer).map(|(a, b)| a.per_second / b.per_second);
    let ratio = median(ratios.collect());
    Ok(Row { case: case.name, shoal: summary(&of_ours), peer: summary(&of_peer), ratio })
}

async fn measure(
    arguments: &Arguments,
    case: &Case,
    contestant: &Contestant,
    run: usize,
) -> Result<Figures> {
    let duration = Duration::from_secs_f64(arguments.seconds);
    let cpu = contestant.cpu()?;
    let began = Instant::now();
    let start = async || Connection::open(&contestant.host, &contestant.authorization).await;
    let times = match case.work.clone() {
        Work::Read(request) => {
            load::run(case.clients, duration, start, move |connection, _| {
                let request = request.clone();
                Box::pin(async move { connection.send(&request).await.map(drop) })
            })
            .await?
        }
        Work::Push(bytes) => {
            let base = Bytes::from(noise(bytes as u64, bytes - 16));
            let hashed = Sha256::new_with_prefix(&base);
            load::run(case.clients, duration, start, move |connection, number| {
                let (base, hashed) = (base.clone(), hashed.clone());
                Box::pin(async move {
                    let suffix = [(run as u64).to_le_bytes(), number.to_le_bytes()].concat();
                    let digest = hex::encode(hashed.chain_update(&suffix).finalize());
                    push(connection, &format!("sha256:{digest}"), base, suffix.into()).await
                })
            })
            .await?
        }
    };
    let elapsed = began.elapsed().as_secs_f64();
    let cpu = contestant.cpu()?.saturating_sub(cpu).as_secs_f64() * 1000.0;
    let mut times = times;
    times.sort_unstable();
    let count = times.len() as f64;
    Ok(Figures {
        per_second: count / elapsed,
        p50_ms: quantile_ms(&times, 0.5),
        p99_ms: quantile_ms(&times, 0.99),
        cpu_ms: cpu / count,
    })
}

fn summary(runs: &[Figures]) -> Figures {
    let of = |field: fn(&Figures) -> f64| median(runs.iter().map(field).collect());
    Figures {
        per_second: of(|run| run.per_second),
        p50_ms: of(|run| run.p50_ms),
        p99_ms: of(|run| run.p99_ms),
        cpu_ms: of(|run| run.cpu_ms),
    }
}

/// POST, then PUT with the whole body, as the distribution-spec has it for a known digest.
async fn push(connection: &mut Connection, digest: &str, body: Bytes, tail: Bytes) -> Result<()> {
    let open =
        Request { method: "POST", expect: 202, ..Request::get("/v2/bench/image/blobs/uploads/") };
    let location = connection.send(&open).await?.location.context("no Location")?;
    // docker-registry names itself in it.
    let path = match location.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("", |slash| &rest[slash..]),
        None => &location,
    };
    let separator = if path.contains('?') { '&' } else { '?' };
    let close = Request {
        method: "PUT",
        path: format!("{path}{separator}digest={digest}"),
        headers: "Content-Type: application/octet-stream\r\n".into(),
        body,
        tail,
        expect: 201,
        or_expect: None,
    };
    connection.send(&close).await.map(drop)
}

fn blob(mib: usize) -> Bytes {
    noise(mib as u64, mib * MIB).into()
}

fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn digest_of_blob(mib: usize) -> String {
    digest_of(&blob(mib))
}

fn manifest() -> String {
    let media = "application/vnd.oci.image";
    let descriptor = |kind: &str, mib: usize| {
        serde_json::json!({
            "mediaType": format!("{media}.{kind}"), "digest": digest_of_blob(mib), "size": mib * MIB,
        })
    };
    serde_json::json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": descriptor("config.v1+json", 1), "layers": [descriptor("layer.v1.tar", 100)],
    })
    .to_string()
}

/// Pushes an image of two blobs as `bench/image:latest`; gives the manifest's digest.
async fn prepare(contestant: &Contestant) -> Result<String> {
    let mut connection = Connection::open(&contestant.host, &contestant.authorization).await?;
    for mib in [1, 100] {
        push(&mut connection, &digest_of_blob(mib), blob(mib), Bytes::new()).await?;
    }
    let body = manifest();
    let digest = digest_of(body.as_bytes());
    connection.send(&put_manifest("/v2/bench/image/manifests/latest".into(), body)).await?;
    Ok(digest)
}

fn put_manifest(path: String, body: String) -> Request {
    let headers = format!("Content-Type: {MANIFEST}\r\n");
    Request { method: "PUT", headers, body: body.into(), expect: 201, ..Request::get(path) }
}

async fn tag_ours(contestant: &Contestant) -> Result<()> {
    let mut connection = Connection::open(&contestant.host, &contestant.authorization).await?;
    let body = manifest();
    let digest = digest_of(body.as_bytes());
    for first in (0..TAGS_MAX).step_by(TAGS_PER_REQUEST) {
        let tags: Vec<String> =
            (first..first + TAGS_PER_REQUEST).map(|tag| format!("tag=tag-{tag:06}")).collect();
        let path = format!("/v2/bench/image/manifests/{digest}?{}", tags.join("&"));
        connection.send(&put_manifest(path, body.clone())).await?;
    }
    Ok(())
}

/// Writes the tags into docker-registry's folder, as it would itself.
fn tag_peer(folder: &Path, digest: &str) -> Result<()> {
    let tags = folder.join("docker/registry/v2/repositories/bench/image/_manifests/tags");
    for tag in 0..TAGS_MAX {
        let current = tags.join(format!("tag-{tag:06}")).join("current");
        std::fs::create_dir_all(&current)?;
        std::fs::write(current.join("link"), digest)?;
    }
    Ok(())
}

/// CPU is milliseconds of the servers for each operation; peer is docker-registry.
fn print(nodes: usize, stage: &Stage) {
    let show = |figures: &Figures| {
        let Figures { per_second, p50_ms, p99_ms, cpu_ms } = figures;
        format!("{per_second:>9.1} {p50_ms:>7.2} {p99_ms:>7.2} {cpu_ms:>6.2}")
    };
    println!(
        "\n{:<24} {:>33}   {:>33}   {:>6}",
        format!("{nodes} nodes, {}", stage.storage),
        "shoal: /s  p50 ms  p99 ms  CPU ms",
        "peer: /s  p50 ms  p99 ms  CPU ms",
        "ratio"
    );
    for Row { case, shoal, peer, ratio } in &stage.rows {
        println!("{case:<24} {}   {}   {ratio:>6.2}", show(shoal), show(peer));
    }
    for (what, mib) in &stage.memory_mib {
        println!("memory of {what}: {mib:.0} MiB");
    }
    for (what, seconds) in &stage.cpu_seconds {
        println!("CPU of {what}: {seconds:.1} s");
    }
}
