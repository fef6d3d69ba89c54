//! Scans of images and disks by a program of its own (`scanner.sh`): what it gets to see, what
//! becomes of what it says, and what of what it does not say.

mod faults;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use shoal_api::{Deployment, ImageDetail, Resolution, ScanOrdered, VulnerabilityReport, WarmUp};
use shoal_content::ImageId;
use shoal_metadata::AuditPhase;
use shoal_node::config::{BlockSeverity, Config};
use tempfile::TempDir;

use super::disks::{create_image, make_disk, upload};
use super::examples::agrees;
use super::members::Agent;
use super::node::{Node, problem};
use super::v2::{push_blob, push_image, sha256};
use super::wait::{level_raised, until};

const SCRIPT: &str = include_str!("scanner.sh");
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A scanner, with what it is to answer.
struct Program(TempDir);

impl Program {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("scanner.sh"), SCRIPT)?;
        let this = Self(folder);
        let found = [("CVE-1", "HIGH"), ("CVE-2", "CRITICAL"), ("CVE-3", "LOW"), ("CVE-4", "HIGH")];
        this.write("report", &report(&found).to_string())?;
        Ok(this)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        Ok(fs::write(self.path(name), text)?)
    }

    fn read(&self, name: &str) -> Result<String> {
        fs::read_to_string(self.path(name)).with_context(|| name.to_owned())
    }

    fn calls(&self) -> usize {
        self.read("calls").map_or(0, |text| text.lines().count())
    }

    /// A shell reads the script, since one that is being written cannot be run.
    fn command(&self) -> Vec<String> {
        let folder = self.0.path().display().to_string();
        vec!["/bin/sh".to_owned(), format!("{folder}/scanner.sh"), folder]
    }

    /// Only what is ordered is scanned.
    fn configure(&self, config: &mut Config) {
        config.scanner.command = self.command();
        config.scanner.on_push = false;
        config.scanner.every_hours = 0;
    }

    async fn node(&self) -> Result<Node> {
        let node = Node::start_with(|config| self.configure(config)).await?;
        level_raised(&node).await?;
        Ok(node)
    }
}

/// As Trivy writes it.
fn report(found: &[(&str, &str)]) -> Value {
    let of = |(id, severity): &(&str, &str)| {
        json!({
            "VulnerabilityID": id, "PkgName": "openssl", "InstalledVersion": "1.1.1",
            "FixedVersion": "1.1.1n", "Severity": severity, "Title": "Overflow",
            "Description": "Long", "CVSS": { "nvd": { "V3Score": 7.5 } },
            "References": [format!("https://nvd.nist.gov/vuln/detail/{id}")],
        })
    };
    let all: Vec<Value> = found.iter().map(of).collect();
    json!({
        "SchemaVersion": 2, "Trivy": { "Version": "0.76.0" },
        "Results": [{ "Target": "x", "Class": "os-pkgs", "Vulnerabilities": all }],
    })
}

async fn image_of(node: &Node, reference: &str) -> Result<ImageId> {
    let found: Resolution = node.get(&format!("resolve?reference={reference}")).await?;
    Ok(found.image_id)
}

async fn order(node: &Node, image: ImageId) -> Result<ScanOrdered> {
    node.call(Method::POST, &format!("images/{image}/scan"), &json!({})).await
}

/// What there is once a scan has come to an end.
async fn ended(node: &Node, image: ImageId) -> Result<VulnerabilityReport> {
    until("the scan to end", async || {
        let shown: VulnerabilityReport =
            node.get(&format!("images/{image}/vulnerabilities")).await?;
        Ok(matches!(shown.scan_status.as_str(), "completed" | "failed").then_some(shown))
    })
    .await
}

fn ids(report: &VulnerabilityReport) -> Vec<&str> {
    report.vulnerabilities.iter().map(|one| one.id.as_str()).collect()
}

/// Nothing lies where a disk is scanned.
async fn scratch_is_empty(node: &Node) -> Result<()> {
    let scratch = node.path().join("node/scanner/scratch");
    until("an empty scratch folder", async || {
        Ok(fs::read_dir(&scratch)?.next().is_none().then_some(()))
    })
    .await
}

