//! The hash of a blob on its way in, which a checkpoint keeps between requests.

use sha2::digest::common::hazmat::{SerializableState, SerializedState};
use sha2::{Digest as _, Sha256, Sha512};
use shoal_content::{Algorithm, Digest};

/// The one hash that is computed as the bytes come; a second one would cost as much as all else.
#[derive(Debug, Clone)]
pub enum Hash {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hash {
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    pub fn digest(self) -> Digest {
        match self {
            Self::Sha256(hash) => Digest::sha256(hash.finalize().into()),
            Self::Sha512(hash) => Digest::sha512(hash.finalize().into()),
        }
    }

    /// Its midstate, with a number for the algorithm that is stored.
    pub fn save(&self) -> (u8, Vec<u8>) {
        match self {
            Self::Sha256(hash) => (1, hash.serialize().to_vec()),
            Self::Sha512(hash) => (2, hash.serialize().to_vec()),
        }
    }

    pub fn restore(algorithm: u8, bytes: &[u8]) -> Option<Self> {
        match algorithm {
            1 => restore_hash(bytes).map(Self::Sha256),
            2 => restore_hash(bytes).map(Self::Sha512),
            _ => None,
        }
    }
}

fn restore_hash<H: SerializableState>(bytes: &[u8]) -> Option<H> {
    let state = SerializedState::<H>::try_from(bytes).ok()?;
    H::deserialize(&state).ok()
}
