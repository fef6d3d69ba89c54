//! One run of the scanner: a process with a limit to its time and its output.
//!
//! It runs without a shell, in a folder of its own, in a process group of its own, after everybody
//! else has had the processor, and is the first to go where memory runs out. It has the node's
//! environment but for the node's own settings, which may be secrets.
//!
//! Invariants: a run ends in time; where the program does not end by itself, or nobody waits for it
//! any more, all that it has started ends with it; no more than [`OUTPUT_BYTES_MAX`] is taken of what
//! it says, and of its complaints the end.
//! Non-goal: what it says; see `report`.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use thiserror::Error;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::time::timeout;

/// The longest output. A report has about a kilobyte for each vulnerability.
pub const OUTPUT_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Of what is said on standard error, as much is kept: the end.
const SAID_BYTES_MAX: usize = 4096;
/// Of that, as much is shown.
const SHOWN_CHARS_MAX: usize = 600;
/// Of the node's own variables.
const OWN_VARIABLES: &[u8] = b"SHOAL_NODE_";
/// How far everybody else comes first: 0 to 19.
const NICENESS: &str = "10";
/// How soon the kernel ends it where memory runs out: -1000 to 1000.
const OUT_OF_MEMORY_SCORE: &str = "800";

/// Why a run has brought nothing.
#[derive(Debug, Error)]
pub enum ProgramError {
    #[error("not_started: [scanner] command cannot be run")]
    Start(#[source] io::Error),
    #[error("timed_out: the scanner did not end within {seconds} s ([scanner] timeout_seconds)")]
    Late { seconds: u64 },
    #[error("output_too_long: the scanner said more than {} MiB", OUTPUT_BYTES_MAX >> 20)]
    Long,
    #[error("scanner_failed: {status}: {said}")]
    Failed { status: ExitStatus, said: String },
}

/// What is run, and where. Nothing shows it: variables may be secrets.
pub struct Run<'a> {
    /// At least the program's path.
    pub command: &'a [String],
    pub arguments: Vec<String>,
    pub variables: Vec<(&'static str, String)>,
    /// What it leaves there is its caller's to remove.
    pub folder: &'a Path,
    pub limit: Duration,
}

/// A process that does not outlive whoever waits for it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // One that was waited for has no number any more: by now it may be somebody else's.
        if let Some(group) = self.0.id().and_then(|id| i32::try_from(id).ok()) {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
    }
}

impl Run<'_> {
    /// What it said on standard output, where it ended well.
    ///
    /// # Errors
    /// See [`ProgramError`].
    pub async fn output(&self) -> Result<Vec<u8>, ProgramError> {
        let mut said = VecDeque::new();
        let exchange = Box::pin(self.exchange(&mut said));
        let late = |_| ProgramError::Late { seconds: self.limit.as_secs() };
        let (status, output) = timeout(self.limit, exchange).await.map_err(late)??;
        match status.success() {
            true => Ok(output),
            false => Err(ProgramError::Failed { status, said: shown(said.make_contiguous()) }),
        }
    }

    async fn exchange(
        &self,
        said: &mut VecDeque<u8>,
    ) -> Result<(ExitStatus, Vec<u8>), ProgramError> {
        let mut running = Running(self.process().spawn().map_err(ProgramError::Start)?);
        let child = &mut running.0;
        if let Some(id) = child.id() {
            // Without it the kernel chooses by itself.
            let _ =
                tokio::fs::write(format!("/proc/{id}/oom_score_adj"), OUT_OF_MEMORY_SCORE).await;
        }
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let heard = async {
            listen(stderr, said).await;
            Ok::<(), ProgramError>(())
        };
        let (output, ()) = tokio::try_join!(taken(stdout), heard)?;
        let status = running.0.wait().await.map_err(ProgramError::Start)?;
        Ok((status, output))
    }

    fn process(&self) -> Command {
        let mut command = Command::new("nice");
        command.args(["-n", NICENESS]).args(self.command).args(&self.arguments);
        command.current_dir(self.folder).process_group(0).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(OWN_VARIABLES) {
                command.env_remove(name);
            }
        }
        command.env("TMPDIR", self.folder);
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }
}

