//! Each way in which a VMDK, VHD, VHDX or OVA can be unacceptable has a reason of its own.
//!
//! qcow2's stand in `hostile`, a VHDX's log in `dirty_log`.

mod images;

use images::{guest, mend, outcome, read, seal, with, write};
use shoal_formats::Target;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

fn sound(target: Target) -> Vec<u8> {
    write(&guest(), target).0
}

fn mended(mut image: Vec<u8>, at: usize, bytes: &[u8]) -> &'static str {
    image[at..at + bytes.len()].copy_from_slice(bytes);
    mend(&mut image);
    outcome(image)
}

fn word(image: &[u8], at: usize) -> usize {
    u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize
}

#[test]
fn vmdk() {
    let image = sound(Target::Vmdk);
    let end = image.len();
    let patches: [(usize, &[u8], &str); 13] = [
        (4, &[9], "unknown_version"),
        (10, &[8], "unknown_feature"),
        (10, &[1], "unknown_compression"),
        (73, b"\n\n", "malformed_header"),
        (20, &[3], "malformed_header"),
        (44, &[0, 0], "malformed_header"),
        (45, &[0xff], "malformed_header"),
        (12, &[0xff; 7], "too_large"),
        (36, &[0xff, 0xff], "too_large"),
        (28, &[0], "disk_part"),
        (56, &[0xff, 0xff, 0xff], "truncated"),
        (56, &[0], "overlapping_tables"),
        (56, &[0xff; 8], "truncated"),
    ];
    for (at, bytes, expected) in patches {
        assert_eq!(outcome(with(image.clone(), at, bytes)), expected, "at {at}");
    }
    assert_eq!(outcome(image[..end - 64 * KIB].to_vec()), "truncated");
    assert_eq!(outcome(image[..600].to_vec()), "truncated");
    // The directory, its only table, and two of its grains.
    let directory = word(&image, 56) * 512;
    let table = word(&image, directory) * 512;
    let second = image[table + 4..table + 8].to_vec();
    assert_eq!(outcome(with(image.clone(), table, &second)), "overlapping_tables");
    let own = ((directory / 512) as u32).to_le_bytes();
    assert_eq!(outcome(with(image.clone(), directory, &own)), "overlapping_tables");
    assert_eq!(outcome(with(image.clone(), table, &own)), "overlapping_tables");
    let outside = (u32::MAX).to_le_bytes();
    assert_eq!(outcome(with(image.clone(), directory, &outside)), "truncated");
    assert_eq!(outcome(with(image.clone(), table, &outside)), "truncated");
    assert_eq!(outcome(with(image.clone(), 32 * KIB, b"\x01CD001")), "ambiguous_format");
    assert_eq!(outcome(with(image.clone(), end - 512, b"conectix")), "ambiguous_format");
    // Its text.
    let find = |text: &str| image.windows(text.len()).position(|w| w == text.as_bytes()).unwrap();
    let said = |text: &str, other: &str| outcome(with(image.clone(), find(text), other.as_bytes()));
    assert_eq!(said("parentCID=ffffffff", "parentCID=12345678"), "parent");
    assert_eq!(said("\"disk.vmdk\"", "\"../d.vmdk"), "names_path");
    assert_eq!(said("SPARSE \"disk.vmdk\"", "FLAT \"disk.vmdk\"  "), "names_files");
    assert_eq!(
        said("ddb.adapterType = \"lsilogic\"", "encryption.keySafe = \"vmware\" "),
        "encrypted"
    );
    assert_eq!(
        said("ddb.adapterType = \"lsilogic\"", "encryptionKeys = \"vmware:k\" "),
        "encrypted"
    );
    assert_eq!(
        said("ddb.adapterType = \"lsilogic\"", "ddb.iofilters=\"vmwarevmcrypt\""),
        "encrypted"
    );
}

