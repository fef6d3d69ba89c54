//! A node's data folder: who it is and which cluster it belongs to.
//!
//! Layout: `lock`, `key` (Ed25519, PKCS#8), `node.pem`, `ca.pem`, `member.json`, and the folders
//! `raft`, `cache`, `storage` and `scanner`; `counters.json` while it is stopped. `member.json` is written last: a node whose founding or joining was cut
//! off is not a member and begins again. `founding` and `restoring` are there from before either puts
//! anything into `raft` until the membership is written, and say that what lies there is nobody's. `begun` says of which member there is something in `raft`: who
//! has joined starts with nothing there, and later never again.
//!
//! Invariant: one process at a time.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use shoal_content::{ClusterId, NodeId};
use shoal_p2p::identity::{self, Credentials, KeyPair};
use thiserror::Error;
use tracing::warn;

use crate::http::problem::chain;

#[derive(Debug, Error)]
pub enum Error {
    #[error("{path} cannot be used")]
    File { path: PathBuf, source: io::Error },
    #[error("another process uses {0}; stop it first, or choose another data_dir")]
    Locked(PathBuf),
    #[error("{0} holds something else than a node's membership")]
    Member(PathBuf),
    #[error("the node is a member of a cluster already; its data is in {0}")]
    Exists(PathBuf),
    #[error(
        "the node is a member of a cluster already; its data is in {0}. If it was founded here and nobody \
         has seen its administrator's password, start it with 'shoal-node run', and have another one made \
         by 'shoal-node recover-admin'"
    )]
    Founded(PathBuf),
    #[error(
        "a restore into {0} was cut off: repeat it, or begin with another data_dir, or remove the file \
         'restoring' there and what it has left in 'raft' and 'raft.restoring'"
    )]
    Restoring(PathBuf),
    #[error(
        "{folder} holds nothing of what node {node} knew and has promised to others, without which it \
         must not vote: bring the folder back, or remove the node from its cluster and have it join \
         anew with an empty data folder"
    )]
    Forgotten { folder: PathBuf, node: u64 },
    #[error(
        "storage says nothing of whose it is, though this node has seen its cluster named there: is the \
         folder mounted, is it the right bucket? If it is the storage to go on with, remove {0} and \
         start again"
    )]
    OtherStorage(PathBuf),
    #[error(
        "{0} holds what another membership has left, or a founding that was cut off; begin with an empty \
         data_dir, or remove that folder if nothing in it is needed"
    )]
    Leftover(PathBuf),
    #[error("the node's key cannot be used")]
    Identity(#[from] identity::Error),
}

/// Says that this member has seen its cluster's name in storage.
const STORED: &str = "stored";
/// Says that a founding has begun that has not ended.
const FOUNDING: &str = "founding";
/// The same of a restore.
const RESTORING: &str = "restoring";
const RAFT_PROTOCOL: &[u8] = b"shoal-raft/1";

/// What `member.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub cluster: ClusterId,
    pub node: u64,
    /// Of a cluster that was restored from a backup: which of its lives the node belongs to.
    /// Members of another one cannot talk to it by Raft.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lineage: Option<String>,
}

impl Member {
    /// The protocol that the Raft connections of its group agree on (ALPN).
    pub fn raft_protocol(&self) -> Vec<u8> {
        match &self.lineage {
            None => RAFT_PROTOCOL.to_vec(),
            Some(lineage) => [RAFT_PROTOCOL, b"+", lineage.as_bytes()].concat(),
        }
    }

    pub fn id(&self) -> NodeId {
        NodeId::new(self.node)
    }

    /// Another text for each node of each life of each cluster.
    pub fn life(&self) -> String {
        let lineage = self.lineage.as_deref().unwrap_or_default();
        format!("{} {lineage} {}", self.cluster, self.node)
    }
}

/// An open and locked data folder.
#[derive(Debug)]
pub struct Home {
    folder: PathBuf,
    key: Arc<KeyPair>,
    _lock: Flock<File>,
}

