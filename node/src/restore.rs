//! Makes a new cluster of one node out of a backup (the file: `shoal_formats::backup`).
//!
//! The new cluster is the old one, as it was, on other nodes: the same id, authority, keys, users,
//! agents and images, so that agents go on without enrolling again and passwords stay good. What
//! does not come along is said in `shoal_metadata::carry`. Its Raft group is another one: a log of
//! its own, a node id that was never given out, and a *lineage* – a random name in the protocol that
//! Raft's connections agree on – so that nodes of the old group that still run and have good
//! certificates cannot talk to it. Other nodes join as they would join any cluster.
//!
//! Stop the old nodes before: agents cannot tell the two apart. In the storage that they had, they
//! collect no garbage from then on, and do not start.
//!
//! Order: the whole file is read and checked before anything is made. Then a marker; databases in
//! `raft.restoring`; objects, where they are given, into storage; certificates; `raft.restoring`
//! becomes `raft`; Raft runs once to register this node; storage becomes this life's (see
//! `ownership`); `member.json`, which makes it a member; the marker goes. Whatever fails before
//! `member.json`, what was made is removed; a crash leaves the marker, and the next restore clears what
//! it finds beside it.
//!
//! Non-goal: going back within a cluster that runs.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use futures::{StreamExt, TryStreamExt};
use prometheus_client::registry::Registry;
use shoal_content::NodeId;
use shoal_formats::backup::{BackupError, Check, Flaw, Frame, Head, Needed, Reader, Totals};
use shoal_metadata::{
    COMMAND_VERSION, Carried, Cluster, Command, Fault, KeyOwner, Memory, Query, ROW_VERSION, Table,
    carry, decode_row,
};
use shoal_p2p::identity::Role;
use shoal_raft::{ProposeError, Raft, Restoring};
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::{info, warn};
use uuid::Uuid;

use crate::authorities::{self, Held};
use crate::clock::now;
use crate::config::Config;
use crate::encryption::{self, Vault};
use crate::founding::node_row;
use crate::home::{self, Home, Member};
use crate::http::problem::chain;
use crate::ownership::{Ownership, OwnershipError};
use crate::registry::PartSchedule;
use crate::store::{BlobStore, PART_BYTES_MIN, StoreError};
use crate::verification::look;

/// Read of the file at once.
const BUFFER_BYTES: usize = 1024 * 1024;
/// Objects that are put or looked at at once.
const OBJECTS_AT_ONCE: usize = 8;
/// Parts of an object that is longer than this go to storage one by one. Those of a very long one are
/// longer, since storage takes no more than so many (see `PartSchedule`).
const PART_BYTES: u64 = 4 * PART_BYTES_MIN;
/// What the parts that are on their way take together.
const PARTS_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// Objects named in a message.
const NAMED_MAX: usize = 5;
const LEADER_DEADLINE: std::time::Duration = std::time::Duration::from_secs(60);

static PARTS: LazyLock<Semaphore> =
    LazyLock::new(|| Semaphore::new(units(PARTS_BYTES_MAX) as usize));

