//! Upload sessions.
//!
//! Invariants: the index of expiries has every session once, under the expiry in its row; the
//! count of an account's open uploads, once it is kept, is the number of its sessions for blobs.

use shoal_content::{NodeId, ObjectKey, Timestamp, UploadId};

use super::{Step, Stop};
use crate::command::{Event, Refusal, Response, Subject};
use crate::key;
use crate::record::{DiskUploadState, ImageKind, Multipart, Upload, UploadPart, UploadPurpose};
use crate::table::{Fault, Read, Table};

/// The most parts a disk upload is cut into.
const PARTS_MAX: u64 = 10_000;

/// The most sessions one command ends, whatever it asks for.
const EXPIRE_UPLOADS_MAX: usize = 1000;

/// Where a blob upload moves to.
pub(super) struct Advance {
    pub from: u64,
    pub to: u64,
    pub checkpoint: Option<ObjectKey>,
    pub multipart: Option<Multipart>,
    pub expires_at: Timestamp,
}

impl<R: Read> Step<'_, R> {
    fn session(&self, id: UploadId) -> Result<Upload, Stop> {
        Ok(self.query().upload(id)?.ok_or(Refusal::NotFound(Subject::Upload))?)
    }

    /// Writes a session whose expiry did not change, or that is new.
    pub(super) fn put_session(&mut self, upload: &Upload) {
        self.rows.mark(Table::UploadExpiries, key::upload_expiry(upload.expires_at, upload.id));
        self.rows.put(Table::Uploads, key::upload(upload.id), upload);
    }

    pub(super) fn remove_session(&mut self, upload: &Upload) -> Result<(), Fault> {
        self.rows.remove(Table::UploadExpiries, key::upload_expiry(upload.expires_at, upload.id));
        self.rows.remove(Table::Uploads, key::upload(upload.id));
        self.rows.remove(Table::UploadNotes, key::upload(upload.id));
        self.count_open(upload, -1)?;
        self.release_reservation(upload.id)
    }

    fn prolong(&mut self, upload: &mut Upload, expires_at: Timestamp) {
        self.rows.remove(Table::UploadExpiries, key::upload_expiry(upload.expires_at, upload.id));
        upload.expires_at = expires_at;
    }

    pub(super) fn begin_upload(&mut self, upload: &Upload) -> Result<Response, Stop> {
        if self.query().upload(upload.id)?.is_some() {
            return Err(Refusal::Exists(Subject::Upload).into());
        }
        match &upload.purpose {
            UploadPurpose::Blob { repository, offset, .. } => {
                let image = self.query().image_by_name(repository)?;
                if image.is_some_and(|image| image.kind != ImageKind::Container) {
                    return Err(Refusal::WrongKind(ImageKind::Disk).into());
                }
                if *offset != 0 {
                    return Err(Refusal::OffsetMismatch(0).into());
                }
            }
            UploadPurpose::Disk {
                image, number, total_bytes, part_bytes, parts, state, ..
            } => {
                let image = self.live_image(*image)?;
                if image.kind != ImageKind::Disk {
                    return Err(Refusal::WrongKind(image.kind).into());
                }
                if self.rows.has(Table::VersionNumbers, &key::number(image.id, number))? {
                    return Err(Refusal::Exists(Subject::Version).into());
                }
                if *part_bytes == 0 || total_bytes.div_ceil(*part_bytes) > PARTS_MAX {
                    return Err(Refusal::Limit(format!("{PARTS_MAX} parts")).into());
                }
                if !parts.is_empty() || *state != DiskUploadState::Receiving {
                    let reason = "a new session has received nothing".to_owned();
                    return Err(Refusal::UploadState(reason).into());
                }
                let project = image.name.project();
                self.check_image_bytes(&project, &upload.owner, *total_bytes)?;
                self.reserve(upload.id, &project, *total_bytes)?;
            }
        }
        self.put_session(upload);
        self.count_open(upload, 1)?;
        Ok(Response::Done)
    }

    /// The limit is the proposer's, as all nodes are told by their settings; it is held here, so
    /// that it holds over all of them.
    pub(super) fn begin_blob_upload(
        &mut self,
        upload: &Upload,
        open_max: u64,
    ) -> Result<Response, Stop> {
        if !matches!(upload.purpose, UploadPurpose::Blob { .. }) {
            return Err(Refusal::UploadState("it is not for a blob".into()).into());
        }
        let open = self.query().open_uploads(&upload.owner)?;
        if open >= open_max {
            return Err(Refusal::TooManyUploads { open, most: open_max }.into());
        }
        self.begin_upload(upload)
    }

    pub(super) fn advance_upload(
        &mut self,
        id: UploadId,
        advance: Advance,
    ) -> Result<Response, Stop> {
        let mut upload = self.session(id)?;
        let UploadPurpose::Blob { repository, offset, checkpoint, multipart } = &mut upload.purpose
        else {
            return Err(Refusal::UploadState("it is not for a blob".into()).into());
        };
        if *offset != advance.from {
            return Err(Refusal::OffsetMismatch(*offset).into());
        }
        if advance.to < advance.from {
            return Err(Refusal::UploadState("an upload does not go back".into()).into());
        }
        *offset = advance.to;
        *checkpoint = advance.checkpoint;
        *multipart = advance.multipart;
        let project = repository.project();
        self.check_image_bytes(&project, &upload.owner, advance.to)?;
        self.reserve(id, &project, advance.to)?;
        self.prolong(&mut upload, advance.expires_at);
        self.put_session(&upload);
        Ok(Response::Done)
    }

    /// Parts count from 0; all but the last are `part_bytes` long.
    pub(super) fn record_part(
        &mut self,
        id: UploadId,
        part: u32,
        received: UploadPart,
        expires_at: Timestamp,
    ) -> Result<Response, Stop> {
        let mut upload = self.session(id)?;
        let UploadPurpose::Disk { total_bytes, part_bytes, parts, state, .. } = &mut upload.purpose
        else {
            return Err(Refusal::UploadState("it is not for a disk".into()).into());
        };
        if *state != DiskUploadState::Receiving {
            return Err(Refusal::UploadState("it receives no more".into()).into());
        }
        let start = u64::from(part).checked_mul(*part_bytes).filter(|start| start < total_bytes);
        let wanted = start.map(|start| (*total_bytes - start).min(*part_bytes));
        if wanted != Some(received.bytes) {
            return Err(Refusal::PartOutOfRange { part, bytes: received.bytes }.into());
        }
        parts.insert(part, received);
        self.prolong(&mut upload, expires_at);
        self.put_session(&upload);
        self.events.push(Event::UploadChanged(id));
        Ok(Response::Done)
    }

    pub(super) fn claim_ingest(
        &mut self,
        id: UploadId,
        by: NodeId,
        until: Timestamp,
    ) -> Result<Response, Stop> {
        let mut upload = self.session(id)?;
        let UploadPurpose::Disk { total_bytes, part_bytes, parts, state, .. } = &mut upload.purpose
        else {
            return Err(Refusal::UploadState("it is not for a disk".into()).into());
        };
        match state {
            DiskUploadState::Receiving => {
                if (parts.len() as u64) < total_bytes.div_ceil(*part_bytes) {
                    return Err(Refusal::UploadState("parts are missing".into()).into());
                }
            }
            DiskUploadState::Ingesting { node, lease_until } => {
                if *node != by && *lease_until > self.at {
                    return Err(Refusal::Leased.into());
                }
            }
            DiskUploadState::Published { .. } => {
                return Err(Refusal::UploadState("it is published".into()).into());
            }
            DiskUploadState::Failed { .. } => {
                return Err(Refusal::UploadState("it has failed".into()).into());
            }
        }
        *state = DiskUploadState::Ingesting { node: by, lease_until: until };
        // A session that is being read lives at least as long as its lease.
        let expires_at = upload.expires_at.max(until);
        self.prolong(&mut upload, expires_at);
        self.put_session(&upload);
        self.events.push(Event::UploadChanged(id));
        Ok(Response::Done)
    }

    pub(super) fn fail_ingest(&mut self, id: UploadId, why: String) -> Result<Response, Stop> {
        let mut upload = self.session(id)?;
        match &mut upload.purpose {
            UploadPurpose::Disk { state: DiskUploadState::Published { .. }, .. } => {
                return Err(Refusal::UploadState("it is published".into()).into());
            }
            UploadPurpose::Disk { state, .. } => {
                *state = DiskUploadState::Failed { reason: why };
                self.release_reservation(id)?;
            }
            UploadPurpose::Blob { .. } => {
                return Err(Refusal::UploadState("it is not for a disk".into()).into());
            }
        }
        self.put_session(&upload);
        self.events.push(Event::UploadChanged(id));
        Ok(Response::Done)
    }

    pub(super) fn abort_upload(&mut self, id: UploadId) -> Result<Response, Stop> {
        let upload = self.session(id)?;
        self.remove_session(&upload)?;
        self.events.push(Event::UploadChanged(id));
        Ok(Response::Aborted(upload))
    }

    pub(super) fn expire_uploads(&mut self, limit: u32) -> Result<Response, Stop> {
        let limit = (limit as usize).min(EXPIRE_UPLOADS_MAX);
        let rows = self.rows.scan(Table::UploadExpiries, b"", b"", limit)?;
        let end = key::time(self.at);
        let mut expired = Vec::new();
        for (key, _) in rows.iter().take_while(|(key, _)| key[..key::TIME_BYTES] <= end[..]) {
            let id = key::read_id(key, key::TIME_BYTES)?;
            let missing = Fault::Contradiction("an index names no upload");
            let upload = crate::transaction::row(&self.rows, Table::Uploads, &id)?;
            let upload: Upload = upload.ok_or(missing)?;
            self.remove_session(&upload)?;
            self.events.push(Event::UploadChanged(upload.id));
            expired.push(upload);
        }
        Ok(Response::Expired(expired))
    }
}
