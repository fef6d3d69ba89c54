//! Reads a backup, frame by frame; every frame is held against its chain before it is given out.

use std::io::{self, Read};

use shoal_content::Digest;

use super::{
    BACKUP_VERSION, BackupError, CHAIN_BYTES, END, FRAME_BYTES_MAX, FRAME_HEAD_BYTES, HEAD, Head,
    MAGIC, Needed, OBJECTS, ROWS, Row, Totals,
};

/// One frame behind the head, known to be sound.
#[derive(Debug)]
pub enum Frame<'a> {
    Rows(Vec<Row<'a>>),
    Objects(Vec<Needed>),
    /// The last one.
    End(Totals),
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Reader<R> {
    source: R,
    hasher: blake3::Hasher,
    /// Bytes read so far.
    at: u64,
    head: Head,
    body: Vec<u8>,
    found: Totals,
    /// Of the last frame.
    kind: u8,
}

impl<R: Read> Reader<R> {
    /// Reads the head.
    ///
    /// # Errors
    /// What is wrong with the file, as far as its beginning says.
    pub fn new(source: R) -> Result<Self, BackupError> {
        let head = Head {
            cluster: shoal_content::ClusterId::from_uuid(Default::default()),
            made_at: shoal_content::Timestamp::from_millis(0),
            index: 0,
            level: 0,
            row_version: 0,
            tables: 0,
            program: String::new(),
        };
        let mut reader = Self {
            source,
            hasher: blake3::Hasher::new(),
            at: 0,
            head,
            body: Vec::new(),
            found: Totals::default(),
            kind: HEAD,
        };
        let mut start = [0; MAGIC.len() + 2];
        match reader.fill(&mut start) {
            // Too short to be one of ours, whatever it is.
            Err(BackupError::Truncated { .. }) if !start.starts_with(MAGIC) => {
                return Err(BackupError::Foreign);
            }
            filled => filled?,
        }
        let (magic, version) = start.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(BackupError::Foreign);
        }
        match version.try_into().map(u16::from_be_bytes) {
            Ok(BACKUP_VERSION) => {}
            Ok(newer) => return Err(BackupError::Newer(newer)),
            Err(_) => return Err(BackupError::Foreign),
        }
        if reader.read_frame()? != HEAD {
            return Err(BackupError::Malformed("its head is missing"));
        }
        let head = serde_json::from_slice(&reader.body);
        reader.head = head.map_err(|_| BackupError::Malformed("its head cannot be read"))?;
        Ok(reader)
    }

    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Bytes read so far.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// The next frame; `None` behind the end.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, BackupError> {
        if self.kind == END {
            return Ok(None);
        }
        let before = self.kind;
        self.kind = self.read_frame()?;
        let frame = match self.kind {
            ROWS if before <= ROWS => {
                let rows = rows(&self.body)?;
                self.found.rows += rows.len() as u64;
                let bytes = rows.iter().map(|row| (row.key.len() + row.row.len()) as u64);
                self.found.row_bytes += bytes.sum::<u64>();
                Frame::Rows(rows)
            }
            OBJECTS if before <= OBJECTS => {
                let objects = objects(&self.body)?;
                self.found.objects += objects.len() as u64;
                Frame::Objects(objects)
            }
            END => Frame::End(self.check_end()?),
            HEAD | ROWS | OBJECTS => {
                return Err(BackupError::Malformed("its parts are in another order"));
            }
            _ => {
                return Err(BackupError::Malformed("it has a part that no version known here has"));
            }
        };
        Ok(Some(frame))
    }

    fn check_end(&mut self) -> Result<Totals, BackupError> {
        let said: Totals = serde_json::from_slice(&self.body)
            .map_err(|_| BackupError::Malformed("its end cannot be read"))?;
        if said != self.found {
            return Err(BackupError::Malformed("it holds another number of rows than it says"));
        }
        match self.source.read(&mut [0])? {
            0 => Ok(said),
            _ => Err(BackupError::Malformed("something follows its end")),
        }
    }

    /// Reads a frame's body and holds it against its chain; gives its kind.
    fn read_frame(&mut self) -> Result<u8, BackupError> {
        let from = self.at;
        let mut head = [0; FRAME_HEAD_BYTES];
        self.fill(&mut head)?;
        let [kind, length @ ..] = head;
        let length = u32::from_be_bytes(length) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(BackupError::Damaged { from, to: self.at });
        }
        let mut body = std::mem::take(&mut self.body);
        body.clear();
        // Grows with what is really there.
        let got = (&mut self.source).take(length as u64).read_to_end(&mut body)?;
        self.at += got as u64;
        if got < length {
            return Err(BackupError::Truncated { bytes: self.at });
        }
        self.hasher.update(&body);
        self.body = body;
        let expected = self.hasher.finalize();
        let mut chain = [0; CHAIN_BYTES];
        self.fill(&mut chain)?;
        if chain != expected.as_bytes()[..CHAIN_BYTES] {
            return Err(BackupError::Damaged { from, to: self.at });
        }
        Ok(kind)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), BackupError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.source.read(&mut buffer[filled..]) {
                Ok(0) => {
                    let bytes = self.at + filled as u64;
                    return Err(BackupError::Truncated { bytes });
                }
                Ok(got) => filled += got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.at += filled as u64;
        self.hasher.update(buffer);
        Ok(())
    }
}

