//! The answering side of the control socket.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::stat::{Mode, fchmod};
use shoal_api::TransferProgress;
use shoal_content::{ImageReference, RecipeId};
use shoal_formats::{Format, Target};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tracing::{debug, warn};

use super::{ImageReport, LINE_BYTES_MAX, Line, Request, StatusReport};
use crate::catalogue::Known;
use crate::export::{self, Blocks, layout};
use crate::fetch::{self, Fetched, Fetcher, Patience};
use crate::nodes::chain;
use crate::transfers::{Purpose, Tracked, Transfers};

/// Clients at once; further ones wait.
const CLIENTS_MAX: usize = 64;
/// Those that the kernel lets wait until they are looked at.
const BACKLOG: i32 = 128;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
const EXPLAIN_MAX: usize = 100;
/// An answer's lines waiting for the client.
const LINES_MAX: usize = 16;

/// So often an image is fetched for one output: content that rotted in the cache is fetched again.
const FETCHES_MAX: u32 = 3;

/// Why an output was not written.
enum Unwritten {
    /// The cache dropped what was wrong; after a fetch it may work.
    Corrupt(String),
    Failed(String),
}

/// What the requests work on.
pub struct Control {
    pub fetcher: Fetcher,
    pub transfers: Transfers,
    /// The parts that only the daemon knows.
    pub status: Box<dyn Fn() -> StatusReport + Send + Sync>,
    pub swarm_status: Box<dyn Fn() -> serde_json::Value + Send + Sync>,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").finish_non_exhaustive()
    }
}

/// Makes the socket, for its owner only. A socket file that a killed agent left is replaced: the
/// data folder's lock says that nobody listens on it.
///
/// # Errors
/// Where the path cannot be used, also because something else than a socket is there.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path)?,
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "something else than a socket is there",
            ));
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Err(_) => {}
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Linux makes the file with the mode that the socket has, less the umask: at no moment may others
    // open it, whichever folder the settings name.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket.bind(&SockAddr::unix(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(socket.into())
}

