//! Lists: tags of a repository, repositories, and what refers to a manifest. All in byte order,
//! page by page.

use axum::Json;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use shoal_content::{Digest, ImageId, RepositoryName, TagName};
use shoal_formats::{media_type, parse_manifest};
use shoal_metadata::{ANNOTATIONS_KEPT_BYTES_MAX, Fault, Query, Read, Version, Visible};

use super::answers::{Catalogue, ReferrersIndex, TagList};
use super::{Answer, Asked, RegistryError, image, text_header};
use crate::http::problem::Problem;

/// The longest page; whoever asks for more gets this many and a link.
pub const PAGE_MAX: usize = 10_000;
/// The page where nothing is asked for: the whole list of most repositories.
const PAGE_DEFAULT: usize = 1_000;

/// The longest list of referrers in one answer, in bytes: what a client must take for a manifest.
const REFERRERS_BYTES_MAX: usize = 4 * 1024 * 1024 - 1024;
/// Referrers that one request looks at.
const REFERRERS_SEEN_MAX: usize = 10_000;
const REFERRERS_AT_ONCE: usize = 100;
/// And the manifests of these, in bytes, but for the last.
const REFERRERS_READ_MAX: u64 = 16 * 1024 * 1024;

/// `n`, at most [`PAGE_MAX`].
pub fn page_size(text: Option<&str>) -> Result<usize, RegistryError> {
    let Some(text) = text else { return Ok(PAGE_DEFAULT) };
    let wanted = text.parse::<usize>().map_err(|_| {
        RegistryError::new(
            StatusCode::BAD_REQUEST,
            "PAGINATION_NUMBER_INVALID",
            "n is a whole number",
        )
    })?;
    Ok(wanted.min(PAGE_MAX))
}

/// Adds the link to the next page.
fn linked(mut response: Response, path: &str, size: usize, last: Option<&str>) -> Answer {
    if let Some(last) = last {
        let link = format!("<{path}?n={size}&last={last}>; rel=\"next\"");
        let (name, value) = text_header(header::LINK, &link)?;
        response.headers_mut().insert(name, value);
    }
    Ok(response)
}

fn ensure_get(asked: &Asked) -> Result<(), RegistryError> {
    if matches!(asked.method, Method::GET | Method::HEAD) {
        Ok(())
    } else {
        Err(RegistryError::unsupported())
    }
}

/// `GET /v2/NAME/tags/list`.
pub async fn list(asked: Asked, repository: RepositoryName) -> Answer {
    ensure_get(&asked)?;
    let size = page_size(asked.query.get("n").map(String::as_str))?;
    // What is no tag lies between tags all the same.
    let after = asked.query.get("last").map(String::as_str);
    let view = asked.view().await?;
    let image = image(&view, &repository)?;
    let mut found =
        if size == 0 { Vec::new() } else { view.query().tags(image.id, after, size + 1)? };
    let more = found.len() > size;
    found.truncate(size);
    let tags: Vec<TagName> = found.into_iter().map(|(tag, _)| tag).collect();
    let last = tags.last().cloned().filter(|_| more);
    let path = format!("/v2/{repository}/tags/list");
    let answer = Json(TagList { name: repository, tags }).into_response();
    linked(answer, &path, size, last.as_ref().map(TagName::as_str))
}

/// `GET /v2/_catalog`.
pub async fn catalogue(asked: Asked) -> Answer {
    ensure_get(&asked)?;
    let size = page_size(asked.query.get("n").map(String::as_str))?;
    let after = asked.query.get("last").cloned();
    let (view, who) = (asked.view().await?, asked.who());
    // A page may have ten thousand names, and nobody else is to wait for that.
    let page = move || Visible::new(view.query(), who)?.page(after.as_deref(), size);
    let page = tokio::task::spawn_blocking(page).await;
    let (names, more) = page.map_err(|error| Problem::internal(&error))??;
    let last = names.last().cloned().filter(|_| more);
    let answer = Json(Catalogue { repositories: names }).into_response();
    linked(answer, "/v2/_catalog", size, last.as_ref().map(RepositoryName::as_str))
}

