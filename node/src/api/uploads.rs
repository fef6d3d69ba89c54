//! The upload of a disk in parts: any order, in parallel, sent again at will.
//!
//! Invariants: a part is recorded only when it is safe in storage and its checksum is the one that
//! was announced; none is stored once the session receives no more. Memory for parts is bounded,
//! however many come at once (see `reception`), and so is what of a large disk is stored and not read
//! (see `disks::ahead`).

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use shoal_api::{ChunkReceived, InitUpload, Layer, UploadStarted, UploadStatus};
use shoal_content::{Digest, ImageId, ObjectKey, TagName, Timestamp, UploadId};
use shoal_formats::{ContentMap, Format};
use shoal_metadata::{
    Action, Command, DiskUploadState, Refusal, Upload, UploadNote, UploadPart, UploadPurpose, What,
};
use shoal_raft::{ProposeError, View};
use tracing::{Instrument, Span};
use uuid::Uuid;

use super::caller::Caller;
use super::failure;
use super::images::existing;
use super::input::{Body, Path};
use super::numbers::{check_names, number_taken};
use super::problem::{conflict, missing, unavailable};
use super::reception::{self, Held};
use super::storage::is_open;
use super::tags::check_new;
use crate::clock::{now, rfc3339};
use crate::disks::is_under_way;
use crate::http::problem::Problem;
use crate::state::App;

const MIB: u64 = 1024 * 1024;
/// The length of a part where the client wishes none.
const PART_BYTES_DEFAULT: u64 = 16 * MIB;
/// The longest part that a client is given for the asking.
const PART_BYTES_WISHED_MAX: u64 = 64 * MIB;
/// The longest part at all: of files that would have too many shorter ones.
const PART_BYTES_MAX: u64 = 256 * MIB;
/// Parts of one upload (the metadata hold this too).
const PARTS_MAX: u64 = 10_000;
/// The longest file.
const TOTAL_BYTES_MAX: u64 = PARTS_MAX * PART_BYTES_MAX;
/// A session lives so long after its last part.
const SESSION_TTL: Duration = Duration::from_secs(24 * 3600);
/// `complete` waits so long for the version before it answers 202.
const COMPLETE_WAIT: Duration = Duration::from_millis(1800);
const LAYERS_MAX: usize = 1000;
const CHECKSUM_HEADER: &str = "x-shoal-checksum";
/// The standard's own, for clients that know no other.
const CONTENT_DIGEST: &str = "content-digest";

fn expiry() -> Timestamp {
    now().plus_millis(SESSION_TTL.as_millis() as u64)
}

fn total_parts(total_bytes: u64, part_bytes: u64) -> u32 {
    total_bytes.div_ceil(part_bytes.max(1)) as u32
}

/// The upload with its purpose taken apart, if it is of this image's disks.
struct Session {
    row: Upload,
    total_bytes: u64,
    part_bytes: u64,
    number: String,
    state: DiskUploadState,
    parts: std::collections::BTreeMap<u32, UploadPart>,
}

/// The caller's own session, or anyone's for who administers the image.
fn session(caller: &Caller, image: ImageId, id: UploadId) -> Result<Session, Problem> {
    let found = existing(caller, image, Action::Push)?;
    let session = session_of(&caller.view, image, id)?;
    let own = session.row.owner == caller.account()?;
    if own || caller.permit(Action::Manage, What::Repository(&found.name)).is_ok() {
        return Ok(session);
    }
    Err(Problem::forbidden("the upload is somebody else's"))
}

fn session_of(view: &View, image: ImageId, id: UploadId) -> Result<Session, Problem> {
    let gone = || {
        missing(
            "upload_not_found",
            format!("there is no upload {id} of this image; it may have expired or been aborted"),
        )
    };
    let row = view.query().upload(id)?.ok_or_else(gone)?;
    let UploadPurpose::Disk { image: of, total_bytes, part_bytes, number, state, parts, .. } =
        row.purpose.clone()
    else {
        return Err(gone());
    };
    if of != image {
        return Err(gone());
    }
    Ok(Session { row, total_bytes, part_bytes, number, state, parts })
}

