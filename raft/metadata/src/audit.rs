//! The audit trail: who did what to what, from where, and how it ended.
//!
//! Entries are numbered without a gap and chained: the hash of each covers its bytes and the hash
//! before it, so that an entry that was changed, taken out or put in shows ([`verify`]). That the
//! newest were cut off shows against a head that somebody has noted elsewhere.
//!
//! What changes the metadata is recorded in the command that does it; what is only read, or was
//! refused, is noted by nodes in batches, in the order in which it happened there. Each node's
//! batches are numbered, and a node says when it begins and ends: where it began again without
//! having ended, or a batch is missing, an entry says since when something may be missing.
//!
//! Invariants: an entry is never changed; it leaves only for an archive, whose row continues the
//! chain. Non-goal: who may read it; see `rights`.

use serde::{Deserialize, Serialize};
use shoal_content::{NodeId, ObjectKey, Timestamp};

use crate::authority::AuthorityStep;
use crate::catalog::Instance;
use crate::codec::encode_row;
use crate::command::Command;
use crate::encryption::KeyOwner;
use crate::key;
use crate::login::Identity;
use crate::query::Query;
use crate::record::UploadPurpose;
use crate::rights::PersonalToken;
use crate::table::{Fault, Read, Table};
use crate::transaction::{decoded, row};

/// Entries of one batch, and of one archive.
pub const AUDIT_BATCH_MAX: usize = 5_000;
/// The longest text in an entry; longer ones are cut.
const TEXT_BYTES_MAX: usize = 512;
/// The level from which on an entry says what a personal token was.
const DESCRIBED_LEVEL: u8 = 2;

/// The next number, and the newest hash, under [`Table::Counts`].
pub(crate) const NEXT: &[u8] = b"audit-next";
pub(crate) const HEAD: &[u8] = b"audit-head";

pub type AuditHash = [u8; 32];

/// On whose behalf something is done, as the node saw it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditSource {
    /// Empty for nobody.
    pub who: String,
    /// The address; empty for the cluster itself.
    pub from: String,
    /// The request's id.
    pub request: String,
    /// The node's number; 0 is none.
    pub node: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AuditResult {
    Done,
    /// With the reason.
    Refused(String),
}

/// Something that was done, or was not allowed to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditNote {
    pub at: Timestamp,
    pub source: AuditSource,
    /// `image.pull`, `project.create`: what, and what is done to it.
    pub action: String,
    pub target: String,
    pub result: AuditResult,
    /// How often, within one batch.
    pub count: u64,
}

/// An entry of the trail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    pub number: u64,
    pub note: AuditNote,
    pub hash: AuditHash,
}

/// How a node's batches go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AuditPhase {
    /// The first of a run.
    Begins,
    Goes,
    /// The last of a run that ends in order.
    Ends,
}

/// What is kept of a node's run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AuditRun {
    pub run: u64,
    pub batch: u64,
    pub at: Timestamp,
    pub ended: bool,
}

/// A node's notes since the last time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditBatch {
    pub node: NodeId,
    /// Names the node's run: greater with each start.
    pub run: u64,
    /// From 0, one more with each.
    pub batch: u64,
    pub phase: AuditPhase,
    pub notes: Vec<AuditNote>,
    /// Notes that there was no room for.
    pub lost: u64,
}

/// Entries that were moved to storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditArchive {
    pub first: u64,
    pub last: u64,
    pub from: Timestamp,
    pub until: Timestamp,
    pub object: ObjectKey,
    pub bytes: u64,
    /// Before its first entry, and of its last.
    pub before: AuditHash,
    pub head: AuditHash,
}

/// Which entries are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditFilter {
    pub who: Option<String>,
    /// The whole action, or what stands before its dot.
    pub action: Option<String>,
    /// What targets begin with.
    pub target: Option<String>,
    /// Refused only, or done only.
    pub refused: Option<bool>,
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
    /// Numbers below this one.
    pub before: Option<u64>,
}

/// What is wrong with the trail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuditFlaw {
    /// The entry does not follow from the one before it.
    Broken(u64),
    /// The entry is not there.
    Missing(u64),
    /// The newest entry is not the one that was written last.
    Head,
}

/// The hash of an entry after one of hash `before`.
pub fn chained(before: &AuditHash, number: u64, note: &AuditNote) -> AuditHash {
    let mut hasher = blake3::Hasher::new_derive_key("shoal 2026 audit entry");
    hasher.update(before).update(&number.to_be_bytes()).update(&encode_row(note));
    *hasher.finalize().as_bytes()
}

