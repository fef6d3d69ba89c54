//! Spreads a disk from one host to many over thin lines, beside aria2 (BitTorrent) and plain HTTP.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use shoal_benches::fanout::torrent::Torrent;
use shoal_benches::fanout::{Field, Outcome, Taker, spread, wait_for_port};
use shoal_benches::sample::noise;
use shoal_tests::cluster::{Agent, Cluster, Node, Storage};
use shoal_tests::process::{Process, run, run_text};

/// Measures how long each of many hosts needs for what one host has, as a multiple of the bound
/// F/B. Needs root, for network namespaces; and aria2, mktorrent and docker-registry from Debian.
#[derive(Debug, Parser)]
#[command(name = "fanout", version, about, long_about = None)]
struct Arguments {
    /// Hosts that want the content.
    #[arg(long, default_value_t = 32)]
    hosts: usize,
    /// Each host's line, both ways, in Mbit/s.
    #[arg(long, default_value_t = 50)]
    mbit: u32,
    /// The content, in MiB; it does not compress.
    #[arg(long, default_value_t = 128)]
    mib: usize,
    /// Whom to measure. HTTP takes as many times the bound as there are hosts.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["shoal", "aria2", "http"])]
    contestants: Vec<Contestant>,
    /// One JSON object in place of the table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Contestant {
    Shoal,
    Aria2,
    Http,
}

impl Contestant {
    fn ensure_installed(self) -> Result<()> {
        let programs: &[&str] = match self {
            Self::Shoal => &[],
            Self::Aria2 => &["aria2c", "mktorrent"],
            Self::Http => &["docker-registry", "curl"],
        };
        for program in programs {
            let found = Command::new("which").arg(program).output()?.status.success();
            ensure!(
                found,
                "{program} is not here: apt install aria2 mktorrent docker-registry curl, or leave \
                 {self:?} out with --contestants"
            );
        }
        Ok(())
    }
}

/// One in so many MiB is another in the second version.
const CHANGED_MIB: usize = 10;
const REGISTRY_PORT: u16 = 5000;

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    ensure!(arguments.hosts > 0 && arguments.mib > 0 && arguments.mbit > 0, "nothing to measure");
    for contestant in &arguments.contestants {
        contestant.ensure_installed()?;
    }
    let folder = tempfile::tempdir()?;
    let content = folder.path().join("source/content.raw");
    std::fs::create_dir_all(folder.path().join("source"))?;
    std::fs::write(&content, noise(1, arguments.mib << 20))?;
    let mut outcomes = Vec::new();
    for contestant in &arguments.contestants {
        let field = Field::create(arguments.hosts, arguments.mbit)?;
        let own = folder.path().join(format!("{contestant:?}"));
        std::fs::create_dir_all(&own)?;
        eprintln!("{contestant:?} …");
        match contestant {
            Contestant::Shoal => outcomes.extend(shoal(&field, &own, &content)?),
            Contestant::Aria2 => outcomes.push(aria2(&field, &own, &content)?),
            Contestant::Http => outcomes.push(http(&field, &own, &content)?),
        }
        std::fs::remove_dir_all(&own)?;
    }
    print(&arguments, &outcomes)
}

/// A node on the source, an agent on each other host; cold, then an update of what they hold.
fn shoal(field: &Field, folder: &Path, content: &Path) -> Result<Vec<Outcome>> {
    let source = field.source();
    let storage = Storage::Folder(folder.join("objects"));
    let node = Node::prepare(source, &folder.join("node"), "node-1", source.address(), &storage)?;
    let mut cluster = Cluster::of(field.hub(), folder, vec![node])?;
    for index in 0..field.takers {
        let name = format!("agent-{}", index + 1);
        let mut agent = Agent::prepare(field.taker(index), &folder.join(&name), &name)?;
        agent.join(&cluster.nodes[0], &cluster.operator.token("agent")?)?;
        agent.start()?;
        cluster.agents.push(agent);
    }
    let mut daemons = vec![cluster.nodes[0].process()?.id()];
    for agent in &mut cluster.agents {
        daemons.push(agent.process()?.id());
    }
    let mut outcomes = Vec::new();
    let bytes = std::fs::metadata(content)?.len();
    let (changed, changed_bytes) = change(folder, content)?;
    let versions = [
        ("shoal", "bench/disk:v1", content, bytes),
        ("shoal, update of a tenth", "bench/disk:v2", &changed, changed_bytes),
    ];
    for (name, reference, disk, bytes) in versions {
        cluster.operator.run(&["image", "upload", &disk.to_string_lossy(), reference])?;
        let outcome = spread(field, name, bytes, &daemons, |index| {
            let command = cluster.agents[index].command("fetch", &[reference])?;
            let log = folder.join(format!("fetch-{index}"));
            Ok(Taker { process: Process::start("fetch", command, &log)?, leaves: None })
        });
        outcomes.push(outcome.with_context(|| format!("{:#?}", cluster.logs()))?);
    }
    Ok(outcomes)
}