pub async fn init(
    State(app): State<App>,
    caller: Caller,
    Path(image): Path<ImageId>,
    Body(request): Body<InitUpload>,
) -> Result<Json<UploadStarted>, Problem> {
    existing(&caller, image, Action::Push)?;
    let owner = caller.account()?;
    check_names(&request.version, &request.tags)?;
    check_new(caller.view.query(), image, &request.version, &request.tags)?;
    drop(caller);
    let manifest = request.manifest.unwrap_or_default();
    let format = request.format.or(manifest.format).filter(|text| !text.is_empty());
    let format: Option<Format> = format.as_deref().map(str::parse).transpose()?;
    let note = UploadNote {
        changelog: request.changelog,
        build_info: build_info(request.build_info),
        layers: layers(manifest.layers, request.total_size_bytes)?,
        import: None,
    };
    let content = Some(request.content_clusters).filter(|runs| !runs.is_empty());
    let content = content.and_then(ContentMap::new);
    let order = Order {
        image,
        owner,
        number: request.version,
        tags: request.tags,
        total_bytes: request.total_size_bytes,
        wished_bytes: request.chunk_size_bytes,
        format,
    };
    let upload = begin(&app, order, note).await?;
    if let Some(content) = content {
        app.services.disks.expect_content(upload.id, content);
    }
    let UploadPurpose::Disk { total_bytes, part_bytes, .. } = upload.purpose else {
        return Err(unavailable("the session is none of a disk"));
    };
    Ok(Json(UploadStarted {
        upload_id: upload.id,
        total_chunks: total_parts(total_bytes, part_bytes),
        chunk_size: part_bytes,
        expires_at: rfc3339(upload.expires_at),
    }))
}

pub(super) fn build_info(info: Option<serde_json::Map<String, serde_json::Value>>) -> String {
    info.map(|info| serde_json::Value::Object(info).to_string()).unwrap_or_default()
}

/// What the file consists of, as far as it is said: then all of it.
fn layers(layers: Vec<Layer>, total_bytes: u64) -> Result<Vec<(Digest, u64)>, Problem> {
    let sum = layers.iter().fold(0u64, |sum, layer| sum.saturating_add(layer.size));
    if !layers.is_empty() && sum != total_bytes {
        let text = format!("the layers have {sum} bytes together, and total_size_bytes is other");
        return Err(Problem::bad_request("layers_invalid", text));
    }
    if layers.len() > LAYERS_MAX {
        let text = format!("at most {LAYERS_MAX} layers");
        return Err(Problem::bad_request("layers_invalid", text));
    }
    Ok(layers.into_iter().map(|layer| (layer.digest, layer.size)).collect())
}

/// A version that is to come.
pub(super) struct Order {
    pub image: ImageId,
    pub owner: String,
    pub number: String,
    pub tags: Vec<TagName>,
    pub total_bytes: u64,
    /// The length of a part that the client would like.
    pub wished_bytes: Option<u64>,
    pub format: Option<Format>,
}

/// How long parts are. Each is an object of its own, so that storage takes any length.
fn part_bytes(total_bytes: u64, wished: Option<u64>) -> u64 {
    let least = total_bytes.div_ceil(PARTS_MAX);
    let rounded = least.next_multiple_of(MIB);
    match wished {
        None => PART_BYTES_DEFAULT.max(rounded),
        // Too many parts: the answer says how long they are instead.
        Some(wished) if wished < least => rounded,
        Some(wished) => wished.min(PART_BYTES_WISHED_MAX.max(rounded)),
    }
}

