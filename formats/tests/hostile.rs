//! Images made to mislead: damaged tables, and bytes that belong to another format.
//!
//! Invariant held here: no image makes a reader panic, loop, or read what is not its own.
//! Non-goal: whether sound images are read rightly; see `qemu`.

use std::sync::Arc;

use proptest::prelude::*;
use shoal_content::PackId;
use shoal_formats::{DiskIngest, Export, Format, OpenError, SinkError, open};

const DISK_BYTES: usize = 3 << 20;
/// Bytes read at each extent: enough to follow a pointer.
const LOOK_BYTES: u64 = 128 * 1024;
/// More extents than a disk of this kind has, whatever its tables say.
const EXTENTS_MAX: usize = 200_000;

fn reason(image: Vec<u8>, hint: Option<Format>) -> &'static str {
    match open(Box::new(image), hint) {
        Ok(disk) => disk.format().as_str(),
        Err(error) => error.reason(),
    }
}

/// A sound qcow2 of a disk with data, holes and data.
fn qcow2() -> Vec<u8> {
    let mut guest = vec![0; DISK_BYTES];
    blake3::Hasher::new().update(b"a").finalize_xof().fill(&mut guest[..300_000]);
    blake3::Hasher::new().update(b"b").finalize_xof().fill(&mut guest[2_000_000..2_200_000]);
    let mut disk = open(Box::new(guest.clone()), Some(Format::Raw)).unwrap();
    let sink = |_: PackId, _: Vec<u8>| -> Result<(), SinkError> { Ok(()) };
    let ingested = DiskIngest::new(sink)
        .run(&mut *disk, &mut |_| None, &mut |_| std::ops::ControlFlow::Continue(()))
        .unwrap();
    let export = Export::new(Format::Qcow2, Arc::new(ingested.recipe)).unwrap();
    let mut image = vec![0; export.len() as usize];
    let mut content = |at: u64, buf: &mut [u8]| {
        let at = at as usize;
        buf.copy_from_slice(&guest[at..at + buf.len()]);
        Ok(())
    };
    export.read_at(0, &mut image, &mut content).unwrap();
    image
}

fn with(mut image: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    image[at..at + bytes.len()].copy_from_slice(bytes);
    image
}

#[test]
fn known_formats_are_never_taken_for_raw() {
    let starts: [(&[u8], &str); 10] = [
        (b"KDMV", "unknown_version"),
        (b"# Disk DescriptorFile\nversion=1\n", "names_files"),
        (b"COWD", "vmdk_cowd_not_supported"),
        (b"\xbe\xba\xfe\xca\0\0\0\0", "vmdk_sesparse_not_supported"),
        (b"conectix", "malformed_header"),
        (b"vhdxfile", "truncated"),
        (b"QED\0", "qed_not_supported"),
        (b"LUKS\xba\xbe", "luks_not_supported"),
        (b"QFI\xfb\0\0\0\x01", "qcow1_not_supported"),
        (b"QFI\xfb\0\0\0\x04", "unknown_version"),
    ];
    for (start, expected) in starts {
        assert_eq!(reason(with(vec![0; 8192], 0, start), None), expected);
        assert_eq!(reason(with(vec![0; 8192], 0, start), Some(Format::Raw)), "format_mismatch");
    }
    let fixed_vhd = with(vec![0; 8192], 8192 - 512, b"conectix");
    assert_eq!(reason(fixed_vhd, None), "malformed_header");
    assert_eq!(reason(b"anything else".to_vec(), None), "raw");
    assert_eq!(reason(Vec::new(), None), "raw");
}

#[test]
fn what_only_resembles_a_format_is_raw() {
    let starts: [&[u8]; 8] = [
        b"QFI\xfa\0\0\0\x03",
        b"KDM",
        b"VMDK",
        b"cowd",
        b"# Disk Descriptor\nwrite=1\n",
        b"conectiy",
        b"vhdxfil\0",
        b"disk.vmdk",
    ];
    for start in starts {
        assert_eq!(reason(with(vec![0; 8192], 0, start), None), "raw", "{start:?}");
    }
    // One sector before the end, one byte behind it, and in the middle.
    for at in [8192 - 1024, 8192 - 510, 4096] {
        assert_eq!(reason(with(vec![0; 8192], at, b"conectix"), None), "raw", "{at}");
    }
}

/// As isohybrid makes it: a boot sector, a GPT and an ISO's descriptor.
#[test]
fn an_iso_that_starts_from_disks_as_well_is_raw() {
    let mut image = with(vec![0; 128 * 1024], 32 * 1024, b"\x01CD001");
    image[446..462].copy_from_slice(&[0x80, 0, 1, 0, 0x17, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]);
    image[510..512].copy_from_slice(&[0x55, 0xaa]);
    image[512..520].copy_from_slice(b"EFI PART");
    for hint in [None, Some(Format::Raw)] {
        assert_eq!(reason(image.clone(), hint), "raw");
    }
    assert_eq!(reason(image, Some(Format::Qcow2)), "format_mismatch");
}

