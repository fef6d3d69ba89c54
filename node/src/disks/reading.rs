//! Reads one disk: opened over its parts, cut, and packed.
//!
//! Invariants: what is read are the parts as they were acknowledged (see `source`); when it is done,
//! every pack is safe in storage. It waits for storage, and for parts that are still to come, on the
//! thread that it is run on.
//! Non-goal: publishing (see `ingest`).

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use shoal_content::{Digest, ObjectKey, Recipe};
use shoal_formats::{
    DiskIngest, ForeseenFile, Format, FreeSpace, IngestError, Ingested, ReadAt, SinkError, open,
};
use tokio::runtime::Handle;

use super::arrivals::Arrivals;
use super::dedup::{Known, known_chunks};
use super::ingest::{Failure, Order};
use super::packs::PackUploads;
use super::source::PartsSource;
use super::{Disks, Running};
use crate::http::problem::chain;
use crate::registry::hash::Hash;
use crate::store::StoreError;

/// Where storage is a folder, a disk of so many bytes of content at most is read a second time from its
/// parts: they are mostly in the page cache still. Of a longer one the packs are, if anything is, and
/// they are shorter.
const AGAIN_BYTES_MAX: u64 = 8 << 30;
/// Bytes of the uploaded file that are compared at once.
const COMPARED_AT_ONCE: usize = 1024 * 1024;

/// What was read off the disk.
#[derive(Debug)]
pub(super) struct Cut {
    pub recipe: Recipe,
    pub format: Format,
    pub virtual_bytes: u64,
    pub content_bytes: u64,
    pub added_bytes: u64,
    /// The file that the registry gives for it, where all of the disk is in packs that were stored and
    /// read back just now, and its bytes were hashed as they came, or a second time.
    pub file: Option<ForeseenFile>,
}

/// See the module's documentation.
pub(super) struct Reading {
    source: Arc<PartsSource>,
    hint: Option<Format>,
    /// What the file is to be, one after another.
    layers: Vec<(Digest, u64)>,
    known: Known,
    ingest: DiskIngest<PackUploads>,
    /// Those that it has begun to store.
    pub packs: Arc<Mutex<Vec<ObjectKey>>>,
    running: Arc<Running>,
}

impl Disks {
    /// All that it takes to read the disk of `order`, of which `arrivals` has the parts.
    pub(super) async fn reading(
        &self,
        order: &Order,
        arrivals: Arc<Arrivals>,
        running: &Arc<Running>,
    ) -> Result<Reading, Failure> {
        let store = Arc::clone(&self.inner.store);
        let known = known_chunks(&self.inner.origin, &store, &order.recipes).await?;
        let (runtime, running) = (Handle::current(), Arc::clone(running));
        let parts = (order.uploaded.clone(), arrivals);
        let source =
            PartsSource::new(Arc::clone(&store), runtime.clone(), parts, Arc::clone(&running));
        let free_space = if self.inner.keep_free_space.load(Ordering::Relaxed) {
            FreeSpace::Keep
        } else {
            FreeSpace::Zero
        };
        let sink = PackUploads::new(store, order.under(), runtime);
        let packs = sink.begun();
        let again_bytes_max = match self.inner.parts_are_near.load(Ordering::Relaxed) {
            true => AGAIN_BYTES_MAX,
            false => 0,
        };
        let ingest = DiskIngest::new(sink).free_space(free_space).foresee_file();
        let mut ingest = ingest.read_again_for_file(again_bytes_max);
        let content = self.inner.expected.lock().get(&order.uploaded.upload).cloned();
        if let Some(content) = content {
            ingest = ingest.expect_content(&content);
        }
        let (layers, hint, source) = (order.layers.clone(), order.hint, Arc::new(source));
        Ok(Reading { source, hint, layers, known, ingest, packs, running })
    }
}

impl Reading {
    /// Reads a disk that is there whole.
    pub fn run(self) -> Result<Cut, Failure> {
        let observed = self.source.observed();
        let cut = self.compare().and_then(|()| self.cut());
        // Whatever a format's reader made of that.
        match observed.damaged() {
            Some(part) => Err(Failure::Refused(format!(
                "checksum_mismatch: part {part} is not what was acknowledged; upload it anew"
            ))),
            None => cut,
        }
    }

