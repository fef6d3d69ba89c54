//! OCI digests: `algorithm:hex` (image-spec, "Digests").

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The registered algorithms that Shoal stores content under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// The length of a raw digest, in bytes.
    pub const fn byte_len(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }
}

impl FromStr for Algorithm {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        match text {
            "sha256" => Ok(Self::Sha256),
            "sha512" => Ok(Self::Sha512),
            _ => Err(DigestError::Algorithm),
        }
    }
}

/// Why a text is no digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DigestError {
    #[error("a digest is an algorithm, a colon and hexadecimal digits")]
    Shape,
    #[error("only sha256 and sha512 digests are supported")]
    Algorithm,
    #[error("a digest's hexadecimal part has the wrong length or digits; it is lower case")]
    Encoded,
}

/// The digest of some bytes under a named algorithm.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    /// The first [`Algorithm::byte_len`] bytes count; the rest is zero.
    bytes: [u8; 64],
}

impl Digest {
    pub fn sha256(bytes: [u8; 32]) -> Self {
        let mut all = [0; 64];
        all[..32].copy_from_slice(&bytes);
        Self { algorithm: Algorithm::Sha256, bytes: all }
    }

    pub fn sha512(bytes: [u8; 64]) -> Self {
        Self { algorithm: Algorithm::Sha512, bytes }
    }

    /// A checksum as files of checksums have it: also in upper case, and without its algorithm, which
    /// its length says then.
    ///
    /// # Errors
    /// See [`DigestError`].
    pub fn of_checksum(text: &str) -> Result<Self, DigestError> {
        let text = text.trim().to_ascii_lowercase();
        match text.len() {
            _ if text.contains(':') => text.parse(),
            64 => format!("sha256:{text}").parse(),
            128 => format!("sha512:{text}").parse(),
            _ => Err(DigestError::Shape),
        }
    }

    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.algorithm.byte_len()]
    }

    /// The hexadecimal part.
    pub fn encoded(&self) -> String {
        hex::encode(self.as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.as_str(), self.encoded())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (algorithm, encoded) = text.split_once(':').ok_or(DigestError::Shape)?;
        let algorithm: Algorithm = algorithm.parse()?;
        if encoded.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(DigestError::Encoded);
        }
        let mut bytes = [0; 64];
        hex::decode_to_slice(encoded, &mut bytes[..algorithm.byte_len()])
            .map_err(|_| DigestError::Encoded)?;
        Ok(Self { algorithm, bytes })
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes_and_refuses_the_rest() {
        let digest = Digest::sha256([0xab; 32]);
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert_eq!("sha256:baddigeststring".parse::<Digest>(), Err(DigestError::Encoded));
        assert_eq!("md5:00".parse::<Digest>(), Err(DigestError::Algorithm));
        assert_eq!("sha256".parse::<Digest>(), Err(DigestError::Shape));
        let upper = format!("sha256:{}", "AB".repeat(32));
        assert_eq!(upper.parse::<Digest>(), Err(DigestError::Encoded));
        assert_eq!(Digest::sha512([1; 64]).to_string().parse(), Ok(Digest::sha512([1; 64])));
    }

    #[test]
    fn a_checksum_is_read_as_people_copy_it() {
        let (short, long) = (Digest::sha256([0xab; 32]), Digest::sha512([0xab; 64]));
        for (digest, bytes) in [(&short, 32), (&long, 64)] {
            let digits = "Ab".repeat(bytes);
            for text in [digest.to_string(), digits.clone(), format!(" {digits}\n")] {
                assert_eq!(Digest::of_checksum(&text).as_ref(), Ok(digest), "{text}");
            }
        }
        assert_eq!(
            Digest::of_checksum(&"AB".repeat(32).replace('A', "g")),
            Err(DigestError::Encoded)
        );
        for text in ["", "ab", "md5:00", "d41d8cd98f00b204e9800998ecf8427e"] {
            assert!(Digest::of_checksum(text).is_err(), "{text}");
        }
        let other = format!("SHA256:{}", "AB".repeat(32));
        assert_eq!(Digest::of_checksum(&other), Ok(short));
    }
}
