//! Who a process is: one Ed25519 key, and a certificate for it from the cluster's authority.
//!
//! Invariants: a private key is never logged or shown; a certificate is trusted only if the
//! cluster's authority signed it, and it carries exactly one role; a [`PeerId`] is always the key
//! that the TLS handshake proved.
//! Non-goals: who may do what (tickets, accounts).

mod authority;
mod credentials;
mod member;
mod pin;
mod trust;
mod verifier;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use rustls::pki_types::PrivatePkcs8KeyDer;
use shoal_content::PeerId;
use thiserror::Error;
use zeroize::Zeroizing;

pub use authority::{Authority, CERTIFICATE_LIFETIME, HttpCertificate, Successor};
pub use credentials::{Credentials, ends_at, is_due, peer_of, peer_of_tls};
pub use member::{is_member, member_client};
pub use pin::AuthorityPin;
pub use trust::{Trust, roots};

/// What a process is in the cluster; stands in its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    Node,
    Agent,
}

impl Role {
    pub const ALL: [Self; 2] = [Self::Node, Self::Agent];

    /// The DNS name in the certificate that says the role.
    pub const fn server_name(self) -> &'static str {
        match self {
            Self::Node => "node.shoal.internal",
            Self::Agent => "agent.shoal.internal",
        }
    }
}

#[derive(Debug, Error)]
pub enum Error {
    #[error("the key file {path} cannot be used")]
    File {
        path: String,
        #[source]
        error: io::Error,
    },
    #[error("the private key is no Ed25519 key in PKCS#8")]
    Key,
    #[error("the join token is none: it reads shoal-join-v1.FINGERPRINT.ID.SECRET")]
    JoinToken,
    #[error("the certificate request was refused: {0}")]
    Request(&'static str),
    #[error("a certificate could not be made or read")]
    Certificate(#[from] rcgen::Error),
    #[error("the certificate is no PEM text with at least one certificate")]
    Pem,
    #[error("TLS could not be set up")]
    Tls(#[from] rustls::Error),
    #[error("TLS could not be set up: {0}")]
    Setup(String),
    #[error("the peer showed no certificate of the cluster's with an Ed25519 key and a role")]
    Peer,
}

/// An Ed25519 key pair: the identity of one process.
pub struct KeyPair {
    pair: Ed25519KeyPair,
    pkcs8: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyPair").field("peer", &self.peer_id()).finish_non_exhaustive()
    }
}

impl KeyPair {
    /// A new key from the system's randomness.
    ///
    /// # Errors
    /// Where the system has none to give.
    pub fn generate() -> Result<Self, Error> {
        let document =
            Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| Error::Key)?;
        Self::from_pkcs8_der(document.as_ref())
    }

    /// # Errors
    /// [`Error::Key`] for anything but an Ed25519 key.
    pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, Error> {
        let pair = Ed25519KeyPair::from_pkcs8(der).map_err(|_| Error::Key)?;
        Ok(Self { pair, pkcs8: Zeroizing::new(der.to_vec()) })
    }

    pub fn to_pkcs8_der(&self) -> &[u8] {
        &self.pkcs8
    }

    /// Reads the key at `path`, or makes one there: readable by its owner alone, synced before
    /// this returns.
    ///
    /// # Errors
    /// Where the file cannot be read or written, or holds something else.
    pub fn load_or_create(path: &Path) -> Result<Self, Error> {
        let fail = |error| Error::File { path: path.display().to_string(), error };
        match File::open(path) {
            Ok(mut file) => {
                let mut der = Zeroizing::new(Vec::new());
                file.read_to_end(&mut der).map_err(fail)?;
                Self::from_pkcs8_der(&der)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let pair = Self::generate()?;
                pair.save(path).map_err(fail)?;
                Ok(pair)
            }
            Err(error) => Err(fail(error)),
        }
    }

    /// Write beside, sync, rename, sync the folder: a crash leaves no half key.
    fn save(&self, path: &Path) -> io::Result<()> {
        let part = path.with_extension("part");
        let mut file =
            OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&part)?;
        file.write_all(&self.pkcs8)?;
        file.sync_all()?;
        std::fs::rename(&part, path)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }

    pub fn peer_id(&self) -> PeerId {
        let mut key = [0; 32];
        key.copy_from_slice(self.pair.public_key().as_ref());
        PeerId::from_public_key(key)
    }

    /// An Ed25519 signature (RFC 8032) of `message`.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        signature.copy_from_slice(self.pair.sign(message).as_ref());
        signature
    }

    /// A certificate request (PKCS#10, PEM): proves that the asker holds the key. What it asks
    /// for besides is ignored; the authority decides.
    ///
    /// # Errors
    /// [`Error::Certificate`], where encoding fails.
    pub fn csr_pem(&self) -> Result<String, Error> {
        let params = rcgen::CertificateParams::new(Vec::<String>::new())?;
        Ok(params.serialize_request(&self.for_rcgen()?)?.pem()?)
    }

    /// The seed, for libp2p, whose identity is the same key.
    pub(crate) fn seed(&self) -> Result<Zeroizing<[u8; 32]>, Error> {
        use aws_lc_rs::encoding::{AsBigEndian, Curve25519SeedBin};
        let seed: Curve25519SeedBin<'static> =
            self.pair.seed().map_err(|_| Error::Key)?.as_be_bytes().map_err(|_| Error::Key)?;
        let mut bytes = Zeroizing::new([0; 32]);
        bytes.copy_from_slice(seed.as_ref());
        Ok(bytes)
    }

    fn for_rcgen(&self) -> Result<rcgen::KeyPair, Error> {
        let der = PrivatePkcs8KeyDer::from(self.pkcs8.to_vec());
        Ok(rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ED25519)?)
    }
}

/// Whether `signature` is `public`'s Ed25519 signature of `message`.
pub fn verify_ed25519(public: &[u8; 32], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, public).verify(message, signature).is_ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_kept_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let first = KeyPair::load_or_create(&path).unwrap();
        let second = KeyPair::load_or_create(&path).unwrap();
        assert_eq!(first.peer_id(), second.peer_id());
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(&path, b"no key").unwrap();
        assert!(matches!(KeyPair::load_or_create(&path), Err(Error::Key)));
    }

    #[test]
    fn a_signature_holds_for_its_key_and_message_only() {
        let pair = KeyPair::generate().unwrap();
        let other = KeyPair::generate().unwrap();
        let signature = pair.sign(b"m");
        assert!(verify_ed25519(pair.peer_id().as_public_key(), b"m", &signature));
        assert!(!verify_ed25519(pair.peer_id().as_public_key(), b"n", &signature));
        assert!(!verify_ed25519(other.peer_id().as_public_key(), b"m", &signature));
        assert!(!verify_ed25519(pair.peer_id().as_public_key(), b"m", b"short"));
    }
}
