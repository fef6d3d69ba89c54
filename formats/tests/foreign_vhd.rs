//! VHD and VHDX as other programs write them, byte by byte: sizes that two fields say differently,
//! blocks of other lengths, in other places and states than ours.
//!
//! qemu-img judges where it follows the specification; what it does not read is held against what
//! was put there.

mod images;
mod judge;

use images::{noise, outcome, read, seal, with};
use judge::qemu_reads;
use shoal_formats::{Format, open};

const SECTOR: usize = 512;
const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
const HOLE: u32 = u32::MAX;

fn sum(bytes: &mut [u8], at: usize) {
    bytes[at..at + 4].fill(0);
    let sum = !bytes.iter().map(|&byte| u32::from(byte)).sum::<u32>();
    bytes[at..at + 4].copy_from_slice(&sum.to_be_bytes());
}

/// What a footer says.
#[derive(Clone, Copy)]
struct Footer {
    creator: [u8; 4],
    current: u64,
    /// Cylinders, heads, sectors.
    geometry: (u16, u8, u8),
    kind: u32,
    header: u64,
}

const FIXED: Footer =
    Footer { creator: *b"win ", current: 0, geometry: (0, 0, 0), kind: 2, header: u64::MAX };

impl Footer {
    fn bytes(self) -> Vec<u8> {
        let mut bytes = vec![0; SECTOR];
        let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
        put(0, b"conectix");
        put(8, &2u32.to_be_bytes());
        put(12, &0x0001_0000_u32.to_be_bytes());
        put(16, &self.header.to_be_bytes());
        put(28, &self.creator);
        put(40, &self.current.to_be_bytes());
        put(48, &self.current.to_be_bytes());
        put(56, &self.geometry.0.to_be_bytes());
        put(58, &[self.geometry.1, self.geometry.2]);
        put(60, &self.kind.to_be_bytes());
        put(68, &[5; 16]);
        sum(&mut bytes, 64);
        bytes
    }
}

/// A fixed disk whose file holds what `current` says.
fn fixed(footer: Footer) -> Vec<u8> {
    let mut image = noise(3, footer.current as usize);
    image.extend(footer.bytes());
    image
}

#[test]
fn the_creator_says_which_size_counts() {
    // 8 cylinders of 4 heads and 17 sectors are 272 KiB, and the file has 300.
    let made = |creator: &[u8; 4], geometry| {
        fixed(Footer { creator: *creator, current: 300 * KIB as u64, geometry, ..FIXED })
    };
    for creator in [b"win ", b"qem2", b"d2v ", b"CTXS", b"tap\0", b"vpc ", b"qemu"] {
        let image = made(creator, (8, 4, 17));
        assert!(read(image.clone()) == qemu_reads("vpc", &image), "{creator:?}");
    }
    assert_eq!(read(made(b"qemu", (8, 4, 17))).len(), 272 * KIB);
    // What the geometry cannot say stands in the other field.
    let image = made(b"vpc ", (65_535, 16, 255));
    assert!(read(image.clone()) == qemu_reads("vpc", &image));
    assert_eq!(read(image).len(), 300 * KIB);
    // These go by the size, as for qemu from 10.0 on; before, it did not know them.
    for creator in [b"vbox", b"wa\0\0", b"vs  ", b"\0\0\0\0"] {
        assert_eq!(read(made(creator, (8, 4, 17))).len(), 300 * KIB, "{creator:?}");
    }
    assert_eq!(outcome(made(b"vpc ", (0, 4, 17))), "malformed_header");
    assert_eq!(outcome(made(b"vpc ", (9, 4, 17))), "truncated");
}

/// A dynamic disk with a table behind its blocks, which stand in any order: `blocks` has the guest's
/// block that each of them is.
fn dynamic(current: u64, block: usize, blocks: &[usize], bitmap: u8) -> Vec<u8> {
    let (header, entries) = (3 * KIB, (current as usize).div_ceil(block) + 5);
    let bitmap_bytes = (block / SECTOR).div_ceil(8).next_multiple_of(SECTOR);
    let data = header + KIB;
    let table = data + blocks.len() * (bitmap_bytes + block);
    let geometry = (1, 1, 1);
    let footer =
        Footer { creator: *b"win ", current, geometry, kind: 3, header: header as u64 }.bytes();
    let mut image = footer.clone();
    image.resize(data, 0);
    let mut places = vec![HOLE; entries];
    for (number, &guest) in blocks.iter().enumerate() {
        places[guest] = (image.len() / SECTOR) as u32;
        image.resize(image.len() + bitmap_bytes, bitmap);
        image.extend(noise(number as u64 + 9, block));
    }
    for place in places {
        image.extend_from_slice(&place.to_be_bytes());
    }
    image.resize(image.len().next_multiple_of(SECTOR), 0xff);
    let mut fields = b"cxsparse".to_vec();
    fields.extend_from_slice(&u64::MAX.to_be_bytes());
    fields.extend_from_slice(&(table as u64).to_be_bytes());
    fields.extend_from_slice(&0x0001_0000_u32.to_be_bytes());
    fields.extend_from_slice(&(entries as u32).to_be_bytes());
    fields.extend_from_slice(&(block as u32).to_be_bytes());
    fields.resize(KIB, 0);
    sum(&mut fields, 36);
    image[header..header + KIB].copy_from_slice(&fields);
    image.extend(footer);
    image
}