async fn metrics(node: &Node) -> Result<String> {
    let request = node.http.get(format!("{}/metrics", node.url)).bearer_auth(node.token());
    Ok(request.send().await?.error_for_status()?.text().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_ordered_is_scanned_and_shown() -> Result<()> {
    let program = Program::new()?;
    let node = program.node().await?;
    let manifest = push_image(&node, "team/app", "v1", b"layer").await?;
    let image = image_of(&node, "team/app:v1").await?;
    let path = format!("images/{image}/vulnerabilities");
    let none = node.request(Method::GET, &path).send().await?;
    ensure!(problem(none, StatusCode::NOT_FOUND).await?.code == "scan_not_found");
    let detail: ImageDetail = node.get(&format!("images/{image}")).await?;
    ensure!(detail.image.scan_status.is_none() && detail.image.last_scan_at.is_none());

    program.write("hold", "")?;
    let answer = node.request(Method::POST, &format!("images/{image}/scan")).send().await?;
    ensure!(answer.status() == StatusCode::ACCEPTED, "{}", answer.status());
    let ordered: Value = answer.json().await?;
    let wanted = json!({ "scan_id": "?scan-", "status": "?", "message": "?" });
    agrees(&ordered, &wanted, "an order")?;
    let ordered: ScanOrdered = serde_json::from_value(ordered)?;
    ensure!(["pending", "scanning"].contains(&ordered.status.as_str()), "{ordered:?}");
    until("the scanner to be run", async || Ok((program.calls() > 0).then_some(()))).await?;
    let again = order(&node, image).await?;
    ensure!((again.scan_id, again.status.as_str()) == (ordered.scan_id, "scanning"), "{again:?}");
    fs::remove_file(program.path("hold"))?;
    let shown = ended(&node, image).await?;

    ensure!(shown.scan_status == "completed" && shown.scan_id == ordered.scan_id, "{shown:?}");
    ensure!(shown.failure.is_none() && !shown.truncated && shown.scanned_at.is_some());
    ensure!(shown.scanner.as_deref() == Some("trivy 0.76.0"), "{shown:?}");
    ensure!(ids(&shown) == ["CVE-2", "CVE-1", "CVE-4", "CVE-3"], "{shown:?}");
    let summary = serde_json::to_value(shown.summary)?;
    let counts = json!({ "critical": 1, "high": 2, "medium": 0, "low": 1, "unknown": 0 });
    ensure!(summary == counts, "{summary}");
    let first = serde_json::to_value(&shown.vulnerabilities[1])?;
    let expected = json!({
        "id": "CVE-1", "severity": "HIGH", "package": "openssl", "installed_version": "1.1.1",
        "fixed_version": "1.1.1n", "title": "Overflow", "description": "Long", "cvss_score": 7.5,
        "references": ["https://nvd.nist.gov/vuln/detail/CVE-1"],
    });
    ensure!(first == expected, "{first}");
    ensure!(program.calls() == 1, "{}", program.read("calls")?);

    let some: VulnerabilityReport = node.get(&format!("{path}?severity=high,LOW")).await?;
    ensure!(ids(&some) == ["CVE-1", "CVE-4", "CVE-3"] && some.summary == shown.summary);
    // As Zedge's engineers have it written down.
    let said: Value = node.get(&format!("{path}?severity=critical,high")).await?;
    let wanted = json!({
        "scan_id": "?scan-", "scan_status": "completed", "scanned_at": "?20", "summary": counts,
        "vulnerabilities": [{ "id": "CVE-2", "severity": "CRITICAL" }, expected, { "id": "CVE-4" }],
    });
    agrees(&said, &wanted, "what was found")?;
    let page: VulnerabilityReport = node.get(&format!("{path}?page=2&page_size=3")).await?;
    ensure!(ids(&page) == ["CVE-3"] && page.pagination.total_count == 4, "{page:?}");
    let refused = node.request(Method::GET, &format!("{path}?severity=awful")).send().await?;
    ensure!(problem(refused, StatusCode::BAD_REQUEST).await?.code == "severity_invalid");
    let digest = sha256(&manifest);
    let artifact: VulnerabilityReport =
        node.get(&format!("artifacts/{digest}/vulnerabilities")).await?;
    ensure!(artifact == shown, "{artifact:?}");

    let detail: ImageDetail = node.get(&format!("images/{image}")).await?;
    ensure!(detail.image.scan_status.as_deref() == Some("completed"));
    ensure!(detail.image.vulnerabilities == shown.summary);
    ensure!(detail.image.vulnerabilities_critical == 1 && detail.image.vulnerabilities_high == 2);
    ensure!(detail.image.last_scan_at == shown.scanned_at);
    node.server.app().services.audit.flush(AuditPhase::Goes).await?;
    let trail: Value = node.get("audit?action=image.scan").await?;
    ensure!(trail.to_string().contains(&digest), "{trail}");
    let gauge = "image_vulnerabilities_critical{image_name=\"team/app\"} 1";
    until("the count of critical ones", async || {
        Ok(metrics(&node).await?.contains(gauge).then_some(()))
    })
    .await?;
    ensure!(metrics(&node).await?.contains("image_scans_total 1"));
    scratch_is_empty(&node).await?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scanner_sees_one_image_and_is_no_pull() -> Result<()> {
    let program = Program::new()?;
    let node = program.node().await?;
    let manifest = push_image(&node, "team/app", "v1", b"the layer").await?;
    let image = image_of(&node, "team/app:v1").await?;
    order(&node, image).await?;
    ended(&node, image).await?;
    ensure!(program.read("manifest")?.as_bytes() == manifest);
    ensure!(program.read("layer")? == "the layer");
    ensure!(program.read("stranger")? == "401", "{}", program.read("stranger")?);
    let (token, calls) = (program.read("token")?, program.read("calls")?);
    ensure!(token.len() == 64 && !calls.contains(&token), "{calls}");
    let cache = node.path().join("node/scanner/cache").canonicalize()?;
    for option in ["--skip-db-update", "--offline-scan", &cache.display().to_string()] {
        ensure!(calls.contains(option), "no {option} in {calls}");
    }
    // The database came before, in a call of its own.
    ensure!(program.read("databases")?.lines().count() == 1);
    node.server.app().services.pulls.write_down().await?;
    let detail: ImageDetail = node.get(&format!("images/{image}")).await?;
    ensure!(detail.image.download_count == 0 && detail.versions[0].pulled_at.is_none());
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_is_scanned_once_it_is_uploaded() -> Result<()> {
    let program = Program::new()?;
    let node = Node::start_with(|config| {
        program.configure(config);
        config.scanner.on_push = true;
    })
    .await?;
    level_raised(&node).await?;
    let file = make_disk(node.path(), "vm", 2)?;
    let image = create_image(&node, "zedge/vm").await?;
    let status = upload(&node, image, &file, "1").await?;
    ensure!(status.status == "active", "{status:?}");
    let path = format!("images/{image}/vulnerabilities");
    let shown = until("a scan of what was uploaded", async || {
        let answer = node.request(Method::GET, &path).send().await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let shown: VulnerabilityReport = answer.error_for_status()?.json().await?;
        Ok((shown.scan_status == "completed").then_some(shown))
    })
    .await?;
    ensure!(shown.version == "1" && shown.vulnerabilities.len() == 4, "{shown:?}");
    ensure!(program.read("disk")? == format!("{}\n53ef\n", 48 << 20), "{}", program.read("disk")?);
    scratch_is_empty(&node).await?;

    // One that is too long is not written anywhere.
    let node = node.restart(|config| config.scanner.max_disk_gib = 0).await?;
    order(&node, image).await?;
    let shown = ended(&node, image).await?;
    let failure = shown.failure.unwrap_or_default();
    ensure!(
        failure.starts_with("disk_too_large: ") && failure.contains("max_disk_gib"),
        "{failure}"
    );
    ensure!(program.calls() == 1);
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pushed_with_a_tag_is_scanned_and_of_an_index_one_image() -> Result<()> {
    let program = Program::new()?;
    let node = Node::start_with(|config| {
        program.configure(config);
        config.scanner.on_push = true;
    })
    .await?;
    level_raised(&node).await?;
    let mut listed = Vec::new();
    for (architecture, layer) in [("arm64", b"arm"), ("amd64", b"amd")] {
        push_blob(&node, "team/app", b"{}").await?;
        push_blob(&node, "team/app", layer).await?;
        let config = "application/vnd.oci.image.config.v1+json";
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": { "mediaType": config, "digest": sha256(b"{}"), "size": 2 },
            "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": sha256(layer), "size": layer.len() }],
        })
        .to_string();
        let digest = sha256(manifest.as_bytes());
        put(&node, &digest, MANIFEST, manifest.clone()).await?;
        listed.push(json!({
            "mediaType": MANIFEST, "digest": digest, "size": manifest.len(),
            "platform": { "os": "linux", "architecture": architecture },
        }));
    }
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": listed });
    put(&node, "v1", INDEX, index.to_string()).await?;
    let image = image_of(&node, "team/app:v1").await?;
    let shown = ended_of(&node, image, "v1").await?;
    ensure!(shown.manifest_digest.to_string() == sha256(index.to_string().as_bytes()));
    ensure!(program.read("layer")? == "amd" && program.calls() == 1, "{}", program.read("calls")?);

    // What is no image is not scanned, and said to be none.
    push_blob(&node, "team/thing", b"thing").await?;
    push_blob(&node, "team/thing", b"{}").await?;
    let empty = "application/vnd.oci.empty.v1+json";
    let thing = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/x.thing",
        "config": { "mediaType": empty, "digest": sha256(b"{}"), "size": 2 },
        "layers": [{ "mediaType": "text/plain", "digest": sha256(b"thing"), "size": 5 }],
    });
    let request = node.v2(Method::PUT, "team/thing/manifests/v1").header("content-type", MANIFEST);
    request.body(thing.to_string()).send().await?.error_for_status()?;
    let thing = image_of(&node, "team/thing:v1").await?;
    let refused = node.request(Method::POST, &format!("images/{thing}/scan")).send().await?;
    let refused = problem(refused, StatusCode::CONFLICT).await?;
    ensure!(refused.code == "not_scannable", "{refused:?}");
    node.server.stop().await
}

