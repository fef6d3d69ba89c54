//! Destroys the data keys of projects that were removed, so that nobody can read what only they
//! had, in whatever copy of storage.
//!
//! Other projects may refer to objects that such a key has sealed: they were mounted, or the same
//! content was stored once. So, in this order:
//!
//! 1. The command that removes a project retires its keys. From then on a node seals nothing with
//!    them, and nothing begins to refer to what they sealed ([`BlobStore::lasts`]).
//! 2. After [`config::Encryption::shred_after`] – longer than a publisher may take from its look at
//!    an object to its command, see `collection` – the leader looks at every object in use. Those
//!    that go with a retired key are handed over: a row has the object's own key, sealed with a key
//!    of somebody who refers to it. No byte of an object is moved.
//! 3. When a look finds none that is still to be handed over, the keys are destroyed.
//!
//! A crash at any step leaves retired keys, which the next leader finds. Where storage or the
//! metadata do not answer, the leader goes on later with the page at which it was; only the look
//! that counts is made anew, from the first object on.
//!
//! Non-goals: the bytes of what nothing refers to (`collection`); copies that were made with the
//! keys, and wrapped keys in older backups, which open with the master key.
//!
//! [`BlobStore::lasts`]: crate::store::BlobStore::lasts
//! [`config::Encryption::shred_after`]: crate::config::Encryption::shred_after_seconds

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use shoal_content::{DataKeyId, Digest, ImageId, ObjectKey, Timestamp};
use shoal_metadata::{
    Command, DataKeyState, HandedKey, Image, ImageKind, KeyOwner, Secret, first_holder,
};
use shoal_raft::Raft;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{debug, info, warn};

use super::keys::{PAGE_KEYS, recorded};
use super::{DataKeys, Error};
use crate::clock::now;
use crate::http::problem::chain;
use crate::store::sealed::{Held, Look, handed_purpose, wrap};
use crate::store::{SealedStore, StoreError};

/// How often retired keys are looked for, at most.
const INTERVAL_MAX: Duration = Duration::from_secs(60);
/// Rows of one look.
const PAGE_ROWS: usize = 500;
const PAGE_IMAGES: usize = 100;
/// Versions whose rows are read at once; each names every object that its disk lies in.
const PAGE_VERSIONS: usize = 4;
/// Objects whose beginnings are read at once.
const LOOKS_AT_ONCE: usize = 16;
/// How often an object is looked at while storage does not answer, and the first pause between.
const LOOKS_MAX: u32 = 5;
const LOOK_PAUSE: Duration = Duration::from_millis(500);
/// Keys of one command: each is named in its entry of the audit trail, which is short.
const DESTROYED_AT_ONCE: usize = 2;
/// Looks at all objects before it is left to the next time.
const PASSES_MAX: usize = 4;

/// How far the work for some retired keys is.
#[derive(Debug)]
struct Round {
    due: Vec<DataKeyId>,
    /// They were retired before.
    before: Timestamp,
    step: Step,
}

