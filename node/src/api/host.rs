//! What an enrolled agent asks a node for: content with the right to it, orders, and an ear.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use shoal_api::{
    AgentResolution, AgentResolveRequest, BlobGrant, DeltaAnswer, DeltaGrant, DeltaRequest,
    DiskGrant, ManifestContent, ProgressReport, TransferProgress,
};
use shoal_content::{DeploymentId, Digest, PeerId, Pin, RecipeId};
use shoal_metadata::{
    self as metadata, Action, KeyPurpose, Query as Metadata, Read, Reference, Version, What, Who,
    permission,
};

use super::brought::{bring, complete};
use super::caller::Host;
use super::images::resolved;
use super::input::Body;
use super::problem::{crowded, missing};
use super::shown::{kind_name, number};
use crate::clock::now;
use crate::delta::Offer;
use crate::deploy::{HostChange, REASON_CHARS_MAX, next_state, standing};
use crate::http::problem::Problem;
use crate::origin::issue_ticket;
use crate::state::App;

/// Indexes in indexes, this deep.
const INDEX_DEPTH_MAX: usize = 4;
/// Manifests of one answer; each is at most 4 MiB, and most are a few KiB.
const MANIFESTS_MAX: usize = 512;
/// What the manifests of one answer take together, in bytes.
const MANIFEST_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Blobs of one answer.
const BLOBS_MAX: usize = 20_000;
/// When an agent that found no place for its orders here may look again: another one may have gone.
const STREAMS_RETRY_AFTER: Duration = Duration::from_secs(60);
/// Disks that a host names as its own.
const HELD_MAX: usize = 64;
/// The newest versions among which they are looked for. A host has disks of other images, too, which
/// are found nowhere; and a row may be megabytes long.
const VERSIONS_MAX: usize = 256;
/// Senders that one report names.
const SENDERS_MAX: usize = 4096;
/// What names one: a peer id, or what a person called it.
const SENDER_BYTES_MAX: usize = 1024;

pub async fn resolve(
    State(app): State<App>,
    caller: Host,
    Body(request): Body<AgentResolveRequest>,
) -> Result<Json<AgentResolution>, Problem> {
    let warning = bring(&app, &request.reference).await?;
    let mut view = app.view().await?;
    let (image, version) = resolved(&view, &Who::Agent, &request.reference, Action::Pull)?;
    let mut awaited = None;
    if request.whole && app.upstreams.of(&image.name).is_some() {
        drop(view);
        let platform = request.platform.as_deref();
        let asking = complete(&app, &request.reference, &version.digest, platform);
        awaited = Box::pin(asking).await?;
        view = app.view().await?;
    }
    let query = view.query();
    // What it refers to may have come.
    let gone = || missing("version_not_found", "the version was deleted meanwhile");
    let version = query.version(image.id, &version.digest)?.ok_or_else(gone)?;
    let tag = match &request.reference.pin {
        Pin::Tag(tag) => Some(tag),
        Pin::Digest(_) => None,
    };
    app.services.pulls.note(image.id, tag, &version.digest);
    // Asked again for single blobs, or for what was awaited, it is the same download.
    if request.blobs.is_none() && awaited.is_none() {
        app.services.pulls.count(image.id, &version.digest);
    }
    let pulled = format!("{}@{}", image.name, version.digest);
    app.services.audit.note("image.pull", pulled, shoal_metadata::AuditResult::Done);
    let below = below(query, &image, &version)?;
    let wanted = match request.blobs {
        None => below.blobs.clone(),
        Some(wanted) => wanted.into_iter().collect(),
    };
    if wanted.len() > BLOBS_MAX {
        return Err(Problem::bad_request("too_many_blobs", format!("at most {BLOBS_MAX} blobs")));
    }
    let signer = app.keys.ring.signer(KeyPurpose::Ticket, now());
    let ticket = |recipe: RecipeId| {
        let ticket = issue_ticket(&signer.pair, recipe, caller.peer, now());
        STANDARD.encode(ticket.to_bytes())
    };
    let mut blobs = Vec::with_capacity(wanted.len());
    for digest in wanted {
        let belongs = below.blobs.contains(&digest) || query.blob_in(image.id, &digest)?;
        let blob = query.blob(&digest)?.filter(|_| belongs);
        let unknown = || missing("blob_not_found", format!("{} has no blob {digest}", image.name));
        let blob = blob.ok_or_else(unknown)?;
        let (recipe, size_bytes) = (blob.recipe, blob.size);
        blobs.push(BlobGrant { digest, size_bytes, recipe, ticket: ticket(recipe) });
    }
    let disk = version.disk.as_ref().map(|disk| DiskGrant {
        recipe: disk.recipe,
        virtual_size_bytes: disk.virtual_bytes,
        content_size_bytes: disk.content_bytes,
        ticket: ticket(disk.recipe),
    });
    let anyone = permission(query, &Who::Anonymous, Action::Pull, What::Repository(&image.name))?;
    Ok(Json(AgentResolution {
        public: anyone.is_allowed(),
        kind: kind_name(image.kind).to_owned(),
        version: number(&version),
        manifest: STANDARD.encode(content(query, &image, &version)?),
        manifests: below.manifests,
        manifest_digest: version.digest,
        media_type: version.media_type,
        image: image.name,
        disk,
        blobs,
        warning,
        awaited,
    }))
}

