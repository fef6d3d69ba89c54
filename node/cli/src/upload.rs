//! Uploads a disk, and goes on where an earlier call stopped.
//!
//! Order: the image, the session (remembered before the first part goes out), the parts, a look
//! whether the file is still what it was, then `complete`. Invariants: one call at a time sends a
//! file to a name; a session is forgotten only where nothing can come of it any more.

pub mod begun;
mod clusters;
mod sending;

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::Method;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use shoal_api::{
    CreateImage, Image, InitUpload, Layer, Page, Resolution, UploadManifest, UploadStarted,
    UploadStatus, Version, VersionDetail,
};
use shoal_content::{Digest, ImageReference, Pin, RepositoryName, TagName};
use shoal_formats::Format;
use tokio::time::Instant;

use crate::arguments::{BuildInfo, Upload};
use crate::client::{Client, Request};
use crate::config::Config;
use crate::error::{EXIT_FAILED, Error};
use crate::images;
use crate::resume::{Place, Session, Source};
use crate::screen::{Screen, bytes, per_second, rate, seconds};

use clusters::content_clusters;
pub use sending::Content;
use sending::{Sender, received_bytes};

const MIB: u64 = 1 << 20;

/// What is to be uploaded, and as what.
pub struct Order<'a> {
    pub source: Source,
    pub content: Content<'a>,
    pub reference: &'a ImageReference,
    /// What the cluster that it goes to is called here.
    pub context: &'a str,
    /// What is said of the image, where this makes it.
    pub image: CreateImage,
    /// The version's number; one more than the latest if missing.
    pub number: Option<String>,
    pub format: Option<Format>,
    /// In MiB.
    pub chunk_size: Option<u64>,
    pub parallel: u16,
    /// Besides that of the reference.
    pub tags: &'a [TagName],
    /// Of the whole file.
    pub checksum: Option<Digest>,
    pub changelog: &'a str,
    pub build_info: Option<serde_json::Map<String, serde_json::Value>>,
}

impl Order<'_> {
    /// What is ordered besides file, name and number, which a session that goes on must agree with.
    fn fingerprint(&self) -> String {
        let said = serde_json::json!({
            "tags": self.tags,
            "checksum": self.checksum,
            "format": self.format.map(Format::as_str),
            "changelog": self.changelog,
            "build_info": self.build_info,
        });
        hex::encode(Sha256::digest(said.to_string()))
    }

    /// Whether a session that is remembered was begun for this.
    fn is_of(&self, session: &Session) -> bool {
        self.number.as_ref().is_none_or(|number| *number == session.version)
            && session.order.as_ref().is_none_or(|order| *order == self.fingerprint())
    }

    /// What to do once it was stopped.
    fn advice(&self, session: Option<&Session>) -> String {
        let again =
            format!("the same command again sends only what is missing ({})", self.reference);
        let Some(Session { upload, .. }) = session else { return again };
        let (context, name) = (self.context, &self.reference.name);
        format!(
            "{again}, 'shoal --context {context} image upload-abort {name} {upload}' gives it up"
        )
    }
}

/// How an upload ended well.
#[derive(Debug)]
enum Ended {
    /// An earlier call had made the version.
    Already(Resolution),
    Now(Outcome),
}

/// An upload that has become a version, and what that took.
#[derive(Debug, Serialize)]
struct Outcome {
    #[serde(flatten)]
    status: UploadStatus,
    /// For the parts that were sent.
    #[serde(skip)]
    took: Duration,
    /// Over the network, by this call.
    sent_bytes: u64,
    /// Of the file, by earlier calls.
    there_bytes: u64,
    /// Of the disk, without what is zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    content_size_bytes: Option<u64>,
    /// What storage did not have yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    added_size_bytes: Option<u64>,
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
        context: config.name(),
        image: undescribed(&arguments.reference.name),
        number: arguments.number.clone(),
        format: arguments.format,
        chunk_size: arguments.chunk_size,
        parallel: arguments.parallel,
        tags: &arguments.new.tags,
        checksum: arguments.checksum.clone(),
        changelog: &arguments.new.changelog,
        build_info: BuildInfo::joined(&arguments.new.build_info),
    };
    carry_out(&order, client, &place, screen).await
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

/// The tags that a new version is to get: `latest`, which goes to the highest number by itself, only
/// where it is among `more`.
pub fn tags_of(reference: &ImageReference, more: &[TagName]) -> Result<Vec<TagName>, Error> {
    let first = tag_of(reference)?;
    let is_named = first.as_str() != "latest" && !more.contains(first);
    Ok(is_named.then_some(first).into_iter().chain(more).cloned().collect())
}

