//! Blobs of upstreams: given on while they come and are stored.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, Response, StatusCode};
use shoal_content::{Digest, Pin, RepositoryName, UploadId};
use shoal_metadata::{Blob, Command, KeyOwner, Who, holder};
use tracing::{Instrument, debug, info, info_span, warn};
use uuid::Uuid;

use super::flight::{Progress, Turn, Writer};
use super::{AbsentKey, Error, SPOILT_MAX, Upstream, Upstreams};
use crate::http::problem::chain;
use crate::registry::{BlobWriter, Publication, publish};
use crate::state::App;

/// How often in a row the rest of a blob is asked for that broke off, where little came between.
const RESUMES_MAX: u32 = 3;
/// Before the first of them; each waits twice as long.
const RESUME_PAUSE: Duration = Duration::from_millis(250);
/// What comes at least in the time that an upstream may be silent, and between two breaks. Less is a
/// stall that hides.
const PACE_BYTES_MIN: u64 = 64 * 1024;
/// Whose upstream sends less in so much time gives its turn to others, where they wait for one.
const CONTENDED_SPAN: Duration = Duration::from_secs(60);
const CONTENDED_BYTES_MIN: u64 = 2 * 1024 * 1024;
/// Read at once of what is taken up again.
const TAKE_UP_BYTES: u64 = 1024 * 1024;

pub type Pieces = BoxStream<'static, io::Result<Bytes>>;

/// A blob that a manifest of the repository refers to and that is not here.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub repository: RepositoryName,
    pub digest: Digest,
    pub size: u64,
}

impl Wanted {
    pub fn pin(&self) -> AbsentKey {
        (self.repository.clone(), Pin::Digest(self.digest.clone()))
    }
}

impl Upstreams {
    /// Bytes `range` of the blob, as they come. It goes on coming, and is kept, where nobody waits
    /// any more. `forwarded` is that another node asks.
    ///
    /// # Errors
    /// What the upstream says instead.
    pub async fn stream(
        &self,
        app: &App,
        upstream: &Arc<Upstream>,
        wanted: Wanted,
        range: Range<u64>,
        forwarded: bool,
    ) -> Result<Pieces, Error> {
        upstream.path(&wanted.repository)?;
        if let Some(error) = upstream.refusal(&wanted) {
            return Err(error);
        }
        let keeper = self.keeper(app, &wanted.digest).filter(|_| !forwarded);
        if let Some(keeper) = keeper
            && !range.is_empty()
        {
            let path = format!("/v2/{}/blobs/{}", wanted.repository, wanted.digest);
            let part = format!("bytes={}-{}", range.start, range.end - 1);
            let headers =
                HeaderValue::from_str(&part).map(|part| HeaderMap::from_iter([(RANGE, part)]));
            let opened =
                self.siblings.open(&keeper.api_url, &path, headers.unwrap_or_default()).await;
            match opened {
                Ok(response) if response.status() == StatusCode::PARTIAL_CONTENT => {
                    return Ok(response
                        .bytes_stream()
                        .map(|piece| piece.map_err(io::Error::other))
                        .boxed());
                }
                Ok(response) => {
                    debug!(node = %keeper.id, status = %response.status(), "asked in vain")
                }
                Err(error) => debug!(node = %keeper.id, error, "a node did not answer"),
            }
        }
        let key = (wanted.repository.clone(), wanted.digest.clone());
        let (flight, begin) = self.flights.join(&key, wanted.size).await?;
        if let Some((writer, landing)) = begin {
            let (all, app, upstream) = (self.clone(), app.clone(), Arc::clone(upstream));
            let span = info_span!("upstream_blob", digest = %wanted.digest);
            let work = async move {
                let carried = all.carry(&app, &upstream, &wanted, &writer).await;
                if let Err(error) = carried {
                    warn!(repository = %wanted.repository, digest = %wanted.digest, %error,
                        "a blob did not come from an upstream");
                    if error.is_settled() {
                        upstream.absent.insert(wanted.pin(), error.clone());
                    }
                    // Who comes from here on begins anew.
                    drop(landing);
                    writer.progress.send_replace(Progress::Failed(error));
                }
            };
            tokio::spawn(work.instrument(span).boxed());
        }
        flight.read(range).await
    }

