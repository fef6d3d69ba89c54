//! Storage's upkeep, for administrators: what would go, let it go now, look through all of it.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use shoal_api::{
    CollectionDone, CompactStorage, CompactionStatus, OpenUpload, ScrubStatus, StorageStatus,
    VerificationStatus, VerifyStorage, Waiting,
};
use shoal_content::{Timestamp, UploadId};
use shoal_metadata::{
    self as metadata, Action, DiskUploadState, Fault, Read, Upload, UploadPurpose, What,
};

use super::caller::{Admin, Caller};
use super::input::{Body, Path, Query};
use super::part::{Part, PartQuery};
use super::problem::missing;
use crate::clock::{now, rfc3339};
use crate::collection::CollectionError;
use crate::http::problem::Problem;
use crate::ownership::OwnershipError;
use crate::state::App;

/// Counting stops here.
const COUNTED_MAX: usize = 100_000;
const EXAMPLES_MAX: usize = 20;
const SCAN_ROWS: usize = 100;

/// `GET /api/v1/storage`: the dry run.
pub async fn status(
    State(app): State<App>,
    _caller: Admin,
) -> Result<Json<StorageStatus>, Problem> {
    let grace_seconds = app.config.collection.grace_seconds;
    let grace = Duration::from_secs(grace_seconds).as_millis() as u64;
    let due_before = Timestamp::from_millis(now().as_millis().saturating_sub(grace));
    let view = app.view().await?;
    let query = view.query();
    let loose = query.loose_blobs(None, COUNTED_MAX)?;
    let due = loose.iter().filter(|(_, _, since)| *since < due_before);
    let due: Vec<String> = due.map(|(_, digest, _)| digest.to_string()).collect();
    let loose_blobs = waiting(loose.len(), &due);
    let all = query.unreferenced_objects(Timestamp::from_millis(u64::MAX), COUNTED_MAX)?;
    let due = query.unreferenced_objects(due_before, COUNTED_MAX)?;
    let due: Vec<String> = due.iter().map(ToString::to_string).collect();
    let unreferenced = waiting(all.len(), &due);
    let deleting_objects = query.deleting_objects(None, COUNTED_MAX)?.len() as u64;
    let (open_uploads, open_upload_bytes) = open(query)?;
    Ok(Json(StorageStatus {
        grace_seconds,
        loose_blobs,
        unreferenced,
        deleting_objects,
        open_uploads,
        open_upload_bytes,
        collection: app.services.collector.status(),
        compaction: app.services.compactor.status(),
        scrub: app.services.scrubber.status(),
        verification: app.services.verifier.status(),
    }))
}

/// Whether it still holds something in storage: a disk's row outlives its upload, to say how it
/// ended.
pub(super) fn is_open(upload: &Upload) -> bool {
    !matches!(
        upload.purpose,
        UploadPurpose::Disk {
            state: DiskUploadState::Published { .. } | DiskUploadState::Failed { .. },
            ..
        }
    )
}

/// How many uploads are open, and what they hold. Of their rows, each of which has all parts of a disk, no
/// more are held than one scan's.
fn open<R: Read>(query: metadata::Query<'_, R>) -> Result<(u64, u64), Fault> {
    let (mut uploads, mut held) = (0, 0);
    let mut after = None;
    loop {
        let rows = query.uploads_after(after, SCAN_ROWS)?;
        let Some(last) = rows.last() else { return Ok((uploads, held)) };
        after = Some(last.id);
        for row in rows.iter().filter(|row| is_open(row)) {
            uploads += 1;
            held += received(row);
        }
    }
}

/// What a session has brought into storage.
fn received(upload: &Upload) -> u64 {
    match &upload.purpose {
        UploadPurpose::Blob { offset, .. } => *offset,
        UploadPurpose::Disk { parts, .. } => parts.values().map(|part| part.bytes).sum(),
    }
}