/// A copy in which each [`CHANGED_MIB`]th MiB is another, and how many bytes those are.
fn change(folder: &Path, content: &Path) -> Result<(PathBuf, u64)> {
    let path = folder.join("changed.raw");
    let mebibytes = usize::try_from(std::fs::copy(content, &path)? >> 20)?;
    let mut file = File::options().write(true).open(&path)?;
    let mut changed = 0;
    for place in (0..mebibytes).step_by(CHANGED_MIB) {
        let other = noise(1_000_000 + place as u64, 1 << 20);
        file.seek(SeekFrom::Start((place as u64) << 20))?;
        file.write_all(&other)?;
        changed += other.len() as u64;
    }
    Ok((path, changed))
}

fn aria2(field: &Field, folder: &Path, content: &Path) -> Result<Outcome> {
    let torrent = Torrent::create(folder, field.hub(), content)?;
    let seed = torrent.seed(field.source(), &folder.join("seed-log"))?;
    let bytes = std::fs::metadata(content)?.len();
    spread(field, "aria2", bytes, &[seed.id()], |index| {
        torrent.take(field.taker(index), &folder.join(format!("taker-{index}")))
    })
}

/// Debian's docker-registry on the source, and a curl on each other host.
fn http(field: &Field, folder: &Path, content: &Path) -> Result<Outcome> {
    let source = field.source();
    let config = folder.join("registry.yml");
    let root = folder.join("registry");
    let text = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n\
         http: {{addr: '{}:{REGISTRY_PORT}'}}\n",
        root.display(),
        source.address()
    );
    std::fs::write(&config, text)?;
    let mut command = source.command("docker-registry");
    command.arg("serve").arg(&config);
    let server = Process::start("docker-registry", command, &folder.join("log"))?;
    wait_for_port(source, source.address(), REGISTRY_PORT)?;
    let mut command = Command::new("sha256sum");
    command.arg(content);
    let printed = run_text(command)?;
    let digest = printed.split_whitespace().next().context("sha256sum printed nothing")?;
    let base = format!("http://{}:{REGISTRY_PORT}/v2/bench/blobs", source.address());
    let mut begin = source.command("curl");
    begin.args(["-sSf", "-X", "POST", "-o", "/dev/null", "-w", "%header{location}"]);
    let session = run_text({
        begin.arg(format!("{base}/uploads/"));
        begin
    })?;
    let mut push = source.command("curl");
    push.args(["-sSf", "-X", "PUT", "-H", "Content-Type: application/octet-stream", "-T"]);
    push.arg(content).arg(format!("{session}&digest=sha256:{digest}"));
    run(push)?;
    let bytes = std::fs::metadata(content)?.len();
    spread(field, "HTTP from docker-registry", bytes, &[server.id()], |index| {
        let mut command = field.taker(index).command("curl");
        command.args(["-sSf", "-o"]).arg(folder.join(format!("taken-{index}")));
        command.arg(format!("{base}/sha256:{digest}"));
        let log = folder.join(format!("curl-{index}"));
        let process = Process::start("curl", command, &log)?;
        Ok(Taker { process, leaves: None })
    })
}

fn print(arguments: &Arguments, outcomes: &[Outcome]) -> Result<()> {
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(outcomes)?);
        return Ok(());
    }
    println!(
        "{} hosts, {} Mbit/s each way, {} MiB; times are multiples of the bound\n",
        arguments.hosts, arguments.mbit, arguments.mib
    );
    println!(
        "{:<28} {:>6} {:>6} {:>6} {:>8} {:>10} {:>9}",
        "", "p50", "p99", "max", "copies", "CPU s/GiB", "peak MiB"
    );
    for outcome in outcomes {
        println!(
            "{:<28} {:>6.2} {:>6.2} {:>6.2} {:>8.2} {:>10.1} {:>9.0}",
            outcome.name,
            outcome.p50,
            outcome.p99,
            outcome.max,
            outcome.source_copies,
            outcome.cpu_seconds_per_gib,
            outcome.peak_mib
        );
    }
    if let Some(ours) = outcomes.iter().find(|outcome| outcome.name == "shoal") {
        println!();
        for other in outcomes.iter().filter(|other| !other.name.starts_with("shoal")) {
            println!(
                "{}: its slowest host takes {:.2} times ours",
                other.name,
                other.max / ours.max
            );
        }
    }
    println!("\ncopies: bytes that left the source, headers included, over the content's.");
    Ok(())
}
