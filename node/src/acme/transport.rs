//! How the ACME client speaks HTTP: by the same library as the rest of the node, with bounds.

use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use http_body_util::{BodyExt, Full};
use instant_acme::{BodyWrapper, BytesResponse, HttpClient};

use super::Error;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Directories, orders and chains are some KiB.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

#[derive(Debug)]
pub struct Transport(reqwest::Client);

impl Transport {
    /// Trusts the authorities in `ca_file` only, where there is one; else those of the system.
    ///
    /// # Errors
    /// Where the file holds none.
    pub fn new(ca_file: Option<&Path>) -> Result<Self, Error> {
        let mut client = reqwest::Client::builder().timeout(REQUEST_TIMEOUT).https_only(true);
        if let Some(path) = ca_file {
            let unusable = || Error::Authority { path: path.to_owned() };
            let pem = std::fs::read(path).map_err(|_| unusable())?;
            let authorities = reqwest::Certificate::from_pem_bundle(&pem);
            let authorities = authorities.ok().filter(|all| !all.is_empty());
            client = client.tls_certs_only(authorities.ok_or_else(unusable)?);
        }
        Ok(Self(client.build()?))
    }
}

type Answer = Result<BytesResponse, instant_acme::Error>;

impl HttpClient for Transport {
    fn request(
        &self,
        request: http::Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Answer> + Send>> {
        let client = self.0.clone();
        Box::pin(async move { send(client, request).await })
    }
}

async fn send(client: reqwest::Client, request: http::Request<BodyWrapper<Bytes>>) -> Answer {
    let other = |error: reqwest::Error| instant_acme::Error::Other(Box::new(error));
    let (parts, body) = request.into_parts();
    let Ok(body) = body.collect().await;
    let request = http::Request::from_parts(parts, body.to_bytes());
    let request = reqwest::Request::try_from(request).map_err(other)?;
    let answer = client.execute(request).await.map_err(other)?;
    let mut response = http::Response::new(());
    *response.status_mut() = answer.status();
    *response.headers_mut() = answer.headers().clone();
    let mut pieces = answer.bytes_stream();
    let mut bytes = BytesMut::new();
    while let Some(piece) = pieces.try_next().await.map_err(other)? {
        if bytes.len() + piece.len() > ANSWER_BYTES_MAX {
            return Err(instant_acme::Error::Str("a short enough answer"));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(response.map(|()| Full::new(bytes.freeze())).into())
}
