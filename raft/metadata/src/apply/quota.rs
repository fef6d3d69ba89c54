//! Keeps accounts in the command that changes what they count, and holds them to their limits.
//!
//! A command notes what it changes in a ledger, by project; when it is done, the sums go to those
//! who pay, once each. What moves between payers – a project with a new owner, a member of a group
//! that comes or goes – is moved at once, so that the ledger is then added for whoever pays at the
//! end. Invariants: an account at zero has no row; nothing is written before usage is counted (see
//! [`crate::Query::counts_usage`]), so that programs that know no accounts write the same rows.

use std::collections::{BTreeMap, BTreeSet};

use shoal_content::{ProjectName, UploadId};

use super::{Step, Stop};
use crate::command::{Refusal, Response, Subject};
use crate::key;
use crate::query::all_rows;
use crate::quota::{
    Account, Content, Exceeded, Held, Payer, Quota, QuotaKind, QuotaLimits, QuotaOf, Reservation,
    USAGE_SINCE, contents_of,
};
use crate::record::UploadPurpose;
use crate::rights::Owner;
use crate::table::{Fault, Read, Table};
use crate::transaction::decoded;

/// What all sessions together may reserve, so that no account comes near the end of its number.
const RESERVED_BYTES_MAX: u64 = i64::MAX as u64;

/// What a command adds to accounts.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Change {
    bytes: i128,
    images: i128,
    reserved: i128,
}

/// What a command has changed so far.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    projects: BTreeMap<ProjectName, Change>,
    /// Those who were given a project.
    given: BTreeMap<Payer, Change>,
    counting: Option<bool>,
}

impl std::ops::AddAssign for Change {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.images += other.images;
        self.reserved += other.reserved;
    }
}

impl std::ops::Neg for Change {
    type Output = Self;

    fn neg(self) -> Self {
        Self { bytes: -self.bytes, images: -self.images, reserved: -self.reserved }
    }
}

impl From<Account> for Change {
    fn from(account: Account) -> Self {
        Self {
            bytes: account.bytes.into(),
            images: account.images.into(),
            reserved: account.reserved_bytes.into(),
        }
    }
}