#[test]
fn two_formats_at_once_are_refused() {
    let image = qcow2();
    let end = image.len();
    assert_eq!(reason(with(image.clone(), end - 512, b"conectix"), None), "ambiguous_format");
    assert_eq!(reason(with(image.clone(), 32 * 1024, b"\x01CD001"), None), "ambiguous_format");
    // With clusters of 4 KiB the same place belongs to the guest; other rules refuse this header.
    let small = with(with(image.clone(), 32 * 1024, b"\x01CD001"), 20, &12u32.to_be_bytes());
    assert_ne!(reason(small, None), "ambiguous_format");
    assert_eq!(reason(image, None), "qcow2");
}

#[test]
fn each_header_field_that_lies_has_its_own_reason() {
    let image = qcow2();
    let patches: [(usize, &[u8], &str); 9] = [
        (8, &[0, 0, 0, 0, 0, 0, 2, 0], "backing_file"),
        (32, &[0, 0, 0, 1], "encrypted"),
        (20, &[0, 0, 0, 30], "malformed_header"),
        (24, &[0x7f; 8], "too_large"),
        (36, &[0xff; 4], "too_large"),
        (72, &[0, 0, 0, 0, 0, 0, 0, 4], "data_file"),
        (72, &[0, 0, 0, 0, 0, 0, 0, 2], "marked_corrupt"),
        (72, &[0, 0, 0, 0, 0, 0, 1, 0], "unknown_feature"),
        (104, &[9], "unknown_compression"),
    ];
    for (at, bytes, expected) in patches {
        assert_eq!(reason(with(image.clone(), at, bytes), None), expected, "at {at}");
    }
    // A name's length without a name.
    assert_eq!(reason(with(image.clone(), 16, &[0, 0, 0, 9]), None), "qcow2");
    assert_eq!(reason(image[..100].to_vec(), None), "truncated");
    assert_eq!(reason(image[..image.len() - 65_536].to_vec(), None), "truncated");
}

/// Cluster 3 holds the L1 table and cluster 4 its only L2 table: see the writer's layout.
#[test]
fn tables_that_loop_or_share_a_cluster_are_refused() {
    let image = qcow2();
    let l1 = 3 * 65_536;
    let to_itself = with(image.clone(), l1, &(l1 as u64).to_be_bytes());
    assert_eq!(reason(to_itself, None), "overlapping_tables");
    let second = image[l1 + 65_536 + 8..][..8].to_vec();
    let twice = with(image, l1 + 65_536, &second);
    assert_eq!(reason(twice, None), "overlapping_tables");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn damage_never_panics_or_loops(
        // The header, the L1 table, the L2 table.
        flips in proptest::collection::vec(
            (prop_oneof![0..112usize, 196_608..196_624usize, 262_144..262_544usize], any::<u8>()),
            1..6,
        ),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut image = qcow2();
        for (at, value) in flips {
            image[at] = value;
        }
        if let Some(cut) = cut {
            image.truncate(cut.index(image.len() + 1));
        }
        match open(Box::new(image), None) {
            Err(error) => prop_assert!(matches!(error, OpenError::Refused(_)), "{error}"),
            Ok(mut disk) => {
                let (mut at, mut extents) = (0, 0);
                while at < disk.virtual_bytes() && extents < EXTENTS_MAX {
                    let Ok(extent) = disk.next_extent(at) else { break };
                    prop_assert!(extent.length > 0 && extent.offset == at);
                    let mut look = vec![0; extent.length.min(LOOK_BYTES) as usize];
                    // Data may be broken; what matters is that it ends.
                    let _ = disk.read(at, &mut look);
                    at += extent.length;
                    extents += 1;
                }
                prop_assert!(extents < EXTENTS_MAX);
            }
        }
    }
}

/// Taken for a raw disk, it would be noise to its guest.
#[test]
fn a_compressed_file_is_a_disk_only_where_that_is_said() {
    let signs: [&[u8]; 7] = [
        b"\x1f\x8b\x08\x08",
        b"\xfd7zXZ\0\0\x04",
        b"\x28\xb5\x2f\xfd\x04",
        b"PK\x03\x04\x14",
        b"7z\xbc\xaf\x27\x1c",
        b"Rar!\x1a\x07\x01",
        b"BZh91AY&SY",
    ];
    for sign in signs {
        let mut image = sign.to_vec();
        image.resize(4096, 7);
        assert_eq!(reason(image.clone(), None), "archive_not_supported", "{sign:?}");
        let declared = reason(image.clone(), Some(Format::Qcow2));
        assert_eq!(declared, "format_mismatch", "{sign:?}");
        let mut disk = open(Box::new(image.clone()), Some(Format::Raw)).unwrap();
        let mut seen = vec![0; image.len()];
        disk.read(0, &mut seen).unwrap();
        assert!(disk.format() == Format::Raw && seen == image, "{sign:?}");
        // One byte of it less is no sign.
        let mut other = image;
        other[sign.len().min(4) - 2] ^= 0xff;
        assert_eq!(reason(other, None), "raw", "{sign:?}");
    }
}
