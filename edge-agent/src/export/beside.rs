//! The file that is written beside an output and takes its place when it is whole.
//!
//! Invariants: nothing but a file, or a link to one, is replaced, and none that a virtual machine
//! writes to: what the guest wrote from then on would be gone with the machine's end. What a killed
//! process left beside an output goes when that is written again; while it is written, it is locked.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use parking_lot::Mutex;
use tracing::{debug, info};
use uuid::Uuid;

use super::Error;
use crate::cache;

/// How the names of files beside end.
const UNFINISHED: &str = ".partial";
/// Hexadecimal digits before that.
const UNIQUE_CHARS: usize = 32;
/// QEMU locks this byte of an image for as long as it may write to it (`block/file-posix.c`:
/// `RAW_LOCK_PERM_BASE` and the place of `BLK_PERM_WRITE`).
const WRITER_BYTE: libc::off_t = 101;

/// Held while files beside are looked through, or made and not locked yet.
static MAKING: Mutex<()> = Mutex::new(());

/// A file that becomes `output` when it is finished, and vanishes when it is not.
#[derive(Debug)]
pub struct Beside {
    temporary: PathBuf,
    output: PathBuf,
    file: File,
    finished: bool,
}

impl Beside {
    /// # Errors
    /// Where the output may not be replaced, or nothing can be written beside it.
    pub fn create(output: &Path) -> Result<Self, Error> {
        check(output)?;
        let folder = output.parent().ok_or_else(|| Error::NoFolder(output.to_owned()))?;
        let name = output.file_name().ok_or_else(|| Error::NoFolder(output.to_owned()))?;
        let unique = Uuid::new_v4().simple();
        let temporary = format!("{}{unique}{UNFINISHED}", beginning(name));
        let temporary = folder.join(temporary);
        let _one = MAKING.lock();
        clear(folder, name);
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).open(&temporary).map_err(
                |source| Error::Io { doing: "creating", path: temporary.clone(), source },
            )?;
        // Where there are no locks, nobody takes it for left.
        let _ = file.try_lock();
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
    ///
    /// # Errors
    /// Also where a virtual machine was started on the output meanwhile.
    pub fn finish(mut self) -> Result<(), Error> {
        self.file.sync_all().map_err(self.error("writing"))?;
        // Only now: a sync of so much takes long.
        check(&self.output)?;
        let publish = || -> io::Result<()> {
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

/// Whether the output may be replaced: it is a file that no virtual machine writes to, a link to such a
/// one, or nothing.
///
/// # Errors
/// [`Error::NoFile`] and [`Error::InUse`].
pub fn check(output: &Path) -> Result<(), Error> {
    let path = || output.to_owned();
    // Through a link: what leads to a device is one.
    let kind = match fs::metadata(output) {
        Ok(found) => found.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(Error::Io { doing: "looking at", path: path(), source }),
    };
    let what = if kind.is_dir() {
        "a folder"
    } else if kind.is_block_device() || kind.is_char_device() {
        "a device"
    } else if !kind.is_file() {
        "no file"
    } else {
        // One that cannot be opened cannot be asked about.
        let in_use = File::open(output).is_ok_and(|file| has_writer(&file));
        return if in_use { Err(Error::InUse(path())) } else { Ok(()) };
    };
    Err(Error::NoFile { path: path(), what })
}

/// Whether somebody holds [`WRITER_BYTE`]; nobody where the file system has no locks.
fn has_writer(file: &File) -> bool {
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: WRITER_BYTE,
        l_len: 1,
        l_pid: 0,
    };
    let asked = fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock));
    asked.is_ok() && lock.l_type != libc::F_UNLCK as libc::c_short
}

fn beginning(name: &OsStr) -> String {
    format!(".{}.", name.to_string_lossy())
}

/// Removes what killed processes left of the output `name`. What is being written is locked.
fn clear(folder: &Path, name: &OsStr) {
    let Ok(found) = fs::read_dir(folder) else { return };
    let beginning = beginning(name);
    let is_beside = |name: &OsStr| {
        let unique = name.to_str().and_then(|name| name.strip_prefix(&*beginning));
        let unique = unique.and_then(|rest| rest.strip_suffix(UNFINISHED));
        unique.is_some_and(|unique| {
            unique.len() == UNIQUE_CHARS && unique.bytes().all(|byte| byte.is_ascii_hexdigit())
        })
    };
    for one in found.flatten() {
        if !is_beside(&one.file_name()) || !one.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let is_left = |file: File| file.try_lock().is_ok();
        if File::open(one.path()).is_ok_and(is_left) && fs::remove_file(one.path()).is_ok() {
            info!(path = %one.path().display(), "removed what an export left that was killed");
        }
    }
}