#[test]
fn a_stream_whose_grains_lie() {
    let image = sound(Target::VmdkStream);
    let mut changed = with(image.clone(), 64 * KIB, &[9]);
    let read = |image: Vec<u8>| {
        let mut disk = shoal_formats::open(Box::new(image), None).unwrap();
        disk.read(0, &mut [0; 512]).err().map_or("none", |error| error.reason())
    };
    assert_eq!(read(changed), "corrupt_tables");
    changed = with(image.clone(), 64 * KIB + 8, &[0xff; 4]);
    assert_eq!(read(changed), "corrupt_tables");
    // A byte of content: the stream's own checksum notices.
    changed = with(image.clone(), 64 * KIB + 1000, &[image[64 * KIB + 1000] ^ 1]);
    assert_eq!(read(changed), "corrupt_tables");
    assert_eq!(outcome(image[..image.len() - 512].to_vec()), "truncated");
    assert_eq!(read(image), "none");
}

#[test]
fn vhd() {
    let image = sound(Target::Vhd);
    let end = image.len();
    // Both footers say the same, or it is refused for that.
    let both =
        |at: usize, bytes: &[u8]| mended(with(image.clone(), end - 512 + at, bytes), at, bytes);
    assert_eq!(both(60, &[0, 0, 0, 4]), "parent");
    assert_eq!(both(60, &[0, 0, 0, 9]), "malformed_header");
    assert_eq!(both(12, &[0, 2]), "unknown_version");
    assert_eq!(both(48, &[0x7f]), "too_large");
    assert_eq!(both(16, &[0x7f]), "truncated");
    assert_eq!(mended(image.clone(), 68, b"other"), "malformed_header");
    // One damaged footer is no harm, two are.
    let one = with(image.clone(), 100, b"x");
    assert_eq!(outcome(one.clone()), "vhd");
    let other = with(image.clone(), end - 412, b"x");
    assert_eq!(outcome(other.clone()), "vhd");
    assert!(read(one.clone()) == guest() && read(other.clone()) == guest());
    assert_eq!(outcome(with(one.clone(), end - 412, b"x")), "malformed_header");
    assert_eq!(outcome(one[..end - 512].to_vec()), "malformed_header");
    assert_eq!(outcome(with(other, 0, b"x")), "malformed_header");
    assert_eq!(mended(image.clone(), 512, b"cxsparsf"), "malformed_header");
    assert_eq!(mended(image.clone(), 512 + 24, &[9]), "unknown_version");
    assert_eq!(mended(image.clone(), 512 + 32, &[0, 0, 0, 3]), "malformed_header");
    assert_eq!(mended(image.clone(), 512 + 32, &[0x40, 0, 0, 0]), "too_large");
    assert_eq!(mended(image.clone(), 512 + 28, &[0, 0, 0, 1]), "malformed_header");
    assert_eq!(mended(image.clone(), 512 + 16, &[0x7f]), "truncated");
    assert_eq!(mended(image.clone(), 512 + 16, &[0; 8]), "overlapping_tables");
    let first = image[1536..1540].to_vec();
    assert_eq!(outcome(with(image.clone(), 1540, &first)), "overlapping_tables");
    assert_eq!(outcome(with(image.clone(), 1536, &[0; 4])), "overlapping_tables");
    assert_eq!(outcome(with(image.clone(), 1536, &[0, 0xff, 0, 0])), "truncated");
    // Without its last footer it is still whole; without its last block it is not.
    assert_eq!(outcome(image[..end - 512].to_vec()), "vhd");
    assert_eq!(outcome(image[..end - 2 * MIB].to_vec()), "truncated");

    let fixed = sound(Target::VhdFixed);
    let bootable = with(with(fixed.clone(), 446, &[0x80, 0, 0, 0, 7]), 510, &[0x55, 0xaa]);
    assert_eq!(outcome(with(bootable, 458, &[1])), "vhd");
    let hidden = with(fixed.clone(), 0, b"QFI\xfb\0\0\0\x03");
    assert_eq!(outcome(hidden), "ambiguous_format");
    assert_eq!(outcome(fixed[512..].to_vec()), "truncated");
    // It has no copy of its footer, whatever its guest wrote.
    let end = fixed.len();
    let copied = with(fixed.clone(), 0, &fixed[end - 512..]);
    assert_eq!(outcome(copied.clone()), "vhd");
    assert_eq!(outcome(with(copied, end - 412, b"x")), "malformed_header");
    assert_eq!(outcome(with(fixed.clone(), 0, b"conectix")), "malformed_header");
    assert_eq!(outcome(with(fixed, 0, &image[..512])), "malformed_header");
}

