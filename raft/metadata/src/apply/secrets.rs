//! Secrets are sealed where they are.

use std::collections::BTreeMap;

use super::{Step, Stop};
use crate::command::{Refusal, Response, Subject};
use crate::key;
use crate::keys::KeyPurpose;
use crate::record::Secret;
use crate::secrets::{SEALED_AT_ONCE_MAX, SEALED_BYTES_MAX, SealedSecret, SecretPlace};
use crate::table::{Fault, Read, Table};

impl<R: Read> Step<'_, R> {
    /// What is not there any more, or was replaced since it was sealed, stays as it is.
    pub(super) fn seal_secrets(
        &mut self,
        secrets: BTreeMap<SecretPlace, SealedSecret>,
    ) -> Result<Response, Stop> {
        if secrets.len() > SEALED_AT_ONCE_MAX {
            return Err(Refusal::Limit(format!("{SEALED_AT_ONCE_MAX} at once")).into());
        }
        if secrets.values().any(|one| one.sealed.0.len() > SEALED_BYTES_MAX) {
            return Err(Refusal::Limit(format!("{SEALED_BYTES_MAX} bytes of a secret")).into());
        }
        if self.query().cluster()?.is_none() {
            return Err(Refusal::NotFound(Subject::Cluster).into());
        }
        for (place, secret) in secrets {
            self.seal_secret(place, secret)?;
        }
        Ok(Response::Done)
    }

    fn seal_secret(&mut self, place: SecretPlace, secret: SealedSecret) -> Result<(), Fault> {
        match place {
            SecretPlace::AcmeAccount => {
                if let Some(mut account) = self.query().acme_account()?
                    && replace(&mut account.credentials, secret)
                {
                    self.rows.put(Table::Cluster, key::ACME_ACCOUNT, &account);
                }
            }
            SecretPlace::HttpKey => {
                if let Some(mut certificate) = self.query().http_certificate()?
                    && replace(&mut certificate.key, secret)
                {
                    self.rows.put(Table::Cluster, key::HTTP_CERTIFICATE, &certificate);
                }
            }
            SecretPlace::Authority | SecretPlace::Network => self.seal_founded(place, secret)?,
            SecretPlace::LaterAuthority(number) => {
                if let Some(mut all) = self.query().rotated_authorities()? {
                    let found = all.iter_mut().find(|one| one.number == number);
                    let key = found.and_then(|one| one.key.as_mut());
                    if key.is_some_and(|key| replace(key, secret)) {
                        self.rows.put(Table::Cluster, key::AUTHORITIES, &all);
                    }
                }
            }
            SecretPlace::Signing(purpose, number) => {
                if let Some(mut keys) = self.query().rotated_keys(purpose)? {
                    let found = keys.iter_mut().find(|key| key.number == number);
                    if found.is_some_and(|key| replace(&mut key.private, secret.clone())) {
                        self.rows.put(Table::Cluster, key::signing_keys(purpose), &keys);
                    }
                }
                if number == 0 {
                    self.seal_founded(place, secret)?;
                }
            }
        }
        Ok(())
    }

    /// One of those that came with the cluster.
    fn seal_founded(&mut self, place: SecretPlace, secret: SealedSecret) -> Result<(), Fault> {
        let Some(mut cluster) = self.query().cluster()? else { return Ok(()) };
        let field = match place {
            SecretPlace::Authority => &mut cluster.authority_key,
            SecretPlace::Network => &mut cluster.network_key,
            SecretPlace::Signing(KeyPurpose::Token, _) => &mut cluster.token_key,
            SecretPlace::Signing(KeyPurpose::Ticket, _) => &mut cluster.ticket_key,
            SecretPlace::AcmeAccount | SecretPlace::HttpKey | SecretPlace::LaterAuthority(_) => {
                return Ok(());
            }
        };
        if replace(field, secret) {
            self.rows.put(Table::Cluster, b"", &cluster);
        }
        Ok(())
    }
}

/// Whether it was the one that was sealed.
fn replace(secret: &mut Secret, by: SealedSecret) -> bool {
    let is_the_one = *blake3::hash(&secret.0).as_bytes() == by.of;
    if is_the_one {
        *secret = by.sealed;
    }
    is_the_one
}
