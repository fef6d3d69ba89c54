//! The file that says whose folder this is. It lies beside the objects, so that no key names it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use uuid::Uuid;

use super::super::{OWNER_BYTES_MAX, OWNER_NAME, StoreError};
use super::FolderStore;

impl FolderStore {
    fn owner_file(&self) -> PathBuf {
        self.objects.with_file_name(OWNER_NAME)
    }

    pub(super) fn owner_now(&self) -> Result<Option<Bytes>, StoreError> {
        match read(&self.owner_file()) {
            Ok(owner) => Ok(Some(owner.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed("reading whose it is")(error)),
        }
    }

    pub(super) fn set_owner_now(
        &self,
        over: Option<&Bytes>,
        owner: &[u8],
    ) -> Result<bool, StoreError> {
        if self.owner_now()?.as_ref() != over {
            return Ok(false);
        }
        let (path, partial) =
            (self.owner_file(), self.partial.join(Uuid::new_v4().simple().to_string()));
        let written = (|| {
            let mut file = OpenOptions::new().write(true).create_new(true).open(&partial)?;
            file.write_all(owner)?;
            file.sync_all()?;
            match over {
                None => publish_first(&partial, &path)?,
                Some(_) => fs::rename(&partial, &path)?,
            }
            File::open(path.parent().unwrap_or(&self.objects))?.sync_all()
        })();
        // Of a first one it is the other name, and of a failed one nobody knows it.
        let _ = fs::remove_file(&partial);
        match written {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(self.failed("writing whose it is")(error)),
        }
    }
}

/// A longer one is read in part, and so is none of ours.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut owner = Vec::new();
    File::open(path)?.take(OWNER_BYTES_MAX).read_to_end(&mut owner)?;
    Ok(owner)
}

/// Gives the file its name, unless something has it: a rename would replace what another process
/// has written since.
fn publish_first(partial: &Path, path: &Path) -> io::Result<()> {
    match fs::hard_link(partial, path) {
        // A file system without hard links.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied
            ) =>
        {
            fs::rename(partial, path)
        }
        linked => linked,
    }
}
