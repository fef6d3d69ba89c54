//! Each reader under a seeded mutator: sound images of every format with their tables changed.
//!
//! Invariants held here, whatever an image says: no panic; no error but a named refusal; the bytes
//! read to open it are bounded by a multiple of its length, and so are those of each later step;
//! what is held in memory stays below a fixed figure. `SHOAL_ROUNDS` and `SHOAL_SEED` make it a
//! fuzzer.

mod images;
mod judge;
mod vhdx_log;

use std::io::{self, Read, Seek};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use images::{Random, guest, mend, write};
use shoal_formats::{
    Compressed, CompressedWriter, Format, OpenError, ReadAt, ReadError, Target, open,
};

const ROUNDS: u64 = 150;
/// A reader looks at its tables a few times, in pages.
const OPEN_READS_MAX: u64 = 24;
const OPEN_BYTES_MAX: u64 = 16 << 20;
/// Enough compressed blocks for several threads.
const LOOK_BYTES: u64 = 1024 * 1024;
const STEPS_MAX: usize = 300;
/// All of this program, its images included.
const MEMORY_KIB_MAX: u64 = 700 * 1024;

/// Counts what is read.
#[derive(Clone)]
struct Counted(Arc<(Vec<u8>, AtomicU64)>);

impl ReadAt for Counted {
    fn len(&self) -> u64 {
        self.0.0.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.1.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.0.0.read_at(offset, buf)
    }
}

/// Numbers at which readers go wrong, as this image has them.
fn interesting(random: &mut Random, length: u64) -> u64 {
    let choices = [
        0,
        1,
        2,
        7,
        0x7f,
        0xff,
        511,
        512,
        513,
        4096,
        0xffff,
        65_536,
        1 << 20,
        1 << 31,
        u64::from(u32::MAX),
        1 << 40,
        1 << 62,
        u64::MAX,
        u64::MAX - 511,
        length,
        length - 1,
        length / 512,
        length / 512 - 1,
    ];
    random.one_of(&choices)
}

fn mutate(image: &mut Vec<u8>, tables: &[Range<usize>], random: &mut Random) {
    for _ in 0..=random.below(3) {
        let range = &tables[random.below(tables.len() as u64) as usize];
        // Most of a table is like its start.
        let span = (range.len() as u64).min(random.one_of(&[16, 128, 1024, u64::MAX]));
        let at = range.start + random.below(span) as usize;
        let number = interesting(random, image.len() as u64);
        let bytes = match random.below(6) {
            0 => vec![random.number() as u8],
            1 => (number as u32).to_be_bytes().to_vec(),
            2 => (number as u32).to_le_bytes().to_vec(),
            3 => number.to_be_bytes().to_vec(),
            4 => number.to_le_bytes().to_vec(),
            _ => {
                let from = &tables[random.below(tables.len() as u64) as usize];
                let from = from.start + random.below(from.len() as u64) as usize;
                image[from..(from + 8).min(image.len())].to_vec()
            }
        };
        let end = (at + bytes.len()).min(image.len());
        image[at..end].copy_from_slice(&bytes[..end - at]);
    }
    match random.below(16) {
        0 => image.truncate(random.below(image.len() as u64 + 1) as usize),
        1 => image.extend_from_slice(&vec![0; random.below(2000) as usize]),
        _ => {}
    }
    if random.below(4) != 0 {
        mend(image);
    }
}