/// Sends what is missing, and waits until it is a version.
pub async fn carry_out(
    order: &Order<'_>,
    client: &Client,
    place: &Place,
    screen: Screen,
) -> Result<(), Error> {
    let _held = place.hold()?;
    let is_whole = AtomicBool::new(false);
    let work = Box::pin(finish(order, client, place, screen, &is_whole));
    let ended = tokio::select! {
        ended = work => ended,
        _ = tokio::signal::ctrl_c() => {
            let goes_on = is_whole.load(Ordering::Relaxed);
            let text = if goes_on { "the cluster goes on reading the disk; " } else { "" };
            Err(Error::Interrupted(format!("stopped; {text}")))
        }
    };
    // What is still remembered can be gone on with.
    let left = place.load(&order.source).filter(|session| session.finished.is_none());
    match ended {
        Ok(Ended::Already(done)) => screen.show(&done, || {
            format!(
                "{} is this disk already: version {}, {}. Nothing was uploaded.",
                order.reference, done.version, done.manifest_digest
            )
        }),
        Ok(Ended::Now(outcome)) => screen.show(&outcome, || sentence(&outcome, order.reference)),
        Err(Error::Interrupted(text)) => {
            Err(Error::Interrupted(text + &order.advice(left.as_ref())))
        }
        Err(error) => {
            if left.is_some() {
                screen.remark(&format!("What was sent is kept; {}.", order.advice(left.as_ref())));
            }
            Err(error)
        }
    }
}

async fn finish(
    order: &Order<'_>,
    client: &Client,
    place: &Place,
    screen: Screen,
    is_whole: &AtomicBool,
) -> Result<Ended, Error> {
    if let Some(done) = finished(client, place, order).await? {
        return Ok(Ended::Already(done));
    }
    let (session, there) = match resumed(client, place, order).await? {
        Some(found) => {
            screen.remark(&found_again(&found.1));
            found
        }
        None => started(client, order, place).await?,
    };
    let sender = Sender { client, content: &order.content, session, screen };
    let (sent_bytes, took) = send(&sender, &there, order, place).await?;
    is_whole.store(true, Ordering::Relaxed);
    let status = sender.complete().await?;
    let session = sender.session;
    if status.status == "failed" {
        place.clear()?;
        let reason = status.failure.unwrap_or_else(|| "the node does not say why".into());
        return Err(Error::Failed { what: "reading the disk".into(), reason });
    }
    match status.manifest_digest.clone() {
        Some(finished) => {
            place.save(&Session { finished: Some(finished), ..session.clone() })?;
        }
        None => place.clear()?,
    }
    let made = made(client, &session, &status).await;
    Ok(Ended::Now(Outcome {
        took,
        sent_bytes,
        there_bytes: status.total_size_bytes.saturating_sub(sent_bytes),
        content_size_bytes: made.as_ref().map(|version| version.content_size_bytes),
        added_size_bytes: made.as_ref().map(|version| version.added_size_bytes),
        status,
    }))
}

/// Sends the parts of a session that still takes some; gives how much, and how long that took.
async fn send(
    sender: &Sender<'_>,
    there: &UploadStatus,
    order: &Order<'_>,
    place: &Place,
) -> Result<(u64, Duration), Error> {
    if there.status != "receiving" {
        return Ok((0, Duration::ZERO));
    }
    let begun = Instant::now();
    let sent = sender.send_missing(there, usize::from(order.parallel)).await?;
    let took = begun.elapsed();
    if let Err(error) = sender.check_unwritten() {
        give_up(sender.client, &sender.session, place).await?;
        return Err(error);
    }
    Ok((sent, took))
}

fn found_again(status: &UploadStatus) -> String {
    format!(
        "Going on with an earlier upload: {} of {} parts ({} of {}) are there.",
        status.received_chunks.len(),
        status.total_chunks,
        bytes(received_bytes(status)),
        bytes(status.total_size_bytes)
    )
}

/// The version that came of it, as far as a node shows it: nothing depends on that any more.
async fn made(client: &Client, session: &Session, status: &UploadStatus) -> Option<Version> {
    let id = status.version_id?;
    let path = format!("api/v1/images/{}/versions/{id}", session.image);
    client.get::<VersionDetail>(path).await.ok().map(|detail| detail.version)
}

fn sentence(outcome: &Outcome, reference: &ImageReference) -> String {
    let Outcome { status, took, .. } = outcome;
    let number = status.version.as_deref().unwrap_or_default();
    let digest = status.manifest_digest.as_ref().map(ToString::to_string).unwrap_or_default();
    let mut text = format!(
        "{reference} version {number}, {digest}\nSent {} in {} ({})",
        bytes(outcome.sent_bytes),
        seconds(*took),
        rate(per_second(outcome.sent_bytes, *took))
    );
    if outcome.there_bytes > 0 {
        text += &format!("; {} were there from an earlier call", bytes(outcome.there_bytes));
    }
    if let (Some(all), Some(new)) = (outcome.content_size_bytes, outcome.added_size_bytes) {
        text += &format!("; of {} of content, {} were new to storage", bytes(all), bytes(new));
    }
    text + "."
}