impl Control {
    /// Serves until it is dropped.
    pub async fn serve(self: Arc<Self>, listener: UnixListener) {
        let clients = Arc::new(Semaphore::new(CLIENTS_MAX));
        loop {
            let Ok(permit) = clients.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let control = self.clone();
                    tokio::spawn(async move {
                        if let Err(error) = control.client(stream).await {
                            debug!(%error, "a control client went away");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    warn!(%error, "accepting on the control socket failed");
                    tokio::time::sleep(PROGRESS_INTERVAL).await;
                }
            }
        }
    }

    async fn client(&self, stream: UnixStream) -> io::Result<()> {
        let (read, mut write) = stream.into_split();
        let mut read = BufReader::new(read);
        let request = tokio::time::timeout(REQUEST_TIMEOUT, request(&mut read)).await??;
        let request = match request {
            Ok(request) => request,
            Err(error) => {
                let message = format!("the request was not understood: {error}");
                return send(&mut write, &Line::Error { message }).await;
            }
        };
        let (sender, mut lines) = mpsc::channel(LINES_MAX);
        let mut answer = std::pin::pin!(self.answer(request, sender));
        let mut gone = std::pin::pin!(read.fill_buf());
        loop {
            tokio::select! {
                last = &mut answer => {
                    return send(&mut write, &last).await;
                }
                Some(line) = lines.recv() => send(&mut write, &line).await?,
                // One request a connection: anything more, or the end, means that nobody waits.
                _ = &mut gone => return Ok(()),
            }
        }
    }

    /// The last line; lines before it go through `lines`.
    async fn answer(&self, request: Request, lines: mpsc::Sender<Line>) -> Line {
        match request {
            Request::Fetch { reference, output, format, preallocate } => {
                let blocks = if preallocate { Blocks::Allocated } else { Blocks::AsNeeded };
                self.fetch(reference, output, (format, blocks), &lines).await
            }
            Request::Status => Line::Status((self.status)()),
            Request::List => Line::List { images: self.list() },
            Request::Remove { reference } => self.remove(reference).await,
            Request::Pin { reference, pinned } => self.pin(reference, pinned).await,
            Request::Explain { limit } => Line::Explain {
                transfers: self.transfers.recent(limit.min(EXPLAIN_MAX)),
                swarm: (self.swarm_status)(),
            },
        }
    }

    async fn fetch(
        &self,
        reference: ImageReference,
        output: Option<PathBuf>,
        (format, blocks): (Option<String>, Blocks),
        lines: &mpsc::Sender<Line>,
    ) -> Line {
        let tracked = self.transfers.start(reference.to_string(), Purpose::Fetch);
        let format = match chosen_format(format.as_deref(), output.as_deref()) {
            Ok(format) => format,
            Err(message) => return failed(&tracked, message),
        };
        let grows = !matches!(format, Target::Raw | Target::VhdFixed);
        if blocks == Blocks::Allocated && grows {
            let message = format!("a {format} file grows; raw and vhd-fixed can be preallocated");
            return failed(&tracked, message);
        }
        if let Some(output) = &output
            && let Err(message) = check_output(output).await
        {
            return failed(&tracked, message);
        }
        let mut fetches = 0;
        loop {
            fetches += 1;
            let fetched = match self.fetch_watched(&reference, &tracked, lines).await {
                Ok(fetched) => fetched,
                Err(error) => return failed(&tracked, chain(&error)),
            };
            let written = match &output {
                Some(output) => {
                    let kind = (format, blocks);
                    self.write(&reference, &fetched, output, kind, &tracked, lines).await
                }
                None => Ok(()),
            };
            match written {
                Ok(()) => {
                    let progress = tracked.done();
                    let image = reference.to_string();
                    let digest = fetched.known.resolution.manifest_digest.to_string();
                    return Line::Fetched { image, digest, output, progress };
                }
                Err(Unwritten::Corrupt(message)) if fetches < FETCHES_MAX => {
                    warn!(%reference, message, "the image is fetched again");
                    tracked.note_error(&message);
                }
                Err(Unwritten::Corrupt(message) | Unwritten::Failed(message)) => {
                    return failed(&tracked, message);
                }
            }
        }
    }

    /// Fetches an image while the client hears how far it is.
    async fn fetch_watched(
        &self,
        reference: &ImageReference,
        tracked: &Tracked,
        lines: &mpsc::Sender<Line>,
    ) -> Result<Fetched, fetch::Error> {
        let fetching = self.fetcher.image(reference, tracked, Patience::PERSON);
        let mut fetching = std::pin::pin!(fetching);
        let mut tick = tokio::time::interval(PROGRESS_INTERVAL);
        let progress = tracked.watch();
        loop {
            tokio::select! {
                fetched = &mut fetching => return fetched,
                _ = tick.tick() => {
                    let progress = progress.borrow().clone();
                    // A client that does not read misses some of them.
                    let _ = lines.try_send(Line::Progress { step: "fetching".into(), progress });
                }
            }
        }
    }

    /// Writes what was fetched to `output`.
    async fn write(
        &self,
        reference: &ImageReference,
        fetched: &Fetched,
        output: &Path,
        kind: (Target, Blocks),
        tracked: &Tracked,
        lines: &mpsc::Sender<Line>,
    ) -> Result<(), Unwritten> {
        if !output.is_absolute() {
            let message = format!("the output {} is not an absolute path", output.display());
            return Err(Unwritten::Failed(message));
        }
        let known = fetched.known.clone();
        let (cache, reference) = (self.fetcher.cache.clone(), reference.clone());
        let output = output.to_owned();
        // Dropped with this call, which tells the thread to stop.
        let stop = StopOnDrop(Arc::new(AtomicBool::new(false)));
        let (stopped, share) = (stop.0.clone(), Arc::new(AtomicU64::new(0)));
        let done = share.clone();
        let work = crate::blocking(move || {
            let Some(disk) = &known.resolution.disk else {
                return layout::write(&cache, &reference, &known.resolution, &output).map_err(
                    |error| match error {
                        layout::Error::Corrupt { .. } => Unwritten::Corrupt(chain(&error)),
                        error => Unwritten::Failed(chain(&error)),
                    },
                );
            };
            let left = || Unwritten::Failed("the disk left the cache".into());
            let entry = cache.entry(disk.recipe).ok_or_else(left)?;
            let mut progress = |share: f64| {
                done.store((share * 1_000_000.0) as u64, Ordering::Relaxed);
                if stopped.load(Ordering::Relaxed) {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            };
            export::disk_with(&cache, &entry, kind, &output, &mut progress).map_err(|error| {
                match error {
                    export::Error::Corrupt { .. } => Unwritten::Corrupt(chain(&error)),
                    error => Unwritten::Failed(chain(&error)),
                }
            })
        });
        let mut work = std::pin::pin!(work);
        let mut tick = tokio::time::interval(PROGRESS_INTERVAL);
        let base = tracked.watch().borrow().clone();
        loop {
            tokio::select! {
                outcome = &mut work => {
                    let stopped = || Unwritten::Failed("the agent is shutting down".into());
                    return outcome.unwrap_or_else(|| Err(stopped()));
                }
                _ = tick.tick() => {
                    let share = share.load(Ordering::Relaxed) as f64 / 1_000_000.0;
                    let bytes_done = (base.bytes_total as f64 * share) as u64;
                    let progress = TransferProgress { bytes_done, ..base.clone() };
                    let _ = lines.try_send(Line::Progress { step: "writing".into(), progress });
                }
            }
        }
    }

    fn list(&self) -> Vec<ImageReport> {
        self.fetcher.catalogue.all().iter().map(|known| self.image_report(known)).collect()
    }

    fn image_report(&self, known: &Known) -> ImageReport {
        let resolution = &known.resolution;
        let recipes: HashSet<RecipeId> = known.recipes().into_iter().collect();
        let (mut held, mut total, mut pinned) = (0u64, 0u64, !recipes.is_empty());
        for recipe in &recipes {
            let entry = self.fetcher.cache.entry(*recipe);
            let (chunks_held, chunks_total) = entry.as_ref().map_or((0, 1), |e| e.count());
            held += u64::from(chunks_held);
            total += u64::from(chunks_total);
            pinned &= entry.is_some_and(|entry| entry.is_pinned());
        }
        let disk = resolution.disk.as_ref().map_or(0, |disk| disk.content_size_bytes);
        let blobs: u64 = resolution.blobs.iter().map(|blob| blob.size_bytes).sum();
        ImageReport {
            reference: known.reference.clone(),
            kind: resolution.kind.clone(),
            digest: resolution.manifest_digest.to_string(),
            chunks_held: held,
            chunks_total: total,
            bytes: disk + blobs,
            pinned,
        }
    }

    async fn remove(&self, reference: ImageReference) -> Line {
        let (cache, catalogue) = (self.fetcher.cache.clone(), self.fetcher.catalogue.clone());
        let removed = crate::blocking(move || {
            let name = reference.to_string();
            let Some(known) = catalogue.forget(&name).map_err(|error| chain(&error))? else {
                return Err(format!("{name} is not known here; see 'shoal-agent list'"));
            };
            let others: HashSet<RecipeId> =
                catalogue.all().iter().flat_map(|other| other.recipes()).collect();
            let recipes: HashSet<RecipeId> = known.recipes().into_iter().collect();
            let (mut freed_bytes, mut kept) = (0, 0);
            for recipe in recipes {
                let freed = match others.contains(&recipe) {
                    true => 0,
                    false => cache.remove_unleased(recipe).map_err(|error| chain(&error))?,
                };
                freed_bytes += freed;
                kept += usize::from(cache.entry(recipe).is_some());
            }
            Ok(Line::Removed { freed_bytes, kept })
        });
        line(removed.await)
    }

    async fn pin(&self, reference: ImageReference, pinned: bool) -> Line {
        let (cache, catalogue) = (self.fetcher.cache.clone(), self.fetcher.catalogue.clone());
        let done = crate::blocking(move || {
            let known = catalogue.find(&reference).ok_or_else(|| {
                format!("{reference} is not known here; fetch it first, or see 'shoal-agent list'")
            })?;
            let entries: Vec<_> =
                known.recipes().into_iter().filter_map(|recipe| cache.entry(recipe)).collect();
            for entry in &entries {
                entry.set_pinned(pinned).map_err(|error| chain(&error))?;
            }
            Ok(Line::Pinned { recipes: entries.len() })
        });
        line(done.await)
    }
}

/// Tells a thread to stop when the call that started it goes away.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn line(outcome: Option<Result<Line, String>>) -> Line {
    match outcome {
        Some(Ok(line)) => line,
        Some(Err(message)) => Line::Error { message },
        None => Line::Error { message: "the agent is shutting down".into() },
    }
}

fn failed(tracked: &Tracked, message: String) -> Line {
    tracked.failed(&message);
    Line::Error { message }
}

/// Whether there is any use in fetching for `output`. A folder may be meant for a container image.
async fn check_output(output: &Path) -> Result<(), String> {
    let output = output.to_owned();
    let checked = crate::blocking(move || match output.is_dir() {
        true => Ok(()),
        false => export::check(&output),
    });
    checked.await.unwrap_or(Ok(())).map_err(|error| chain(&error))
}

/// What is asked for, else what the output's name says, else qcow2.
fn chosen_format(format: Option<&str>, output: Option<&Path>) -> Result<Target, String> {
    if let Some(text) = format {
        return text.parse().map_err(|error| format!("{error}"));
    }
    let extension = output.and_then(Path::extension).and_then(|extension| extension.to_str());
    let Some(extension) = extension else { return Ok(Target::Qcow2) };
    match extension.parse::<Target>() {
        Ok(target) => Ok(target),
        // A name that says nothing of disk formats leaves the choice to us.
        Err(_) if extension.parse::<Format>().is_err() => Ok(Target::Qcow2),
        Err(error) => Err(format!("{error}; give the output another ending or choose --format")),
    }
}

async fn request(
    read: &mut BufReader<OwnedReadHalf>,
) -> io::Result<Result<Request, serde_json::Error>> {
    let mut text = Vec::new();
    read.take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut text).await?;
    Ok(serde_json::from_slice(&text))
}

