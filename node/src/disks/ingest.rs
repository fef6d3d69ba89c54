//! One disk: opened over its parts, cut, packed, and published.
//!
//! Invariants: nothing is published before every pack and the recipe are safe in storage, and
//! nothing of which one of them was not seen there just before; see `collection`. What is read are
//! the parts as they were acknowledged; see `source`.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use sha2::{Digest as _, Sha256};
use shoal_content::{
    Digest, ObjectKey, RECIPE_BYTES_MAX, Recipe, RecipeId, TagName, UploadId, VersionId,
};
use shoal_formats::{
    DiskIngest, Export, Format, FreeSpace, IngestError, Ingested, ReadAt, SinkError, open,
};
use shoal_metadata::{
    AuditSource, Command, Disk, Image, ImageKind, KeyOwner, PutManifest, Refusal, Subject, Upload,
    UploadPurpose, command_version,
};
use shoal_raft::ProposeError;
use tracing::warn;
use uuid::Uuid;

use super::dedup::{Known, VERSIONS_MAX, known_chunks};
use super::export::exported;
use super::manifest::{ARTIFACT_TYPE, DiskFile, DiskManifest, MEDIA_TYPE, file_target};
use super::packs::PackUploads;
use super::source::{PartsSource, Uploaded};
use super::{Disks, Running};
use crate::clock;
use crate::collection::{PUBLISH_WINDOW, first_missing};
use crate::http::problem::chain;
use crate::registry::hash::Hash;
use crate::store::{StoreError, put_once};

/// Bytes of the uploaded file that are compared at once.
const COMPARED_AT_ONCE: usize = 1024 * 1024;
/// The tag of the latest version.
const LATEST: &str = "latest";

/// How an ingest ends without a version.
#[derive(Debug)]
pub(super) enum Failure {
    /// For good; the reason is for the uploader.
    Refused(String),
    /// Another node has the lease, or the session is gone.
    Lost,
    /// Storage or the metadata did not answer; trying again may help.
    Passing(String),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        if error.is_full() {
            Self::Refused(format!("storage_full: {error}"))
        } else {
            Self::Passing(chain(&error))
        }
    }
}

/// What was read off the disk.
struct Cut {
    recipe: Recipe,
    format: Format,
    virtual_bytes: u64,
    content_bytes: u64,
    added_bytes: u64,
}

/// What the session says.
struct Order {
    upload: Upload,
    image: Image,
    number: String,
    tags: Vec<TagName>,
    uploaded: Uploaded,
    hint: Option<Format>,
    /// What the file is to be, one after another.
    layers: Vec<(Digest, u64)>,
    /// Of the newest versions, at most [`VERSIONS_MAX`].
    recipes: Vec<RecipeId>,
}

impl Order {
    /// Whose key its objects are sealed with.
    fn under(&self) -> KeyOwner {
        KeyOwner::Project(self.image.name.project())
    }
}

impl Disks {
    pub(super) async fn ingest(&self, id: UploadId, entry: &Arc<Running>) -> Result<(), Failure> {
        let order = self.order(id).await?;
        let store = Arc::clone(&self.inner.store);
        let known = known_chunks(&self.inner.origin, &store, &order.recipes).await?;
        let runtime = tokio::runtime::Handle::current();
        let (uploaded, running) = (order.uploaded.clone(), Arc::clone(entry));
        let source = PartsSource::new(Arc::clone(&store), runtime.clone(), uploaded, running);
        let sink = PackUploads::new(store, order.under(), runtime);
        let (layers, hint, running) = (order.layers.clone(), order.hint, Arc::clone(entry));
        let free_space = if self.inner.keep_free_space.load(Ordering::Relaxed) {
            FreeSpace::Keep
        } else {
            FreeSpace::Zero
        };
        let ingest = DiskIngest::new(sink).free_space(free_space);
        let cut = tokio::task::spawn_blocking(move || {
            let observed = source.observed();
            let cut = compare(&source, &layers, &running)
                .and_then(|()| cut(source, hint, &known, ingest, &running));
            // Whatever a format's reader made of that.
            match observed.damaged() {
                Some(part) => Err(Failure::Refused(format!(
                    "checksum_mismatch: part {part} is not what was acknowledged; upload it anew"
                ))),
                None => cut,
            }
        });
        let cut = cut.await.map_err(|error| Failure::Passing(error.to_string()))??;
        let recipe = self.store_recipe(&cut.recipe, &order.under()).await?;
        let file = self.file(recipe, entry).await?;
        self.publish(order, cut, recipe, file).await
    }