impl Home {
    /// Opens `folder`, making it, readable by its owner alone, where it is missing.
    ///
    /// # Errors
    /// [`Error::Locked`] where another process has it; else what the file system says.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let fail = |source| Error::File { path: folder.into(), source };
        fs::create_dir_all(folder).map_err(fail)?;
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(0o600);
        let file = options.open(folder.join("lock")).map_err(fail)?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|_| Error::Locked(folder.into()))?;
        let key = Arc::new(KeyPair::load_or_create(&folder.join("key"))?);
        Ok(Self { folder: folder.into(), key, _lock: lock })
    }

    pub fn key(&self) -> &Arc<KeyPair> {
        &self.key
    }

    pub fn raft_folder(&self) -> PathBuf {
        self.folder.join("raft")
    }

    pub fn storage_folder(&self) -> PathBuf {
        self.folder.join("storage")
    }

    /// What is kept of objects that lie elsewhere.
    pub fn cache_folder(&self) -> PathBuf {
        self.folder.join("cache")
    }

    /// For blobs on their way from other registries.
    pub fn upstreams_folder(&self) -> PathBuf {
        self.folder.join("upstreams")
    }

    /// What the scanner knows, and what it is looking at.
    pub fn scanner_folder(&self) -> PathBuf {
        self.folder.join("scanner")
    }

    /// The counters of a node that was stopped.
    pub fn counters_file(&self) -> PathBuf {
        self.folder.join("counters.json")
    }

    /// Notes that wait for the audit trail.
    pub fn audit_file(&self) -> PathBuf {
        self.folder.join("audit.journal")
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The membership, if founding or joining was finished.
    ///
    /// # Errors
    /// Where the file is there but is no membership.
    pub fn member(&self) -> Result<Option<Member>, Error> {
        self.read_member("member.json")
    }

    /// Refuses where what this member had in its Raft folder is gone.
    ///
    /// # Errors
    /// [`Error::Forgotten`], or what the file system says.
    pub fn check_raft(&self, member: &Member) -> Result<(), Error> {
        let folder = self.raft_folder();
        if self.has_begun(member)? && !shoal_raft::has_databases(&folder) {
            return Err(Error::Forgotten { folder, node: member.node });
        }
        Ok(())
    }

    /// Refuses where there is anything in the Raft folder of who is no member yet: with another group's
    /// log it would answer for what this one never agreed on.
    ///
    /// # Errors
    /// [`Error::Leftover`], or what the file system says.
    pub fn check_unused(&self) -> Result<(), Error> {
        let folder = self.raft_folder();
        match fs::read_dir(&folder).map(|mut entries| entries.next().is_none()) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::Leftover(folder)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(Error::File { path: folder, source }),
        }
    }

    /// The first step of a founding. What an earlier one has left that was cut off goes.
    ///
    /// # Errors
    /// [`Error::Restoring`], [`Error::Leftover`], or what the file system says.
    pub fn begin_founding(&self) -> Result<(), Error> {
        self.drop_unfounded()?;
        if self.folder.join(RESTORING).exists() {
            return Err(Error::Restoring(self.folder.clone()));
        }
        self.check_unused()?;
        self.save(FOUNDING, b"")
    }

    /// Clears away what a founding has left that was cut off. Its cluster had this node alone, and
    /// nobody was told its password: nothing there is needed. To be asked of who is no member.
    ///
    /// # Errors
    /// What the file system says; then it is asked again.
    pub fn drop_unfounded(&self) -> Result<(), Error> {
        if !self.folder.join(FOUNDING).exists() {
            return Ok(());
        }
        let folder = self.raft_folder();
        // The marker goes last: it says that the rest is nobody's.
        empty(&folder).map_err(|source| Error::File { path: folder, source })?;
        self.remove(FOUNDING)
    }

    /// Forgets that a founding or restore had not ended. A member's Raft folder is its own, whatever
    /// should become of its membership.
    pub fn drop_markers(&self) {
        for name in [FOUNDING, RESTORING] {
            if let Err(error) = self.remove(name) {
                warn!(error = chain(&error), "a file that says nothing any more stays");
            }
        }
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        let path = self.folder.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::File { path, source: error })
            }
            _ => Ok(()),
        }
    }

    /// Notes, once, that there is something of this member in the Raft folder.
    ///
    /// # Errors
    /// As [`Self::save_certificates`].
    pub fn note_begun(&self, member: &Member) -> Result<(), Error> {
        if self.has_begun(member)? { Ok(()) } else { self.save_as("begun", member) }
    }

    /// Refuses storage without a name where this member has seen one.
    ///
    /// # Errors
    /// As [`Self::member`], and [`Error::OtherStorage`].
    pub fn check_new_storage(&self, member: &Member) -> Result<(), Error> {
        if self.read_member(STORED)?.as_ref() == Some(member) {
            return Err(Error::OtherStorage(self.folder.join(STORED)));
        }
        Ok(())
    }

    /// Notes, once, that storage names this member's cluster.
    ///
    /// # Errors
    /// As [`Self::save_certificates`].
    pub fn note_storage(&self, member: &Member) -> Result<(), Error> {
        let known = self.read_member(STORED)?.as_ref() == Some(member);
        if known { Ok(()) } else { self.save_as(STORED, member) }
    }

    /// Of another membership than this one it says nothing.
    fn has_begun(&self, member: &Member) -> Result<bool, Error> {
        Ok(self.read_member("begun")?.as_ref() == Some(member))
    }

    fn read_member(&self, name: &str) -> Result<Option<Member>, Error> {
        let path = self.folder.join(name);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|_| Error::Member(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::File { path, source }),
        }
    }

    /// # Errors
    /// Where a certificate is missing.
    pub fn credentials(&self) -> Result<Credentials, Error> {
        let path = self.folder.join("node.pem");
        let certificate =
            fs::read_to_string(&path).map_err(|source| Error::File { path, source })?;
        Ok(Credentials::new(Arc::clone(&self.key), &certificate, self.authorities()?)?)
    }

    /// The authorities that are believed, PEM.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn authorities(&self) -> Result<String, Error> {
        let path = self.folder.join("ca.pem");
        fs::read_to_string(&path).map_err(|source| Error::File { path, source })
    }

    /// Keeps other ones.
    ///
    /// # Errors
    /// As [`Self::save_certificates`].
    pub fn save_authorities(&self, pem: &str) -> Result<(), Error> {
        self.save("ca.pem", pem.as_bytes())
    }

    /// Keeps the certificates. The membership follows when the cluster knows of it.
    ///
    /// # Errors
    /// Where a file cannot be written and synced.
    pub fn save_certificates(
        &self,
        certificate_pem: &str,
        authority_pem: &str,
    ) -> Result<(), Error> {
        self.save("node.pem", certificate_pem.as_bytes())?;
        self.save_authorities(authority_pem)
    }

    /// The first step of a restore, which removes the marker in the end.
    ///
    /// # Errors
    /// As [`Self::save_certificates`].
    pub fn save_marker(&self) -> Result<(), Error> {
        self.save(RESTORING, b"")
    }

    /// The last step of founding and of joining.
    ///
    /// # Errors
    /// As [`Self::save_certificates`].
    pub fn save_member(&self, member: &Member) -> Result<(), Error> {
        self.save_as("member.json", member)
    }

    fn save_as(&self, name: &str, member: &Member) -> Result<(), Error> {
        let text =
            serde_json::to_vec_pretty(member).map_err(|_| Error::Member(self.folder.clone()))?;
        self.save(name, &text)
    }

    /// Write beside, sync, rename, sync the folder.
    fn save(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.folder.join(name);
        let part = self.folder.join(format!("{name}.part"));
        let written = (|| {
            let mut file = OpenOptions::new()
                .create(true)
                .write(true)
                .truncate(true)
                .mode(0o600)
                .open(&part)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&part, &path)?;
            File::open(&self.folder)?.sync_all()
        })();
        written.map_err(|source| Error::File { path, source })
    }
}