/// Refuses here what the node would refuse after the whole file had gone over the network.
fn check_disk(file: &File, arguments: &Upload) -> Result<(), Error> {
    let file = file.try_clone().map_err(Error::file("opening", &arguments.file))?;
    match shoal_formats::open(Box::new(file), arguments.format) {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::Judged {
            code: EXIT_FAILED,
            word: error.reason(),
            message: format!("{}: {error}", arguments.file.display()),
        }),
    }
}

/// What the reference is, where an earlier call made it of this very file.
async fn finished(
    client: &Client,
    place: &Place,
    order: &Order<'_>,
) -> Result<Option<Resolution>, Error> {
    let session = place.load(&order.source).filter(|session| order.is_of(session));
    let Some(Session { finished: Some(digest), .. }) = session else { return Ok(None) };
    match images::resolve(client, order.reference).await {
        Ok(found) => {
            let is_asked_for = order.number.as_ref().is_none_or(|number| *number == found.version);
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
    order: &Order<'_>,
) -> Result<Option<(Session, UploadStatus)>, Error> {
    let is_open = |session: &Session| session.finished.is_none() && order.is_of(session);
    let Some(session) = place.load(&order.source).filter(is_open) else { return Ok(None) };
    // A session outlives its image for a while, but nothing can come of it.
    match client.send(&Request::get(format!("api/v1/images/{}", session.image))).await {
        Ok(_) => {}
        Err(Error::Refused { status: 403 | 404 | 410, .. }) => return Ok(None),
        Err(error) => return Err(error),
    }
    match client.get::<UploadStatus>(session.path()).await {
        Ok(status)
            if status.status != "failed" && status.total_size_bytes == order.source.bytes =>
        {
            Ok(Some((session, status)))
        }
        // It failed, expired, or was begun by somebody whom one was before: from the start.
        Ok(_) | Err(Error::Refused { status: 403 | 404 | 410, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Ends a session that nothing is to come of, and forgets it.
async fn give_up(client: &Client, session: &Session, place: &Place) -> Result<(), Error> {
    // One that is read by now becomes a version, as was said when it was stopped; and one that
    // cannot be ended ends by itself in a day.
    let path = session.path();
    if let Ok(status) = client.get::<UploadStatus>(path.as_str()).await
        && status.status == "receiving"
    {
        let _ = client.delete(path).await;
    }
    place.clear()
}

async fn started(
    client: &Client,
    order: &Order<'_>,
    place: &Place,
) -> Result<(Session, UploadStatus), Error> {
    let source = order.source.clone();
    let tags = tags_of(order.reference, order.tags)?;
    // Of the file as it was, or of another order: it would hold its room for a day.
    if let Some(old) = place.last().filter(|session| session.finished.is_none()) {
        give_up(client, &old, place).await?;
    }
    let image = image_as(client, &order.image).await?;
    let version = match &order.number {
        Some(number) => number.clone(),
        None => next_free(highest(client, &image).await?.as_deref(), &image.tags, &tags),
    };
    let whole = order.checksum.clone().map(|digest| UploadManifest {
        format: None,
        layers: vec![Layer { digest, size: source.bytes, media_type: None }],
    });
    let request = InitUpload {
        version: version.clone(),
        total_size_bytes: source.bytes,
        chunk_size_bytes: order.chunk_size.map(|mib| mib * MIB),
        format: order.format.map(|format| format.as_str().to_owned()),
        content_clusters: content_clusters(&order.content, order.format, source.bytes).await,
        tags,
        manifest: whole,
        changelog: order.changelog.to_owned(),
        build_info: order.build_info.clone(),
    };
    let path = format!("api/v1/images/{}/versions/upload/init", image.id);
    let begun: UploadStarted = client.call(Method::POST, path, &request).await?;
    let (image, upload) = (image.id, begun.upload_id);
    let fingerprint = Some(order.fingerprint());
    let session = Session { source, image, upload, version, order: fingerprint, finished: None };
    place.save(&session)?;
    let status = client.get(session.path()).await?;
    Ok((session, status))
}

/// The image, made where it is not there.
pub async fn image(client: &Client, reference: &ImageReference) -> Result<Image, Error> {
    image_as(client, &undescribed(&reference.name)).await
}

/// An image of which nothing is said.
fn undescribed(name: &RepositoryName) -> CreateImage {
    CreateImage {
        name: name.clone(),
        display_name: String::new(),
        description: String::new(),
        image_type: String::new(),
        os_type: String::new(),
        os_version: String::new(),
        architecture: String::new(),
        format: String::new(),
        visibility: String::new(),
        is_public: None,
        organization_id: String::new(),
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

/// The next number that is no tag of another version.
fn next_free(highest: Option<&str>, there: &[TagName], own: &[TagName]) -> String {
    let others: Vec<&str> =
        there.iter().filter(|tag| !own.contains(tag)).map(TagName::as_str).collect();
    let is_taken = |number: &str| {
        others.iter().any(|tag| *tag == number || tag.strip_prefix('v') == Some(number))
    };
    let mut number = next_version(highest);
    while is_taken(&number) {
        number = next_version(Some(&number));
    }
    number
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

#[cfg(test)]
mod tests;