    /// Reads a disk while it comes in. The file is compared as a whole when all of it is there. What
    /// a failure says may be due to parts that were missing, or came anew.
    pub fn run_ahead(self) -> Result<Cut, Failure> {
        let (source, running) = (Arc::clone(&self.source), Arc::clone(&self.running));
        let layers = self.layers.clone();
        let cut = self.cut()?;
        compare(&source, &layers, &running)?;
        Ok(cut)
    }

    fn compare(&self) -> Result<(), Failure> {
        compare(&self.source, &self.layers, &self.running)
    }

    fn cut(self) -> Result<Cut, Failure> {
        let Self { source, hint, known, ingest, running, .. } = self;
        cut(source, hint, &known, ingest, &running)
    }
}

/// Compares the file with what its uploader said that it is.
fn compare(
    source: &PartsSource,
    layers: &[(Digest, u64)],
    running: &Running,
) -> Result<(), Failure> {
    let mut buffer = vec![0; COMPARED_AT_ONCE];
    let mut at = 0;
    for (number, (wanted, length)) in layers.iter().enumerate() {
        let mut hasher = Hash::new(wanted.algorithm());
        let end = at + length;
        while at < end {
            if running.lost.load(Ordering::Relaxed) {
                return Err(Failure::Lost);
            }
            let count = (end - at).min(COMPARED_AT_ONCE as u64) as usize;
            let read = source.read_at(at, &mut buffer[..count]);
            read.map_err(|error| Failure::Passing(chain(&error)))?;
            hasher.update(&buffer[..count]);
            at += count as u64;
        }
        let found = hasher.digest();
        if found != *wanted {
            let text = format!("checksum_mismatch: layer {number} is {found}, not {wanted}");
            return Err(Failure::Refused(text));
        }
    }
    Ok(())
}

fn cut(
    source: Arc<PartsSource>,
    hint: Option<Format>,
    known: &Known,
    ingest: DiskIngest<PackUploads>,
    running: &Running,
) -> Result<Cut, Failure> {
    let (observed, arrivals) = (source.observed(), source.arrivals());
    let mut disk = open(Box::new(source), hint).map_err(|error| {
        if error.is_retryable() {
            Failure::Passing(chain(&error))
        } else {
            Failure::Refused(format!("disk_{}: {error}", error.reason()))
        }
    })?;
    let mut look_up = |id| known.get(&id).copied();
    let mut progress = |progress: shoal_formats::IngestProgress| {
        observed.begin_cut();
        arrivals.begin_cut();
        running.processed_bytes.store(progress.bytes_done, Ordering::Relaxed);
        let mut is_wanted = !running.lost.load(Ordering::Relaxed);
        if progress.is_again {
            observed.read_again();
            is_wanted &= arrivals.read_again();
        }
        if is_wanted { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let ingested = ingest.run(disk.as_mut(), &mut look_up, &mut progress).map_err(ended)?;
    let Ingested { recipe, totals, packs, file, sink } = ingested;
    sink.settle().map_err(unstored)?;
    let packs: BTreeSet<ObjectKey> = packs.iter().map(|pack| pack.key).collect();
    let is_new = recipe.objects().iter().all(|object| packs.contains(&object.key));
    Ok(Cut {
        file: file.filter(|_| is_new),
        recipe,
        format: disk.format(),
        virtual_bytes: disk.virtual_bytes(),
        content_bytes: totals.content_bytes,
        added_bytes: totals.stored_bytes,
    })
}

fn ended(error: IngestError) -> Failure {
    match error {
        IngestError::Cancelled => Failure::Lost,
        IngestError::Sink(error) => unstored(error),
        IngestError::Read(error) if error.is_retryable() => Failure::Passing(chain(&error)),
        IngestError::Read(error) => Failure::Refused(format!("disk_{}: {error}", error.reason())),
        IngestError::TooLarge => Failure::Refused(format!("disk_too_large: {error}")),
        IngestError::Compress(_) => Failure::Passing(chain(&error)),
    }
}

fn unstored(error: SinkError) -> Failure {
    match error.downcast::<StoreError>() {
        Ok(error) => (*error).into(),
        Err(error) => Failure::Passing(chain(error.as_ref())),
    }
}
