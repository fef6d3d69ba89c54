//! Notes that wait for the audit trail, in a file of this node's: a node that falls has them yet when it
//! starts again.
//!
//! Records follow each other, each its length (4 bytes, little-endian) and a row: a head; notes, in
//! their order; and behind those that are proposed just now, that they are. When they are in the trail,
//! the file is made anew of what is left, beside it and then in its place. So the file names, whenever
//! the process ends, all notes that are not in the trail, and at most one batch that may be.
//!
//! Nothing is synced: what a process has written outlives it, but not the machine. Hence the head says
//! in which boot it was written; of another one, notes may be missing, and the trail is to say so.
//! Non-goal: what becomes of what is found; see `audit`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shoal_metadata::{AuditNote, AuditPhase, decode_row, encode_row};

/// Of a file that is read back: twice what as many notes as may wait can take.
const BYTES_MAX: u64 = 128 * 1024 * 1024;
/// Another text with each start of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const LENGTH_BYTES: usize = 4;

#[derive(Debug, Serialize, Deserialize)]
enum Record {
    Head {
        /// Whose notes these are: another life of the cluster has none of them.
        member: String,
        boot: String,
        run: u64,
        /// The number of the next batch.
        batch: u64,
    },
    Note(AuditNote),
    /// There was no room for one.
    Lost,
    /// So many notes from the first on are proposed.
    Sent {
        count: u64,
        phase: AuditPhase,
        lost: u64,
    },
}

/// A batch that was proposed.
#[derive(Debug, PartialEq, Eq)]
pub struct Sent {
    pub phase: AuditPhase,
    pub notes: Vec<AuditNote>,
    pub lost: u64,
}

/// What an earlier process has left.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    pub run: u64,
    /// The number of the batch in `sent`; without one, of the next.
    pub batch: u64,
    /// May be in the trail already.
    pub sent: Option<Sent>,
    /// Are not.
    pub notes: Vec<AuditNote>,
    pub lost: u64,
    /// Nothing is missing.
    pub is_whole: bool,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    member: String,
    boot: String,
    file: File,
}

impl Journal {
    /// Opens the file, or makes it, and reads what is there of `member`'s. To be begun anew unless a
    /// batch is found that was sent; what is noted until then goes behind the rest.
    ///
    /// # Errors
    /// Where it cannot be read or written.
    pub fn open(path: &Path, member: &str) -> io::Result<(Self, Option<Found>)> {
        let boot = fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned();
        Self::open_in(path, member, boot)
    }

    fn open_in(path: &Path, member: &str, boot: String) -> io::Result<(Self, Option<Found>)> {
        let mut bytes = Vec::new();
        match File::open(path) {
            Ok(file) => file.take(BYTES_MAX).read_to_end(&mut bytes).map(drop)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let found = found(&bytes, member, &boot);
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        // Behind what was cut off in the middle nothing would be found again.
        let sound = found.as_ref().map_or(0, |(_, sound)| *sound);
        file.set_len(sound as u64)?;
        let journal = Self { path: path.to_owned(), member: member.to_owned(), boot, file };
        Ok((journal, found.map(|(found, _)| found)))
    }

    /// # Errors
    /// Where it cannot be written.
    pub fn note(&mut self, note: &AuditNote) -> io::Result<()> {
        // A copy is cheaper than a second form of the record.
        self.append(&Record::Note(note.clone()))
    }

    /// # Errors
    /// As above.
    pub fn lost(&mut self) -> io::Result<()> {
        self.append(&Record::Lost)
    }

    /// The first `count` notes go into the trail now.
    ///
    /// # Errors
    /// As above.
    pub fn sent(&mut self, count: usize, phase: AuditPhase, lost: u64) -> io::Result<()> {
        self.append(&Record::Sent { count: count as u64, phase, lost })
    }

    fn append(&mut self, record: &Record) -> io::Result<()> {
        let mut bytes = Vec::new();
        put(&mut bytes, record)?;
        self.file.write_all(&bytes)
    }

    /// Makes it anew: these notes are left, and nothing is on its way.
    ///
    /// # Errors
    /// As above; then what was there stands.
    pub fn restart(
        &mut self,
        (run, batch): (u64, u64),
        notes: &[AuditNote],
        lost: u64,
    ) -> io::Result<()> {
        let (member, boot) = (self.member.clone(), self.boot.clone());
        let mut bytes = Vec::new();
        put(&mut bytes, &Record::Head { member, boot, run, batch })?;
        for note in notes {
            put(&mut bytes, &Record::Note(note.clone()))?;
        }
        if lost > 0 {
            put(&mut bytes, &Record::Lost)?;
        }
        let beside = self.path.with_extension("new");
        let mut options = OpenOptions::new();
        options.create(true).write(true).truncate(true).mode(0o600);
        let mut file = options.open(&beside)?;
        file.write_all(&bytes)?;
        fs::rename(&beside, &self.path)?;
        self.file = file;
        Ok(())
    }

    /// Leaves nothing behind.
    ///
    /// # Errors
    /// Where the file cannot be removed.
    pub fn end(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}

fn put(bytes: &mut Vec<u8>, record: &Record) -> io::Result<()> {
    let row = encode_row(record);
    let length = u32::try_from(row.len()).map_err(io::Error::other)?;
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&row);
    Ok(())
}

/// The first record, and how many bytes it takes.
fn first(bytes: &[u8]) -> Option<(Record, usize)> {
    let (length, rest) = bytes.split_first_chunk::<LENGTH_BYTES>()?;
    let length = u32::from_le_bytes(*length) as usize;
    let record = decode_row(rest.get(..length)?).ok()?;
    Some((record, LENGTH_BYTES + length))
}

/// What stands there, and in how many bytes; `None` where it is nothing of `member`'s.
fn found(bytes: &[u8], member: &str, boot: &str) -> Option<(Found, usize)> {
    let (head, mut at) = first(bytes)?;
    let Record::Head { member: of, boot: written_in, run, batch } = head else { return None };
    if of != member {
        return None;
    }
    let mut found =
        Found { run, batch, sent: None, notes: Vec::new(), lost: 0, is_whole: written_in == boot };
    while let Some((record, length)) = first(&bytes[at..]) {
        match record {
            Record::Note(note) => found.notes.push(note),
            Record::Lost => found.lost += 1,
            Record::Sent { count, phase, lost } => {
                let count = usize::try_from(count).unwrap_or(usize::MAX);
                if found.sent.is_some() || count > found.notes.len() {
                    break;
                }
                let left = found.notes.split_off(count);
                let notes = std::mem::replace(&mut found.notes, left);
                found.sent = Some(Sent { phase, notes, lost });
                found.lost = 0;
            }
            Record::Head { .. } => break,
        }
        at += length;
    }
    found.is_whole &= at == bytes.len() && !boot.is_empty();
    Some((found, at))
}

#[cfg(test)]
mod tests {
    use shoal_content::Timestamp;
    use shoal_metadata::{AuditResult, AuditSource};