/// A bundle in place of the new chunks, for a version that the host may have anyway.
pub async fn delta(
    State(app): State<App>,
    caller: Host,
    Body(request): Body<DeltaRequest>,
) -> Result<Json<DeltaAnswer>, Problem> {
    let DeltaRequest { reference, held, wait_ms } = request;
    if held.len() > HELD_MAX {
        return Err(Problem::bad_request("too_many_disks", format!("at most {HELD_MAX} disks")));
    }
    let view = app.view().await?;
    let (image, version) = resolved(&view, &Who::Agent, &reference, Action::Pull)?;
    let Some(disk) = version.disk else { return Ok(Json(DeltaAnswer::None)) };
    let named: BTreeSet<RecipeId> = held.iter().copied().collect();
    let (mut of_image, mut looks) = (BTreeSet::new(), 0);
    view.query().find_version(image.id, |version| {
        looks += 1;
        let recipe = version.disk.map(|disk| disk.recipe);
        of_image.extend(recipe.filter(|recipe| named.contains(recipe)));
        Ok((of_image.len() == named.len() || looks == VERSIONS_MAX).then_some(()))
    })?;
    let held: Vec<RecipeId> = held.into_iter().filter(|recipe| of_image.contains(recipe)).collect();
    drop(view);
    let wait = Duration::from_millis(wait_ms);
    let offer = app.services.deltas.offer(image.id, disk.recipe, &held, wait).await?;
    Ok(Json(match offer {
        Offer::Ready { old, bundle } => {
            let signer = app.keys.ring.signer(KeyPurpose::Ticket, now());
            let ticket = issue_ticket(&signer.pair, bundle.recipe, caller.peer, now());
            DeltaAnswer::Ready(DeltaGrant {
                old,
                recipe: bundle.recipe,
                size_bytes: bundle.bytes,
                content_bytes: bundle.content_bytes,
                ticket: STANDARD.encode(ticket.to_bytes()),
            })
        }
        Offer::Making { missing_bytes } => DeltaAnswer::Making { missing_bytes },
        Offer::None => DeltaAnswer::None,
    }))
}

fn content<R: Read>(
    query: Metadata<'_, R>,
    image: &metadata::Image,
    version: &Version,
) -> Result<Vec<u8>, Problem> {
    let bytes = query.manifest(image.id, &version.digest)?;
    bytes.ok_or_else(|| missing("version_not_found", "the version was deleted meanwhile"))
}

/// What hangs below a version.
struct Below {
    manifests: Vec<ManifestContent>,
    blobs: BTreeSet<Digest>,
}

fn below<R: Read>(
    query: Metadata<'_, R>,
    image: &metadata::Image,
    top: &Version,
) -> Result<Below, Problem> {
    let mut below = Below { manifests: Vec::new(), blobs: BTreeSet::new() };
    let mut seen = BTreeSet::from([top.digest.clone()]);
    let mut level = vec![top.clone()];
    let mut bytes_total = 0;
    let too_large =
        || Problem::bad_request("index_too_large", "the index is too large or too deep");
    for depth in 0.. {
        let mut next = Vec::new();
        for version in level {
            for reference in &version.references {
                match reference {
                    Reference::Blob { digest, .. } => {
                        below.blobs.insert(digest.clone());
                    }
                    Reference::Manifest { digest, .. } => {
                        if !seen.insert(digest.clone()) {
                            continue;
                        }
                        // What was deleted below an index is simply not there.
                        let Some(child) = query.version(image.id, digest)? else { continue };
                        let bytes = content(query, image, &child)?;
                        bytes_total += bytes.len();
                        let full = below.manifests.len() >= MANIFESTS_MAX;
                        if full || bytes_total > MANIFEST_BYTES_MAX {
                            return Err(too_large());
                        }
                        below.manifests.push(ManifestContent {
                            digest: digest.clone(),
                            media_type: child.media_type.clone(),
                            content: STANDARD.encode(bytes),
                        });
                        next.push(child);
                    }
                }
            }
        }
        if next.is_empty() {
            break;
        }
        if depth >= INDEX_DEPTH_MAX {
            return Err(too_large());
        }
        level = next;
    }
    Ok(below)
}

