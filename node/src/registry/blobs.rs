//! GET, HEAD and DELETE of a blob.
//!
//! A disk's file is a blob that stands nowhere: its manifest names it, and its bytes are written
//! from the disk's chunks.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest as _, Sha256};
use shoal_content::{Digest, ImageId, RecipeId, RepositoryName, Timestamp};
use shoal_formats::Export;
use shoal_metadata::{Action, Blob, Command, ImageKind, Reference, Version, What, permission};
use uuid::Uuid;

use super::byteranges::ByteRanges;
use super::range::{Wanted, several, wanted};
use super::{Answer, Asked, CONTENT_DIGEST, RegistryError, condition, empty, image, text_header};
use crate::disks::{EMPTY, exported, file_target};
use crate::http::noted;
use crate::http::problem::Problem;
use crate::upstreams::{self, Upstream};

/// How long an address of storage's own holds: for the slowest download to begin.
const REDIRECT_TTL: Duration = Duration::from_secs(15 * 60);

pub async fn handle(asked: Asked, repository: RepositoryName, digest: &str) -> Answer {
    // A malformed digest names nothing that could be here.
    let digest: Digest = digest.parse().map_err(RegistryError::digest_invalid)?;
    match asked.method {
        Method::GET | Method::HEAD => get(&asked, &repository, &digest).await,
        Method::DELETE => delete(&asked, repository, digest).await,
        _ => Err(RegistryError::unsupported()),
    }
}

async fn get(asked: &Asked, repository: &RepositoryName, digest: &Digest) -> Answer {
    let content = content(asked, repository, digest).await?;
    if condition::has(&asked.headers, digest) {
        return condition::not_modified(digest);
    }
    let size = content.size();
    let etag = condition::entity_tag(digest);
    // Ranges are defined for GET alone (RFC 9110, 14.2).
    let range = condition::range_of(&asked.headers, &etag).filter(|_| asked.method == Method::GET);
    if asked.method == Method::GET
        && let Content::Stored(blob) = &content
    {
        // S3 gives the whole to who names several ranges, so they are not asked for there.
        if let Some(ranges) = several(range, size) {
            return in_parts(asked, blob, ranges, digest).await;
        }
        if let Some(address) = elsewhere(asked, blob).await? {
            let headers = [(header::LOCATION, address), (CONTENT_DIGEST, digest.to_string())];
            return empty(StatusCode::TEMPORARY_REDIRECT, &headers);
        }
    }
    let (status, range) = match wanted(range, size) {
        Wanted::Whole => (StatusCode::OK, 0..size),
        Wanted::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Wanted::Unsatisfiable => {
            let message = format!("the blob has {size} bytes");
            let status = StatusCode::RANGE_NOT_SATISFIABLE;
            return Err(RegistryError::new(status, "SIZE_INVALID", message)
                .with(header::CONTENT_RANGE, &format!("bytes */{size}")));
        }
    };
    let mut response = if asked.method == Method::HEAD {
        Response::new(Body::empty())
    } else {
        noted::note_download();
        Response::new(body(asked, content, range.clone()).await?)
    };
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, (range.end - range.start).into());
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let digest = digest.to_string();
    if let Ok(value) = HeaderValue::from_str(&digest) {
        headers.insert(CONTENT_DIGEST, value);
    }
    if let Ok(value) = HeaderValue::from_str(&etag) {
        headers.insert(header::ETAG, value);
    }
    if status == StatusCode::PARTIAL_CONTENT {
        let text = format!("bytes {}-{}/{}", range.start, range.end - 1, size);
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert(header::CONTENT_RANGE, value);
        }
    }
    Ok(response)
}

/// Several ranges of a blob.
async fn in_parts(asked: &Asked, blob: &Blob, ranges: Vec<Range<u64>>, digest: &Digest) -> Answer {
    let parts = ByteRanges::new(ranges, blob.size);
    let (content_type, length) = (parts.content_type(), parts.content_length());
    noted::note_download();
    let body = parts.stream(Arc::clone(&asked.app.store), blob.object).await?;
    let mut response = Response::new(Body::from_stream(body));
    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    let headers = response.headers_mut();
    for (name, text) in [
        (header::CONTENT_TYPE, content_type),
        (header::ETAG, condition::entity_tag(digest)),
        (CONTENT_DIGEST, digest.to_string()),
    ] {
        let (name, value) = text_header(name, &text)?;
        headers.insert(name, value);
    }
    headers.insert(header::CONTENT_LENGTH, length.into());
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    Ok(response)
}

/// Where a blob's bytes are.
enum Content<'a> {
    Stored(Blob),
    /// At an upstream, yet.
    Awaited(&'a Arc<Upstream>, upstreams::Wanted),
    /// A disk as a file.
    Written(RecipeId, Export),
    /// What the empty descriptor of a disk's manifest names.
    Empty,
}

impl Content<'_> {
    fn size(&self) -> u64 {
        match self {
            Self::Stored(blob) => blob.size,
            Self::Awaited(_, wanted) => wanted.size,
            Self::Written(_, export) => export.len(),
            Self::Empty => EMPTY.len() as u64,
        }
    }
}

