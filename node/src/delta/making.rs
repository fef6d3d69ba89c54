//! One bundle: claimed, made, stored, named.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use shoal_content::{ImageId, ObjectKey, Recipe, RecipeId};
use shoal_formats::{DeltaEnd, DeltaError, MadeDelta, Side, SinkError, fresh_chunks, make_delta};
use shoal_metadata::{Command, DeltaBundle, DeltaKey, Fault, KeyOwner, Refusal};
use shoal_raft::ProposeError;
use thiserror::Error;
use tokio::runtime::Handle;
use tracing::warn;

use super::{Deltas, Settings};
use crate::clock;
use crate::collection::first_missing;
use crate::disks::PackUploads;
use crate::http::problem::chain;
use crate::origin::{self, Place};
use crate::store::{StoreError, put_once};

/// How long a node may be silent before another one takes over.
const LEASE: Duration = Duration::from_secs(20);
const LEASE_RENEWAL: Duration = Duration::from_secs(5);
/// How often a bundle is begun before the claim is left to run out, and the pause between.
const ATTEMPTS_MAX: u32 = 3;
const ATTEMPT_PAUSE: Duration = Duration::from_secs(2);
/// Less than this is not worth a bundle's requests, in bytes.
const SAVING_BYTES_MIN: u64 = 1024 * 1024;

/// How the work on a bundle ended.
pub(super) enum End {
    Made {
        bytes: u64,
        /// What the same chunks take in storage.
        instead_of: u64,
    },
    Useless,
    /// Another node makes it or has made it, or one of the versions is gone.
    NotOurs,
}

