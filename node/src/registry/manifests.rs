//! GET, HEAD, PUT and DELETE of a manifest, by tag or digest.

use std::collections::BTreeSet;

use axum::body::Body;
use axum::http::{HeaderName, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest as _, Sha256, Sha512};
use shoal_content::{Algorithm, Digest, ImageId, Pin, RepositoryName, TagName, VersionId};
use shoal_formats::parse_manifest;
use shoal_metadata::{
    AuditResult, Command, ImageKind, MANIFEST_BYTES_MAX, PutManifest, Reference,
    Response as MetadataResponse,
};
use shoal_raft::View;
use uuid::Uuid;

use super::body::whole;
use super::warning::warn;
use super::{Answer, Asked, CONTENT_DIGEST, RegistryError, condition, empty, image, text_header};
use crate::http::noted;
use crate::upstreams::Brought;

/// Tags of one PUT in the query (development branch of the specification).
const TAGS_MAX: usize = 64;

pub async fn handle(
    asked: Asked,
    body: Body,
    repository: RepositoryName,
    reference: &str,
) -> Answer {
    let pin: Pin =
        reference.parse().map_err(|error: shoal_content::NameError| match asked.method {
            Method::GET | Method::HEAD if !reference.contains(':') => {
                RegistryError::manifest_unknown()
            }
            _ if reference.contains(':') => RegistryError::digest_invalid(error),
            _ => RegistryError::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", error.to_string()),
        })?;
    noted::note_pin(&pin);
    match asked.method {
        Method::GET | Method::HEAD => get(&asked, &repository, pin).await,
        Method::PUT => put(asked, body, repository, pin).await,
        Method::DELETE => delete(&asked, repository, pin).await,
        _ => Err(RegistryError::unsupported()),
    }
}

async fn get(asked: &Asked, repository: &RepositoryName, pin: Pin) -> Answer {
    let (view, notice) = brought(asked, repository, &pin).await?;
    let query = view.query();
    let image = image(&view, repository)?;
    let (tag, digest) = match pin {
        Pin::Digest(digest) => (None, digest),
        Pin::Tag(tag) => {
            let digest = query.tag(image.id, &tag)?.ok_or_else(RegistryError::manifest_unknown)?;
            (Some(tag), digest)
        }
    };
    let version = query.version(image.id, &digest)?.ok_or_else(RegistryError::manifest_unknown)?;
    // Nothing is pulled by who has it already.
    if condition::has(&asked.headers, &digest) {
        return condition::not_modified(&digest);
    }
    let bytes = query.manifest(image.id, &digest)?.ok_or_else(RegistryError::manifest_unknown)?;
    let deprecation = query.version_note(image.id, &digest)?.deprecation;
    let deprecation = deprecation.map(|deprecation| {
        let named = match &tag {
            Some(tag) => format!("{repository}:{tag}"),
            None => format!("{repository}@{digest}"),
        };
        match deprecation.message.trim() {
            "" => format!("{named} is deprecated"),
            message => format!("{named} is deprecated: {message}"),
        }
    });
    // Who asks what a tag names and then gets that by digest has pulled the version; who only asks,
    // as whoever waits for a new one does, has pulled nothing.
    if asked.method == Method::GET && !asked.forwarded() {
        asked.app.services.pulls.note(image.id, tag.as_ref(), &digest);
        // With an index its manifests are fetched, which are parts of the same download.
        if !query.is_listed(image.id, &digest)? {
            asked.app.services.pulls.count(image.id, &digest);
        }
        let tag = tag.map(|tag| format!(":{tag}")).unwrap_or_default();
        let target = format!("{repository}{tag}@{digest}");
        asked.app.services.audit.note("image.pull", target, AuditResult::Done);
    }
    let (length, entity_tag) = (bytes.len() as u64, condition::entity_tag(&digest));
    let body = if asked.method == Method::HEAD { Body::empty() } else { Body::from(bytes) };
    let mut response = Response::new(body);
    let digest = digest.to_string();
    for (name, text) in [
        (header::CONTENT_TYPE, version.media_type),
        (header::ETAG, entity_tag),
        (CONTENT_DIGEST, digest),
    ] {
        let (name, value) = text_header(name, &text)?;
        response.headers_mut().insert(name, value);
    }
    response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    if let Some(text) = notice.or(deprecation) {
        warn(response.headers_mut(), &text);
    }
    Ok(response)
}

/// The rows once they have what an upstream calls so, where the repository is an upstream's, and
/// what its asker is to be told of that.
async fn brought(
    asked: &Asked,
    repository: &RepositoryName,
    pin: &Pin,
) -> Result<(View, Option<String>), RegistryError> {
    let upstreams = &asked.app.upstreams;
    let Some(upstream) = upstreams.of(repository) else { return Ok((asked.view().await?, None)) };
    // What is known may have come after the asker was let in: the view of then would lack it.
    match upstreams.bring(&asked.app, upstream, repository, pin, asked.forwarded()).await? {
        Brought::Known => Ok((asked.app.raft.local(), None)),
        Brought::Looked => Ok((asked.app.view().await?, None)),
        Brought::Stale(notice) => Ok((asked.app.raft.local(), Some(notice))),
    }
}

