//! Uploads a disk in parts, several at once, and goes on where an earlier call stopped.
//!
//! Order: the image, the session (remembered before the first part goes out), the parts, then
//! `complete`. Invariant: at most `parallel` parts are in memory. Which parts are safe is what the
//! node says.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use indicatif::ProgressBar;
use reqwest::Method;
use reqwest::header::HeaderValue;
use sha2::{Digest, Sha256};
use shoal_api::{
    CreateImage, Image, InitUpload, Page, Resolution, UploadStarted, UploadStatus, Version,
};
use shoal_content::{ImageReference, Pin, TagName};
use shoal_formats::Format;
use tokio::time::Instant;

use crate::arguments::Upload;
use crate::client::{Body, Client, Request};
use crate::config::Config;
use crate::copy::RemoteDisk;
use crate::error::Error;
use crate::images;
use crate::resume::{Place, Session, Source};
use crate::screen::{Screen, bytes, rate, seconds};

const MIB: u64 = 1 << 20;
const CHECKSUM_HEADER: &str = "x-shoal-checksum";
/// How often a node is asked whether it has read the disk: at first, and later.
const POLL_FIRST: Duration = Duration::from_millis(100);
const POLL_MAX: Duration = Duration::from_secs(2);
/// A node that shows no progress with a disk for so long is waited for no more.
const PROCESSING_STALL_MAX: Duration = Duration::from_secs(900);
const BAR_INTERVAL: Duration = Duration::from_millis(100);

/// Where the bytes of an upload come from.
pub enum Content<'a> {
    File(Arc<File>),
    Download(RemoteDisk<'a>),
}

impl Content<'_> {
    async fn read(&self, start: u64, length: u64, path: &Path) -> Result<Vec<u8>, Error> {
        let file = match self {
            Self::Download(disk) => return disk.read(start, length).await,
            Self::File(file) => file.clone(),
        };
        let read = tokio::task::spawn_blocking(move || {
            let mut part = vec![0; usize::try_from(length).map_err(std::io::Error::other)?];
            file.read_exact_at(&mut part, start)?;
            Ok(part)
        });
        let read = read.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        read.map_err(Error::file("reading", path))
    }
}

/// What is to be uploaded, and as what.
pub struct Order<'a> {
    pub source: Source,
    pub content: Content<'a>,
    pub reference: &'a ImageReference,
    /// What is said of the image, where this makes it.
    pub image: CreateImage,
    /// The version's number; one more than the latest if missing.
    pub number: Option<String>,
    pub format: Option<Format>,
    /// In MiB.
    pub chunk_size: Option<u64>,
    pub parallel: u16,
    pub changelog: &'a str,
    pub build_info: Option<serde_json::Map<String, serde_json::Value>>,
}

/// What one upload needs at every step.
struct Sender<'a> {
    client: &'a Client,
    content: Content<'a>,
    session: Session,
    screen: Screen,
}

pub async fn upload(
    arguments: &Upload,
    client: &Client,
    config: &Config,
    screen: Screen,
) -> Result<(), Error> {
    tag_of(&arguments.reference)?;
    let source = Source::look(&arguments.file)?;
    let file = File::open(&source.path).map_err(Error::file("opening", &source.path))?;
    check_disk(&file, arguments)?;
    let place =
        Place::of(&config.uploads_folder(), &config.context()?.url, &source, &arguments.reference);
    let order = Order {
        source,
        content: Content::File(Arc::new(file)),
        reference: &arguments.reference,
        image: undescribed(&arguments.reference),
        number: arguments.number.clone(),
        format: arguments.format,
        chunk_size: arguments.chunk_size,
        parallel: arguments.parallel,
        changelog: &arguments.changelog,
        build_info: None,
    };
    carry_out(order, client, &place, screen).await
}

/// The tag that an upload is to get.
pub fn tag_of(reference: &ImageReference) -> Result<&TagName, Error> {
    match &reference.pin {
        Pin::Tag(tag) => Ok(tag),
        Pin::Digest(_) => {
            let reason = "an upload goes to NAME or NAME:TAG, a digest cannot be chosen";
            Err(Error::Usage(reason.into()))
        }
    }
}

