//! The certificate for HTTPS that the nodes share, and what ordering it takes (RFC 8555).
//!
//! One node at a time orders, the leader; should two for a moment, the later one stands, and either
//! certificate will do.

use std::collections::BTreeMap;

use super::{Step, Stop};
use crate::command::{Refusal, Response};
use crate::key;
use crate::record::{AcmeAccount, HttpCertificate};
use crate::table::{Read, Table};

/// One for each name of a certificate; ACME servers allow a hundred names.
const CHALLENGES_MAX: usize = 100;
/// A token, or the answer to it, is some dozens of letters (RFC 8555, sections 8.1 and 8.3).
const CHALLENGE_BYTES_MAX: usize = 1024;
/// Of a chain, a key or an account.
const PEM_BYTES_MAX: usize = 256 * 1024;

impl<R: Read> Step<'_, R> {
    pub(super) fn put_acme_account(&mut self, account: &AcmeAccount) -> Result<Response, Stop> {
        within(account.credentials.0.len(), PEM_BYTES_MAX)?;
        self.rows.put(Table::Cluster, key::ACME_ACCOUNT, account);
        Ok(Response::Done)
    }

    pub(super) fn put_acme_challenges(
        &mut self,
        answers: &BTreeMap<String, String>,
    ) -> Result<Response, Stop> {
        within(answers.len(), CHALLENGES_MAX)?;
        for (token, answer) in answers {
            within(token.len().max(answer.len()), CHALLENGE_BYTES_MAX)?;
        }
        if answers.is_empty() {
            self.rows.remove(Table::Cluster, key::ACME_CHALLENGES);
        } else {
            self.rows.put(Table::Cluster, key::ACME_CHALLENGES, answers);
        }
        Ok(Response::Done)
    }

    pub(super) fn put_http_certificate(
        &mut self,
        certificate: &HttpCertificate,
    ) -> Result<Response, Stop> {
        within(certificate.names.len(), CHALLENGES_MAX)?;
        within(certificate.chain.len().max(certificate.key.0.len()), PEM_BYTES_MAX)?;
        self.rows.put(Table::Cluster, key::HTTP_CERTIFICATE, certificate);
        Ok(Response::Done)
    }
}

fn within(found: usize, most: usize) -> Result<(), Refusal> {
    let text = || format!("{found} where {most} are the most, for an ACME certificate");
    if found <= most { Ok(()) } else { Err(Refusal::Limit(text())) }
}
