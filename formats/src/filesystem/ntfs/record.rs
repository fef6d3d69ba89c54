//! File records: their attributes, and the runs of those that do not stand in the record.
//!
//! Invariants: every length is checked against the record; a list of runs ends within its
//! attribute, and each run has at least one cluster.

use super::Run;
use crate::filesystem::Stop;
use crate::filesystem::fields::Little;

const SECTOR_BYTES: usize = 512;
const FLAG_IN_USE: u16 = 1;
const KIND_NAME: u32 = 0x30;
const KIND_VOLUME: u32 = 0x70;
const KIND_DATA: u32 = 0x80;
const KIND_INDEX: u32 = 0xa0;
const KIND_END: u32 = 0xffff_ffff;
/// Of a reference to a record; the rest is a count of its uses.
const NUMBER_MASK: u64 = (1 << 48) - 1;

#[derive(Debug)]
pub(super) struct Record {
    bytes: Vec<u8>,
}

impl Record {
    /// `None` where the record is not in use, or not readable.
    pub fn parse(mut bytes: Vec<u8>) -> Result<Option<Self>, Stop> {
        if !bytes.starts_with(b"FILE") || Little(&bytes).u16(22)? & FLAG_IN_USE == 0 {
            return Ok(None);
        }
        Ok(fix_up(&mut bytes)?.then_some(Self { bytes }))
    }

    /// The number of the record that this one goes on.
    pub fn base(&self) -> Result<Option<u64>, Stop> {
        let reference = Little(&self.bytes).u64(32)?;
        Ok((reference != 0).then_some(reference & NUMBER_MASK))
    }

    pub fn each(
        &self,
        with: &mut dyn FnMut(Attribute<'_>) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let fields = Little(&self.bytes);
        let mut at = usize::from(fields.u16(20)?);
        while fields.u32(at)? != KIND_END {
            let length = fields.u32(at + 4)? as usize;
            if length < 16 {
                return Err(Stop::Malformed);
            }
            with(Attribute { fields: Little(fields.bytes(at, length)?) })?;
            at += length;
        }
        Ok(())
    }
}

/// Puts back the last two bytes of each sector, which guard it while it is written.
pub(super) fn fix_up(bytes: &mut [u8]) -> Result<bool, Stop> {
    let fields = Little(bytes);
    let (at, count) = (usize::from(fields.u16(4)?), usize::from(fields.u16(6)?));
    if count == 0 || count > bytes.len() / SECTOR_BYTES + 1 {
        return Err(Stop::Malformed);
    }
    let guard = fields.bytes(at, count * 2)?.to_vec();
    for sector in 1..count {
        let end = sector * SECTOR_BYTES;
        if bytes[end - 2..end] != guard[..2] {
            return Ok(false);
        }
        bytes[end - 2..end].copy_from_slice(&guard[sector * 2..sector * 2 + 2]);
    }
    Ok(true)
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Attribute<'a> {
    fields: Little<'a>,
}

impl<'a> Attribute<'a> {
    fn kind(&self) -> Result<u32, Stop> {
        self.fields.u32(0)
    }

    fn is_resident(&self) -> Result<bool, Stop> {
        Ok(self.fields.u8(8)? == 0)
    }

    /// Of a resident attribute.
    fn value(&self) -> Result<Little<'a>, Stop> {
        let length = self.fields.u32(16)? as usize;
        let at = usize::from(self.fields.u16(20)?);
        Ok(Little(self.fields.bytes(at, length)?))
    }

    /// Whether it is the file's unnamed content, outside the record.
    pub fn is_content(&self) -> Result<bool, Stop> {
        Ok(self.kind()? == KIND_DATA && !self.is_resident()? && self.fields.u8(9)? == 0)
    }

    /// Whether it holds a directory's entries, or another index's.
    pub fn is_index(&self) -> Result<bool, Stop> {
        Ok(self.kind()? == KIND_INDEX)
    }

    /// Of `$VOLUME_INFORMATION`.
    pub fn volume_flags(&self) -> Result<Option<u16>, Stop> {
        if self.kind()? != KIND_VOLUME || !self.is_resident()? {
            return Ok(None);
        }
        self.value()?.u16(10).map(Some)
    }

    /// Whether it names the file `name` in the directory of record `parent`.
    pub fn is_name_of(&self, name: &str, parent: u64) -> Result<bool, Stop> {
        if self.kind()? != KIND_NAME || !self.is_resident()? {
            return Ok(false);
        }
        let value = self.value()?;
        let units = value.bytes(66, usize::from(value.u8(64)?) * 2)?.as_chunks::<2>().0;
        let spelled = units.iter().map(|unit| u16::from_le_bytes(*unit));
        let found = char::decode_utf16(spelled).map(|c| c.unwrap_or('?'));
        let same = found.map(|c| c.to_ascii_lowercase()).eq(name.chars());
        Ok(same && value.u64(0)? & NUMBER_MASK == parent)
    }

    /// Calls `with` for each run that has a place.
    pub fn each_run(&self, with: &mut dyn FnMut(Run) -> Result<(), Stop>) -> Result<(), Stop> {
        if self.is_resident()? {
            return Ok(());
        }
        let mut position = self.fields.u64(16)?;
        let mut at = usize::from(self.fields.u16(32)?);
        let mut start = 0i64;
        loop {
            let head = self.fields.u8(at)?;
            if head == 0 {
                return Ok(());
            }
            let (count_bytes, start_bytes) = (usize::from(head & 0xf), usize::from(head >> 4));
            let count = signed(self.fields.bytes(at + 1, count_bytes)?)?;
            let count = u64::try_from(count).ok().filter(|count| *count > 0);
            let count = count.ok_or(Stop::Malformed)?;
            let step = signed(self.fields.bytes(at + 1 + count_bytes, start_bytes)?)?;
            // A run without a place is a hole.
            if start_bytes > 0 {
                start = start.checked_add(step).ok_or(Stop::Malformed)?;
                let start = u64::try_from(start).map_err(|_| Stop::Malformed)?;
                with(Run { position, start, count })?;
            }
            position = position.checked_add(count).ok_or(Stop::Malformed)?;
            at += 1 + count_bytes + start_bytes;
        }
    }
}

/// A little-endian number of up to 8 bytes with its sign.
fn signed(bytes: &[u8]) -> Result<i64, Stop> {
    if bytes.len() > 8 {
        return Err(Stop::Malformed);
    }
    let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut wide = [if negative { 0xff } else { 0 }; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    Ok(i64::from_le_bytes(wide))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_any_width_keep_their_sign() {
        assert_eq!(signed(&[]).unwrap(), 0);
        assert_eq!(signed(&[0xff]).unwrap(), -1);
        assert_eq!(signed(&[0x80, 0x00]).unwrap(), 128);
        assert!(signed(&[0; 9]).is_err());
    }

    #[test]
    fn a_sector_torn_in_writing_makes_the_record_unreadable() {
        let mut bytes = vec![0; 1024];
        bytes[..4].copy_from_slice(b"FILE");
        bytes[4..8].copy_from_slice(&[48, 0, 3, 0]);
        bytes[22] = 1;
        bytes[48..54].copy_from_slice(&[7, 7, 1, 2, 3, 4]);
        for end in [512, 1024] {
            bytes[end - 2..end].copy_from_slice(&[7, 7]);
        }
        let record = Record::parse(bytes.clone()).unwrap().unwrap();
        assert_eq!(record.bytes[510..512], [1, 2]);
        bytes[1022] = 0;
        assert!(Record::parse(bytes).unwrap().is_none());
    }
}
