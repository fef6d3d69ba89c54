//! A registry of one image, for one run of the scanner: on the loopback interface, for whoever has
//! the secret that the scanner gets in its environment.
//!
//! The node's own registry would take a token that opens more than this version, need its address and
//! certificate to be such as the scanner accepts, and count each scan as a pull, by which retention
//! keeps images.
//!
//! Invariants: nothing is answered to who lacks the secret; nothing is given but the manifest and the
//! blobs that it refers to; it ends with its [`Source`].

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use shoal_content::Digest;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tracing::warn;

use super::subject::Manifest;
use crate::http::problem::chain;
use crate::store::BlobStore;

/// What the image is called there.
const NAME: &str = "image";
const SECRET_BYTES: usize = 32;

/// See the module's documentation. Nothing shows it: it has the secret.
pub struct Source {
    address: SocketAddr,
    secret: String,
    digest: Digest,
    _server: JoinSet<()>,
}

struct Content {
    secret: blake3::Hash,
    manifest: Manifest,
    store: Arc<dyn BlobStore>,
}

impl Source {
    /// # Errors
    /// Where no port is to be had.
    pub async fn open(store: Arc<dyn BlobStore>, manifest: Manifest) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let secret = hex::encode(rand::random::<[u8; SECRET_BYTES]>());
        let digest = manifest.digest.clone();
        let hash = blake3::hash(secret.as_bytes());
        let router = Router::new().fallback(answer).with_state(Arc::new(Content {
            secret: hash,
            manifest,
            store,
        }));
        let mut server = JoinSet::new();
        server.spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                warn!(%error, "the scanner's registry ended");
            }
        });
        Ok(Self { address, secret, digest, _server: server })
    }

    /// What the scanner is to look at.
    pub fn reference(&self) -> String {
        format!("{}/{NAME}@{}", self.address, self.digest)
    }

    /// What it is to bring as a Bearer token.
    pub fn secret(&self) -> &str {
        &self.secret
    }
}

async fn answer(
    State(content): State<Arc<Content>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let brought = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let brought = brought.and_then(|value| value.strip_prefix("Bearer "));
    // Hashes are compared in constant time.
    if !brought.is_some_and(|secret| blake3::hash(secret.as_bytes()) == content.secret) {
        let challenge = [(header::WWW_AUTHENTICATE, "Basic realm=\"scan\"")];
        return (StatusCode::UNAUTHORIZED, challenge).into_response();
    }
    if method != Method::GET && method != Method::HEAD {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }
    let path = uri.path();
    if path == "/v2/" {
        return StatusCode::OK.into_response();
    }
    let mut parts = path.strip_prefix("/v2/").unwrap_or_default().splitn(3, '/');
    let (name, kind, digest) = (parts.next(), parts.next(), parts.next());
    let digest = digest.and_then(|text| text.parse::<Digest>().ok());
    let manifest = &content.manifest;
    let answer = match (name, kind, digest) {
        (Some(NAME), Some("manifests"), Some(digest)) if digest == manifest.digest => {
            Response::builder()
                .header(header::CONTENT_TYPE, &manifest.media_type)
                .header("docker-content-digest", digest.to_string())
                .body(Body::from(manifest.bytes.clone()))
        }
        (Some(NAME), Some("blobs"), Some(digest)) => {
            let Some((object, size)) = manifest.blobs.get(&digest).copied() else {
                return StatusCode::NOT_FOUND.into_response();
            };
            let body = match content.store.get(object, 0..size).await {
                Ok(bytes) => Body::from_stream(bytes),
                Err(error) => {
                    warn!(%digest, error = chain(&error), "a blob cannot be scanned");
                    return StatusCode::SERVICE_UNAVAILABLE.into_response();
                }
            };
            Response::builder()
                .header(header::CONTENT_TYPE, "application/octet-stream")
                .header(header::CONTENT_LENGTH, size)
                .body(body)
        }
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    answer.unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use shoal_content::{ObjectKey, UploadId};
    use shoal_metadata::KeyOwner;
    use uuid::Uuid;

    use super::*;
    use crate::store::FolderStore;

    #[tokio::test]
    async fn gives_one_image_to_who_has_the_secret_and_nothing_else_to_anybody() {
        // Whoever was first has installed the same.
        rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
        let folder = tempfile::tempdir().unwrap();
        let store = FolderStore::open(folder.path(), 0).unwrap();
        let store: Arc<dyn BlobStore> = Arc::new(store);
        let object = |number| ObjectKey::Blob(UploadId::from_uuid(Uuid::from_u128(number)));
        for (number, bytes) in [(1, &b"layer"[..]), (2, &b"another's"[..])] {
            let bytes = Bytes::from_static(bytes);
            store.put(object(number), &KeyOwner::Cluster, bytes).await.unwrap();
        }
        let digest = |number| Digest::sha256([number; 32]);
        let manifest = Manifest {
            digest: digest(1),
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            bytes: Bytes::from_static(b"{}"),
            blobs: [(digest(2), (object(1), 5))].into(),
        };
        let source = Source::open(store, manifest).await.unwrap();
        let address = source.reference().split('/').next().unwrap().to_owned();
        let ask = |secret: &str, path: String| {
            let request = reqwest::Client::builder().no_proxy().build().unwrap();
            let request = request.get(format!("http://{address}{path}"));
            let request = if secret.is_empty() { request } else { request.bearer_auth(secret) };
            async move {
                let response = request.send().await.unwrap();
                (response.status().as_u16(), response.bytes().await.unwrap())
            }
        };
        let secret = source.secret();
        let (of_manifest, of_blob) = (
            format!("/v2/image/manifests/{}", digest(1)),
            format!("/v2/image/blobs/{}", digest(2)),
        );
        for wrong in ["", "0", &secret[1..]] {
            for path in ["/v2/", &of_manifest, &of_blob] {
                assert_eq!(ask(wrong, path.to_owned()).await.0, 401, "{path}");
            }
        }
        assert_eq!(ask(secret, "/v2/".into()).await.0, 200);
        assert_eq!(ask(secret, of_manifest).await, (200, Bytes::from_static(b"{}")));
        assert_eq!(ask(secret, of_blob).await, (200, Bytes::from_static(b"layer")));
        for path in [
            format!("/v2/image/manifests/{}", digest(2)),
            format!("/v2/image/blobs/{}", digest(1)),
            format!("/v2/other/blobs/{}", digest(2)),
            "/v2/image/manifests/latest".to_owned(),
            "/".to_owned(),
        ] {
            assert_eq!(ask(secret, path.clone()).await.0, 404, "{path}");
        }
    }
}
