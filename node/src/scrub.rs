//! Looks through all of storage for what should not be there, and whether what is there is sound.
//!
//! A crash between storing bytes and the command that names them leaves an object no row knows.
//! Content (blobs, packs, recipes) that is found so is *adopted*: it gets a row with a count of
//! zero, and goes the way of all unreferenced objects (see `collection`), so that an upload that is
//! just about to name it wins. What sessions leave (parts, checkpoints, multipart uploads) has
//! names that nobody else ever uses, and is deleted where it is older than any session.
//!
//! A sample of what is stored is read and compared with its name, a different one each time; what is
//! longer than the sample may be is read, too, when its turn comes (see `share`). Damage is logged and
//! counted, and nothing is done about it here.
//!
//! Invariant: memory is bounded whatever storage holds; sessions are the only rows read as a whole.
//! Nothing is adopted or deleted in a storage that is another cluster's (see `ownership`).

mod share;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use rand::RngExt;
use rand::seq::SliceRandom;
use sha2::{Digest as _, Sha256, Sha512};
use shoal_api::ScrubStatus;
use shoal_content::{Algorithm, Digest, ObjectKey, PackId, RecipeId, Timestamp};
use shoal_metadata::{Blob, Command, Fault, Query, Read, Response, UploadPurpose};
use shoal_raft::Raft;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::{error, info, warn};

use crate::clock;
use crate::collection::CollectionError;
use crate::ownership::Ownership;
use crate::registry::SESSION_TTL_MS;
use crate::store::{self, BlobStore, READ_BYTES_MAX, StoreError, StoredObject};
use share::Share;

const PAGE_OBJECTS: usize = 1000;
/// An object this young may be named by the next command.
const ORPHAN_AGE: Duration = Duration::from_secs(3600);
/// No session's leftovers are older.
const LEFTOVER_AGE: Duration = Duration::from_millis(2 * SESSION_TTL_MS);
/// Packs and recipes remembered on the way, to choose the sample from.
const SAMPLE_OBJECTS: usize = 128;
/// Blobs of the sample, of each algorithm.
const SAMPLE_BLOBS: usize = 64;

/// How old things must be, and how much is verified.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub interval: Duration,
    pub orphan_age: Duration,
    pub leftover_age: Duration,
    /// Bytes that one scrub reads, on average.
    pub sample_bytes: u64,
}

impl Limits {
    pub fn new(interval: Duration, sample_bytes: u64) -> Self {
        Self { interval, orphan_age: ORPHAN_AGE, leftover_age: LEFTOVER_AGE, sample_bytes }
    }
}

/// See the module's documentation. Clones are the same scrubber.
#[derive(Debug, Clone)]
pub struct Scrubber {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    raft: Raft,
    store: Arc<dyn BlobStore>,
    ownership: Ownership,
    limits: Limits,
    status: Mutex<ScrubStatus>,
    /// Of the sample, what is read of packs and recipes.
    packs: Mutex<Share>,
    blobs: Mutex<Share>,
    adopted: Counter,
    verified_bytes: Counter,
    damaged: Counter,
}

