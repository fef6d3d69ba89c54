//! The program that speaks for a key management service: one process for each call, one line of JSON
//! to it and one from it.
//!
//! It gets, on standard input, `version` (1), `operation`, and by operation:
//!
//! | operation  | it gets               | it answers                                                |
//! |------------|-----------------------|-----------------------------------------------------------|
//! | `identify` |                       | `key_id`: what wraps now; `opens`: what it unwraps besides |
//! | `wrap`     | `key_id`, `plaintext` | `wrapped`                                                 |
//! | `unwrap`   | `key_id`, `wrapped`   | `plaintext`                                               |
//!
//! `plaintext` and `wrapped` are base64 (RFC 4648, section 4): 32 bytes, and at most
//! [`WRAPPED_BYTES_MAX`]. A `key_id` names one version of one key for ever; `opens` lists others, the
//! newest first. An answer with `error`, or another exit status than 0, is a failure. It is run
//! without a shell, in `/`, in a process group of its own, and with the node's environment but for the
//! node's own settings, which may be secrets.
//!
//! Invariants: a call ends in time, and where the program does not end by itself, all that it has
//! started ends with it; no more than [`ANSWER_BYTES_MAX`] is taken of an answer, and nothing of it
//! shown. What the program says on standard error goes to the log without whatever is long enough to
//! be a key or a token.
//! Non-goal: when it is asked, and what is remembered of its answers; see `kms`.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;
use tracing::warn;
use zeroize::Zeroizing;

use crate::store::sealed::{KEY_BYTES, KeyBytes};

const PROTOCOL: u8 = 1;
/// The longest answer.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Of what is said on standard error, as much is shown of one call.
const SAID_BYTES_MAX: usize = 4096;
/// A wrapped key stands in a row, beside what it wraps.
const WRAPPED_BYTES_MAX: usize = shoal_metadata::DATA_KEY_BYTES_MAX - 64;
/// Of the id of a key; with what stands before it in a row it is an id of a master key.
const KEY_ID_BYTES_MAX: usize = 200;
/// Keys that one service opens.
const KEYS_MAX: usize = 1000;
/// What is as long as this, without a break, is shown to nobody; nor is half of it, without a slash.
const SECRET_CHARS_MIN: usize = 40;
/// Of the node's own variables.
const OWN_VARIABLES: &[u8] = b"SHOAL_NODE_";

/// Why a service of keys did not do what it was asked.
#[derive(Debug, Error)]
pub enum KmsError {
    #[error(
        "{program} cannot be started; [encryption] kms_command has to name a program that the node's \
         user may run"
    )]
    Start { program: String, source: io::Error },
    #[error(
        "{program} did not end within {seconds} s when asked to {operation}, and was killed: see \
         whether the key service answers, or raise [encryption] kms_timeout_seconds"
    )]
    Late { program: String, operation: &'static str, seconds: u64 },
    #[error("{program} is busy with another call for too long; try again")]
    Busy { program: String },
    #[error("{program} failed when asked to {operation}: {reason}")]
    Failed { program: String, operation: &'static str, reason: String },
    #[error(
        "{program} answered more than {ANSWER_BYTES_MAX} bytes when asked to {operation}: one line of \
         JSON goes to its standard output, and all else to standard error"
    )]
    Long { program: String, operation: &'static str },
    #[error("{program} did not answer as it should when asked to {operation}: {wanted}")]
    Answer { program: String, operation: &'static str, wanted: &'static str },
    #[error(
        "what {program} has wrapped with {key_id} it does not unwrap again: nothing was sealed with it; \
         correct the program"
    )]
    Lost { program: String, key_id: String },
    #[error(
        "what {program} unwrapped with {key_id} is not what was wrapped: it asks another service or \
         another key, or the row is damaged"
    )]
    Other { program: String, key_id: String },
}

impl KmsError {
    /// Whether the same call may do later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Late { .. } | Self::Busy { .. } | Self::Failed { .. } => true,
            Self::Start { .. }
            | Self::Long { .. }
            | Self::Answer { .. }
            | Self::Lost { .. }
            | Self::Other { .. } => false,
        }
    }
}

#[derive(Debug)]
pub(super) struct Program {
    /// Its path, and what it is given.
    command: Vec<String>,
    limit: Duration,
}

#[derive(Default, Serialize)]
struct Request<'a> {
    version: u8,
    operation: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plaintext: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wrapped: Option<&'a str>,
}

/// Fields that are not known say nothing.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Answer {
    key_id: Option<String>,
    opens: Vec<String>,
    wrapped: Option<String>,
    plaintext: Option<Zeroized>,
    error: Option<String>,
}

