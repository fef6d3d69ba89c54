//! What can go wrong in central storage.

use std::io;

use shoal_content::ObjectKey;
use thiserror::Error;

#[derive(Debug, Error)]
pub enum StoreError {
    #[error("the object {0} is not in storage")]
    NotFound(ObjectKey),
    #[error("bytes {start} to {end} are not all in the object {key}")]
    Range { key: ObjectKey, start: u64, end: u64 },
    /// The message is safe to show and says where space is missing.
    #[error("{0}")]
    Full(String),
    #[error("storage did not answer while {doing}: {cause}")]
    Unavailable { doing: &'static str, cause: String },
    #[error("storage refused {doing}: {cause}")]
    Refused { doing: &'static str, cause: String },
    #[error("the storage folder failed while {doing}")]
    Folder {
        doing: &'static str,
        #[source]
        error: io::Error,
    },
    #[error("the multipart upload is unknown to storage, or its parts do not fit together")]
    Multipart,
    #[error("the sealed object {0} cannot be opened: it is damaged, or another one's")]
    Sealed(ObjectKey),
    #[error("the key of the object {0} was destroyed with its project")]
    Shredded(ObjectKey),
}

impl StoreError {
    /// Whether the same call may work in a moment.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    pub const fn is_full(&self) -> bool {
        matches!(self, Self::Full(_))
    }
}
