//! VMDKs as other programs write them, byte by byte: grains of other lengths, tables and flags that
//! ours never have, texts that were edited.
//!
//! qemu-img judges where it follows the specification; what it reads otherwise is held against what
//! was put there.

mod images;
mod judge;

use std::io::Write;

use flate2::Compression;
use flate2::write::ZlibEncoder;
use images::{noise, outcome, read, with};
use judge::qemu_reads;
use shoal_formats::open;

const SECTOR: usize = 512;
const NEWLINES: u32 = 1;
const ZERO_GRAINS: u32 = 4;
const COMPRESSED: u32 = 1 << 16;
const MARKERS: u32 = 1 << 17;
const TEXT_SECTORS: usize = 20;

/// What an entry of a grain table says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Grain {
    Hole,
    Zero,
    /// Bytes of that seed.
    Data(u64),
}

use Grain::{Data, Hole, Zero};

struct Sparse<'a> {
    /// In sectors.
    grain: usize,
    capacity: usize,
    /// Entries of a table.
    entries: usize,
    flags: u32,
    text: &'a str,
    grains: &'a [Grain],
}

const TEXT: &str = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n\
    createType=\"monolithicSparse\"\nRW 1 SPARSE \"x.vmdk\"\n";

const PLAIN: Sparse<'_> =
    Sparse { grain: 128, capacity: 0, entries: 512, flags: NEWLINES, text: TEXT, grains: &[] };

fn deflated(bytes: &[u8]) -> Vec<u8> {
    let mut stream = ZlibEncoder::new(Vec::new(), Compression::fast());
    stream.write_all(bytes).unwrap();
    stream.finish().unwrap()
}

impl Sparse<'_> {
    /// What the guest sees.
    fn guest(&self) -> Vec<u8> {
        let grain = self.grain * SECTOR;
        let mut guest = vec![0; self.capacity * SECTOR];
        for (kind, part) in self.grains.iter().zip(guest.chunks_mut(grain)) {
            if let Data(seed) = kind {
                part.copy_from_slice(&noise(*seed, grain)[..part.len()]);
            }
        }
        guest
    }

    /// Header, text, tables, directory, and the grains from the last to the first.
    fn image(&self) -> Vec<u8> {
        let tables = self.capacity.div_ceil(self.grain * self.entries);
        let table_sectors = (self.entries * 4).div_ceil(SECTOR);
        let first = 1 + TEXT_SECTORS;
        let directory = first + tables * table_sectors;
        let mut image = vec![0; (directory + (tables * 4).div_ceil(SECTOR)) * SECTOR];
        let mut places = vec![0u32; tables * self.entries];
        for (number, kind) in self.grains.iter().enumerate().rev() {
            places[number] = match kind {
                Hole => 0,
                Zero => 1,
                Data(seed) => {
                    let sector = image.len().div_ceil(SECTOR);
                    image.resize(sector * SECTOR, 0);
                    let bytes = noise(*seed, self.grain * SECTOR);
                    if self.flags & COMPRESSED == 0 {
                        image.extend(bytes);
                    } else {
                        let packed = deflated(&bytes);
                        if self.flags & MARKERS != 0 {
                            let lba = (number * self.grain) as u64;
                            image.extend_from_slice(&lba.to_le_bytes());
                            image.extend_from_slice(&(packed.len() as u32).to_le_bytes());
                        }
                        image.extend(packed);
                    }
                    sector as u32
                }
            };
        }
        image.resize(image.len().next_multiple_of(SECTOR), 0);
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        for (table, places) in places.chunks(self.entries).enumerate() {
            let sector = first + table * table_sectors;
            // A table of holes is none.
            if places.iter().any(|&place| place != 0) {
                put(directory * SECTOR + table * 4, &(sector as u32).to_le_bytes());
            }
            for (number, place) in places.iter().enumerate() {
                put(sector * SECTOR + number * 4, &place.to_le_bytes());
            }
        }
        put(0, b"KDMV");
        put(4, &1u32.to_le_bytes());
        put(8, &self.flags.to_le_bytes());
        put(12, &(self.capacity as u64).to_le_bytes());
        put(20, &(self.grain as u64).to_le_bytes());
        put(28, &1u64.to_le_bytes());
        put(36, &(TEXT_SECTORS as u64).to_le_bytes());
        put(44, &(self.entries as u32).to_le_bytes());
        put(56, &(directory as u64).to_le_bytes());
        put(64, &((directory + 1) as u64).to_le_bytes());
        put(73, b"\n \r\n");
        put(77, &[u8::from(self.flags & COMPRESSED != 0)]);
        put(SECTOR, self.text.as_bytes());
        image
    }
}