/// A text that is overwritten when it is dropped.
#[derive(Deserialize)]
#[serde(from = "String")]
struct Zeroized(Zeroizing<String>);

impl From<String> for Zeroized {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
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

impl Program {
    /// `command` has at least the program's path.
    pub(super) fn new(command: &[String], limit: Duration) -> Self {
        Self { command: command.to_vec(), limit }
    }

    /// For messages: its arguments may say too much.
    pub(super) fn name(&self) -> String {
        self.command.first().cloned().unwrap_or_default()
    }

    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    /// The keys that it opens, by their ids; the first one wraps.
    ///
    /// # Errors
    /// See [`KmsError`].
    pub(super) async fn identify(&self) -> Result<Vec<String>, KmsError> {
        let request = Request { operation: "identify", ..Request::default() };
        let answer = self.call(request).await?;
        let wanted =
            "key_id, and perhaps opens: up to 1000 ids of 1 to 200 letters, digits and signs";
        let malformed = || self.malformed("identify", wanted);
        let mut keys = vec![answer.key_id.ok_or_else(malformed)?];
        for key in answer.opens {
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        let is_id = |key: &String| {
            (1..=KEY_ID_BYTES_MAX).contains(&key.len())
                && key.bytes().all(|byte| byte.is_ascii_graphic())
        };
        match keys.len() <= KEYS_MAX && keys.iter().all(is_id) {
            true => Ok(keys),
            false => Err(malformed()),
        }
    }

    /// # Errors
    /// See [`KmsError`].
    pub(super) async fn wrap(&self, key_id: &str, key: &KeyBytes) -> Result<Vec<u8>, KmsError> {
        let plaintext = Zeroizing::new(STANDARD.encode(&key[..]));
        let (operation, key_id) = ("wrap", Some(key_id));
        let plaintext = Some(plaintext.as_str());
        let answer = self.call(Request { operation, key_id, plaintext, ..Request::default() });
        let wrapped = answer.await?.wrapped.and_then(|text| STANDARD.decode(text).ok());
        let wrapped = wrapped.filter(|bytes| (1..=WRAPPED_BYTES_MAX).contains(&bytes.len()));
        wrapped.ok_or_else(|| self.malformed(operation, "wrapped: base64 of 1 to 960 bytes"))
    }

    /// # Errors
    /// See [`KmsError`].
    pub(super) async fn unwrap(&self, key_id: &str, wrapped: &[u8]) -> Result<KeyBytes, KmsError> {
        let wrapped = STANDARD.encode(wrapped);
        let (operation, key_id, wrapped) = ("unwrap", Some(key_id), Some(wrapped.as_str()));
        let answer = self.call(Request { operation, key_id, wrapped, ..Request::default() });
        let text = answer.await?.plaintext;
        let bytes = text.and_then(|text| STANDARD.decode(text.0.as_str()).ok().map(Zeroizing::new));
        let key = bytes.and_then(|bytes| <[u8; KEY_BYTES]>::try_from(&bytes[..]).ok());
        let key = key.map(Zeroizing::new);
        key.ok_or_else(|| self.malformed(operation, "plaintext: base64 of 32 bytes"))
    }

    fn malformed(&self, operation: &'static str, wanted: &'static str) -> KmsError {
        KmsError::Answer { program: self.name(), operation, wanted }
    }

    async fn call(&self, request: Request<'_>) -> Result<Answer, KmsError> {
        let operation = request.operation;
        // So long that it is not copied while it grows.
        let mut line = Zeroizing::new(Vec::<u8>::with_capacity(4 * 1024));
        serde_json::to_writer(&mut *line, &Request { version: PROTOCOL, ..request })
            .expect("texts have a form in JSON");
        line.push(b'\n');
        let mut said = Vec::new();
        let exchange = Box::pin(self.exchange(operation, &line, &mut said));
        let ended = timeout(self.limit, exchange).await;
        let said = shown(&said);
        if !said.is_empty() {
            warn!(program = self.name(), operation, said, "the program of the key service speaks");
        }
        let (status, answer) = ended.map_err(|_| KmsError::Late {
            program: self.name(),
            operation,
            seconds: self.limit.as_secs(),
        })??;
        let failed = |reason| KmsError::Failed { program: self.name(), operation, reason };
        let parsed = serde_json::from_slice::<Answer>(&answer).ok();
        if let Some(error) = parsed.as_ref().and_then(|answer| answer.error.as_ref()) {
            return Err(failed(shown(error.as_bytes())));
        }
        if !status.success() {
            return Err(failed(format!("{status}; {said}").trim_end_matches("; ").to_owned()));
        }
        parsed.ok_or_else(|| self.malformed(operation, "one line of JSON"))
    }

    /// What it answered when it had ended; what it said is in `said` also where it does not end.
    async fn exchange(
        &self,
        operation: &'static str,
        line: &[u8],
        said: &mut Vec<u8>,
    ) -> Result<(ExitStatus, Zeroizing<Vec<u8>>), KmsError> {
        let failed = |source| KmsError::Start { program: self.name(), source };
        let mut running = Running(self.command().spawn().map_err(failed)?);
        let child = &mut running.0;
        let stdin = child.stdin.take();
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let sent = async {
            send(stdin, line).await;
            Ok::<(), KmsError>(())
        };
        let answered = async {
            let answer = take_answer(stdout).await;
            match answer.len() <= ANSWER_BYTES_MAX {
                true => Ok(answer),
                false => Err(KmsError::Long { program: self.name(), operation }),
            }
        };
        let heard = async {
            listen(stderr, said).await;
            Ok::<(), KmsError>(())
        };
        let ((), answer, ()) = tokio::try_join!(sent, answered, heard)?;
        let status = running.0.wait().await.map_err(failed)?;
        Ok((status, answer))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.name());
        command.args(self.command.iter().skip(1)).current_dir("/").process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(OWN_VARIABLES) {
                command.env_remove(name);
            }
        }
        command.kill_on_drop(true);
        command
    }
}

