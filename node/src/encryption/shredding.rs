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
//! A crash at any step leaves retired keys, which the next leader finds.
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
use shoal_content::{DataKeyId, ObjectKey, RepositoryName, Timestamp};
use shoal_metadata::{Command, DataKeyState, HandedKey, KeyOwner, Secret, first_holder};
use shoal_raft::Raft;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::keys::PAGE_KEYS;
use super::{DataKeys, Error};
use crate::clock::now;
use crate::http::problem::chain;
use crate::store::SealedStore;
use crate::store::sealed::{Held, Look, handed_purpose, wrap};

/// How often retired keys are looked for, at most.
const INTERVAL_MAX: Duration = Duration::from_secs(60);
/// Rows of one look.
const PAGE_ROWS: usize = 500;
/// Images whose versions are read at once.
const PAGE_IMAGES: usize = 20;
/// Objects whose beginnings are read at once.
const LOOKS_AT_ONCE: usize = 16;
/// Looks at all objects before it is left to the next time.
const ROUNDS_MAX: usize = 4;

/// See the module's documentation.
#[derive(Debug)]
pub struct Shredder {
    raft: Raft,
    /// Storage itself, without a cache before it.
    store: SealedStore,
    keys: DataKeys,
    after: Duration,
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
        Self { raft, store, keys, after, handed_over, destroyed }
    }

    /// Looks at every interval while this node leads. Runs until it is dropped.
    pub async fn run(self) {
        let every = self.after.clamp(Duration::from_millis(500), INTERVAL_MAX);
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if !self.raft.status().is_leader {
                continue;
            }
            if let Err(error) = self.look().await {
                warn!(error = chain(&error), "the keys of removed projects stay for now");
            }
        }
    }

    async fn look(&self) -> Result<(), Error> {
        let before = now().as_millis().saturating_sub(self.after.as_millis() as u64);
        let before = Timestamp::from_millis(before);
        let due = self.due(before)?;
        if due.is_empty() {
            return Ok(());
        }
        self.hand_over_blobs().await?;
        self.hand_over_disks().await?;
        // What is left belongs to nobody in particular. This look is the one that counts.
        let mut rounds = 0;
        while self.hand_over_rest().await? > 0 {
            rounds += 1;
            if rounds == ROUNDS_MAX {
                return Ok(());
            }
        }
        for batch in due.chunks(PAGE_KEYS) {
            let keys: BTreeSet<DataKeyId> = batch.iter().copied().collect();
            let count = keys.len() as u64;
            let destroy = Command::DestroyDataKeys { keys, retired_before: before };
            self.raft.propose(now(), destroy).await?;
            self.destroyed.inc_by(count);
            info!(keys = count, "the data keys of removed projects were destroyed");
        }
        self.keys.forget_destroyed();
        Ok(())
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

    /// Blobs and their recipes, to a project that holds them.
    async fn hand_over_blobs(&self) -> Result<(), Error> {
        let mut after = None;
        loop {
            let mut objects = Vec::new();
            {
                let view = self.raft.read().await?;
                let query = view.query();
                let blobs = query.blobs_after(after.as_ref(), PAGE_ROWS)?;
                let Some(last) = blobs.last() else { return Ok(()) };
                after = Some(last.digest.clone());
                for blob in blobs {
                    let Some(heir) = first_holder(query, &blob.digest)? else { continue };
                    let heir = KeyOwner::Project(heir);
                    objects.push((ObjectKey::Recipe(blob.recipe), heir.clone()));
                    objects.push((blob.object, heir));
                }
            }
            self.hand_over(objects, Look::Remembered).await?;
        }
    }

    /// What disks lie in, to their projects.
    async fn hand_over_disks(&self) -> Result<(), Error> {
        let mut after: Option<RepositoryName> = None;
        loop {
            let mut objects = BTreeMap::new();
            {
                let view = self.raft.read().await?;
                let query = view.query();
                let images = query.images(after.as_ref(), PAGE_IMAGES)?;
                let Some(last) = images.last() else { return Ok(()) };
                after = Some(last.name.clone());
                for image in images {
                    let heir = KeyOwner::Project(image.name.project());
                    for disk in query.versions(image.id)?.into_iter().filter_map(|one| one.disk) {
                        objects.extend(disk.objects.into_iter().map(|key| (key, heir.clone())));
                    }
                }
            }
            self.hand_over(objects.into_iter().collect(), Look::Remembered).await?;
        }
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

    /// Hands those over that go with a retired key; gives how many.
    async fn hand_over(
        &self,
        objects: Vec<(ObjectKey, KeyOwner)>,
        look: Look,
    ) -> Result<usize, Error> {
        let looks = objects.into_iter().map(|(object, heir)| async move {
            let held = self.store.going(object, look).await?;
            Ok::<_, Error>(held.map(|held| (object, heir, held)))
        });
        let looks = futures::stream::iter(looks).buffer_unordered(LOOKS_AT_ONCE);
        let going: Vec<(ObjectKey, KeyOwner, Held)> =
            looks.try_filter_map(|found| async move { Ok(found) }).try_collect().await?;
        let mut handed = BTreeMap::new();
        for (object, heir, held) in going {
            let key = self.keys.kept(&heir).await?;
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