#[test]
fn grains_and_tables_of_any_length_are_read() {
    let grains = [Data(1), Hole, Data(2), Data(3), Hole, Hole, Hole, Hole, Hole, Data(4)];
    for (grain, entries) in [(1usize, 512), (8, 512), (16, 4), (128, 1), (512, 3), (2048, 512)] {
        // The last grain is seen in part, where a sector is not all of it.
        let capacity = 9 * grain + grain.div_ceil(2);
        for flags in [0, COMPRESSED, COMPRESSED | MARKERS] {
            let flags = NEWLINES | flags;
            let disk = Sparse { grain, capacity, entries, flags, grains: &grains, ..PLAIN };
            let image = disk.image();
            assert!(read(image.clone()) == disk.guest(), "{grain} sectors, {flags:#x}");
            // Without markers qemu takes no grain that deflate made longer.
            if flags & (COMPRESSED | MARKERS) != COMPRESSED {
                assert!(qemu_reads("vmdk", &image) == disk.guest(), "{grain} sectors");
            }
        }
    }
}

#[test]
fn a_grain_is_zero_where_the_header_says_that_there_are_such() {
    let grains = [Zero, Data(1), Zero, Hole, Data(2)];
    let disk = |flags| Sparse { capacity: 5 * 128, flags, grains: &grains, ..PLAIN };
    for flags in [0, COMPRESSED | MARKERS] {
        let disk = disk(NEWLINES | ZERO_GRAINS | flags);
        assert!(read(disk.image()) == disk.guest());
        assert!(qemu_reads("vmdk", &disk.image()) == disk.guest());
        let mut opened = open(Box::new(disk.image()), None).unwrap();
        assert_eq!(opened.next_extent(0).unwrap().length, 64 * 1024);
    }
    // Sector 1 holds the text.
    assert_eq!(outcome(disk(NEWLINES).image()), "overlapping_tables");
    assert_eq!(outcome(disk(NEWLINES | COMPRESSED | MARKERS).image()), "overlapping_tables");
}

/// VMware goes by the flag, QEMU by the method: two disks in one file.
#[test]
fn a_method_without_its_flag_is_refused() {
    let disk = Sparse { capacity: 128, grains: &[Data(1)], ..PLAIN };
    assert_eq!(outcome(disk.image()), "vmdk");
    assert_eq!(outcome(with(disk.image(), 77, &[1])), "malformed_header");
    let packed = Sparse { flags: COMPRESSED, ..disk };
    assert_eq!(outcome(with(packed.image(), 77, &[0])), "unknown_compression");
}

#[test]
fn a_header_without_a_disk_is_a_place_for_its_text() {
    let flat = TEXT.replace("SPARSE \"x.vmdk\"", "FLAT \"x-flat.vmdk\" 0");
    for text in [TEXT, &flat] {
        assert_eq!(outcome(Sparse { text, ..PLAIN }.image()), "names_files");
    }
    let none = TEXT.replace("RW 1 ", "RW 0 ");
    assert_eq!(outcome(Sparse { text: &none, ..PLAIN }.image()), "vmdk");
}

#[test]
fn a_text_may_have_been_edited() {
    let texts = [
        TEXT.replace('\n', "\r\n"),
        TEXT.replace('\n', "\n\n"),
        TEXT.to_uppercase(),
        TEXT.replace('=', " = "),
        format!("\u{feff}{TEXT}"),
        TEXT.replace(
            "CID=1\n",
            "CID=1\nencoding=\"windows-1252\"\nddb.\nddb.comment = \"a = b\"\n",
        ),
        TEXT.replace("# Disk DescriptorFile\n", "# made by hand\n\n"),
    ];
    for text in &texts {
        let disk = Sparse { capacity: 128, grains: &[Data(1)], text, ..PLAIN };
        assert!(read(disk.image()) == disk.guest(), "{text}");
        // On its own it names files, and is nothing else.
        assert_eq!(outcome(text.clone().into_bytes()), "names_files", "{text}");
    }
    let parent = TEXT.replace('\n', "\r\n").replace("ffffffff", "fffffffe");
    assert_eq!(outcome(Sparse { text: &parent, ..PLAIN }.image()), "parent");
}

/// A file of a tar: the header of Version 7, of POSIX or of GNU, and the content.
fn file(magic: &[u8], kind: u8, name: &[u8], content: &[u8]) -> Vec<u8> {
    let mut block = vec![0; SECTOR];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &name[..name.len().min(100)]);
    put(124, format!("{:011o}\0", content.len()).as_bytes());
    put(148, b"        ");
    put(156, &[kind]);
    put(257, magic);
    let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block.extend_from_slice(content);
    block.resize(block.len().next_multiple_of(SECTOR), 0);
    block
}

const V7: &[u8] = b"";
const POSIX: &[u8] = b"ustar\x0000";
const GNU: &[u8] = b"ustar  \0";

