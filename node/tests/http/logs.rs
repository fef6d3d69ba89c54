//! What the program itself writes: the access log, as programs read it; and how it ends.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::program::Program;
use super::v2::sha256;

const LAYER: &[u8] = b"a layer";

#[tokio::test(flavor = "multi_thread")]
async fn each_request_is_one_json_object_and_the_program_ends_when_told() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let program = Program::start(folder.path(), "").await?;
    let Program { url, password, http, .. } = &program;
    let digest = sha256(LAYER);
    let push = format!("{url}/v2/team/app/blobs/uploads/?digest={digest}");
    let push = http.post(push).basic_auth("admin", Some(password)).body(LAYER);
    push.send().await?.error_for_status()?;
    let pull = http.get(format!("{url}/v2/team/app/blobs/{digest}"));
    let pull = pull.basic_auth("admin", Some(password)).header("x-request-id", "pull-1");
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let pull = pull.header("traceparent", format!("00-{trace}-00f067aa0ba902b7-01"));
    ensure!(pull.send().await?.bytes().await? == LAYER);
    let descriptor =
        |kind: &str| json!({ "mediaType": kind, "digest": digest, "size": LAYER.len() });
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": kind,
        "config": descriptor("application/vnd.oci.image.config.v1+json"),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar")],
    });
    let manifest = manifest.to_string();
    let of_manifest = sha256(manifest.as_bytes());
    let push = http.put(format!("{url}/v2/team/app/manifests/v1")).header("content-type", kind);
    let push = push.basic_auth("admin", Some(password)).header("x-request-id", "push-1");
    push.body(manifest).send().await?.error_for_status()?;
    for (id, reference) in
        [("by-tag", "v1"), ("by-digest", of_manifest.as_str()), ("by-none", "v2")]
    {
        let pull = http.get(format!("{url}/v2/team/app/manifests/{reference}"));
        let pull = pull.basic_auth("admin", Some(password)).header("x-request-id", id);
        ensure!(pull.send().await?.status().is_success() == (id != "by-none"), "{id}");
    }
    let refused = http.get(format!("{url}/api/v1/images")).header("x-request-id", "refused-1");
    ensure!(refused.send().await?.status() == 401);

    program.terminate()?;
    let password = password.clone();
    program.ended().await?;

    let log = std::fs::read_to_string(folder.path().join("log"))?;
    ensure!(!log.contains(&password), "the password is in the log");
    let mut lines = Vec::new();
    for line in log.lines() {
        lines.push(serde_json::from_str::<Value>(line).with_context(|| line.to_owned())?);
    }
    let of = |id: &str| {
        let found = lines.iter().find(|line| line["request_id"] == id);
        found.with_context(|| format!("no line of {id} in {log}"))
    };
    let line = of("pull-1")?;
    for (field, wanted) in [
        ("level", "INFO"),
        ("service", "shoal-node"),
        ("trace_id", trace),
        ("user_id", "admin"),
        ("action", "pull_blob"),
        ("image_name", "team/app"),
        ("client_ip", "127.0.0.1"),
        ("status", "success"),
    ] {
        ensure!(line[field] == wanted, "{field}: {line}");
    }
    ensure!(line["image_id"].as_str().is_some_and(|id| id.starts_with("img-")), "{line}");
    ensure!(line["bytes_sent"] == LAYER.len(), "{line}");
    ensure!(line["duration_ms"].is_u64() && line["timestamp"].is_string(), "{line}");
    for (id, name) in [
        ("push-1", "team/app:v1".to_owned()),
        ("by-tag", "team/app:v1".to_owned()),
        ("by-digest", format!("team/app@{of_manifest}")),
        ("by-none", "team/app:v2".to_owned()),
    ] {
        let line = of(id)?;
        ensure!(line["image_name"] == name, "{name}: {line}");
    }
    let line = of("refused-1")?;
    ensure!(line["status"] == "failure" && line["http_status"] == 401, "{line}");
    ensure!(line["user_id"] == "" && line["action"] == "read_images", "{line}");
    Ok(())
}