async fn send(write: &mut OwnedWriteHalf, line: &Line) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    write.write_all(&bytes).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_was_left_is_replaced_and_a_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        drop(bind(&path).unwrap());
        drop(bind(&path).unwrap());
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "somebody's").unwrap();
        assert!(bind(&path).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"somebody's");
    }

    #[test]
    fn the_outputs_name_decides_and_a_format_that_cannot_be_written_is_refused() {
        let chosen = |format, output: &str| chosen_format(format, Some(Path::new(output)));
        assert_eq!(chosen(None, "/x/disk.raw"), Ok(Target::Raw));
        assert_eq!(chosen(None, "/x/disk.IMG"), Ok(Target::Raw));
        assert_eq!(chosen(None, "/x/disk"), Ok(Target::Qcow2));
        assert_eq!(chosen(None, "/x/disk.v1"), Ok(Target::Qcow2));
        assert_eq!(chosen(Some("raw"), "/x/disk.qcow2"), Ok(Target::Raw));
        for format in Format::ALL {
            let named = chosen(None, &format!("/x/disk.{format}"));
            match format.as_str().parse::<Target>() {
                Ok(target) => assert_eq!(named, Ok(target)),
                Err(_) => assert!(named.is_err_and(|text| text.contains(format.as_str()))),
            }
        }
    }
}