/// Text and flat part, whose names are too long for a header.
fn parts(before: impl Fn(&str) -> Vec<u8>, magic: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (text_name, flat_name) =
        (format!("{}.vmdk", "n".repeat(120)), format!("{}-flat", "n".repeat(120)));
    let content = noise(7, 64 * 1024);
    let text = TEXT.replace("RW 1 SPARSE \"x.vmdk\"", &format!("RW 128 FLAT \"{flat_name}\" 0"));
    let mut archive = file(magic, b'5', b"./", &[]);
    for (name, content) in [(text_name, text.as_bytes()), (flat_name, &content)] {
        archive.extend(before(&name));
        archive.extend(file(magic, b'0', name.as_bytes(), content));
    }
    archive.resize(archive.len() + 2 * SECTOR, 0);
    (archive, content)
}

#[test]
fn long_names_are_found_where_each_tar_puts_them() {
    let gnu = |name: &str| {
        let text = [name.as_bytes(), b"\0"].concat();
        file(GNU, b'L', b"././@LongLink", &text)
    };
    let pax = |name: &str| {
        let length = name.len() + 10;
        let records = format!("20 mtime=1700000000\n{length} path={name}\n");
        file(POSIX, b'x', b"PaxHeaders/x", records.as_bytes())
    };
    let (archive, content) = parts(gnu, GNU);
    assert!(read(archive) == content);
    let (archive, content) = parts(pax, POSIX);
    assert!(read(archive) == content);
    // Cut off, they are no names of anything.
    assert_eq!(outcome(parts(|_| Vec::new(), GNU).0), "raw");
}

#[test]
fn an_archive_without_a_magic_is_one_all_the_same() {
    let content = noise(7, 64 * 1024);
    let text = TEXT.replace("RW 1 SPARSE \"x.vmdk\"", "RW 128 FLAT \"x-flat.vmdk\" 0");
    // As GNU's tar writes it: with the numbers of a device, 72 bytes behind the magic's place.
    let gnu = [&[0_u8; 72][..], b"0000000\x000000000\0"].concat();
    for magic in [V7, &gnu] {
        let mut archive = file(magic, 0, b"./", &[]);
        archive.extend(file(magic, 0, b"./x.vmdk", text.as_bytes()));
        archive.extend(file(magic, 0, b"./x-flat.vmdk", &content));
        archive.resize(archive.len() + 2 * SECTOR, 0);
        assert!(read(archive) == content);
    }
    let folder = file(V7, 0, b"vm/", &[]);
    let inside = file(V7, 0, b"vm/x.vmdk", text.as_bytes());
    assert_eq!(outcome([folder, inside].concat()), "names_path");
}

#[test]
fn a_machine_s_folder_may_be_packed_in_any_order() {
    let content = noise(7, 64 * 1024);
    let text = TEXT.replace("RW 1 SPARSE \"x.vmdk\"", "RW 128 VMFS \"x-flat.vmdk\"");
    let text = text.replace("parentCID", "changeTrackPath=\"x-ctk.vmdk\"\nparentCID");
    let files: [(&[u8], &[u8]); 4] = [
        (b"./x.vmdk", text.as_bytes()),
        (b"./x-flat.vmdk", &content),
        (b"./x-ctk.vmdk", &[7; 700]),
        (b"./x.vmsd", b""),
    ];
    for first in ["x.vmx", "./x.vmxf", "x.VMSD", "./x.nvram", "vmware-1.log", "./vmware.log"] {
        let mut archive = file(GNU, b'0', first.as_bytes(), b"of no account");
        for (name, content) in files.iter().filter(|(name, _)| !name.ends_with(b"vmsd")) {
            archive.extend(file(GNU, b'0', name, content));
        }
        archive.resize(archive.len() + 2 * SECTOR, 0);
        assert!(read(archive) == content, "{first}");
    }
    for start in 0..files.len() {
        let mut archive = Vec::new();
        for (name, content) in files.iter().cycle().skip(start).take(files.len()) {
            archive.extend(file(POSIX, b'0', name, content));
        }
        archive.resize(archive.len() + 2 * SECTOR, 0);
        assert!(read(archive) == content, "from {start}");
    }
    // Any other archive is a guest's own.
    assert_eq!(outcome(file(GNU, b'0', b"server.log", &[1; 512])), "raw");
}

#[test]
fn what_macos_adds_to_an_archive_is_no_disk() {
    let disk = Sparse { capacity: 128, grains: &[Data(1)], ..PLAIN };
    let mut archive = file(POSIX, b'0', b"./._x.vmdk", &[0, 5, 0x16, 7]);
    archive.extend(file(POSIX, b'0', b"./x.vmdk", &disk.image()));
    archive.resize(archive.len() + 2 * SECTOR, 0);
    assert!(read(archive) == disk.guest());
}

#[test]
fn files_with_holes_are_refused_whoever_left_them_out() {
    let gnu = file(GNU, b'S', b"x.vmdk", &[1; 512]);
    assert_eq!(outcome(gnu), "archive_not_supported");
    let records = "22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n";
    let mut pax = file(POSIX, b'x', b"PaxHeaders/x", records.as_bytes());
    pax.extend(file(POSIX, b'0', b"GNUSparseFile.0/x.vmdk", &[1; 512]));
    assert_eq!(outcome(pax), "archive_not_supported");
}
