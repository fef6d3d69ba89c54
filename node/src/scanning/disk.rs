//! A disk as a file that the scanner can read: raw, without the bytes that are zero, in the scratch
//! folder, for as long as the scan takes.
//!
//! Invariants: the room that disks under way may still take is counted, so that they do not fill the
//! node's own disk together; nor does what the scanner itself writes there, which unpacks what it finds.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use parking_lot::Mutex;
use shoal_content::RecipeId;
use shoal_formats::{Export, ExportError, Target};
use thiserror::Error;
use tokio::time::sleep;

use crate::disks::exported;
use crate::origin::{self, Origin};

/// Of the folder's disk, what is left free where a scan begins.
const RESERVE_BYTES: u64 = 1024 * 1024 * 1024;
/// A scan that leaves less is ended; and how often that is looked at.
const FREE_BYTES_MIN: u64 = RESERVE_BYTES / 2;
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Why there is no file.
#[derive(Debug, Error)]
pub enum DiskError {
    #[error(
        "disk_too_large: {content_bytes} bytes of content are more than this node scans ([scanner] \
         max_disk_gib)"
    )]
    TooLarge { content_bytes: u64 },
    #[error("no_room: the node's data folder has no room for {content_bytes} bytes of a disk")]
    NoRoom { content_bytes: u64 },
    #[error("no_room: the scanner was filling the node's data folder, and was ended")]
    Filled,
    #[error("content_missing: the disk's recipe is not in storage")]
    NoRecipe,
    #[error("content_missing: the disk cannot be read from storage")]
    Origin(#[from] origin::Error),
    #[error("format_invalid: the disk cannot be written as a raw file")]
    Export(#[from] ExportError),
    #[error("no_room: the node's data folder does not take the disk")]
    Write(#[source] io::Error),
    #[error("interrupted: the node is stopping")]
    Interrupted,
}

impl DiskError {
    /// Whether it may do in a moment.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Origin(error) => error.is_retryable(),
            Self::Interrupted => true,
            _ => false,
        }
    }
}

/// What disks that are scanned here may take of the node's own disk. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Room {
    taken: Arc<Mutex<u64>>,
}

/// Given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    room: Room,
    bytes: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        *self.room.taken.lock() -= self.bytes;
    }
}

impl Room {
    /// # Errors
    /// [`DiskError::NoRoom`], or what the file system says.
    pub fn take(&self, folder: &Path, bytes: u64) -> Result<Place, DiskError> {
        self.take_of(free_bytes(folder).map_err(DiskError::Write)?, bytes)
    }

    /// What others have written by now counts twice: better too little than too much.
    fn take_of(&self, free: u64, bytes: u64) -> Result<Place, DiskError> {
        let mut taken = self.taken.lock();
        let needed = taken.saturating_add(bytes).saturating_add(RESERVE_BYTES);
        if free < needed {
            return Err(DiskError::NoRoom { content_bytes: bytes });
        }
        *taken += bytes;
        Ok(Place { room: self.clone(), bytes })
    }
}

fn free_bytes(folder: &Path) -> io::Result<u64> {
    let stat = nix::sys::statvfs::statvfs(folder)?;
    Ok(stat.blocks_available() as u64 * stat.fragment_size() as u64)
}

/// Returns when the folder's disk has too little left. Where it does not say, it has enough.
pub async fn filled(folder: &Path) {
    while free_bytes(folder).map_or(true, |free| free >= FREE_BYTES_MIN) {
        sleep(LOOK_INTERVAL).await;
    }
}

/// Writes the disk to `path`.
///
/// # Errors
/// See [`DiskError`].
pub async fn write(origin: &Origin, recipe: RecipeId, path: &Path) -> Result<(), DiskError> {
    let content = origin.recipe(recipe).await?.ok_or(DiskError::NoRecipe)?;
    let export = tokio::task::spawn_blocking(move || Export::new(Target::Raw, content)).await;
    let export = export.map_err(|_| DiskError::Interrupted)??;
    let (length, path) = (export.len(), path.to_owned());
    let file = blocking(move || {
        let file = File::create_new(path)?;
        file.set_len(length)?;
        Ok(Arc::new(file))
    });
    let file = file.await?;
    let mut pieces = std::pin::pin!(exported(origin.clone(), recipe, export, 0..length));
    let mut at = 0;
    while let Some(piece) = pieces.try_next().await? {
        let (offset, file) = (at, Arc::clone(&file));
        at += piece.len() as u64;
        // A hole stays one.
        if piece.iter().any(|byte| *byte != 0) {
            blocking(move || file.write_all_at(&piece, offset)).await?;
        }
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, DiskError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| DiskError::Interrupted)?.map_err(DiskError::Write)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_do_not_fill_the_node_together() {
        let room = Room::default();
        let free = RESERVE_BYTES + 100;
        let first = room.take_of(free, 60).unwrap();
        let refused = room.take_of(free, 60).unwrap_err();
        assert!(matches!(refused, DiskError::NoRoom { content_bytes: 60 }), "{refused}");
        let second = room.take_of(free, 40).unwrap();
        drop((first, second));
        assert!(room.take_of(free, 101).is_err());
        room.take_of(free, 100).unwrap();
    }
}
