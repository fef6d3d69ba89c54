//! Requests with a Bearer token beside requests without any, and how long a token takes.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use bytes::Bytes;
use clap::Parser;
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use shoal_benches::http::{Connection, Request};
use shoal_benches::load::{self, quantile_ms};
use shoal_benches::registries::{Contestant, Storage, node_program, start_cluster};
use shoal_benches::report::{Aim, Wanted, median};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &[u8] = b"{}";

/// Measures what tokens cost: requests that bring one, and those that ask for one.
///
/// The manifest is the same one of a public project, asked for by its tag, with a Bearer token and without.
/// A token is asked for with a personal access token as the password, as docker does it, by one client
/// after the other's answer, and by all at once; no password is hashed.
#[derive(Debug, Parser)]
#[command(name = "tokens", version, about, long_about)]
struct Arguments {
    /// How long each turn lasts, in seconds.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// How often they take turns.
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
    p99_ms: f64,
}

/// Medians over all turns; ratios are of pairs of turns.
#[derive(Debug, Serialize)]
struct Report {
    benchmark: &'static str,
    clients: usize,
    nodes: usize,
    manifest_anonymous: Figures,
    manifest_bearer: Figures,
    token_one_client: Figures,
    token_all_clients: Figures,
    aims: Vec<Aim>,
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
    let basic = prepare(&cluster).await?;
    let mut manifest = Request::get("/v2/open/image/manifests/latest");
    manifest.headers = format!("Accept: {MANIFEST}\r\n");
    let token = Request::get("/v2/token?service=shoal&scope=repository:open/image:pull");
    let bearer = bearer(&cluster, &basic, &token).await?;
    let (mut anonymous, mut known) = (Vec::new(), Vec::new());
    let (mut alone, mut together) = (Vec::new(), Vec::new());
    let all = arguments.clients;
    for run in 0..arguments.runs {
        let turn = async |clients: usize, request: &Request, by: &str| {
            turn(&arguments, &cluster, clients, request, by).await
        };
        // Who is first alternates.
        if run % 2 == 0 {
            anonymous.push(turn(all, &manifest, "").await?);
            known.push(turn(all, &manifest, &bearer).await?);
        } else {
            known.push(turn(all, &manifest, &bearer).await?);
            anonymous.push(turn(all, &manifest, "").await?);
        }
        alone.push(turn(1, &token, &basic).await?);
        together.push(turn(all, &token, &basic).await?);
    }
    let pairs = known.iter().zip(&anonymous);
    let ratios = pairs.map(|(known, anonymous)| known.per_second / anonymous.per_second);
    let (ratio, alone) = (median(ratios.collect()), summary(&alone));
    let aims = vec![
        Aim::new("manifests with a token over manifests without", ratio, Wanted::AtLeast(0.8)),
        Aim::new("p99 of a token for one client, in ms", alone.p99_ms, Wanted::AtMost(5.0)),
    ];
    print(
        &arguments,
        &Report {
            benchmark: "tokens",
            clients: arguments.clients,
            nodes: arguments.nodes,
            manifest_anonymous: summary(&anonymous),
            manifest_bearer: summary(&known),
            token_one_client: alone,
            token_all_clients: summary(&together),
            aims,
        },
    )
}

/// A public project with an image in it; gives the login of a program that may pull it.
async fn prepare(cluster: &Contestant) -> Result<String> {
    let mut admin = Connection::open(&cluster.host, &cluster.administrator).await?;
    let project = json!({ "name": "open", "visibility": "public" });
    admin.call("POST", "/api/v1/projects", &project, 201).await?;
    let digest = format!("sha256:{}", hex::encode(Sha256::digest(CONFIG)));
    let upload = Request {
        method: "POST",
        headers: "Content-Type: application/octet-stream\r\n".into(),
        body: Bytes::from_static(CONFIG),
        expect: 201,
        ..Request::get(format!("/v2/open/image/blobs/uploads/?digest={digest}"))
    };
    admin.send(&upload).await?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest,
            "size": CONFIG.len(),
        },
        "layers": [],
    });
    let put = Request {
        method: "PUT",
        headers: format!("Content-Type: {MANIFEST}\r\n"),
        body: Bytes::from(manifest.to_string()),
        expect: 201,
        ..Request::get("/v2/open/image/manifests/latest")
    };
    admin.send(&put).await?;
    let wanted = json!({ "name": "benchmark", "scopes": ["repo:read"] });
    let made = admin.call("POST", "/api/v1/user/tokens", &wanted, 201).await?;
    let personal = made["token"].as_str().context("no personal token")?;
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("admin:{personal}"));
    Ok(format!("Authorization: Basic {basic}\r\n"))
}

async fn bearer(cluster: &Contestant, basic: &str, request: &Request) -> Result<String> {
    let mut docker = Connection::open(&cluster.host, basic).await?;
    let answer: Value = serde_json::from_str(&docker.send(request).await?.text)?;
    let token = answer["token"].as_str().context("no token")?;
    Ok(format!("Authorization: Bearer {token}\r\n"))
}

async fn turn(
    arguments: &Arguments,
    cluster: &Contestant,
    clients: usize,
    request: &Request,
    authorization: &str,
) -> Result<Figures> {
    let duration = Duration::from_secs_f64(arguments.seconds);
    let start = async || Connection::open(&cluster.host, authorization).await;
    let request = request.clone();
    let mut times = load::run(clients, duration, start, move |connection, _| {
        let request = request.clone();
        Box::pin(async move { connection.send(&request).await.map(drop) })
    })
    .await?;
    times.sort_unstable();
    Ok(Figures {
        per_second: times.len() as f64 / duration.as_secs_f64().max(f64::MIN_POSITIVE),
        p50_ms: quantile_ms(&times, 0.5),
        p99_ms: quantile_ms(&times, 0.99),
    })
}

fn summary(turns: &[Figures]) -> Figures {
    let of = |field: fn(&Figures) -> f64| median(turns.iter().map(field).collect());
    Figures {
        per_second: of(|turn| turn.per_second),
        p50_ms: of(|turn| turn.p50_ms),
        p99_ms: of(|turn| turn.p99_ms),
    }
}

fn print(arguments: &Arguments, report: &Report) -> Result<()> {
    if arguments.json {
        println!("{}", serde_json::to_string(report)?);
        return Ok(());
    }
    println!(
        "{} clients, {} nodes, {} turns of {} s\n\n{:<28} {:>9} {:>9} {:>9}",
        report.clients,
        report.nodes,
        arguments.runs,
        arguments.seconds,
        "",
        "a second",
        "p50 ms",
        "p99 ms"
    );
    for (name, figures) in [
        ("manifest, without a token", report.manifest_anonymous),
        ("manifest, with a token", report.manifest_bearer),
        ("a token, one client", report.token_one_client),
        ("a token, all clients", report.token_all_clients),
    ] {
        println!(
            "{name:<28} {:>9.0} {:>9.2} {:>9.2}",
            figures.per_second, figures.p50_ms, figures.p99_ms
        );
    }
    for aim in &report.aims {
        println!("- {aim}");
    }
    Ok(())
}