/// No longer than an entry takes.
pub(crate) fn cut(text: &mut String) {
    if text.len() > TEXT_BYTES_MAX {
        let end = (0..=TEXT_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
}

impl AuditFilter {
    pub fn takes(&self, entry: &AuditEntry) -> bool {
        let AuditNote { at, source, action, target, result, .. } = &entry.note;
        let named = |wanted: &String| {
            action == wanted
                || action.strip_prefix(wanted.as_str()).is_some_and(|rest| rest.starts_with('.'))
        };
        self.who.as_ref().is_none_or(|who| source.who == *who)
            && self.action.as_ref().is_none_or(named)
            && self.target.as_ref().is_none_or(|wanted| target.starts_with(wanted.as_str()))
            && self
                .refused
                .is_none_or(|refused| refused == matches!(result, AuditResult::Refused(_)))
            && self.since.is_none_or(|since| *at >= since)
            && self.until.is_none_or(|until| *at < until)
            && self.before.is_none_or(|before| entry.number < before)
    }
}

/// A page of entries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditPage {
    /// The newest first.
    pub entries: Vec<AuditEntry>,
    /// Where the next page begins; nothing where all was looked at.
    pub before: Option<u64>,
}

impl<R: Read> Query<'_, R> {
    /// The number that the next entry gets, and the newest hash.
    pub fn audit_head(&self) -> Result<(u64, AuditHash), Fault> {
        let next = row(self.read, Table::Counts, NEXT)?.unwrap_or(1);
        Ok((next, row(self.read, Table::Counts, HEAD)?.unwrap_or_default()))
    }

    /// Run and number of the last batch of a node's notes.
    ///
    /// # Errors
    /// Where the metadata cannot be read.
    pub fn audit_run(&self, node: NodeId) -> Result<Option<(u64, u64)>, Fault> {
        let last: Option<AuditRun> = row(self.read, Table::AuditRuns, &key::node(node))?;
        Ok(last.map(|last| (last.run, last.batch)))
    }

    /// Entries that a filter takes, the newest first, at most `limit`; `looks` are looked at.
    pub fn audit(
        &self,
        filter: &AuditFilter,
        limit: usize,
        looks: usize,
    ) -> Result<AuditPage, Fault> {
        const SCAN_ROWS: usize = 500;
        let mut page = AuditPage::default();
        let mut from = match filter.before {
            Some(before) => key::audit(before.saturating_sub(1)).to_vec(),
            None => Vec::new(),
        };
        let mut looked = 0;
        loop {
            let rows = self.read.scan(Table::AuditEntries, &from, b"", SCAN_ROWS)?;
            let last = rows.len() < SCAN_ROWS;
            for (key, bytes) in rows {
                let entry: AuditEntry = decoded(Table::AuditEntries, &bytes)?;
                // Entries stand in the order of their numbers; times of one node's notes may be
                // a little older than their neighbours'.
                looked += 1;
                let number = entry.number;
                if filter.takes(&entry) {
                    page.entries.push(entry);
                }
                if page.entries.len() == limit || looked == looks {
                    page.before = Some(number);
                    return Ok(page);
                }
                from = key::after(key);
            }
            if last {
                return Ok(page);
            }
        }
    }

    /// Up to `limit` of the oldest entries, the oldest first.
    pub fn oldest_audit(&self, limit: usize) -> Result<Vec<AuditEntry>, Fault> {
        let (next, _) = self.audit_head()?;
        let first = self.first_audit()?;
        (first..next.min(first.saturating_add(limit as u64)))
            .map(|number| {
                let missing = Fault::Contradiction("an entry of the audit trail is missing");
                self.audit_entry(number)?.ok_or(missing)
            })
            .collect()
    }

    pub fn audit_entry(&self, number: u64) -> Result<Option<AuditEntry>, Fault> {
        row(self.read, Table::AuditEntries, &key::audit(number))
    }

    /// The number of the oldest entry that is no archive's.
    pub fn first_audit(&self) -> Result<u64, Fault> {
        Ok(self.audit_archives()?.last().map_or(1, |archive| archive.last + 1))
    }

    /// The oldest first.
    pub fn audit_archives(&self) -> Result<Vec<AuditArchive>, Fault> {
        self.all(Table::AuditArchives, b"")
    }

    /// A page of them, of those that begin after the entry `after`.
    pub fn audit_archives_after(
        &self,
        after: u64,
        limit: usize,
    ) -> Result<Vec<AuditArchive>, Fault> {
        self.page(Table::AuditArchives, b"", &after.to_be_bytes(), limit)
    }

    /// The one that begins with the entry `first`.
    pub fn audit_archive(&self, first: u64) -> Result<Option<AuditArchive>, Fault> {
        row(self.read, Table::AuditArchives, &first.to_be_bytes())
    }
}