/// `GET /api/v1/storage/uploads`: what has not come to its end, by id and so the oldest first.
pub async fn uploads(
    caller: Caller,
    Query(wanted): Query<PartQuery>,
) -> Result<Part<OpenUpload>, Problem> {
    caller.permit(Action::Audit, What::System)?;
    let wrong = || Problem::bad_request("query_invalid", "after is the id of an upload");
    let after = Some(&wanted.after).filter(|after| !after.is_empty());
    let after = after.map(|after| after.parse::<UploadId>()).transpose().map_err(|_| wrong())?;
    let query = caller.view.query();
    let mut rows = query.uploads_after(after, wanted.limit() + 1)?;
    let next = wanted.cut(&mut rows, |row| row.id.to_string());
    rows.retain(is_open);
    let mut shown = Vec::new();
    for row in rows {
        let image = match &row.purpose {
            UploadPurpose::Blob { repository, .. } => repository.to_string(),
            UploadPurpose::Disk { image, .. } => match query.image(*image)? {
                Some(image) => image.name.to_string(),
                None => image.to_string(),
            },
        };
        shown.push(OpenUpload {
            id: row.id.to_string(),
            image,
            received_bytes: received(&row),
            created_at: rfc3339(row.created_at),
            expires_at: rfc3339(row.expires_at),
            owner: row.owner,
        });
    }
    Ok(Part::new("/api/v1/storage/uploads", &wanted, shown, next))
}

/// `DELETE /api/v1/storage/uploads/ID`: ends it, and frees what it holds.
pub async fn abort(
    State(app): State<App>,
    _caller: Admin,
    Path(id): Path<UploadId>,
) -> Result<StatusCode, Problem> {
    let unknown = || missing("upload_not_found", format!("there is no upload {id}"));
    app.view().await?.query().upload(id)?.ok_or_else(unknown)?;
    app.services.disks.abort(id).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn waiting(total: usize, due: &[String]) -> Waiting {
    Waiting {
        total: total as u64,
        due: due.len() as u64,
        examples: due.iter().take(EXAMPLES_MAX).cloned().collect(),
        more: total == COUNTED_MAX,
    }
}

/// `POST /api/v1/storage/collect`: what the leader does at every interval, now.
pub async fn collect(
    State(app): State<App>,
    _caller: Admin,
) -> Result<Json<CollectionDone>, Problem> {
    let done = app.services.collector.collect().await.map_err(|error| match error {
        CollectionError::Read(error) => error.into(),
        CollectionError::Rows(error) => error.into(),
        CollectionError::Propose(error) => error.into(),
        CollectionError::Store(error)
        | CollectionError::Ownership(OwnershipError::Store(error)) => Problem::from(error),
        CollectionError::Ownership(error) => {
            Problem::new(StatusCode::CONFLICT, "storage_not_owned", error.to_string())
        }
    })?;
    Ok(Json(done.into()))
}

/// `POST /api/v1/storage/compact`: starts a compaction at this node, unless one is under way.
pub async fn compact(
    State(app): State<App>,
    _caller: Admin,
    Body(wanted): Body<CompactStorage>,
) -> (StatusCode, Json<CompactionStatus>) {
    app.services.compactor.start(wanted.dry_run);
    (StatusCode::ACCEPTED, Json(app.services.compactor.status()))
}

/// `POST /api/v1/storage/verify`: starts a verification at this node, unless one is under way.
pub async fn verify(
    State(app): State<App>,
    _caller: Admin,
    Body(wanted): Body<VerifyStorage>,
) -> (StatusCode, Json<VerificationStatus>) {
    app.services.verifier.start(wanted.read);
    (StatusCode::ACCEPTED, Json(app.services.verifier.status()))
}

/// `POST /api/v1/storage/scrub`: starts a scrub at this node, unless one is under way.
pub async fn scrub(State(app): State<App>, _caller: Admin) -> (StatusCode, Json<ScrubStatus>) {
    app.services.scrubber.start();
    (StatusCode::ACCEPTED, Json(app.services.scrubber.status()))
}