    use super::*;

    fn note(target: &str) -> AuditNote {
        let source = AuditSource { who: "alice".into(), ..AuditSource::default() };
        let (at, action) = (Timestamp::from_millis(1), "image.pull".to_owned());
        let (target, result) = (target.to_owned(), AuditResult::Done);
        AuditNote { at, source, action, target, result, count: 1 }
    }

    fn open(path: &Path, member: &str, boot: &str) -> (Journal, Option<Found>) {
        Journal::open_in(path, member, boot.to_owned()).unwrap()
    }

    #[test]
    fn what_was_noted_is_found_again_with_what_was_on_its_way() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.journal");
        let (mut journal, nothing) = open(&path, "me", "boot");
        assert_eq!(nothing, None);
        journal.restart((7, 3), &[note("a")], 2).unwrap();
        journal.note(&note("b")).unwrap();
        journal.note(&note("c")).unwrap();
        journal.sent(2, AuditPhase::Goes, 5).unwrap();
        journal.note(&note("d")).unwrap();
        drop(journal);
        let (mut journal, found) = open(&path, "me", "boot");
        let sent = Sent { phase: AuditPhase::Goes, notes: vec![note("a"), note("b")], lost: 5 };
        let (notes, lost) = (vec![note("c"), note("d")], 0);
        let wanted = Found { run: 7, batch: 3, sent: Some(sent), notes, lost, is_whole: true };
        assert_eq!(found, Some(wanted));
        // It goes on behind that; and once that is in the trail, nothing of it is left.
        journal.note(&note("e")).unwrap();
        journal.lost().unwrap();
        drop(journal);
        let (mut journal, found) = open(&path, "me", "boot");
        let found = found.unwrap();
        assert_eq!((found.notes.len(), found.lost), (3, 1));
        journal.restart((7, 4), &found.notes, found.lost).unwrap();
        journal.note(&note("f")).unwrap();
        drop(journal);
        let (journal, found) = open(&path, "me", "boot");
        let found = found.unwrap();
        assert_eq!((found.batch, found.sent, found.notes.len()), (4, None, 4));
        journal.end().unwrap();
        assert_eq!(open(&path, "me", "boot").1, None);
    }

    #[test]
    fn what_may_be_missing_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.journal");
        let (mut journal, _) = open(&path, "me", "boot");
        journal.restart((7, 0), &[], 0).unwrap();
        for target in ["a", "b"] {
            journal.note(&note(target)).unwrap();
        }
        drop(journal);
        let is_whole = |boot| open(&path, "me", boot).1.unwrap().is_whole;
        assert!(is_whole("boot") && !is_whole("another"), "the machine has ended meanwhile");
        let length = fs::metadata(&path).unwrap().len();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(length - 1).unwrap();
        let (mut journal, found) = open(&path, "me", "boot");
        let found = found.unwrap();
        assert_eq!((found.notes.as_slice(), found.is_whole), (&[note("a")][..], false));
        // What comes after it stands where it is found.
        journal.note(&note("c")).unwrap();
        drop(journal);
        assert_eq!(open(&path, "me", "boot").1.unwrap().notes, [note("a"), note("c")]);
        // Another member has nothing of it.
        assert_eq!(open(&path, "other", "boot").1, None);
        assert_eq!(open(&path, "me", "boot").1, None);
    }

    #[test]
    fn a_file_of_any_bytes_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.journal");
        for bytes in [&b"\xff\xff\xff\xff"[..], b"\x02\x00\x00\x00\x01\x09", b"abc", &[0; 64]] {
            fs::write(&path, bytes).unwrap();
            assert_eq!(open(&path, "me", "boot").1, None);
        }
    }
}