async fn put(node: &Node, reference: &str, media_type: &str, manifest: String) -> Result<()> {
    let request = node.v2(Method::PUT, &format!("team/app/manifests/{reference}"));
    let request = request.header("content-type", media_type.to_owned()).body(manifest);
    request.send().await?.error_for_status()?;
    Ok(())
}

/// The same for one version that nobody has ordered to be scanned.
async fn ended_of(node: &Node, image: ImageId, version: &str) -> Result<VulnerabilityReport> {
    let path = format!("images/{image}/vulnerabilities?version={version}");
    until("a scan by itself", async || {
        let answer = node.request(Method::GET, &path).send().await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let shown: VulnerabilityReport = answer.error_for_status()?.json().await?;
        Ok((shown.scan_status == "completed").then_some(shown))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_scanned_long_ago_is_scanned_again() -> Result<()> {
    let program = Program::new()?;
    let node = Node::start_with(|config| {
        program.configure(config);
        config.scanner.every_hours = 24;
    })
    .await?;
    level_raised(&node).await?;
    push_image(&node, "team/app", "v1", b"one").await?;
    push_image(&node, "team/app", "v2", b"two").await?;
    let image = image_of(&node, "team/app:v1").await?;
    let app = node.server.app();
    let scanner = &app.services.scanner;
    let day = 24 * 3_600_000;
    ensure!(scanner.order_due(app.now()).await? == 2);
    for tag in ["v1", "v2"] {
        ended_of(&node, image, tag).await?;
    }
    ensure!(scanner.order_due(app.now()).await? == 0);
    ensure!(scanner.order_due(app.now().plus_millis(day + 60_000)).await? == 2);
    until("both again", async || Ok((program.calls() == 4).then_some(()))).await?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_vulnerable_is_not_deployed() -> Result<()> {
    let program = Program::new()?;
    let node = Node::start_with(|config| {
        program.configure(config);
        config.scanner.block_severity = Some(BlockSeverity::High);
        config.scanner.ignore_unfixed = true;
    })
    .await?;
    level_raised(&node).await?;
    Agent::enrol(&node, "host-1").await?;
    push_image(&node, "team/app", "v1", b"layer").await?;
    let image = image_of(&node, "team/app:v1").await?;
    let wanted = json!({ "reference": "team/app:v1", "hosts": ["host-1"] });
    // Nobody has looked yet.
    let _: Deployment = node.call(Method::POST, "deployments", &wanted).await?;
    order(&node, image).await?;
    ended(&node, image).await?;
    ensure!(program.read("calls")?.contains("--ignore-unfixed"));
    let refused = node.request(Method::POST, "deployments").json(&wanted).send().await?;
    let refused = problem(refused, StatusCode::CONFLICT).await?;
    ensure!(refused.code == "vulnerable", "{refused:?}");
    ensure!(refused.message.starts_with("3 vulnerabilities are high or worse"), "{refused:?}");
    let policy = json!({ "name": "base", "reference": "team/app:v1", "selector": "room=1" });
    let policy: WarmUp = node.call(Method::POST, "warm-ups", &policy).await?;
    ensure!(policy.trouble.is_some_and(|text| text.contains("high or worse")));

    program.write("report", &report(&[("CVE-9", "MEDIUM")]).to_string())?;
    order(&node, image).await?;
    ended(&node, image).await?;
    let _: Deployment = node.call(Method::POST, "deployments", &wanted).await?;
    let policy: WarmUp = node.get("warm-ups/base").await?;
    ensure!(policy.trouble.is_none(), "{policy:?}");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_scanner_the_refusal_names_the_setting() -> Result<()> {
    let node = Node::start().await?;
    push_image(&node, "team/app", "v1", b"layer").await?;
    let image = image_of(&node, "team/app:v1").await?;
    let refused = node.request(Method::POST, &format!("images/{image}/scan")).send().await?;
    let refused = problem(refused, StatusCode::CONFLICT).await?;
    ensure!(refused.code == "scanner_disabled", "{refused:?}");
    ensure!(refused.message.contains("[scanner] command"), "{refused:?}");
    ensure!(!node.path().join("node/scanner").exists());
    node.server.stop().await
}
