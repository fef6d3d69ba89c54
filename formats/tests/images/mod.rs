//! Small images in every format, in memory; and what it takes to change one and keep it plausible.

#![allow(dead_code, reason = "each test program uses its part of this")]

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use shoal_content::{PackId, Recipe};
use shoal_formats::{DiskIngest, Export, Format, Piece, SinkError, Target, open};

pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// xorshift64*: enough to choose, and the same everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end.max(1)
    }

    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// Data, holes and data, over more than one block of every format.
pub fn guest() -> Vec<u8> {
    let mut guest = vec![0; 3 << 20];
    guest[..300_000].copy_from_slice(&noise(1, 300_000));
    guest[2_300_000..2_500_000].copy_from_slice(&noise(2, 200_000));
    guest
}

pub fn recipe(guest: &[u8]) -> Arc<Recipe> {
    let mut disk = open(Box::new(guest.to_vec()), Some(Format::Raw)).unwrap();
    let sink = |_: PackId, _: Vec<u8>| -> Result<(), SinkError> { Ok(()) };
    let ingested = DiskIngest::new(sink)
        .run(&mut *disk, &mut |_| None, &mut |_| ControlFlow::Continue(()))
        .unwrap();
    Arc::new(ingested.recipe)
}

/// The image, and where it has anything but content.
pub fn write(guest: &[u8], target: impl Into<Target>) -> (Vec<u8>, Vec<Range<usize>>) {
    let export = Export::new(target, recipe(guest)).unwrap();
    let mut image = vec![0; export.len() as usize];
    let mut content = |at: u64, buf: &mut [u8]| {
        let at = at as usize;
        buf.copy_from_slice(&guest[at..at + buf.len()]);
        Ok(())
    };
    export.read_at(0, &mut image, &mut content).unwrap();
    let (mut tables, mut at) = (Vec::new(), 0);
    for piece in export.pieces(0, export.len()) {
        let end = at + piece.length() as usize;
        if matches!(piece, Piece::Bytes(_) | Piece::Adler32 { .. }) {
            tables.push(at..end);
        }
        at = end;
    }
    (image, tables)
}

/// All that the guest sees.
pub fn read(image: Vec<u8>) -> Vec<u8> {
    let mut disk = open(Box::new(image), None).unwrap();
    let mut guest = vec![0; disk.virtual_bytes() as usize];
    disk.read(0, &mut guest).unwrap();
    guest
}

/// The name of the format, or the reason of the refusal.
pub fn outcome(image: Vec<u8>) -> &'static str {
    match open(Box::new(image), None) {
        Ok(disk) => disk.format().as_str(),
        Err(error) => error.reason(),
    }
}

pub fn with(mut image: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    image[at..at + bytes.len()].copy_from_slice(bytes);
    image
}

pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut value = u32::MAX;
    for &byte in bytes {
        value ^= u32::from(byte);
        for _ in 0..8 {
            value = if value & 1 == 1 { (value >> 1) ^ 0x82f6_3b78 } else { value >> 1 };
        }
    }
    !value
}

/// Sets the CRC-32C that stands 4 bytes into `range`.
pub fn seal(image: &mut [u8], range: Range<usize>) {
    let part = &mut image[range];
    part[4..8].fill(0);
    let sum = crc32c(part);
    part[4..8].copy_from_slice(&sum.to_le_bytes());
}

/// Makes checksums right again that a change broke; without them no reader looks further.
pub fn mend(image: &mut [u8]) {
    const KIB: usize = 1024;
    if image.starts_with(b"vhdxfile") && image.len() > 320 * KIB {
        seal(image, 64 * KIB..68 * KIB);
        seal(image, 128 * KIB..132 * KIB);
        seal(image, 192 * KIB..256 * KIB);
        seal(image, 256 * KIB..320 * KIB);
        let end = image.len().min(2 * KIB * KIB);
        for at in (KIB * KIB..end).step_by(4 * KIB) {
            let part = &image[at..end];
            if part.len() > 12 && part.starts_with(b"loge") {
                let length = u32::from_le_bytes(part[8..12].try_into().unwrap()) as usize;
                if (9..=part.len()).contains(&length) {
                    seal(image, at..at + length);
                }
            }
        }
    }
    if image.len() < 2048 {
        return;
    }
    for (at, length, cookie, sum_at) in [
        (0, 512, b"conectix", 64),
        (512, 1024, b"cxsparse", 36),
        (image.len() - 512, 512, b"conectix", 64),
    ] {
        let part = &mut image[at..at + length];
        if part.starts_with(cookie) {
            part[sum_at..sum_at + 4].fill(0);
            let sum = !part.iter().map(|&byte| u32::from(byte)).sum::<u32>();
            part[sum_at..sum_at + 4].copy_from_slice(&sum.to_be_bytes());
        }
    }
}
