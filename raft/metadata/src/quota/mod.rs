//! How much may be held, by whom, and how much is.
//!
//! **What counts.** A project holds *contents*: blobs and manifests by digest, disks by recipe. It
//! pays for each one once, with its logical length, however many of its repositories and versions
//! hold it; another project that holds the same pays for it, too. So what somebody has used depends
//! on nothing that others do: a blob does not become dearer when a neighbour deletes it, nobody
//! learns from a bill what others have, and no command touches a row of a project that it is not
//! about. That storage keeps it once is the operator's gain. A disk counts with its content that is
//! not zero, which is the same for every host and whatever else there is; what it has in common
//! with other versions counts for each of them.
//!
//! **Who pays.** A project, its owner – the user or the organization –, each group that the owning
//! user is a member of, and the cluster. So a group's limit is one for what its members own
//! together. What somebody pushes to another's project is that project's.
//!
//! **Reservations.** An upload session reserves what it announced, or else what has come, until it
//! ends or expires; a reservation counts like content.
//!
//! Invariants: accounts, contents and reservations change in the command that changes what they
//! count, and agree with a recount (`recount`) after each; a command is refused where it makes an
//! account grow beyond its limit, and never where it makes none grow.
//! Non-goal: bytes in storage; see the node's gauges.

mod payer;
mod query;
mod recount;

use serde::{Deserialize, Serialize};
use shoal_content::{ProjectName, Timestamp};
use thiserror::Error;

pub use payer::{Payer, PayerError, PayerKind, QuotaOf};
pub(crate) use query::USAGE_SINCE;
pub(crate) use recount::{Content, contents_of};
pub use recount::{Drift, drift};

/// What may be held at most; `None` is any amount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuotaLimits {
    pub max_bytes: Option<u64>,
    pub max_images: Option<u64>,
    /// Of one version: a container's manifest and the blobs it refers to, a disk's content.
    pub max_image_bytes: Option<u64>,
}

/// A limit that was set. It takes the place of the default for its kind as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    pub limits: QuotaLimits,
    pub updated_at: Timestamp,
    pub updated_by: String,
}

/// What somebody holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    pub bytes: u64,
    pub images: u64,
    /// By sessions that are under way.
    pub reserved_bytes: u64,
}

impl Account {
    /// Bytes that nobody else can have.
    pub fn taken_bytes(&self) -> u64 {
        self.bytes.saturating_add(self.reserved_bytes)
    }
}

/// One content of a project.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Held {
    /// Links and versions of the project's images that hold it.
    pub holds: u64,
    pub bytes: u64,
}

/// What a session has reserved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reservation {
    pub project: ProjectName,
    pub bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum QuotaKind {
    Bytes,
    Images,
    /// The size of one image.
    ImageBytes,
}

impl QuotaKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Images => "images",
            Self::ImageBytes => "image_bytes",
        }
    }
}

/// Which limit holds, and what it was met with.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
#[error("the quota of {payer} does not allow this: {}", sentence(self))]
pub struct Exceeded {
    pub payer: Payer,
    pub kind: QuotaKind,
    pub limit: u64,
    /// With what is reserved.
    pub used: u64,
    /// In addition.
    pub wanted: u64,
}

fn sentence(exceeded: &Exceeded) -> String {
    let Exceeded { kind, limit, used, wanted, .. } = exceeded;
    match kind {
        QuotaKind::Bytes => format!(
            "{used} of {limit} bytes are used or reserved, and {wanted} more are wanted; delete \
             what is not needed, or ask an administrator for more"
        ),
        QuotaKind::Images => format!(
            "there are {used} of {limit} images, and {wanted} more wanted; delete one, or ask an \
             administrator for more"
        ),
        QuotaKind::ImageBytes => {
            format!("one image has at most {limit} bytes, and this one has {wanted}")
        }
    }
}
