//! Debian's docker-registry on the source over plain HTTP, and clients that take from it alone.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use shoal_tests::host::Host;
use shoal_tests::process::{Process, run, run_text};

use super::image::{self, Skopeo};
use super::{Case, Contest, Daemons, Field, Outcome, Taker, spread, wait_for_port};

const PORT: u16 = 5000;

/// One file as a blob, to a curl on each host.
pub fn file(field: &Field, folder: &Path, content: &Path) -> Result<Outcome> {
    let server = start(field.source(), folder)?;
    let url = push_blob(field.source(), content)?;
    let contest = Contest {
        name: "HTTP from docker-registry",
        case: Case::Disk,
        ours: false,
        bytes: std::fs::metadata(content)?.len(),
    };
    let daemons = Daemons { source: vec![server.id()], hosts: Vec::new() };
    spread(field, &contest, &daemons, |index| {
        let mut command = field.taker(index).command("curl");
        command.args(["-sSf", "-o"]).arg(folder.join(format!("taken-{index}"))).arg(&url);
        let log = folder.join(format!("curl-{index}"));
        Ok(Taker { process: Process::start("curl", command, &log)?, leaves: None })
    })
}

/// A container image of about `bytes`, to a skopeo on each host.
pub fn container(field: &Field, folder: &Path, bytes: usize) -> Result<Outcome> {
    let server = start(field.source(), folder)?;
    let image = image::mixed(folder, 1, bytes)?;
    let reference = format!("{}:{PORT}/bench/app:v1", field.source().address());
    let skopeo = Skopeo::prepare(folder)?;
    skopeo.push(field.source(), &image, &reference, None)?;
    let contest = Contest {
        name: "docker-registry, layers by skopeo",
        case: Case::Container,
        ours: false,
        bytes: image.blob_bytes,
    };
    let daemons = Daemons { source: vec![server.id()], hosts: Vec::new() };
    spread(field, &contest, &daemons, |index| {
        skopeo.pull(field.taker(index), &folder.join(format!("taker-{index}")), &reference)
    })
}

fn start(source: &Host, folder: &Path) -> Result<Process> {
    let config = folder.join("registry.yml");
    let text = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n\
         http: {{addr: '{}:{PORT}'}}\n",
        folder.join("registry").display(),
        source.address()
    );
    std::fs::write(&config, text)?;
    let mut command = source.command("docker-registry");
    command.arg("serve").arg(&config);
    let server = Process::start("docker-registry", command, &folder.join("log"))?;
    wait_for_port(source, source.address(), PORT)?;
    Ok(server)
}

/// Gives the address of what was pushed.
fn push_blob(source: &Host, content: &Path) -> Result<String> {
    let mut command = Command::new("sha256sum");
    command.arg(content);
    let printed = run_text(command)?;
    let digest = printed.split_whitespace().next().context("sha256sum printed nothing")?;
    let base = format!("http://{}:{PORT}/v2/bench/blobs", source.address());
    let mut begin = source.command("curl");
    begin.args(["-sSf", "-X", "POST", "-o", "/dev/null", "-w", "%header{location}"]);
    begin.arg(format!("{base}/uploads/"));
    let session = run_text(begin)?;
    let mut push = source.command("curl");
    push.args(["-sSf", "-X", "PUT", "-H", "Content-Type: application/octet-stream", "-T"]);
    push.arg(content).arg(format!("{session}&digest=sha256:{digest}"));
    run(push)?;
    Ok(format!("{base}/sha256:{digest}"))
}
