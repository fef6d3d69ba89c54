//! What is no container image: Helm charts, signatures and attestations of cosign, and files of
//! oras, in the shapes in which these clients push them, found again as they look for them.

use anyhow::{Context, Result, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::super::disks::{create_image, download, make_disk, upload};
use super::super::node::{Node, run};
use super::{INDEX, MANIFEST, descriptor, expect, header, push_blob, push_image, put, sha256};

const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

/// One file of an artifact: its type, its bytes, its annotations.
type File<'a> = (&'a str, &'a [u8], Value);

/// Pushes config and files, and gives the manifest for them.
async fn artifact(
    node: &Node,
    repository: &str,
    config: (&str, &[u8]),
    files: &[File<'_>],
) -> Result<Value> {
    push_blob(node, repository, config.1).await?;
    let mut layers = Vec::new();
    for (media_type, bytes, annotations) in files {
        push_blob(node, repository, bytes).await?;
        let mut layer = descriptor(media_type, bytes);
        layer["annotations"] = annotations.clone();
        layers.push(layer);
    }
    let config = descriptor(config.0, config.1);
    Ok(json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers }))
}

/// Pulls a manifest and all that it names, and compares.
async fn check_pulled(
    node: &Node,
    repository: &str,
    reference: &str,
    pushed: &Value,
    files: &[File<'_>],
) -> Result<()> {
    let path = format!("{repository}/manifests/{reference}");
    let answer = node.v2(Method::GET, &path).header("accept", MANIFEST).send().await?;
    expect(&answer, StatusCode::OK)?;
    ensure!(header(&answer, "content-type")? == MANIFEST);
    let text = pushed.to_string();
    ensure!(answer.text().await? == text, "{reference} came back as something else");
    for (_, bytes, _) in files {
        let path = format!("{repository}/blobs/{}", sha256(bytes));
        ensure!(node.v2(Method::GET, &path).send().await?.bytes().await? == *bytes);
    }
    Ok(())
}

async fn tags(node: &Node, repository: &str) -> Result<Value> {
    let list: Value =
        node.v2(Method::GET, &format!("{repository}/tags/list")).send().await?.json().await?;
    Ok(list["tags"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_helm_chart_with_its_provenance_is_pushed_and_pulled() -> Result<()> {
    let node = Node::start().await?;
    let config =
        br#"{"name":"web","version":"1.2.3+build.5","apiVersion":"v2","type":"application"}"#;
    let files: [File<'_>; 2] = [
        ("application/vnd.cncf.helm.chart.content.v1.tar+gzip", b"\x1f\x8b chart", json!({})),
        ("application/vnd.cncf.helm.chart.provenance.v1.prov", b"-----BEGIN PGP", json!({})),
    ];
    let kind = "application/vnd.cncf.helm.config.v1+json";
    let mut chart = artifact(&node, "charts/web", (kind, config), &files).await?;
    chart["annotations"] = json!({
        "org.opencontainers.image.title": "web", "org.opencontainers.image.version": "1.2.3+build.5",
    });
    // Helm writes an underscore where a version has what a tag cannot have.
    expect(&put(&node, "charts/web", "1.2.3_build.5", &chart).await?, StatusCode::CREATED)?;
    check_pulled(&node, "charts/web", "1.2.3_build.5", &chart, &files).await?;
    ensure!(tags(&node, "charts/web").await? == json!(["1.2.3_build.5"]));
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn cosign_finds_signatures_by_tag_and_by_referrer() -> Result<()> {
    let node = Node::start().await?;
    let image = push_image(&node, "a/signed", "v1", b"layer").await?;
    let digest = sha256(&image);
    let (_, hex) = digest.split_once(':').context("a digest")?;

    // The tag schema: one manifest for all signatures, which grows.
    let payload =
        json!({ "critical": { "image": { "docker-manifest-digest": digest } } }).to_string();
    let signed = |signature: &str| json!({ "dev.cosignproject.cosign/signature": signature });
    let kind = "application/vnd.dev.cosign.simplesigning.v1+json";
    let config = (
        super::CONFIG,
        br#"{"architecture":"","os":"","rootfs":{"type":"layers","diff_ids":[]}}"#.as_slice(),
    );
    let one: File<'_> = (kind, payload.as_bytes(), signed("MEUCIQ1"));
    let two: File<'_> = (kind, payload.as_bytes(), signed("MEUCIQ2"));
    for files in [vec![one.clone()], vec![one.clone(), two]] {
        let signatures = artifact(&node, "a/signed", config, &files).await?;
        let tag = format!("sha256-{hex}.sig");
        expect(&put(&node, "a/signed", &tag, &signatures).await?, StatusCode::CREATED)?;
        check_pulled(&node, "a/signed", &tag, &signatures, &files).await?;
    }
    let envelope: File<'_> = (
        "application/vnd.dsse.envelope.v1+json",
        br#"{"payloadType":"application/vnd.in-toto+json"}"#,
        json!({ "predicateType": "https://slsa.dev/provenance/v1" }),
    );
    let attestation = artifact(&node, "a/signed", config, std::slice::from_ref(&envelope)).await?;
    let tag = format!("sha256-{hex}.att");
    expect(&put(&node, "a/signed", &tag, &attestation).await?, StatusCode::CREATED)?;
    check_pulled(&node, "a/signed", &tag, &attestation, &[envelope]).await?;
    ensure!(
        tags(&node, "a/signed").await?
            == json!([format!("sha256-{hex}.att"), format!("sha256-{hex}.sig"), "v1"])
    );
    let nothing =
        node.v2(Method::HEAD, &format!("a/signed/manifests/sha256-{hex}.sbom")).send().await?;
    expect(&nothing, StatusCode::NOT_FOUND)?;

    // The bundle of today: it refers to the image, and has no tag.
    let bundle: File<'_> =
        (BUNDLE, br#"{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json"}"#, json!({}));
    let mut manifest =
        artifact(&node, "a/signed", (EMPTY, b"{}"), std::slice::from_ref(&bundle)).await?;
    manifest["artifactType"] = json!(BUNDLE);
    manifest["subject"] = descriptor(MANIFEST, &image);
    manifest["annotations"] = json!({ "dev.sigstore.bundle.content": "dsse-envelope" });
    let by_digest = sha256(manifest.to_string().as_bytes());
    let answer = put(&node, "a/signed", &by_digest, &manifest).await?;
    expect(&answer, StatusCode::CREATED)?;
    ensure!(header(&answer, "oci-subject")? == digest, "cosign would fall back to the tag schema");
    check_pulled(&node, "a/signed", &by_digest, &manifest, &[bundle]).await?;
    let path = format!("a/signed/referrers/{digest}?artifactType={}", BUNDLE.replace('+', "%2B"));
    let list: Value = node.v2(Method::GET, &path).send().await?.json().await?;
    let found = &list["manifests"];
    ensure!(found.as_array().is_some_and(|found| found.len() == 1), "{list}");
    ensure!(found[0]["digest"] == by_digest.as_str() && found[0]["artifactType"] == BUNDLE);
    ensure!(found[0]["annotations"]["dev.sigstore.bundle.content"] == "dsse-envelope", "{list}");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_oras_keep_their_names_and_an_old_client_keeps_its_list_of_referrers() -> Result<()>
{
    let node = Node::start().await?;
    let named = |name: &str| json!({ "org.opencontainers.image.title": name });
    let files: [File<'_>; 2] = [
        ("text/plain", b"hello", named("hello.txt")),
        ("application/vnd.oci.image.layer.v1.tar+gzip", b"\x1f\x8b folder", named("folder")),
    ];
    let mut manifest = artifact(&node, "a/files", (EMPTY, b"{}"), &files).await?;
    manifest["artifactType"] = json!("application/vnd.example.files");
    // The empty descriptor carries its own content (image-spec 1.1).
    manifest["config"]["data"] = json!("e30=");
    expect(&put(&node, "a/files", "latest", &manifest).await?, StatusCode::CREATED)?;
    check_pulled(&node, "a/files", "latest", &manifest, &files).await?;

    // A client that knows nothing of referrers keeps an index of its own under this tag.
    let text = manifest.to_string();
    let tag = sha256(text.as_bytes()).replace(':', "-");
    let index = json!({
        "schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor(MANIFEST, text.as_bytes())],
    });
    expect(&put(&node, "a/files", &tag, &index).await?, StatusCode::CREATED)?;
    let answer = node.v2(Method::GET, &format!("a/files/manifests/{tag}")).send().await?;
    ensure!(header(&answer, "content-type")? == INDEX);
    let text = index.to_string();
    ensure!(answer.text().await? == text);
    node.server.stop().await
}

/// What a client of artifacts takes for the file of a version: its digest and its size.
async fn file_of(node: &Node, repository: &str, tag: &str) -> Result<(String, u64)> {
    let path = format!("{repository}/manifests/{tag}");
    let manifest: Value = node.v2(Method::GET, &path).send().await?.json().await?;
    let layer = &manifest["layers"][0];
    ensure!(manifest["layers"].as_array().is_some_and(|all| all.len() == 1), "{manifest}");
    let name = repository.rsplit('/').next().unwrap_or_default();
    let version = &manifest["annotations"]["org.opencontainers.image.version"];
    let title = format!("{name}-{}.qcow2", version.as_str().context("no version")?);
    ensure!(layer["annotations"]["org.opencontainers.image.title"] == title, "{manifest}");
    let digest = layer["digest"].as_str().context("no digest")?.to_owned();
    Ok((digest, layer["size"].as_u64().context("no size")?))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_is_pulled_as_a_file_that_its_manifest_names() -> Result<()> {
    let node = Node::start().await?;
    let source = make_disk(node.path(), "one", 2)?;
    let image = create_image(&node, "zedge/one").await?;
    let uploaded = upload(&node, image, &source, "1.0.0").await?;
    ensure!(uploaded.status == "active", "{uploaded:?}");
    let (digest, size) = file_of(&node, "zedge/one", "latest").await?;

    let path = format!("zedge/one/blobs/{digest}");
    let head = node.v2(Method::HEAD, &path).send().await?;
    expect(&head, StatusCode::OK)?;
    ensure!(header(&head, "content-length")? == size.to_string());
    let bytes = node.v2(Method::GET, &path).send().await?.bytes().await?;
    ensure!(bytes.len() as u64 == size && sha256(&bytes) == digest, "other bytes than it says");
    ensure!(download(&node, image, "1.0.0", "qcow2").await? == bytes, "two qcow2 of one version");
    let pulled = node.path().join("pulled.qcow2");
    std::fs::write(&pulled, &bytes)?;
    let (source, pulled) = (source.to_string_lossy(), pulled.to_string_lossy());
    run("qemu-img", &["compare", "-f", "qcow2", "-F", "qcow2", &source, &pulled])?;
    let part = node.v2(Method::GET, &path).header("range", "bytes=65000-1400000").send().await?;
    expect(&part, StatusCode::PARTIAL_CONTENT)?;
    ensure!(part.bytes().await? == bytes[65_000..=1_400_000]);
    let config = format!("zedge/one/blobs/{}", sha256(b"{}"));
    ensure!(node.v2(Method::GET, &config).send().await?.bytes().await? == "{}");

    // It is that image's alone, and as long as one of its versions has it.
    create_image(&node, "zedge/other").await?;
    let elsewhere = format!("zedge/other/blobs/{digest}");
    expect(&node.v2(Method::HEAD, &elsewhere).send().await?, StatusCode::NOT_FOUND)?;
    let wanted = json!({ "version": "1.0.1", "from": "1.0.0" });
    let versions = format!("images/{image}/versions");
    let _again: Value = node.call(Method::POST, &versions, &wanted).await?;
    ensure!(file_of(&node, "zedge/one", "latest").await? == (digest, size));
    for (version, after) in [("1.0.0", StatusCode::OK), ("1.0.1", StatusCode::NOT_FOUND)] {
        let version = format!("{versions}/{version}");
        node.request(Method::DELETE, &version).send().await?.error_for_status()?;
        expect(&node.v2(Method::HEAD, &path).send().await?, after)?;
    }
    node.server.stop().await
}