/// Sends what is missing, and waits until it is a version.
pub async fn carry_out(
    order: Order<'_>,
    client: &Client,
    place: &Place,
    screen: Screen,
) -> Result<(), Error> {
    let number = order.number.as_deref();
    if let Some(done) = finished(client, place, &order.source, order.reference, number).await? {
        return screen.show(&done, || {
            format!(
                "{} is this disk already: version {}, {}. Nothing was uploaded.",
                order.reference, done.version, done.manifest_digest
            )
        });
    }
    let (session, status) = match resumed(client, place, &order.source).await? {
        Some(found) => {
            let (done, all) = (found.1.received_chunks.len(), found.1.total_chunks);
            screen.remark(&format!(
                "Going on with an earlier upload: {done} of {all} parts are there."
            ));
            found
        }
        None => started(client, &order, place).await?,
    };
    let Order { reference, parallel, content, .. } = order;
    let sender = Sender { client, content, session, screen };
    let begun = Instant::now();
    let again = format!("the same command again sends only what is missing ({reference})");
    tokio::select! {
        result = sender.send_missing(&status, usize::from(parallel)) => result?,
        _ = tokio::signal::ctrl_c() => return Err(Error::Interrupted(format!("stopped; {again}"))),
    }
    let finished = tokio::select! {
        result = sender.complete() => result,
        _ = tokio::signal::ctrl_c() => {
            let text = format!("stopped; the cluster goes on reading the disk, and {again}");
            return Err(Error::Interrupted(text));
        }
    };
    // A session that ended in failure cannot be gone on with.
    match &finished {
        Ok(UploadStatus { manifest_digest: Some(digest), .. }) => {
            place.save(&Session { finished: Some(digest.clone()), ..sender.session.clone() })?;
        }
        Err(Error::Unreachable(_)) => {}
        _ => place.clear()?,
    }
    let finished = finished?;
    screen.show(&finished, || {
        let took = begun.elapsed();
        let size = sender.session.source.bytes;
        format!(
            "{reference} version {}, {} in {} ({}), {}",
            finished.version.as_deref().unwrap_or(&sender.session.version),
            bytes(size),
            seconds(took),
            rate((size as f64 / took.as_secs_f64().max(0.001)) as u64),
            finished.manifest_digest.as_ref().map(ToString::to_string).unwrap_or_default()
        )
    })
}

/// Refuses here what the node would refuse after the whole file had gone over the network.
fn check_disk(file: &File, arguments: &Upload) -> Result<(), Error> {
    let file = file.try_clone().map_err(Error::file("opening", &arguments.file))?;
    match shoal_formats::open(Box::new(file), arguments.format) {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::Disk(format!("{}: {error}", arguments.file.display()))),
    }
}

