//! Which repositories hold a blob, and how many uploads an account has open.
//!
//! Both can be had from other rows, though not cheaply: links stand by image, and sessions by id. In
//! a cluster that was founded before they were kept, [`Command::IndexBlobs`] writes them from what
//! is there. Invariant: nothing is written before (see [`crate::Query::indexes_blobs`]), so that
//! programs that know none of this write the same rows.
//!
//! [`Command::IndexBlobs`]: crate::Command::IndexBlobs

use std::collections::BTreeMap;

use shoal_content::{Digest, ImageId, ProjectName};

use super::{Step, Stop};
use crate::command::Response;
use crate::key;
use crate::query::{BLOBS_INDEXED_SINCE, all_rows};
use crate::record::{Image, Upload, UploadPurpose};
use crate::table::{Fault, Read, Table};
use crate::transaction::decoded;

impl<R: Read> Step<'_, R> {
    /// Both are kept from the first command on.
    pub(super) fn begin_indexing(&mut self) {
        self.rows.put(Table::Counts, BLOBS_INDEXED_SINCE, &self.at);
    }

    /// A repository begins to hold a blob.
    pub(super) fn note_holder(
        &mut self,
        image: ImageId,
        project: &ProjectName,
        digest: &Digest,
    ) -> Result<(), Fault> {
        if self.query().indexes_blobs()? {
            self.rows.mark(Table::BlobHolders, key::blob_holder(digest, project, image));
        }
        Ok(())
    }

    /// A session for a blob begins (`by` is 1) or ends (-1).
    pub(super) fn count_open(&mut self, upload: &Upload, by: i64) -> Result<(), Fault> {
        if !is_for_blob(upload) || !self.query().indexes_blobs()? {
            return Ok(());
        }
        let open = self.query().open_uploads(&upload.owner)?.checked_add_signed(by);
        let open = open.ok_or(Fault::Contradiction("fewer open uploads than none"))?;
        match open {
            0 => self.rows.remove(Table::OpenUploads, upload.owner.as_bytes()),
            open => self.rows.put(Table::OpenUploads, upload.owner.as_bytes(), &open),
        }
        Ok(())
    }

    /// It takes as long as there are links; afterwards nothing needs it.
    pub(super) fn index_blobs(&mut self) -> Result<Response, Stop> {
        for table in [Table::BlobHolders, Table::OpenUploads] {
            for (key, _) in all_rows(&self.rows, table, b"")? {
                self.rows.remove(table, key);
            }
        }
        self.begin_indexing();
        // Those that were deleted hold what they did.
        for (_, bytes) in all_rows(&self.rows, Table::Images, b"")? {
            let image: Image = decoded(Table::Images, &bytes)?;
            let (prefix, project) = (key::image(image.id), image.name.project());
            for (key, _) in all_rows(&self.rows, Table::BlobLinks, &prefix)? {
                let digest = key::read_digest(&key, prefix.len())?;
                self.note_holder(image.id, &project, &digest)?;
            }
        }
        let mut open: BTreeMap<String, u64> = BTreeMap::new();
        for upload in self.query().uploads()?.into_iter().filter(is_for_blob) {
            *open.entry(upload.owner).or_default() += 1;
        }
        for (owner, open) in open {
            self.rows.put(Table::OpenUploads, owner.as_bytes(), &open);
        }
        Ok(Response::Done)
    }
}

fn is_for_blob(upload: &Upload) -> bool {
    matches!(upload.purpose, UploadPurpose::Blob { .. })
}