#[derive(Debug)]
enum Step {
    /// Blobs after this one.
    Blobs(Option<Digest>),
    /// Images after this one.
    Disks(Option<ImageId>),
    Rest,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Shredder {
    raft: Raft,
    /// Storage itself, without a cache before it.
    store: SealedStore,
    keys: DataKeys,
    after: Duration,
    round: Option<Round>,
    handed_over: Counter,
    destroyed: Counter,
}

impl Shredder {
    pub fn new(
        raft: Raft,
        store: SealedStore,
        keys: DataKeys,
        after: Duration,
        registry: &mut Registry,
    ) -> Self {
        let (handed_over, destroyed) = (Counter::default(), Counter::default());
        for (name, help, counter) in [
            (
                "shoal_encryption_handed_over_objects",
                "Objects of removed projects that others refer to, given to another data key",
                &handed_over,
            ),
            (
                "shoal_encryption_destroyed_keys",
                "Data keys of removed projects that were destroyed",
                &destroyed,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
        Self { raft, store, keys, after, round: None, handed_over, destroyed }
    }

    /// Looks at every interval while this node leads. Runs until it is dropped.
    pub async fn run(mut self) {
        let every = self.after.clamp(Duration::from_millis(500), INTERVAL_MAX);
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if !self.raft.status().is_leader {
                self.round = None;
                continue;
            }
            if let Err(error) = self.look().await {
                warn!(error = chain(&error), "the keys of removed projects stay for now");
            }
        }
    }

    /// Goes on where the last look ended.
    async fn look(&mut self) -> Result<(), Error> {
        let mut round = match self.round.take() {
            Some(round) => round,
            None => {
                let before = now().as_millis().saturating_sub(self.after.as_millis() as u64);
                let before = Timestamp::from_millis(before);
                Round { due: self.due(before)?, before, step: Step::Blobs(None) }
            }
        };
        if round.due.is_empty() {
            return Ok(());
        }
        let done = self.work(&mut round).await;
        if !matches!(done, Ok(true)) {
            self.round = Some(round);
        }
        done.map(drop)
    }

    /// Whether all is done; what is not, is left to the next look.
    async fn work(&self, round: &mut Round) -> Result<bool, Error> {
        loop {
            round.step = match &round.step {
                Step::Blobs(after) => self.hand_over_blobs(after.as_ref()).await?,
                Step::Disks(after) => self.hand_over_disks(*after).await?,
                Step::Rest => break,
            };
        }
        // What is left belongs to nobody in particular. This pass is the one that counts, and so it
        // is made from the first object to the last.
        let mut passes = 0;
        while self.hand_over_rest().await? > 0 {
            passes += 1;
            if passes == PASSES_MAX {
                return Ok(false);
            }
        }
        while !round.due.is_empty() {
            let some = round.due.len().min(DESTROYED_AT_ONCE);
            let keys: BTreeSet<DataKeyId> = round.due[..some].iter().copied().collect();
            let destroy = Command::DestroyDataKeys { keys, retired_before: round.before };
            self.raft.propose(now(), recorded(&self.raft, destroy)).await?;
            round.due.drain(..some);
            self.destroyed.inc_by(some as u64);
            info!(keys = some, "the data keys of removed projects were destroyed");
        }
        self.keys.forget_destroyed();
        Ok(true)
    }

    fn due(&self, before: Timestamp) -> Result<Vec<DataKeyId>, Error> {
        let view = self.raft.local();
        let (mut due, mut after) = (Vec::new(), None);
        loop {
            let page = view.query().data_keys(after, PAGE_KEYS)?;
            let Some(last) = page.last() else { return Ok(due) };
            after = Some(last.id);
            let retired = page.into_iter().filter(
                |key| matches!(key.state, DataKeyState::Retired { since, .. } if since < before),
            );
            due.extend(retired.map(|key| key.id));
        }
    }

    /// A page of blobs and their recipes, to a project that holds them; gives what comes next.
    async fn hand_over_blobs(&self, after: Option<&Digest>) -> Result<Step, Error> {
        let mut objects = Vec::new();
        let next = {
            let view = self.raft.read().await?;
            let query = view.query();
            let blobs = query.blobs_after(after, PAGE_ROWS)?;
            let Some(last) = blobs.last() else { return Ok(Step::Disks(None)) };
            let next = Step::Blobs(Some(last.digest.clone()));
            for blob in blobs {
                let Some(heir) = first_holder(query, &blob.digest)? else { continue };
                let heir = KeyOwner::Project(heir);
                objects.push((ObjectKey::Recipe(blob.recipe), heir.clone()));
                objects.push((blob.object, heir));
            }
            next
        };
        self.hand_over(objects, Look::Remembered).await?;
        Ok(next)
    }

    /// What the disks of a page of images lie in, to their projects; gives what comes next. Disks
    /// in the trash may come back.
    async fn hand_over_disks(&self, after: Option<ImageId>) -> Result<Step, Error> {
        let images = self.raft.read().await?.query().images_by_id(after, PAGE_IMAGES)?;
        let Some(last) = images.last() else { return Ok(Step::Rest) };
        let next = Step::Disks(Some(last.id));
        for image in images.into_iter().filter(|image| image.kind == ImageKind::Disk) {
            self.hand_over_versions(&image).await?;
        }
        Ok(next)
    }

    async fn hand_over_versions(&self, image: &Image) -> Result<(), Error> {
        let heir = KeyOwner::Project(image.name.project());
        // Versions share most of their objects.
        let (mut objects, mut before) = (BTreeMap::new(), None);
        loop {
            let view = self.raft.read().await?;
            let versions = view.query().versions_before(image.id, before, PAGE_VERSIONS)?;
            drop(view);
            let Some(last) = versions.last() else { break };
            before = Some(last.sequence);
            let disks = versions.into_iter().filter_map(|version| version.disk);
            for object in disks.flat_map(|disk| disk.objects) {
                objects.insert(object, heir.clone());
                if objects.len() == PAGE_ROWS {
                    let full = std::mem::take(&mut objects);
                    self.hand_over(full.into_iter().collect(), Look::Remembered).await?;
                }
            }
        }
        self.hand_over(objects.into_iter().collect(), Look::Remembered).await?;
        Ok(())
    }

    /// Whatever is in use, to the cluster's own key; gives how many objects it was.
    async fn hand_over_rest(&self) -> Result<usize, Error> {
        let (mut after, mut count) = (None, 0);
        loop {
            let objects = {
                let view = self.raft.read().await?;
                let page = view.query().objects_after(after.as_ref(), PAGE_ROWS)?;
                let Some((last, _)) = page.last() else { return Ok(count) };
                after = Some(*last);
                let used = page.into_iter().filter(|(_, used)| used.count > 0);
                used.map(|(object, _)| (object, KeyOwner::Cluster)).collect()
            };
            count += self.hand_over(objects, Look::Anew).await?;
        }
    }

    /// The cluster in place of a project that was removed meanwhile, whose keys would not retire
    /// any more.
    fn still(&self, heir: KeyOwner) -> Result<KeyOwner, Error> {
        let there = match &heir {
            KeyOwner::Cluster => true,
            KeyOwner::Project(name) => self.raft.local().query().project(name)?.is_some(),
        };
        Ok(if there { heir } else { KeyOwner::Cluster })
    }

    async fn going(&self, object: ObjectKey, look: Look) -> Result<Option<Held>, StoreError> {
        patiently(LOOK_PAUSE, || self.store.going(object, look)).await
    }

    /// Hands those over that go with a retired key; gives how many.
    async fn hand_over(
        &self,
        objects: Vec<(ObjectKey, KeyOwner)>,
        look: Look,
    ) -> Result<usize, Error> {
        let looks = objects.into_iter().map(|(object, heir)| async move {
            let held = self.going(object, look).await?;
            Ok::<_, Error>(held.map(|held| (object, heir, held)))
        });
        let looks = futures::stream::iter(looks).buffer_unordered(LOOKS_AT_ONCE);
        let going: Vec<(ObjectKey, KeyOwner, Held)> =
            looks.try_filter_map(|found| async move { Ok(found) }).try_collect().await?;
        let mut handed = BTreeMap::new();
        for (object, heir, held) in going {
            let key = self.keys.kept(&self.still(heir)?).await?;
            let key = key.ok_or(Error::NotSealing("there is no key to hand an object to"))?;
            let sealed = wrap(&key.bytes, &handed_purpose(object), &held.secret.as_bytes()[..]);
            let (from, to) = (held.from, key.id);
            handed.insert(object, HandedKey { from, to, sealed: Secret(sealed) });
        }
        let count = handed.len();
        let mut handed = handed.into_iter();
        loop {
            let batch: BTreeMap<ObjectKey, HandedKey> = handed.by_ref().take(PAGE_ROWS).collect();
            if batch.is_empty() {
                break;
            }
            let objects = batch.len() as u64;
            self.raft.propose(now(), Command::HandOverObjects { objects: batch }).await?;
            self.handed_over.inc_by(objects);
        }
        Ok(count)
    }
}

/// Looks again, [`LOOKS_MAX`] times in all, while storage does not answer; `pause` is the first one.
async fn patiently<T, F: Future<Output = Result<T, StoreError>>>(
    mut pause: Duration,
    mut look: impl FnMut() -> F,
) -> Result<T, StoreError> {
    for _ in 1..LOOKS_MAX {
        match look().await {
            Err(error) if error.is_retryable() => {
                debug!(%error, "an object cannot be looked at now");
                sleep(pause).await;
                pause *= 2;
            }
            looked => return looked,
        }
    }
    look().await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many looks it takes where the first so many fail, and what comes of them.
    async fn looks(failing: u32, is_retryable: bool) -> (u32, Result<u32, StoreError>) {
        let mut looks = 0;
        let looked = patiently(Duration::ZERO, || {
            looks += 1;
            let (doing, cause) = ("reading an object", "a test has it fail".to_owned());
            std::future::ready(match (looks <= failing, is_retryable) {
                (false, _) => Ok(looks),
                (true, true) => Err(StoreError::Unavailable { doing, cause }),
                (true, false) => Err(StoreError::Refused { doing, cause }),
            })
        });
        let looked = looked.await;
        (looks, looked)
    }

    #[tokio::test]
    async fn an_object_is_looked_at_again_while_storage_does_not_answer() {
        assert!(matches!(looks(0, true).await, (1, Ok(1))));
        assert!(matches!(looks(2, true).await, (3, Ok(3))));
        assert!(matches!(looks(LOOKS_MAX - 1, true).await, (LOOKS_MAX, Ok(_))));
        assert!(
            matches!(looks(LOOKS_MAX, true).await, (LOOKS_MAX, Err(error)) if error.is_retryable())
        );
        assert!(matches!(looks(1, false).await, (1, Err(StoreError::Refused { .. }))));
    }
}
