//! Downloads a disk in one of its formats, and goes on where an earlier call stopped.
//!
//! Order: bytes into `FILE.part`, checked and synced, then renamed to `FILE`. The entity tag that
//! the part belongs to lies beside it in `FILE.part.etag`; `If-Range` makes the node send all of it
//! where the content is another by now. Invariants: `FILE` is whole or not there; one call at a time
//! writes to its part.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderValue, IF_RANGE, RANGE};
use reqwest::{Response, StatusCode};
use sha2::{Digest, Sha256};
use shoal_content::ImageReference;
use tokio::time::Instant;

use crate::alone::open_alone;
use crate::arguments::Download;
use crate::client::{Client, Request, next_piece};
use crate::error::Error;
use crate::images::resolve;
use crate::screen::{Progress, Screen, bytes, per_second, rate, seconds};

/// How often a broken download is taken up again without any bytes between.
const RESUMES_MAX: u32 = 5;
const RESUME_PAUSE: Duration = Duration::from_secs(1);
const READ_BYTES: usize = 1 << 20;

/// A file on its way.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    etag_path: PathBuf,
    file: File,
    length: u64,
    /// Of its bytes, those that this call got.
    came: u64,
}

impl Part {
    fn open(output: &Path) -> Result<Self, Error> {
        let beside = |suffix: &str| {
            let mut name = OsString::from(output);
            name.push(suffix);
            PathBuf::from(name)
        };
        let path = beside(".part");
        let Some(file) = open_alone(&path)? else {
            let reason = format!("another call writes {}", path.display());
            return Err(Error::Failed { what: "the download".into(), reason });
        };
        let length = file.metadata().map_err(Error::file("opening", &path))?.len();
        Ok(Self { etag_path: beside(".part.etag"), path, file, length, came: 0 })
    }

    /// What the bytes so far belong to.
    fn etag(&self) -> Option<HeaderValue> {
        let text = fs::read_to_string(&self.etag_path).ok()?;
        HeaderValue::from_str(text.trim()).ok()
    }

    fn restart(&mut self, etag: Option<&HeaderValue>) -> Result<(), Error> {
        self.file.set_len(0).map_err(Error::file("emptying", &self.path))?;
        (self.length, self.came) = (0, 0);
        let etag = etag.and_then(|etag| etag.to_str().ok()).unwrap_or_default();
        fs::write(&self.etag_path, etag).map_err(Error::file("writing", &self.etag_path))
    }

    fn append(&mut self, piece: &[u8]) -> Result<(), Error> {
        self.file.write_all(piece).map_err(Error::file("writing", &self.path))?;
        self.length += piece.len() as u64;
        self.came += piece.len() as u64;
        Ok(())
    }

    /// Holds the bytes against a SHA-256 that the entity tag may be.
    fn verify(&self, etag: Option<&HeaderValue>) -> Result<(), Error> {
        let Some(wanted) = etag.and_then(sha256_of) else { return Ok(()) };
        let mut file = File::open(&self.path).map_err(Error::file("reading", &self.path))?;
        let (mut hash, mut buffer) = (Sha256::new(), vec![0; READ_BYTES]);
        loop {
            match file.read(&mut buffer).map_err(Error::file("reading", &self.path))? {
                0 => break,
                count => hash.update(&buffer[..count]),
            }
        }
        let found = hex::encode(hash.finalize());
        if found == wanted {
            return Ok(());
        }
        let reason = format!("its SHA-256 is {found}, not {wanted}; the same command starts anew");
        fs::remove_file(&self.path).map_err(Error::file("removing", &self.path))?;
        Err(Error::Failed { what: "checking the download".into(), reason })
    }

    fn publish(self, output: &Path) -> Result<(), Error> {
        self.file.sync_all().map_err(Error::file("syncing", &self.path))?;
        fs::rename(&self.path, output).map_err(Error::file("renaming to", output))?;
        // It says something about a file that is no more; nothing depends on it.
        let _ = fs::remove_file(&self.etag_path);
        let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(Error::file("syncing", folder))
    }
}

/// The digest of an entity tag of the form `"sha256:…"`.
fn sha256_of(etag: &HeaderValue) -> Option<String> {
    let text = etag.to_str().ok()?.trim_start_matches("W/").trim_matches('"');
    let hex = text.strip_prefix("sha256:")?;
    let good = hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    good.then(|| hex.to_lowercase())
}

