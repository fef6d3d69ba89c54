//! Whether the bytes of an object are what it is named by.

use sha2::{Digest as _, Sha256, Sha512};
use shoal_content::{Algorithm, Digest, ObjectKey};
use thiserror::Error;

use super::Needed;

/// What is wrong with an object.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Flaw {
    #[error("it is missing")]
    Missing,
    #[error("it has {found} bytes, not {expected}")]
    Size { expected: u64, found: u64 },
    #[error("its bytes are not what it is named by")]
    Content,
}

/// Takes an object's bytes as they pass.
#[derive(Debug)]
pub struct Check {
    hash: Hash,
    bytes: u64,
    size: Option<u64>,
    expected: Expected,
}

#[derive(Debug)]
enum Hash {
    Blake3(Box<blake3::Hasher>),
    Sha256(Sha256),
    Sha512(Sha512),
}

#[derive(Debug)]
enum Expected {
    /// BLAKE3 in hexadecimal digits.
    Name(String),
    Digest(Digest),
    /// Nothing says what its bytes are.
    Any,
}

impl Needed {
    /// Whether an object of so many bytes can be it.
    ///
    /// # Errors
    /// [`Flaw::Size`].
    pub fn check_size(&self, found: u64) -> Result<(), Flaw> {
        match self.size {
            Some(expected) if expected != found => Err(Flaw::Size { expected, found }),
            // Packs and recipes are never empty.
            None if found == 0 => Err(Flaw::Size { expected: 1, found }),
            _ => Ok(()),
        }
    }
}

impl Check {
    pub fn new(needed: &Needed) -> Self {
        let blake3 = || Hash::Blake3(Box::default());
        let (hash, expected) = match (&needed.digest, needed.key) {
            (Some(digest), _) => {
                let hash = match digest.algorithm() {
                    Algorithm::Sha256 => Hash::Sha256(Sha256::new()),
                    Algorithm::Sha512 => Hash::Sha512(Sha512::new()),
                };
                (hash, Expected::Digest(digest.clone()))
            }
            (None, ObjectKey::Pack(id)) => (blake3(), Expected::Name(id.to_string())),
            (None, ObjectKey::Recipe(id)) => (blake3(), Expected::Name(id.to_string())),
            (None, _) => (blake3(), Expected::Any),
        };
        Self { hash, bytes: 0, size: needed.size, expected }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        match &mut self.hash {
            Hash::Blake3(hash) => {
                hash.update(bytes);
            }
            Hash::Sha256(hash) => hash.update(bytes),
            Hash::Sha512(hash) => hash.update(bytes),
        }
    }

    /// # Errors
    /// What is wrong with the bytes that passed.
    pub fn finish(self) -> Result<(), Flaw> {
        if let Some(expected) = self.size
            && expected != self.bytes
        {
            return Err(Flaw::Size { expected, found: self.bytes });
        }
        let right = match (self.hash, self.expected) {
            (_, Expected::Any) => true,
            (Hash::Blake3(hash), Expected::Name(name)) => hash.finalize().to_hex().as_str() == name,
            (Hash::Sha256(hash), Expected::Digest(digest)) => {
                Digest::sha256(hash.finalize().into()) == digest
            }
            (Hash::Sha512(hash), Expected::Digest(digest)) => {
                Digest::sha512(hash.finalize().into()) == digest
            }
            _ => false,
        };
        if right { Ok(()) } else { Err(Flaw::Content) }
    }
}

#[cfg(test)]
mod tests {
    use shoal_content::{PackId, RecipeId};

    use super::*;

    fn check(needed: &Needed, bytes: &[u8]) -> Result<(), Flaw> {
        let mut check = Check::new(needed);
        for piece in bytes.chunks(3) {
            check.update(piece);
        }
        check.finish()
    }

    #[test]
    fn bytes_are_held_against_name_digest_and_size() {
        let sha = Digest::sha256(Sha256::digest(b"content").into());
        let long = Digest::sha512(Sha512::digest(b"content").into());
        let blob = ObjectKey::Blob(format!("upload-{:032x}", 9).parse().unwrap());
        let needed = |key, size, digest| Needed { key, size, digest };
        for good in [
            needed(blob, Some(7), Some(sha)),
            needed(blob, None, Some(long)),
            needed(ObjectKey::Pack(PackId::of(b"content")), None, None),
            needed(ObjectKey::Recipe(RecipeId::of(b"content")), None, None),
        ] {
            assert_eq!(check(&good, b"content"), Ok(()));
            assert!(check(&good, b"kontent").is_err());
            assert!(check(&good, b"conten").is_err());
        }
        let short = needed(blob, Some(8), None);
        assert_eq!(check(&short, b"content"), Err(Flaw::Size { expected: 8, found: 7 }));
        assert_eq!(short.check_size(8), Ok(()));
    }
}
