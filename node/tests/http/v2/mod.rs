//! `/v2` by the rules of the distribution specification (1.1, and its development branch).

mod access;
mod algorithms;
mod artifacts;
mod blobs;
mod lists;
mod manifests;
mod referrers;
mod resume;
mod settings;
mod uploads;

use anyhow::{Context, Result, ensure};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256, Sha512};

use super::node::Node;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

pub fn sha512(bytes: &[u8]) -> String {
    format!("sha512:{}", hex::encode(Sha512::digest(bytes)))
}

fn header<'a>(answer: &'a Response, name: &str) -> Result<&'a str> {
    let value = answer.headers().get(name).with_context(|| format!("no {name} in {answer:?}"))?;
    Ok(value.to_str()?)
}

pub fn expect(answer: &Response, status: StatusCode) -> Result<()> {
    ensure!(answer.status() == status, "{} of {} is not {status}", answer.status(), answer.url());
    Ok(())
}

/// The answer has this status and this code of the specification, in its form.
async fn refused(answer: Response, status: StatusCode, code: &str) -> Result<()> {
    expect(&answer, status)?;
    let body: Value = answer.json().await?;
    let first = &body["errors"][0];
    ensure!(first["code"] == code, "{body} has no {code}");
    ensure!(first["message"].is_string(), "{body} says nothing");
    Ok(())
}

/// Pushes a blob with one POST; gives its digest.
pub async fn push_blob(node: &Node, repository: &str, bytes: &[u8]) -> Result<String> {
    let digest = sha256(bytes);
    let path = format!("{repository}/blobs/uploads/?digest={digest}");
    let answer = node.v2(Method::POST, &path).body(bytes.to_vec()).send().await?;
    expect(&answer, StatusCode::CREATED)?;
    Ok(digest)
}

/// Opens a session; gives its path below `/v2/`.
pub async fn open_upload(node: &Node, repository: &str) -> Result<String> {
    let answer = node.v2(Method::POST, &format!("{repository}/blobs/uploads/")).send().await?;
    expect(&answer, StatusCode::ACCEPTED)?;
    session(&answer)
}

fn session(answer: &Response) -> Result<String> {
    let location = header(answer, "location")?;
    Ok(location.strip_prefix("/v2/").context("a Location is path-absolute")?.to_owned())
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": sha256(bytes), "size": bytes.len() })
}

async fn put(node: &Node, repository: &str, reference: &str, manifest: &Value) -> Result<Response> {
    let media_type = manifest["mediaType"].as_str().unwrap_or(MANIFEST).to_owned();
    let request = node.v2(Method::PUT, &format!("{repository}/manifests/{reference}"));
    Ok(request.header("content-type", media_type).body(manifest.to_string()).send().await?)
}

/// Pushes an image of one layer under `tag`; gives the manifest's bytes.
pub async fn push_image(node: &Node, repository: &str, tag: &str, layer: &[u8]) -> Result<Vec<u8>> {
    push_blob(node, repository, b"{}").await?;
    push_blob(node, repository, layer).await?;
    let manifest = image(layer);
    expect(&put(node, repository, tag, &manifest).await?, StatusCode::CREATED)?;
    Ok(manifest.to_string().into_bytes())
}

fn image(layer: &[u8]) -> Value {
    json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": descriptor(CONFIG, b"{}"), "layers": [descriptor(LAYER, layer)],
    })
}
