//! The file that is written beside an output and takes its place when it is whole.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use tracing::debug;
use uuid::Uuid;

use super::Error;
use crate::cache;

/// A file that becomes `output` when it is finished, and vanishes when it is not.
#[derive(Debug)]
pub struct Beside {
    temporary: PathBuf,
    output: PathBuf,
    file: File,
    finished: bool,
}

impl Beside {
    pub fn create(output: &Path) -> Result<Self, Error> {
        let folder = output.parent().ok_or_else(|| Error::NoFolder(output.to_owned()))?;
        let name = output.file_name().ok_or_else(|| Error::NoFolder(output.to_owned()))?;
        let unique = Uuid::new_v4().simple();
        let temporary = folder.join(format!(".{}.{unique}.partial", name.to_string_lossy()));
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).open(&temporary).map_err(
                |source| Error::Io { doing: "creating", path: temporary.clone(), source },
            )?;
        let this = Self { temporary, output: output.to_owned(), file, finished: false };
        this.take_rights().map_err(this.error("keeping owner and mode of"))?;
        Ok(this)
    }

    /// Those of the file that it is to replace: a hypervisor that has the old one has to read the
    /// new one, and nobody else. A link is replaced itself.
    fn take_rights(&self) -> io::Result<()> {
        let found = match fs::symlink_metadata(&self.output) {
            Ok(found) if found.is_file() => found,
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => return Ok(()),
        };
        let own = self.file.metadata()?;
        let differs = (own.uid(), own.gid()) != (found.uid(), found.gid());
        // Who may not give files away, on a network share for instance, makes one as any other: of
        // the old one's mode alone, whoever reads it could be shut out.
        if differs && let Err(error) = fchown(&self.file, Some(found.uid()), Some(found.gid())) {
            debug!(path = %self.output.display(), %error, "the owner of a replaced file is not kept");
            return Ok(());
        }
        // Last, since another owner can cost a file some of its mode.
        self.file.set_permissions(fs::Permissions::from_mode(found.mode() & 0o777))
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn error(&self, doing: &'static str) -> impl Fn(io::Error) -> Error + use<> {
        let path = self.output.clone();
        move |source| Error::Io { doing, path: path.clone(), source }
    }

    /// Syncs, and puts the file in place.
    pub fn finish(mut self) -> Result<(), Error> {
        let publish = || -> io::Result<()> {
            self.file.sync_all()?;
            fs::rename(&self.temporary, &self.output)?;
            cache::sync_parent(&self.output)
        };
        publish().map_err(self.error("writing"))?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if !self.finished {
            // Nothing else can be done about it, and its name says what it is.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}
