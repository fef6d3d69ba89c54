//! Pulls and pushes through a node, beside Debian's docker-registry on the same storage.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base64::Engine;
use bytes::Bytes;
use clap::Parser;
use serde::Serialize;
use sha2::{Digest, Sha256};
use shoal_benches::http::{Connection, Request};
use shoal_benches::load::{self, quantile_ms};
use shoal_benches::process::Server;
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
/// Both listen on loopback without TLS and store in a folder, or in one S3 service. The node asks
/// for a Bearer token, as docker sends it; docker-registry asks for nothing. The node's writes go
/// through its synced Raft log; docker-registry syncs nothing.
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
    /// An S3 service (`http://127.0.0.1:7480`) for both, in place of folders; the keys come from
    /// `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, the buckets `shoal` and `peer` must exist.
    #[arg(long)]
    s3: Option<String>,
    /// One JSON object in place of the table.
    #[arg(long)]
    json: bool,
}

/// One of the two servers.
struct Contestant {
    server: Server,
    host: String,
    authorization: String,
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
    rows: Vec<Row>,
    memory_mib: BTreeMap<&'static str, f64>,
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
    let ours = start_node(&arguments, folder).await?;
    let peer = start_peer(&arguments, folder).await?;
    let mut memory = BTreeMap::new();
    tokio::time::sleep(IDLE).await;
    memory.insert("shoal, idle", ours.server.memory_mib("VmRSS")?);
    memory.insert("docker-registry, idle", peer.server.memory_mib("VmRSS")?);

    progress(&arguments, "preparing: blobs, and 100,000 tags in each");
    let digest = prepare(&ours).await?;
    ensure!(prepare(&peer).await? == digest, "the servers disagree about a digest");
    if wants(&arguments, "tags") {
        ensure!(
            arguments.s3.is_none(),
            "the tags are written into a folder; use --case without them"
        );
        tag_ours(&ours).await?;
        tag_peer(&folder.join("peer"), &digest)?;
    }
    let mut rows = Vec::new();
    for case in cases(&arguments, &digest) {
        progress(&arguments, case.name);
        rows.push(compare(&arguments, &case, &ours, &peer).await?);
    }
    memory.insert("shoal, peak", ours.server.memory_mib("VmHWM")?);
    memory.insert("docker-registry, peak", peer.server.memory_mib("VmHWM")?);
    print(&Report { benchmark: "registry", rows, memory_mib: memory }, arguments.json)
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
    let ratio = middle(ratios.collect());
    Ok(Row { case: case.name, shoal: summary(&of_ours), peer: summary(&of_peer), ratio })
}

async fn measure(
    arguments: &Arguments,
    case: &Case,
    contestant: &Contestant,
    run: usize,
) -> Result<Figures> {
    let duration = Duration::from_secs_f64(arguments.seconds);
    let cpu = contestant.server.cpu()?;
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
                    let body = Bytes::from([&base[..], &suffix].concat());
                    push(connection, &format!("sha256:{digest}"), body).await
                })
            })
            .await?
        }
    };
    let elapsed = began.elapsed().as_secs_f64();
    let cpu = contestant.server.cpu()?.saturating_sub(cpu).as_secs_f64() * 1000.0;
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
    let of = |field: fn(&Figures) -> f64| middle(runs.iter().map(field).collect());
    Figures {
        per_second: of(|run| run.per_second),
        p50_ms: of(|run| run.p50_ms),
        p99_ms: of(|run| run.p99_ms),
        cpu_ms: of(|run| run.cpu_ms),
    }
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// POST, then PUT with the whole body, as the distribution-spec has it for a known digest.
async fn push(connection: &mut Connection, digest: &str, body: Bytes) -> Result<()> {
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
        expect: 201,
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
        push(&mut connection, &digest_of_blob(mib), blob(mib)).await?;
    }
    let body = manifest();
    let digest = digest_of(body.as_bytes());
    connection.send(&put_manifest("/v2/bench/image/manifests/latest".into(), body)).await?;
    Ok(digest)
}

fn put_manifest(path: String, body: String) -> Request {
    let headers = format!("Content-Type: {MANIFEST}\r\n");
    Request { method: "PUT", path, headers, body: body.into(), expect: 201 }
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

fn free_tcp() -> Result<String> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.to_string())
}

fn free_udp() -> Result<String> {
    Ok(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.to_string())
}

fn s3_keys() -> Result<(String, String)> {
    let variable = |name| std::env::var(name).with_context(|| format!("{name} is not set"));
    Ok((variable("AWS_ACCESS_KEY_ID")?, variable("AWS_SECRET_ACCESS_KEY")?))
}