#[test]
fn blocks_of_any_length_stand_in_any_order() {
    for block in [4 * KIB, 64 * KIB, 512 * KIB, MIB, 4 * MIB] {
        // The last one is seen in part.
        let current = (7 * block - block / 2).next_multiple_of(SECTOR) as u64;
        let image = dynamic(current, block, &[6, 0, 3, 1], 0xff);
        let seen = read(image.clone());
        assert_eq!(seen.len() as u64, current);
        assert!(seen == qemu_reads("vpc", &image), "blocks of {block}");
        assert!(seen[2 * block..3 * block].iter().all(|&byte| byte == 0));
        // Either footer alone does, but for the first: that one says what the image is.
        let end = image.len();
        assert!(read(image[..end - SECTOR].to_vec()) == seen);
        assert!(read(with(image.clone(), 200, b"x")) == seen);
        assert!(read(with(image, end - 100, b"x")) == seen);
    }
}

/// The bitmap of a smaller one has a sector by the specification; qemu leaves no room for it.
#[test]
fn blocks_of_less_than_eight_sectors_are_refused() {
    assert_eq!(outcome(dynamic(16 * KIB as u64, 2 * KIB, &[1, 0], 0xff)), "malformed_header");
}

/// Some programs never set a bit; a block is there or not.
#[test]
fn bits_of_sectors_do_not_count_as_for_qemu() {
    for bitmap in [0, 0x0f] {
        let image = dynamic(5 * MIB as u64, 2 * MIB, &[1, 0], bitmap);
        assert!(read(image.clone()) == qemu_reads("vpc", &image));
    }
}

/// A VHDX of the file's parts in the usual places.
struct Vhdx {
    block: usize,
    sector: u32,
    virtual_bytes: u64,
    /// Numbers of payload blocks and the state and place, in MiB, of each.
    blocks: Vec<(u64, u64, u64)>,
    /// Length of the file in MiB.
    length: usize,
}

const METADATA: usize = 2 * MIB;
const BAT: usize = 3 * MIB;
const DATA: u64 = 4;
const PRESENT: u64 = 6;

