//! Changed images of every format, read by qemu and by us: where both read one, they see the same
//! disk.
//!
//! The changes are those that leave an image plausible: a field of a table with a number of the
//! kind that stands there. `SHOAL_ROUNDS` and `SHOAL_SEED` make it a fuzzer.

mod images;
mod judge;

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::process::Command;

use images::{Random, guest, mend, write};
use judge::{qemu_img, text};
use shoal_formats::{ExtentKind, Format, Target, open};

const ROUNDS: u64 = 15;
/// A disk that a changed header makes longer is not compared.
const DISK_BYTES_MAX: u64 = 64 << 20;

/// All that we see, or why not. What the map calls zero is.
fn ours(image: Vec<u8>) -> Result<Vec<u8>, &'static str> {
    let mut disk = open(Box::new(image), None).map_err(|error| error.reason())?;
    if disk.format() == Format::Raw || disk.virtual_bytes() > DISK_BYTES_MAX {
        return Err("raw or long");
    }
    let mut seen = vec![0; disk.virtual_bytes() as usize];
    disk.read(0, &mut seen).map_err(|error| error.reason())?;
    let mut at = 0;
    while at < seen.len() as u64 {
        let extent = disk.next_extent(at).map_err(|error| error.reason())?;
        let part = &seen[at as usize..(at + extent.length) as usize];
        assert!(extent.kind == ExtentKind::Data || part.iter().all(|&byte| byte == 0), "at {at}");
        at += extent.length;
    }
    Ok(seen)
}

/// All that qemu sees, if it reads the image.
fn theirs(driver: &str, image: &[u8]) -> Result<Vec<u8>, String> {
    let folder = tempfile::tempdir().unwrap();
    let (path, raw) = (folder.path().join("image"), folder.path().join("raw"));
    fs::write(&path, image).unwrap();
    let arguments = ["convert", "-f", driver, "-O", "raw", text(&path), text(&raw)];
    let output = Command::new("timeout").args(["20", "qemu-img"]).args(arguments).output().unwrap();
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).replace(text(&path), "PATH");
        return Err(said.lines().next().unwrap_or_default().to_owned());
    }
    if fs::metadata(&raw).unwrap().len() > DISK_BYTES_MAX {
        return Err("long".into());
    }
    Ok(fs::read(&raw).unwrap())
}

fn mutate(image: &mut [u8], tables: &[Range<usize>], random: &mut Random) -> String {
    let mut what = String::new();
    for _ in 0..=random.below(2) {
        let range = &tables[random.below(tables.len() as u64) as usize];
        let span = (range.len() as u64).min(random.one_of(&[128, 1024, u64::MAX]));
        let at = range.start + random.below(span) as usize;
        let near = |random: &mut Random| random.below(64);
        let bytes = match random.below(6) {
            0 => vec![random.number() as u8],
            1 => vec![image[at] ^ (1 << random.below(8))],
            2 => (near(random) as u32).to_be_bytes().to_vec(),
            3 => (near(random) as u32).to_le_bytes().to_vec(),
            4 => vec![image[at].wrapping_add(1)],
            _ => {
                let from = range.start + random.below(span) as usize / 8 * 8;
                image[from..(from + 8).min(image.len())].to_vec()
            }
        };
        let at = if bytes.len() > 1 { at / bytes.len() * bytes.len() } else { at };
        let end = (at + bytes.len()).min(range.end);
        image[at..end].copy_from_slice(&bytes[..end - at]);
        what += &format!(" {at:#x}={bytes:x?}");
    }
    mend(image);
    what
}