/// Whether the account may have one more disk on its way: as many as blobs. They are counted here,
/// since a session is not told the limit by its command: what begins in the same moment may pass.
async fn check_open(app: &App, owner: &str) -> Result<(), Problem> {
    let most = app.config.registry.uploads_open_max_per_account;
    if most == 0 {
        return Ok(());
    }
    let sessions = app.view().await?.query().uploads()?;
    let is_disk = |upload: &Upload| matches!(upload.purpose, UploadPurpose::Disk { .. });
    let own = sessions.iter().filter(|one| one.owner == owner && is_disk(one) && is_open(one));
    let open = own.count() as u64;
    if open < most { Ok(()) } else { Err(Refusal::TooManyUploads { open, most }.into()) }
}

pub(super) async fn begin(app: &App, order: Order, note: UploadNote) -> Result<Upload, Problem> {
    let Order { image, owner, number, tags, total_bytes, wished_bytes, format } = order;
    if total_bytes == 0 || total_bytes > TOTAL_BYTES_MAX {
        let text = format!("total_size_bytes is from 1 to {TOTAL_BYTES_MAX}");
        return Err(Problem::bad_request("size_invalid", text));
    }
    let part_bytes = part_bytes(total_bytes, wished_bytes);
    check_open(app, &owner).await?;
    let upload = Upload {
        id: UploadId::from_uuid(Uuid::now_v7()),
        owner,
        created_at: now(),
        expires_at: expiry(),
        purpose: UploadPurpose::Disk {
            image,
            number: number.clone(),
            tags,
            total_bytes,
            part_bytes,
            format: format.map(|format| format.to_string()),
            parts: Default::default(),
            state: DiskUploadState::Receiving,
        },
    };
    // Nodes of an earlier version know the shorter command only.
    let begin = match note == UploadNote::default() {
        true => Command::BeginUpload(upload.clone()),
        false => Command::BeginDescribedUpload { upload: upload.clone(), note },
    };
    app.propose(begin).await.map_err(|error| match error {
        ProposeError::Refused(Refusal::Exists(_)) => number_taken(&number),
        error => error.into(),
    })?;
    Ok(upload)
}

pub async fn put_part(
    State(app): State<App>,
    caller: Caller,
    Path((image, id, part)): Path<(ImageId, UploadId, u32)>,
    headers: HeaderMap,
    body: axum::body::Body,
) -> Result<Json<ChunkReceived>, Problem> {
    let session = session(&caller, image, id)?;
    drop(caller);
    let total = total_parts(session.total_bytes, session.part_bytes);
    if part >= total {
        let text = format!("there is no part {part}; they count from 0 to {}", total - 1);
        return Err(Problem::bad_request("chunk_out_of_range", text));
    }
    if session.state != DiskUploadState::Receiving {
        // Sent again after `complete`: what is there already is no mistake.
        if let Some(known) = session.parts.get(&part) {
            return Ok(Json(received(part, known, session.parts.len(), total)));
        }
        return Err(receives_no_more());
    }
    let start = u64::from(part) * session.part_bytes;
    let wanted = session.part_bytes.min(session.total_bytes - start);
    let announced = announced(&headers)?;
    if let Some(length) = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok())
        && length.parse::<u64>() != Ok(wanted)
    {
        return Err(reception::wrong_length(part, wanted, length));
    }
    let way = app.services.disks.make_way(id, wanted);
    let _way = reception::unless_stopping(&app.drain, way).await?;
    let held = reception::room(wanted, &app.drain).await?;
    let bytes = reception::collect(body, part, wanted, &held, &app.drain).await?;
    app.metrics.upload_bytes.inc_by(wanted);
    let hashed = bytes.clone();
    let sha256: [u8; 32] = tokio::task::spawn_blocking(move || Sha256::digest(&hashed).into())
        .await
        .map_err(|_| unavailable("the node is stopping"))?;
    let found = Digest::sha256(sha256);
    if let Some(announced) = announced.filter(|announced| *announced != found) {
        let text = format!("part {part} is {found}, not {announced}; send it again");
        return Err(Problem::bad_request("checksum_mismatch", text));
    }
    let recorded = UploadPart { bytes: wanted, sha256 };
    // To its end also where the client is gone: a store that is given up halfway may still come.
    let keep = keep_part(app.clone(), (image, id), part, recorded.clone(), (bytes, held));
    let kept = tokio::spawn(keep.instrument(Span::current())).await;
    let session = kept.map_err(|error| Problem::internal(&error))??;
    let others = session.parts.keys().filter(|&&other| other != part).count();
    // Parts that came beside this one show in the state as applied here.
    let known = app.raft.local().query().upload(id)?.map_or(0, |row| match row.purpose {
        UploadPurpose::Disk { parts, .. } => parts.len(),
        UploadPurpose::Blob { .. } => 0,
    });
    Ok(Json(received(part, &recorded, known.max(others + 1), total)))
}