impl<R: Read> Step<'_, R> {
    fn counting(&mut self) -> Result<bool, Fault> {
        if let Some(known) = self.ledger.counting {
            return Ok(known);
        }
        let counting = self.query().counts_usage()?;
        self.ledger.counting = Some(counting);
        Ok(counting)
    }

    fn note(&mut self, project: &ProjectName, change: Change) {
        *self.ledger.projects.entry(project.clone()).or_default() += change;
    }

    /// Usage is counted from the first command on.
    pub(super) fn begin_counting(&mut self) {
        self.rows.put(Table::Counts, USAGE_SINCE, &self.at);
    }

    /// A link or a version of the project begins to hold a content.
    pub(super) fn hold_content(
        &mut self,
        project: &ProjectName,
        content: &Content,
        bytes: u64,
    ) -> Result<(), Fault> {
        if !self.counting()? {
            return Ok(());
        }
        let key = key::project_content(project, content);
        let mut held = self.query().held(&key)?.unwrap_or(Held { holds: 0, bytes });
        held.holds += 1;
        if held.holds == 1 {
            self.note(project, Change { bytes: bytes.into(), ..Change::default() });
        }
        self.rows.put(Table::ProjectContents, key, &held);
        Ok(())
    }

    /// The opposite of [`Self::hold_content`].
    pub(super) fn release_content(
        &mut self,
        project: &ProjectName,
        content: &Content,
    ) -> Result<(), Fault> {
        if !self.counting()? {
            return Ok(());
        }
        let key = key::project_content(project, content);
        let missing = Fault::Contradiction("a content that nobody holds is let go");
        let mut held = self.query().held(&key)?.ok_or(missing)?;
        held.holds -= 1;
        if held.holds == 0 {
            self.rows.remove(Table::ProjectContents, key);
            self.note(project, Change { bytes: -i128::from(held.bytes), ..Change::default() });
        } else {
            self.rows.put(Table::ProjectContents, key, &held);
        }
        Ok(())
    }

    pub(super) fn count_image(&mut self, project: &ProjectName, by: i8) -> Result<(), Fault> {
        if self.counting()? {
            self.note(project, Change { images: by.into(), ..Change::default() });
        }
        Ok(())
    }

    /// A session holds so much from now on, in place of what it held.
    pub(super) fn reserve(
        &mut self,
        upload: UploadId,
        project: &ProjectName,
        bytes: u64,
    ) -> Result<(), Stop> {
        if !self.counting()? {
            return Ok(());
        }
        let others = self.query().account(&Payer::Cluster)?.reserved_bytes;
        let others = others.saturating_sub(self.query().reserved(upload)?);
        if others.saturating_add(bytes) > RESERVED_BYTES_MAX {
            let limit = format!("{RESERVED_BYTES_MAX} bytes of all uploads under way");
            return Err(Refusal::Limit(limit).into());
        }
        self.release_reservation(upload)?;
        if bytes > 0 {
            self.note(project, Change { reserved: bytes.into(), ..Change::default() });
            let row = Reservation { project: project.clone(), bytes };
            self.rows.put(Table::Reservations, key::upload(upload), &row);
        }
        Ok(())
    }

    pub(super) fn release_reservation(&mut self, upload: UploadId) -> Result<(), Fault> {
        if let Some(Reservation { project, bytes }) = self.query().reservation(upload)? {
            self.rows.remove(Table::Reservations, key::upload(upload));
            self.note(&project, Change { reserved: -i128::from(bytes), ..Change::default() });
        }
        Ok(())
    }

    /// What sessions that are under way have reserved in a project that goes.
    pub(super) fn release_reservations_in(&mut self, gone: &ProjectName) -> Result<(), Fault> {
        for (key, bytes) in all_rows(&self.rows, Table::Reservations, b"")? {
            let Reservation { project, bytes } = decoded(Table::Reservations, &bytes)?;
            if project == *gone {
                self.rows.remove(Table::Reservations, key);
                self.note(gone, Change { reserved: -i128::from(bytes), ..Change::default() });
            }
        }
        Ok(())
    }

    /// Before the project's row changes hands.
    pub(super) fn move_project(
        &mut self,
        project: &ProjectName,
        from: Option<&Owner>,
        to: Option<&Owner>,
    ) -> Result<(), Fault> {
        if from == to || !self.counting()? {
            return Ok(());
        }
        let all = Change::from(self.query().account(&Payer::Project(project.clone()))?);
        if let Some(from) = from {
            for payer in self.query().payers_for(from)? {
                self.shift(&payer, -all)?;
            }
        }
        if let Some(to) = to {
            for payer in self.query().payers_for(to)? {
                self.shift(&payer, all)?;
                *self.ledger.given.entry(payer).or_default() += all;
            }
        }
        Ok(())
    }

    /// A user becomes a member of a group (`by` is 1), or ceases to be one (-1). A member is let in
    /// whatever it owns; then the group may be beyond its limit, and holds no more.
    pub(super) fn move_member(&mut self, user: &str, group: &Payer, by: i8) -> Result<(), Fault> {
        if !self.counting()? {
            return Ok(());
        }
        let all = Change::from(self.query().account(&Payer::User(user.to_owned()))?);
        self.shift(group, if by < 0 { -all } else { all }).map(drop)
    }

    fn shift(&mut self, payer: &Payer, by: Change) -> Result<Account, Fault> {
        let old = Change::from(self.query().account(payer)?);
        let sum = |old: i128, by: i128| {
            u64::try_from(old + by).map_err(|_| Fault::Contradiction("an account below zero"))
        };
        let account = Account {
            bytes: sum(old.bytes, by.bytes)?,
            images: sum(old.images, by.images)?,
            reserved_bytes: sum(old.reserved, by.reserved)?,
        };
        if account == Account::default() {
            self.rows.remove(Table::Accounts, key::payer(payer));
        } else {
            self.rows.put(Table::Accounts, key::payer(payer), &account);
        }
        Ok(account)
    }

    /// Ends a command: what it noted goes to the accounts, and whoever has grown beyond its limit
    /// refuses it.
    pub(super) fn settle(&mut self) -> Result<(), Stop> {
        let Ledger { projects, given, .. } = std::mem::take(&mut self.ledger);
        let mut changes: BTreeMap<Payer, Change> = BTreeMap::new();
        for (project, change) in projects {
            for payer in self.query().payers(&project, None)? {
                *changes.entry(payer).or_default() += change;
            }
        }
        let mut accounts = BTreeMap::new();
        for (payer, change) in &changes {
            accounts.insert(payer.clone(), self.shift(payer, *change)?);
        }
        for (payer, change) in given {
            *changes.entry(payer.clone()).or_default() += change;
            let account = self.query().account(&payer)?;
            accounts.insert(payer, account);
        }
        for (payer, account) in accounts {
            let change = changes.get(&payer).copied().unwrap_or_default();
            self.check_account(payer, account, change)?;
        }
        Ok(())
    }

    fn check_account(&self, payer: Payer, after: Account, change: Change) -> Result<(), Stop> {
        let QuotaLimits { max_bytes, max_images, .. } = self.query().limits(&payer)?;
        for (kind, limit, after, grown) in [
            (QuotaKind::Bytes, max_bytes, after.taken_bytes(), change.bytes + change.reserved),
            (QuotaKind::Images, max_images, after.images, change.images),
        ] {
            let wanted = u64::try_from(grown).unwrap_or(0);
            if let Some(limit) = limit.filter(|limit| wanted > 0 && after > *limit) {
                let used = after.saturating_sub(wanted);
                return Err(Refusal::Quota(Exceeded { payer, kind, limit, used, wanted }).into());
            }
        }
        Ok(())
    }

    /// Whether one image of this size may be in the project.
    pub(super) fn check_image_bytes(
        &self,
        project: &ProjectName,
        newcomer: &str,
        wanted: u64,
    ) -> Result<(), Stop> {
        for payer in self.query().payers(project, Some(newcomer))? {
            let limit = self.query().limits(&payer)?.max_image_bytes;
            if let Some(limit) = limit.filter(|limit| wanted > *limit) {
                let (kind, used) = (QuotaKind::ImageBytes, 0);
                return Err(Refusal::Quota(Exceeded { payer, kind, limit, used, wanted }).into());
            }
        }
        Ok(())
    }

    pub(super) fn reserve_upload(&mut self, id: UploadId, bytes: u64) -> Result<Response, Stop> {
        let upload = self.query().upload(id)?.ok_or(Refusal::NotFound(Subject::Upload))?;
        let UploadPurpose::Blob { repository, offset, .. } = &upload.purpose else {
            return Err(Refusal::UploadState("it is not for a blob".into()).into());
        };
        let (project, bytes) = (repository.project(), bytes.max(*offset));
        self.check_image_bytes(&project, &upload.owner, bytes)?;
        self.reserve(id, &project, bytes)?;
        Ok(Response::Done)
    }

    pub(super) fn set_quota(
        &mut self,
        of: &QuotaOf,
        limits: QuotaLimits,
        by: String,
    ) -> Result<Response, Stop> {
        if let QuotaOf::One(payer) = of {
            self.check_payer(payer)?;
        }
        let row = Quota { limits, updated_at: self.at, updated_by: by };
        self.rows.put(Table::Quotas, key::quota(of), &row);
        Ok(Response::Done)
    }

    fn check_payer(&self, payer: &Payer) -> Result<(), Stop> {
        let query = self.query();
        let (there, subject) = match payer {
            Payer::Cluster => (true, Subject::Cluster),
            Payer::User(name) => (query.user(name)?.is_some(), Subject::User),
            Payer::Group { organization, group } => {
                (query.group(organization, group)?.is_some(), Subject::Group)
            }
            Payer::Organization(name) => {
                (query.organization(name)?.is_some(), Subject::Organization)
            }
            Payer::Project(name) => (query.project(name)?.is_some(), Subject::Project),
        };
        if there { Ok(()) } else { Err(Refusal::NotFound(subject).into()) }
    }

    pub(super) fn remove_quota(&mut self, of: &QuotaOf) -> Result<Response, Stop> {
        if self.query().quota(of)?.is_none() {
            return Err(Refusal::NotFound(Subject::Quota).into());
        }
        self.rows.remove(Table::Quotas, key::quota(of));
        Ok(Response::Done)
    }

    /// Whoever gets the name later begins without.
    pub(super) fn drop_quota(&mut self, payer: Payer) {
        self.rows.remove(Table::Quotas, key::quota(&QuotaOf::One(payer)));
    }

    /// Counts everything anew: for a cluster that was founded before there were accounts. It takes
    /// as long as there are versions; afterwards nothing needs it.
    pub(super) fn count_usage(&mut self) -> Result<Response, Stop> {
        for table in [Table::ProjectContents, Table::Accounts] {
            for (key, _) in all_rows(&self.rows, table, b"")? {
                self.rows.remove(table, key);
            }
        }
        self.begin_counting();
        let mut names = BTreeSet::new();
        for (_, bytes) in all_rows(&self.rows, Table::Projects, b"")? {
            let project: crate::rights::Project = decoded(Table::Projects, &bytes)?;
            names.insert(project.name);
        }
        for project in names {
            let (contents, images) = contents_of(self.query(), &project)?;
            let bytes = contents.values().map(|held| i128::from(held.bytes)).sum();
            for (key, held) in contents {
                self.rows.put(Table::ProjectContents, key, &held);
            }
            self.count(&project, Change { bytes, images: images.into(), reserved: 0 })?;
        }
        for (_, bytes) in all_rows(&self.rows, Table::Reservations, b"")? {
            let Reservation { project, bytes } = decoded(Table::Reservations, &bytes)?;
            self.count(&project, Change { reserved: bytes.into(), ..Change::default() })?;
        }
        Ok(Response::Done)
    }

    /// Past the ledger: what is there may be more than its limit.
    fn count(&mut self, project: &ProjectName, change: Change) -> Result<(), Fault> {
        for payer in self.query().payers(project, None)? {
            self.shift(&payer, change)?;
        }
        Ok(())
    }
}