/// `GET /v2/NAME/referrers/DIGEST`: an index of what has that subject, page by page; empty for a
/// repository that was never pushed, and for one that the asker may not see.
pub async fn referrers(
    asked: Asked,
    repository: RepositoryName,
    digest: &str,
    hidden: bool,
) -> Answer {
    ensure_get(&asked)?;
    let subject: Digest = digest.parse().map_err(RegistryError::digest_invalid)?;
    let after = asked.query.get("last").map(|last| last.parse::<Digest>()).transpose();
    let after = after.map_err(RegistryError::digest_invalid)?;
    let filter = asked.query.get("artifactType");
    let view = asked.view().await?;
    let image = view.query().image_by_name(&repository)?.filter(|_| !hidden);
    let found = match image {
        Some(image) => some_referrers(view.query(), image.id, &subject, after, filter)?,
        None => Referrers::default(),
    };
    let Referrers { manifests, last } = found;
    let index = ReferrersIndex { schema_version: 2, media_type: media_type::OCI_INDEX, manifests };
    let mut response = Json(index).into_response();
    if let Some(last) = last {
        let filter = filter.map(|filter| utf8_percent_encode(filter, NON_ALPHANUMERIC));
        let filter = filter.map(|filter| format!("&artifactType={filter}")).unwrap_or_default();
        let path = format!("/v2/{repository}/referrers/{subject}");
        let link = format!("<{path}?last={last}{filter}>; rel=\"next\"");
        let (name, value) = text_header(header::LINK, &link)?;
        response.headers_mut().insert(name, value);
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type::OCI_INDEX));
    if filter.is_some() {
        let name = HeaderName::from_static("oci-filters-applied");
        headers.insert(name, HeaderValue::from_static("artifactType"));
    }
    Ok(response)
}

/// A page of descriptors, and its last digest where there may be more.
#[derive(Default)]
struct Referrers {
    manifests: Vec<Value>,
    last: Option<Digest>,
}

fn some_referrers<R: Read>(
    query: Query<'_, R>,
    image: ImageId,
    subject: &Digest,
    mut after: Option<Digest>,
    filter: Option<&String>,
) -> Result<Referrers, RegistryError> {
    let (mut manifests, mut bytes, mut seen, mut read) = (Vec::new(), 0, 0, 0);
    loop {
        let digests = query.referrers_after(image, subject, after.as_ref(), REFERRERS_AT_ONCE)?;
        let end = digests.len() < REFERRERS_AT_ONCE;
        // One after another: their annotations may be as long as manifests.
        for digest in digests {
            if read > REFERRERS_READ_MAX {
                return Ok(Referrers { manifests, last: after });
            }
            let missing = Fault::Contradiction("a referrer is not there");
            let mut version = query.version(image, &digest)?.ok_or(missing)?;
            read += version.manifest_bytes;
            if filter.is_none() || version.artifact_type.as_ref() == filter {
                complete(query, &mut version)?;
                let descriptor = descriptor(&version);
                bytes += descriptor.to_string().len();
                // The next page begins with it, unless it is too long for any.
                if bytes > REFERRERS_BYTES_MAX && !manifests.is_empty() {
                    return Ok(Referrers { manifests, last: after });
                }
                manifests.push(descriptor);
            }
            seen += 1;
            after = Some(digest);
        }
        if end {
            return Ok(Referrers { manifests, last: None });
        }
        if seen >= REFERRERS_SEEN_MAX {
            return Ok(Referrers { manifests, last: after });
        }
    }
}

/// Gives a version the annotations that are too long for its row, and stand in its manifest alone.
fn complete<R: Read>(query: Query<'_, R>, version: &mut Version) -> Result<(), Fault> {
    if version.annotations.is_empty()
        && version.manifest_bytes > ANNOTATIONS_KEPT_BYTES_MAX as u64
        && let Some(bytes) = query.manifest(version.image, &version.digest)?
        && let Ok(parsed) = parse_manifest(Some(&version.media_type), &bytes)
    {
        version.annotations = parsed.annotations;
    }
    Ok(())
}

fn descriptor(version: &Version) -> Value {
    let mut descriptor = json!({
        "mediaType": version.media_type,
        "digest": version.digest.to_string(),
        "size": version.manifest_bytes,
    });
    if let Some(artifact_type) = &version.artifact_type {
        descriptor["artifactType"] = json!(artifact_type);
    }
    if !version.annotations.is_empty() {
        descriptor["annotations"] = json!(version.annotations);
    }
    descriptor
}