    /// Reads the disk once more, as the file that the registry gives: its digest stands in the
    /// manifest. What was stored is read, so that a byte that cannot be had again is missed here,
    /// while the parts are still there. `None` for a disk that is too large for such a file.
    async fn file(&self, recipe: RecipeId, running: &Running) -> Result<Option<DiskFile>, Failure> {
        let origin = &self.inner.origin;
        let read = origin.recipe(recipe).await.map_err(|error| Failure::Passing(chain(&error)))?;
        let read = read.ok_or_else(|| Failure::Passing("the recipe is not in storage".into()))?;
        let export = tokio::task::spawn_blocking(move || Export::new(file_target(), read)).await;
        let export = match export.map_err(|error| Failure::Passing(error.to_string()))? {
            Ok(export) => export,
            Err(error) => {
                warn!(%recipe, %error, "the registry has no file of this disk");
                return Ok(None);
            }
        };
        let length = export.len();
        let mut pieces = Box::pin(exported(origin.clone(), recipe, export, 0..length));
        let (mut hasher, mut done) = (Sha256::new(), 0);
        while let Some(piece) = pieces.next().await {
            if running.lost.load(Ordering::Relaxed) {
                return Err(Failure::Lost);
            }
            let piece = piece.map_err(|error| Failure::Passing(chain(&error)))?;
            hasher.update(&piece);
            // Who waits sees that it goes on.
            done += piece.len() as u64;
            running.processed_bytes.store(done, Ordering::Relaxed);
        }
        Ok(Some(DiskFile { digest: Digest::sha256(hasher.finalize().into()), length }))
    }

