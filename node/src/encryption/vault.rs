//! The cluster's own secrets, sealed among the metadata like objects in storage: private keys of
//! the authority, of tokens and tickets, of HTTPS and of an ACME account, and what the members of
//! the discovery network share.
//!
//! All of them are sealed with the first data key of the cluster, which stays for as long as the
//! cluster does; another master key wraps it anew, like every data key. A node opens it when it
//! starts, from its own rows, before it needs anybody: its own certificate may have run out.
//!
//! Invariants: a secret opens only in the place that it was sealed for. What was stored before
//! sealing began reads as it is, and the leader seals it.
//! Non-goal: the seeds of second factors, whose key is made of the first key for tokens.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use shoal_metadata::{
    Command, DataKey, Query, Read, SEALED_AT_ONCE_MAX, SealedSecret, Secret, SecretPlace,
};
use shoal_raft::Raft;
use zeroize::Zeroizing;

use super::keys::wrapped;
use super::{Error, MasterKeys};
use crate::store::sealed::{KeyBytes, unwrap, wrap};

/// No key begins like this: PEM begins with a dash, DER with 0x30, JSON with a brace; what is random
/// does with one chance in 2^64.
const SEALED: &[u8; 8] = b"\0sealed\x01";

#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    #[error("{0} is sealed, and this node has not opened the cluster's data key")]
    Closed(SecretPlace),
    #[error("{0} does not open with the cluster's data key: it is damaged")]
    Damaged(SecretPlace),
}

/// See the module's documentation. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Vault {
    masters: Option<MasterKeys>,
    seals: bool,
    key: Arc<OnceLock<DataKeyBytes>>,
}

struct DataKeyBytes(KeyBytes);

impl std::fmt::Debug for DataKeyBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DataKeyBytes(…)")
    }
}

fn purpose(place: SecretPlace) -> Vec<u8> {
    format!("secret: {place}").into_bytes()
}

fn is_sealed(secret: &Secret) -> bool {
    secret.0.starts_with(SEALED)
}

impl Vault {
    /// `seals` is that new secrets are to be sealed.
    pub fn new(masters: Option<MasterKeys>, seals: bool) -> Self {
        Self { masters, seals, key: Arc::default() }
    }

    /// Opens the cluster's data key by the rows of this node, if there is one and it was not opened
    /// yet.
    ///
    /// # Errors
    /// Where this node does not have the master key, or that cannot be asked.
    pub async fn unlock(&self, raft: &Raft) -> Result<(), Error> {
        let first = raft.local().query().first_cluster_key()?;
        self.unlock_with(first).await
    }

    /// The same, by its row.
    ///
    /// # Errors
    /// As above.
    pub async fn unlock_with(&self, first: Option<DataKey>) -> Result<(), Error> {
        let Some(row) = first.filter(|_| self.key.get().is_none()) else { return Ok(()) };
        let Some((master, wrapped)) = wrapped(&row.state) else { return Ok(()) };
        let Some(masters) = &self.masters else { return Err(Error::NoMaster(master.clone())) };
        let bytes = masters.find(master)?.unwrap(row.id, &wrapped.0).await?;
        // Another was as quick.
        let _ = self.key.set(DataKeyBytes(bytes));
        Ok(())
    }

    /// What is stored in `place`.
    ///
    /// # Errors
    /// Where it is sealed and cannot be opened here.
    pub fn open(
        &self,
        place: SecretPlace,
        secret: &Secret,
    ) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let Some(sealed) = secret.0.strip_prefix(SEALED) else {
            return Ok(Zeroizing::new(secret.0.clone()));
        };
        let key = self.key.get().ok_or(VaultError::Closed(place))?;
        unwrap(&key.0, &purpose(place), sealed).ok_or(VaultError::Damaged(place))
    }

    /// As it is to be stored in `place`: sealed, once the cluster seals.
    pub fn seal(&self, place: SecretPlace, secret: Secret) -> Secret {
        match self.key.get() {
            Some(key) if self.seals && !is_sealed(&secret) => {
                let sealed = wrap(&key.0, &purpose(place), &secret.0);
                Secret([&SEALED[..], &sealed].concat())
            }
            _ => secret,
        }
    }

    /// What seals the secrets that are stored as they are; `None` where there are none, or nothing
    /// is sealed yet.
    ///
    /// # Errors
    /// Where the metadata cannot be read.
    pub fn to_seal<R: Read>(
        &self,
        query: Query<'_, R>,
    ) -> Result<Option<Command>, shoal_metadata::Fault> {
        if self.key.get().is_none() || !self.seals {
            return Ok(None);
        }
        let mut secrets = BTreeMap::new();
        let plain = query.secrets()?.into_iter().filter(|(_, secret)| !is_sealed(secret));
        for (place, secret) in plain.take(SEALED_AT_ONCE_MAX) {
            let of = *blake3::hash(&secret.0).as_bytes();
            secrets.insert(place, SealedSecret { of, sealed: self.seal(place, secret) });
        }
        Ok((!secrets.is_empty()).then_some(Command::SealSecrets { secrets }))
    }
}

#[cfg(test)]
mod tests {
    use shoal_metadata::KeyPurpose;

    use super::*;
    use crate::store::sealed::KEY_BYTES;

    fn vault(byte: u8) -> Vault {
        let key = OnceLock::from(DataKeyBytes(Zeroizing::new([byte; KEY_BYTES])));
        Vault { masters: None, seals: true, key: Arc::new(key) }
    }

    #[test]
    fn a_secret_opens_in_its_place_with_its_key_alone() {
        let secret = || Secret(b"-----BEGIN PRIVATE KEY-----".to_vec());
        let (place, other) = (SecretPlace::Authority, SecretPlace::Signing(KeyPurpose::Token, 0));
        let sealed = vault(1).seal(place, secret());
        assert!(!sealed.0.windows(5).any(|bytes| bytes == b"BEGIN"));
        assert_eq!(*vault(1).open(place, &sealed).unwrap(), secret().0);
        assert!(matches!(vault(1).open(other, &sealed), Err(VaultError::Damaged(_))));
        assert!(matches!(vault(2).open(place, &sealed), Err(VaultError::Damaged(_))));
        assert!(matches!(Vault::default().open(place, &sealed), Err(VaultError::Closed(_))));
        for at in 0..sealed.0.len() {
            let cut = Secret(sealed.0[..at].to_vec());
            // What is shorter than the mark is taken for what it says.
            let opened = vault(1).open(place, &cut);
            assert!(opened.is_err() || at < SEALED.len(), "{at}");
        }
        // Once is enough.
        assert_eq!(vault(1).seal(place, sealed.clone()), sealed);
    }

    #[test]
    fn what_was_stored_before_reads_as_it_is() {
        let secret = Secret(vec![0x30, 0x2e]);
        for vault in [Vault::default(), vault(1)] {
            assert_eq!(*vault.open(SecretPlace::HttpKey, &secret).unwrap(), secret.0);
        }
        assert_eq!(Vault::default().seal(SecretPlace::HttpKey, secret.clone()), secret);
    }
}
