//! Questions about limits and accounts.

use shoal_content::{Digest, ProjectName, UploadId};

use super::{
    Account, Content, Exceeded, Held, Payer, PayerKind, Quota, QuotaKind, QuotaLimits, QuotaOf,
    Reservation,
};
use crate::key;
use crate::query::Query;
use crate::rights::{Grantee, Owner};
use crate::table::{Fault, Read, Table};
use crate::transaction::{decoded, row};

/// The count under [`Table::Counts`] that says since when usage is counted.
pub(crate) const USAGE_SINCE: &[u8] = b"usage-since";

impl<R: Read> Query<'_, R> {
    /// Whether accounts are kept: not in a cluster that was founded before there were any, until
    /// its usage was counted.
    pub fn counts_usage(&self) -> Result<bool, Fault> {
        Ok(self.read.get(Table::Counts, USAGE_SINCE)?.is_some())
    }

    /// What was set for exactly this.
    pub fn quota(&self, of: &QuotaOf) -> Result<Option<Quota>, Fault> {
        row(self.read, Table::Quotas, &key::quota(of))
    }

    /// All that were set, by their texts.
    pub fn quotas(&self) -> Result<Vec<(QuotaOf, Quota)>, Fault> {
        let rows = self.rows(Table::Quotas, b"")?;
        rows.iter()
            .map(|(key, bytes)| {
                let of = key::read_text(key, 0)?.parse();
                let of = of.map_err(|_| Fault::Contradiction("a quota of nobody"))?;
                Ok((of, decoded(Table::Quotas, bytes)?))
            })
            .collect()
    }

    /// What holds for `payer`: its own limits, or the default for its kind.
    pub fn limits(&self, payer: &Payer) -> Result<QuotaLimits, Fault> {
        let own = self.quota(&QuotaOf::One(payer.clone()))?;
        let found = match (own, payer.kind()) {
            (Some(own), _) => Some(own),
            (None, PayerKind::Cluster) => None,
            (None, kind) => self.quota(&QuotaOf::Each(kind))?,
        };
        Ok(found.map(|quota| quota.limits).unwrap_or_default())
    }

    /// What `payer` holds.
    pub fn account(&self, payer: &Payer) -> Result<Account, Fault> {
        Ok(row(self.read, Table::Accounts, &key::payer(payer))?.unwrap_or_default())
    }

    /// Whom the content of a project is counted to. A project that is not there yet would be
    /// `newcomer`'s.
    pub fn payers(
        &self,
        project: &ProjectName,
        newcomer: Option<&str>,
    ) -> Result<Vec<Payer>, Fault> {
        let mut payers = vec![Payer::Cluster, Payer::Project(project.clone())];
        let owner = self.project(project)?.map(|project| project.owner);
        let owner = owner.or(newcomer.map(|name| Owner::User(name.to_owned())));
        if let Some(owner) = owner {
            payers.extend(self.payers_for(&owner)?);
        }
        Ok(payers)
    }

    /// The owner of a project, and the groups that it is a member of.
    pub(crate) fn payers_for(&self, owner: &Owner) -> Result<Vec<Payer>, Fault> {
        let user = match owner {
            Owner::Organization(name) => return Ok(vec![Payer::Organization(name.clone())]),
            // Nobody.
            Owner::User(user) if user.is_empty() => return Ok(Vec::new()),
            Owner::User(user) => user,
        };
        let mut payers = vec![Payer::User(user.clone())];
        for grantee in self.grantees_of(user)? {
            if let Grantee::Group { organization, group } = grantee {
                payers.push(Payer::Group { organization, group });
            }
        }
        Ok(payers)
    }

    /// The first limit that does not let `bytes` more into the project, of which this much is one
    /// image's. A look ahead: what is decided in a command is decided there.
    ///
    /// # Errors
    /// [`Fault`] where the rows cannot be read.
    pub fn exceeded(
        &self,
        project: &ProjectName,
        newcomer: Option<&str>,
        bytes: u64,
        image_bytes: u64,
    ) -> Result<Option<Exceeded>, Fault> {
        if !self.counts_usage()? {
            return Ok(None);
        }
        for payer in self.payers(project, newcomer)? {
            let limits = self.limits(&payer)?;
            let used = self.account(&payer)?.taken_bytes();
            if let Some(limit) = limits.max_image_bytes.filter(|limit| image_bytes > *limit) {
                let kind = QuotaKind::ImageBytes;
                return Ok(Some(Exceeded { payer, kind, limit, used: 0, wanted: image_bytes }));
            }
            let full = |limit: &u64| bytes > 0 && used.saturating_add(bytes) > *limit;
            if let Some(limit) = limits.max_bytes.filter(full) {
                let kind = QuotaKind::Bytes;
                return Ok(Some(Exceeded { payer, kind, limit, used, wanted: bytes }));
            }
        }
        Ok(None)
    }

    /// How long a blob of the project may be at most, as things stand, for a session that has
    /// reserved so much; `None` is any length.
    ///
    /// # Errors
    /// [`Fault`] where the rows cannot be read.
    pub fn room(
        &self,
        project: &ProjectName,
        newcomer: Option<&str>,
        reserved: u64,
    ) -> Result<Option<u64>, Fault> {
        let mut room: Option<u64> = None;
        if !self.counts_usage()? {
            return Ok(room);
        }
        for payer in self.payers(project, newcomer)? {
            let limits = self.limits(&payer)?;
            let taken = self.account(&payer)?.taken_bytes().saturating_sub(reserved);
            let left = limits.max_bytes.map(|limit| limit.saturating_sub(taken));
            for bound in left.into_iter().chain(limits.max_image_bytes) {
                room = Some(room.map_or(bound, |room| room.min(bound)));
            }
        }
        Ok(room)
    }

    /// Whether the project holds that blob or manifest already.
    pub fn project_holds(&self, project: &ProjectName, digest: &Digest) -> Result<bool, Fault> {
        let key = key::project_content(project, &Content::Digest(digest.clone()));
        Ok(self.held(&key)?.is_some())
    }

    /// What a session has reserved, in bytes.
    pub fn reserved(&self, upload: UploadId) -> Result<u64, Fault> {
        Ok(self.reservation(upload)?.map_or(0, |reservation| reservation.bytes))
    }

    pub(crate) fn reservation(&self, upload: UploadId) -> Result<Option<Reservation>, Fault> {
        row(self.read, Table::Reservations, &key::upload(upload))
    }

    pub(crate) fn held(&self, key: &[u8]) -> Result<Option<Held>, Fault> {
        row(self.read, Table::ProjectContents, key)
    }
}
