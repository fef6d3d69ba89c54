//! Frames from strangers: bytes at random, and good frames bent at random.
//!
//! `SHOAL_FUZZ_SEEDS` says how many seeds to try, from `SHOAL_FUZZ_SEED` on; a failure names its
//! seed. Always checked: nothing panics; what is let through is within every limit, and reads the
//! same once written again.

mod draw;

use draw::{Draw, seeds};
use shoal_content::{PeerId, RecipeId};
use shoal_swarm::frames::{
    Ask, ChunkRange, Contact, FRAME_BYTES_MAX, Frame, Limits, Member, VERSION, decode, encode,
};

const SEEDS: u64 = 20_000;

fn samples() -> Vec<Vec<u8>> {
    let recipe = RecipeId::of(b"r");
    let peer = PeerId::from_public_key([7; 32]);
    let contact = Contact { peer, address: ([10, 0, 0, 1], 9).into() };
    let member = Member { contact, zone: "eu/a/1".parse().unwrap(), cache: true };
    let chunks: Vec<_> = (0..40).map(|n| ChunkRange { start: n * 1000, count: n }).collect();
    let frames = [
        Frame::Hello { address: contact.address, zone: member.zone.clone(), cache: false },
        Frame::Have { recipe, chunks: chunks.clone() },
        Frame::Claim { recipe, chunks },
        Frame::Map { recipe, start: 8, bits: vec![0xa5; 200] },
        Frame::Announce { recipe },
        Frame::Peers { recipe, members: vec![member.clone(); 5] },
        Frame::Heads { recipe, whole: vec![member.clone(); 3], room: vec![member; 2] },
        Frame::Free,
        Frame::Pass,
        Frame::Leave { recipe },
    ];
    let asks = [Ask::Chunks { recipe, indices: vec![1, 5, 1 << 30], insists: true }];
    let frames = frames.iter().map(|frame| encode(frame).unwrap());
    frames.chain(asks.iter().map(|ask| encode(ask).unwrap())).collect()
}

/// Whether it was let through as anything.
fn check(seed: u64, bytes: &[u8]) -> bool {
    let frame = decode::<Frame>(bytes);
    if let Ok(frame) = &frame {
        assert!(frame.within_limits(), "seed {seed}: {frame:?}");
        let again = encode(frame).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(decode::<Frame>(&again).as_ref(), Ok(frame), "seed {seed}");
    }
    let ask = decode::<Ask>(bytes);
    if let Ok(ask) = &ask {
        assert!(ask.within_limits(), "seed {seed}: {ask:?}");
        let again = encode(ask).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(decode::<Ask>(&again).as_ref(), Ok(ask), "seed {seed}");
    }
    frame.is_ok() || ask.is_ok()
}

fn bent(draw: &mut Draw, samples: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = if draw.below(4) == 0 {
        let length = draw.below(400);
        (0..length).map(|_| draw.below(256) as u8).collect()
    } else {
        samples[draw.below(samples.len() as u64) as usize].clone()
    };
    for _ in 0..draw.below(6) {
        let at = draw.below(bytes.len() as u64 + 1) as usize;
        match draw.below(4) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, draw.below(256) as u8),
            // The biggest number that a length may pretend to be.
            2 => drop(bytes.splice(at..at, [0xff, 0xff, 0xff, 0xff, 0x0f])),
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << draw.below(8);
                }
            }
        }
    }
    if let Some(version) = bytes.first_mut().filter(|_| draw.below(8) != 0) {
        *version = VERSION;
    }
    bytes
}

#[test]
fn bytes_of_strangers_are_refused_or_within_every_limit() {
    let samples = samples();
    let (mut read, mut refused) = (0, 0);
    for seed in seeds(SEEDS) {
        if check(seed, &bent(&mut Draw(seed), &samples)) {
            read += 1;
        } else {
            refused += 1;
        }
    }
    assert!(read > 0 && refused > 0, "{read} read, {refused} refused: one side was never tried");
    assert!(!check(0, &vec![VERSION; FRAME_BYTES_MAX + 1]));
}
