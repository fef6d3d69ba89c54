//! Which rows of a backup come along into a new cluster, and as what.
//!
//! A restored cluster is the old one – its id, its authority and keys, users, agents, images – with
//! other nodes. So everything comes along but for what belonged to the old nodes or to a moment:
//!
//! | rows | what becomes of them |
//! |---|---|
//! | nodes | their ids are retired, so that no new node gets one; what they ran and had is dropped |
//! | join tokens | dropped: one may have been revoked since |
//! | upload sessions | dropped: their parts and leases were of the moment; clients begin again |
//! | sessions of people | dropped: one may have been ended since; they log in again |
//! | reservations | dropped with their sessions, from accounts, too |
//! | scans | those that had not come to an end have failed |
//! | deployments | kept as history; hosts that had not come to an end have failed |
//!
//! Users, agents and rights are those of the backup: what was taken away since is there again.
//!
//! Invariant: counts and indexes agree with the rows as they did in the backup.

use crate::codec::encode_row;
use crate::key;
use crate::quota::Account;
use crate::record::{Deployment, HostState, Node};
use crate::scan::{Scan, ScanState};
use crate::table::{Fault, Table};
use crate::transaction::decoded;

/// Why a host of a restored deployment got no further.
const RESTORED: &str = "the cluster was restored from a backup; deploy again";
/// Why a scan of a restored cluster found nothing.
const RESTORED_SCAN: &str = "the cluster was restored from a backup; order the scan again";

/// What becomes of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Carried {
    AsItIs,
    Dropped,
    Instead { table: Table, key: Vec<u8>, row: Vec<u8> },
}

/// What becomes of one row of a backup.
///
/// # Errors
/// [`Fault::Row`] for a row that cannot be read and would have to be.
pub fn carry(table: Table, key: &[u8], row: &[u8]) -> Result<Carried, Fault> {
    // Every table is named: whoever adds one decides.
    Ok(match table {
        Table::Nodes => {
            let (table, key) = (Table::RetiredNodes, key.to_vec());
            let node: Node = decoded(Table::Nodes, row)?;
            Carried::Instead { table, key, row: encode_row(&node.peer) }
        }
        Table::JoinTokens
        | Table::OpenScans
        | Table::Uploads
        | Table::UploadExpiries
        | Table::PendingDeployments
        | Table::AuditRuns
        | Table::UploadNotes
        | Table::DownloadRuns
        | Table::Sessions
        | Table::OpenUploads
        | Table::NodeMasterKeys
        | Table::DeploymentDeadlines
        | Table::Reservations => Carried::Dropped,
        Table::Accounts => {
            let account: Account = decoded(table, row)?;
            let account = Account { reserved_bytes: 0, ..account };
            match account == Account::default() {
                true => Carried::Dropped,
                false => Carried::Instead { table, key: key.to_vec(), row: encode_row(&account) },
            }
        }
        Table::Cluster if key::is_program(key) || key::is_node_authority(key) => Carried::Dropped,
        Table::Deployments => match ended(decoded(table, row)?) {
            None => Carried::AsItIs,
            Some(ended) => Carried::Instead { table, key: key.to_vec(), row: encode_row(&ended) },
        },
        Table::Scans => {
            let scan: Scan = decoded(table, row)?;
            let at = scan.ordered_at;
            match scan.state.is_open() {
                false => Carried::AsItIs,
                true => {
                    let state = ScanState::Failed { at, reason: RESTORED_SCAN.to_owned() };
                    let row = encode_row(&Scan { state, ..scan });
                    Carried::Instead { table, key: key.to_vec(), row }
                }
            }
        }
        Table::Cluster
        | Table::RetiredNodes
        | Table::Users
        | Table::Emails
        | Table::SecondFactors
        | Table::Identities
        | Table::UserIdentities
        | Table::WorkloadRules
        | Table::Leavings
        | Table::Agents
        | Table::AgentNames
        | Table::Images
        | Table::ImageNames
        | Table::Versions
        | Table::VersionIds
        | Table::VersionSequences
        | Table::VersionNumbers
        | Table::Manifests
        | Table::Referrers
        | Table::Tags
        | Table::VersionTags
        | Table::Blobs
        | Table::BlobHolds
        | Table::BlobLinks
        | Table::BlobReferences
        | Table::Objects
        | Table::UnreferencedObjects
        | Table::DeploymentTimes
        | Table::Counts
        | Table::DeletingObjects
        | Table::LooseBlobs
        | Table::Projects
        | Table::Organizations
        | Table::Groups
        | Table::Rights
        | Table::Grants
        | Table::MappedMembers
        | Table::GranteePlaces
        | Table::Robots
        | Table::PersonalTokens
        | Table::UserTokens
        | Table::Policies
        | Table::TagPushes
        | Table::TagPulls
        | Table::VersionPulls
        | Table::UntaggedVersions
        | Table::ManifestParents
        | Table::Quotas
        | Table::Suspicions
        | Table::Blocks
        | Table::SuspicionEnds
        | Table::AuditEntries
        | Table::AuditArchives
        | Table::ImageNotes
        | Table::DeletedImages
        | Table::PurgedImages
        | Table::VersionNotes
        | Table::Instances
        | Table::VersionInstances
        | Table::Stars
        | Table::UserStars
        | Table::ImageCounters
        | Table::VersionDownloads
        | Table::TagBirths
        | Table::TagAuthors
        | Table::BlobHolders
        | Table::DeploymentPlans
        | Table::WarmUps
        | Table::Deltas
        | Table::AwaitedContents
        | Table::AwaitingVersions
        | Table::Passkeys
        | Table::Credentials
        | Table::PasskeyOwners
        | Table::SpentChallenges
        | Table::DataKeys
        | Table::OwnerDataKeys
        | Table::HandedKeys
        | Table::Expelled
        | Table::DiskFiles
        | Table::Relocations
        | Table::ThinnedImages
        | Table::ProjectAudiences
        | Table::TagOrder
        | Table::ImageTallies
        | Table::OwnerProjects
        | Table::ProjectContents => Carried::AsItIs,
    })
}

/// The deployment with every host at an end, where one was not.
fn ended(mut deployment: Deployment) -> Option<Deployment> {
    let mut changed = false;
    for state in deployment.hosts.values_mut() {
        if !state.has_ended() {
            *state = HostState::Failed { reason: RESTORED.to_owned() };
            changed = true;
        }
    }
    changed.then_some(deployment)
}
