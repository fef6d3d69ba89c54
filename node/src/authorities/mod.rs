//! The cluster's certificate authorities as the metadata have them: which one signs, which are
//! believed, and what leads from older ones to it.
//!
//! While one takes the place of another, what the new one signs is good for those who have not heard
//! of it: behind each certificate stand those by which every authority has vouched for the next. They
//! stay after the old one was retired, and its certificate with them, so that a host that was away all
//! the time, and whoever has a join token of before, finds the way over HTTPS, where a host says who it is
//! by its own key. A certificate of a retired authority lets nobody in.
//!
//! Non-goals: when a rotation goes on (`rotation`, and the metadata's `apply/authority`); this node's own
//! certificates (`renewal`).

pub mod rotation;

use std::sync::Arc;

use parking_lot::RwLock;
use shoal_api::AuthorityNews;
use shoal_metadata::{
    AuthorityState, ClusterAuthority, Fault, Query, Read, SecretPlace, signing_authority,
};
use shoal_p2p::identity::{
    self, Authority, AuthorityPin, Credentials, HttpCertificate, Role, Successor,
};
use thiserror::Error;

use crate::encryption::{Vault, VaultError};

#[derive(Debug, Error)]
pub enum Error {
    #[error("the metadata cannot be read")]
    Read(#[from] Fault),
    #[error("the cluster has no authority that signs")]
    None,
    #[error("authority {number} of the cluster cannot be used")]
    Authority {
        number: u32,
        #[source]
        error: identity::Error,
    },
    #[error("a certificate cannot be made")]
    Issue(#[from] identity::Error),
    #[error(transparent)]
    Sealed(#[from] VaultError),
}

/// What there is at one moment.
#[derive(Debug)]
pub struct Held {
    /// Oldest first.
    rows: Vec<ClusterAuthority>,
    /// The place of the one that signs.
    at: usize,
    signer: Authority,
}

impl Held {
    /// `None` before there is a cluster.
    ///
    /// # Errors
    /// Where the rows cannot be read, or what is in them cannot be opened.
    pub fn read<R: Read>(query: Query<'_, R>, vault: &Vault) -> Result<Option<Self>, Error> {
        let rows = query.authorities()?;
        if rows.is_empty() { Ok(None) } else { Self::of_rows(rows, vault).map(Some) }
    }

    fn of_rows(rows: Vec<ClusterAuthority>, vault: &Vault) -> Result<Self, Error> {
        let at = signing_authority(&rows).ok_or(Error::None)?;
        let row = &rows[at];
        let number = row.number;
        let key = row.key.as_ref().ok_or(Error::None)?;
        let key = vault.open(SecretPlace::of_authority(number), key)?;
        let broken = |error| Error::Authority { number, error };
        let text = std::str::from_utf8(&key).map_err(|_| broken(identity::Error::Key))?;
        let signer = Authority::load(&row.certificate, text).map_err(broken)?;
        Ok(Self { rows, at, signer })
    }

    /// Of the one that signs.
    pub fn number(&self) -> u32 {
        self.rows[self.at].number
    }

    pub fn newest(&self) -> u32 {
        self.rows.last().map_or(0, |last| last.number)
    }

    pub fn signer(&self) -> &Authority {
        &self.signer
    }

    /// How far the rows are, so that a state of before is known for one.
    fn progress(&self) -> (u32, u32, u32) {
        let believed = self.rows.iter().find(|one| one.is_believed());
        (self.newest(), self.number(), believed.map_or(0, |one| one.number))
    }

    /// Those that are believed, PEM, oldest first.
    pub fn believed_pem(&self) -> String {
        let believed = self.rows.iter().filter(|one| one.is_believed());
        believed.map(|one| one.certificate.as_str()).collect()
    }

    /// What makes a certificate of the signer's good for those who know an older one only, PEM, the
    /// signer's own first.
    fn vouched_pem(&self) -> String {
        // Who vouched for the oldest is not known any more.
        let later = self.rows.get(1..=self.at).unwrap_or_default();
        later.iter().rev().filter_map(|one| one.vouched.as_deref()).collect()
    }

    /// A certificate for the key of `csr_pem`, and what stands behind it (PEM).
    ///
    /// # Errors
    /// As [`Authority::issue`].
    pub fn issue(&self, csr_pem: &str, role: Role) -> Result<String, identity::Error> {
        let leaf = self.signer.issue(csr_pem, role)?;
        Ok(format!("{leaf}{}", self.vouched_pem()))
    }

    /// A certificate for HTTPS. Behind it stand the older authorities, too, for those who know one of
    /// them by its fingerprint, and last the one that signed.
    ///
    /// # Errors
    /// As [`Authority::issue_http`].
    pub fn issue_http(&self, names: &[String]) -> Result<HttpCertificate, identity::Error> {
        let mut behind = self.vouched_pem();
        behind.extend(self.rows[..=self.at].iter().map(|one| one.certificate.as_str()));
        self.signer.issue_http_before(names, &behind)
    }

    /// The one that a join token names.
    pub fn named(&self, pin: AuthorityPin) -> Option<&ClusterAuthority> {
        self.rows.iter().find(|one| pin.names(&one.certificate))
    }

    /// Whether others may have the key of the one that a join token names.
    pub fn distrusts(&self, pin: AuthorityPin) -> bool {
        self.named(pin).is_some_and(|one| {
            matches!(one.state, AuthorityState::Retired { distrusted: true, .. })
        })
    }

    /// Whose certificate is shown; `None` where these rows do not know that one (yet).
    pub fn shown(&self, credentials: &Credentials) -> Option<u32> {
        self.rows.iter().find(|one| credentials.is_of(&one.certificate)).map(|one| one.number)
    }

    /// Another authority to take the place of the one that signs.
    ///
    /// # Errors
    /// Where none can be made.
    pub fn succeed(
        &self,
        cluster: &shoal_content::ClusterId,
    ) -> Result<Successor, identity::Error> {
        self.signer.succeed(cluster)
    }
}

/// What agents are told; `None` where there is nothing to tell yet.
pub fn news(rows: &[ClusterAuthority]) -> Option<AuthorityNews> {
    let signs = &rows[signing_authority(rows)?];
    let believed = rows.iter().filter(|one| one.is_believed());
    Some(AuthorityNews {
        believed_pem: believed.map(|one| one.certificate.as_str()).collect(),
        signs_pem: signs.certificate.clone(),
    })
}

/// See the module's documentation. Clones share what is known.
#[derive(Debug, Clone)]
pub struct Authorities {
    vault: Vault,
    held: Arc<RwLock<Arc<Held>>>,
}

impl Authorities {
    /// # Errors
    /// As [`Held::read`], and where there is no cluster.
    pub fn read<R: Read>(query: Query<'_, R>, vault: Vault) -> Result<Self, Error> {
        let held = Held::read(query, &vault)?.ok_or(Error::None)?;
        Ok(Self { vault, held: Arc::new(RwLock::new(Arc::new(held))) })
    }

    pub fn current(&self) -> Arc<Held> {
        Arc::clone(&self.held.read())
    }

    /// Reads them again where they have changed; a state of before changes nothing.
    ///
    /// # Errors
    /// Where they cannot be read; what was known stays.
    pub fn refresh<R: Read>(&self, query: Query<'_, R>) -> Result<Arc<Held>, Error> {
        let rows = query.authorities()?;
        let known = self.current();
        if rows == known.rows {
            return Ok(known);
        }
        let new = Arc::new(Held::of_rows(rows, &self.vault)?);
        let mut held = self.held.write();
        if new.progress() >= held.progress() {
            *held = new;
        }
        Ok(Arc::clone(&held))
    }
}

#[cfg(test)]
mod tests {
    use shoal_content::{ClusterId, Timestamp};
    use shoal_metadata::Secret;
    use shoal_p2p::identity::KeyPair;

    use super::*;

    fn row(number: u32, authority: &Authority, vouched: Option<String>) -> ClusterAuthority {
        ClusterAuthority {
            number,
            certificate: authority.certificate_pem().to_owned(),
            vouched,
            key: Some(Secret(authority.key_pem().as_bytes().to_vec())),
            hurried: false,
            state: AuthorityState::Signs { since: Timestamp::from_millis(1) },
        }
    }

    fn certificates(pem: &str) -> usize {
        pem.matches("BEGIN CERTIFICATE").count()
    }

    #[test]
    fn what_stands_behind_a_certificate_leads_from_every_older_authority_to_it() {
        let cluster = ClusterId::from_uuid(uuid::Uuid::from_u128(1));
        let first = Authority::create(&cluster).unwrap();
        let Successor { authority: second, vouched_pem } = first.succeed(&cluster).unwrap();
        let announced = AuthorityState::Announced { since: Timestamp::from_millis(2) };
        let later = ClusterAuthority { state: announced, ..row(1, &second, Some(vouched_pem)) };
        let vault = Vault::default();
        let csr = KeyPair::generate().unwrap().csr_pem().unwrap();
        let names = ["localhost".to_owned()];

        let held = Held::of_rows(vec![row(0, &first, None)], &vault).unwrap();
        assert_eq!(certificates(&held.issue(&csr, Role::Node).unwrap()), 1);
        assert_eq!(certificates(&held.issue_http(&names).unwrap().chain_pem), 2);
        let rows = vec![row(0, &first, None), later.clone()];
        let held = Held::of_rows(rows, &vault).unwrap();
        assert_eq!((held.number(), held.newest()), (0, 1));
        assert_eq!(certificates(&held.believed_pem()), 2);
        assert_eq!(certificates(&held.issue(&csr, Role::Node).unwrap()), 1);

        let retired = AuthorityState::Retired { at: Timestamp::from_millis(3), distrusted: true };
        let old = ClusterAuthority { state: retired, key: None, ..row(0, &first, None) };
        let new = ClusterAuthority { state: row(1, &second, None).state, ..later };
        let held = Held::of_rows(vec![old, new], &vault).unwrap();
        assert_eq!(held.believed_pem(), second.certificate_pem());
        assert_eq!(certificates(&held.issue(&csr, Role::Node).unwrap()), 2);
        let shown = held.issue_http(&names).unwrap().chain_pem;
        assert_eq!(certificates(&shown), 4);
        assert!(shown.ends_with(second.certificate_pem()), "people are shown another one");
        let pin = |authority: &Authority| {
            use base64::Engine;
            use base64::engine::general_purpose::URL_SAFE_NO_PAD;
            let fingerprint = URL_SAFE_NO_PAD.encode(authority.fingerprint());
            AuthorityPin::of_token(&format!("shoal-join-v1.{fingerprint}.id.secret")).unwrap()
        };
        assert_eq!(held.named(pin(&first)).unwrap().number, 0);
        assert!(held.distrusts(pin(&first)) && !held.distrusts(pin(&second)));
        let told = news(&held.rows).unwrap();
        assert_eq!(told.believed_pem, told.signs_pem);
    }
}
