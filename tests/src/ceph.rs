//! A real one-host Ceph with an S3 gateway, on a host of the test's network.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::clock::wait_for;
use crate::host::Host;
use crate::process::{repository, run, run_text};

/// How long the gateway may take to end.
const GATEWAY_DEADLINE: Duration = Duration::from_secs(30);

/// Stopped when dropped.
#[derive(Debug)]
pub struct Ceph {
    folder: PathBuf,
    host: Host,
    pub endpoint: String,
    pub access_key: String,
    pub secret_key: String,
}

impl Ceph {
    pub fn start(host: &Host, folder: &Path) -> Result<Self> {
        let mut command = host.command(script());
        command.arg("start").arg(folder);
        let printed = run_text(command)?;
        let line = printed.lines().last().unwrap_or_default();
        let mut words = line.split_whitespace().map(str::to_owned);
        let mut word = || words.next().context("ceph-rgw printed no address and keys");
        Ok(Self {
            folder: folder.into(),
            host: host.clone(),
            endpoint: word()?,
            access_key: word()?,
            secret_key: word()?,
        })
    }
}

impl Ceph {
    /// `kill -9`, or a clean stop, of the gateway alone.
    pub fn stop_gateway(&self, signal: Signal) -> Result<()> {
        self.signal_gateway(signal)?;
        let pid = self.gateway()?;
        wait_for("the gateway to end", GATEWAY_DEADLINE, || {
            Ok((kill(pid, None).is_err() || is_zombie(pid)).then_some(()))
        })
    }

    /// Starts the gateway again, and waits for nothing.
    pub fn start_gateway(&self) -> Result<()> {
        let mut command = self.host.command(script());
        command.arg("gateway").arg(&self.folder);
        run(command).map(drop)
    }

    /// For instance SIGSTOP and SIGCONT: connections stay, and nobody answers.
    pub fn signal_gateway(&self, signal: Signal) -> Result<()> {
        kill(self.gateway()?, signal).context("the gateway is not there")
    }

    fn gateway(&self) -> Result<Pid> {
        let text = std::fs::read_to_string(self.folder.join("rgw.pid"))?;
        Ok(Pid::from_raw(text.trim().parse()?))
    }
}

/// Whoever adopted it may not wait for it.
fn is_zombie(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, fields)| fields.trim_start().starts_with('Z'))
}

impl Drop for Ceph {
    fn drop(&mut self) {
        let mut command = self.host.command(script());
        command.arg("stop").arg(&self.folder);
        if let Err(error) = run(command) {
            eprintln!("Ceph did not stop: {error:#}");
        }
    }
}

fn script() -> PathBuf {
    repository().join("deploy/ceph-rgw")
}
