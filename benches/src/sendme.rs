//! sendme, a client of iroh-blobs: a sender, and receivers that take from it alone.
//!
//! It runs on hosts that reach nobody else. Its tickets carry the sender's addresses, and no relay
//! is used, so it does without what it would ask on the internet.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use shoal_tests::clock::wait_for;
use shoal_tests::host::Host;
use shoal_tests::process::Process;

use crate::process::cpu_of;
use crate::report::{Run, measure};

pub const PROGRAM: &str = "sendme";
/// It hashes all content before it says a ticket.
const TICKET_DEADLINE: Duration = Duration::from_secs(60);
const TICKET_AFTER: &str = "sendme receive ";
/// What a receiver says when it knows what is to come, and when it has all in its store.
const BEGINS: &str = "getting collection ";
const HAS_ALL: &str = "exporting to ";

/// Gives one file to whoever has the ticket, until it is dropped.
#[derive(Debug)]
pub struct Sender {
    process: Process,
    ticket: String,
}

/// What receiving a file took, of both ends together.
#[derive(Debug, Clone, Copy)]
pub struct Received {
    /// From when the receiver is connected until all is in its store, verified.
    pub transfer: Run,
    /// The whole command, until the file is where it was asked for.
    pub command: Run,
}

impl Sender {
    /// Has all of `content` hashed when it returns; keeps what it needs in `folder`.
    ///
    /// # Errors
    /// Where sendme does not start, or says no ticket.
    pub fn start(host: &Host, folder: &Path, content: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let mut command = command(host, "send", folder);
        command.args(["--ticket-type", "addresses"]).arg(content);
        let mut process = Process::start("sendme send", command, &folder.join("log"))?;
        let ticket = wait_for("a ticket of sendme", TICKET_DEADLINE, || {
            process.ensure_running()?;
            let said = process.log_text();
            // A line that is not whole yet may end in the middle of the ticket.
            let whole = said.rsplit_once('\n').map_or("", |(lines, _)| lines);
            Ok(whole.lines().find_map(|line| line.strip_prefix(TICKET_AFTER)).map(str::to_owned))
        })?;
        Ok(Self { process, ticket: ticket.trim().to_owned() })
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// A command that ends when the file lies in `folder`, which is made here.
    pub fn receive(&self, host: &Host, folder: &Path) -> Result<Command> {
        std::fs::create_dir_all(folder)?;
        let mut command = command(host, "receive", folder);
        command.arg(&self.ticket);
        Ok(command)
    }

    /// Receives into `folder`, and measures it.
    ///
    /// # Errors
    /// Where it fails, or does not say how far it is as this version does.
    pub async fn measure(&self, host: &Host, folder: &Path) -> Result<Received> {
        let before = cpu_of(self.id())?;
        let (mut command, (reader, writer)) = (self.receive(host, folder)?, std::io::pipe()?);
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        let (run, transfer) = measure(async || {
            let mut child = command.spawn().context("sendme did not start")?;
            // It holds ends of the pipe, and the lines end when nobody does.
            drop(command);
            let now = || -> Result<(Instant, Duration)> {
                Ok((Instant::now(), cpu_of(self.id())? + cpu_of(child.id())?))
            };
            let (mut begun, mut ended, mut said) = (None, None, String::new());
            for line in BufReader::new(reader).lines() {
                let line = line?;
                if line.starts_with(BEGINS) {
                    begun = Some(now()?);
                } else if line.starts_with(HAS_ALL) {
                    ended = Some(now()?);
                }
                said = said + &line + "\n";
            }
            let status = child.wait()?;
            ensure!(status.success(), "sendme receive ended with {status}\n{said}");
            let (begun, ended) = begun.zip(ended).with_context(|| {
                format!("sendme does not say '{BEGINS}' and '{HAS_ALL}' but:\n{said}")
            })?;
            Ok(Run { wall: ended.0 - begun.0, cpu: ended.1.saturating_sub(begun.1) })
        })
        .await?;
        let cpu = run.cpu + cpu_of(self.id())?.saturating_sub(before);
        Ok(Received { transfer, command: Run { cpu, ..run } })
    }
}

/// It keeps its store in the folder that it is started in.
fn command(host: &Host, what: &str, folder: &Path) -> Command {
    let mut command = host.command(PROGRAM);
    command.args([what, "--relay", "disabled", "--no-progress"]);
    command.current_dir(folder).env_remove("RUST_LOG").env_remove("IROH_SECRET");
    command
}
