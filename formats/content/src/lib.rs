//! The shared words of Shoal: names, ids, digests, recipes, tickets.
//!
//! Every other crate speaks in these types. They are parsed once, at the border, and trusted from
//! then on: each has a private field, and only parsing can fail.
//!
//! Invariants: nothing here does I/O, reads a clock or allocates from an unchecked length.
//! Non-goals: disk formats and cutting (see `shoal-formats`), wire frames (see `shoal-swarm`).

mod chunk;
mod digest;
mod id;
mod labels;
mod name;
mod number;
mod object;
mod priority;
mod recipe;
#[cfg(feature = "schema")]
mod schema;
mod ticket;
mod timestamp;

pub use chunk::{CHUNK_BYTES_MAX, ChunkId};
pub use digest::{Algorithm, Digest, DigestError};
pub use id::{
    ClusterId, DataKeyId, DeploymentId, IdError, ImageId, NodeId, PeerId, ScanId, TransferId,
    UploadId, VersionId,
};
pub use labels::{LABELS_MAX, Labels, LabelsError, Proximity, Zone};
pub use name::{
    AccountName, ImageReference, InstanceName, NameError, Pin, ProjectName, RepositoryName, TagName,
};
pub use number::{TagKind, VersionNumber};
pub use object::{ObjectKey, ObjectKeyError, PackId, RecipeId};
pub use priority::{Priority, PriorityError};
pub use recipe::{
    Chunk, Encoding, Extent, RECIPE_BYTES_MAX, Recipe, RecipeError, RecipeKind, SourceObject,
};
pub use ticket::{TICKET_BYTES_MAX, Ticket, TicketError};
pub use timestamp::Timestamp;