    async fn order(&self, id: UploadId) -> Result<Order, Failure> {
        let passing = |error: &(dyn std::error::Error + 'static)| Failure::Passing(chain(error));
        let view = self.inner.raft.read().await.map_err(|error| passing(&error))?;
        let query = view.query();
        let upload = query.upload(id).map_err(|error| passing(&error))?.ok_or(Failure::Lost)?;
        let UploadPurpose::Disk {
            image, number, tags, total_bytes, part_bytes, format, parts, ..
        } = upload.purpose.clone()
        else {
            return Err(Failure::Lost);
        };
        let gone = || Failure::Refused("image_not_found: the image was deleted meanwhile".into());
        let note = query.upload_note(id).map_err(|error| passing(&error))?.unwrap_or_default();
        let image = query.live_image(image).map_err(|error| passing(&error))?.ok_or_else(gone)?;
        let mut recipes = Vec::new();
        let newest = query.find_version(image.id, |version| {
            recipes.extend(version.disk.map(|disk| disk.recipe));
            Ok((recipes.len() >= VERSIONS_MAX).then_some(()))
        });
        newest.map_err(|error| passing(&error))?;
        let hint = format.and_then(|format| format.parse().ok());
        let layers = note.layers;
        let uploaded = Uploaded { upload: id, total_bytes, part_bytes, parts };
        Ok(Order { upload, image, number, tags, uploaded, hint, layers, recipes })
    }

    async fn store_recipe(&self, recipe: &Recipe, under: &KeyOwner) -> Result<RecipeId, Failure> {
        let encoded = recipe.encode();
        if encoded.len() > RECIPE_BYTES_MAX {
            let bytes = encoded.len();
            let text = format!("disk_too_large: its list of chunks would have {bytes} bytes");
            return Err(Failure::Refused(text));
        }
        let id = RecipeId::of(&encoded);
        let (store, key) = (&*self.inner.store, ObjectKey::Recipe(id));
        put_once(store, key, under, Bytes::from(encoded)).await?;
        Ok(id)
    }

    async fn publish(
        &self,
        order: Order,
        cut: Cut,
        recipe: RecipeId,
        file: Option<DiskFile>,
    ) -> Result<(), Failure> {
        let manifest = DiskManifest {
            image: &order.image.name,
            file,
            recipe,
            number: &order.number,
            virtual_bytes: cut.virtual_bytes,
            content_bytes: cut.content_bytes,
            source_format: cut.format,
        };
        let (bytes, digest) = manifest.encode();
        let annotations = manifest.annotations();
        let mut objects: BTreeSet<ObjectKey> =
            cut.recipe.objects().iter().map(|object| object.key).collect();
        objects.insert(ObjectKey::Recipe(recipe));
        let mut tags = Vec::new();
        for tag in order.tags {
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
        let compressed_bytes =
            cut.recipe.chunks().iter().map(|chunk| u64::from(chunk.stored())).sum();
        let disk = Disk {
            recipe,
            virtual_bytes: cut.virtual_bytes,
            content_bytes: cut.content_bytes,
            added_bytes: cut.added_bytes,
            objects,
            number: order.number.clone(),
            source_format: cut.format.to_string(),
        };
        let put = PutManifest {
            repository: order.image.name,
            image: order.image.id,
            version: VersionId::from_uuid(Uuid::now_v7()),
            kind: ImageKind::Disk,
            digest,
            media_type: MEDIA_TYPE.to_owned(),
            manifest: bytes,
            artifact_type: Some(ARTIFACT_TYPE.to_owned()),
            annotations,
            subject: None,
            references: BTreeSet::new(),
            disk: Some(disk),
            tags,
            owner: order.upload.owner,
            upload: Some(order.upload.id),
        };
        let image = put.image;
        match self.propose_published(put, compressed_bytes).await? {
            Ok(_) => {
                if let Some(deltas) = self.inner.deltas.get() {
                    deltas.published(image, &order.recipes, recipe);
                }
                Ok(())
            }
            // Done by another node, or by us where the answer was lost, or ended otherwise.
            Err(ProposeError::Refused(Refusal::UploadState(_))) => Err(Failure::Lost),
            Err(ProposeError::Refused(Refusal::NotFound(Subject::Upload))) => Err(Failure::Lost),
            // Whatever was kept of an earlier version goes just now; it will be stored anew.
            Err(ProposeError::Refused(refusal @ Refusal::BeingDeleted(_))) => {
                Err(Failure::Passing(refusal.to_string()))
            }
            Err(ProposeError::Refused(Refusal::Exists(Subject::Version))) => {
                let number = order.number;
                Err(Failure::Refused(format!(
                    "version_exists: there is a version {number} already"
                )))
            }
            Err(ProposeError::Refused(refusal @ Refusal::Quota(_))) => {
                Err(Failure::Refused(format!("quota_exceeded: {refusal}")))
            }
            Err(ProposeError::Refused(refusal @ Refusal::NotYours)) => {
                Err(Failure::Refused(format!("forbidden: {refusal}")))
            }
            Err(ProposeError::Refused(refusal @ Refusal::InUse { .. })) => {
                Err(Failure::Refused(format!("in_use: {refusal}")))
            }
            Err(ProposeError::Refused(refusal)) => Err(Failure::Refused(refusal.to_string())),
            Err(error) => Err(Failure::Passing(error.to_string())),
        }
    }
}

impl Disks {
    /// Proposes until an answer comes, each time right after all objects were seen in storage.
    async fn propose_published(
        &self,
        put: PutManifest,
        compressed_bytes: u64,
    ) -> Result<Result<(), ProposeError>, Failure> {
        let objects: Vec<ObjectKey> =
            put.disk.iter().flat_map(|disk| disk.objects.iter().copied()).collect();
        loop {
            let began = Instant::now();
            self.see_all(&objects).await?;
            if began.elapsed() > PUBLISH_WINDOW / 2 {
                return Err(Failure::Passing("storage is too slow to publish safely".into()));
            }
            let command = self.published(&put, compressed_bytes)?;
            match self.inner.raft.propose(clock::now(), command).await {
                Err(error) if error.is_retryable() => {
                    warn!(%error, "the metadata do not answer; asking again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                outcome => return Ok(outcome.map(drop)),
            }
        }
    }

    /// On behalf of whoever uploaded it, whose request has ended long since.
    fn published(&self, put: &PutManifest, compressed_bytes: u64) -> Result<Command, Failure> {
        let level = self.inner.raft.local().query().level();
        if !level.is_ok_and(|level| level >= command_version(&Command::CountUsage)) {
            // Nodes of an earlier version know nothing of numbers: what came last is the latest.
            let mut put = put.clone();
            let latest = LATEST.parse::<TagName>();
            let latest = latest.map_err(|error| Failure::Passing(error.to_string()))?;
            if !put.tags.contains(&latest) {
                put.tags.push(latest);
            }
            return Ok(Command::PutManifest(put));
        }
        let command = Command::PublishDisk { put: put.clone(), compressed_bytes };
        let request = put.upload.map(|upload| upload.to_string()).unwrap_or_default();
        let (who, node) = (put.owner.clone(), self.inner.node.number());
        let source = AuditSource { who, request, node, ..AuditSource::default() };
        Ok(Command::Audited { source, command: Box::new(command) })
    }

    async fn see_all(&self, objects: &[ObjectKey]) -> Result<(), Failure> {
        match first_missing(&self.inner.store, objects).await? {
            None => Ok(()),
            Some(object) => Err(Failure::Passing(format!("{object} was deleted meanwhile"))),
        }
    }
}

/// Compares the file with what its uploader said that it is. Runs on a blocking thread.
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

/// Runs on a blocking thread.
fn cut(
    source: PartsSource,
    hint: Option<Format>,
    known: &Known,
    ingest: DiskIngest<PackUploads>,
    running: &Running,
) -> Result<Cut, Failure> {
    let observed = source.observed();
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
        running.processed_bytes.store(progress.bytes_done, Ordering::Relaxed);
        if running.lost.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let ingested = ingest.run(disk.as_mut(), &mut look_up, &mut progress).map_err(ended)?;
    let Ingested { recipe, totals, sink, .. } = ingested;
    sink.settle().map_err(unstored)?;
    Ok(Cut {
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
