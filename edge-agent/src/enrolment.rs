//! What a join brings, and where it lies: who this agent is, which cluster it belongs to, and the
//! nodes it knows.
//!
//! Files in the data folder, each readable by its owner only:
//! ```text
//! lock              locked while a process works on the folder
//! identity.pk8      the Ed25519 key
//! cluster.json      certificate, authority, ticket and network keys; its presence means: enrolled
//! nodes.json        the nodes, as last heard
//! ticket-keys.json  what checks tickets, as last heard
//! expelled.json     who was removed from the cluster, as last heard
//! members           others in the discovery network, for when no node answers
//! ```
//! Write order of a join: the key (before the request that names it), then `cluster.json` by a
//! file beside, a sync and a rename. A join that ends between is made again with the same key. Files
//! beside end in `.new`; those that were never put in place go when the folder is opened.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use shoal_api::{NodeAddress, TicketKeyInfo};
use shoal_content::{ClusterId, PeerId, Zone};
use thiserror::Error;
use tracing::warn;

use crate::config::Role;

const LOCK_FILE: &str = "lock";
const KEY_FILE: &str = "identity.pk8";
const CLUSTER_FILE: &str = "cluster.json";
const NODES_FILE: &str = "nodes.json";
const TICKET_KEYS_FILE: &str = "ticket-keys.json";
const EXPELLED_FILE: &str = "expelled.json";
const MEMBERS_FILE: &str = "members";
/// How the names of files end that are not put in place yet.
const UNFINISHED: &str = ".new";

/// Why the data folder cannot be used.
#[derive(Debug, Error)]
pub enum Error {
    #[error("{doing} {path} failed")]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "{0} is in use by another shoal-agent; stop that one, or give this one another agent.data_dir"
    )]
    Locked(PathBuf),
    #[error("{path} is damaged: {message}; restore it, or remove it and join again")]
    Damaged { path: PathBuf, message: String },
}

/// What the cluster gave this agent.
#[derive(Clone, Serialize, Deserialize)]
pub struct Enrolment {
    pub cluster: ClusterId,
    /// The name that it joined under.
    pub name: String,
    pub zone: Zone,
    pub role: Role,
    /// With what leads to it from older authorities behind it.
    pub certificate_pem: String,
    /// The authorities that are believed.
    pub authority_pem: String,
    /// Ed25519, hexadecimal: checks tickets.
    pub ticket_public_key: String,
    /// 32 bytes, hexadecimal: the libp2p network's pre-shared key.
    pub network_key: String,
}

impl std::fmt::Debug for Enrolment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Enrolment").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

/// The data folder, locked by this process.
#[derive(Debug)]
pub struct DataFolder {
    path: PathBuf,
    /// One writer at a time, so that what is written last was said last.
    writing: Mutex<()>,
    /// The lock goes with the file.
    _lock: File,
}