fn by_qemu(driver: &str, options: &str, more: &[&str]) -> (Vec<u8>, Vec<Range<usize>>) {
    let folder = tempfile::tempdir().unwrap();
    let (raw, path) = (folder.path().join("raw"), folder.path().join("image"));
    let mut content = guest();
    content[700_000..1_900_000].fill(b'x');
    fs::write(&raw, &content).unwrap();
    let arguments = ["convert", "-f", "raw", "-O", driver, "-o", options];
    qemu_img(&[&arguments[..], more, &[text(&raw), text(&path)]].concat());
    let image = fs::read(&path).unwrap();
    let tables = match driver {
        "qcow2" => {
            let field =
                |at: usize| u64::from_be_bytes(image[at..at + 8].try_into().unwrap()) as usize;
            let l1 = field(40);
            let l2 = field(l1) & 0x00ff_ffff_ffff_fe00;
            vec![0..112, l1..l1 + 8, l2..l2 + 800, l2..l2 + 256]
        }
        "vpc" => vec![0..512, 512..1600],
        _ => vec![0..80, 512..900, 0x2a00..0x3000, image.len() - 2048..image.len()],
    };
    (image, tables)
}

/// Who made a VHD says which of two sizes counts, and qemu knows fewer of those than there are.
fn without_creators(tables: &[Range<usize>], image: &[u8]) -> Vec<Range<usize>> {
    let mut left = Vec::new();
    for range in tables {
        let creator = range.start + 28..range.start + 32;
        if image[range.clone()].starts_with(b"conectix") {
            left.extend([range.start..creator.start, creator.end..range.end]);
        } else {
            left.push(range.clone());
        }
    }
    left
}

#[test]
fn what_both_read_is_the_same_disk() {
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let (rounds, seed) = (number("SHOAL_ROUNDS", ROUNDS), number("SHOAL_SEED", 0xd1ff));
    println!("SHOAL_SEED={seed}");
    let content = guest();
    let mut bases = vec![
        ("our qcow2", "qcow2", write(&content, Target::Qcow2)),
        ("our vmdk", "vmdk", write(&content, Target::Vmdk)),
        ("our stream", "vmdk", write(&content, Target::VmdkStream)),
        ("our vhd", "vpc", write(&content, Target::Vhd)),
        ("our fixed vhd", "vpc", write(&content, Target::VhdFixed)),
        ("our vhdx", "vhdx", write(&content, Target::Vhdx)),
    ];
    for (name, driver, options, more) in [
        ("zlib qcow2", "qcow2", "cluster_size=64k", &["-c"][..]),
        ("zstd qcow2", "qcow2", "compression_type=zstd", &["-c"]),
        ("qcow2 with subclusters", "qcow2", "extended_l2=on", &[]),
        ("old qcow2", "qcow2", "compat=0.10,cluster_size=4k", &[]),
        ("vhd", "vpc", "force_size=off", &[]),
        ("vmdk", "vmdk", "zeroed_grain=on", &[]),
        ("stream", "vmdk", "subformat=streamOptimized", &[]),
    ] {
        bases.push((name, driver, by_qemu(driver, options, more)));
    }
    let mut all = 0;
    for (name, driver, (image, tables)) in bases {
        let tables = without_creators(&tables, &image);
        let (mut same, mut counts) = (0u64, BTreeMap::<String, u64>::new());
        for round in 0..rounds {
            let seed = seed.wrapping_add(round).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut changed = image.clone();
            let what = mutate(&mut changed, &tables, &mut Random(seed));
            let outcome = match (ours(changed.clone()), theirs(driver, &changed)) {
                (Ok(ours), Ok(theirs)) => {
                    assert_eq!(ours.len(), theirs.len(), "{name}:{what}");
                    let first = ours.iter().zip(&theirs).position(|(one, other)| one != other);
                    assert_eq!(first, None, "{name}:{what}");
                    same += 1;
                    continue;
                }
                (Ok(_), Err(said)) => format!("qemu refuses: {said}"),
                (Err(reason), Ok(_)) => format!("we refuse: {reason}"),
                (Err(_), Err(_)) => "both refuse".into(),
            };
            *counts.entry(outcome).or_default() += 1;
        }
        println!("{name}: {same} of {rounds} read by both; {counts:?}");
        all += same;
    }
    assert!(all > rounds, "hardly any image was left that both read: {all}");
}
