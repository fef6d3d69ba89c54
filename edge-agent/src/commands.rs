//! What each command does, up to the daemon's socket or the daemon itself.
//!
//! Output for people goes to a terminal as bars and tables; with `--json` each update is one JSON
//! object on a line of its own.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use futures::future::BoxFuture;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde::Serialize;
use shoal_api::TransferProgress;
use shoal_content::Labels;
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::warn;

use crate::cli::{Command, Fetch, Settings, Setup, Who};
use crate::config::{self, Config};
use crate::control::{BanReport, ClientError, ImageReport, Line, Request, StatusReport, ask};
use crate::enrolment::{self, DataFolder};
use crate::transfers::TransferRecord;
use crate::{daemon, join, setup};

/// Why a command failed.
#[derive(Debug, Error)]
pub enum Error {
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error(transparent)]
    Folder(#[from] enrolment::Error),
    #[error(transparent)]
    Join(#[from] join::Error),
    #[error(transparent)]
    Daemon(#[from] daemon::Error),
    #[error(transparent)]
    Control(#[from] ClientError),
    #[error("--join-token needs --node, the address of any node")]
    NoNode,
    #[error("the labels cannot be used")]
    Labels(#[from] shoal_content::LabelsError),
    #[error(transparent)]
    Setup(#[from] setup::Error),
    #[error("nobody is there to be asked; --yes goes ahead, --dry-run only shows")]
    NobodyToAsk,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The settings as file, environment and flags give them.
pub fn load(settings: &Settings) -> Result<Config, Error> {
    let mut overrides = settings.overrides.clone();
    if let Some(folder) = &settings.data_dir {
        // Quoted, so that no path reads as another kind of value.
        let quoted = toml::Value::String(folder.display().to_string()).to_string();
        overrides.push(("agent.data_dir".into(), quoted));
    }
    Ok(Config::load(settings.config.as_deref(), std::env::vars(), &overrides)?)
}

/// Carries out `command`.
///
/// `settings` are where `config` came from: the daemon reads them anew at SIGHUP.
/// Boxed, so that the daemon is compiled here and not again in the program.
pub fn execute(
    settings: &Settings,
    config: Config,
    command: Command,
) -> BoxFuture<'_, Result<(), Error>> {
    Box::pin(execute_here(settings, config, command))
}

async fn execute_here(
    settings: &Settings,
    mut config: Config,
    command: Command,
) -> Result<(), Error> {
    let socket = config.control_socket();
    match command {
        Command::Join(join) => {
            introduce(&mut config, &join.who)?;
            let folder = DataFolder::open(&config.agent.data_dir)?;
            let enrolment = join::join(&folder, &config, &join.node, &join.token).await?;
            let mut out = io::stdout();
            writeln!(out, "joined {} as {}", enrolment.cluster, enrolment.name)?;
            Ok(())
        }
        Command::Run(run) => {
            introduce(&mut config, &run.who)?;
            let folder = DataFolder::open(&config.agent.data_dir)?;
            if let (Some(token), None) = (&run.join_token, folder.enrolment()?) {
                let node = run.node.as_deref().ok_or(Error::NoNode)?;
                join::join(&folder, &config, node, token).await?;
            }
            let limits = limits_at_hangup(settings.clone(), config.limits.clone())?;
            Ok(daemon::run(config, folder, limits, stop_signal()?).await?)
        }
        Command::Fetch(arguments) => fetch(&socket, arguments).await,
        Command::Status(json) => {
            let line = ask(&socket, &Request::Status, |_| {}).await?;
            print(&line, json.json, |line, out| match line {
                Line::Status(report) => status(report, out),
                _ => Ok(()),
            })
        }
        Command::List(json) => {
            let line = ask(&socket, &Request::List, |_| {}).await?;
            print(&line, json.json, |line, out| match line {
                Line::List { images } => list(images, out),
                _ => Ok(()),
            })
        }
        Command::Remove(one) => {
            let request = Request::Remove { reference: one.reference };
            let line = ask(&socket, &request, |_| {}).await?;
            print(&line, one.json.json, |line, out| match line {
                Line::Removed { freed_bytes, kept } => {
                    writeln!(out, "freed {}", HumanBytes(*freed_bytes))?;
                    match kept {
                        0 => Ok(()),
                        _ => writeln!(
                            out,
                            "{kept} of its recipes stay: another image has them, or they are in use"
                        ),
                    }
                }
                _ => Ok(()),
            })
        }
        Command::Setup(arguments) => set_up(&config, &arguments),
        Command::Pin(one) => pin(&socket, one.reference, true, one.json.json).await,
        Command::Unpin(one) => pin(&socket, one.reference, false, one.json.json).await,
        Command::Explain(arguments) => {
            let request = Request::Explain { limit: arguments.limit };
            let line = ask(&socket, &request, |_| {}).await?;
            print(&line, arguments.json.json, |line, out| match line {
                Line::Explain { transfers, swarm } => {
                    explain(transfers, out)?;
                    bans_of(swarm, out)?;
                    paths(swarm, out)
                }
                _ => Ok(()),
            })
        }
    }
}

/// Flags about this host win over the settings.
fn introduce(config: &mut Config, who: &Who) -> Result<(), Error> {
    let agent = &mut config.agent;
    agent.name = who.name.clone().or(agent.name.take());
    agent.zone = who.zone.clone().unwrap_or_else(|| agent.zone.clone());
    agent.role = who.role.unwrap_or(agent.role);
    let mut labels: BTreeMap<String, String> = agent.labels.clone().into();
    for more in &who.labels {
        labels.extend(BTreeMap::<String, String>::from(more.clone()));
    }
    agent.labels = Labels::try_from(labels)?;
    Ok(())
}

/// Shows what would change, asks, and does it.
fn set_up(config: &Config, arguments: &Setup) -> Result<(), Error> {
    let (engine, data_dir) = (arguments.engine, &config.agent.data_dir);
    let mut out = io::stdout();
    if arguments.undo {
        let Some(undo) = setup::Undo::read(data_dir, engine)? else {
            writeln!(out, "{} was not set up; nothing to take back", engine.as_str())?;
            return Ok(());
        };
        write!(out, "{}", undo.diff())?;
        if confirmed(arguments)? {
            undo.carry_out()?;
            writeln!(out, "{} is as it was; restart it if it is containerd", engine.as_str())?;
        }
        return Ok(());
    }
    let facts = setup::Facts::gather(config, &arguments.registries)?;
    let plan = facts.plan(engine, &arguments.root)?;
    if plan.is_done() {
        writeln!(out, "{} is set up already", engine.as_str())?;
        return Ok(());
    }
    write!(out, "{}", plan.diff())?;
    if confirmed(arguments)? {
        plan.carry_out(data_dir)?;
        writeln!(out, "{} is set up", engine.as_str())?;
        for advice in &plan.advice {
            writeln!(out, "- {advice}")?;
        }
        writeln!(out, "- take it back: shoal-agent setup {} --undo", engine.as_str())?;
    }
    Ok(())
}

/// Whether to go ahead with what was shown.
fn confirmed(arguments: &Setup) -> Result<bool, Error> {
    if arguments.dry_run || arguments.yes {
        return Ok(arguments.yes);
    }
    if !io::stdin().is_terminal() {
        return Err(Error::NobodyToAsk);
    }
    let mut out = io::stdout();
    write!(out, "Change these files? [y/N] ")?;
    out.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Turns true at SIGTERM or SIGINT.
fn stop_signal() -> Result<watch::Receiver<bool>, Error> {
    let (sender, receiver) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        sender.send_replace(true);
    });
    Ok(receiver)
}

/// The limits of the settings, read anew at each SIGHUP; what is wrong then changes nothing.
fn limits_at_hangup(
    settings: Settings,
    limits: config::Limits,
) -> Result<watch::Receiver<config::Limits>, Error> {
    let (sender, receiver) = watch::channel(limits);
    let mut hangups = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            match load(&settings) {
                Ok(config) => drop(sender.send_replace(config.limits)),
                Err(error) => warn!(%error, "the settings stay as they were"),
            }
        }
    });
    Ok(receiver)
}

async fn pin(
    socket: &Path,
    reference: shoal_content::ImageReference,
    pinned: bool,
    json: bool,
) -> Result<(), Error> {
    let line = ask(socket, &Request::Pin { reference, pinned }, |_| {}).await?;
    let word = if pinned { "pinned" } else { "unpinned" };
    print(&line, json, |line, out| match line {
        Line::Pinned { recipes } => writeln!(out, "{word} {recipes} recipes"),
        _ => Ok(()),
    })
}

async fn fetch(socket: &Path, arguments: Fetch) -> Result<(), Error> {
    let output = arguments.output.map(std::path::absolute).transpose()?;
    let Fetch { reference, format, preallocate, .. } = arguments;
    let request = Request::Fetch { reference, output, format, preallocate };
    let json = arguments.json.json;
    let bar =
        if !json && io::stderr().is_terminal() { progress_bar() } else { ProgressBar::hidden() };
    let outcome = ask(socket, &request, |line| {
        if json {
            // A closed pipe ends the program at its last line, too.
            let _ = json_line(line);
        } else if let Line::Progress { step, progress } = line {
            bar.set_length(progress.bytes_total);
            bar.set_position(progress.bytes_done);
            bar.set_message(step.clone());
        }
    })
    .await;
    bar.finish_and_clear();
    print(&outcome?, json, |line, out| match line {
        Line::Fetched { image, digest, output, progress } => {
            writeln!(out, "{image} ({digest})")?;
            if let Some(output) = output {
                writeln!(out, "written to {}", PathBuf::from(output).display())?;
            }
            sources(progress, out)
        }
        _ => Ok(()),
    })
}

fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template(
        "{msg:9} [{bar:32}] {bytes}/{total_bytes} {bytes_per_sec} eta {eta}",
    );
    if let Ok(style) = style {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

fn print(
    line: &Line,
    json: bool,
    people: impl FnOnce(&Line, &mut dyn Write) -> io::Result<()>,
) -> Result<(), Error> {
    if json {
        return Ok(json_line(line)?);
    }
    Ok(people(line, &mut io::stdout().lock())?)
}

fn json_line(value: &impl Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, value)?;
    writeln!(out)?;
    out.flush()
}

/// How much of what the line brings was used.
fn bound_percent(progress: &TransferProgress) -> Option<u64> {
    let line = progress.line_bytes_per_second?;
    let share = u128::from(progress.rate_bytes_per_second) * 100;
    Some(share.checked_div(u128::from(line))?.min(100) as u64)
}

/// Where the bytes came from, one source a line.
fn sources(progress: &TransferProgress, out: &mut dyn Write) -> io::Result<()> {
    let seconds = progress.elapsed_ms as f64 / 1000.0;
    // The rate is that of what had to be moved; of what was here there is none to tell.
    let rate = match progress.rate_bytes_per_second {
        0 => String::new(),
        rate => {
            let of_bound = bound_percent(progress);
            let of_bound = of_bound.map(|percent| format!(", {percent} % of the bound"));
            format!(", {}/s{}", HumanBytes(rate), of_bound.unwrap_or_default())
        }
    };
    writeln!(
        out,
        "  {} of {} in {seconds:.1} s{rate}",
        HumanBytes(progress.bytes_done),
        HumanBytes(progress.bytes_total),
    )?;
    let share = |bytes: u64| 100.0 * bytes as f64 / progress.bytes_done.max(1) as f64;
    let local = progress.bytes_local;
    writeln!(out, "  {:>5.1} %  {:>10}  own cache", share(local), HumanBytes(local).to_string())?;
    if progress.bytes_deduplicated > 0 {
        let copied = HumanBytes(progress.bytes_deduplicated).to_string();
        writeln!(out, "           {copied:>10}  of that out of other images")?;
    }
    if progress.bytes_by_delta > 0 {
        let (made, bundle) = (progress.bytes_by_delta, progress.delta_bundle_bytes);
        writeln!(
            out,
            "  {:>5.1} %  {:>10}  made from own cache and a delta bundle of {}",
            share(made),
            HumanBytes(made).to_string(),
            HumanBytes(bundle),
        )?;
    }
    let (peers, nodes) = (&progress.bytes_by_peer, &progress.bytes_by_node);
    for (kind, from) in [("agent", peers), ("storage through node", nodes)] {
        for (name, bytes) in from {
            let human = HumanBytes(*bytes).to_string();
            writeln!(out, "  {:>5.1} %  {human:>10}  {kind} {name}", share(*bytes))?;
        }
    }
    for (zone, bytes) in &progress.bytes_by_zone {
        let (human, zone) =
            (HumanBytes(*bytes).to_string(), if zone.is_empty() { "-" } else { zone.as_str() });
        writeln!(out, "  {:>5.1} %  {human:>10}  from agents in zone {zone}", share(*bytes))?;
    }
    if let Some(waits_for) = &progress.waits_for {
        writeln!(out, "  waits for {waits_for}")?;
    }
    match &progress.last_error {
        Some(error) => writeln!(out, "  last error: {error}"),
        None => Ok(()),
    }
}

fn status(report: &StatusReport, out: &mut dyn Write) -> io::Result<()> {
    let mirror = report.mirror_address.as_deref().unwrap_or("off");
    let orders = if report.orders_connected { "connected" } else { "not connected" };
    writeln!(out, "agent      {} (shoal-agent {})", report.name, report.version)?;
    writeln!(out, "peer       {}", report.peer)?;
    writeln!(out, "cluster    {}", report.cluster)?;
    writeln!(out, "address    {}", report.peer_address)?;
    writeln!(out, "mirror     {mirror}")?;
    writeln!(out, "nodes      {} ({orders})", report.nodes.join(", "))?;
    writeln!(
        out,
        "cache      {} of {}, {} recipes",
        HumanBytes(report.cache_bytes),
        HumanBytes(report.cache_bytes_max),
        report.recipes
    )?;
    let limits = &report.limits;
    let until = limits.until.as_ref().map(|at| format!(" until {at}")).unwrap_or_default();
    writeln!(out, "limits     up {}, down {}{until}", limits.upload, limits.download)?;
    let by_tls =
        report.peers.iter().filter(|peer| peer.path == shoal_p2p::Path::Tls.as_str()).count();
    writeln!(out, "peers      {} connected, {by_tls} by TLS", report.peers.len())?;
    writeln!(out, "transfers  {} running", report.transfers_running)?;
    report.banned.iter().try_for_each(|(peer, ban)| {
        writeln!(out, "banned     {peer}: {}, for {} s", ban.reason, ban.seconds_left)
    })
}

fn list(images: &[ImageReport], out: &mut dyn Write) -> io::Result<()> {
    let width = images.iter().map(|image| image.reference.len()).max().unwrap_or(0).max(5);
    writeln!(out, "{:width$}  {:9}  {:>10}  {:>6}  PINNED", "IMAGE", "KIND", "SIZE", "CACHED")?;
    for image in images {
        let share = 100 * image.chunks_held / image.chunks_total.max(1);
        let (size, pinned) =
            (HumanBytes(image.bytes).to_string(), if image.pinned { "yes" } else { "" });
        let (reference, kind) = (&image.reference, &image.kind);
        writeln!(out, "{reference:width$}  {kind:9}  {size:>10}  {share:>4} %  {pinned}")?;
    }
    Ok(())
}

/// Who is banned, and why, of what the swarm says.
fn bans_of(swarm: &serde_json::Value, out: &mut dyn Write) -> io::Result<()> {
    let banned: BTreeMap<String, BanReport> =
        serde_json::from_value(swarm["banned"].clone()).unwrap_or_default();
    banned.iter().try_for_each(|(peer, ban)| {
        writeln!(out, "banned: {peer}, {}, for {} s more", ban.reason, ban.seconds_left)
    })
}

fn explain(transfers: &[TransferRecord], out: &mut dyn Write) -> io::Result<()> {
    if transfers.is_empty() {
        return writeln!(out, "nothing was transferred since the agent started");
    }
    for transfer in transfers {
        writeln!(out, "{} ({}, {:?})", transfer.what, transfer.progress.state, transfer.purpose)?;
        sources(&transfer.progress, out)?;
    }
    Ok(())
}

/// How chunks go between this agent and those that are connected, one a line.
fn paths(swarm: &serde_json::Value, out: &mut dyn Write) -> io::Result<()> {
    let text = |of: &serde_json::Value| of.as_str().unwrap_or("?").to_owned();
    for peer in swarm["peers"].as_array().into_iter().flatten() {
        let kind = if peer["node"] == true { "node" } else { "agent" };
        let (id, address, path) = (&peer["peer"], &peer["address"], &peer["path"]);
        writeln!(out, "connected to {kind} {} at {} by {}", text(id), text(address), text(path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_of_a_transfer_tells_its_sources_and_its_bound() {
        let by = |name: &str, bytes: u64| BTreeMap::from([(name.to_owned(), bytes)]);
        let progress = TransferProgress {
            bytes_total: 1000,
            bytes_done: 1000,
            bytes_local: 300,
            bytes_deduplicated: 100,
            bytes_by_peer: by("other", 500),
            bytes_by_node: by("first", 200),
            rate_bytes_per_second: 90,
            line_bytes_per_second: Some(100),
            ..TransferProgress::default()
        };
        let mut out = Vec::new();
        sources(&progress, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        for part in [
            "90 % of the bound",
            "30.0 %       300 B  own cache",
            "100 B  of that out of other images",
            "50.0 %       500 B  agent other",
            "20.0 %       200 B  storage through node first",
        ] {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
        let unknown = TransferProgress { line_bytes_per_second: None, ..progress };
        assert_eq!(bound_percent(&unknown), None);
        let over = TransferProgress { line_bytes_per_second: Some(50), ..unknown };
        assert_eq!(bound_percent(&over), Some(100));
    }
}
