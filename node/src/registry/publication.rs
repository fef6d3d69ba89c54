//! The last step of a blob's way in: what lies in storage is named by a command, and what turns out
//! not to be needed is deleted again.
//!
//! Crash order: the blob's bytes, then its recipe, then the command. A crash between leaves orphans,
//! which the scrub finds.

use shoal_content::{Digest, ImageId, ObjectKey, RepositoryName, UploadId};
use shoal_metadata::{Command, KeyOwner, Response as Answered};
use shoal_raft::ProposeError;
use tracing::warn;
use uuid::Uuid;

use super::RegistryError;
use super::intake::Written;
use crate::state::App;
use crate::store::put_once;

/// What a blob that lies in storage is to be known by.
#[derive(Debug)]
pub struct Publication {
    /// The session that this ends.
    pub upload: Option<UploadId>,
    pub repository: RepositoryName,
    pub digest: Digest,
    pub owner: String,
    /// Whether nobody else can have written the object.
    pub own: bool,
}

/// Names a stored blob by a command. What turns out not to be needed is deleted again.
///
/// # Errors
/// Where storage or the command fails.
pub async fn publish(
    app: &App,
    written: Written,
    publication: Publication,
) -> Result<(), RegistryError> {
    let Publication { upload, repository, digest, owner, own } = publication;
    let key = written.object;
    // Its project may have been removed since the upload began. To be asked before anything else
    // is stored for it: that would make a key for a project that is not there.
    if app.encryption.is_some() && !app.store.lasts(key).await? {
        if own {
            discard(app, &[key]).await;
        }
        return Err(RegistryError::upload_unknown());
    }
    let (recipe, encoded) = written.recipe.encode_with_id();
    let under = KeyOwner::Project(repository.project());
    let (name, bytes) = (ObjectKey::Recipe(recipe), encoded.into());
    match own {
        true => app.store.put(name, &under, bytes).await?,
        // Another node may close the same session, and store the same recipe.
        false => put_once(&*app.store, name, &under, bytes).await?,
    }
    let commit = Command::CommitBlob {
        upload,
        repository,
        digest: digest.clone(),
        size: written.size,
        object: key,
        recipe,
        owner,
        image: new_image(),
    };
    let answer = match app.propose(commit).await {
        Ok(answer) => answer,
        Err(error) => {
            // An object that the session's row named may be another request's, too, at another
            // node: whose command went through, there it is in use. The scrub knows.
            if own && matches!(error, ProposeError::Refused(_)) {
                discard(app, &[key, ObjectKey::Recipe(recipe)]).await;
            }
            return Err(error.into());
        }
    };
    match answer {
        // The content is there already, and ours is not needed; unless storage lost it.
        Answered::Blob { stored } if stored != key => {
            if app.store.lasts(stored).await? {
                discard(app, &[key, ObjectKey::Recipe(recipe)]).await;
            } else {
                warn!(%digest, object = %stored, "storage had lost a blob that was pushed again");
                let heal = Command::HealBlob { digest, missing: stored, object: key, recipe };
                app.propose(heal).await?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Deletes what no row names. A failure leaves an orphan for the scrub, and is no one's error.
pub(super) async fn discard(app: &App, keys: &[ObjectKey]) {
    if keys.is_empty() {
        return;
    }
    if let Err(error) = app.store.delete(keys).await {
        warn!(?keys, %error, "objects nobody needs were not deleted");
    }
}

/// For the image row, where the command makes the repository.
pub(super) fn new_image() -> ImageId {
    ImageId::from_uuid(Uuid::now_v7())
}
