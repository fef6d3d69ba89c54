//! Processes under test: started in their own group, logged to a file, killed when dropped.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::clock::wait_for;
use crate::leaks;

/// How long a process may take to end after SIGTERM.
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// Whose logs have no secrets, whatever happens.
const OURS: [&str; 3] = ["shoal-node", "shoal-agent", "shoal"];
/// How much of a log an error shows, in lines.
const LOG_TAIL_LINES: usize = 25;

/// A running process with its log.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// Whether the program is one of ours.
    ours: bool,
}

impl Process {
    /// Starts `command`; standard output and error are added to `log`.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        // On another host it is what nsenter is told to run.
        let ours = std::iter::once(command.get_program()).chain(command.get_args()).any(|word| {
            let name = Path::new(word).file_name().and_then(OsStr::to_str);
            name.is_some_and(|name| OURS.contains(&name))
        });
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("{name} did not start: {command:?}"))?;
        Ok(Self { name: name.into(), child, log: log.into(), ours })
    }

    /// `kill -9`, to the whole group.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL);
        self.child.wait()?;
        Ok(())
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGTERM, and waits for a clean end.
    ///
    /// # Errors
    /// Where it does not end in time or ends with a failure.
    pub fn stop(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM);
        let status = wait_for(&format!("{} to stop", self.name), STOP_DEADLINE, || {
            Ok(self.child.try_wait()?)
        })?;
        if !status.success() {
            bail!("{} ended with {status}\n{}", self.name, self.log_tail());
        }
        Ok(())
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.ended()?.is_none())
    }

    /// How it ended, where it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// # Errors
    /// Where it ended by itself; shows the end of its log.
    pub fn ensure_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended with {status}\n{}", self.name, self.log_tail()),
        }
    }

    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    pub fn log_tail(&self) -> String {
        let text = self.log_text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
    }

    /// For instance SIGSTOP and SIGCONT, to the whole group.
    pub fn signal(&self, signal: Signal) {
        // A group that is gone already is what a signal would have brought about.
        let _ = killpg(Pid::from_raw(self.child.id().cast_signed()), signal);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(Signal::SIGKILL);
            let _ = self.child.wait();
        }
        // A test that fails anyway says what it has to say.
        if self.ours && !std::thread::panicking() {
            let found = leaks::first_in(&self.log).expect("the log can be read");
            assert!(found.is_none(), "the log of {} has {found:?}", self.name);
        }
    }
}

/// Runs `command` to its end.
///
/// # Errors
/// Where it cannot start or fails; shows what it printed.
pub fn run(mut command: Command) -> Result<Output> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("did not start: {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?} ended with {}\n{}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stdout).trim(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(output)
}

/// Runs `command` and gives what it printed, without the white space around it.
pub fn run_text(command: Command) -> Result<String> {
    Ok(String::from_utf8(run(command)?.stdout)?.trim().to_owned())
}

/// The path of one of our binaries, built in the profile of the tests.
pub fn binary(name: &str) -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let folder = BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    let folder = folder.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(folder.join(name))
}

/// The tests' own crate has none of the binaries as a dependency, so Cargo is asked for them. A
/// program that is no test lies beside them, and whoever built it built them.
fn build() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let folder = program.parent().context("a program lies in a folder")?;
    if folder.file_name().is_none_or(|name| name != "deps") {
        return Ok(folder.to_owned());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // The same selection as the tests' own, or else features differ and RocksDB is built again.
    command.args(["build", "--locked", "--workspace", "--bins", "--tests"]);
    command.current_dir(repository());
    run(command)?;
    // target/debug/deps/TEST-HASH
    let folder = folder.parent().context("the test binary lies outside a target folder")?;
    Ok(folder.to_owned())
}

/// The root of the checkout.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace")
}
