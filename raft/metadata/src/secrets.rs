//! What only the nodes may know among the rows: private keys, and what stands for them.
//!
//! A node can seal each in its place with a data key of the cluster. Here they are bytes, sealed or
//! not.
//!
//! Invariant: a secret is replaced by its sealed form only as long as it is the one that was sealed.
//! Non-goals: ciphers; the seeds of second factors, which are sealed with a key that is made of the
//! first one for tokens. Secrets that were stored before they were sealed stay in older snapshots,
//! logs and backups.

use serde::{Deserialize, Serialize};

use crate::keys::KeyPurpose;
use crate::query::Query;
use crate::record::Secret;
use crate::table::{Fault, Read, Table};
use crate::transaction::row;

/// Of a secret in its sealed form: an account at an ACME server is the longest, with some KiB.
pub const SEALED_BYTES_MAX: usize = 64 * 1024;
/// Secrets of one command.
pub const SEALED_AT_ONCE_MAX: usize = 64;

/// Which secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SecretPlace {
    /// The private key of the authority that came with the cluster.
    Authority,
    /// What members of the discovery network share.
    Network,
    /// One that signs, by its number.
    Signing(KeyPurpose, u32),
    /// The account at an ACME server.
    AcmeAccount,
    /// The private key of the certificate that an ACME server has issued.
    HttpKey,
    /// The private key of an authority that came later, by its number.
    LaterAuthority(u32),
}

impl SecretPlace {
    /// That of an authority's private key.
    pub fn of_authority(number: u32) -> Self {
        if number == 0 { Self::Authority } else { Self::LaterAuthority(number) }
    }
}

impl std::fmt::Display for SecretPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Authority => f.write_str("the authority's key"),
            Self::Network => f.write_str("the discovery network's key"),
            Self::Signing(purpose, number) => write!(f, "{} key {number}", purpose.name()),
            Self::AcmeAccount => f.write_str("the ACME account"),
            Self::HttpKey => f.write_str("the HTTPS key"),
            Self::LaterAuthority(number) => write!(f, "the key of authority {number}"),
        }
    }
}

/// A secret in its sealed form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedSecret {
    /// The BLAKE3 of what is there; where it is something else by now, this counts for nothing.
    pub of: [u8; 32],
    pub sealed: Secret,
}

impl<R: Read> Query<'_, R> {
    /// All of them, as they are stored. A first signing key that has a successor is stored twice,
    /// and comes twice where the two differ.
    ///
    /// # Errors
    /// Where the metadata cannot be read.
    pub fn secrets(&self) -> Result<Vec<(SecretPlace, Secret)>, Fault> {
        let Some(cluster) = self.cluster()? else { return Ok(Vec::new()) };
        let mut secrets = vec![
            (SecretPlace::Network, cluster.network_key),
            (SecretPlace::Signing(KeyPurpose::Token, 0), cluster.token_key),
            (SecretPlace::Signing(KeyPurpose::Ticket, 0), cluster.ticket_key),
        ];
        for one in self.authorities()? {
            secrets.extend(one.key.map(|key| (SecretPlace::of_authority(one.number), key)));
        }
        for purpose in KeyPurpose::ALL {
            for key in self.signing_keys(purpose)? {
                let one = (SecretPlace::Signing(purpose, key.number), key.private);
                if !secrets.contains(&one) {
                    secrets.push(one);
                }
            }
        }
        let account = self.acme_account()?;
        secrets.extend(account.map(|account| (SecretPlace::AcmeAccount, account.credentials)));
        let certificate = self.http_certificate()?;
        secrets.extend(certificate.map(|certificate| (SecretPlace::HttpKey, certificate.key)));
        Ok(secrets)
    }

    /// The keys of a purpose that were made since the cluster was founded, and the first while it
    /// is good.
    pub(crate) fn rotated_keys(
        &self,
        purpose: KeyPurpose,
    ) -> Result<Option<Vec<crate::keys::SigningKey>>, Fault> {
        row(self.read, Table::Cluster, crate::key::signing_keys(purpose))
    }
}
