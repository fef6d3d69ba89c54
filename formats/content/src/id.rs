//! Ids: opaque, fixed in size, and different in type where they differ in meaning.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

/// A text that is no id of the kind asked for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{wanted}")]
pub struct IdError {
    pub(crate) wanted: &'static str,
}

/// Gives a 32-byte newtype its text form: 64 lower-case hexadecimal digits.
macro_rules! hex_text {
    ($name:ident, $wanted:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), hex::encode(&self.0[..6]))
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::id::IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let mut bytes = [0; 32];
                hex::decode_to_slice(text, &mut bytes).map_err(|_| IdError { wanted: $wanted })?;
                Ok(Self(bytes))
            }
        }

        $crate::id::text_or_compact!($name, [u8; 32], <$name as std::str::FromStr>::from_str);
    };
}
pub(crate) use hex_text;

/// Orders a 32-byte newtype by its bytes. Swarms keep ids in ordered maps and look them up for
/// every message: the first eight bytes, as a number, almost always decide.
macro_rules! ordered_by_bytes {
    ($name:ident) => {
        impl Ord for $name {
            fn cmp(&self, other: &Self) -> std::cmp::Ordering {
                let lead = |[a, b, c, d, e, f, g, h, ..]: [u8; 32]| {
                    u64::from_be_bytes([a, b, c, d, e, f, g, h])
                };
                let first = lead(self.0).cmp(&lead(other.0));
                if first.is_ne() || self.0 == other.0 { first } else { self.0.cmp(&other.0) }
            }
        }

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
                Some(self.cmp(other))
            }
        }
    };
}
pub(crate) use ordered_by_bytes;

/// Serializes a newtype as its text where people read it (JSON), else as what it wraps; `$read` makes
/// one of a text.
macro_rules! text_or_compact {
    ($name:ident, $inner:ty, $read:expr) => {
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serde::Serialize::serialize(&self.0, serializer)
                }
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let text = <String as serde::Deserialize>::deserialize(deserializer)?;
                    $read(&text).map_err(serde::de::Error::custom)
                } else {
                    <$inner as serde::Deserialize>::deserialize(deserializer).map(Self)
                }
            }
        }
    };
}
pub(crate) use text_or_compact;

/// Makes an id of a UUID with a short prefix, as it appears in the REST API. `parse` wants the prefix,
/// which tells an id from a name or a tag; where nothing else can stand, in JSON and in paths, the UUID
/// alone is read as well, since others keep ids in columns for UUIDs.
macro_rules! prefixed_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }

            /// From a UUID that the caller made: this crate has no randomness of its own.
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            pub const fn as_uuid(&self) -> &Uuid {
                &self.0
            }

            fn with_prefix_or_without(text: &str) -> Result<Self, IdError> {
                Uuid::try_parse(text).map_or_else(|_| text.parse(), |uuid| Ok(Self(uuid)))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0.simple())
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                text.strip_prefix($prefix)
                    .and_then(|rest| Uuid::try_parse(rest).ok())
                    .map(Self)
                    .ok_or(IdError { wanted: concat!("an id of this kind is '", $prefix, "' and a UUID") })
            }
        }

        text_or_compact!($name, Uuid, $name::with_prefix_or_without);
    };
}

prefixed_id!(
    /// The whole cluster, chosen when it is founded.
    ClusterId, "cluster-"
);
prefixed_id!(
    /// One image (repository); survives a rename.
    ImageId, "img-"
);
prefixed_id!(
    /// One immutable version of an image.
    VersionId, "ver-"
);
prefixed_id!(
    /// One upload session.
    UploadId, "upload-"
);
prefixed_id!(
    /// One deployment order.
    DeploymentId, "dep-"
);
prefixed_id!(
    /// One order to look for vulnerabilities in a version.
    ScanId, "scan-"
);
prefixed_id!(
    /// One key that objects in storage are sealed with.
    DataKeyId, "datakey-"
);
prefixed_id!(
    /// One transfer of one recipe on one agent.
    TransferId, "transfer-"
);

/// One server in the Raft group. Never used again after its disk was wiped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(u64);

impl NodeId {
    /// `number` is at least 1; 0 is refused by [`FromStr`] and never given out.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    pub const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for NodeId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        match text.parse() {
            Ok(number) if number > 0 => Ok(Self(number)),
            _ => Err(IdError { wanted: "a node id is a whole number from 1" }),
        }
    }
}

/// A process that takes part in swarms, agent or node: its Ed25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeerId([u8; 32]);
ordered_by_bytes!(PeerId);

impl PeerId {
    /// From the 32 raw bytes of an Ed25519 public key.
    pub const fn from_public_key(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub const fn as_public_key(&self) -> &[u8; 32] {
        &self.0
    }
}

hex_text!(PeerId, "a peer id is 64 hexadecimal digits");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_in_the_order_of_their_bytes() {
        let bytes = |place: usize, value: u8| {
            let mut bytes = [7; 32];
            bytes[place] = value;
            bytes
        };
        let all: Vec<[u8; 32]> = [0, 6, 7, 8, 31]
            .into_iter()
            .flat_map(|place| [0, 7, 8, 255].map(|value| bytes(place, value)))
            .collect();
        for &one in &all {
            for &other in &all {
                let ids = [one, other].map(PeerId::from_public_key);
                assert_eq!(ids[0].cmp(&ids[1]), one.cmp(&other), "{one:?} and {other:?}");
            }
        }
    }

    #[test]
    fn ids_are_text_in_json_and_compact_elsewhere() {
        let peer = PeerId::from_public_key([9; 32]);
        let json = serde_json::to_string(&peer).unwrap();
        assert_eq!(json, format!("\"{peer}\""));
        assert_eq!(serde_json::from_str::<PeerId>(&json).unwrap(), peer);
        assert_eq!(postcard::to_allocvec(&peer).unwrap(), [9; 32]);
        let image = ImageId::from_uuid(Uuid::from_u128(7));
        assert_eq!(serde_json::to_value(image).unwrap(), image.to_string());
        let bytes = postcard::to_allocvec(&image).unwrap();
        assert_eq!(postcard::from_bytes::<ImageId>(&bytes).unwrap(), image);
        assert!(serde_json::from_str::<ImageId>("\"ver-0\"").is_err());
    }

    #[test]
    fn an_id_is_a_uuid_alone_where_nothing_else_can_stand() {
        let id = VersionId::from_uuid(Uuid::from_u128(7));
        let read = |text: String| serde_json::from_value::<VersionId>(text.into()).ok();
        for text in [id.as_uuid().to_string(), id.as_uuid().simple().to_string()] {
            assert_eq!(read(text.clone()), Some(id));
            assert!(text.parse::<VersionId>().is_err(), "{text} may be a tag");
        }
        assert_eq!(read(format!("img-{}", id.as_uuid())), None);
    }

    #[test]
    fn ids_survive_a_round_trip_and_refuse_each_other() {
        let id = ImageId::from_uuid(Uuid::from_u128(7));
        assert_eq!(id.to_string().parse::<ImageId>(), Ok(id));
        assert!(id.to_string().parse::<VersionId>().is_err());
        assert!("0".parse::<NodeId>().is_err());
        let peer = PeerId::from_public_key([9; 32]);
        assert_eq!(peer.to_string().parse::<PeerId>(), Ok(peer));
        assert!("09".parse::<PeerId>().is_err());
    }
}
