//! Keys in central storage. An object is immutable once it is published under its key.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use crate::id::{IdError, UploadId, hex_text, ordered_by_bytes};

/// A pack, by the BLAKE3 of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId([u8; 32]);
hex_text!(PackId, "a pack id is 64 hexadecimal digits");

impl PackId {
    pub fn of(pack: &[u8]) -> Self {
        Self(*blake3::hash(pack).as_bytes())
    }
}

/// A recipe, by the BLAKE3 of its encoded bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RecipeId([u8; 32]);
hex_text!(RecipeId, "a recipe id is 64 hexadecimal digits");
ordered_by_bytes!(RecipeId);

impl RecipeId {
    pub fn of(encoded: &[u8]) -> Self {
        Self(*blake3::hash(encoded).as_bytes())
    }

    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Where an object lies in central storage.
///
/// A blob is stored under the id of the upload that brought it, not under its digest: bytes go to
/// their final key while the digest is still unknown, and a commit copies nothing. The metadata
/// map digests to keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ObjectKey {
    Blob(UploadId),
    Pack(PackId),
    Recipe(RecipeId),
    /// One received part of a disk upload; removed when the upload ends.
    UploadPart {
        upload: UploadId,
        part: u32,
    },
    /// What an OCI upload must remember between two requests (see `shoal-node`, `registry`).
    UploadCheckpoint {
        upload: UploadId,
        /// One that no other checkpoint of the upload has: two nodes may write one at once.
        number: u64,
    },
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Two hexadecimal digits of fan-out keep a folder store's folders small. A version 7 UUID
        // starts with the time, so its fan-out is taken from the random end.
        match self {
            Self::Blob(upload) => {
                let id = upload.as_uuid().simple().to_string();
                write!(f, "blobs/{}/{id}", &id[30..])
            }
            Self::Pack(pack) => {
                let id = pack.to_string();
                write!(f, "packs/{}/{id}", &id[..2])
            }
            Self::Recipe(recipe) => {
                let id = recipe.to_string();
                write!(f, "recipes/{}/{id}", &id[..2])
            }
            Self::UploadPart { upload, part } => {
                write!(f, "{}part-{part:010}", Self::of_upload(*upload))
            }
            Self::UploadCheckpoint { upload, number } => {
                write!(f, "{}checkpoint-{number:020}", Self::of_upload(*upload))
            }
        }
    }
}

impl ObjectKey {
    /// What the keys of an upload's parts and checkpoints start with.
    pub fn of_upload(upload: UploadId) -> String {
        format!("uploads/{}/", upload.as_uuid().simple())
    }
}

/// A storage key that names no object of ours.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{0}' is not the key of an object of Shoal's")]
pub struct ObjectKeyError(String);

impl FromStr for ObjectKey {
    type Err = ObjectKeyError;

    fn from_str(text: &str) -> Result<Self, ObjectKeyError> {
        let refuse = || ObjectKeyError(text.chars().take(128).collect());
        let upload = |text: &str| Uuid::try_parse(text).ok().map(UploadId::from_uuid);
        let parts: Vec<&str> = text.splitn(4, '/').collect();
        let key = match parts.as_slice() {
            ["blobs", _, id] => upload(id).map(Self::Blob),
            ["packs", _, id] => id.parse().ok().map(Self::Pack),
            ["recipes", _, id] => id.parse().ok().map(Self::Recipe),
            ["uploads", id, rest] => upload(id).and_then(|upload| {
                if let Some(part) = rest.strip_prefix("part-") {
                    part.parse().ok().map(|part| Self::UploadPart { upload, part })
                } else {
                    let number = rest.strip_prefix("checkpoint-")?.parse().ok()?;
                    Some(Self::UploadCheckpoint { upload, number })
                }
            }),
            _ => None,
        };
        // Only the one spelling that we write is ours.
        key.filter(|key| key.to_string() == text).ok_or_else(refuse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_a_round_trip() {
        let upload = UploadId::from_uuid(Uuid::from_u128(0x1234_5678));
        for key in [
            ObjectKey::Blob(upload),
            ObjectKey::Pack(PackId::of(b"x")),
            ObjectKey::Recipe(RecipeId::of(b"y")),
            ObjectKey::UploadPart { upload, part: 17 },
            ObjectKey::UploadCheckpoint { upload, number: 1 << 40 },
            ObjectKey::UploadCheckpoint { upload, number: u64::MAX },
        ] {
            assert_eq!(key.to_string().parse(), Ok(key));
        }
        assert!("blobs/../etc/passwd".parse::<ObjectKey>().is_err());
        assert!("packs/00/xyz".parse::<ObjectKey>().is_err());
    }
}
