//! `/metrics` of a real node: the names that dashboards are made of, and that they tell the truth.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use shoal_content::UploadId;
use uuid::Uuid;

use super::node::Node;
use super::v2::push_blob;
use super::wait::until;

static LAYER: [u8; 70_000] = [7; 70_000];

/// Every name that a node with a folder for storage shows, in the order of the alphabet. Dashboards
/// and alerts are made of them.
static NAMES: [&str; 73] = [
    "api_request_duration_seconds",
    "api_requests",
    "api_requests_errors",
    "image_cache_hits",
    "image_cache_misses",
    "image_download_bytes",
    "image_scan_failures",
    "image_scans",
    "image_storage_total_bytes",
    "image_storage_used_bytes",
    "image_upload_bytes",
    "shoal_audit_lost",
    "shoal_bulk_bytes_received",
    "shoal_bulk_bytes_sent",
    "shoal_bulk_connections",
    "shoal_bulk_failures",
    "shoal_bulk_listening",
    "shoal_chunk_bytes_received",
    "shoal_chunk_bytes_sent",
    "shoal_chunks_refused",
    "shoal_collection_failures",
    "shoal_collection_freed_bytes",
    "shoal_collection_left",
    "shoal_collection_objects",
    "shoal_collection_unlinked",
    "shoal_compaction_failures",
    "shoal_compaction_packs",
    "shoal_compaction_saved_bytes",
    "shoal_compaction_written_bytes",
    "shoal_delta_bundles_failed",
    "shoal_delta_bundles_made",
    "shoal_delta_bundles_made_bytes",
    "shoal_delta_bundles_useless",
    "shoal_discovery_connections",
    "shoal_discovery_contacts",
    "shoal_gso_segments",
    "shoal_http_answers",
    "shoal_http_requests_under_way",
    "shoal_https_certificate_expiry_seconds",
    "shoal_images",
    "shoal_logical_bytes",
    "shoal_login_failures",
    "shoal_member_certificate_expiry_seconds",
    "shoal_peer_bans",
    "shoal_peer_connections",
    "shoal_pulls_lost",
    "shoal_pulls_written",
    "shoal_quota_refusals",
    "shoal_raft_applied_index",
    "shoal_raft_core_restarts",
    "shoal_raft_disk_free_bytes",
    "shoal_raft_entries_applied",
    "shoal_raft_has_leader",
    "shoal_raft_is_leader",
    "shoal_raft_last_log_index",
    "shoal_raft_log_sync_seconds",
    "shoal_raft_proposals",
    "shoal_raft_read_rounds",
    "shoal_raft_reads",
    "shoal_raft_snapshot_files_resumed",
    "shoal_raft_snapshots_built",
    "shoal_raft_snapshots_installed",
    "shoal_raft_strangers_refused",
    "shoal_raft_term",
    "shoal_requests_slowed_down",
    "shoal_reserved_bytes",
    "shoal_retention_failures",
    "shoal_retention_tags",
    "shoal_retention_versions",
    "shoal_scrub_damaged_objects",
    "shoal_scrub_orphans",
    "shoal_scrub_verified_bytes",
    "shoal_wire_bytes_saved",
];

async fn scrape(node: &Node) -> Result<String> {
    let request = node.http.get(format!("{}/metrics", node.url)).bearer_auth(node.token());
    Ok(request.send().await?.error_for_status()?.text().await?)
}

fn value(text: &str, series: &str) -> Result<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    Ok(line.with_context(|| format!("no {series} in:\n{text}"))?.parse()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_names_are_these_and_the_values_are_true() -> Result<()> {
    let node = Node::start_with(|config| config.storage.capacity_bytes = 1 << 50).await?;
    let digest = push_blob(&node, "team/app", &LAYER).await?;
    let blob = format!("team/app/blobs/{digest}");
    let part = node.v2(Method::GET, &blob).header("range", "bytes=0-9999").send().await?;
    ensure!(part.bytes().await?.len() == 10_000);
    ensure!(node.v2(Method::GET, &blob).send().await?.bytes().await? == LAYER[..]);
    ensure!(node.v2(Method::HEAD, &blob).send().await?.status().is_success());
    let refused = node.anonymous_v2(Method::GET, &blob).send().await?;
    ensure!(refused.status() == 401);

    let text = scrape(&node).await?;
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let mut names: Vec<&str> = types.filter_map(|line| line.split(' ').next()).collect();
    names.sort_unstable();
    ensure!(names == NAMES, "{names:#?}");

    ensure!(value(&text, "image_upload_bytes_total")? == 70_000.0);
    ensure!(value(&text, "image_download_bytes_total")? == 80_000.0);
    let pulls = "{method=\"GET\",area=\"registry\"}";
    ensure!(value(&text, &format!("api_requests_total{pulls}"))? == 3.0);
    ensure!(value(&text, &format!("api_requests_errors_total{pulls}"))? == 0.0);
    ensure!(value(&text, &format!("api_request_duration_seconds_count{pulls}"))? == 3.0);
    ensure!(value(&text, "shoal_http_answers_total{status=\"401\"}")? == 1.0);
    ensure!(value(&text, "shoal_images")? == 1.0);
    ensure!(value(&text, "image_storage_total_bytes")? == (1_u64 << 50) as f64);
    ensure!(value(&text, "image_storage_used_bytes")? > 70_000.0);
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_before_the_answer_is_counted() -> Result<()> {
    let node = Node::start().await?;
    let id = Uuid::now_v7();
    // As long as another request of the session is under way, this one waits.
    let turn = node.server.app().intake.turn(UploadId::from_uuid(id)).await;
    let append = node.v2(Method::PATCH, &format!("team/app/blobs/uploads/{id}"));
    let left = append.timeout(Duration::from_secs(2)).send().await;
    ensure!(left.is_err_and(|error| error.is_timeout()));
    until("the request that nobody waits for", async || {
        let text = scrape(&node).await?;
        let left = value(&text, "shoal_http_answers_total{status=\"499\"}").ok();
        Ok((left == Some(1.0)).then_some(()))
    })
    .await?;
    drop(turn);
    node.server.stop().await
}