impl Scrubber {
    pub fn new(
        raft: Raft,
        store: Arc<dyn BlobStore>,
        ownership: Ownership,
        limits: Limits,
        registry: &mut Registry,
    ) -> Self {
        let (adopted, verified_bytes, damaged) =
            (Counter::default(), Counter::default(), Counter::default());
        for (name, help, counter) in [
            ("shoal_scrub_orphans", "Objects found in storage that no row knew", &adopted),
            ("shoal_scrub_verified_bytes", "Bytes read to be compared", &verified_bytes),
            ("shoal_scrub_damaged_objects", "Objects that are not what they should", &damaged),
        ] {
            registry.register(name, help, counter.clone());
        }
        let half = || Mutex::new(Share::new(limits.sample_bytes / 2));
        let inner = Inner {
            raft,
            store,
            ownership,
            limits,
            status: Mutex::default(),
            packs: half(),
            blobs: half(),
            adopted,
            verified_bytes,
            damaged,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Scrubs at every interval while this node leads. Runs until it is dropped.
    pub async fn run(self) {
        let every = self.inner.limits.interval;
        let mut ticks = interval_at(Instant::now() + every, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.inner.raft.status().is_leader && self.begin() {
                self.work().await;
            }
        }
    }

    /// How far the scrub under way is, or what the last one came to at this node.
    pub fn status(&self) -> ScrubStatus {
        self.inner.status.lock().clone()
    }

    /// How much the last scrub of this node found in storage, if it came to its end.
    pub fn bytes(&self) -> Option<u64> {
        let status = self.inner.status.lock();
        let ended = status.started_at.is_some() && !status.running && status.error.is_none();
        ended.then_some(status.bytes)
    }

    /// Starts one in the background, unless one is under way.
    pub fn start(&self) {
        if self.begin() {
            let scrubber = self.clone();
            tokio::spawn(async move { scrubber.work().await });
        }
    }

    fn begin(&self) -> bool {
        let mut status = self.inner.status.lock();
        if status.running {
            return false;
        }
        let started_at = Some(clock::rfc3339(clock::now()));
        *status = ScrubStatus { running: true, started_at, ..ScrubStatus::default() };
        true
    }

    async fn work(&self) {
        let outcome = self.scrub().await;
        let mut status = self.inner.status.lock();
        status.running = false;
        match outcome {
            Ok(()) => {
                let ScrubStatus { objects, orphans, leftovers, verified, damaged, .. } = *status;
                info!(objects, orphans, leftovers, verified, damaged, "storage was scrubbed");
            }
            Err(error) => {
                let text = crate::http::problem::chain(&error);
                warn!(error = text, "the scrub ended early");
                status.error = Some(text);
            }
        }
    }

    /// The whole of it.
    ///
    /// # Errors
    /// What stopped it; what was done stays done.
    async fn scrub(&self) -> Result<(), CollectionError> {
        self.inner.ownership.hold().await?;
        let mut sample = Vec::new();
        for prefix in ["blobs/", "packs/", "recipes/"] {
            self.look_through(prefix, &mut sample).await?;
        }
        self.drop_leftovers().await?;
        self.verify(sample).await
    }

    fn note(&self, change: impl FnOnce(&mut ScrubStatus)) {
        change(&mut self.inner.status.lock());
    }

    /// Pages through the content below `prefix`, adopts orphans, and lets every object into the
    /// sample with the same chance (Vitter's algorithm R).
    async fn look_through(
        &self,
        prefix: &str,
        sample: &mut Vec<StoredObject>,
    ) -> Result<(), CollectionError> {
        let Inner { raft, store, ownership, limits, adopted, .. } = &*self.inner;
        let (mut after, mut seen) = (None, 0);
        let kept_before = sample.len();
        loop {
            let page = store.list(prefix, after, PAGE_OBJECTS).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.key);
            let old = earlier(limits.orphan_age);
            let orphans: BTreeSet<ObjectKey> = {
                let view = raft.read().await?;
                let mut orphans = BTreeSet::new();
                for object in page.iter().filter(|object| object.stored_at <= old) {
                    if view.query().object(&object.key)?.is_none() {
                        orphans.insert(object.key);
                    }
                }
                orphans
            };
            let bytes: u64 = page.iter().map(|object| object.length).sum();
            self.note(|status| {
                status.objects += page.len() as u64;
                status.bytes += bytes;
            });
            if !orphans.is_empty() {
                // Another cluster's are no orphans, and what is adopted is deleted in the end.
                ownership.hold().await?;
                let adopt = Command::AdoptObjects { objects: orphans };
                if let Response::Adopted(count) = raft.propose(clock::now(), adopt).await? {
                    adopted.inc_by(count);
                    self.note(|status| status.orphans += count);
                }
            }
            for object in page {
                if matches!(object.key, ObjectKey::Blob(_)) {
                    // A blob's name says nothing about its content: see `verify`.
                    continue;
                }
                seen += 1;
                let kept = sample.len() - kept_before;
                if kept < SAMPLE_OBJECTS {
                    sample.push(object);
                } else {
                    let place = rand::rng().random_range(0..seen);
                    if let Some(slot) = sample[kept_before..].get_mut(place) {
                        *slot = object;
                    }
                }
            }
        }
    }

    /// Parts, checkpoints and multipart uploads that no session has.
    async fn drop_leftovers(&self) -> Result<(), CollectionError> {
        let Inner { store, ownership, limits, .. } = &*self.inner;
        let old = earlier(limits.leftover_age);
        let mut after = None;
        loop {
            let page = store.list("uploads/", after, PAGE_OBJECTS).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.key);
            let named = self.named_by_sessions().await?;
            let left = |object: &&StoredObject| object.stored_at <= old && !named.has(&object.key);
            let leftovers: Vec<ObjectKey> =
                page.iter().filter(left).map(|object| object.key).collect();
            ownership.hold().await?;
            store.delete(&leftovers).await?;
            self.note(|status| status.leftovers += leftovers.len() as u64);
        }
        let named = self.named_by_sessions().await?;
        ownership.hold().await?;
        let dropped = store.abort_stale(old, &named.multiparts).await?;
        self.note(|status| status.leftovers += dropped);
        Ok(())
    }