pub async fn orders(State(app): State<App>, caller: Host) -> Result<Response, Problem> {
    // Before the state is read: what happens in between comes as an event.
    let events = app.raft.events();
    let current = app.view().await?;
    let stream = app.services.desk.stream(caller.peer, current, events);
    let full = "this node has all the order streams that it takes";
    let stream = stream.map_err(|_| crowded(full, STREAMS_RETRY_AFTER))?;
    let headers =
        [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-store")];
    let body = axum::body::Body::from_stream(stream.map(Ok::<_, std::convert::Infallible>));
    Ok((headers, body).into_response())
}

/// Soft while the transfer runs; its end, and that it began, are replicated. Idempotent.
pub async fn progress(
    State(app): State<App>,
    caller: Host,
    Body(report): Body<ProgressReport>,
) -> Result<StatusCode, Problem> {
    let ProgressReport { deployment, attempt, progress, .. } = report;
    let (peer, changes) = (caller.peer, &app.services.changes);
    let change = HostChange { deployment, peer, attempt, progress: bounded(progress)? };
    if change.progress.state == "running" {
        if goes_on(&app, peer, deployment, attempt)? {
            changes.record(change);
            return Ok(StatusCode::NO_CONTENT);
        }
        let known = standing(app.raft.local().query(), deployment, peer)?;
        if let Some(known) = known
            && next_state(&known, attempt, &change.progress)?.is_none()
        {
            // What an attempt that is over says is no news.
            if attempt == known.attempt {
                changes.record(change);
            }
            return Ok(StatusCode::NO_CONTENT);
        }
    }
    changes.report(change).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A report as it may be kept: a long reason is cut.
fn bounded(progress: TransferProgress) -> Result<TransferProgress, Problem> {
    let too_long = |text: String| Err(Problem::bad_request("report_too_long", text));
    let all = [&progress.bytes_by_peer, &progress.bytes_by_node, &progress.bytes_by_zone];
    if all.iter().map(|by| by.len()).sum::<usize>() > SENDERS_MAX {
        return too_long(format!("a report names at most {SENDERS_MAX} senders"));
    }
    if all.iter().flat_map(|by| by.keys()).any(|name| name.len() > SENDER_BYTES_MAX) {
        return too_long(format!("a sender's name has at most {SENDER_BYTES_MAX} bytes"));
    }
    let cut = |reason: String| reason.chars().take(REASON_CHARS_MAX).collect();
    Ok(TransferProgress {
        last_error: progress.last_error.map(cut),
        waits_for: progress.waits_for.map(cut),
        ..progress
    })
}

/// Whether the host is known here to be at this attempt, and told of it still. Every host says so
/// each second: the row, which has all of them, is not read for that.
fn goes_on(
    app: &App,
    peer: PeerId,
    deployment: DeploymentId,
    attempt: u32,
) -> Result<bool, Problem> {
    if !app.services.board.is_running(deployment, peer, attempt) {
        return Ok(false);
    }
    let pending = app.raft.local().query().pending_attempt(peer, deployment)?;
    Ok(pending == Some(attempt))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn progress(state: &str) -> TransferProgress {
        TransferProgress { state: state.into(), bytes_local: 4, ..TransferProgress::default() }
    }

    #[test]
    fn a_report_is_kept_within_bounds() {
        let long = TransferProgress { last_error: Some("ä".repeat(5000)), ..progress("running") };
        let kept = bounded(long).unwrap();
        assert_eq!(kept.last_error.unwrap().chars().count(), REASON_CHARS_MAX);
        let named = |bytes| TransferProgress {
            bytes_by_peer: BTreeMap::from([("n".repeat(bytes), 1)]),
            ..progress("running")
        };
        assert_eq!(bounded(named(SENDER_BYTES_MAX)).unwrap(), named(SENDER_BYTES_MAX));
        assert!(bounded(named(SENDER_BYTES_MAX + 1)).is_err());
    }
}