/// What the reference is, where an earlier call made it of this very file.
async fn finished(
    client: &Client,
    place: &Place,
    source: &Source,
    reference: &ImageReference,
    number: Option<&str>,
) -> Result<Option<Resolution>, Error> {
    let Some(Session { finished: Some(digest), .. }) = place.load(source) else { return Ok(None) };
    match images::resolve(client, reference).await {
        Ok(found) => {
            let is_asked_for = number.is_none_or(|number| number == found.version);
            Ok(Some(found).filter(|found| is_asked_for && found.manifest_digest == digest))
        }
        // Deleted, or not to be seen any more: an upload says what is wrong.
        Err(Error::Refused { status: 403 | 404, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn resumed(
    client: &Client,
    place: &Place,
    source: &Source,
) -> Result<Option<(Session, UploadStatus)>, Error> {
    let Some(session) = place.load(source).filter(|session| session.finished.is_none()) else {
        return Ok(None);
    };
    // A session outlives its image for a while, but nothing can come of it.
    match client.send(&Request::get(format!("api/v1/images/{}", session.image))).await {
        Ok(_) => {}
        Err(Error::Refused { status: 404 | 410, .. }) => return Ok(None),
        Err(error) => return Err(error),
    }
    match client.get::<UploadStatus>(upload_path(&session)).await {
        Ok(status) if status.status != "failed" && status.total_size_bytes == source.bytes => {
            Ok(Some((session, status)))
        }
        // It failed or expired: from the start.
        Ok(_) | Err(Error::Refused { status: 404 | 410, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn started(
    client: &Client,
    order: &Order<'_>,
    place: &Place,
) -> Result<(Session, UploadStatus), Error> {
    let tag = tag_of(order.reference)?;
    let source = order.source.clone();
    let image = image_as(client, &order.image).await?;
    let version = match &order.number {
        Some(number) => number.clone(),
        None => next_version(highest(client, &image).await?.as_deref()),
    };
    let request = InitUpload {
        version: version.clone(),
        total_size_bytes: source.bytes,
        chunk_size_bytes: order.chunk_size.map(|mib| mib * MIB),
        format: order.format.map(|format| format.as_str().to_owned()),
        tags: if tag.as_str() == "latest" { Vec::new() } else { vec![tag.clone()] },
        manifest: None,
        changelog: order.changelog.to_owned(),
        build_info: order.build_info.clone(),
    };
    let path = format!("api/v1/images/{}/versions/upload/init", image.id);
    let begun: UploadStarted = client.call(Method::POST, path, &request).await?;
    let (image, upload) = (image.id, begun.upload_id);
    let session = Session { source, image, upload, version, finished: None };
    place.save(&session)?;
    let status = client.get(upload_path(&session)).await?;
    Ok((session, status))
}

/// The image, made where it is not there.
pub async fn image(client: &Client, reference: &ImageReference) -> Result<Image, Error> {
    image_as(client, &undescribed(reference)).await
}

/// An image of which nothing is said.
fn undescribed(reference: &ImageReference) -> CreateImage {
    CreateImage {
        name: reference.name.clone(),
        display_name: String::new(),
        description: String::new(),
        image_type: String::new(),
        os_type: String::new(),
        os_version: String::new(),
        architecture: String::new(),
        format: String::new(),
        visibility: String::new(),
        min_cpu_cores: 0,
        min_memory_mb: 0,
        min_disk_gb: 0,
        recommended_cpu_cores: 0,
        recommended_memory_mb: 0,
        recommended_disk_gb: 0,
        labels: Default::default(),
        annotations: Default::default(),
    }
}

async fn image_as(client: &Client, request: &CreateImage) -> Result<Image, Error> {
    let name = &request.name;
    if let Some(image) = images::find(client, name).await? {
        return Ok(image);
    }
    match client.call(Method::POST, "api/v1/images", request).await {
        // Somebody else was quicker, or our own first request was and its answer got lost.
        Err(Error::Refused { status: 409, .. }) => {
            let found = images::find(client, name).await?;
            found.ok_or_else(|| Error::NotFound(format!("there is no image '{name}'")))
        }
        result => result,
    }
}

/// The highest number there is: after a rollback the latest version is an earlier one.
async fn highest(client: &Client, image: &Image) -> Result<Option<String>, Error> {
    let Some(latest) = &image.latest_version else { return Ok(None) };
    let path = format!("api/v1/images/{}/versions?page=1&page_size=1", image.id);
    match client.get::<Page<Version>>(path).await {
        Ok(page) => Ok(page.data.into_iter().next().map(|version| version.version)),
        // A node of an earlier version answers otherwise, and has no rollback.
        Err(Error::Answer(_)) => Ok(Some(latest.clone())),
        Err(error) => Err(error),
    }
}

/// `1.0.0`, or the last one with its last number one higher.
fn next_version(latest: Option<&str>) -> String {
    let Some(latest) = latest else { return "1.0.0".into() };
    let digits = latest.bytes().rev().take_while(u8::is_ascii_digit).count();
    let (head, last) = latest.split_at(latest.len() - digits);
    match last.parse::<u64>() {
        Ok(number) if number < u64::MAX => format!("{head}{}", number + 1),
        _ => format!("{latest}.1"),
    }
}

fn upload_path(session: &Session) -> String {
    format!("api/v1/images/{}/versions/upload/{}", session.image, session.upload)
}

/// The parts that the node does not have, in order.
fn missing(status: &UploadStatus) -> Vec<u32> {
    let received: std::collections::BTreeSet<_> = status.received_chunks.iter().collect();
    (0..status.total_chunks).filter(|index| !received.contains(index)).collect()
}

/// Where part `index` begins and how long it is.
fn part_range(index: u32, status: &UploadStatus) -> (u64, u64) {
    let start = u64::from(index) * status.chunk_size;
    (start, status.chunk_size.min(status.total_size_bytes.saturating_sub(start)))
}

impl Sender<'_> {
    async fn send_missing(&self, status: &UploadStatus, parallel: usize) -> Result<(), Error> {
        if status.status != "receiving" {
            return Ok(());
        }
        let missing = missing(status);
        let length = |index: &u32| part_range(*index, status).1;
        let there = status.total_size_bytes - missing.iter().map(length).sum::<u64>();
        let sent = Arc::new(AtomicU64::new(0));
        let bar = self.screen.byte_bar("uploading", status.total_size_bytes);
        bar.set_position(there);
        // The rate is that of this call, not of the one that stopped.
        bar.reset_eta();
        let sent_now = sent.clone();
        let parts = futures::stream::iter(missing)
            .map(|index| self.send_part(index, status, &sent))
            .buffer_unordered(parallel)
            .try_collect::<Vec<()>>();
        drawn(&bar, move || there + sent_now.load(Ordering::Relaxed), parts).await?;
        bar.finish_and_clear();
        Ok(())
    }

    async fn send_part(
        &self,
        index: u32,
        status: &UploadStatus,
        sent: &Arc<AtomicU64>,
    ) -> Result<(), Error> {
        let (start, length) = part_range(index, status);
        let part = self.content.read(start, length, &self.session.source.path).await?;
        let hashed = tokio::task::spawn_blocking(move || {
            (format!("sha256:{}", hex::encode(Sha256::digest(&part))), Bytes::from(part))
        });
        let hashed = hashed.await.map_err(std::io::Error::other);
        let (checksum, part) = hashed.map_err(Error::file("hashing", &self.session.source.path))?;
        let path = format!("{}/chunks/{index}", upload_path(&self.session));
        let mut request = Request::new(Method::PUT, path, Body::Part(&part, sent));
        let value = HeaderValue::from_str(&checksum).map_err(|e| Error::Answer(e.to_string()))?;
        request.headers.insert(CHECKSUM_HEADER, value);
        self.client.send(&request).await.map(drop)
    }

    /// Asks for the version, and waits until the disk has been read.
    async fn complete(&self) -> Result<UploadStatus, Error> {
        let path = upload_path(&self.session);
        let none = serde_json::json!({});
        let mut status: UploadStatus =
            match self.client.call(Method::POST, format!("{path}/complete"), &none).await {
                // The session says what became of it, also where only that answer was lost.
                Err(refused @ Error::Refused { .. }) => {
                    let status: Result<UploadStatus, Error> = self.client.get(path.as_str()).await;
                    status.ok().filter(|status| status.status == "failed").ok_or(refused)?
                }
                status => status?,
            };
        let bar = self.screen.byte_bar("reading", status.total_size_bytes);
        let mut pause = POLL_FIRST;
        let (mut processed, mut moved) = (None, Instant::now());
        loop {
            match status.status.as_str() {
                "active" => break,
                "failed" => {
                    let reason =
                        status.failure.unwrap_or_else(|| "the node does not say why".into());
                    return Err(Error::Failed { what: "reading the disk".into(), reason });
                }
                _ if moved.elapsed() > PROCESSING_STALL_MAX => {
                    let reason = "the node shows no progress; look at its log".into();
                    return Err(Error::Failed { what: "reading the disk".into(), reason });
                }
                _ => {}
            }
            if status.processed_bytes != processed {
                (processed, moved) = (status.processed_bytes, Instant::now());
                bar.set_position(processed.unwrap_or(0));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(POLL_MAX);
            status = self.client.get(path.as_str()).await?;
        }
        bar.finish_and_clear();
        Ok(status)
    }
}

/// Runs `work` while the bar follows `position`.
async fn drawn<T>(
    bar: &ProgressBar,
    position: impl Fn() -> u64,
    work: impl Future<Output = T>,
) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        match tokio::time::timeout(BAR_INTERVAL, work.as_mut()).await {
            Ok(result) => return result,
            Err(_) => bar.set_position(position()),
        }
    }
}

#[cfg(test)]
mod tests;
