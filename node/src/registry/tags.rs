//! Lists: tags of a repository, repositories, and what refers to a manifest. All in byte order,
//! page by page.

use axum::Json;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use shoal_content::{Digest, RepositoryName};
use shoal_formats::media_type;
use shoal_metadata::{Version, Visible};

use super::{Answer, Asked, RegistryError, image, text_header};

/// The longest page; whoever asks for more gets this many and a link.
pub const PAGE_MAX: usize = 10_000;
/// The page where nothing is asked for: the whole list of most repositories.
const PAGE_DEFAULT: usize = 1_000;

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
    // What is no tag lies between tags all the same; only whole tags are compared.
    let after = asked.query.get("last").map(|last| last.parse()).transpose();
    let after = after.map_err(|error: shoal_content::NameError| {
        RegistryError::new(StatusCode::BAD_REQUEST, "UNSUPPORTED", error.to_string())
    })?;
    let view = asked.view().await?;
    let image = image(&view, &repository)?;
    let mut found = if size == 0 {
        Vec::new()
    } else {
        view.query().tags(image.id, after.as_ref(), size + 1)?
    };
    let more = found.len() > size;
    found.truncate(size);
    let tags: Vec<&str> = found.iter().map(|(tag, _)| tag.as_str()).collect();
    let body = json!({"name": repository.as_str(), "tags": tags});
    let last = tags.last().copied().filter(|_| more);
    linked(Json(body).into_response(), &format!("/v2/{repository}/tags/list"), size, last)
}

/// `GET /v2/_catalog`.
pub async fn catalogue(asked: Asked) -> Answer {
    ensure_get(&asked)?;
    let size = page_size(asked.query.get("n").map(String::as_str))?;
    let after = asked.query.get("last").map(|last| last.parse()).transpose();
    let after = after.map_err(RegistryError::name_invalid)?;
    let view = asked.view().await?;
    let (names, more) = Visible::new(view.query(), asked.who())?.page(after.as_ref(), size)?;
    let last = names.last().map(RepositoryName::as_str).filter(|_| more);
    let names: Vec<&str> = names.iter().map(RepositoryName::as_str).collect();
    linked(Json(json!({"repositories": names})).into_response(), "/v2/_catalog", size, last)
}

/// `GET /v2/NAME/referrers/DIGEST`: an index of what has that subject; empty for a repository that
/// was never pushed.
pub async fn referrers(asked: Asked, repository: RepositoryName, digest: &str) -> Answer {
    ensure_get(&asked)?;
    let digest: Digest = digest.parse().map_err(RegistryError::digest_invalid)?;
    let view = asked.view().await?;
    let versions = match view.query().image_by_name(&repository)? {
        Some(image) => view.query().referrers(image.id, &digest)?,
        None => Vec::new(),
    };
    let filter = asked.query.get("artifactType");
    let kept = versions
        .iter()
        .filter(|version| filter.is_none() || version.artifact_type.as_ref() == filter);
    let manifests: Vec<Value> = kept.map(descriptor).collect();
    let index =
        json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests});
    let mut response = index.to_string().into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type::OCI_INDEX));
    if filter.is_some() {
        let name = HeaderName::from_static("oci-filters-applied");
        headers.insert(name, HeaderValue::from_static("artifactType"));
    }
    Ok(response)
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