/// Why nothing was restored.
#[derive(Debug, Error)]
pub enum Error {
    #[error("{path} cannot be used as a backup")]
    Backup { path: PathBuf, source: BackupError },
    #[error("{path} cannot be used")]
    File { path: PathBuf, source: std::io::Error },
    #[error(
        "{path} was made by a later program ({program}); install that version, or a later one, and restore with it"
    )]
    Newer { path: PathBuf, program: String },
    #[error("{path} holds no cluster")]
    NoCluster { path: PathBuf },
    #[error("a row of the backup cannot be taken over")]
    Row(#[from] Fault),
    #[error(transparent)]
    Home(#[from] home::Error),
    #[error("{0} is there already; restore into an empty data_dir")]
    NotEmpty(PathBuf),
    #[error(transparent)]
    Authorities(#[from] authorities::Error),
    #[error("keys or certificates cannot be used")]
    Identity(#[from] shoal_p2p::identity::Error),
    #[error("the metadata could not be written")]
    Raft(#[from] shoal_raft::Error),
    #[error("the node could not register itself")]
    Propose(#[from] ProposeError),
    #[error("{what} cannot be started: {reason}")]
    Start { what: &'static str, reason: String },
    #[error("storage did not take the objects")]
    Store(#[from] StoreError),
    #[error("storage cannot be this cluster's")]
    Ownership(#[from] OwnershipError),
    #[error("what is sealed cannot be read")]
    Encryption(#[from] encryption::Error),
    #[error(
        "{count} objects of the backup are missing or damaged in {folder}, for instance {examples}"
    )]
    Objects { folder: PathBuf, count: u64, examples: String },
    #[error("the metadata were not ready in time")]
    NoLeader,
    #[error("the work was interrupted")]
    Interrupted,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    pub head: Head,
    pub totals: Totals,
    pub member: Member,
    /// Objects that were put into storage.
    pub put: u64,
    /// Objects that the metadata name and that storage does not have as they should be.
    pub missing: u64,
}

/// What is needed besides the configuration.
#[derive(Debug)]
pub struct Plan<'a> {
    pub file: &'a Path,
    /// The folder of the backup's objects; without it they must be in storage already.
    pub objects: Option<&'a Path>,
}

/// A backup that was read from its beginning to its end, and is sound.
#[derive(Debug)]
struct Sound {
    head: Head,
    totals: Totals,
    cluster: Cluster,
    node: NodeId,
}

/// Reads all of it, and changes nothing.
fn examine(file: &Path) -> Result<Sound, Error> {
    let backup = |source| Error::Backup { path: file.to_owned(), source };
    let mut reader = open(file)?;
    let head = reader.head().clone();
    let newer = head.level > COMMAND_VERSION
        || head.row_version > ROW_VERSION
        || usize::from(head.tables) > Table::ALL.len();
    if newer {
        return Err(Error::Newer { path: file.to_owned(), program: head.program });
    }
    let (mut cluster, mut last_node) = (None, 0);
    loop {
        match reader.next_frame().map_err(backup)? {
            Some(Frame::Rows(rows)) => {
                for row in rows {
                    let table = table(file, row.table)?;
                    carry(table, row.key, row.row)?;
                    match table {
                        Table::Cluster if row.key.is_empty() => {
                            let read = decode_row::<Cluster>(row.row);
                            cluster = Some(read.map_err(|source| Fault::Row { table, source })?);
                        }
                        Table::Nodes | Table::RetiredNodes => {
                            let number = <[u8; 8]>::try_from(row.key).map(u64::from_be_bytes);
                            let number =
                                number.map_err(|_| Fault::Contradiction("a node's key"))?;
                            last_node = last_node.max(number);
                        }
                        _ => {}
                    }
                }
            }
            Some(Frame::Objects(_)) => {}
            Some(Frame::End(totals)) => {
                let cluster = cluster.ok_or_else(|| Error::NoCluster { path: file.to_owned() })?;
                let next = last_node.checked_add(1).ok_or(Fault::Contradiction("a node's key"))?;
                return Ok(Sound { head, totals, cluster, node: NodeId::new(next) });
            }
            None => return Err(backup(BackupError::Malformed("it has no end"))),
        }
    }
}

fn open(file: &Path) -> Result<Reader<BufReader<File>>, Error> {
    let opened = File::open(file);
    let opened = opened.map_err(|source| Error::File { path: file.to_owned(), source })?;
    let reader = Reader::new(BufReader::with_capacity(BUFFER_BYTES, opened));
    reader.map_err(|source| Error::Backup { path: file.to_owned(), source })
}

fn table(file: &Path, number: u8) -> Result<Table, Error> {
    let malformed = BackupError::Malformed("a row of no table");
    Table::from_number(number)
        .ok_or_else(|| Error::Backup { path: file.to_owned(), source: malformed })
}

/// Writes the rows that come along; gives nothing that can be started yet.
///
/// Of those that say how objects are sealed there is a copy, and of the cluster's own.
fn write_rows(file: &Path, directory: &Path) -> Result<(Restoring, Memory), Error> {
    let mut restoring = Restoring::begin(directory)?;
    let mut keys = Memory::default();
    let mut reader = open(file)?;
    let backup = |source| Error::Backup { path: file.to_owned(), source };
    while let Some(frame) = reader.next_frame().map_err(backup)? {
        let Frame::Rows(rows) = frame else { continue };
        for row in rows {
            let table = table(file, row.table)?;
            let opens = matches!(table, Table::DataKeys | Table::OwnerDataKeys | Table::HandedKeys);
            if opens || table == Table::Cluster {
                keys.commit([((table, row.key.to_vec()), Some(row.row.to_vec()))].into());
            }
            match carry(table, row.key, row.row)? {
                Carried::AsItIs => restoring.put(table, row.key, row.row)?,
                Carried::Instead { table, key, row } => restoring.put(table, &key, &row)?,
                Carried::Dropped => {}
            }
        }
    }
    Ok((restoring, keys))
}

/// Removes what was made, unless it was finished.
struct Cleanup {
    paths: Vec<PathBuf>,
    finished: bool,
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        for path in &self.paths {
            remove(path);
        }
    }
}

fn remove(path: &Path) {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    if let Err(error) = removed
        && error.kind() != std::io::ErrorKind::NotFound
    {
        warn!(path = %path.display(), %error, "cannot be removed");
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Interrupted)?
}

/// Restores, with what starts Raft in a home and what storage there is.
///
/// # Errors
/// See [`Error`]; then nothing was made.
pub async fn restore(
    config: &Config,
    plan: Plan<'_>,
    open_store: impl AsyncFnOnce(&Home) -> anyhow::Result<Arc<dyn BlobStore>>,
    start_raft: impl AsyncFnOnce(&Home, &Member, &mut Registry) -> anyhow::Result<Raft>,
) -> Result<Restored, Error> {
    let file = plan.file.to_owned();
    let sound = blocking(move || examine(&file)).await?;
    let data_dir = &config.node.data_dir;
    let data_dir_is_ours = !data_dir.exists();
    let mut cleanup = Cleanup { paths: Vec::new(), finished: false };
    if data_dir_is_ours {
        cleanup.paths.push(data_dir.clone());
    }
    let home = Home::open(data_dir)?;
    if home.member()?.is_some() {
        return Err(home::Error::Exists(home.folder().into()).into());
    }
    home.drop_unfounded()?;
    let marker = home.folder().join("restoring");
    let (staged, raft_folder) = (home.folder().join("raft.restoring"), home.raft_folder());
    if marker.exists() {
        remove(&staged);
        remove(&raft_folder);
    }
    // Of a founding that was cut off, the folder itself is left. One that holds something stays.
    let _ = fs::remove_dir(&raft_folder);
    for path in [&staged, &raft_folder] {
        if path.exists() {
            return Err(Error::NotEmpty(path.clone()));
        }
    }
    // The marker goes last: it says that the others are ours.
    let certificates = ["node.pem", "ca.pem"].map(|name| home.folder().join(name));
    cleanup.paths.extend([staged.clone(), raft_folder.clone()]);
    cleanup.paths.extend(certificates);
    cleanup.paths.push(marker.clone());
    home.save_marker()?;

    let (file, directory) = (plan.file.to_owned(), staged.clone());
    let (restoring, sealed) = blocking(move || write_rows(&file, &directory)).await?;
    let masters = encryption::masters(&config.encryption).await.map_err(encryption::Error::from)?;
    let seals = config.encryption.seal;
    let vault = Vault::new(masters.clone(), seals);
    vault.unlock_with(Query::new(&sealed).first_cluster_key()?).await?;
    let authorities = Held::read(Query::new(&sealed), &vault)?.ok_or(authorities::Error::None)?;
    let start = |what| move |error| Error::Start { what, reason: format!("{error:#}") };
    let store = open_store(&home).await.map_err(start("storage"))?;
    let member = Member {
        cluster: sound.cluster.id,
        node: sound.node.number(),
        lineage: Some(Uuid::new_v4().simple().to_string()),
    };
    let ownership = Ownership::new(Arc::clone(&store), member.cluster, member.lineage.clone());
    ownership.may_take_over().await?;
    let store = encryption::restored(masters, seals, sealed, store).await?;
    let put = match plan.objects {
        Some(folder) => put_objects(plan.file, folder, store.as_ref()).await?,
        None => 0,
    };
    let missing = count_missing(plan.file, store.as_ref()).await?;

    let certificate = authorities.issue(&home.key().csr_pem()?, Role::Node)?;
    home.save_certificates(&certificate, &authorities.believed_pem())?;
    let (node, address, index) = (sound.node, config.raft_address(), sound.head.index);
    blocking(move || Ok(restoring.finish(node, &address, index)?)).await?;
    let failed = |source| Error::File { path: raft_folder.clone(), source };
    fs::rename(&staged, &raft_folder).map_err(failed)?;
    File::open(home.folder()).and_then(|folder| folder.sync_all()).map_err(failed)?;

    let raft = start_raft(&home, &member, &mut Registry::default()).await;
    let raft = raft.map_err(start("Raft"))?;
    let registered = register(&raft, &member, &home, config).await;
    raft.shutdown().await;
    registered?;
    // From now on nodes of the old life delete nothing there. Should this one be cut off here, the next
    // restore takes over from it.
    ownership.take_over().await?;
    home.save_member(&member)?;
    cleanup.finished = true;
    remove(&marker);
    let Sound { head, totals, .. } = sound;
    info!(cluster = %member.cluster, node = member.node, index = head.index, "restored");
    Ok(Restored { head, totals, member, put, missing })
}

async fn register(raft: &Raft, member: &Member, home: &Home, config: &Config) -> Result<(), Error> {
    let deadline = Instant::now() + LEADER_DEADLINE;
    loop {
        let row = node_row(member, home, config);
        match raft.propose(now(), Command::RegisterNode(row)).await {
            Ok(_) => return Ok(()),
            Err(ProposeError::Unavailable { .. }) if Instant::now() < deadline => {}
            Err(ProposeError::Unavailable { .. }) => return Err(Error::NoLeader),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Calls `work` with each object that the backup names, some at once.
async fn each_object<T>(
    file: &Path,
    mut work: impl AsyncFnMut(Vec<Needed>) -> Result<T, Error>,
) -> Result<(), Error> {
    let mut reader = open(file)?;
    let backup = |source| Error::Backup { path: file.to_owned(), source };
    loop {
        let objects = match reader.next_frame().map_err(backup)? {
            Some(Frame::Objects(objects)) => objects,
            Some(Frame::Rows(_)) => continue,
            Some(Frame::End(_)) | None => return Ok(()),
        };
        work(objects).await?;
    }
}

async fn count_missing(file: &Path, store: &dyn BlobStore) -> Result<u64, Error> {
    let mut missing = 0;
    each_object(file, async |objects| {
        let looks = objects.iter().map(|needed| look(store, needed, false));
        let mut looks = futures::stream::iter(looks).buffer_unordered(OBJECTS_AT_ONCE);
        while let Some(looked) = looks.try_next().await? {
            missing += u64::from(looked.is_err());
        }
        Ok(())
    })
    .await?;
    Ok(missing)
}

/// Puts what storage does not have yet, each compared with what it is named by.
async fn put_objects(file: &Path, folder: &Path, store: &dyn BlobStore) -> Result<u64, Error> {
    let (mut put, mut flawed, mut examples) = (0, 0, Vec::new());
    each_object(file, async |objects| {
        let puts = objects.iter().map(|needed| async move {
            (needed.key, put_object(needed, &folder.join(needed.key.to_string()), store).await)
        });
        let mut puts = futures::stream::iter(puts).buffer_unordered(OBJECTS_AT_ONCE);
        while let Some((key, done)) = puts.next().await {
            match done? {
                Ok(done) => put += u64::from(done),
                Err(flaw) => {
                    flawed += 1;
                    if examples.len() < NAMED_MAX {
                        examples.push(format!("{key} ({flaw})"));
                    }
                }
            }
        }
        Ok(())
    })
    .await?;
    if flawed > 0 {
        let (folder, examples) = (folder.to_owned(), examples.join(", "));
        return Err(Error::Objects { folder, count: flawed, examples });
    }
    Ok(put)
}

/// Whether it was put; it was not where storage has it already.
async fn put_object(
    needed: &Needed,
    path: &Path,
    store: &dyn BlobStore,
) -> Result<Result<bool, Flaw>, Error> {
    if look(store, needed, false).await?.is_ok() {
        return Ok(Ok(false));
    }
    let failed = |source| Error::File { path: path.to_owned(), source };
    let mut source = match tokio::fs::File::open(path).await {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Err(Flaw::Missing));
        }
        source => source.map_err(failed)?,
    };
    let length = source.metadata().await.map_err(failed)?.len();
    if let Err(flaw) = needed.check_size(length) {
        return Ok(Err(flaw));
    }
    let mut check = Check::new(needed);
    if length <= PART_BYTES {
        let bytes = read_part(&mut source, length).await.map_err(failed)?;
        check.update(&bytes);
        if let Err(flaw) = check.finish() {
            return Ok(Err(flaw));
        }
        store.put(needed.key, &KeyOwner::Cluster, bytes).await?;
        return Ok(Ok(true));
    }
    let multipart = store.begin(needed.key, &KeyOwner::Cluster).await?;
    let parts = async {
        let (mut parts, mut offset) = (Vec::new(), 0);
        while offset < length {
            let part_bytes = part_bytes(offset).min(length - offset);
            let _held = PARTS.acquire_many(units(part_bytes)).await;
            let bytes = read_part(&mut source, part_bytes).await.map_err(failed)?;
            check.update(&bytes);
            let number = parts.len() as u32 + 1;
            parts.push(store.put_part(needed.key, &multipart, number, offset, bytes).await?);
            offset += part_bytes;
        }
        // Nothing is published that was not compared.
        Ok::<_, Error>(check.finish().map(|()| parts))
    };
    let parts = match parts.await {
        Ok(Ok(parts)) => parts,
        other => {
            let aborted = store.abort(needed.key, &multipart).await;
            let flaw = other?.map(drop);
            aborted?;
            return Ok(flaw.map(|()| false));
        }
    };
    if let Err(error) = store.complete(needed.key, &multipart, &parts).await {
        // Where it was completed and the answer was lost, there is nothing to drop.
        if let Err(error) = store.abort(needed.key, &multipart).await {
            let error = chain(&error);
            warn!(key = %needed.key, error, "parts that were put into storage may have stayed there");
        }
        return Err(error.into());
    }
    Ok(Ok(true))
}

/// Of the part that starts there.
fn part_bytes(offset: u64) -> u64 {
    PartSchedule::STANDARD.part_bytes(offset).max(PART_BYTES)
}

fn units(bytes: u64) -> u32 {
    bytes.div_ceil(PART_BYTES_MIN) as u32
}

async fn read_part(source: &mut tokio::fs::File, bytes: u64) -> std::io::Result<bytes::Bytes> {
    let mut part = vec![0; bytes as usize];
    tokio::io::AsyncReadExt::read_exact(source, &mut part).await?;
    Ok(part.into())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::Ordering;

    use shoal_content::{ObjectKey, PackId};

    use super::*;
    use crate::registry::PARTS_MAX;
    use crate::store::disturbed::DisturbedStore;

    #[tokio::test]
    async fn an_object_that_cannot_be_completed_leaves_no_parts() {
        let folder = tempfile::tempdir().unwrap();
        let store = DisturbedStore::open(&folder.path().join("storage"));
        let (path, bytes) = (folder.path().join("pack"), vec![7; PART_BYTES as usize + 1]);
        std::fs::write(&path, &bytes).unwrap();
        let key = ObjectKey::Pack(PackId::of(&bytes));
        let needed = Needed { key, size: None, digest: None };
        store.failing_completions.store(1, Ordering::Relaxed);
        let failed = put_object(&needed, &path, &*store).await;
        assert!(matches!(failed, Err(Error::Store(_))), "{failed:?}");
        let later = now().plus_millis(60_000);
        let left = store.abort_stale(later, &BTreeSet::new()).await.unwrap();
        assert_eq!(left, 0, "its parts are in storage yet");
        assert!(matches!(put_object(&needed, &path, &*store).await, Ok(Ok(true))));
    }

    #[test]
    fn the_longest_blob_there_is_takes_no_more_parts_than_storage_does() {
        let longest = PartSchedule::STANDARD.blob_bytes_max;
        let (mut parts, mut offset) = (0, 0);
        while offset < longest {
            assert!(part_bytes(offset) >= PART_BYTES_MIN);
            assert!(units(part_bytes(offset)) <= units(PARTS_BYTES_MAX), "it would wait for ever");
            offset += part_bytes(offset);
            parts += 1;
        }
        assert!(parts <= PARTS_MAX, "{parts}");
    }
}
