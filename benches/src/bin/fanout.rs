//! Spreads a disk and an image to many hosts on thin lines, beside aria2, sendme and plain HTTP.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use shoal_benches::fanout::table::Table;
use shoal_benches::fanout::torrent::Torrent;
use shoal_benches::fanout::{
    Case, Contest, Daemons, Field, Outcome, Taker, registry, spread, swarm,
};
use shoal_benches::sample::{digits, noise};
use shoal_benches::sendme::{self, Sender};
use shoal_tests::process::Process;

/// Measures how long each of many hosts needs for what one host has, as a multiple of the bound
/// F/B. Needs root, for network namespaces; aria2, mktorrent, docker-registry, skopeo and curl from
/// Debian; and sendme, which ./dev bench installs.
#[derive(Debug, Parser)]
#[command(name = "fanout", version, about, long_about = None)]
struct Arguments {
    /// Hosts that want the content.
    #[arg(long, default_value_t = 32)]
    hosts: usize,
    /// Each host's line, both ways, in Mbit/s.
    #[arg(long, default_value_t = 50)]
    mbit: u32,
    /// The disk, and about the container image, in MiB; neither compresses.
    #[arg(long, default_value_t = 128)]
    mib: usize,
    /// The disk compresses to a half.
    #[arg(long)]
    compressible: bool,
    /// Whom to measure. What is over HTTP, and sendme, whose receivers give to nobody, take as many
    /// times the bound as there are hosts.
    #[arg(long, value_enum, value_delimiter = ',', default_values = CONTESTANTS)]
    contestants: Vec<Contestant>,
    /// How long our agents are looked at after the disk, when they have nothing to do; 0 is not at all.
    #[arg(long, default_value_t = 60)]
    idle_seconds: u64,
    /// One JSON object in place of the table.
    #[arg(long)]
    json: bool,
}

const CONTESTANTS: [&str; 6] =
    ["shoal", "aria2", "sendme", "http", "shoal-container", "http-container"];

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Contestant {
    /// A disk, and an update of a tenth of it
    Shoal,
    /// The disk by BitTorrent, with a tracker
    Aria2,
    /// The disk by iroh-blobs
    Sendme,
    /// The disk as a blob from docker-registry, by curl
    Http,
    /// A container image of 30 layers, into the agents' caches, and another by skopeo through them
    ShoalContainer,
    /// One from docker-registry, by skopeo
    HttpContainer,
}

impl Contestant {
    fn ensure_installed(self) -> Result<()> {
        let programs: &[&str] = match self {
            Self::Shoal => &[],
            Self::Aria2 => &["aria2c", "mktorrent"],
            Self::Sendme => &[sendme::PROGRAM],
            Self::Http => &["docker-registry", "curl"],
            Self::ShoalContainer => &["skopeo"],
            Self::HttpContainer => &["docker-registry", "skopeo"],
        };
        for program in programs {
            let found = Command::new("which").arg(program).output()?.status.success();
            ensure!(
                found,
                "{program} is not here: apt install aria2 mktorrent docker-registry skopeo curl, and \
                 sendme by ./dev bench; or leave {self:?} out with --contestants"
            );
        }
        Ok(())
    }

    fn measure(
        self,
        field: &Field,
        folder: &Path,
        content: &Path,
        idle: Duration,
    ) -> Result<Vec<Outcome>> {
        let bytes = std::fs::metadata(content)?.len();
        match self {
            Self::Shoal => swarm::disks(field, folder, content, idle),
            Self::Aria2 => Ok(vec![aria2(field, folder, content, bytes)?]),
            Self::Sendme => Ok(vec![iroh_blobs(field, folder, content, bytes)?]),
            Self::Http => Ok(vec![registry::file(field, folder, content)?]),
            Self::ShoalContainer => swarm::containers(field, folder, usize::try_from(bytes)?),
            Self::HttpContainer => {
                Ok(vec![registry::container(field, folder, usize::try_from(bytes)?)?])
            }
        }
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    ensure!(arguments.hosts > 0 && arguments.mib > 0 && arguments.mbit > 0, "nothing to measure");
    for contestant in &arguments.contestants {
        contestant.ensure_installed()?;
    }
    let folder = tempfile::tempdir()?;
    let content = folder.path().join("source/content.raw");
    std::fs::create_dir_all(folder.path().join("source"))?;
    let sample = if arguments.compressible { digits } else { noise };
    std::fs::write(&content, sample(1, arguments.mib << 20))?;
    let mut outcomes = Vec::new();
    for contestant in &arguments.contestants {
        let field = Field::create(arguments.hosts, arguments.mbit)?;
        let own = folder.path().join(format!("{contestant:?}"));
        std::fs::create_dir_all(&own)?;
        eprintln!("{contestant:?} …");
        let idle = Duration::from_secs(arguments.idle_seconds);
        outcomes.extend(contestant.measure(&field, &own, &content, idle)?);
        std::fs::remove_dir_all(&own)?;
    }
    let Arguments { hosts, mbit, mib, json, .. } = arguments;
    Table::new(hosts, mbit, mib, outcomes).print(json)
}

fn aria2(field: &Field, folder: &Path, content: &Path, bytes: u64) -> Result<Outcome> {
    let torrent = Torrent::create(folder, field.hub(), content)?;
    let seed = torrent.seed(field.source(), &folder.join("seed-log"))?;
    let daemons = Daemons { source: vec![seed.id()], hosts: Vec::new() };
    spread(field, &disk("aria2", bytes), &daemons, |index| {
        torrent.take(field.taker(index), &folder.join(format!("taker-{index}")))
    })
}

fn iroh_blobs(field: &Field, folder: &Path, content: &Path, bytes: u64) -> Result<Outcome> {
    let sender = Sender::start(field.source(), &folder.join("sender"), content)?;
    let daemons = Daemons { source: vec![sender.id()], hosts: Vec::new() };
    spread(field, &disk("sendme (iroh-blobs)", bytes), &daemons, |index| {
        let own = folder.join(format!("taker-{index}"));
        let command = sender.receive(field.taker(index), &own)?;
        Ok(Taker { process: Process::start("sendme", command, &own.join("log"))?, leaves: None })
    })
}

/// The disk by one of the others.
fn disk(name: &str, bytes: u64) -> Contest<'_> {
    Contest { name, case: Case::Disk, ours: false, bytes }
}