#[derive(Debug, Error)]
pub(super) enum Error {
    #[error(transparent)]
    Propose(#[from] ProposeError),
    #[error("the metadata cannot be read")]
    Rows(#[from] Fault),
    #[error(transparent)]
    Origin(#[from] origin::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Delta(#[from] DeltaError),
    #[error("a pack could not be stored")]
    Pack(#[source] SinkError),
    #[error("recipe {0} is not in storage")]
    NoRecipe(RecipeId),
    #[error("{0} was deleted meanwhile")]
    Deleted(ObjectKey),
    #[error("the work was interrupted")]
    Interrupted,
}

impl Deltas {
    pub(super) async fn make(&self, of: DeltaKey) -> Result<End, Error> {
        let Some(settings) = self.settings() else { return Ok(End::NotOurs) };
        let Ok(_permit) = settings.permits.acquire().await else { return Ok(End::NotOurs) };
        if !self.claim(of).await? {
            return Ok(End::NotOurs);
        }
        let lost = Arc::new(AtomicBool::new(false));
        let work = async {
            let mut attempt = 1;
            loop {
                match self.attempt(of, settings, &lost).await {
                    Err(error) if attempt < ATTEMPTS_MAX => {
                        warn!(old = %of.old, new = %of.new, error = chain(&error), attempt, "again");
                        tokio::time::sleep(ATTEMPT_PAUSE * attempt).await;
                        attempt += 1;
                    }
                    outcome => return outcome,
                }
            }
        };
        tokio::select! {
            outcome = work => outcome,
            () = self.hold_claim(of) => {
                lost.store(true, Ordering::Relaxed);
                Ok(End::NotOurs)
            }
        }
    }

    /// Whether the bundle is this node's to make.
    async fn claim(&self, of: DeltaKey) -> Result<bool, ProposeError> {
        let now = clock::now();
        let lease_until = now.plus_millis(LEASE.as_millis() as u64);
        let claim = Command::ClaimDelta { of, node: self.inner.node, lease_until };
        match self.inner.raft.propose(now, claim).await {
            Ok(_) => Ok(true),
            Err(ProposeError::Refused(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Renews the claim; returns when it is lost.
    async fn hold_claim(&self, of: DeltaKey) {
        loop {
            tokio::time::sleep(LEASE_RENEWAL).await;
            match self.claim(of).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => warn!(%error, "the claim on a bundle could not be renewed"),
            }
        }
    }

    async fn attempt(
        &self,
        of: DeltaKey,
        settings: &Settings,
        lost: &Arc<AtomicBool>,
    ) -> Result<End, Error> {
        let (old, new) = (self.recipe(of.old).await?, self.recipe(of.new).await?);
        let stored = |chunk: &u32| u64::from(new.chunks()[*chunk as usize].stored());
        let stored_bytes: u64 = fresh_chunks(&old, &new).iter().map(stored).sum();
        let percent = u64::from(settings.config.saving_percent_min);
        let saving = SAVING_BYTES_MIN.max(stored_bytes / 100 * percent);
        let made = match stored_bytes.checked_sub(saving) {
            Some(bytes_max) => self.bundle(of, old, new, settings, bytes_max, lost).await?,
            None => DeltaEnd::TooLong,
        };
        let bundle = match made {
            DeltaEnd::TooLong => None,
            DeltaEnd::Made(MadeDelta { recipe, content_bytes, .. }) => {
                let bytes = recipe.length();
                let mut objects: Vec<ObjectKey> =
                    recipe.objects().iter().map(|object| object.key).collect();
                let encoded = recipe.encode();
                let recipe = RecipeId::of(&encoded);
                let (key, under) = (ObjectKey::Recipe(recipe), self.under(of.image)?);
                put_once(&*self.inner.store, key, &under, Bytes::from(encoded)).await?;
                objects.push(ObjectKey::Recipe(recipe));
                // Some may have been there before, and on their way out.
                if let Some(missing) = first_missing(&self.inner.store, &objects).await? {
                    return Err(Error::Deleted(missing));
                }
                let objects = objects.into_iter().collect();
                Some(DeltaBundle { recipe, bytes, content_bytes, stored_bytes, objects })
            }
        };
        let end = match &bundle {
            Some(bundle) => End::Made { bytes: bundle.bytes, instead_of: stored_bytes },
            None => End::Useless,
        };
        let command = Command::EndDelta { of, node: self.inner.node, bundle };
        match self.inner.raft.propose(clock::now(), command).await {
            Ok(_) => Ok(end),
            Err(ProposeError::Refused(
                Refusal::NotFound(_) | Refusal::Leased | Refusal::Exists(_),
            )) => Ok(End::NotOurs),
            Err(error) => Err(error.into()),
        }
    }

    fn under(&self, image: ImageId) -> Result<KeyOwner, Error> {
        Ok(self.inner.raft.local().query().key_owner(image)?)
    }

    async fn recipe(&self, id: RecipeId) -> Result<Arc<Recipe>, Error> {
        self.inner.origin.recipe(id).await?.ok_or(Error::NoRecipe(id))
    }

    /// Its packs are safe in storage, its recipe is not.
    async fn bundle(
        &self,
        of: DeltaKey,
        old: Arc<Recipe>,
        new: Arc<Recipe>,
        settings: &Settings,
        bytes_max: u64,
        lost: &Arc<AtomicBool>,
    ) -> Result<DeltaEnd<()>, Error> {
        let (limits, runtime) = (settings.config.limits(), Handle::current());
        let sink =
            PackUploads::new(Arc::clone(&self.inner.store), self.under(of.image)?, runtime.clone());
        let (windows, lost) = (self.inner.windows.clone(), Arc::clone(lost));
        let origin = self.inner.origin.clone();
        let work = move || -> Result<DeltaEnd<()>, Error> {
            let read = &mut |side, chunk: u32, to: &mut Vec<u8>| -> Result<(), SinkError> {
                let (id, recipe) = match side {
                    Side::Old => (of.old, &old),
                    Side::New => (of.new, &new),
                };
                let place = Place::of(recipe, &recipe.chunks()[chunk as usize]);
                to.extend(runtime.block_on(origin.read_chunk(&windows, id, place))?);
                Ok(())
            };
            let go_on = &mut || match lost.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            };
            let (from, to) = ((of.old, &*old), (of.new, &*new));
            match make_delta(from, to, limits, bytes_max, read, go_on, sink)? {
                DeltaEnd::TooLong => Ok(DeltaEnd::TooLong),
                DeltaEnd::Made(MadeDelta { recipe, content_bytes, sink }) => {
                    sink.settle().map_err(Error::Pack)?;
                    Ok(DeltaEnd::Made(MadeDelta { recipe, content_bytes, sink: () }))
                }
            }
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| Error::Interrupted)?
    }
}
