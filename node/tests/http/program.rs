//! A node as a program of its own, which can be told to stop.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::node::{DEADLINE, free_tcp, free_udp};
use super::wait::until;

pub struct Program {
    child: Child,
    folder: PathBuf,
    /// In the clear.
    pub url: String,
    pub https_url: String,
    pub password: String,
    pub http: reqwest::Client,
}

impl Program {
    /// Founds a cluster in `folder` and runs. `settings` are added to its file.
    pub async fn start(folder: &Path, settings: &str) -> Result<Self> {
        let (listen, https) = (free_tcp()?, free_tcp()?);
        let text = format!(
            "[node]\ndata_dir = \"{}\"\n[http]\nlisten = \"{https}\"\nplain_listen = \"{listen}\"\n\
             [raft]\nlisten = \"{}\"\n[peer]\nlisten = \"{}\"\n[discovery]\nenabled = false\n\
             [storage]\nreserve_bytes = 0\n[log]\nformat = \"json\"\n{settings}",
            folder.join("node").display(),
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
            let line =
                tokio::time::timeout(DEADLINE, said.next_line()).await??.context("it ended")?;
            if let Some(password) = line.strip_prefix("password: ") {
                break password.to_owned();
            }
        };
        // Whoever was first has installed the same.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().build()?;
        let url = format!("http://{listen}");
        until("an answer", async || Ok(http.get(format!("{url}/health")).send().await.ok()))
            .await?;
        let https_url = format!("https://{https}");
        Ok(Self { child, folder: folder.into(), url, https_url, password, http })
    }

    /// Where it keeps its data.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.join("node")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// SIGTERM.
    pub fn terminate(&self) -> Result<()> {
        let pid = Pid::from_raw(self.child.id().context("it runs")?.try_into()?);
        Ok(kill(pid, Signal::SIGTERM)?)
    }

    /// Waits until it has ended as it should.
    pub async fn ended(mut self) -> Result<()> {
        let ended = tokio::time::timeout(DEADLINE, self.child.wait()).await;
        let status = ended.context("it goes on")??;
        ensure!(status.success(), "{status}: {}", self.log());
        Ok(())
    }
}