const RECORD: BackupError = BackupError::Malformed("a record is cut off");

/// The next `length` bytes.
fn split<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], BackupError> {
    let (taken, after) = rest.split_at_checked(length).ok_or(RECORD)?;
    *rest = after;
    Ok(taken)
}

fn number<const BYTES: usize>(rest: &mut &[u8]) -> Result<u64, BackupError> {
    let bytes = split(rest, BYTES)?;
    Ok(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn rows(mut rest: &[u8]) -> Result<Vec<Row<'_>>, BackupError> {
    let mut rows = Vec::new();
    while !rest.is_empty() {
        let table = split(&mut rest, 1)?[0];
        let length = number::<4>(&mut rest)? as usize;
        let key = split(&mut rest, length)?;
        let length = number::<4>(&mut rest)? as usize;
        let row = split(&mut rest, length)?;
        rows.push(Row { table, key, row });
    }
    Ok(rows)
}

fn objects(mut rest: &[u8]) -> Result<Vec<Needed>, BackupError> {
    let text = |bytes| std::str::from_utf8(bytes).map_err(|_| RECORD);
    let mut objects = Vec::new();
    while !rest.is_empty() {
        let length = number::<2>(&mut rest)? as usize;
        let key = text(split(&mut rest, length)?)?;
        let key = key.parse().map_err(|_| BackupError::Malformed("it names no object"))?;
        let size = number::<8>(&mut rest)?.checked_sub(1);
        let length = number::<1>(&mut rest)? as usize;
        let digest = text(split(&mut rest, length)?)?;
        let digest: Option<Digest> = match digest {
            "" => None,
            text => Some(text.parse().map_err(|_| BackupError::Malformed("it names no digest"))?),
        };
        objects.push(Needed { key, size, digest });
    }
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use shoal_content::{ClusterId, ObjectKey, PackId, Timestamp};

    use super::super::Writer;
    use super::*;

    fn head() -> Head {
        Head {
            cluster: ClusterId::from_uuid(Default::default()),
            made_at: Timestamp::from_millis(5),
            index: 77,
            level: 2,
            row_version: 1,
            tables: 31,
            program: "0.1.0".into(),
        }
    }

    type Owned = (u8, Vec<u8>, Vec<u8>);

    fn backup(rows: &[Owned], objects: &[Needed]) -> Vec<u8> {
        let mut writer = Writer::new(&head()).unwrap();
        let mut bytes = Vec::new();
        for (table, key, row) in rows {
            writer.row(Row { table: *table, key, row }).unwrap();
            bytes.extend(writer.take());
        }
        for object in objects {
            writer.object(object).unwrap();
        }
        bytes.extend(writer.finish().unwrap().0);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<(Vec<Owned>, Vec<Needed>, Totals), BackupError> {
        let mut reader = Reader::new(bytes)?;
        assert_eq!(reader.head(), &head());
        let (mut all, mut needed) = (Vec::new(), Vec::new());
        loop {
            match reader.next_frame()? {
                Some(Frame::Rows(rows)) => {
                    let owned = |row: Row<'_>| (row.table, row.key.to_vec(), row.row.to_vec());
                    all.extend(rows.into_iter().map(owned));
                }
                Some(Frame::Objects(objects)) => needed.extend(objects),
                Some(Frame::End(totals)) => {
                    assert!(reader.next_frame()?.is_none());
                    return Ok((all, needed, totals));
                }
                None => panic!("the end is a frame"),
            }
        }
    }

    fn sample() -> (Vec<Owned>, Vec<Needed>) {
        let mut rows: Vec<Owned> =
            (0..3000u32).map(|at| (4, at.to_be_bytes().to_vec(), vec![at as u8; 700])).collect();
        rows.push((14, b"long".to_vec(), vec![7; 4 << 20]));
        rows.push((29, Vec::new(), Vec::new()));
        let blob = ObjectKey::Blob(format!("upload-{:032x}", 9).parse().unwrap());
        let objects = vec![
            Needed { key: blob, size: Some(0), digest: Some(Digest::sha256([3; 32])) },
            Needed { key: ObjectKey::Pack(PackId::of(b"x")), size: None, digest: None },
        ];
        (rows, objects)
    }

    #[test]
    fn comes_back_as_it_was_written() {
        let (rows, objects) = sample();
        let (found, needed, totals) = read(&backup(&rows, &objects)).unwrap();
        assert!(found == rows && needed == objects);
        assert_eq!((totals.rows, totals.objects), (3002, 2));
        let (found, needed, _) = read(&backup(&[], &[])).unwrap();
        assert!(found.is_empty() && needed.is_empty());
    }

    #[test]
    fn what_is_cut_off_anywhere_is_refused() {
        let rows = vec![(4, b"key".to_vec(), b"row".to_vec()); 3];
        let whole = backup(&rows, &sample().1);
        for end in 0..whole.len() {
            let error = read(&whole[..end]).unwrap_err();
            let right = match end {
                0..8 => matches!(error, BackupError::Foreign),
                _ => matches!(error, BackupError::Truncated { .. }),
            };
            assert!(right, "cut at {end}: {error}");
        }
        let more = [&whole[..], b"x"].concat();
        assert!(matches!(read(&more), Err(BackupError::Malformed(_))));
    }

    #[test]
    fn a_flipped_bit_anywhere_is_refused() {
        let rows = vec![(4, b"key".to_vec(), b"row".to_vec()); 3];
        let whole = backup(&rows, &sample().1);
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            assert!(read(&damaged).is_err(), "byte {at}");
        }
        let mut damaged = whole.clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 1;
        assert!(matches!(read(&damaged), Err(BackupError::Damaged { .. })));
    }

    #[test]
    fn frames_in_another_order_or_left_out_are_refused() {
        let mut writer = Writer::new(&head()).unwrap();
        let first = writer.take();
        writer.row(Row { table: 1, key: b"", row: &vec![1; 2 << 20] }).unwrap();
        let rows = writer.take();
        let (end, _) = writer.finish().unwrap();
        assert!(read(&[&first[..], &rows, &end].concat()).is_ok());
        for wrong in [[&first[..], &end, &rows].concat(), [&first[..], &end].concat()] {
            assert!(matches!(read(&wrong), Err(BackupError::Damaged { .. })));
        }
    }

    #[test]
    fn other_files_and_later_versions_are_told_apart() {
        assert!(matches!(read(b"{\"not\": \"a backup\"}"), Err(BackupError::Foreign)));
        let mut later = backup(&[], &[]);
        later[9] = 2;
        assert!(matches!(read(&later), Err(BackupError::Newer(2))));
    }

    #[test]
    fn a_length_that_lies_allocates_nothing() {
        let mut lying = backup(&[], &[])[..10].to_vec();
        lying.extend([HEAD, 0x01, 0xff, 0xff, 0xff, 1, 2, 3]);
        assert!(matches!(read(&lying), Err(BackupError::Truncated { .. })));
        lying[11] = 0xff;
        assert!(matches!(read(&lying), Err(BackupError::Damaged { .. })));
    }
}
