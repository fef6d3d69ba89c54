//! Numbers in on-disk structures, little-endian and big-endian.
//!
//! Invariant: a field outside the bytes is [`Stop::Malformed`], never a panic.

use super::Stop;

/// Little-endian fields: ext, FAT, NTFS, Btrfs, partition tables, LVM labels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Little<'a>(pub &'a [u8]);

/// Big-endian fields: XFS.
#[derive(Debug, Clone, Copy)]
pub(super) struct Big<'a>(pub &'a [u8]);

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Stop> {
    let end = at.checked_add(N).ok_or(Stop::Malformed)?;
    let field = bytes.get(at..end).ok_or(Stop::Malformed)?;
    field.try_into().map_err(|_| Stop::Malformed)
}

impl<'a> Little<'a> {
    pub fn u8(self, at: usize) -> Result<u8, Stop> {
        Ok(array::<1>(self.0, at)?[0])
    }

    pub fn u16(self, at: usize) -> Result<u16, Stop> {
        array(self.0, at).map(u16::from_le_bytes)
    }

    pub fn u32(self, at: usize) -> Result<u32, Stop> {
        array(self.0, at).map(u32::from_le_bytes)
    }

    pub fn u64(self, at: usize) -> Result<u64, Stop> {
        array(self.0, at).map(u64::from_le_bytes)
    }

    pub fn bytes(self, at: usize, count: usize) -> Result<&'a [u8], Stop> {
        let end = at.checked_add(count).ok_or(Stop::Malformed)?;
        self.0.get(at..end).ok_or(Stop::Malformed)
    }
}

impl<'a> Big<'a> {
    pub fn u8(self, at: usize) -> Result<u8, Stop> {
        Ok(array::<1>(self.0, at)?[0])
    }

    pub fn u16(self, at: usize) -> Result<u16, Stop> {
        array(self.0, at).map(u16::from_be_bytes)
    }

    pub fn u32(self, at: usize) -> Result<u32, Stop> {
        array(self.0, at).map(u32::from_be_bytes)
    }

    pub fn u64(self, at: usize) -> Result<u64, Stop> {
        array(self.0, at).map(u64::from_be_bytes)
    }

    pub fn bytes(self, at: usize, count: usize) -> Result<&'a [u8], Stop> {
        Little(self.0).bytes(at, count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_past_the_end_is_malformed() {
        let bytes = [1, 2, 3, 4];
        assert_eq!(Little(&bytes).u32(0).unwrap(), 0x0403_0201);
        assert_eq!(Big(&bytes).u32(0).unwrap(), 0x0102_0304);
        for at in [1, 4, usize::MAX] {
            assert!(matches!(Little(&bytes).u32(at), Err(Stop::Malformed)));
        }
    }
}
