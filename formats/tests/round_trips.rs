//! What a guest wrote survives any way through the formats.

mod images;

use images::{Random, guest, noise, read, recipe, write};
use sha2::{Digest, Sha256};
use shoal_formats::Target;

/// A disk with writes of any length anywhere, some of them zero.
fn scribbled(random: &mut Random) -> Vec<u8> {
    let mut guest = vec![0; 512 * random.below(12_000) as usize];
    for number in 0..random.below(12) {
        let at = random.below(guest.len() as u64) as usize;
        let most = (guest.len() - at) as u64;
        let longest = random.one_of(&[600, 70_000, 3_000_000]);
        let length = random.below(longest.min(most)) as usize;
        let bytes = match random.below(4) {
            0 => vec![0; length],
            _ => noise(random.number() ^ number, length),
        };
        guest[at..at + length].copy_from_slice(&bytes);
    }
    guest
}

#[test]
fn random_writes_survive_every_pair_of_formats() {
    let seed = std::env::var("SHOAL_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or(0x5eed_0001_u64);
    println!("SHOAL_SEED={seed}");
    let mut random = Random(seed);
    for first in Target::ALL {
        for second in Target::ALL {
            let guest = scribbled(&mut random);
            let (once, _) = write(&guest, first);
            let there = read(once);
            assert!(there == guest, "{first} lost something");
            let (twice, _) = write(&there, second);
            assert!(read(twice) == guest, "{first} to {second} lost something");
        }
    }
}

#[test]
fn a_disk_has_one_recipe_whatever_it_came_in() {
    let guest = scribbled(&mut Random(7));
    let expected = recipe(&guest);
    for target in Target::ALL {
        let (image, _) = write(&guest, target);
        assert_eq!(recipe(&read(image)), expected, "{target}");
    }
}

/// Manifests of published disks name this digest: another one makes their files unreadable.
#[test]
fn a_disk_is_written_as_the_same_qcow2_for_ever() {
    let (image, _) = write(&guest(), Target::Qcow2);
    let digest = Sha256::digest(&image);
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        (image.len(), digest.as_str()),
        (917_504, "de68e5acd220be18a8be383e8a46d5bb000683805d00a5ae8513c5d80ae7270b")
    );
}
