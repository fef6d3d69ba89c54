//! Applies one command to the tables.
//!
//! Invariants: a command that is refused, or meets a fault, leaves the transaction as it was: it
//! works on an overlay of its own, which is taken over only at the end. All checks of a command
//! stand before its first write all the same, so that a reader sees what is refused in one place.
//! Reference counts change in the command that adds or drops the row that refers.

mod acme;
mod ancestry;
mod audience;
mod audit;
mod authority;
mod awaited;
mod blob;
mod catalog;
mod credential;
mod delta;
mod deployment;
mod encryption;
mod holders;
mod image;
mod instance;
mod keys;
mod level;
mod lists;
mod lockout;
mod login;
mod manifest;
mod member;
mod object;
mod passkey;
mod policy;
mod quota;
mod relocation;
mod retire;
mod rights;
mod scan;
mod secrets;
mod trash;
mod upload;
mod warm_up;

use shoal_content::Timestamp;

pub use catalog::COUNTED_MAX;
pub use member::EXPELLED_MAX;
pub use retire::{PULLS_MAX, RETIRED_MAX};

use crate::command::{Command, Event, Refusal, Response};
use crate::deployment::{DeploymentOrder, DeploymentPlan};
use crate::query::Query;
use crate::table::{Fault, Read};
use crate::transaction::Transaction;

/// What an applied command answers, and what observers are told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub response: Response,
    pub events: Vec<Event>,
}

/// Applies `command`, proposed at `at`, to `transaction`.
///
/// # Errors
/// The inner error is an answer for the proposer: nothing changed. The outer one says that the
/// rows could not be read; then, too, nothing changed.
pub fn apply<R: Read>(
    transaction: &mut Transaction<'_, R>,
    at: Timestamp,
    command: Command,
) -> Result<Result<Outcome, Refusal>, Fault> {
    let mut step = Step {
        rows: Transaction::new(&*transaction),
        at,
        who: String::new(),
        events: Vec::new(),
        ledger: quota::Ledger::default(),
    };
    match step.run(command).and_then(|response| step.settle().map(|()| response)) {
        Ok(response) => {
            let Step { rows, events, .. } = step;
            let writes = rows.into_writes();
            transaction.absorb(writes);
            Ok(Ok(Outcome { response, events }))
        }
        Err(Stop::Refused(refusal)) => Ok(Err(refusal)),
        Err(Stop::Fault(fault)) => Err(fault),
    }
}

/// Why a command went no further.
#[derive(Debug)]
enum Stop {
    Refused(Refusal),
    Fault(Fault),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// One command under way.
struct Step<'a, R: Read> {
    rows: Transaction<'a, R>,
    at: Timestamp,
    /// On whose behalf; empty where that is not said.
    who: String,
    events: Vec<Event>,
    ledger: quota::Ledger,
}