/// Goes along the chain: the archives' rows, then every entry.
///
/// # Errors
/// [`Fault`] where the rows cannot be read.
pub fn verify<R: Read>(query: Query<'_, R>) -> Result<(u64, Vec<AuditFlaw>), Fault> {
    const FLAWS_MAX: usize = 100;
    let mut flaws = Vec::new();
    let mut before = AuditHash::default();
    let mut number = 1;
    for archive in query.audit_archives()? {
        if archive.first != number {
            flaws.push(AuditFlaw::Missing(number));
        }
        if archive.before != before {
            flaws.push(AuditFlaw::Broken(archive.first));
        }
        (before, number) = (archive.head, archive.last + 1);
    }
    let (next, head) = query.audit_head()?;
    let first = number;
    while number < next && flaws.len() < FLAWS_MAX {
        match query.audit_entry(number)? {
            None => flaws.push(AuditFlaw::Missing(number)),
            Some(entry) => {
                let right = chained(&before, number, &entry.note) == entry.hash;
                if !right || entry.number != number {
                    flaws.push(AuditFlaw::Broken(number));
                }
                before = entry.hash;
            }
        }
        number += 1;
    }
    if before != head && flaws.len() < FLAWS_MAX {
        flaws.push(AuditFlaw::Head);
    }
    Ok((number - first, flaws))
}