fn receives_no_more() -> Problem {
    conflict("upload_state", "the upload receives no more parts")
}

/// Stores a part and records it, unless it is there as it is. Answers the session as it was before.
async fn keep_part(
    app: App,
    (image, id): (ImageId, UploadId),
    part: u32,
    received: UploadPart,
    (bytes, _held): (Bytes, Held<'static>),
) -> Result<Session, Problem> {
    // While it came, another request may have brought it, or completed the upload.
    let _turn = reception::storing(id, part).await;
    let session = session_of(&app.view().await?, image, id)?;
    if session.parts.get(&part) == Some(&received) {
        return Ok(session);
    }
    if session.state != DiskUploadState::Receiving {
        return Err(receives_no_more());
    }
    let under = app.raft.local().query().key_owner(image)?;
    app.store.put(ObjectKey::UploadPart { upload: id, part }, &under, bytes).await?;
    let record = Command::RecordPart { upload: id, part, received, expires_at: expiry() };
    app.propose(record).await?;
    if part == 0 || part == total_parts(session.total_bytes, session.part_bytes) - 1 {
        begin_to_read(&app, image, id).await;
    }
    Ok(session)
}

/// Has a disk read while it comes in, once its beginning and its end are there: both may have come at
/// once, and one of them is the second.
async fn begin_to_read(app: &App, image: ImageId, id: UploadId) {
    // Where the rows cannot be read, the disk is read when it is whole.
    let Ok(view) = app.view().await else { return };
    let Ok(session) = session_of(&view, image, id) else { return };
    drop(view);
    let Session { total_bytes, part_bytes, parts, .. } = session;
    let last = total_parts(total_bytes, part_bytes) - 1;
    if parts.contains_key(&0) && parts.contains_key(&last) {
        let received: u64 = parts.values().map(|part| part.bytes).sum();
        app.services.disks.read_ahead(id, total_bytes.saturating_sub(received));
    }
}

fn received(part: u32, known: &UploadPart, uploaded: usize, total: u32) -> ChunkReceived {
    ChunkReceived {
        chunk_index: part,
        checksum: Digest::sha256(known.sha256).to_string(),
        uploaded_chunks: uploaded as u32,
        total_chunks: total,
        // To a hundredth of a percent.
        progress: (uploaded as f64 * 10_000.0 / f64::from(total.max(1))).round() / 100.0,
    }
}

fn announced(headers: &HeaderMap) -> Result<Option<Digest>, Problem> {
    let wrong = |text: String| Problem::bad_request("checksum_invalid", text);
    if let Some(value) = headers.get(CHECKSUM_HEADER) {
        let digest = value.to_str().ok().and_then(|text| Digest::of_checksum(text).ok());
        let text = format!("{CHECKSUM_HEADER} is sha256: and 64 hexadecimal digits");
        return digest.map(Some).ok_or_else(|| wrong(text));
    }
    let mut values = headers.get_all(CONTENT_DIGEST).iter();
    let digest = values.find_map(|value| content_digest(value.to_str().ok()?));
    let text =
        format!("{CONTENT_DIGEST} has sha-256=: and 32 bytes as Base64 before the next colon");
    digest.transpose().map_err(|()| wrong(text))
}

/// The SHA-256 among the digests of a `Content-Digest` (RFC 9530, section 2); others say nothing here.
fn content_digest(value: &str) -> Option<Result<Digest, ()>> {
    let mut members = value.split(',').map(str::trim);
    let encoded = members.find_map(|member| member.strip_prefix("sha-256="))?;
    let bytes = encoded.strip_prefix(':').and_then(|text| text.strip_suffix(':'));
    let bytes = bytes.and_then(|text| STANDARD.decode(text).ok());
    let bytes: Option<[u8; 32]> = bytes.and_then(|bytes| bytes.try_into().ok());
    Some(bytes.map(Digest::sha256).ok_or(()))
}

pub async fn status(
    State(app): State<App>,
    caller: Caller,
    Path((image, id)): Path<(ImageId, UploadId)>,
) -> Result<Json<UploadStatus>, Problem> {
    let session = session(&caller, image, id)?;
    drop(caller);
    Ok(Json(state_of(&app, id, session)?))
}

/// Of a session that the asker has just begun.
pub(super) async fn status_of(
    app: &App,
    image: ImageId,
    id: UploadId,
) -> Result<UploadStatus, Problem> {
    let view = app.view().await?;
    let session = session_of(&view, image, id)?;
    drop(view);
    state_of(app, id, session)
}

fn state_of(app: &App, id: UploadId, session: Session) -> Result<UploadStatus, Problem> {
    let mut status = UploadStatus {
        upload_id: id,
        status: "receiving".to_owned(),
        total_chunks: total_parts(session.total_bytes, session.part_bytes),
        received_chunks: session.parts.keys().copied().collect(),
        chunk_size: session.part_bytes,
        total_size_bytes: session.total_bytes,
        processed_bytes: None,
        version_id: None,
        version: None,
        manifest_digest: None,
        created_at: None,
        failure: None,
        import_url: None,
        received_bytes: session.parts.values().map(|part| part.bytes).sum(),
        expires_at: rfc3339(session.row.expires_at),
    };
    let note = app.raft.local().query().upload_note(id)?;
    // What follows the question mark is often a secret.
    let url = note.and_then(|note| note.import).map(|import| import.url);
    status.import_url = url.map(|url| url.split('?').next().unwrap_or_default().to_owned());
    match session.state {
        DiskUploadState::Receiving => {}
        DiskUploadState::Ingesting { .. } => {
            status.status = "processing".to_owned();
            status.processed_bytes = app.services.disks.processed_bytes(id);
        }
        DiskUploadState::Published { version } => {
            status.status = "active".to_owned();
            status.version_id = Some(version);
            status.version = Some(session.number);
            let row = app.raft.local().query().version_by_id(version)?;
            status.created_at = row.as_ref().map(|row| rfc3339(row.created_at));
            status.manifest_digest = row.map(|row| row.digest);
        }
        DiskUploadState::Failed { reason } => {
            status.status = "failed".to_owned();
            status.failure = Some(reason);
        }
    }
    Ok(status)
}

pub async fn complete(
    State(app): State<App>,
    caller: Caller,
    Path((image, id)): Path<(ImageId, UploadId)>,
) -> Result<(StatusCode, Json<UploadStatus>), Problem> {
    let session = session(&caller, image, id)?;
    drop(caller);
    if session.state == DiskUploadState::Receiving {
        check_whole(&session)?;
    }
    let ended =
        matches!(session.state, DiskUploadState::Published { .. } | DiskUploadState::Failed { .. });
    if !ended {
        let turn = reception::claiming(id).await;
        match app.services.disks.begin(id).await {
            Ok(()) => {}
            Err(error) if is_under_way(&error) => {}
            // It came to its end between the two looks; the status says how.
            Err(ProposeError::Refused(Refusal::UploadState(_))) => {}
            Err(error) => return Err(error.into()),
        }
        drop(turn);
        // Either way the status is the answer.
        let _ = tokio::time::timeout(COMPLETE_WAIT, app.services.disks.ended(id)).await;
    }
    let view = app.view().await?;
    let session = session_of(&view, image, id)?;
    if let DiskUploadState::Failed { reason } = &session.state {
        return Err(failure::problem(reason));
    }
    let status = state_of(&app, id, session)?;
    let code = match status.status.as_str() {
        "active" => StatusCode::CREATED,
        _ => StatusCode::ACCEPTED,
    };
    Ok((code, Json(status)))
}

fn check_whole(session: &Session) -> Result<(), Problem> {
    const SHOWN: usize = 10;
    let total = total_parts(session.total_bytes, session.part_bytes);
    let missing: Vec<u32> = (0..total).filter(|part| !session.parts.contains_key(part)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let shown: Vec<String> = missing.iter().take(SHOWN).map(u32::to_string).collect();
    let more = if missing.len() > SHOWN { ", …" } else { "" };
    let text = format!("{} parts are missing: {}{more}", missing.len(), shown.join(", "));
    Err(conflict("chunks_missing", text))
}

pub async fn abort(
    State(app): State<App>,
    caller: Caller,
    Path((image, id)): Path<(ImageId, UploadId)>,
) -> Result<StatusCode, Problem> {
    let session = session(&caller, image, id)?;
    drop(caller);
    if let DiskUploadState::Published { .. } = session.state {
        let number = session.number;
        let text = format!("the upload has become version {number}; delete that where it is to go");
        return Err(conflict("upload_state", text));
    }
    app.propose(Command::AbortUpload { upload: id }).await?;
    app.services.disks.delete_parts_of(&session.row).await;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn a_checksum_is_read_from_the_standard_s_header_too() {
        let digest = Digest::sha256(Sha256::digest(b"a part").into());
        let encoded = STANDARD.encode(digest.as_bytes());
        let read = |headers: &[(&'static str, String)]| {
            let pairs = headers.iter().map(|(name, value)| {
                (header::HeaderName::from_static(name), value.parse::<HeaderValue>().unwrap())
            });
            announced(&pairs.collect::<HeaderMap>()).map_err(|problem| problem.code)
        };
        let standard = format!("sha-256=:{encoded}:");
        for value in [standard.clone(), format!("sha-512=:AAAA:, {standard}")] {
            assert_eq!(read(&[(CONTENT_DIGEST, value)]), Ok(Some(digest.clone())));
        }
        let unknown = [(CONTENT_DIGEST, "sha-512=:AAAA:".to_owned())];
        assert_eq!((read(&[]), read(&unknown)), (Ok(None), Ok(None)));
        for value in ["sha-256=:AAAA:".to_owned(), format!("sha-256={encoded}")] {
            assert_eq!(read(&[(CONTENT_DIGEST, value)]), Err("checksum_invalid"));
        }
        // Ours counts where both are there.
        let own = Digest::sha256([7; 32]);
        let both = [(CHECKSUM_HEADER, own.to_string()), (CONTENT_DIGEST, standard)];
        assert_eq!(read(&both), Ok(Some(own)));
    }

    #[test]
    fn parts_are_as_long_as_is_wished_where_they_are_not_too_many() {
        for (total, wished, expected) in [
            (1000, Some(100), 100),
            (10_000, Some(1), 1),
            (1, Some(5), 5),
            (500, None, PART_BYTES_DEFAULT),
            (PARTS_MAX * MIB, Some(MIB), MIB),
            (PARTS_MAX * MIB, Some(100 * MIB), PART_BYTES_WISHED_MAX),
            // So long that they are more than is given for the asking.
            (TOTAL_BYTES_MAX, None, PART_BYTES_MAX),
            (TOTAL_BYTES_MAX, Some(PART_BYTES_MAX + 1), PART_BYTES_MAX),
            // Too many, and none.
            (20_001, Some(2), MIB),
            (5, Some(0), MIB),
        ] {
            assert_eq!(part_bytes(total, wished), expected, "{total}, {wished:?}");
        }
    }
}