impl<R: Read> Step<'_, R> {
    fn query(&self) -> Query<'_, impl Read> {
        Query::new(&self.rows)
    }

    fn run(&mut self, command: Command) -> Result<Response, Stop> {
        match command {
            Command::Found { cluster, admin } => self.found(&cluster, &admin),
            Command::RegisterNode(node) => self.register_node(node),
            Command::RemoveNode(id) => self.remove_node(id),
            Command::PutUser(user) => self.put_user(user),
            Command::RemoveUser { name } => self.remove_user(&name),
            Command::CreateJoinToken(token) => self.create_join_token(&token),
            Command::RevokeJoinToken { id } => self.revoke_join_token(&id),
            Command::EnrolAgent { token, secret_hash, agent } => {
                self.enrol_agent(&token, &secret_hash, &agent)
            }
            Command::AdmitNode { token, secret_hash, node } => {
                self.admit_node(&token, &secret_hash, node)
            }
            Command::RemoveAgent(peer) => self.remove_agent(peer),
            Command::ExpelAgent { peer, until } => self.expel_agent(peer, until),
            Command::CreateImage { id, name, kind, profile, owner } => {
                self.create_image(id, name, kind, profile, owner)
            }
            Command::UpdateImage { id, profile } => self.update_image(id, profile),
            Command::DeleteImage { id } => self.delete_image(id),
            Command::BeginUpload(upload) => self.begin_upload(&upload),
            Command::AdvanceUpload { upload, from, to, checkpoint, multipart, expires_at } => {
                let advance = upload::Advance { from, to, checkpoint, multipart, expires_at };
                self.advance_upload(upload, advance)
            }
            Command::RecordPart { upload, part, received, expires_at } => {
                self.record_part(upload, part, received, expires_at)
            }
            Command::ClaimIngest { upload, node, lease_until } => {
                self.claim_ingest(upload, node, lease_until)
            }
            Command::FailIngest { upload, reason } => self.fail_ingest(upload, reason),
            Command::AbortUpload { upload } => self.abort_upload(upload),
            Command::CommitBlob {
                upload,
                repository,
                digest,
                size,
                object,
                recipe,
                owner,
                image,
            } => {
                let blob = crate::record::Blob { digest, size, object, recipe };
                self.commit_blob(upload, blob, image::Place { repository, image, owner })
            }
            Command::MountBlob { from, to, digest, owner, image } => {
                let place = image::Place { repository: to, image, owner };
                self.mount_blob(from.as_ref(), place, &digest)
            }
            Command::UnlinkBlob { repository, digest } => self.unlink_blob(&repository, &digest),
            Command::PutManifest(put) => self.put_manifest(put),
            Command::DeleteManifest { repository, digest } => {
                self.delete_manifest(&repository, &digest)
            }
            Command::PutTag { repository, tag, digest } => self.put_tag(&repository, tag, &digest),
            Command::DeleteTag { repository, tag } => self.delete_tag(&repository, tag),
            Command::CreateDeployment { id, image, digest, tag, hosts, owner } => {
                let plan = DeploymentPlan::default();
                self.create_deployment(DeploymentOrder {
                    id,
                    image,
                    digest,
                    tag,
                    hosts,
                    owner,
                    plan,
                })
            }
            Command::ReportHost { deployment, peer, state } => {
                self.report_host(deployment, peer, state)
            }
            Command::CancelDeployment { id } => self.cancel_deployment(id),
            Command::SweepObjects { candidates, unreferenced_before } => {
                self.sweep_objects(&candidates, unreferenced_before)
            }
            Command::ExpireUploads { limit } => self.expire_uploads(limit),
            Command::RetryDeletion { objects } => self.retry_deletion(&objects),
            Command::AdoptObjects { objects } => self.adopt_objects(&objects),
            Command::UnlinkLooseBlobs { links, loose_before } => {
                self.unlink_loose(&links, loose_before)
            }
            Command::ForgetObjects { objects, deleting_before } => {
                self.forget_objects(&objects, deleting_before)
            }
            Command::PutAcmeAccount(account) => self.put_acme_account(&account),
            Command::PutAcmeChallenges { answers } => self.put_acme_challenges(&answers),
            Command::PutHttpCertificate(certificate) => self.put_http_certificate(&certificate),
            Command::RaiseLevel { to } => self.raise_level(to),
            Command::DescribeNode { id, program } => self.describe_node(id, &program),
            Command::HealBlob { digest, missing, object, recipe } => {
                self.heal_blob(&digest, &missing, object, recipe)
            }
            Command::CreateUser(user) => self.create_user(user),
            Command::CreateOrganization { organization, owner } => {
                self.create_organization(&organization, owner)
            }
            Command::RemoveOrganization { name } => self.remove_organization(&name),
            Command::CreateGroup(group) => self.create_group(&group),
            Command::RemoveGroup { organization, name } => self.remove_group(&organization, &name),
            Command::CreateProject(project) => self.create_project(&project),
            Command::UpdateProject { name, visibility, description, owner } => {
                self.update_project(&name, visibility, description, owner)
            }
            Command::RemoveProject { name } => self.remove_project(&name),
            Command::PutRight { place, grantee, right } => self.put_right(&place, &grantee, right),
            Command::RemoveRight { place, grantee } => self.remove_right(&place, &grantee),
            Command::PutRobot(robot) => self.put_robot(robot),
            Command::RemoveRobot(name) => self.remove_robot(&name),
            Command::CreatePersonalToken(token) => self.create_personal_token(&token),
            Command::RemovePersonalToken { user, id } => self.remove_personal_token(&user, &id),
            Command::NoteTokenUses { uses } => self.note_token_uses(&uses),
            Command::SetPolicy { project, rules, expected, by } => {
                self.set_policy(project, rules, expected, by)
            }
            Command::RemovePolicy { project } => self.remove_policy(&project),
            Command::Retire(retire) => self.retire(retire),
            Command::NotePulls { pulls } => self.note_pulls(pulls),
            Command::SetQuota { of, limits, by } => self.set_quota(&of, limits, by),
            Command::RemoveQuota { of } => self.remove_quota(&of),
            Command::ReserveUpload { upload, bytes } => self.reserve_upload(upload, bytes),
            Command::CountUsage => self.count_usage(),
            Command::NoteFailures { failures, rules } => self.note_failures(&failures, &rules),
            Command::Unblock { suspect } => self.unblock(&suspect),
            Command::Audited { source, command } => self.audited(source, *command),
            Command::NoteAudit(batch) => self.note_audit(batch),
            Command::ArchiveAudit(archive) => self.archive_audit(&archive),
            Command::CreateDescribedImage { id, name, kind, profile, note, owner } => {
                self.create_image(id, name, kind, profile, owner)?;
                self.put_image_note(id, note)?;
                Ok(Response::Image(id))
            }
            Command::DescribeImage { id, profile, note } => {
                self.update_image(id, profile)?;
                self.put_image_note(id, note)?;
                Ok(Response::Done)
            }
            Command::TrashImage { id, by } => self.trash_image(id, by),
            Command::RestoreImage { id } => self.restore_image(id),
            Command::BeginDescribedUpload { upload, note } => {
                self.begin_described_upload(&upload, &note)
            }
            Command::PublishDisk { put, compressed_bytes } => {
                self.publish_disk(put, compressed_bytes)
            }
            Command::DescribeVersion { image, digest, changelog, build_info, by } => {
                self.describe_version(image, &digest, changelog, build_info, by)
            }
            Command::DeprecateVersion { image, digest, message, by } => {
                self.deprecate_version(image, &digest, message, by)
            }
            Command::Rollback { image, tag, to } => self.roll_back(image, tag, to),
            Command::RegisterInstance { instance, replace } => {
                self.register_instance(instance, replace)
            }
            Command::RemoveInstance { name } => self.remove_instance(&name),
            Command::NoteStars { stars } => self.note_stars(stars),
            Command::NoteDownloads(batch) => self.note_downloads(batch),
            Command::ClaimImport { upload, node, lease_until } => {
                self.claim_import(upload, node, lease_until)
            }
            Command::BeginSecondFactor { user, secret } => self.begin_second_factor(&user, secret),
            Command::ConfirmSecondFactor { user, step, recovery } => {
                self.confirm_second_factor(&user, step, recovery)
            }
            Command::UseSecondFactor { user, proof } => self.use_second_factor(&user, proof),
            Command::PutRecoveryCodes { user, recovery } => {
                self.put_recovery_codes(&user, recovery)
            }
            Command::RemoveSecondFactor { user } => self.remove_second_factor(&user),
            Command::BeginSession { session, limit } => self.begin_session(session, limit),
            Command::EndSession { user, id } => self.end_session(&user, &id),
            Command::EndSessions { user, keep } => self.end_sessions(&user, keep.as_deref()),
            Command::ChangePassword { user, password_hash, keep } => {
                self.change_password(&user, password_hash, keep.as_deref())
            }
            Command::LinkIdentity { identity, create } => self.link_identity(&identity, create),
            Command::UnlinkIdentity { issuer, subject } => self.unlink_identity(&issuer, &subject),
            Command::PutWorkloadRule(rule) => self.put_workload_rule(&rule),
            Command::RemoveWorkloadRule { project, name } => {
                self.remove_workload_rule(&project, &name)
            }
            Command::LeaveLater { user, due } => self.leave_later(&user, due),
            Command::Stay { user } => self.stay(&user),
            Command::IndexBlobs => self.index_blobs(),
            Command::BeginBlobUpload { upload, open_max } => {
                self.begin_blob_upload(&upload, open_max)
            }
            Command::OrderDeployment(order) => self.create_deployment(order),
            Command::PauseDeployment { id, paused } => self.pause_deployment(id, paused),
            Command::RetryDeployment { id, deadline } => self.retry_deployment(id, deadline),
            Command::ExtendDeployment { id, hosts } => self.extend_deployment(id, hosts),
            Command::ReportAttempt { deployment, peer, attempt, state } => {
                self.report_attempt(deployment, peer, attempt, state)
            }
            Command::PassDeadlines { limit } => self.pass_deadlines(limit),
            Command::CreateWarmUp(policy) => self.create_warm_up(&policy),
            Command::RemoveWarmUp { name } => self.remove_warm_up(&name),
            Command::RunWarmUp { name, expected, id, digest, hosts } => {
                self.run_warm_up(&name, expected, warm_up::Run { id, digest, hosts })
            }
            Command::ClaimDelta { of, node, lease_until } => {
                self.claim_delta(of, node, lease_until)
            }
            Command::EndDelta { of, node, bundle } => self.end_delta(of, node, bundle),
            Command::NoteDeltaUses { uses } => self.note_delta_uses(&uses),
            Command::DropDeltas { deltas, unused_before } => {
                self.drop_deltas(&deltas, unused_before)
            }
            Command::CacheManifest(put) => self.cache_manifest(put),
            Command::RotateSigningKey { purpose, newest, private, signs_from, distrusted } => {
                self.rotate_signing_key(purpose, newest, (private, signs_from), distrusted)
            }
            Command::AddPasskey { passkey, owner } => self.add_passkey(&passkey, &owner),
            Command::UsePasskey { user, id, answered, counter, key } => {
                self.use_passkey(&user, &id, answered, counter, key)
            }
            Command::UpdatePasskey { user, id, name, second_factor } => {
                self.update_passkey(&user, &id, name, second_factor)
            }
            Command::RemovePasskeys { user, id } => self.remove_passkeys(&user, id.as_deref()),
            Command::MakeDataKey { owner, id, replaces, master, wrapped } => {
                self.make_data_key(owner, id, replaces, (master, wrapped))
            }
            Command::WrapDataKeys { master, keys } => self.wrap_data_keys(&master, keys),
            Command::HandOverObjects { objects } => self.hand_over_objects(&objects),
            Command::DestroyDataKeys { keys, retired_before } => {
                self.destroy_data_keys(&keys, retired_before)
            }
            Command::NoteMasterKeys { node, masters } => self.note_master_keys(node, &masters),
            Command::SealSecrets { secrets } => self.seal_secrets(secrets),
            Command::RecoverAdministrator { user, password_hash } => {
                self.recover_administrator(&user, password_hash)
            }
            Command::StepAuthority(step) => self.step_authority(step),
            Command::RedescribeImage { id, from, to } => self.redescribe_image(id, &from, *to),
            Command::PurgeImage { id, by, rows_max } => self.purge_image(id, by, rows_max),
            Command::ReportHosts { reports } => self.report_hosts(reports),
            Command::FollowGroup { organization, group, user, belongs } => {
                self.follow_group(organization, group, user, belongs)
            }
            Command::SetEmail { user, email } => self.set_email(&user, &email),
            Command::OrderScan { of, id, by } => self.order_scan(of, id, by),
            Command::ClaimScan { of, id, node, lease_until, renews } => {
                self.claim_scan(&of, id, scan::Claim { node, lease_until, renews })
            }
            Command::EndScan { of, id, node, outcome } => self.end_scan(&of, id, node, outcome),
            Command::MoveChunks(moved) => self.move_chunks(&moved),
            Command::SettleImages { images } => self.settle_images(&images),
            Command::IndexLists => self.index_lists(),
            Command::NoteRegistration { address, limit, window_ms } => {
                self.note_registration(&address, limit, window_ms)
            }
            Command::RehashPassword { user, from, to } => self.rehash_password(&user, from, to),
        }
    }
}
