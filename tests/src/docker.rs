//! A real docker engine on a host, with the containerd that it starts.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::clock::wait_for;
use crate::host::Host;
use crate::process::{Process, run, run_text};

const START_DEADLINE: Duration = Duration::from_secs(60);

/// Killed when dropped, its containerd with it.
#[derive(Debug)]
pub struct Docker {
    socket: String,
    containerd: PathBuf,
    host: Host,
    process: Process,
}

impl Docker {
    /// An engine with the vfs driver and no network of its own: it pushes and pulls, it runs
    /// nothing. Certificates are not asked for on `10.77.0.0/24` and loopback.
    pub fn start(host: &Host, folder: &Path) -> Result<Self> {
        Self::start_trusting(host, folder, &["127.0.0.0/8", "10.77.0.0/24"])
    }

    /// The same, which asks everyone for a certificate but the networks in `insecure`.
    pub fn start_trusting(host: &Host, folder: &Path, insecure: &[&str]) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let socket = format!("unix://{}/docker.sock", folder.display());
        let mut command = host.command("dockerd");
        command.args(["--storage-driver=vfs", "--iptables=false", "--ip6tables=false"]);
        command.args(["--bridge=none", "--ip-forward=false"]);
        command.args(insecure.iter().map(|network| format!("--insecure-registry={network}")));
        command.arg("--data-root").arg(folder.join("data"));
        command.arg("--exec-root").arg(folder.join("exec"));
        command.arg("--pidfile").arg(folder.join("pid"));
        command.args(["-H", &socket]);
        let mut process = Process::start("dockerd", command, &folder.join("log"))?;
        wait_for("dockerd to answer", START_DEADLINE, || {
            process.ensure_running()?;
            let mut command = Command::new("docker");
            command.args(["-H", &socket, "version"]);
            Ok(run(command).ok())
        })?;
        let containerd = folder.join("exec/containerd/containerd.sock");
        Ok(Self { socket, containerd, host: host.clone(), process })
    }

    /// Runs the docker command against this engine; gives what it printed.
    pub fn docker(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.host.command("docker");
        command.args(["-H", &self.socket]).args(arguments);
        // A login is kept apart from the one of whoever runs the tests.
        command.env("DOCKER_CONFIG", self.containerd.with_file_name("client"));
        run_text(command)
    }

    /// Runs containerd's own client, `ctr`, on this host.
    pub fn ctr(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.host.command("ctr");
        command.arg("--address").arg(&self.containerd).args(arguments);
        run_text(command)
    }

    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // SIGTERM lets it end its containerd; whatever is left goes with the process group.
        if let Err(error) = self.process.stop() {
            eprintln!("{error:#}");
        }
    }
}