    async fn named_by_sessions(&self) -> Result<Named, CollectionError> {
        let mut named = Named::default();
        for upload in self.inner.raft.read().await?.query().uploads()? {
            named.sessions.insert(upload.id);
            if let UploadPurpose::Blob { checkpoint, multipart, .. } = upload.purpose {
                named.checkpoints.extend(checkpoint);
                named.multiparts.extend(multipart.map(|multipart| multipart.id));
            }
        }
        Ok(named)
    }

    /// Reads a sample until its bytes are used up.
    async fn verify(&self, mut sample: Vec<StoredObject>) -> Result<(), CollectionError> {
        sample.shuffle(&mut rand::rng());
        let mut blobs = {
            let view = self.inner.raft.read().await?;
            let mut random = rand::rng();
            // In one ring those of the rarer algorithm would come after so many others that they
            // would hardly ever be read.
            let mut blobs = on_from(view.query(), &Digest::sha256(random.random()))?;
            blobs.extend(on_from(view.query(), &Digest::sha512(random.random()))?);
            blobs
        };
        blobs.shuffle(&mut rand::rng());
        let Inner { packs: of_packs, blobs: of_blobs, .. } = &*self.inner;
        of_packs.lock().refill();
        for object in sample {
            if object.length > READ_BYTES_MAX || !of_packs.lock().takes(object.length) {
                continue;
            }
            let right = self.is_named_rightly(&object).await;
            self.count(object.key, object.length, right)?;
        }
        of_blobs.lock().refill();
        for blob in blobs {
            if !of_blobs.lock().takes(blob.size) {
                continue;
            }
            let right = self.has_digest(&blob).await;
            self.count(blob.object, blob.size, right)?;
        }
        Ok(())
    }

    fn count(
        &self,
        object: ObjectKey,
        bytes: u64,
        right: Result<bool, StoreError>,
    ) -> Result<(), CollectionError> {
        let sound = match right {
            Ok(sound) => sound,
            // Cut short, which is damage, too – or deleted since it was chosen, which is not.
            Err(StoreError::Range { .. } | StoreError::Sealed(_)) => false,
            Err(StoreError::NotFound(_) | StoreError::Shredded(_))
                if !self.is_needed(object)? =>
            {
                return Ok(());
            }
            Err(StoreError::NotFound(_) | StoreError::Shredded(_)) => false,
            Err(error) => return Err(error.into()),
        };
        self.inner.verified_bytes.inc_by(bytes);
        self.note(|status| {
            status.verified += 1;
            status.verified_bytes += bytes;
        });
        if !sound {
            self.inner.damaged.inc();
            self.note(|status| status.damaged += 1);
            error!(%object, "an object in storage is damaged or missing");
        }
        Ok(())
    }

