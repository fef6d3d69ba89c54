//! Backups: the file as it is given, and the same with its chain put right, so that what stands
//! behind the chain is reached, too.

use shoal_formats::backup::{BackupError, Check, Frame, Head, Needed, Reader, Row, Totals, Writer};

/// The magic and the version.
const START_BYTES: usize = 10;
const FRAME_HEAD_BYTES: usize = 5;
const CHAIN_BYTES: usize = 16;

/// Everything that a backup holds.
#[derive(Debug, PartialEq)]
struct Whole {
    head: Head,
    rows: Vec<(u8, Vec<u8>, Vec<u8>)>,
    objects: Vec<Needed>,
    totals: Totals,
}

pub fn backup(data: &[u8]) {
    look_at(data);
    look_at(&mended(data));
}

/// What can be read to its end is the same when it was written and read again.
fn look_at(data: &[u8]) {
    if let Ok(whole) = read(data)
        && let Ok(written) = write(&whole)
    {
        assert_eq!(read(&written).ok(), Some(whole));
    }
}

fn read(data: &[u8]) -> Result<Whole, BackupError> {
    let mut reader = Reader::new(data)?;
    let head = reader.head().clone();
    let mut whole =
        Whole { head, rows: Vec::new(), objects: Vec::new(), totals: Totals::default() };
    while let Some(frame) = reader.next_frame()? {
        match frame {
            Frame::Rows(rows) => {
                let owned = |row: Row<'_>| (row.table, row.key.to_vec(), row.row.to_vec());
                whole.rows.extend(rows.into_iter().map(owned));
            }
            Frame::Objects(objects) => {
                for needed in &objects {
                    let mut check = Check::new(needed);
                    check.update(b"other bytes");
                    let right = check.finish().is_ok();
                    assert!(!right || needed.check_size(11).is_ok(), "{needed:?}");
                }
                whole.objects.extend(objects);
            }
            Frame::End(totals) => whole.totals = totals,
        }
    }
    assert!(reader.position() <= data.len() as u64);
    assert_eq!(whole.totals.rows, whole.rows.len() as u64);
    assert_eq!(whole.totals.objects, whole.objects.len() as u64);
    Ok(whole)
}

fn write(whole: &Whole) -> Result<Vec<u8>, BackupError> {
    let mut writer = Writer::new(&whole.head)?;
    for (table, key, row) in &whole.rows {
        writer.row(Row { table: *table, key, row })?;
    }
    for needed in &whole.objects {
        writer.object(needed)?;
    }
    Ok(writer.finish()?.0)
}

/// With each frame's chain as it has to be.
fn mended(data: &[u8]) -> Vec<u8> {
    let mut mended = data.to_vec();
    let mut at = START_BYTES;
    while let Some(length) = mended.get(at + 1..at + FRAME_HEAD_BYTES) {
        let length = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        let end = at + FRAME_HEAD_BYTES + length;
        if end + CHAIN_BYTES > mended.len() {
            break;
        }
        let chain = blake3::hash(&mended[..end]);
        mended[end..end + CHAIN_BYTES].copy_from_slice(&chain.as_bytes()[..CHAIN_BYTES]);
        at = end + CHAIN_BYTES;
    }
    mended
}
