//! What the program itself writes: the access log, as programs read it; and how it ends.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::node::{DEADLINE, free_tcp, free_udp};
use super::v2::sha256;

const LAYER: &[u8] = b"a layer";

struct Program {
    child: Child,
    url: String,
    password: String,
    http: reqwest::Client,
}

async fn start(folder: &std::path::Path) -> Result<Program> {
    let listen = free_tcp()?;
    let text = format!(
        "[node]\ndata_dir = \"{}\"\n[http]\nlisten = \"{}\"\nplain_listen = \"{listen}\"\n\
         [raft]\nlisten = \"{}\"\n[peer]\nlisten = \"{}\"\n[discovery]\nenabled = false\n\
         [storage]\nreserve_bytes = 0\n[log]\nformat = \"json\"\n",
        folder.join("node").display(),
        free_tcp()?,
        free_udp()?,
        free_udp()?,
    );
    let file = folder.join("node.toml");
    std::fs::write(&file, text)?;
    let log = std::fs::File::create(folder.join("log"))?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_shoal-node"));
    command.arg("run").arg("--config").arg(&file).stdout(Stdio::piped()).stderr(log);
    let mut child = command.env_remove("RUST_LOG").kill_on_drop(true).spawn()?;
    let mut said = BufReader::new(child.stdout.take().context("no output")?).lines();
    let password = loop {
        let line = tokio::time::timeout(DEADLINE, said.next_line()).await??.context("it ended")?;
        if let Some(password) = line.strip_prefix("password: ") {
            break password.to_owned();
        }
    };
    // Whoever was first has installed the same.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let http = reqwest::Client::builder().no_proxy().build()?;
    let url = format!("http://{listen}");
    let asked = async {
        while http.get(format!("{url}/health")).send().await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, asked).await.context("it does not answer")?;
    Ok(Program { child, url, password, http })
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_is_one_json_object_and_the_program_ends_when_told() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let Program { mut child, url, password, http } = start(folder.path()).await?;
    let digest = sha256(LAYER);
    let push = format!("{url}/v2/team/app/blobs/uploads/?digest={digest}");
    let push = http.post(push).basic_auth("admin", Some(&password)).body(LAYER);
    push.send().await?.error_for_status()?;
    let pull = http.get(format!("{url}/v2/team/app/blobs/{digest}"));
    let pull = pull.basic_auth("admin", Some(&password)).header("x-request-id", "pull-1");
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let pull = pull.header("traceparent", format!("00-{trace}-00f067aa0ba902b7-01"));
    ensure!(pull.send().await?.bytes().await? == LAYER);
    let refused = http.get(format!("{url}/api/v1/images")).header("x-request-id", "refused-1");
    ensure!(refused.send().await?.status() == 401);

    let pid = Pid::from_raw(child.id().context("it runs")?.try_into()?);
    kill(pid, Signal::SIGTERM)?;
    let status = tokio::time::timeout(DEADLINE, child.wait()).await.context("it goes on")??;
    ensure!(status.success(), "{status}");

    let log = std::fs::read_to_string(folder.path().join("log"))?;
    ensure!(!log.contains(&password), "the password is in the log");
    let mut lines = Vec::new();
    for line in log.lines() {
        lines.push(serde_json::from_str::<Value>(line).with_context(|| line.to_owned())?);
    }
    let of = |id: &str| {
        let found = lines.iter().find(|line| line["request_id"] == id);
        found.with_context(|| format!("no line of {id} in {log}"))
    };
    let line = of("pull-1")?;
    for (field, wanted) in [
        ("level", "INFO"),
        ("service", "shoal-node"),
        ("trace_id", trace),
        ("user_id", "admin"),
        ("action", "pull_blob"),
        ("image_name", "team/app"),
        ("client_ip", "127.0.0.1"),
        ("status", "success"),
    ] {
        ensure!(line[field] == wanted, "{field}: {line}");
    }
    ensure!(line["image_id"].as_str().is_some_and(|id| id.starts_with("img-")), "{line}");
    ensure!(line["bytes_sent"] == LAYER.len(), "{line}");
    ensure!(line["duration_ms"].is_u64() && line["timestamp"].is_string(), "{line}");
    let line = of("refused-1")?;
    ensure!(line["status"] == "failure" && line["http_status"] == 401, "{line}");
    ensure!(line["user_id"] == "" && line["action"] == "read_images", "{line}");
    Ok(())
}
