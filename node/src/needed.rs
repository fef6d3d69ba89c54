//! The objects of central storage that the metadata name: what must be there.
//!
//! Blobs come in the order of their digests, then packs and recipes in the order of their keys.
//! Objects that nothing refers to any more are none of them. An object occurs once: a blob's bytes
//! belong to one digest, and blobs are left out of the second list.

use shoal_content::{Digest, ObjectKey};
use shoal_formats::backup::Needed;
use shoal_metadata::{Fault, Query, Read};

/// Rows of one look.
const PAGE_ROWS: usize = 1000;

/// Where the list is gone on with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Blobs(Option<Digest>),
    Others(Option<ObjectKey>),
    End,
}

impl Place {
    pub const START: Self = Self::Blobs(None);
}

/// The next objects, which may be none though there are more, and where they end.
///
/// # Errors
/// Where the rows cannot be read.
pub fn page<R: Read>(query: Query<'_, R>, place: Place) -> Result<(Vec<Needed>, Place), Fault> {
    match place {
        Place::Blobs(after) => {
            let blobs = query.blobs_after(after.as_ref(), PAGE_ROWS)?;
            let next = match blobs.last() {
                Some(last) => Place::Blobs(Some(last.digest.clone())),
                None => Place::Others(None),
            };
            let needed = blobs.into_iter().map(|blob| Needed {
                key: blob.object,
                size: Some(blob.size),
                digest: Some(blob.digest),
            });
            Ok((needed.collect(), next))
        }
        Place::Others(after) => {
            let objects = query.objects_after(after.as_ref(), PAGE_ROWS)?;
            let next = match objects.last() {
                Some((last, _)) => Place::Others(Some(*last)),
                None => Place::End,
            };
            let others = objects.into_iter().filter(|(key, used)| {
                used.count > 0 && matches!(key, ObjectKey::Pack(_) | ObjectKey::Recipe(_))
            });
            Ok((others.map(|(key, _)| Needed { key, size: None, digest: None }).collect(), next))
        }
        Place::End => Ok((Vec::new(), Place::End)),
    }
}
