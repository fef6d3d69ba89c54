//! What lists a manifest: indexes, and the indexes above them.

use std::collections::BTreeSet;

use shoal_content::{Digest, ImageId};

use super::{Step, Stop};
use crate::command::Refusal;
use crate::table::Read;

impl<R: Read> Step<'_, R> {
    /// The first that `look` finds at a manifest or at an index above it, however deep; refused
    /// where more than `limit` would have to be looked at.
    pub(super) fn find_upward<T>(
        &self,
        image: ImageId,
        digest: &Digest,
        limit: usize,
        mut look: impl FnMut(&Digest) -> Result<Option<T>, Stop>,
    ) -> Result<Option<T>, Stop> {
        let mut seen = BTreeSet::from([digest.clone()]);
        let mut left = vec![digest.clone()];
        while let Some(digest) = left.pop() {
            if let Some(found) = look(&digest)? {
                return Ok(Some(found));
            }
            for parent in self.query().parents(image, &digest)? {
                if seen.insert(parent.clone()) {
                    left.push(parent);
                }
            }
            if seen.len() > limit {
                return Err(Refusal::Limit(format!("{limit} indexes above one manifest")).into());
            }
        }
        Ok(None)
    }
}