async fn start_node(arguments: &Arguments, folder: &Path) -> Result<Contestant> {
    let program = match &arguments.node {
        Some(program) => program.clone(),
        None => std::env::current_exe()?.with_file_name("shoal-node"),
    };
    let host = free_tcp()?;
    let storage = match &arguments.s3 {
        None => String::new(),
        Some(endpoint) => {
            let (access, secret) = s3_keys()?;
            format!(
                "[storage]\nkind = \"s3\"\nendpoint = \"{endpoint}\"\nbucket = \"shoal\"\n\
                 access_key = \"{access}\"\nsecret_key = \"{secret}\"\n"
            )
        }
    };
    let text = format!(
        "[node]\ndata_dir = \"{}\"\n[http]\nlisten = \"{}\"\nplain_listen = \"{host}\"\n\
         [raft]\nlisten = \"{}\"\n[peer]\nlisten = \"{}\"\n[discovery]\nenabled = false\n\
         [log]\nfilter = \"warn\"\n{storage}",
        folder.join("node").display(),
        free_tcp()?,
        free_udp()?,
        free_udp()?,
    );
    let file = folder.join("node.toml");
    std::fs::write(&file, text)?;
    let founded = Command::new(&program).arg("init").arg("--config").arg(&file).output();
    let founded = founded.with_context(|| {
        format!("{} does not start; 'cargo build --release' makes it", program.display())
    })?;
    let said = String::from_utf8_lossy(&founded.stdout);
    let error = String::from_utf8_lossy(&founded.stderr);
    let password = said.lines().find_map(|line| line.strip_prefix("password: "));
    let password = password.with_context(|| format!("shoal-node init: {said}{error}"))?;
    let mut command = Command::new(&program);
    command.arg("run").arg("--config").arg(&file);
    let log = folder.join("node.log");
    let mut server = Server::start(command, &log)?;
    server.listening(&host, &log).await?;
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("admin:{password}"));
    let mut connection =
        Connection::open(&host, &format!("Authorization: Basic {basic}\r\n")).await?;
    let answer = connection.send(&Request::get("/v2/token?service=shoal")).await?;
    let answer: serde_json::Value = serde_json::from_str(&answer.text)?;
    let token = answer["token"].as_str().context("no token")?;
    Ok(Contestant { server, host, authorization: format!("Authorization: Bearer {token}\r\n") })
}

async fn start_peer(arguments: &Arguments, folder: &Path) -> Result<Contestant> {
    let host = free_tcp()?;
    let storage = match &arguments.s3 {
        None => format!("filesystem: {{rootdirectory: {}}}", folder.join("peer").display()),
        Some(endpoint) => {
            let (access, secret) = s3_keys()?;
            format!(
                "s3: {{accesskey: {access}, secretkey: {secret}, region: default, bucket: peer, \
                 regionendpoint: '{endpoint}', secure: false, v4auth: true}}\n  \
                 redirect: {{disable: true}}"
            )
        }
    };
    // As Debian's package has it, without logs.
    let text = format!(
        "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage:\n  {storage}\n  \
         cache: {{blobdescriptor: inmemory}}\nhttp: {{addr: '{host}'}}\n"
    );
    let file = folder.join("peer.yml");
    std::fs::write(&file, text)?;
    let mut command = Command::new(&arguments.peer);
    command.arg("serve").arg(&file).env("OTEL_TRACES_EXPORTER", "none");
    let log = folder.join("peer.log");
    let mut server = Server::start(command, &log)?;
    server.listening(&host, &log).await?;
    Ok(Contestant { server, host, authorization: String::new() })
}

fn print(report: &Report, json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string(report)?);
        return Ok(());
    }
    println!(
        "{:<24} {:>31}   {:>31}   {:>6}",
        "", "shoal: /s   p50 ms  p99 ms  CPU", "peer: /s   p50 ms  p99 ms  CPU", "ratio"
    );
    let show = |figures: &Figures| {
        let Figures { per_second, p50_ms, p99_ms, cpu_ms } = figures;
        format!("{per_second:>9.1} {p50_ms:>7.2} {p99_ms:>7.2} {cpu_ms:>6.2}")
    };
    for Row { case, shoal, peer, ratio } in &report.rows {
        println!("{case:<24} {}   {}   {ratio:>6.2}", show(shoal), show(peer));
    }
    println!("CPU is milliseconds of the server for each operation; peer is docker-registry.");
    for (what, mib) in &report.memory_mib {
        println!("memory of {what}: {mib:.0} MiB");
    }
    Ok(())
}
