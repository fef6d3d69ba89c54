//! The registry's core endpoints and both ways to log in, with the media types, headers and fields
//! that Zedge's engineers wrote down. Each answer is in the document of the API besides.

use anyhow::{Context, Result, ensure};
use reqwest::{Method, RequestBuilder, Response, StatusCode, header};
use serde_json::{Value, json};

use super::super::document::contract::CONTRACT;
use super::super::node::Node;
use super::super::v2::sha256;
use super::agrees;

const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const REPOSITORY: &str = "shop/web";

/// The answer's status, headers and bytes, where it is the one that is wanted.
pub(super) async fn sent(
    request: RequestBuilder,
    status: StatusCode,
) -> Result<(header::HeaderMap, Vec<u8>)> {
    let (client, request) = request.build_split();
    let request = request?;
    let (method, path) = (request.method().clone(), request.url().path().to_owned());
    let answer: Response = client.execute(request).await?;
    ensure!(answer.status() == status, "{method} {path}: {} is not {status}", answer.status());
    let headers = answer.headers().clone();
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default().to_owned();
    let body = answer.bytes().await?.to_vec();
    // A HEAD is answered like a GET without its body.
    if method != Method::HEAD {
        CONTRACT.check_answer(method.as_str(), &path, status.as_u16(), &kind, &body)?;
    }
    Ok((headers, body))
}

fn has(headers: &header::HeaderMap, name: &str, wanted: &str) -> Result<()> {
    let found = headers.get(name).with_context(|| format!("no {name}"))?.to_str()?;
    ensure!(found == wanted, "{name} is {found}, not {wanted}");
    Ok(())
}

/// Begun by POST, sent whole by PUT to where the answer says.
async fn pushed(node: &Node, bytes: &[u8]) -> Result<String> {
    let digest = sha256(bytes);
    let begin = node.v2(Method::POST, &format!("{REPOSITORY}/blobs/uploads/"));
    let (headers, _) = sent(begin, StatusCode::ACCEPTED).await?;
    let location = headers.get("location").context("no Location")?.to_str()?;
    let upload = headers.get("docker-upload-uuid").context("no id")?.to_str()?;
    ensure!(location.contains(upload), "{location} is not of {upload}");
    let path = location.strip_prefix("/v2/").context("a path")?;
    let join = if path.contains('?') { '&' } else { '?' };
    let end = node.v2(Method::PUT, &format!("{path}{join}digest={digest}")).body(bytes.to_vec());
    let (headers, _) = sent(end, StatusCode::CREATED).await?;
    has(&headers, "docker-content-digest", &digest)?;
    Ok(digest)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_docker_s_kinds_is_pushed_and_pulled_as_written() -> Result<()> {
    let node = Node::start().await?;
    let (headers, _) = sent(node.v2(Method::GET, ""), StatusCode::OK).await?;
    has(&headers, "docker-distribution-api-version", "registry/2.0")?;

    let (config, first, second) = (vec![b'{'; 7023], vec![1; 32_654], vec![2; 16_724]);
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": {
            "mediaType": CONFIG, "size": 7023, "digest": pushed(&node, &config).await?,
        },
        "layers": [
            { "mediaType": LAYER, "size": 32_654, "digest": pushed(&node, &first).await? },
            { "mediaType": LAYER, "size": 16_724, "digest": pushed(&node, &second).await? },
        ],
    });
    let bytes = manifest.to_string();
    let digest = sha256(bytes.as_bytes());
    let path = format!("{REPOSITORY}/manifests/1.0");
    let put = node.v2(Method::PUT, &path).header("content-type", MANIFEST).body(bytes.clone());
    let (headers, _) = sent(put, StatusCode::CREATED).await?;
    has(&headers, "docker-content-digest", &digest)?;

    for reference in ["1.0", digest.as_str()] {
        let path = format!("{REPOSITORY}/manifests/{reference}");
        let get = node.v2(Method::GET, &path).header("accept", MANIFEST);
        let (headers, body) = sent(get, StatusCode::OK).await?;
        has(&headers, "content-type", MANIFEST)?;
        has(&headers, "docker-content-digest", &digest)?;
        ensure!(body == bytes.as_bytes(), "the manifest's bytes are others");
        agrees(&serde_json::from_slice(&body)?, &manifest, "manifest")?;
        sent(node.v2(Method::HEAD, &path).header("accept", MANIFEST), StatusCode::OK).await?;
    }
    let blob = format!("{REPOSITORY}/blobs/{}", sha256(&first));
    let get = node.v2(Method::GET, &blob).header("accept", "application/octet-stream");
    let (headers, body) = sent(get, StatusCode::OK).await?;
    has(&headers, "content-type", "application/octet-stream")?;
    has(&headers, "content-length", "32654")?;
    has(&headers, "docker-content-digest", &sha256(&first))?;
    ensure!(body == first, "the blob's bytes are others");
    // The same in the other API: what it consists of, in its order, and what configures it.
    let found: Value = node.get(&format!("resolve?reference={REPOSITORY}:1.0")).await?;
    let (image, version) = (found["image_id"].as_str(), found["version_id"].as_str());
    let path = format!(
        "images/{}/versions/{}",
        image.context("no image")?,
        version.context("no version")?
    );
    let shown: Value = node.get(&path).await?;
    let wanted = json!({
        "manifest_digest": digest, "config_digest": sha256(&config), "total_size_bytes": 56_401,
        "layers": [
            { "digest": sha256(&first), "size": 32_654, "media_type": LAYER },
            { "digest": sha256(&second), "size": 16_724, "media_type": LAYER },
        ],
    });
    agrees(&shown, &wanted, "version")?;
    let tags = node.v2(Method::GET, &format!("{REPOSITORY}/tags/list"));
    let (_, body) = sent(tags, StatusCode::OK).await?;
    let wanted = json!({ "name": REPOSITORY, "tags": ["1.0"] });
    ensure!(serde_json::from_slice::<Value>(&body)? == wanted, "{body:?}");
    let none = node.v2(Method::GET, &format!("{REPOSITORY}/manifests/2.0"));
    let (_, body) = sent(none, StatusCode::NOT_FOUND).await?;
    let body: Value = serde_json::from_slice(&body)?;
    ensure!(body["errors"][0]["code"] == "MANIFEST_UNKNOWN", "{body}");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ways_to_log_in_lead_to_the_same_account() -> Result<()> {
    let node = Node::start().await?;
    let url = format!("{}/api/v1/auth/me", node.url);
    let bearer = node.http.get(&url).bearer_auth(node.token());
    let basic = node.http.get(&url).basic_auth("admin", Some(node.password()));
    for request in [bearer, basic] {
        let (_, body) = sent(request, StatusCode::OK).await?;
        let wanted = json!({ "username": "admin", "role": "admin" });
        agrees(&serde_json::from_slice(&body)?, &wanted, "me")?;
    }
    // A token is a JWT that says who, and until when.
    let mut parts = node.token().split('.');
    let claims = parts.nth(1).context("no claims")?;
    let engine = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let claims: Value = serde_json::from_slice(&base64::Engine::decode(&engine, claims)?)?;
    ensure!(claims["sub"] == "admin" && parts.next().is_some(), "{claims}");
    let (end, begin) = (claims["exp"].as_u64(), claims["iat"].as_u64());
    ensure!(end.context("no exp")? > begin.context("no iat")?, "{claims}");
    let nobody = node.http.get(&url);
    let (headers, _) = sent(nobody, StatusCode::UNAUTHORIZED).await?;
    ensure!(headers.contains_key("www-authenticate"), "{headers:?}");
    node.server.stop().await
}