async fn put(asked: Asked, body: Body, repository: RepositoryName, pin: Pin) -> Answer {
    let owner = asked.account()?;
    let whole = whole(body, MANIFEST_BYTES_MAX).await?;
    let bytes = &whole.bytes;
    let invalid =
        |message: String| RegistryError::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", message);
    let content_type =
        asked.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let parsed = parse_manifest(content_type, bytes).map_err(|error| invalid(error.to_string()))?;
    let algorithm = match &pin {
        Pin::Digest(digest) => digest.algorithm(),
        Pin::Tag(_) => {
            asked.query.get("digest-algorithm").map_or(Ok(Algorithm::Sha256), |name| {
                name.parse().map_err(RegistryError::digest_invalid)
            })?
        }
    };
    let digest = digest_of(algorithm, bytes);
    let mut tags = Vec::new();
    match pin {
        Pin::Digest(wanted) if wanted != digest => {
            let message = format!("the manifest's digest is {digest}, not {wanted}");
            return Err(RegistryError::digest_invalid(message));
        }
        Pin::Digest(_) => tags.extend(query_tags(&asked.pairs)?),
        Pin::Tag(tag) => tags.push(tag),
    }
    let subject = parsed.subject.clone();
    let mut needed = references(parsed.references);
    let foreign = references(parsed.foreign_layers);
    let elsewhere = foreign.len();
    let kept = kept(&asked, &repository, foreign).await?;
    let elsewhere = elsewhere - kept.len();
    needed.extend(kept);
    let command = PutManifest {
        repository: repository.clone(),
        image: ImageId::from_uuid(Uuid::now_v7()),
        version: VersionId::from_uuid(Uuid::now_v7()),
        kind: ImageKind::Container,
        digest: digest.clone(),
        media_type: parsed.media_type,
        manifest: bytes.to_vec(),
        artifact_type: parsed.artifact_type,
        annotations: parsed.annotations,
        subject: parsed.subject,
        references: needed,
        disk: None,
        tags: tags.clone(),
        owner,
        upload: None,
    };
    let answer = asked.app.propose(Command::PutManifest(command)).await?;
    // What was there before may have got its first tag.
    if let MetadataResponse::Version { id, .. } = answer {
        asked.app.services.scanner.pushed(id);
    }
    let mut headers = vec![
        (header::LOCATION, format!("/v2/{repository}/manifests/{digest}")),
        (CONTENT_DIGEST, digest.to_string()),
    ];
    if let Some(subject) = subject {
        headers.push((HeaderName::from_static("oci-subject"), subject.to_string()));
    }
    let mut response = empty(StatusCode::CREATED, &headers)?;
    for tag in &tags {
        let (name, value) = text_header(HeaderName::from_static("oci-tag"), tag.as_str())?;
        response.headers_mut().append(name, value);
    }
    if elsewhere > 0 {
        let text = format!(
            "{repository}@{digest} has {elsewhere} layers of deprecated media types that were not \
             pushed: whoever pulls it must reach the places that it names for them"
        );
        warn(response.headers_mut(), &text);
    }
    Ok(response)
}

/// Those of the layers that need not be pushed that were pushed all the same: they stay with their
/// manifest.
async fn kept(
    asked: &Asked,
    repository: &RepositoryName,
    mut layers: BTreeSet<Reference>,
) -> Result<BTreeSet<Reference>, RegistryError> {
    if layers.is_empty() {
        return Ok(layers);
    }
    let view = asked.view().await?;
    let query = view.query();
    let Some(image) = query.image_by_name(repository)? else { return Ok(BTreeSet::new()) };
    let mut held = BTreeSet::new();
    while let Some(layer) = layers.pop_first() {
        let Reference::Blob { digest, size } = &layer else { continue };
        let is_there = query.blob_in(image.id, digest)?
            && query.blob(digest)?.is_some_and(|blob| blob.size == *size);
        if is_there {
            held.insert(layer);
        }
    }
    Ok(held)
}

async fn delete(asked: &Asked, repository: RepositoryName, pin: Pin) -> Answer {
    asked.account()?;
    let command = match pin {
        Pin::Digest(digest) => Command::DeleteManifest { repository, digest },
        Pin::Tag(tag) => Command::DeleteTag { repository, tag },
    };
    asked.app.propose(command).await?;
    Ok(StatusCode::ACCEPTED.into_response())
}

fn query_tags(pairs: &[(String, String)]) -> Result<BTreeSet<TagName>, RegistryError> {
    let tags: BTreeSet<TagName> = pairs
        .iter()
        .filter(|(name, _)| name == "tag")
        .map(|(_, tag)| tag.parse().map_err(RegistryError::name_invalid))
        .collect::<Result<_, _>>()?;
    if tags.len() > TAGS_MAX {
        let message = format!("more than {TAGS_MAX} tags at once");
        return Err(RegistryError::new(StatusCode::URI_TOO_LONG, "UNSUPPORTED", message));
    }
    Ok(tags)
}

pub fn references(parsed: BTreeSet<shoal_formats::Reference>) -> BTreeSet<Reference> {
    let convert = |reference| match reference {
        shoal_formats::Reference::Blob { digest, size } => Reference::Blob { digest, size },
        shoal_formats::Reference::Manifest { digest, size } => Reference::Manifest { digest, size },
    };
    parsed.into_iter().map(convert).collect()
}

pub fn digest_of(algorithm: Algorithm, bytes: &[u8]) -> Digest {
    match algorithm {
        Algorithm::Sha256 => Digest::sha256(Sha256::digest(bytes).into()),
        Algorithm::Sha512 => Digest::sha512(Sha512::digest(bytes).into()),
    }
}