    async fn carry(
        &self,
        app: &App,
        upstream: &Upstream,
        wanted: &Wanted,
        writer: &Writer,
    ) -> Result<(), Error> {
        let mut held = self.flights.turn().await?;
        // Another flight may have landed between the asker's look and this one's beginning.
        if let Some(blob) = stored(app, wanted).await? {
            return give(app, &blob, writer).await;
        }
        upstream.standing.miss();
        let turn = self.intake.turn(UploadId::from_uuid(Uuid::now_v7())).await;
        let algorithm = wanted.digest.algorithm();
        let under = KeyOwner::Project(wanted.repository.project());
        let store = Arc::clone(&app.store);
        let mut blob = BlobWriter::begin(&self.intake, store, under, turn, algorithm);
        let mut in_vain = 0;
        loop {
            let begun = blob.offset();
            let broke = match upstream.open(wanted, begun).await {
                Ok(response) => {
                    writer.publish(begun);
                    match take(app, upstream, wanted, response, writer, &mut blob, &held).await? {
                        Taken::All => None,
                        Taken::Broken(error) => {
                            upstream.standing.note_broken(&error);
                            Some(error)
                        }
                        Taken::GaveWay => {
                            debug!(digest = %wanted.digest, offset = blob.offset(), "it gives way");
                            let from = blob.lay_down();
                            drop(held);
                            held = self.flights.turn().await?;
                            take_up(writer, &mut blob, from).await?;
                            // Where even its turns bring next to nothing, it ends.
                            Some(upstream.client.slow("it sends too slowly"))
                        }
                    }
                }
                // Nobody has got anything: it is an answer.
                Err(error) if begun == 0 => return Err(error),
                Err(error) => Some(error),
            };
            if blob.offset() == wanted.size {
                break;
            }
            in_vain = if blob.offset() >= begun + PACE_BYTES_MIN { 0 } else { in_vain + 1 };
            let error = broke.unwrap_or_else(|| {
                upstream.odd(format!("{} ends after {} bytes", wanted.digest, blob.offset()))
            });
            if in_vain >= RESUMES_MAX || !error.is_of_the_moment() {
                return Err(error);
            }
            tokio::select! {
                () = tokio::time::sleep(RESUME_PAUSE * 2_u32.pow(in_vain)) => {}
                () = app.drain.cut() => return Err(Error::Busy("it is stopping")),
            }
        }
        if !blob.has_digest(&wanted.digest) {
            return Err(upstream.spoils(wanted, "other content"));
        }
        upstream.spoilt.invalidate(&wanted.pin());
        writer.publish(wanted.size);
        // From here on it is this cluster's to fail; who reads has all there is.
        match keep(app, upstream, wanted, blob).await {
            Ok(()) => info!(repository = %wanted.repository, "a blob came from an upstream"),
            Err(why) => {
                warn!(error = why, "a blob of an upstream was given, and not kept");
                let (name, digest) = (upstream.name.to_string(), wanted.digest.to_string());
                upstream.absent.insert(wanted.pin(), Error::Unkept { name, digest, why });
            }
        }
        Ok(())
    }
}

impl Upstream {
    /// What is remembered of the blob that makes it no use to ask for it now.
    fn refusal(&self, wanted: &Wanted) -> Option<Error> {
        let pin = wanted.pin();
        let absent = self.absent.get(&pin).filter(Error::is_settled);
        absent.or_else(|| {
            let (times, error) = self.spoilt.get(&pin)?;
            (times >= SPOILT_MAX).then_some(error)
        })
    }