async fn content<'a>(
    asked: &'a Asked,
    repository: &RepositoryName,
    digest: &Digest,
) -> Result<Content<'a>, RegistryError> {
    let view = asked.view().await?;
    let query = view.query();
    let image = image(&view, repository)?;
    if query.blob_in(image.id, digest)? {
        let blob = query.blob(digest)?.ok_or_else(RegistryError::blob_unknown)?;
        let loose = query.loose_since(image.id, digest)?;
        drop(view);
        if let Some(since) = loose.filter(|_| asked.method == Method::HEAD) {
            keep(asked, repository, digest, since).await?;
        }
        return Ok(Content::Stored(blob));
    }
    if image.kind == ImageKind::Disk {
        let version = query.disk_of_file(image.id, digest)?;
        drop(view);
        return of_disk(asked, version, digest).await;
    }
    let upstream = asked.app.upstreams.of(repository).ok_or_else(RegistryError::blob_unknown)?;
    let Some(Reference::Blob { size, .. }) = query.awaited(image.id, digest)? else {
        return Err(RegistryError::blob_unknown());
    };
    drop(view);
    let (repository, digest) = (repository.clone(), digest.clone());
    let wanted = upstreams::Wanted { repository, digest, size };
    Ok(match upstream.mount(&asked.app, &asked.who(), &wanted).await? {
        Some(blob) => Content::Stored(blob),
        None => Content::Awaited(upstream, wanted),
    })
}

/// What a disk's manifest names.
async fn of_disk<'a>(
    asked: &Asked,
    version: Option<Version>,
    digest: &Digest,
) -> Result<Content<'a>, RegistryError> {
    if *digest == Digest::sha256(Sha256::digest(EMPTY).into()) {
        return Ok(Content::Empty);
    }
    let length = version.as_ref().and_then(Version::file).map(|(_, length)| length);
    let disk = version.and_then(|version| version.disk).ok_or_else(RegistryError::blob_unknown)?;
    let recipe = asked.app.services.origin.recipe(disk.recipe).await.map_err(Problem::from)?;
    let recipe = recipe.ok_or_else(|| {
        tracing::error!(recipe = %disk.recipe, "a version's recipe is not in storage");
        RegistryError::blob_unknown()
    })?;
    let export = tokio::task::spawn_blocking(move || Export::new(file_target(), recipe)).await;
    let export = export.ok().and_then(Result::ok).filter(|export| Some(export.len()) == length);
    let export = export.ok_or_else(RegistryError::blob_unknown)?;
    Ok(Content::Written(disk.recipe, export))
}

async fn body(
    asked: &Asked,
    content: Content<'_>,
    range: Range<u64>,
) -> Result<Body, RegistryError> {
    Ok(match content {
        Content::Stored(blob) => Body::from_stream(asked.app.store.get(blob.object, range).await?),
        Content::Awaited(upstream, wanted) => {
            let (app, forwarded) = (&asked.app, asked.forwarded());
            let pieces = app.upstreams.stream(app, upstream, wanted, range, forwarded);
            Body::from_stream(Box::pin(pieces).await?)
        }
        Content::Written(recipe, export) => {
            let origin = asked.app.services.origin.clone();
            Body::from_stream(exported(origin, recipe, export, range))
        }
        Content::Empty => Body::from(
            bytes::Bytes::from_static(EMPTY).slice(range.start as usize..range.end as usize),
        ),
    })
}

/// Whoever looks for a blob before a push, and finds it, does not send it: it must not be collected
/// before the manifest comes. So a blob that nothing refers to is as new again once half of its
/// grace is over.
async fn keep(
    asked: &Asked,
    repository: &RepositoryName,
    digest: &Digest,
    since: Timestamp,
) -> Result<(), RegistryError> {
    let Some(owner) = asked.principal.as_ref().and_then(|asker| asker.ensure_account().ok()) else {
        return Ok(());
    };
    let half = asked.app.config.collection.grace_seconds * 1000 / 2;
    if asked.app.now() < since.plus_millis(half) {
        return Ok(());
    }
    let view = asked.view().await?;
    let push = permission(view.query(), &asked.who(), Action::Push, What::Repository(repository))?;
    if !push.is_allowed() {
        return Ok(());
    }
    let again = Command::MountBlob {
        from: Some(repository.clone()),
        to: repository.clone(),
        digest: digest.clone(),
        owner,
        image: ImageId::from_uuid(Uuid::now_v7()),
    };
    asked.app.propose(again).await?;
    Ok(())
}

/// Where this client reads the blob from storage itself, which is for some networks so. A range is
/// asked for there again.
async fn elsewhere(asked: &Asked, blob: &Blob) -> Result<Option<String>, RegistryError> {
    let networks = &asked.app.config.storage.redirect_networks;
    let client = asked.client.map(|client| client.to_canonical());
    let inside = client.is_some_and(|client| networks.iter().any(|net| net.contains(&client)));
    if !inside {
        return Ok(None);
    }
    Ok(asked.app.store.presigned(blob.object, REDIRECT_TTL).await?)
}

async fn delete(asked: &Asked, repository: RepositoryName, digest: Digest) -> Answer {
    asked.account()?;
    asked.app.propose(Command::UnlinkBlob { repository, digest }).await?;
    Ok(StatusCode::ACCEPTED.into_response())
}
