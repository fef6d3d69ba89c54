//! GET, HEAD and DELETE of a blob.

use axum::body::Body;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use shoal_content::{Digest, RepositoryName};
use shoal_metadata::Command;

use super::range::{Wanted, wanted};
use super::{Answer, Asked, CONTENT_DIGEST, RegistryError, image};

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
    let view = asked.app.view().await?;
    let image = image(&view, repository)?;
    if !view.query().blob_in(image.id, digest)? {
        return Err(RegistryError::blob_unknown());
    }
    let blob = view.query().blob(digest)?.ok_or_else(RegistryError::blob_unknown)?;
    drop(view);
    let range = asked.headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let (status, range) = match wanted(range, blob.size) {
        Wanted::Whole => (StatusCode::OK, 0..blob.size),
        Wanted::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Wanted::Unsatisfiable => {
            let message = format!("the blob has {} bytes", blob.size);
            let status = StatusCode::RANGE_NOT_SATISFIABLE;
            return Err(RegistryError::new(status, "SIZE_INVALID", message)
                .with(header::CONTENT_RANGE, &format!("bytes */{}", blob.size)));
        }
    };
    let mut response = if asked.method == Method::HEAD {
        Response::new(Body::empty())
    } else {
        let length = range.end - range.start;
        asked.app.metrics.download_bytes.inc_by(length);
        Response::new(Body::from_stream(asked.app.store.get(blob.object, range.clone()).await?))
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
    if let Ok(value) = HeaderValue::from_str(&format!("\"{digest}\"")) {
        headers.insert(header::ETAG, value);
    }
    if status == StatusCode::PARTIAL_CONTENT {
        let text = format!("bytes {}-{}/{}", range.start, range.end - 1, blob.size);
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert(header::CONTENT_RANGE, value);
        }
    }
    Ok(response)
}

async fn delete(asked: &Asked, repository: RepositoryName, digest: Digest) -> Answer {
    asked.principal.ensure_user()?;
    asked.app.propose(Command::UnlinkBlob { repository, digest }).await?;
    Ok(StatusCode::ACCEPTED.into_response())
}