impl DataFolder {
    /// Makes the folder where it is missing, and locks it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let context = |doing| move |source| Error::Io { doing, path: path.to_owned(), source };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(context("making the data folder"))?;
        let lock = private(&path.join(LOCK_FILE)).map_err(context("locking"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(Error::Locked(path.to_owned())),
            Err(fs::TryLockError::Error(source)) => return Err(context("locking")(source)),
        }
        clear_unfinished(path).map_err(context("clearing"))?;
        Ok(Self { path: path.to_owned(), writing: Mutex::new(()), _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn members_path(&self) -> PathBuf {
        self.path.join(MEMBERS_FILE)
    }

    pub fn key_path(&self) -> PathBuf {
        self.path.join(KEY_FILE)
    }

    pub fn cache_path(&self) -> PathBuf {
        self.path.join("cache")
    }

    pub fn catalogue_path(&self) -> PathBuf {
        self.path.join("images")
    }

    /// `None` where no join has succeeded yet.
    pub fn enrolment(&self) -> Result<Option<Enrolment>, Error> {
        read_json(&self.path.join(CLUSTER_FILE))
    }

    pub fn save_enrolment(&self, enrolment: &Enrolment) -> Result<(), Error> {
        let _turn = self.writing.lock();
        write_json(&self.path.join(CLUSTER_FILE), enrolment)
    }

    /// The nodes as last heard; none before the first join.
    pub fn nodes(&self) -> Result<Vec<NodeAddress>, Error> {
        Ok(read_json(&self.path.join(NODES_FILE))?.unwrap_or_default())
    }

    /// As last heard; none before a node has told them.
    pub fn ticket_keys(&self) -> Result<Vec<TicketKeyInfo>, Error> {
        Ok(read_json(&self.path.join(TICKET_KEYS_FILE))?.unwrap_or_default())
    }

    pub fn save_ticket_keys(&self, keys: &[TicketKeyInfo]) -> Result<(), Error> {
        let _turn = self.writing.lock();
        write_json(&self.path.join(TICKET_KEYS_FILE), &keys)
    }

    /// Who was removed from the cluster, as last heard. A file that cannot be read is nobody's: a
    /// node tells all of them again.
    pub fn expelled(&self) -> BTreeSet<PeerId> {
        match read_json(&self.path.join(EXPELLED_FILE)) {
            Ok(expelled) => expelled.unwrap_or_default(),
            Err(error) => {
                warn!(%error, "it is not known who was removed from the cluster until a node says");
                BTreeSet::new()
            }
        }
    }

    /// `peers` is called when it is this writer's turn.
    pub fn save_expelled(&self, peers: impl FnOnce() -> BTreeSet<PeerId>) -> Result<(), Error> {
        let _turn = self.writing.lock();
        write_json(&self.path.join(EXPELLED_FILE), &peers())
    }

    pub fn save_nodes(&self, nodes: &[NodeAddress]) -> Result<(), Error> {
        let _turn = self.writing.lock();
        write_json(&self.path.join(NODES_FILE), &nodes)
    }
}

/// What the folder says of this agent, read without its lock, so also beside a running daemon.
#[derive(Debug)]
pub struct Known {
    pub enrolment: Option<Enrolment>,
    pub nodes: Vec<NodeAddress>,
}

impl Known {
    pub fn read(data_dir: &Path) -> Result<Self, Error> {
        Ok(Self {
            enrolment: read_json(&data_dir.join(CLUSTER_FILE))?,
            nodes: read_json(&data_dir.join(NODES_FILE))?.unwrap_or_default(),
        })
    }
}

fn private(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Reads a JSON file; `None` where there is none.
pub(crate) fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, Error> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => {
            read.map_err(|source| Error::Io { doing: "reading", path: path.to_owned(), source })?
        }
    };
    let damaged = |error: serde_json::Error| Error::Damaged {
        path: path.to_owned(),
        message: error.to_string(),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(damaged)
}

/// Writes a JSON file beside, syncs it and puts it in place: a reader sees the old or the new. Its
/// owner alone may read it. Each call has a file of its own beside, so several may write at once, and
/// the last to end counts.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), Error> {
    let write = || -> io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut beside = tempfile::Builder::new().suffix(UNFINISHED).tempfile_in(folder)?;
        beside.write_all(&serde_json::to_vec_pretty(value)?)?;
        beside.as_file().sync_all()?;
        beside.persist(path)?;
        crate::cache::sync_parent(path)
    };
    write().map_err(|source| Error::Io { doing: "writing", path: path.to_owned(), source })
}

/// Removes what a process that was killed in [`write_json`] left in `folder`, where nobody writes
/// now.
pub(crate) fn clear_unfinished(folder: &Path) -> io::Result<()> {
    for found in fs::read_dir(folder)? {
        let found = found?;
        let unfinished = found.file_name().as_encoded_bytes().ends_with(UNFINISHED.as_bytes());
        if unfinished && found.file_type()?.is_file() {
            fs::remove_file(found.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    pub fn enrolment() -> Enrolment {
        Enrolment {
            cluster: format!("cluster-{:032}", 7).parse().unwrap(),
            name: "host".into(),
            zone: Zone::default(),
            role: Role::Host,
            certificate_pem: "c".into(),
            authority_pem: "a".into(),
            ticket_public_key: "t".into(),
            network_key: "n".into(),
        }
    }

    #[test]
    fn one_process_at_a_time_and_nobody_else_reads() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data");
        let folder = DataFolder::open(&path).unwrap();
        assert!(matches!(DataFolder::open(&path), Err(Error::Locked(_))));
        assert!(folder.enrolment().unwrap().is_none());
        folder.save_enrolment(&enrolment()).unwrap();
        assert_eq!(folder.enrolment().unwrap().unwrap().name, "host");
        let mode = fs::metadata(path.join(CLUSTER_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let gone = BTreeSet::from([PeerId::from_public_key([1; 32])]);
        folder.save_expelled(|| gone.clone()).unwrap();
        drop(folder);
        fs::write(path.join("half.new"), b"{").unwrap();
        let folder = DataFolder::open(&path).unwrap();
        assert!(!path.join("half.new").exists(), "what a crash left stays for good");
        fs::write(path.join(CLUSTER_FILE), b"{").unwrap();
        assert!(matches!(folder.enrolment(), Err(Error::Damaged { .. })));
        assert_eq!(folder.expelled(), gone);
        fs::write(path.join(EXPELLED_FILE), b"[").unwrap();
        assert_eq!(folder.expelled(), BTreeSet::new(), "that can be heard again");
    }

    #[test]
    fn several_write_one_file_at_once_and_one_of_them_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("one.json");
        std::thread::scope(|scope| {
            for writer in 0..4u32 {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..20 {
                        write_json(path, &vec![writer; 1000]).unwrap();
                    }
                });
            }
        });
        let read: Vec<u32> = read_json(&path).unwrap().unwrap();
        assert!(read.len() == 1000 && read.iter().all(|one| *one == read[0]), "{read:?}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "something is left beside");
    }
}
