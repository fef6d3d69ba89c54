//! Copies a disk to another cluster, part by part, without a file between.
//!
//! The one side gives ranges of the disk as qcow2, which are the same in every request and hold its
//! content only; the other takes them as the parts of an upload. So a copy goes on where it stopped,
//! as an upload does, and at most `parallel` parts are in memory.
//! Non-goal: containers, which registry clients copy.

use std::time::Duration;

use reqwest::header::{ETAG, HeaderValue, IF_RANGE, RANGE};
use reqwest::{Method, StatusCode};
use shoal_api::{CreateImage, ImageDetail, Version};
use shoal_content::{ImageReference, Pin};
use shoal_formats::{Format, Target};

use crate::arguments::CopyImage;
use crate::client::{Body, Client, Request, next_piece};
use crate::config::Config;
use crate::download::{begins_at, content_length};
use crate::error::Error;
use crate::images::resolve;
use crate::resume::{Place, Source};
use crate::screen::Screen;
use crate::upload::{Content, Order, carry_out, tag_of};

/// How often a part that broke off is asked for again without any bytes between.
const RESUMES_MAX: u32 = 5;
const RESUME_PAUSE: Duration = Duration::from_secs(1);

/// What goes over: the content and little else.
const FORMAT: Format = Format::Qcow2;

/// A disk that a cluster gives in ranges.
pub struct RemoteDisk<'a> {
    client: &'a Client,
    path: String,
    etag: HeaderValue,
}

impl RemoteDisk<'_> {
    /// The file's bytes `start..start + length`.
    pub async fn read(&self, start: u64, length: u64) -> Result<Vec<u8>, Error> {
        let length = usize::try_from(length).map_err(|error| Error::Answer(error.to_string()))?;
        let mut part = Vec::with_capacity(length);
        let mut failures = 0;
        while part.len() < length {
            let before = part.len();
            let error = match self.round(start, length, &mut part).await {
                Ok(()) => continue,
                Err(error @ (Error::Unreachable(_) | Error::Answer(_))) => error,
                Err(error) => return Err(error),
            };
            failures = if part.len() > before { 0 } else { failures + 1 };
            if failures >= RESUMES_MAX {
                return Err(error);
            }
            tokio::time::sleep(RESUME_PAUSE).await;
        }
        Ok(part)
    }

    /// One request for what is missing of a part.
    async fn round(&self, start: u64, length: usize, part: &mut Vec<u8>) -> Result<(), Error> {
        let from = start + part.len() as u64;
        let range = format!("bytes={from}-{}", start + length as u64 - 1);
        let mut request = Request::get(self.path.as_str());
        let range = HeaderValue::from_str(&range).map_err(|e| Error::Answer(e.to_string()))?;
        request.headers.insert(RANGE, range);
        request.headers.insert(IF_RANGE, self.etag.clone());
        let mut response = self.client.send(&request).await?;
        if response.status() != StatusCode::PARTIAL_CONTENT || begins_at(&response) != Some(from) {
            let reason = "the disk is laid out otherwise by now, as after an upgrade of the \
                          cluster; the same command starts anew";
            return Err(Error::Failed { what: "reading the disk".into(), reason: reason.into() });
        }
        while let Some(piece) = next_piece(&mut response).await? {
            if part.len() + piece.len() > length {
                return Err(Error::Answer("it is longer than the range asked for".into()));
            }
            part.extend_from_slice(&piece);
        }
        if part.len() < length {
            return Err(Error::Answer(format!("it ended after {} of {length} bytes", part.len())));
        }
        Ok(())
    }
}

pub async fn copy(
    arguments: &CopyImage,
    client: &Client,
    config: &Config,
    screen: Screen,
) -> Result<(), Error> {
    let there = config.named(&arguments.to)?;
    let other = Client::new(there)?;
    let found = resolve(client, &arguments.source).await?;
    if found.disk.is_none() {
        let reason = format!(
            "{} is a container image; skopeo copy or crane copy bring it to another registry",
            arguments.source
        );
        return Err(Error::Usage(reason));
    }
    let target = match (&arguments.target, &arguments.source.pin) {
        (Some(target), _) => target.clone(),
        (None, Pin::Tag(_)) => arguments.source.clone(),
        (None, Pin::Digest(_)) => {
            let reason = "a digest names no tag; say how the disk is called there, as NAME:TAG";
            return Err(Error::Usage(reason.into()));
        }
    };
    tag_of(&target)?;
    let path = format!("api/v1/images/{}/versions/{}", found.image_id, found.version_id);
    let version: Version = client.get(path.as_str()).await?;
    let image: ImageDetail = client.get(format!("api/v1/images/{}", found.image_id)).await?;
    let path = format!("{path}/download?format={}", FORMAT.as_str());
    let (disk, bytes) = remote(client, path).await?;
    let url = format!("{}{}", config.context()?.url, disk.path);
    let source = Source::of_download(&url, disk.etag.to_str().unwrap_or_default(), bytes);
    let place = Place::of(&config.uploads_folder(), &there.url, &source, &target);
    let order = Order {
        source,
        content: Content::Download(disk),
        reference: &target,
        context: &arguments.to,
        image: described(&target, image),
        number: Some(arguments.number.clone().unwrap_or(found.version)),
        format: Some(FORMAT),
        chunk_size: None,
        parallel: arguments.parallel,
        tags: &[],
        checksum: None,
        changelog: &version.changelog,
        build_info: match version.build_info {
            Some(serde_json::Value::Object(info)) => Some(info),
            _ => None,
        },
    };
    carry_out(&order, &other, &place, screen).await
}

/// How long the file is, and what its bytes are bound to.
async fn remote(client: &Client, path: String) -> Result<(RemoteDisk<'_>, u64), Error> {
    let head = client.send(&Request::new(Method::HEAD, path.as_str(), Body::Empty)).await?;
    let etag = head.headers().get(ETAG).cloned();
    let etag = etag.ok_or_else(|| Error::Answer("a download without an entity tag".into()))?;
    let bytes = content_length(&head)?;
    Ok((RemoteDisk { client, path, etag }, bytes))
}

/// Nodes of an earlier version kept whatever they were told.
fn known_type(text: String) -> String {
    let is_known = ["os_base", "application", "snapshot"].contains(&text.as_str());
    if is_known { text } else { String::new() }
}

/// An image of which the same is said; who may see it is the other cluster's to say.
fn described(target: &ImageReference, detail: ImageDetail) -> CreateImage {
    let image = detail.image;
    CreateImage {
        name: target.name.clone(),
        display_name: image.display_name,
        description: image.description,
        image_type: known_type(image.image_type),
        os_type: image.os_type,
        os_version: image.os_version,
        architecture: image.architecture,
        // As with the type.
        format: image.format.parse::<Target>().map(|one| one.to_string()).unwrap_or_default(),
        visibility: String::new(),
        is_public: None,
        organization_id: String::new(),
        min_cpu_cores: detail.min_cpu_cores,
        min_memory_mb: detail.min_memory_mb,
        min_disk_gb: detail.min_disk_gb,
        recommended_cpu_cores: detail.recommended_cpu_cores,
        recommended_memory_mb: detail.recommended_memory_mb,
        recommended_disk_gb: detail.recommended_disk_gb,
        labels: image.labels,
        annotations: image.annotations,
    }
}
