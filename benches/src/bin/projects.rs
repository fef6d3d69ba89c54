//! Pushes of many clients into one project, beside pushes of as many into a project each.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::Parser;
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use shoal_benches::http::{Connection, Request};
use shoal_benches::load::{self, quantile_ms};
use shoal_benches::registries::{Contestant, Storage, node_program, start_cluster};
use shoal_benches::report::median;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// No push reaches it; it is counted all the same.
const QUOTA_BYTES: u64 = 1 << 40;

/// Measures whether pushes into one project wait for each other.
///
/// A push is a blob of 1 KiB and the manifest that names it. Each project has a quota, so that each push
/// is counted against it in the command that makes it. Whoever pushes into one project pushes into a
/// repository of his own there.
#[derive(Debug, Parser)]
#[command(name = "projects", version, about, long_about)]
struct Arguments {
    /// How long each turn lasts, in seconds.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// How often the two take turns.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Clients at once.
    #[arg(long, default_value_t = 16)]
    clients: usize,
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

#[derive(Debug, Clone, Copy, Serialize)]
struct Figures {
    per_second: f64,
    p50_ms: f64,
    p95_ms: f64,
}

/// Medians over all turns; ratios are of pairs of turns.
#[derive(Debug, Serialize)]
struct Report {
    benchmark: &'static str,
    clients: usize,
    nodes: usize,
    one_project: Figures,
    a_project_each: Figures,
    p95_ratio: f64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    ensure!(arguments.clients > 0 && arguments.runs > 0, "--clients and --runs are at least 1");
    let temporary = match &arguments.folder {
        Some(folder) => tempfile::tempdir_in(folder)?,
        None => tempfile::tempdir()?,
    };
    let program = node_program(arguments.node.as_deref())?;
    let cluster =
        start_cluster(&program, temporary.path(), &Storage::Folder, arguments.nodes).await?;
    let one: Vec<String> =
        (0..arguments.clients).map(|client| format!("one/image-{client}")).collect();
    let each: Vec<String> =
        (0..arguments.clients).map(|client| format!("own-{client}/image")).collect();
    let (one, each) = (Pushers::new(&cluster, one).await?, Pushers::new(&cluster, each).await?);
    // The first pushes make the images.
    for pushers in [&one, &each] {
        turn(&arguments, &cluster, pushers, 0, Duration::ZERO).await?;
    }
    let (mut of_one, mut of_each) = (Vec::new(), Vec::new());
    let duration = Duration::from_secs_f64(arguments.seconds);
    for run in 1..=arguments.runs {
        // Who is first alternates.
        if run % 2 == 0 {
            of_each.push(turn(&arguments, &cluster, &each, run, duration).await?);
            of_one.push(turn(&arguments, &cluster, &one, run, duration).await?);
        } else {
            of_one.push(turn(&arguments, &cluster, &one, run, duration).await?);
            of_each.push(turn(&arguments, &cluster, &each, run, duration).await?);
        }
    }
    let ratios = of_one.iter().zip(&of_each).map(|(one, each)| one.p95_ms / each.p95_ms);
    print(
        &arguments,
        &Report {
            benchmark: "projects",
            clients: arguments.clients,
            nodes: arguments.nodes,
            one_project: summary(&of_one),
            a_project_each: summary(&of_each),
            p95_ratio: median(ratios.collect()),
        },
    )
}

/// Where each client pushes to, and by what token.
#[derive(Debug, Clone)]
struct Pushers(Arc<Vec<(String, String)>>);

impl Pushers {
    async fn new(cluster: &Contestant, repositories: Vec<String>) -> Result<Self> {
        let mut admin = Connection::open(&cluster.host, &cluster.administrator).await?;
        let mut pushers = Vec::new();
        let mut limited = std::collections::BTreeSet::new();
        for repository in repositories {
            let project = repository.split('/').next().unwrap_or_default().to_owned();
            if limited.insert(project.clone()) {
                admin.call("POST", "/api/v1/projects", &json!({ "name": project }), 201).await?;
                let path = format!("/api/v1/quotas/project:{project}");
                admin.call("PUT", &path, &json!({ "max_bytes": QUOTA_BYTES }), 200).await?;
            }
            let scope = format!("repository:{repository}:pull,push");
            let path = format!("/v2/token?service=shoal&scope={scope}");
            let answer: Value = serde_json::from_str(&admin.send(&Request::get(path)).await?.text)?;
            let token = answer["token"].as_str().context("no token")?;
            pushers.push((repository, format!("Authorization: Bearer {token}\r\n")));
        }
        Ok(Self(Arc::new(pushers)))
    }
}

async fn turn(
    arguments: &Arguments,
    cluster: &Contestant,
    pushers: &Pushers,
    run: usize,
    duration: Duration,
) -> Result<Figures> {
    let clients = arguments.clients;
    let next = AtomicUsize::new(0);
    let start = async || {
        let (_, authorization) = &pushers.0[next.fetch_add(1, Ordering::Relaxed)];
        Connection::open(&cluster.host, authorization).await
    };
    let to = pushers.clone();
    let mut times = load::run(clients, duration, start, move |connection, number| {
        let repository = to.0[number as usize % clients].0.clone();
        Box::pin(async move { push(connection, &repository, run, number).await })
    })
    .await?;
    times.sort_unstable();
    Ok(Figures {
        per_second: times.len() as f64 / duration.as_secs_f64().max(f64::MIN_POSITIVE),
        p50_ms: quantile_ms(&times, 0.5),
        p95_ms: quantile_ms(&times, 0.95),
    })
}

/// A blob that nobody has pushed before, and a manifest with it as its configuration.
async fn push(
    connection: &mut Connection,
    repository: &str,
    run: usize,
    number: u64,
) -> Result<()> {
    let blob = format!("{:<1024}", format!("{repository} {run} {number}"));
    let digest = format!("sha256:{}", hex::encode(Sha256::digest(&blob)));
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest,
            "size": blob.len(),
        },
        "layers": [],
    });
    let upload = Request {
        method: "POST",
        headers: "Content-Type: application/octet-stream\r\n".into(),
        body: Bytes::from(blob),
        expect: 201,
        ..Request::get(format!("/v2/{repository}/blobs/uploads/?digest={digest}"))
    };
    connection.send(&upload).await?;
    let put = Request {
        method: "PUT",
        headers: format!("Content-Type: {MANIFEST}\r\n"),
        body: Bytes::from(manifest.to_string()),
        expect: 201,
        ..Request::get(format!("/v2/{repository}/manifests/v{run}-{number}"))
    };
    connection.send(&put).await.map(drop)
}

fn summary(turns: &[Figures]) -> Figures {
    let of = |field: fn(&Figures) -> f64| median(turns.iter().map(field).collect());
    Figures {
        per_second: of(|turn| turn.per_second),
        p50_ms: of(|turn| turn.p50_ms),
        p95_ms: of(|turn| turn.p95_ms),
    }
}

fn print(arguments: &Arguments, report: &Report) -> Result<()> {
    if arguments.json {
        println!("{}", serde_json::to_string(report)?);
        return Ok(());
    }
    println!(
        "{} clients, {} nodes, {} turns of {} s\n\n{:<16} {:>9} {:>9} {:>9}",
        report.clients,
        report.nodes,
        arguments.runs,
        arguments.seconds,
        "",
        "pushes/s",
        "p50 ms",
        "p95 ms"
    );
    for (name, figures) in
        [("one project", report.one_project), ("a project each", report.a_project_each)]
    {
        println!(
            "{name:<16} {:>9.0} {:>9.1} {:>9.1}",
            figures.per_second, figures.p50_ms, figures.p95_ms
        );
    }
    println!("\np95 in one project over p95 in a project each: {:.2}", report.p95_ratio);
    Ok(())
}