#[test]
fn vhdx() {
    let image = sound(Target::Vhdx);
    let patches: [(usize, &[u8], &str); 16] = [
        (128 * KIB + 66, &[2], "unknown_version"),
        (192 * KIB + 8, &[0xff, 0xff], "malformed_header"),
        (192 * KIB + 16, &[0], "unknown_feature"),
        (192 * KIB + 16 + 16, &[1], "malformed_header"),
        (192 * KIB + 16 + 18, &[0, 0], "overlapping_tables"),
        (192 * KIB + 16 + 21, &[1], "truncated"),
        (192 * KIB + 48 + 18, &[0x30], "overlapping_tables"),
        (2 * MIB, b"n", "malformed_header"),
        (2 * MIB + 32, &[0], "unknown_feature"),
        (2 * MIB + 32 + 19, &[0xff], "malformed_header"),
        (2 * MIB + 64 * KIB, &[1], "malformed_header"),
        (2 * MIB + 64 * KIB + 4, &[2], "parent"),
        (2 * MIB + 64 * KIB + 16 + 6, &[1], "too_large"),
        (2 * MIB + 64 * KIB + 16 + 4, &[0xff], "malformed_header"),
        (3 * MIB, &[4], "corrupt_tables"),
        (3 * MIB, &[7], "parent"),
    ];
    for (at, bytes, expected) in patches {
        assert_eq!(mended(image.clone(), at, bytes), expected, "at {at:#x}");
    }
    let first = image[3 * MIB..3 * MIB + 8].to_vec();
    assert_eq!(outcome(with(image.clone(), 3 * MIB + 16, &first)), "overlapping_tables");
    assert_eq!(outcome(with(image.clone(), 3 * MIB + 2, &[0x10])), "overlapping_tables");
    assert_eq!(outcome(with(image.clone(), 3 * MIB + 5, &[1])), "truncated");
    assert_eq!(outcome(image[..image.len() - MIB].to_vec()), "truncated");
    assert_eq!(outcome(image[..MIB].to_vec()), "truncated");
    // One damaged copy of each is no harm, two are.
    let one = with(with(image.clone(), 128 * KIB + 9, b"x"), 192 * KIB + 9, b"x");
    assert_eq!(outcome(one.clone()), "vhdx");
    assert_eq!(outcome(with(one.clone(), 64 * KIB + 9, b"x")), "malformed_header");
    assert_eq!(outcome(with(one, 256 * KIB + 9, b"x")), "malformed_header");
    let mut equal = with(image.clone(), 64 * KIB + 8, &[1]);
    equal[64 * KIB + 16] ^= 1;
    seal(&mut equal, 64 * KIB..68 * KIB);
    assert_eq!(outcome(equal), "malformed_header");
}

#[test]
fn an_archive_in_an_archive() {
    let (image, inner) = (sound(Target::Ova), sound(Target::VmdkStream));
    // The disk stands behind a header that ends where the disk's own magic is.
    let disk = image.windows(4).position(|bytes| bytes == b"KDMV").unwrap();
    let descriptor = image[..512].to_vec();
    assert_eq!(outcome(with(image.clone(), disk, &descriptor)), "archive_not_supported");
    assert_eq!(outcome(with(image.clone(), disk, &[0; 8])), "format_mismatch");
    assert_eq!(outcome(image[..image.len() - inner.len() / 2].to_vec()), "truncated");
    assert_eq!(outcome(image), "ova");
}
