//! Where images say that guest bytes stand, there they stand.

mod images;
mod judge;

use std::fs;
use std::ops::ControlFlow;

use images::{guest, write};
use judge::{run, text};
use shoal_formats::{CheckError, Stored, Target, check_references, open};

/// Holds what the image says of all of its disk against the image; answers how many guest bytes
/// stand in it as they are, and how many have to be decompressed.
fn held(image: &[u8], guest: &[u8]) -> (u64, u64) {
    let mut disk = open(Box::new(image.to_vec()), None).unwrap();
    let end = disk.virtual_bytes();
    let mut seen = vec![0; end as usize];
    disk.read(0, &mut seen).unwrap();
    assert!(seen[..guest.len()] == *guest && seen[guest.len()..].iter().all(|&byte| byte == 0));
    let (mut at, mut plain, mut packed) = (0, 0, 0);
    while at < end {
        let extent = disk.next_stored(at).unwrap();
        assert!(extent.offset == at && extent.length > 0, "{extent:?}");
        let part = &seen[at as usize..(at + extent.length) as usize];
        match extent.stored {
            Stored::Zero { .. } => assert!(part.iter().all(|&byte| byte == 0), "{extent:?}"),
            Stored::At(place) => {
                let place = place as usize;
                assert!(image[place..place + part.len()] == *part, "{extent:?}");
                plain += extent.length;
            }
            Stored::Packed => packed += extent.length,
        }
        at += extent.length;
    }
    assert_eq!(at, end);
    (plain, packed)
}

#[test]
fn every_format_says_where_its_content_stands() {
    let guest = guest();
    // What is written of it is at least the noise.
    let least = 500_000;
    for target in Target::ALL {
        let (image, _) = write(&guest, target);
        let (plain, packed) = held(&image, &guest);
        match target {
            Target::VmdkStream | Target::Ova => assert!(plain == 0 && packed >= least, "{target}"),
            _ => assert!(packed == 0 && plain >= least, "{target}: {plain}"),
        }
    }
}

#[test]
fn in_an_archive_the_place_is_the_archive_s() {
    let guest = guest();
    let folder = tempfile::tempdir().unwrap();
    let (image, _) = write(&guest, Target::Vmdk);
    fs::write(folder.path().join("disk.vmdk"), image).unwrap();
    let archive = folder.path().join("disk.tar");
    for kind in ["v7", "oldgnu", "gnu", "ustar", "pax"] {
        let kind = format!("--format={kind}");
        run("tar", &[&kind, "-cf", text(&archive), "-C", text(folder.path()), "disk.vmdk"]);
        let (plain, packed) = held(&fs::read(&archive).unwrap(), &guest);
        assert!(packed == 0 && plain >= 500_000, "{kind}: {plain} plain, {packed} packed");
    }
}

#[test]
fn counting_references_ends_at_any_table_where_somebody_wants_an_end() {
    let (image, _) = write(&guest(), Target::Qcow2);
    let mut asked = 0;
    let mut proceed = || {
        asked += 1;
        ControlFlow::Continue(())
    };
    check_references(&image, &mut proceed).unwrap();
    assert!(asked > 2, "{asked}");
    for last in 0..asked {
        let mut left = last;
        let mut proceed = || match left {
            0 => ControlFlow::Break(()),
            _ => {
                left -= 1;
                ControlFlow::Continue(())
            }
        };
        let ended = check_references(&image, &mut proceed);
        assert!(matches!(ended, Err(CheckError::Cancelled)), "after {last}: {ended:?}");
    }
}
