//! Reads a disk while its parts come in, so that little is left to do when the last one is there.
//!
//! A node begins when it stores the first or the last part of an upload and both are there, since they
//! are looked at before anything else; on a thread of its own, since it waits for a client, who may
//! stop for as long as it likes. What comes of it counts only where the upload is
//! completed at this node, of the parts that were read; in every other case the disk is read when it
//! is there, as if nothing had been. So it needs no lease, and no failure of it is anybody's. Packs that
//! nothing came of get a row, so that they go after the grace period like all that nothing refers to: an
//! upload that is given up again and again would else fill storage, beyond any quota, until a scrub.
//!
//! Invariants: at most [`AHEAD_AT_ONCE_MAX`] disks are read ahead on a node, each within the bounds of
//! any ingest; chunks, packs and recipe are the same as of a disk that is read when it is there.
//! Non-goals: publishing; the order in which parts come, which is the client's affair (a client that
//! sends first what is read first gains most; see `shoal_formats::read_first`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use shoal_content::{ObjectKey, UploadId};
use shoal_metadata::{Command, DiskUploadState, Event, KeyOwner, UploadPurpose};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use super::arrivals::{Arrivals, Way};
use super::ingest::{Failure, Order};
use super::reading::Cut;
use super::{Disks, Running};
use crate::clock;
use crate::http::problem::chain;

/// Disks that one node reads at once while they come in.
pub const AHEAD_AT_ONCE_MAX: usize = 2;
/// Where less is still to come, in bytes, the disk is read soon enough when it is there.
const AHEAD_BYTES_MIN: u64 = 32 * 1024 * 1024;
/// An upload that has been read, or cannot be, and is not completed, makes room after so long.
const KEPT_MAX: Duration = Duration::from_secs(60);
/// The rows are looked at so often at least, should nothing be heard of them.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Objects that one command makes known.
const ADOPTED_AT_ONCE: usize = 1000;

/// A disk that is read while it comes in.
#[derive(Debug)]
pub(super) struct Ahead {
    arrivals: Arc<Arrivals>,
    /// Also that of the ingest, once that begins.
    running: Arc<Running>,
    /// Whose key its packs are sealed with.
    under: KeyOwner,
    outcome: Mutex<Option<oneshot::Receiver<Result<Cut, Failure>>>>,
    /// Those that its reader has begun to store.
    packs: Arc<Mutex<Vec<ObjectKey>>>,
    /// Whether an ingest has taken over what was read.
    is_taken: AtomicBool,
    /// What was read takes memory until it is published.
    _permit: OwnedSemaphorePermit,
}

/// Where an upload stands, as this node has it in its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Receiving,
    /// At this node.
    Ingesting,
    Ended,
}

/// Nobody waits for parts any more once this is dropped.
struct GivingUp<'a>(&'a Arrivals);

impl Drop for GivingUp<'_> {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

/// Says that the reader has ended, however it did.
struct Ending(Arc<Arrivals>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.end_reading();
    }
}

impl Disks {
    /// Begins to read an upload of which so many bytes are still to come, where it may.
    pub fn read_ahead(&self, upload: UploadId, missing_bytes: u64) {
        if missing_bytes < AHEAD_BYTES_MIN || self.inner.ahead.lock().contains_key(&upload) {
            return;
        }
        let Ok(permit) = Arc::clone(&self.inner.ahead_permits).try_acquire_owned() else {
            debug!(%upload, "other disks are read ahead");
            return;
        };
        let this = self.clone();
        tokio::spawn(async move { this.follow(upload, permit).await });
    }

    /// Waits until a part of so many bytes may come: not more than a bounded part of an upload waits
    /// to be read. `None` where it is not read before it is whole.
    pub async fn make_way(&self, upload: UploadId, bytes: u64) -> Option<Way> {
        let arrivals =
            self.inner.ahead.lock().get(&upload).map(|ahead| Arc::clone(&ahead.arrivals));
        Some(arrivals?.make_way(bytes).await)
    }

    /// Has the disk read, and makes its parts known to the reader, until the session ends.
    async fn follow(&self, upload: UploadId, permit: OwnedSemaphorePermit) {
        // Before the rows are looked at, so that no part is missed.
        let mut events = self.inner.raft.events();
        let ahead = match self.begin_ahead(upload, permit).await {
            Ok(Some(ahead)) => ahead,
            Ok(None) => return,
            Err(failure) => {
                info!(%upload, ?failure, "a disk is not read while it comes in");
                return;
            }
        };
        let _giving_up = GivingUp(&ahead.arrivals);
        let mut ended = None;
        loop {
            match self.look(upload, &ahead.arrivals) {
                Stage::Ended => break,
                Stage::Ingesting => {}
                Stage::Receiving if ahead.arrivals.has_ended() => {
                    if ended.get_or_insert_with(Instant::now).elapsed() > KEPT_MAX {
                        break;
                    }
                }
                Stage::Receiving => {}
            }
            let heard = timeout(LOOK_INTERVAL, changed(&mut events, upload)).await;
            if matches!(heard, Ok(false)) {
                break;
            }
        }
        self.forget_ahead(upload, &ahead);
        if !ahead.is_taken.load(Ordering::Relaxed) {
            ahead.arrivals.give_up();
            ahead.arrivals.ended().await;
            self.leave_packs(upload, &ahead).await;
        }
    }

