//! How much of a blob is taken in before its command decides.
//!
//! Clients rarely say how long a blob is. So that one that cannot be kept is not received to its
//! end, the bytes that come are compared with what the quotas leave as things stand; where a length
//! is announced, it is compared before the first byte. Invariant: this only refuses earlier what a
//! command would refuse; what is decided is decided in the command. What several pushes to one
//! project bring at the same time may pass here and be refused there.

use shoal_content::{ProjectName, UploadId};
use shoal_metadata::Refusal;

use super::RegistryError;
use crate::state::App;

/// Lengths that are announced are reserved from here on; less is not worth a command.
pub const RESERVED_BYTES_MIN: u64 = 8 * 1024 * 1024;

/// See the module's documentation.
#[derive(Debug)]
pub struct Allowance {
    project: ProjectName,
    /// Whose a project that is not there yet would be.
    owner: String,
    /// What the session has reserved.
    reserved: u64,
    /// The longest blob that can be kept, as things stood; `None` is any.
    most: Option<u64>,
}

impl Allowance {
    pub fn unlimited(project: ProjectName) -> Self {
        Self { project, owner: String::new(), reserved: 0, most: None }
    }

    /// From this node's own rows, which may be a moment old; before it refuses, it asks anew.
    ///
    /// # Errors
    /// Where the rows cannot be read.
    pub fn new(
        app: &App,
        project: ProjectName,
        upload: UploadId,
        owner: &str,
    ) -> Result<Self, RegistryError> {
        let view = app.raft.local();
        let reserved = view.query().reserved(upload)?;
        let most = view.query().room(&project, Some(owner), reserved)?;
        Ok(Self { project, owner: owner.to_owned(), reserved, most })
    }

    pub fn is_limited(&self) -> bool {
        self.most.is_some()
    }

    /// Whether a blob of so many bytes may come.
    ///
    /// # Errors
    /// With the limit that stands in the way.
    pub async fn check(&self, app: &App, total: u64) -> Result<(), RegistryError> {
        if self.most.is_none_or(|most| total <= most) {
            return Ok(());
        }
        // Somebody may have made room since, at another node.
        let more = total.saturating_sub(self.reserved);
        let view = app.view().await?;
        match view.query().exceeded(&self.project, Some(&self.owner), more, total)? {
            None => Ok(()),
            Some(exceeded) => {
                app.metrics.refused_by_quota(exceeded.kind);
                Err(Refusal::Quota(exceeded).into())
            }
        }
    }
}