fn guid(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
    let pairs = digits.chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    let mut bytes: Vec<u8> = pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect();
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

impl Vhdx {
    fn image(&self) -> Vec<u8> {
        let mut image = vec![0; self.length * MIB];
        put(&mut image, 0, b"vhdxfile");
        for (number, at) in [64 * KIB, 128 * KIB].into_iter().enumerate() {
            put(&mut image, at, b"head");
            put(&mut image, at + 8, &(number as u64 + 7).to_le_bytes());
            put(&mut image, at + 66, &[1]);
            put(&mut image, at + 68, &(MIB as u32).to_le_bytes());
            put(&mut image, at + 72, &(MIB as u64).to_le_bytes());
            seal(&mut image, at..at + 4 * KIB);
        }
        for at in [192 * KIB, 256 * KIB] {
            put(&mut image, at, b"regi");
            // The last one is nobody's, and need not be known.
            let regions = [
                ("2dc27766-f623-4200-9d64-115e9bfd4a08", BAT, 1),
                ("8b7ca206-4790-4b9a-b8fe-575f050f886e", METADATA, 1),
                ("01234567-89ab-cdef-0123-456789abcdef", self.length * MIB - MIB, 0),
            ];
            put(&mut image, at + 8, &[regions.len() as u8]);
            for (number, (id, place, required)) in regions.into_iter().enumerate() {
                let entry = at + 16 + 32 * number;
                put(&mut image, entry, &guid(id));
                put(&mut image, entry + 16, &(place as u64).to_le_bytes());
                put(&mut image, entry + 24, &(MIB as u32).to_le_bytes());
                put(&mut image, entry + 28, &[required]);
            }
            seal(&mut image, at..at + 64 * KIB);
        }
        put(&mut image, METADATA, b"metadata");
        let items: [(&str, Vec<u8>, u8); 6] = [
            ("caa16737-fa36-4d43-b3b6-33f0aa44e76b", u64::to_le_bytes(self.block as u64).into(), 4),
            ("2fa54224-cd1b-4876-b211-5dbed83bf4b8", self.virtual_bytes.to_le_bytes().into(), 6),
            ("beca12ab-b2e6-4523-93ef-c309e000c746", vec![9; 16], 6),
            ("8141bf1d-a96f-4709-ba47-f233a8faab5f", self.sector.to_le_bytes().into(), 6),
            ("cda348c7-445d-4471-9cc9-e9885251c556", 4096u32.to_le_bytes().into(), 6),
            // What some user noted.
            ("01234567-89ab-cdef-0123-456789abcdef", vec![1; 40], 1),
        ];
        put(&mut image, METADATA + 10, &[items.len() as u8]);
        for (number, (id, bytes, flags)) in items.into_iter().enumerate() {
            let (entry, place) = (METADATA + 32 + 32 * number, 64 * KIB + 64 * number);
            put(&mut image, entry, &guid(id));
            put(&mut image, entry + 16, &(place as u32).to_le_bytes());
            put(&mut image, entry + 20, &(bytes.len() as u32).to_le_bytes());
            put(&mut image, entry + 24, &[flags]);
            put(&mut image, METADATA + place, &bytes);
        }
        let ratio = (1u64 << 23) * u64::from(self.sector) / self.block as u64;
        for &(block, state, place) in &self.blocks {
            let entry = (block + block / ratio) * 8;
            put(&mut image, BAT + entry as usize, &(state | place << 20).to_le_bytes());
        }
        image
    }
}

#[test]
fn a_block_of_any_state_is_there_or_zero() {
    // States with a place that means nothing, and one before version 1.0.
    let states = [(0, PRESENT, DATA + 5), (1, 0, DATA), (2, 1, DATA), (3, 2, 0), (4, 3, DATA)];
    let mut blocks = states.to_vec();
    blocks.extend([(5, 5, DATA), (6, PRESENT, DATA + 1)]);
    for sector in [512, 4096] {
        let virtual_bytes = 13 * MIB as u64 / 2;
        let blocks = blocks.clone();
        let mut image = Vhdx { block: MIB, sector, virtual_bytes, blocks, length: 12 }.image();
        let (first, last) = (noise(1, MIB), noise(2, MIB));
        put(&mut image, 9 * MIB, &first);
        put(&mut image, 5 * MIB, &last);
        let mut expected = first;
        expected.resize(6 * MIB, 0);
        expected.extend_from_slice(&last[..MIB / 2]);
        assert!(read(image.clone()) == expected, "sectors of {sector}");
        if sector == 512 {
            assert!(qemu_reads("vhdx", &image) == expected);
        }
        // One header torn, and it is the newer one; then the other.
        assert!(read(with(image.clone(), 128 * KIB + 100, b"x")) == expected);
        assert!(read(with(image, 64 * KIB + 100, b"x")) == expected);
    }
}

#[test]
fn bitmaps_stand_between_the_blocks_of_every_chunk() {
    // One entry of a bitmap after so many of blocks: 4 GiB, or 32 with sectors of 4096 bytes.
    for (sector, block, length) in [
        (512, MIB, 10),
        (512, 2 * MIB, 10),
        (512, 64 * MIB, 5 + 2 * 64),
        (4096, MIB, 10),
        (4096, 32 * MIB, 5 + 2 * 32),
    ] {
        let ratio = (1u64 << 23) * u64::from(sector) / block as u64;
        let last = 2 * ratio;
        let virtual_bytes = (last + 1) * block as u64;
        let (one, other) = (DATA + (block / MIB) as u64, DATA);
        let blocks = vec![(ratio, PRESENT, one), (last, PRESENT, other)];
        let mut image = Vhdx { block, sector, virtual_bytes, blocks, length }.image();
        put(&mut image, one as usize * MIB, &noise(1, 4096));
        put(&mut image, other as usize * MIB, &noise(2, 4096));
        let mut disk = open(Box::new(image), Some(Format::Vhdx)).unwrap();
        assert_eq!(disk.virtual_bytes(), virtual_bytes);
        let mut at = |block: u64| {
            let mut buf = vec![0; 4096];
            disk.read(block, &mut buf).unwrap();
            buf
        };
        let block = block as u64;
        assert!(at(ratio * block) == noise(1, 4096), "{sector}, {block}");
        assert!(at(last * block) == noise(2, 4096), "{sector}, {block}");
        assert!(at((ratio - 1) * block) == [0; 4096] && at((ratio + 1) * block) == [0; 4096]);
        assert_eq!(disk.next_extent(0).unwrap().length, ratio * block);
    }
}