/// Removes all that is in a folder, if there is one.
fn empty(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_process_and_one_membership() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open(folder.path()).unwrap();
        assert!(matches!(Home::open(folder.path()), Err(Error::Locked(_))));
        assert_eq!(home.member().unwrap(), None);
        let cluster = ClusterId::from_uuid(uuid::Uuid::from_u128(5));
        let member = Member { cluster, node: 3, lineage: None };
        home.save_member(&member).unwrap();
        let peer = home.key().peer_id();
        drop(home);
        let home = Home::open(folder.path()).unwrap();
        assert_eq!(home.member().unwrap(), Some(member));
        assert_eq!(home.key().peer_id(), peer);
    }

    #[test]
    fn a_member_starts_without_raft_data_only_as_long_as_it_never_had_any() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open(folder.path()).unwrap();
        let cluster = ClusterId::from_uuid(uuid::Uuid::from_u128(5));
        let member = Member { cluster, node: 3, lineage: None };
        home.check_raft(&member).unwrap();
        home.note_begun(&member).unwrap();
        assert!(matches!(home.check_raft(&member), Err(Error::Forgotten { node: 3, .. })));
        // Removed, and joined anew.
        home.check_raft(&Member { node: 4, ..member }).unwrap();
    }

    #[test]
    fn who_is_to_join_has_nothing_of_another_group() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open(folder.path()).unwrap();
        home.check_unused().unwrap();
        fs::create_dir(home.raft_folder()).unwrap();
        home.check_unused().unwrap();
        fs::write(home.raft_folder().join("log"), b"of another one").unwrap();
        assert!(matches!(home.check_unused(), Err(Error::Leftover(_))));
    }

    #[test]
    fn what_a_founding_has_left_that_was_cut_off_goes_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open(folder.path()).unwrap();
        let raft = home.raft_folder();
        let fill = || {
            fs::create_dir_all(raft.join("log")).unwrap();
            fs::write(raft.join("log/1"), b"entries").unwrap();
            fs::write(raft.join("state.current"), b"state-1").unwrap();
        };
        home.begin_founding().unwrap();
        fill();
        home.begin_founding().unwrap();
        home.check_unused().unwrap();
        fill();
        home.drop_unfounded().unwrap();
        home.check_unused().unwrap();
        assert!(!folder.path().join(FOUNDING).exists());
        // What no founding put there is somebody's.
        fill();
        home.drop_unfounded().unwrap();
        assert!(matches!(home.begin_founding(), Err(Error::Leftover(_))));
        assert!(raft.join("log/1").exists());
        // Neither is what a restore was about to make.
        empty(&raft).unwrap();
        home.save_marker().unwrap();
        assert!(matches!(home.begin_founding(), Err(Error::Restoring(_))));
        home.drop_markers();
        home.begin_founding().unwrap();
    }

    #[test]
    fn who_has_seen_its_storage_takes_no_nameless_one_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open(folder.path()).unwrap();
        let cluster = ClusterId::from_uuid(uuid::Uuid::from_u128(5));
        let member = Member { cluster, node: 3, lineage: None };
        home.check_new_storage(&member).unwrap();
        home.note_storage(&member).unwrap();
        assert!(matches!(home.check_new_storage(&member), Err(Error::OtherStorage(_))));
        // Restored into new storage.
        home.check_new_storage(&Member { lineage: Some("a".into()), ..member }).unwrap();
    }
}