/// What a command is called in the trail and what it is done to; nothing for what only keeps the
/// cluster's own books, or is a step of something that is recorded at its end.
pub fn audited<R: Read>(
    query: Query<'_, R>,
    command: &Command,
) -> Result<Option<(&'static str, String)>, Fault> {
    // Entries are chained, and the same on nodes of an earlier version.
    let describes = query.level()? >= DESCRIBED_LEVEL;
    let image = |id| -> Result<String, Fault> {
        Ok(query.image(id)?.map_or_else(|| format!("{id}"), |image| image.name.to_string()))
    };
    let place = |place: &crate::rights::Place| -> Result<String, Fault> {
        use crate::rights::Place;
        Ok(match place {
            Place::Project(name) => format!("project:{name}"),
            Place::Image(id) => format!("image:{}", image(*id)?),
            Place::Organization(name) => format!("organization:{name}"),
            Place::Group { organization, group } => format!("group:{organization}/{group}"),
        })
    };
    Ok(Some(match command {
        Command::RemoveNode(id) => ("node.remove", id.to_string()),
        Command::AdmitNode { node, .. } => ("node.join", node.name.clone()),
        Command::PutUser(user) => ("user.update", user.name.clone()),
        Command::CreateUser(user) => ("user.create", user.name.clone()),
        Command::SetEmail { user, .. } => ("user.update", user.clone()),
        Command::RemoveUser { name } => ("user.remove", name.clone()),
        Command::CreateJoinToken(token) => ("join_token.create", token.id.clone()),
        Command::RevokeJoinToken { id } => ("join_token.revoke", id.clone()),
        Command::EnrolAgent { agent, .. } => ("agent.enrol", agent.name.clone()),
        Command::RotateSigningKey { purpose, distrusted, .. } => {
            let action = if *distrusted { "key.distrust" } else { "key.rotate" };
            (action, purpose.name().to_owned())
        }
        Command::StepAuthority(AuthorityStep::Announce { newest, hurried, .. }) => {
            let action = if *hurried { "authority.distrust" } else { "authority.rotate" };
            (action, newest.saturating_add(1).to_string())
        }
        Command::StepAuthority(AuthorityStep::Hurry { number }) => {
            ("authority.distrust", number.to_string())
        }
        Command::MakeDataKey { owner, replaces: Some(_), .. } => {
            ("data_key.rotate", owner.to_string())
        }
        // The first of all: from now on objects are sealed. A project's comes with its first push.
        Command::MakeDataKey { owner: KeyOwner::Cluster, master, .. } => {
            ("encryption.begin", master.clone())
        }
        Command::DestroyDataKeys { keys, .. } => {
            let mut named = Vec::new();
            for id in keys {
                if let Some(key) = query.data_key(*id)? {
                    named.push(format!("{} {id}", key.owner));
                }
            }
            ("data_key.destroy", named.join(", "))
        }
        Command::WrapDataKeys { master, .. } => ("master_key.rotate", master.clone()),
        Command::SealSecrets { secrets } => {
            let named: Vec<String> = secrets.keys().map(ToString::to_string).collect();
            ("secrets.seal", named.join(", "))
        }
        Command::RemoveAgent(peer) | Command::ExpelAgent { peer, .. } => {
            ("agent.remove", peer.to_string())
        }
        Command::CreateImage { name, .. } => ("image.create", name.to_string()),
        Command::CreateDescribedImage { name, .. } => ("image.create", name.to_string()),
        Command::UpdateImage { id, .. }
        | Command::DescribeImage { id, .. }
        | Command::RedescribeImage { id, .. } => ("image.update", image(*id)?),
        // The first of them says it.
        Command::PurgeImage { id, .. } if query.is_purged(*id)? => return Ok(None),
        // Of one that was deleted before, this is the end.
        Command::DeleteImage { id } | Command::PurgeImage { id, .. } => {
            let deleted = match query.image(*id)? {
                Some(image) => query.deletion(&image)?.is_some(),
                None => false,
            };
            (if deleted { "image.purge" } else { "image.delete" }, image(*id)?)
        }
        Command::BeginDescribedUpload { upload, note } => {
            let (Some(import), UploadPurpose::Disk { image: of, number, .. }) =
                (&note.import, &upload.purpose)
            else {
                return Ok(None);
            };
            // What follows the question mark is often a secret.
            let url = import.url.split('?').next().unwrap_or_default();
            ("image.import", format!("{}:{number} {url}", image(*of)?))
        }
        Command::TrashImage { id, .. } => ("image.delete", image(*id)?),
        Command::RestoreImage { id } => ("image.restore", image(*id)?),
        // Those that come by themselves are nobody's doing.
        Command::OrderScan { of, by, .. } if !by.is_empty() => {
            ("image.scan", format!("{}@{}", image(of.image)?, of.digest))
        }
        Command::DescribeVersion { image: id, digest, .. } => {
            ("version.update", format!("{}@{digest}", image(*id)?))
        }
        Command::DeprecateVersion { image: id, digest, message, .. } => {
            let action = match message {
                Some(_) => "version.deprecate",
                None => "version.undeprecate",
            };
            (action, format!("{}@{digest}", image(*id)?))
        }
        Command::Rollback { image: id, tag, to } => {
            ("tag.rollback", format!("{}:{tag}@{to}", image(*id)?))
        }
        Command::RegisterInstance { instance, .. } => {
            let Instance { name, image: of, digest, .. } = instance;
            ("instance.register", format!("{name} {}@{digest}", image(*of)?))
        }
        Command::RemoveInstance { name } => ("instance.remove", name.to_string()),
        Command::MountBlob { to, digest, .. } => ("blob.mount", format!("{to}@{digest}")),
        Command::CommitBlob { repository, digest, .. } => {
            ("blob.push", format!("{repository}@{digest}"))
        }
        Command::UnlinkBlob { repository, digest } => {
            ("blob.delete", format!("{repository}@{digest}"))
        }
        Command::PutManifest(put) | Command::PublishDisk { put, .. } => {
            let tags = put.tags.iter().map(|tag| format!(":{tag}")).collect::<String>();
            ("image.push", format!("{}{tags}@{}", put.repository, put.digest))
        }
        Command::DeleteManifest { repository, digest } => {
            ("version.delete", format!("{repository}@{digest}"))
        }
        Command::PutTag { repository, tag, digest } => {
            ("tag.move", format!("{repository}:{tag}@{digest}"))
        }
        Command::DeleteTag { repository, tag } => ("tag.delete", format!("{repository}:{tag}")),
        Command::CreateDeployment { image, digest, .. } => {
            ("deployment.create", format!("{image}@{digest}"))
        }
        Command::OrderDeployment(order) => {
            ("deployment.create", format!("{}@{}", order.image, order.digest))
        }
        Command::CancelDeployment { id } => ("deployment.cancel", id.to_string()),
        Command::PauseDeployment { id, paused: true } => ("deployment.pause", id.to_string()),
        Command::PauseDeployment { id, .. } => ("deployment.resume", id.to_string()),
        Command::RetryDeployment { id, .. } => ("deployment.retry", id.to_string()),
        Command::CreateWarmUp(of) => {
            ("warm_up.create", format!("{} {}:{}", of.name, of.image, of.tag))
        }
        Command::RemoveWarmUp { name } => ("warm_up.remove", name.to_string()),
        Command::RunWarmUp { name, digest, .. } => ("warm_up.run", format!("{name} {digest}")),
        Command::RaiseLevel { to } => ("cluster.upgrade", to.to_string()),
        Command::CreateOrganization { organization, .. } => {
            ("organization.create", organization.name.to_string())
        }
        Command::RemoveOrganization { name } => ("organization.remove", name.to_string()),
        Command::CreateGroup(group) => {
            ("group.create", format!("{}/{}", group.organization, group.name))
        }
        Command::RemoveGroup { organization, name } => {
            ("group.remove", format!("{organization}/{name}"))
        }
        Command::CreateProject(project) => ("project.create", project.name.to_string()),
        Command::UpdateProject { name, .. } => ("project.update", name.to_string()),
        Command::RemoveProject { name } => ("project.remove", name.to_string()),
        Command::PutRight { place: at, grantee, right } => {
            ("right.give", format!("{} {grantee} {right:?}", place(at)?))
        }
        Command::RemoveRight { place: at, grantee } => {
            ("right.take", format!("{} {grantee}", place(at)?))
        }
        Command::FollowGroup { organization, group, user, belongs } => {
            let action = if *belongs { "right.give" } else { "right.take" };
            (action, format!("group:{organization}/{group} user:{user}"))
        }
        Command::PutRobot(robot) => ("robot.create", robot.name.to_string()),
        Command::RemoveRobot(name) => ("robot.remove", name.to_string()),
        Command::CreatePersonalToken(token) => {
            let is = if describes { token.described() } else { String::new() };
            ("token.create", format!("{} {}{is}", token.user, token.id))
        }
        // The row goes; what it was stays here, and goes on into the archives.
        Command::RemovePersonalToken { user, id } => {
            let rows = if describes { query.personal_tokens(user)? } else { Vec::new() };
            let row = rows.into_iter().find(|row| row.id == *id);
            let was = row.as_ref().map(PersonalToken::described).unwrap_or_default();
            ("token.remove", format!("{user} {id}{was}"))
        }
        Command::SetPolicy { project, .. } => ("policy.set", project.to_string()),
        Command::RemovePolicy { project } => ("policy.remove", project.to_string()),
        Command::Retire(retire) => ("image.retire", image(retire.image)?),
        Command::SetQuota { of, .. } => ("quota.set", of.to_string()),
        Command::RemoveQuota { of } => ("quota.remove", of.to_string()),
        Command::Unblock { suspect } => ("block.remove", suspect.to_string()),
        Command::ConfirmSecondFactor { user, .. } => ("second_factor.add", user.clone()),
        Command::PutRecoveryCodes { user, .. } => ("second_factor.recovery_codes", user.clone()),
        Command::RemoveSecondFactor { user } => ("second_factor.remove", user.clone()),
        Command::AddPasskey { passkey, .. } => {
            ("passkey.add", format!("{} {}", passkey.user, passkey.id))
        }
        Command::UpdatePasskey { user, id, .. } => ("passkey.update", format!("{user} {id}")),
        Command::RemovePasskeys { user, id: Some(id) } => {
            ("passkey.remove", format!("{user} {id}"))
        }
        Command::RemovePasskeys { user, id: None } => ("passkey.remove", user.clone()),
        Command::EndSession { user, id } => ("session.end", format!("{user} {id}")),
        Command::EndSessions { user, .. } => ("session.end", user.clone()),
        Command::ChangePassword { user, .. } => ("user.update", user.clone()),
        Command::RecoverAdministrator { user, .. } => ("user.recover", user.clone()),
        Command::LinkIdentity { identity, create } => {
            let Identity { issuer, subject, user, .. } = identity;
            let action = if create.is_some() { "user.create" } else { "identity.link" };
            (action, format!("{user} {issuer} {subject}"))
        }
        Command::UnlinkIdentity { issuer, subject } => {
            ("identity.unlink", format!("{issuer} {subject}"))
        }
        Command::LeaveLater { user, .. } => ("user.leave", user.clone()),
        Command::Stay { user } => ("user.stay", user.clone()),
        Command::PutWorkloadRule(rule) => {
            ("workload_rule.put", format!("{} {}", rule.project, rule.name))
        }
        Command::RemoveWorkloadRule { project, name } => {
            ("workload_rule.remove", format!("{project} {name}"))
        }
        _ => return Ok(None),
    }))
}

/// Notes of the same thing, one right after another, as one with their count; the order stays.
pub fn folded(notes: Vec<AuditNote>) -> Vec<AuditNote> {
    let mut folded: Vec<AuditNote> = Vec::new();
    for note in notes {
        let same = |last: &AuditNote| {
            (&last.source.who, &last.source.from) == (&note.source.who, &note.source.from)
                && (&last.action, &last.target, &last.result)
                    == (&note.action, &note.target, &note.result)
        };
        match folded.last_mut() {
            Some(last) if same(last) => last.count = last.count.saturating_add(note.count),
            _ => folded.push(note),
        }
    }
    folded
}
