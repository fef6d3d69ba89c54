//! Snapshots: checkpoints of the state's database, in folders of their own.
//!
//! Invariant: what a snapshot says of itself (its last entry and membership) is read from the
//! checkpoint, so that it agrees with the rows whatever was applied meanwhile. Its folder lives as
//! long as someone sends or installs it.
//!
//! Nothing waits for it: what lies in memory of the state is flushed (32 MiB at most, while writes
//! go on into the next table), the rest is hard links, whatever the state's size. Nothing of it is
//! ever in this process's memory.
//!
//! A snapshot is not kept over a restart: checkpoints are made of hard links in no time, and
//! openraft asks for a new one when a member needs it.

use std::io;
use std::sync::Arc;

use openraft::RaftSnapshotBuilder;
use openraft::storage::Snapshot;
use parking_lot::Mutex;

use crate::folder::{Home, Scratch};
use crate::log::blocking;
use crate::metrics::Metrics;
use crate::proposal::{SnapshotMeta, TypeConfig};
use crate::store::Store;
use crate::transfer::{OfferedFile, list};

pub type StateSnapshot = openraft::alias::SnapshotOf<TypeConfig, Checkpoint>;

/// The files of a snapshot. They never change.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    pub folder: Arc<Scratch>,
    /// With their hashes, once somebody wanted them sent.
    files: Arc<Mutex<Option<Arc<[OfferedFile]>>>>,
}

impl Checkpoint {
    pub fn new(folder: Arc<Scratch>) -> Self {
        Self { folder, files: Arc::default() }
    }

    /// Its files with their hashes, which are made the first time: all of them are read for it, so
    /// this blocks.
    pub fn files(&self) -> io::Result<Arc<[OfferedFile]>> {
        let mut files = self.files.lock();
        if let Some(files) = &*files {
            return Ok(files.clone());
        }
        let listed: Arc<[OfferedFile]> = list(self.folder.path())?.into();
        *files = Some(listed.clone());
        Ok(listed)
    }
}

/// The newest snapshot, for those that ask.
pub type CurrentSnapshot = Arc<Mutex<Option<StateSnapshot>>>;

/// Takes one snapshot of the state.
pub struct Builder {
    pub store: Arc<Store>,
    pub home: Arc<Home>,
    pub current: CurrentSnapshot,
    pub metrics: Arc<Metrics>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = Checkpoint;

    async fn build_snapshot(&mut self) -> io::Result<StateSnapshot> {
        let (store, home) = (self.store.clone(), self.home.clone());
        let snapshot = blocking(move || take(&store, &home)).await?;
        keep_newer(&self.current, &snapshot);
        self.metrics.snapshots_built.inc();
        Ok(snapshot)
    }
}

/// One that was begun before another was installed may be done after it.
fn keep_newer(current: &CurrentSnapshot, built: &StateSnapshot) {
    let mut current = current.lock();
    let newer = |kept: &StateSnapshot| kept.meta.last_log_id > built.meta.last_log_id;
    if !current.as_ref().is_some_and(newer) {
        *current = Some(built.clone());
    }
}

/// A checkpoint of `store`, with what it says of itself.
pub fn take(store: &Store, home: &Home) -> io::Result<StateSnapshot> {
    let folder = Arc::new(Scratch::new(home.new_snapshot()));
    store.checkpoint(folder.path())?;
    let meta = inspect(folder.path())?;
    Ok(Snapshot { meta, snapshot: Checkpoint::new(folder) })
}