    /// The blob came and is something else; noted.
    fn spoils(&self, wanted: &Wanted, what: &str) -> Error {
        let why = format!("{} has {what}", wanted.digest);
        let error = Error::Content { name: self.name.to_string(), why };
        self.standing.note(Err(&error));
        let times = self.spoilt.get(&wanted.pin()).map_or(0, |(times, _)| times) + 1;
        self.spoilt.insert(wanted.pin(), (times, error.clone()));
        error
    }

    async fn open(&self, wanted: &Wanted, from: u64) -> Result<Response, Error> {
        let mut headers = HeaderMap::new();
        if from > 0
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={from}-"))
        {
            headers.insert(RANGE, range);
        }
        let tail = format!("blobs/{}", wanted.digest);
        let path = self.path(&wanted.repository)?;
        let response = self.client.ask(Method::GET, path, &tail, headers).await?;
        let text =
            |name| response.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let fits = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let start = text(CONTENT_RANGE).and_then(|text| text.strip_prefix("bytes "));
                let start = start
                    .and_then(|text| text.split_once('-'))
                    .and_then(|(start, _)| start.parse().ok());
                start == Some(from) && from > 0
            }
            _ => {
                let length = text(CONTENT_LENGTH).and_then(|text| text.parse::<u64>().ok());
                from == 0 && length.is_none_or(|length| length == wanted.size)
            }
        };
        match fits {
            true => Ok(response),
            false => {
                Err(self.odd(format!("{} is not as long as its manifest says", wanted.digest)))
            }
        }
    }

    /// The blob, where another repository of this upstream has it that `who` may pull from: images
    /// of one upstream share much. It is in this one from then on.
    ///
    /// # Errors
    /// Where this cluster fails, or refuses it.
    pub async fn mount(
        &self,
        app: &App,
        who: &Who,
        wanted: &Wanted,
    ) -> Result<Option<Blob>, Error> {
        let Wanted { repository, digest, size } = wanted;
        let view = app.view().await?;
        let query = view.query();
        let Some(image) = query.image_by_name(repository)? else { return Ok(None) };
        let found = holder(query, who, digest, &self.name)?;
        let Some(from) = found.filter(|from| from.project() == self.name) else { return Ok(None) };
        let Some(blob) = query.blob(digest)?.filter(|blob| blob.size == *size) else {
            return Ok(None);
        };
        drop(view);
        let mount = Command::MountBlob {
            from: Some(from),
            to: repository.clone(),
            digest: digest.clone(),
            owner: image.owner,
            image: image.id,
        };
        app.propose(mount).await?;
        Ok(Some(blob))
    }
}

/// The blob, where its repository has it.
async fn stored(app: &App, wanted: &Wanted) -> Result<Option<Blob>, Error> {
    let view = app.view().await?;
    let query = view.query();
    let Some(image) = query.image_by_name(&wanted.repository)? else { return Ok(None) };
    match query.blob_in(image.id, &wanted.digest)? {
        true => Ok(query.blob(&wanted.digest)?),
        false => Ok(None),
    }
}

/// Gives what is stored to those who read a flight.
async fn give(app: &App, blob: &Blob, writer: &Writer) -> Result<(), Error> {
    let mut pieces = app.store.get(blob.object, 0..blob.size).await?;
    let mut offset = 0;
    while let Some(piece) = pieces.try_next().await? {
        let end = offset + piece.len() as u64;
        writer.write(offset, piece).await?;
        writer.publish(end);
        offset = end;
    }
    Ok(())
}

/// Brings back what was laid down, from the file that readers read.
async fn take_up(writer: &Writer, blob: &mut BlobWriter, from: u64) -> Result<(), Error> {
    blob.take_up().await?;
    let (mut at, end) = (from, blob.offset());
    while at < end {
        let length = TAKE_UP_BYTES.min(end - at);
        blob.put_back(&writer.read(at, length).await?);
        at += length;
    }
    Ok(())
}