/// Opens the image and looks at as much of it as there is; whether it opened.
fn look(image: Vec<u8>) -> bool {
    let length = image.len() as u64;
    let source = Counted(Arc::new((image, AtomicU64::new(0))));
    let opened = open(Box::new(source.clone()), None);
    let read = source.0.1.load(Ordering::Relaxed);
    assert!(read <= length * OPEN_READS_MAX + OPEN_BYTES_MAX, "{read} bytes read to open {length}");
    let mut disk = match opened {
        Ok(disk) => disk,
        Err(OpenError::Refused(_)) => return false,
        Err(error @ OpenError::Source { .. }) => panic!("it read what is not there: {error}"),
    };
    let mut at = 0;
    let named = |error: ReadError| assert!(!matches!(error, ReadError::Source { .. }), "{error}");
    for _ in 0..STEPS_MAX {
        if at >= disk.virtual_bytes() {
            break;
        }
        match disk.next_extent(at) {
            Ok(extent) => {
                assert!(extent.length > 0 && extent.offset == at);
                let mut look = vec![0; extent.length.min(LOOK_BYTES) as usize];
                if let Err(error) = disk.read(at, &mut look) {
                    named(error);
                }
                at += extent.length;
            }
            Err(error) => {
                named(error);
                break;
            }
        }
    }
    true
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// With clusters that compress, more of them than one thread takes.
fn compressible() -> Vec<u8> {
    let mut content = guest();
    content[700_000..1_900_000].fill(b'x');
    content
}

/// qemu's compressed one. Its tables are wherever no content is known to be: at its start and its
/// end.
fn compressed_by_qemu() -> (Vec<u8>, Vec<Range<usize>>) {
    let folder = tempfile::tempdir().unwrap();
    let (raw, vmdk) = (folder.path().join("raw"), folder.path().join("vmdk"));
    std::fs::write(&raw, compressible()).unwrap();
    let options = "subformat=streamOptimized";
    let (raw, path) = (judge::text(&raw), judge::text(&vmdk));
    judge::qemu_img(&["convert", "-f", "raw", "-O", "vmdk", "-o", options, raw, path]);
    let image = std::fs::read(&vmdk).unwrap();
    let end = image.len();
    (image, vec![0..1024, 65_536..65_700, end - 8192..end])
}

/// Ours: the header, the first compressed bytes, and what stands at the end.
fn compressed(target: Compressed) -> (Vec<u8>, Vec<Range<usize>>) {
    const CLUSTER: usize = 65_536;
    let mut file = tempfile::tempfile().unwrap();
    let mut disk = open(Box::new(compressible()), Some(Format::Raw)).unwrap();
    let go_on = &mut |_| ControlFlow::Continue(());
    CompressedWriter::new(target).write(&mut *disk, &file, go_on).unwrap();
    let mut image = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut image).unwrap();
    let end = image.len();
    let tables = match target.format() {
        // The L2 table with the entries of the whole disk, the L1 table.
        Format::Qcow2 => {
            let [l2, l1] = [end - 4 * CLUSTER, end - 3 * CLUSTER];
            vec![0..112, CLUSTER..CLUSTER + 400, l2..l2 + 384, l1..l1 + 8]
        }
        _ => vec![0..1024, CLUSTER..CLUSTER + 400, end - 8192..end],
    };
    (image, tables)
}

fn hammer(name: &str, sound: &(Vec<u8>, Vec<Range<usize>>), seed: u64) {
    let rounds = number("SHOAL_ROUNDS", ROUNDS);
    let (image, tables) = sound;
    assert!(look(image.clone()), "{name}: the sound one does not open");
    let mut opened = 0;
    for round in 0..rounds {
        let seed = seed.wrapping_add(round).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut changed = image.clone();
        mutate(&mut changed, tables, &mut Random(seed));
        let outcome = std::panic::catch_unwind(|| look(changed));
        opened += u64::from(outcome.unwrap_or_else(|_| panic!("{name}: seed {seed}")));
    }
    println!("{name}: {opened} of {rounds} changed images opened");
    assert!(opened < rounds, "{name}: no change was ever noticed");
}

#[test]
fn changed_images_of_every_format_are_read_or_refused() {
    let seed = number("SHOAL_SEED", 0xda_3a9e);
    println!("SHOAL_SEED={seed}");
    let guest = guest();
    for target in &Target::ALL[1..] {
        hammer(target.as_str(), &write(&guest, *target), seed);
    }
    hammer("vhdx with a log", &vhdx_log::dirty(), seed);
    hammer("compressed vmdk of qemu's", &compressed_by_qemu(), seed);
    for target in Compressed::ALL {
        hammer(target.as_str(), &compressed(target), seed);
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < MEMORY_KIB_MAX, "it took {peak} KiB");
}
