//! CRC-32C (Castagnoli), reflected, as in RFC 3720.

/// One step of a byte, and of each of seven bytes behind it.
static TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut value = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { (value >> 1) ^ 0x82f6_3b78 } else { value >> 1 };
            bit += 1;
        }
        tables[0][byte] = value;
        byte += 1;
    }
    let mut table = 1;
    while table < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[table - 1][byte];
            tables[table][byte] = (before >> 8) ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        table += 1;
    }
    tables
}

pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    let (steps, rest) = bytes.as_chunks::<8>();
    let mut value = u32::MAX;
    for step in steps {
        let mixed = (u64::from_le_bytes(*step) ^ u64::from(value)).to_le_bytes();
        value = mixed
            .iter()
            .zip(TABLES.iter().rev())
            .fold(0, |all, (&byte, table)| all ^ table[usize::from(byte)]);
    }
    for &byte in rest {
        value = (value >> 8) ^ TABLES[0][usize::from(value.to_le_bytes()[0] ^ byte)];
    }
    !value
}

/// Of bytes whose own checksum stands at 4 and counts as zero.
pub(super) fn with_own_cleared(bytes: &[u8]) -> u32 {
    let mut cleared = bytes.to_vec();
    cleared[4..8].fill(0);
    crc32c(&cleared)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_standard() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b""), 0);
    }
}