pub async fn download(arguments: &Download, client: &Client, screen: Screen) -> Result<(), Error> {
    let found = resolve(client, &arguments.reference).await?;
    if found.disk.is_none() {
        let reason = format!(
            "{} is a container image; pull it with docker, skopeo or podman",
            arguments.reference
        );
        return Err(Error::Usage(reason));
    }
    let format = arguments.format.as_str();
    let default = || default_output(&arguments.reference, arguments.format.extension());
    let output = placed(arguments.output.as_deref(), default())?;
    let path = format!(
        "api/v1/images/{}/versions/{}/download?format={format}",
        found.image_id, found.version_id
    );
    let begun = Instant::now();
    let (length, came) = tokio::select! {
        result = fetch(client, &path, &output, screen) => result?,
        _ = tokio::signal::ctrl_c() => {
            let text = format!("stopped; the same command again goes on with {}", output.display());
            return Err(Error::Interrupted(text));
        }
    };
    let shown = serde_json::json!({
        "file": output, "bytes": length, "received_bytes": came, "format": format,
        "version": found.version, "manifest_digest": found.manifest_digest,
    });
    screen.show(&shown, || {
        let took = begun.elapsed();
        let speed = rate(per_second(came, took));
        let there = match length.saturating_sub(came) {
            0 => String::new(),
            there => format!("; {} were there from an earlier call", bytes(there)),
        };
        let (came, took) = (bytes(came), seconds(took));
        format!("{}: {came} in {took} ({speed}){there}", output.display())
    })
}

/// Where the file goes: into the folder that was named, under the name that it has by itself.
fn placed(wanted: Option<&Path>, named: PathBuf) -> Result<PathBuf, Error> {
    let output = match wanted {
        Some(folder) if folder.is_dir() => folder.join(named),
        Some(file) => file.to_owned(),
        None => named,
    };
    if output.is_dir() {
        let reason = format!("{} is a folder; name a file with --output", output.display());
        return Err(Error::Usage(reason));
    }
    Ok(output)
}

fn default_output(reference: &ImageReference, extension: &str) -> PathBuf {
    let name = reference.name.as_str().rsplit('/').next().unwrap_or_default();
    let pin = reference.pin.to_string();
    let pin = pin.rsplit(':').next().unwrap_or_default();
    let pin: String = pin.chars().take(20).collect();
    PathBuf::from(format!("{name}-{pin}.{extension}"))
}

/// Fetches `path` into `output`; gives its length, and how much of it came now.
async fn fetch(
    client: &Client,
    path: &str,
    output: &Path,
    screen: Screen,
) -> Result<(u64, u64), Error> {
    let mut part = Part::open(output)?;
    let mut progress = screen.progress("downloading", 0);
    let mut failures = 0;
    loop {
        let before = part.length;
        let error = match round(client, path, &mut part, &mut progress).await {
            Ok(etag) => {
                drop(progress);
                part.verify(etag.as_ref())?;
                let ends = (part.length, part.came);
                part.publish(output)?;
                return Ok(ends);
            }
            Err(error @ (Error::Unreachable(_) | Error::Answer(_))) => error,
            Err(error) => return Err(error),
        };
        failures = if part.length > before { 0 } else { failures + 1 };
        if failures >= RESUMES_MAX {
            return Err(error);
        }
        tokio::time::sleep(RESUME_PAUSE).await;
    }
}

/// One request, to the end of its body; gives the entity tag of what is whole now.
async fn round(
    client: &Client,
    path: &str,
    part: &mut Part,
    progress: &mut Progress,
) -> Result<Option<HeaderValue>, Error> {
    let mut request = Request::get(path);
    if let (Some(etag), 1..) = (part.etag(), part.length) {
        let range = format!("bytes={}-", part.length);
        let range = HeaderValue::from_str(&range).map_err(|e| Error::Answer(e.to_string()))?;
        request.headers.insert(RANGE, range);
        request.headers.insert(IF_RANGE, etag);
    }
    let mut response = match client.send(&request).await {
        // There is nothing after what we have: either it is whole, or it is of something else.
        Err(Error::Refused { status: 416, .. }) => {
            part.restart(None)?;
            return Err(Error::Answer("the range is not satisfiable".into()));
        }
        result => result?,
    };
    let etag = response.headers().get(ETAG).cloned();
    if response.status() != StatusCode::PARTIAL_CONTENT || begins_at(&response) != Some(part.length)
    {
        if response.status() == StatusCode::PARTIAL_CONTENT {
            part.restart(None)?;
            return Err(Error::Answer("the range is not the one asked for".into()));
        }
        part.restart(etag.as_ref())?;
    }
    let whole = part.length + content_length(&response)?;
    progress.begin(part.length, whole);
    while let Some(piece) = next_piece(&mut response).await? {
        part.append(&piece)?;
        progress.set(part.length);
    }
    if part.length != whole {
        return Err(Error::Answer(format!("it ended after {} of {whole} bytes", part.length)));
    }
    Ok(etag)
}

pub fn content_length(response: &Response) -> Result<u64, Error> {
    let text = response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let length = text.and_then(|text| text.parse().ok());
    length.ok_or_else(|| Error::Answer("a download without a length".into()))
}

pub fn begins_at(response: &Response) -> Option<u64> {
    let text = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    text.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
}

#[cfg(test)]
mod tests;