async fn taken(stdout: Option<ChildStdout>) -> Result<Vec<u8>, ProgramError> {
    let mut output = Vec::new();
    if let Some(stdout) = stdout {
        // What broke off shows in what it says.
        let _ = stdout.take(OUTPUT_BYTES_MAX as u64 + 1).read_to_end(&mut output).await;
    }
    match output.len() <= OUTPUT_BYTES_MAX {
        true => Ok(output),
        false => Err(ProgramError::Long),
    }
}

/// To the end; what is too much of the beginning is forgotten.
async fn listen(stderr: Option<ChildStderr>, said: &mut VecDeque<u8>) {
    let Some(mut stderr) = stderr else { return };
    let mut part = [0; 1024];
    while let Ok(count) = stderr.read(&mut part).await
        && count > 0
    {
        said.extend(&part[..count]);
        let beyond = said.len().saturating_sub(SAID_BYTES_MAX);
        said.drain(..beyond);
    }
}

/// The end of it, on one line: what went wrong comes last, often over several lines.
fn shown(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let text = match text.rfind("FATAL") {
        Some(at) => &text[at..],
        None => &*text,
    };
    let words: Vec<&str> = text.split(|c: char| c.is_whitespace() || c.is_control()).collect();
    let line = words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    let chars = line.chars().count();
    match chars <= SHOWN_CHARS_MAX {
        true => line,
        false => {
            let end: String = line.chars().skip(chars - SHOWN_CHARS_MAX).collect();
            format!("…{end}")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use nix::sys::signal::kill;

    use super::*;

    async fn run(folder: &Path, script: &str, limit: Duration) -> Result<Vec<u8>, ProgramError> {
        let command = ["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()];
        let variables = vec![("SAID", "by the node".to_owned())];
        let run = Run { command: &command, arguments: Vec::new(), variables, folder, limit };
        run.output().await
    }

    const LONG: Duration = Duration::from_secs(120);

    #[tokio::test]
    async fn what_it_says_is_taken_where_it_ends_well() {
        let folder = tempfile::tempdir().unwrap();
        let script = "echo \"$SAID, in $(pwd -P), $(nice), with $TMPDIR\"; echo no >&2";
        let said = String::from_utf8(run(folder.path(), script, LONG).await.unwrap()).unwrap();
        let path = folder.path().canonicalize().unwrap();
        let niceness: i32 = said.split(", ").nth(2).unwrap().parse().unwrap();
        let (path, given) = (path.display(), folder.path().display());
        assert_eq!(said, format!("by the node, in {path}, {niceness}, with {given}\n"));
        assert!(niceness >= 10, "{said}");
    }

    #[tokio::test]
    async fn the_end_of_its_complaints_is_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let script = "i=0; while [ $i -lt 2000 ]; do echo noise >&2; i=$((i+1)); done; \
                      printf 'x FATAL\\tno such\\n\\033[1mimage\\n' >&2; exit 3";
        let error = run(folder.path(), script, LONG).await.unwrap_err();
        let text = error.to_string();
        assert_eq!(text, "scanner_failed: exit status: 3: FATAL no such [1mimage");
        let missing = ["/no/such/program".to_owned()];
        let (arguments, variables) = (Vec::new(), Vec::new());
        let folder = folder.path();
        let run = Run { command: &missing, arguments, variables, folder, limit: LONG };
        let text = run.output().await.unwrap_err().to_string();
        assert!(text.contains("/no/such/program"), "{text}");
    }

    #[tokio::test]
    async fn output_without_end_ends_it() {
        let folder = tempfile::tempdir().unwrap();
        let error = run(folder.path(), "exec yes", LONG).await.unwrap_err();
        assert!(matches!(error, ProgramError::Long), "{error}");
    }

    #[tokio::test]
    async fn all_that_it_has_started_ends_with_it_when_time_is_up() {
        let folder = tempfile::tempdir().unwrap();
        let script = "sleep 1000 & echo $! > child; wait";
        let error = run(folder.path(), script, Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(error, ProgramError::Late { seconds: 5 }), "{error}");
        let child: i32 =
            fs::read_to_string(folder.path().join("child")).unwrap().trim().parse().unwrap();
        let gone = async {
            // It may lie there for a moment until somebody asks how it ended.
            let state = || fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            while kill(Pid::from_raw(child), None).is_ok() && !state().contains(") Z") {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(LONG, gone).await.expect("what it has started goes on");
    }
}
