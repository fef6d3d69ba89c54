//! A real one-host Ceph with an S3 gateway, on a host of the test's network.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::host::Host;
use crate::process::{repository, run, run_text};

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
