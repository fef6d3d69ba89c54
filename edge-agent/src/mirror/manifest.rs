//! Manifests: a node's word where one answers, else the last known while its tickets last.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::http::header;
use axum::response::Response;
use shoal_content::{ImageReference, Pin, RepositoryName};

use super::Mirror;
use super::error::Error;
use crate::catalogue::{Known, Manifest, manifest_in};

/// A manifest asked for by digest does not change; within this time of a node's word it is served
/// without asking again, so that a pull of an index asks once.
const FRESH: Duration = Duration::from_secs(60);
const WARNING_CHARS_MAX: usize = 500;

/// Answers GET and HEAD of `/v2/NAME/manifests/REFERENCE`.
pub async fn serve(
    mirror: &Mirror,
    name: RepositoryName,
    pin: Pin,
    head: bool,
) -> Result<Response, Error> {
    let (manifest, warning) = find(mirror, name, pin).await?;
    let length = manifest.bytes.len();
    let body = if head { Body::empty() } else { Body::from(manifest.bytes) };
    let warning = warning.and_then(|text| header::HeaderValue::from_bytes(text.as_bytes()).ok());
    let mut response = Response::builder();
    if let Some(warning) = warning {
        response = response.header(header::WARNING, warning);
    }
    response
        .header(header::CONTENT_TYPE, &manifest.media_type)
        .header(header::CONTENT_LENGTH, length)
        .header(header::ETAG, format!("\"{}\"", manifest.digest))
        .header("docker-content-digest", manifest.digest.to_string())
        .body(body)
        .map_err(|_| Error::UnknownManifest)
}

/// The manifest, and the `Warning` that goes with it.
async fn find(
    mirror: &Mirror,
    name: RepositoryName,
    pin: Pin,
) -> Result<(Manifest, Option<String>), Error> {
    let fetcher = &mirror.fetcher;
    if let Pin::Digest(digest) = &pin {
        let fresh = fetcher.catalogue.all().into_iter().find(|known| {
            known.resolution.image == name
                && age(known) < FRESH
                && manifest_in(&known.resolution, digest).is_some()
        });
        if let Some(manifest) = fresh.and_then(|known| manifest_in(&known.resolution, digest)) {
            return Ok((manifest, None));
        }
    }
    let reference = ImageReference { name: name.clone(), pin: pin.clone() };
    let error = match fetcher.nodes.resolve_once(&reference, None).await {
        Ok(resolution) => {
            let wanted = match &pin {
                Pin::Digest(digest) => digest.clone(),
                Pin::Tag(_) => resolution.manifest_digest.clone(),
            };
            let manifest = manifest_in(&resolution, &wanted).ok_or(Error::UnknownManifest)?;
            let warning = resolution.warning.as_deref().map(warning);
            let catalogue = fetcher.catalogue.clone();
            crate::blocking(move || catalogue.remember(&reference, resolution)).await;
            return Ok((manifest, warning));
        }
        Err(error) => error,
    };
    if !error.is_retryable() {
        return Err(match error.is_not_found() {
            true => Error::UnknownManifest,
            // The node has something against this agent: a clock that is wrong, a removal. The log is
            // to hear of it.
            false => Error::NoSource(error.to_string()),
        });
    }
    let known = match &pin {
        Pin::Tag(_) => fetcher.catalogue.find(&reference),
        Pin::Digest(digest) => fetcher.catalogue.all().into_iter().find(|known| {
            known.resolution.image == name && manifest_in(&known.resolution, digest).is_some()
        }),
    };
    let known = known.filter(|known| is_entitled(mirror, known));
    let known = known.ok_or_else(|| Error::Unavailable(error.to_string()))?;
    let wanted = match &pin {
        Pin::Digest(digest) => digest,
        Pin::Tag(_) => &known.resolution.manifest_digest,
    };
    let manifest = manifest_in(&known.resolution, wanted).ok_or(Error::UnknownManifest)?;
    let text = format!("{reference} is as it was last known here: no node answers");
    Ok((manifest, matches!(pin, Pin::Tag(_)).then(|| warning(&text))))
}

/// The value of a `Warning` (RFC 7234, 5.5).
fn warning(text: &str) -> String {
    let plain = |letter: char| match letter {
        '"' | '\\' => '\'',
        letter if letter.is_control() => ' ',
        letter => letter,
    };
    let text: String = text.chars().take(WARNING_CHARS_MAX).map(plain).collect();
    format!("299 - \"{text}\"")
}

/// Whether any right that came with the resolution still holds.
fn is_entitled(mirror: &Mirror, known: &Known) -> bool {
    let resolution = &known.resolution;
    let disk = resolution.disk.iter().map(|disk| (disk.recipe, &disk.ticket));
    let blobs = resolution.blobs.iter().map(|blob| (blob.recipe, &blob.ticket));
    disk.chain(blobs).any(|(recipe, ticket)| mirror.entitles(recipe, ticket))
}

fn age(known: &Known) -> Duration {
    let resolved = UNIX_EPOCH + Duration::from_millis(known.resolved_at);
    SystemTime::now().duration_since(resolved).unwrap_or_default()
}