    fn is_needed(&self, object: ObjectKey) -> Result<bool, CollectionError> {
        let row = self.inner.raft.local().query().object(&object)?;
        Ok(row.is_some_and(|row| row.count > 0))
    }

    /// Packs and recipes are named by the hash of their bytes.
    async fn is_named_rightly(&self, object: &StoredObject) -> Result<bool, StoreError> {
        let store = self.inner.store.as_ref();
        // The listing says how long it is where it lies, which is not its content's length where it
        // is sealed.
        let length = store.length(object.key).await?;
        let length = length.ok_or(StoreError::NotFound(object.key))?;
        let bytes = store::read(store, object.key, 0..length).await?;
        Ok(match object.key {
            ObjectKey::Pack(id) => PackId::of(&bytes) == id,
            ObjectKey::Recipe(id) => RecipeId::of(&bytes) == id,
            ObjectKey::Blob(_)
            | ObjectKey::UploadPart { .. }
            | ObjectKey::UploadCheckpoint { .. } => true,
        })
    }

    async fn has_digest(&self, blob: &Blob) -> Result<bool, StoreError> {
        let mut pieces = self.inner.store.get(blob.object, 0..blob.size).await?;
        let (mut sha256, mut sha512) = (Sha256::new(), Sha512::new());
        let algorithm = blob.digest.algorithm();
        while let Some(piece) = pieces.next().await {
            match algorithm {
                Algorithm::Sha256 => sha256.update(&piece?),
                Algorithm::Sha512 => sha512.update(&piece?),
            }
        }
        Ok(blob.digest
            == match algorithm {
                Algorithm::Sha256 => Digest::sha256(sha256.finalize().into()),
                Algorithm::Sha512 => Digest::sha512(sha512.finalize().into()),
            })
    }
}

/// Blobs whose digests follow `from`, of its algorithm, at most [`SAMPLE_BLOBS`]. Behind the last one
/// comes the first: digests form a ring here.
fn on_from<R: Read>(query: Query<'_, R>, from: &Digest) -> Result<Vec<Blob>, Fault> {
    let algorithm = from.algorithm();
    let first = match algorithm {
        Algorithm::Sha256 => Digest::sha256([0; 32]),
        Algorithm::Sha512 => Digest::sha512([0; 64]),
    };
    let mut blobs = query.blobs(from, SAMPLE_BLOBS)?;
    blobs.retain(|blob| blob.digest.algorithm() == algorithm);
    if blobs.len() < SAMPLE_BLOBS {
        let rest = query.blobs(&first, SAMPLE_BLOBS - blobs.len())?;
        let before = |blob: &Blob| blob.digest.algorithm() == algorithm && blob.digest < *from;
        blobs.extend(rest.into_iter().filter(before));
    }
    Ok(blobs)
}

/// What sessions still need.
#[derive(Debug, Default)]
struct Named {
    sessions: BTreeSet<shoal_content::UploadId>,
    checkpoints: BTreeSet<ObjectKey>,
    multiparts: BTreeSet<String>,
}

impl Named {
    fn has(&self, key: &ObjectKey) -> bool {
        match key {
            ObjectKey::UploadPart { upload, .. } => self.sessions.contains(upload),
            // The one that a row names may need earlier ones.
            ObjectKey::UploadCheckpoint { upload, .. } => {
                self.sessions.contains(upload) || self.checkpoints.contains(key)
            }
            // Content is none of a session's leftovers.
            ObjectKey::Blob(_) | ObjectKey::Pack(_) | ObjectKey::Recipe(_) => true,
        }
    }
}

fn earlier(by: Duration) -> Timestamp {
    Timestamp::from_millis(clock::now().as_millis().saturating_sub(by.as_millis() as u64))
}