/// A program that reads nothing, because it needs nothing, is none that fails.
async fn send(stdin: Option<ChildStdin>, line: &[u8]) {
    if let Some(mut stdin) = stdin {
        let _ = stdin.write_all(line).await;
    }
}

/// Up to its end, or to one byte more than it may have.
async fn take_answer(stdout: Option<ChildStdout>) -> Zeroizing<Vec<u8>> {
    let mut answer = Zeroizing::new(Vec::<u8>::with_capacity(ANSWER_BYTES_MAX + 1));
    if let Some(stdout) = stdout {
        let _ = stdout.take(ANSWER_BYTES_MAX as u64 + 1).read_to_end(&mut answer).await;
    }
    answer
}

/// To the end; what is too much is read and forgotten, so that the program can go on.
async fn listen(stderr: Option<ChildStderr>, said: &mut Vec<u8>) {
    let Some(mut stderr) = stderr else { return };
    let mut part = [0; 1024];
    while let Ok(count) = stderr.read(&mut part).await
        && count > 0
    {
        let room = SAID_BYTES_MAX - said.len();
        said.extend_from_slice(&part[..count.min(room)]);
    }
}

/// On one line, without what is long enough to be a secret: a key of 32 bytes has 43 characters as
/// base64, among them slashes, and 64 in hexadecimal; tokens and UUIDs have no slashes.
fn shown(said: &[u8]) -> String {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "+/=_-".contains(c);
    let text = String::from_utf8_lossy(said);
    let (mut shown, mut word) = (String::new(), String::new());
    for c in text.chars().chain(['\n']) {
        if is_part(c) {
            word.push(c);
            continue;
        }
        let is_long = word.len() >= SECRET_CHARS_MIN
            || word.split('/').any(|part| part.len() >= SECRET_CHARS_MIN / 2);
        shown.push_str(if is_long { "…" } else { &word });
        word.clear();
        shown.push(if c.is_control() { ' ' } else { c });
    }
    shown.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::time::Duration;

    use super::*;

    /// A shell reads the script: one that is being written cannot be run itself.
    fn program(folder: &Path, script: &str, limit: Duration) -> Program {
        let path = folder.join("kms.sh");
        fs::write(&path, script).unwrap();
        let command = ["/bin/sh".to_owned(), path.display().to_string()];
        Program::new(&command, limit)
    }

    async fn identified(script: &str) -> Result<Vec<String>, KmsError> {
        let folder = tempfile::tempdir().unwrap();
        program(folder.path(), script, Duration::from_secs(60)).identify().await
    }

    #[tokio::test]
    async fn a_line_goes_to_the_program_and_a_line_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let heard = folder.path().join("heard");
        let script = format!(
            "read -r line; printf '%s\\n' \"$line\" > {}; echo '{{\"wrapped\":\"AQID\",\"new\":1}}'",
            heard.display()
        );
        let program = program(folder.path(), &script, Duration::from_secs(60));
        let key = Zeroizing::new([7; KEY_BYTES]);
        assert_eq!(program.wrap("a:1", &key).await.unwrap(), [1, 2, 3]);
        let plaintext = STANDARD.encode([7; KEY_BYTES]);
        let wanted = format!(
            "{{\"version\":1,\"operation\":\"wrap\",\"key_id\":\"a:1\",\"plaintext\":\"{plaintext}\"}}\n"
        );
        assert_eq!(fs::read_to_string(heard).unwrap(), wanted);
    }

    #[tokio::test]
    async fn the_key_that_wraps_comes_first_and_each_once() {
        let keys = identified("echo '{\"key_id\":\"b\",\"opens\":[\"a\",\"b\"]}'").await.unwrap();
        assert_eq!(keys, ["b", "a"]);
        for odd in ["", "a b", "\\u0007", &"a".repeat(KEY_ID_BYTES_MAX + 1)] {
            let refused = identified(&format!("echo '{{\"key_id\":\"{odd}\"}}'")).await;
            assert!(matches!(refused, Err(KmsError::Answer { .. })), "{odd}");
        }
    }

    #[tokio::test]
    async fn one_that_hangs_is_killed_with_all_that_it_has_started() {
        let folder = tempfile::tempdir().unwrap();
        let late = program(folder.path(), "sleep 86400", Duration::from_millis(1));
        let late = late.identify().await.unwrap_err();
        assert!(matches!(late, KmsError::Late { .. }) && late.is_retryable(), "{late}");

        // What it started holds the pipes open, and would do so for a day.
        let file = folder.path().join("pid");
        let script = format!("sleep 86400 & echo $! > {}; wait", file.display());
        let hangs = program(folder.path(), &script, Duration::from_secs(86400));
        let written = async {
            loop {
                let text = fs::read_to_string(&file).unwrap_or_default();
                if text.ends_with('\n') {
                    break text;
                }
                tokio::task::yield_now().await;
            }
        };
        let pid = tokio::select! {
            ended = hangs.identify() => panic!("{ended:?}"),
            pid = timeout(Duration::from_secs(60), written) => pid.expect("it does not begin"),
        };
        let status = Path::new("/proc").join(pid.trim()).join("status");
        // Until whoever takes care of orphans has looked at it, it is a zombie.
        let lives = || fs::read_to_string(&status).is_ok_and(|text| !text.contains("\nState:\tZ"));
        let ended = async {
            while lives() {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(60), ended).await.expect("it lives on");
    }

    #[tokio::test]
    async fn one_that_says_too_much_is_heard_no_longer() {
        let long = identified("while :; do echo '{}'; done").await.unwrap_err();
        assert!(matches!(long, KmsError::Long { .. }) && !long.is_retryable(), "{long}");
        // On standard error it may say what it likes, and nobody keeps it.
        let much =
            "i=0; while [ $i -lt 3000 ]; do echo 'one line of many lines' >&2; i=$((i+1)); done";
        let keys = identified(&format!("{much}; echo '{{\"key_id\":\"a\"}}'")).await.unwrap();
        assert_eq!(keys, ["a"]);
    }

    #[tokio::test]
    async fn a_failure_says_why_and_no_secret() {
        let secret = STANDARD.encode([0xfb; KEY_BYTES]);
        let script = format!("echo 'permission denied: {secret}' >&2; exit 3");
        let failed = identified(&script).await.unwrap_err();
        let said = failed.to_string();
        assert!(failed.is_retryable() && said.contains("exit status: 3"), "{said}");
        assert!(said.contains("permission denied: …") && !said.contains(&secret[..8]), "{said}");
        let refused = identified("echo '{\"error\":\"no such key\"}'").await.unwrap_err();
        assert!(refused.to_string().ends_with("no such key"), "{refused}");
        for odd in ["echo no JSON", "true", "echo '[]'", "echo '{\"key_id\":7}'"] {
            let odd = identified(odd).await.unwrap_err();
            assert!(matches!(odd, KmsError::Answer { .. }), "{odd}");
        }
        let nowhere = Program::new(&["/nowhere/kms".to_owned()], Duration::from_secs(60));
        let error = nowhere.identify().await.unwrap_err();
        assert!(error.to_string().contains("kms_command"), "{error}");
    }

    #[test]
    fn what_could_be_a_secret_is_not_shown() {
        let token = format!("hvs.{}", "aB3".repeat(30));
        for secret in [
            STANDARD.encode([0xfb; 32]),
            STANDARD.encode((0..32).collect::<Vec<u8>>()),
            // Many slashes.
            STANDARD.encode([0xff; 32]),
            hex::encode([7; 32]),
            "3f2c8e4a-0d0d-4b8e-9a51-6b1f0c8f7a11".to_owned(),
        ] {
            assert_eq!(shown(format!("token={secret}!").as_bytes()).len(), "…!".len());
            assert_eq!(shown(format!("key: {secret}\n").as_bytes()), "key: …");
        }
        assert_eq!(shown(token.as_bytes()), "hvs.…");
        let usual = "/usr/lib/shoal/kms-vault: https://vault.example:8200: connection refused";
        assert_eq!(shown(format!("{usual}\x1b[2J\n").as_bytes()), format!("{usual} [2J"));
    }
}