/// How an answer ended.
enum Taken {
    All,
    /// It broke off.
    Broken(Error),
    /// It is slow, and others wait.
    GaveWay,
}

/// Takes what comes.
async fn take(
    app: &App,
    upstream: &Upstream,
    wanted: &Wanted,
    mut response: Response,
    writer: &Writer,
    blob: &mut BlobWriter,
    turn: &Turn<'_>,
) -> Result<Taken, Error> {
    let mut pace = Pace::new(upstream.client.silence(), PACE_BYTES_MIN);
    let mut contended = Pace::new(CONTENDED_SPAN, CONTENDED_BYTES_MIN);
    loop {
        let since = Instant::now();
        let piece = tokio::select! {
            piece = response.chunk() => piece,
            // It has filled a part for long, and there are few.
            () = blob.is_wanted() => return Ok(Taken::GaveWay),
            () = app.drain.cut() => return Err(Error::Busy("it is stopping")),
        };
        let piece = match piece {
            Ok(Some(piece)) => piece,
            Ok(None) => return Ok(Taken::All),
            Err(error) => return Ok(Taken::Broken(upstream.client.away(&error))),
        };
        let (waited, bytes) = (since.elapsed(), piece.len() as u64);
        if !pace.holds(waited, bytes) {
            return Ok(Taken::Broken(upstream.client.slow("it sends too slowly")));
        }
        let is_slow = !contended.holds(waited, bytes);
        upstream.standing.received(piece.len() as u64);
        let offset = blob.offset();
        let end = offset + piece.len() as u64;
        if end > wanted.size {
            return Err(upstream.spoils(wanted, "more than its manifest says"));
        }
        writer.write(offset, piece.clone()).await?;
        blob.write(piece).await?;
        // The last byte waits for the digest.
        writer.publish(end.min(wanted.size.saturating_sub(1)));
        if is_slow && end < wanted.size && turn.is_wanted_now() {
            return Ok(Taken::GaveWay);
        }
    }
}

/// How fast an upstream sends, where it is waited for.
#[derive(Debug)]
struct Pace {
    span: Duration,
    /// In bytes, of each span.
    least: u64,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    fn new(span: Duration, least: u64) -> Self {
        Self { span, least, waited: Duration::ZERO, bytes: 0 }
    }

    /// Whether it is still fast enough, after another wait that brought so much.
    fn holds(&mut self, waited: Duration, bytes: u64) -> bool {
        self.waited += waited;
        self.bytes += bytes;
        if self.waited < self.span {
            return true;
        }
        let holds = self.bytes >= self.least;
        (self.waited, self.bytes) = (Duration::ZERO, 0);
        holds
    }
}

async fn keep(
    app: &App,
    upstream: &Upstream,
    wanted: &Wanted,
    blob: BlobWriter,
) -> Result<(), String> {
    let written = blob.finish(&wanted.digest).await.map_err(|error| chain(&error))?;
    let written = written.map_err(|_| "its digest is another one now".to_owned())?;
    let publication = Publication {
        upload: None,
        repository: wanted.repository.clone(),
        digest: wanted.digest.clone(),
        owner: upstream.owner(),
        own: true,
    };
    publish(app, written, publication).await.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_drips_is_cut_off_and_who_is_waited_for_little_is_not() {
        let mut pace = Pace::new(Duration::from_secs(30), PACE_BYTES_MIN);
        for _ in 0..29 {
            assert!(pace.holds(Duration::from_secs(1), 1));
        }
        assert!(!pace.holds(Duration::from_secs(1), 1));
        // A large piece after a long wait, and small ones that come at once.
        assert!(pace.holds(Duration::from_secs(31), PACE_BYTES_MIN));
        for _ in 0..1000 {
            assert!(pace.holds(Duration::ZERO, 1));
        }
    }
}