/// What the state in a folder says of itself; nothing in it is changed.
pub fn inspect(folder: &std::path::Path) -> io::Result<SnapshotMeta> {
    let (last_log_id, last_membership) = Store::inspect(folder)?;
    Ok(SnapshotMeta { last_log_id, last_membership })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Instant;

    use openraft::async_runtime::watch::WatchReceiver;
    use openraft::vote::RaftLeaderId;
    use shoal_metadata::Table;

    use super::*;
    use crate::harness::{Authority, Home, Member, create_image, eventually, put_admin};
    use crate::proposal::{LogId, Vote};
    use crate::restore::Restoring;
    use crate::store::{decode, encode};
    use crate::transfer::{Installed, Offer};
    use crate::view::View;
    use crate::wire::{Failure, Kind, receive_body, receive_length, send_request};

    const ROWS: u32 = 250_000;
    const ROW_BYTES: usize = 120;

    /// A member with a sizeable state, which was written directly.
    fn sizeable(home: &mut Home, authority: &Authority) -> Member {
        let address = home.choose_address();
        let mut state = Restoring::begin(&home.path().join("raft")).unwrap();
        let mut row = [0; ROW_BYTES];
        for number in 0..ROWS {
            // Nothing that compresses to nothing: a hash in each row.
            row[..32].copy_from_slice(blake3::hash(&number.to_be_bytes()).as_bytes());
            state.put(Table::Manifests, &number.to_be_bytes(), &row).unwrap();
        }
        assert_eq!(state.finish(home.id, &address.to_string(), 7000).unwrap(), u64::from(ROWS));
        let member = home.start(authority);
        assert_eq!(member.address, address);
        eventually("it leads", || member.raft.status().is_leader.then_some(()));
        member
    }

    /// How many rows a state has, and the hash of them all.
    fn contents(view: &View) -> (u32, blake3::Hash) {
        let (mut hasher, mut rows, mut after) = (blake3::Hasher::new(), 0, None);
        loop {
            let page = view.page(after, 1 << 20).unwrap();
            let Some(last) = page.last() else { return (rows, hasher.finalize()) };
            after = Some((last.table, last.key.clone()));
            for row in &page {
                hasher.update(&[row.table.number()]).update(&row.key).update(&row.row);
                rows += 1;
            }
        }
    }

    #[test]
    fn writes_go_on_while_a_snapshot_of_a_sizeable_state_is_built_and_a_new_member_gets_it() {
        let authority = Authority::new();
        let (mut home, mut other) = (Home::new(1), Home::new(2));
        let first = sizeable(&mut home, &authority);
        assert_eq!(contents(&first.read()).0, ROWS);
        assert!(first.raft.status().last_applied >= Some(7000));
        first.propose(put_admin()).unwrap();

        let stop = Arc::new(AtomicBool::new(false));
        let (raft, stopped) = (first.raft.clone(), stop.clone());
        let (report, written) = std::sync::mpsc::channel();
        first.run(|_| async move {
            tokio::spawn(async move {
                for number in 0.. {
                    if stopped.load(Ordering::Relaxed) {
                        break;
                    }
                    let begun = Instant::now();
                    let at = shoal_content::Timestamp::from_millis(number);
                    raft.propose(at, create_image(number)).await.unwrap();
                    report.send((begun, Instant::now())).unwrap();
                }
            });
        });
        // A write is proposed, applied and answered while one and the same snapshot is built.
        let core = first.raft.shared.core().unwrap();
        let store = core.store.read().clone();
        eventually("a write within the building of a snapshot", || {
            let begun = Instant::now();
            let built = take(&store, &core.home).unwrap();
            let ended = Instant::now();
            assert!(built.meta.last_log_id.is_some());
            let within = |(from, to): (Instant, Instant)| from > begun && to < ended;
            written.try_iter().any(within).then_some(())
        });
        drop((store, core));

        // The group's log begins behind what the state has: only a snapshot can bring it.
        let second = other.start(&authority);
        first.add(&second);
        assert_eq!(second.metric("shoal_raft_snapshots_installed_total"), 1.0);
        stop.store(true, Ordering::Relaxed);
        while written.recv_timeout(crate::harness::DEADLINE).is_ok() {}
        let ours = contents(&first.read());
        assert!(ours.0 > ROWS);
        assert_eq!(contents(&second.read()), ours);
        second.stop();
        let second = other.start(&authority);
        assert_eq!(contents(&second.read()), ours);
    }

    #[test]
    fn a_snapshot_that_took_long_does_not_take_a_newer_ones_place() {
        type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;
        let folder = tempfile::tempdir().unwrap();
        let at = |index| {
            let last_log_id = Some(LogId::new(LeaderId::new(1, 1).to_committed(), index));
            let meta = SnapshotMeta { last_log_id, ..SnapshotMeta::default() };
            let folder = Scratch::new(folder.path().join(index.to_string()));
            Snapshot { meta, snapshot: Checkpoint::new(Arc::new(folder)) }
        };
        let current = CurrentSnapshot::default();
        let index = || current.lock().as_ref().and_then(|one| Some(one.meta.last_log_id?.index));
        for (built, kept) in [(5, 5), (9, 9), (7, 9), (9, 9), (12, 12)] {
            keep_newer(&current, &at(built));
            assert_eq!(index(), Some(kept));
        }
    }

    /// Offers `files` as `sender` would, sends `content` of what is wanted, and breaks off in the
    /// first that has none, or waits for the end.
    fn offer_by_hand(
        sender: &Member,
        receiver: &Member,
        files: Vec<OfferedFile>,
        content: impl Fn(&str) -> Option<Vec<u8>> + Send + 'static,
    ) -> Option<Installed> {
        let address = receiver.address.to_string();
        let incoming = receiver.raft.shared.core().unwrap().home.directory().join("incoming");
        sender.run(move |raft| async move {
            let connection = raft.shared.peers.connection(&address, None).await.unwrap();
            let (mut send, mut receive) = connection.open_bi().await.unwrap();
            let meta = SnapshotMeta::default();
            let offer = Offer { vote: Vote::new(1, 1), meta, files };
            let body = encode(&offer).unwrap();
            send_request(&mut send, Kind::SnapshotFiles, body).await.unwrap();
            let length = receive_length(&mut receive).await.unwrap();
            let wanted = receive_body(&mut receive, length).await.unwrap();
            let wanted: Result<Vec<bool>, Failure> = decode(&wanted).unwrap();
            for (file, wanted) in offer.files.iter().zip(wanted.unwrap()) {
                assert!(wanted);
                match content(&file.name) {
                    Some(bytes) => send.write_all(&bytes).await.unwrap(),
                    None => {
                        send.write_all(b"half a file").await.unwrap();
                        // Vanishes once the files before are whole there, and this one is begun.
                        let begun = || {
                            let folders = std::fs::read_dir(&incoming).unwrap().flatten();
                            let mut files = folders.map(|folder| folder.path().join(&file.name));
                            files.any(|path| path.exists()).then_some(())
                        };
                        tokio::task::block_in_place(|| eventually("half a file", begun));
                        connection.close(crate::wire::STOPPING, b"broken");
                        return None;
                    }
                }
            }
            send.finish().unwrap();
            let length = receive_length(&mut receive).await.unwrap();
            Some(decode(&receive_body(&mut receive, length).await.unwrap()).unwrap())
        })
    }

    #[test]
    fn a_transfer_that_broke_off_goes_on_and_a_damaged_file_is_refused() {
        let authority = Authority::new();
        let (mut home, mut other) = (Home::new(1), Home::new(2));
        let first = sizeable(&mut home, &authority);
        let second = other.start(&authority);
        let core = first.raft.shared.core().unwrap();
        let built = take(&core.store.read(), &core.home).unwrap().snapshot;
        let mut files = built.files().unwrap().to_vec();
        // The big ones first: those that are in the next snapshot, too.
        files.sort_by_key(|file| std::cmp::Reverse(file.length));
        assert!(files[0].name.ends_with(".sst") && files[0].length > 1 << 20, "{files:?}");

        let (folder, biggest) = (built.folder.clone(), files[0].name.clone());
        let (path, name) = (folder.path().to_owned(), biggest.clone());
        let damaged = offer_by_hand(&first, &second, files[..1].to_vec(), move |_| {
            let mut bytes = std::fs::read(path.join(&name)).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            Some(bytes)
        });
        let damaged = damaged.unwrap().unwrap_err().to_string();
        assert!(damaged.contains("was damaged on its way"), "{damaged}");

        let (path, name) = (folder.path().to_owned(), biggest);
        let broken = offer_by_hand(&first, &second, files, move |wanted| {
            (wanted == name).then(|| std::fs::read(path.join(wanted)).unwrap())
        });
        assert!(broken.is_none());
        assert_eq!(second.raft.local().query().image_count().unwrap(), 0);
        assert!(!second.raft.is_initialized());

        first.propose(put_admin()).unwrap();
        first.propose(create_image(1)).unwrap();
        first.add(&second);
        assert!(second.metric("shoal_raft_snapshot_files_resumed_total") >= 1.0);
        assert_eq!(contents(&second.read()), contents(&first.read()));
        let metrics = core.engine.metrics();
        assert!(metrics.borrow_watched().running_state.is_ok());
    }
}
