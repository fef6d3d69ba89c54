//! Whether guests see the same on two disks.

use std::path::Path;

use serde_json::json;
use shoal_formats::{Disk, ExtentKind, Format, ReadError};

use super::{Stop, bar, open};
use crate::error::Error;
use crate::screen::Screen;

/// As qemu-img compare ends.
const EXIT_DIFFERENT: u8 = 1;
pub(super) const EXIT_NOT_OPENED: u8 = 2;
const EXIT_NOT_MAPPED: u8 = 3;
const EXIT_NOT_READ: u8 = 4;
const WINDOW_BYTES: u64 = 1024 * 1024;

/// A disk, and how what fails with it is said.
struct Side<'a> {
    path: &'a Path,
    disk: Box<dyn Disk>,
    buffer: Vec<u8>,
}

impl<'a> Side<'a> {
    fn open((path, format): (&'a Path, Option<Format>)) -> Result<Self, Error> {
        let failed = |error: Error| {
            let (word, message) = match error {
                Error::Judged { word, message, .. } => (word, message),
                other => ("not_opened", other.to_string()),
            };
            Error::Judged { code: EXIT_NOT_OPENED, word, message }
        };
        let disk = open(path, format).map_err(failed)?;
        Ok(Self { path, disk, buffer: Vec::new() })
    }

    fn failed(&self, code: u8, word: &'static str, error: &ReadError) -> Error {
        Error::Judged { code, word, message: format!("{}: {error}", self.path.display()) }
    }

    /// How many bytes from `at` on are known to be zero without a look.
    fn zeros_at(&mut self, at: u64) -> Result<u64, Error> {
        if at >= self.disk.virtual_bytes() {
            return Ok(u64::MAX);
        }
        let extent = self.disk.next_extent(at);
        let extent = extent.map_err(|error| self.failed(EXIT_NOT_MAPPED, "not_mapped", &error))?;
        Ok(if extent.kind == ExtentKind::Zero { extent.offset + extent.length - at } else { 0 })
    }

    /// Bytes from `at`; zeros behind the disk's end.
    fn fill(&mut self, at: u64, length: usize) -> Result<(), Error> {
        self.buffer.clear();
        self.buffer.resize(length, 0);
        let there = self.disk.virtual_bytes().saturating_sub(at).min(length as u64) as usize;
        if there == 0 {
            return Ok(());
        }
        let read = self.disk.read(at, &mut self.buffer[..there]);
        read.map_err(|error| self.failed(EXIT_NOT_READ, "not_read", &error))
    }
}

pub(super) fn compare(
    a: (&Path, Option<Format>),
    b: (&Path, Option<Format>),
    strict: bool,
    stop: &Stop,
    screen: Screen,
) -> Result<(), Error> {
    let (mut a, mut b) = (Side::open(a)?, Side::open(b)?);
    let lengths = [a.disk.virtual_bytes(), b.disk.virtual_bytes()];
    let different =
        |message: String| Error::Judged { code: EXIT_DIFFERENT, word: "different", message };
    if lengths[0] != lengths[1] {
        if strict {
            let text = format!("the disks have {} and {} bytes", lengths[0], lengths[1]);
            return Err(different(text));
        }
        screen.remark("Warning: the disks differ in length; what one has more must be zero.");
    }
    let end = lengths[0].max(lengths[1]);
    let bar = bar(screen, end);
    let mut at = 0;
    while at < end {
        stop.check()?;
        let zeros = a.zeros_at(at)?.min(b.zeros_at(at)?).min(end - at);
        if zeros > 0 {
            at += zeros;
            bar.set_position(at);
            continue;
        }
        let length = (end - at).min(WINDOW_BYTES) as usize;
        a.fill(at, length)?;
        b.fill(at, length)?;
        if a.buffer != b.buffer {
            let first = a.buffer.iter().zip(&b.buffer).position(|(one, other)| one != other);
            let offset = at + first.unwrap_or(0) as u64;
            bar.finish_and_clear();
            return Err(different(format!("the content differs from byte {offset} on")));
        }
        at += length as u64;
        bar.set_position(at);
    }
    bar.finish_and_clear();
    screen.show(&json!({ "identical": true }), || "Images are identical.".into())
}