    fn forget_ahead(&self, upload: UploadId, ahead: &Arc<Ahead>) {
        let mut known = self.inner.ahead.lock();
        if known.get(&upload).is_some_and(|known| Arc::ptr_eq(known, ahead)) {
            known.remove(&upload);
        }
    }

    /// Makes packs known of which nothing came here. Those that have a row stay as they are.
    async fn leave_packs(&self, upload: UploadId, ahead: &Ahead) {
        let packs = std::mem::take(&mut *ahead.packs.lock());
        for some in packs.chunks(ADOPTED_AT_ONCE) {
            let adopt = Command::AdoptObjects { objects: some.iter().copied().collect() };
            if let Err(error) = self.inner.raft.propose(clock::now(), adopt).await {
                // The scrub finds them.
                info!(%upload, error = chain(&error), "packs of a disk that did not come stay");
                return;
            }
        }
    }

    /// `None` where it has begun already.
    async fn begin_ahead(
        &self,
        upload: UploadId,
        permit: OwnedSemaphorePermit,
    ) -> Result<Option<Arc<Ahead>>, Failure> {
        let order = self.order(upload).await?;
        let arrivals = Arc::new(Arrivals::coming(order.parts.clone()));
        let running = Arc::<Running>::default();
        let reading = self.reading(&order, Arc::clone(&arrivals), &running).await?;
        let (sender, outcome) = oneshot::channel();
        let ahead = Arc::new(Ahead {
            arrivals: Arc::clone(&arrivals),
            running,
            under: order.under(),
            outcome: Mutex::new(Some(outcome)),
            packs: Arc::clone(&reading.packs),
            is_taken: AtomicBool::new(false),
            _permit: permit,
        });
        {
            let mut known = self.inner.ahead.lock();
            if known.contains_key(&upload) {
                return Ok(None);
            }
            known.insert(upload, Arc::clone(&ahead));
        }
        let read = move || {
            let _ending = Ending(arrivals);
            // Nobody may want it any more.
            let _ = sender.send(reading.run_ahead());
        };
        let begun = thread::Builder::new().name("disk-ahead".to_owned()).spawn(read);
        if let Err(error) = begun {
            warn!(%upload, %error, "there is no thread to read a disk with");
            self.inner.ahead.lock().remove(&upload);
            return Ok(None);
        }
        Ok(Some(ahead))
    }

    /// Makes known what has come.
    fn look(&self, upload: UploadId, arrivals: &Arrivals) -> Stage {
        let Ok(Some(row)) = self.inner.raft.local().query().upload(upload) else {
            return Stage::Ended;
        };
        let UploadPurpose::Disk { parts, state, .. } = row.purpose else { return Stage::Ended };
        match state {
            DiskUploadState::Receiving => {
                arrivals.came(&parts);
                Stage::Receiving
            }
            // The ingest takes over what was read. It may wait for others before, and no other parts
            // come any more.
            DiskUploadState::Ingesting { node, .. } if node == self.inner.node => {
                arrivals.came(&parts);
                Stage::Ingesting
            }
            _ => Stage::Ended,
        }
    }

    /// The reader of an upload, as the ingest that begins sees it. None that lost its lease before: an
    /// ingest that began with that would end at once, as if it had lost its own.
    pub(super) fn running_ahead(&self, upload: UploadId) -> Option<Arc<Running>> {
        let known = self.inner.ahead.lock();
        let running = known.get(&upload).map(|ahead| Arc::clone(&ahead.running));
        running.filter(|running| !running.lost.load(Ordering::Relaxed))
    }

    /// What was read of the disk while it came in, where that is the disk of `order`. Waits until it
    /// has been read to its end.
    pub(super) async fn cut_ahead(&self, order: &Order) -> Option<Cut> {
        let upload = order.uploaded.upload;
        let ahead = self.inner.ahead.lock().remove(&upload)?;
        if !ahead.arrivals.complete(&order.parts) || ahead.under != order.under() {
            info!(%upload, "an upload changed while it was read; it is read anew");
            return None;
        }
        let outcome = ahead.outcome.lock().take();
        match outcome?.await {
            Ok(Ok(cut)) => {
                ahead.is_taken.store(true, Ordering::Relaxed);
                Some(cut)
            }
            Ok(Err(failure)) => {
                info!(%upload, ?failure, "reading a disk while it came in failed; it is read anew");
                None
            }
            Err(_) => None,
        }
    }
}

/// Waits until something may have changed of the upload; `false` where nothing more is heard.
async fn changed(events: &mut Receiver<Event>, upload: UploadId) -> bool {
    loop {
        match events.recv().await {
            Ok(Event::UploadChanged(changed)) if changed == upload => return true,
            Ok(Event::AllChanged) | Err(RecvError::Lagged(_)) => return true,
            Ok(_) => {}
            Err(RecvError::Closed) => return false,
        }
    }
}
