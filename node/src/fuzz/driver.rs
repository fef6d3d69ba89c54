//! Drives the targets with mutations of their seeds. The same seed makes the same inputs.
//!
//! `SHOAL_FUZZ_TARGET`, `SHOAL_FUZZ_SECONDS` and `SHOAL_FUZZ_SEED` choose what, how long and whence;
//! without them, every target gets [`ROUNDS`] inputs.

use std::env::var;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{TARGETS, Target, seeds};

const ROUNDS: u64 = 4000;
const SEED: u64 = 0x5eed;
/// Inputs grow no longer.
const INPUT_BYTES_MAX: usize = 64 * 1024;
/// Mutations laid over each other.
const MUTATIONS_MAX: usize = 8;
/// What lengths and numbers are replaced by: the ends of their types, and of postcard's integers.
const EDGES: [&[u8]; 8] = [
    &[0],
    &[0xff],
    &[0x7f],
    &[0xff, 0xff, 0xff, 0xff, 0x0f],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
    &[0xff; 8],
    b"18446744073709551615",
    b"-1",
];

fn mutated(random: &mut StdRng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut input = seeds[random.random_range(0..seeds.len())].clone();
    for _ in 0..random.random_range(1..=MUTATIONS_MAX) {
        let at = random.random_range(0..=input.len());
        let to = (at + random.random_range(0..32)).min(input.len());
        match random.random_range(0..7) {
            0 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
            1 if at < input.len() => input[at] = random.random(),
            2 => input.insert(at, random.random()),
            3 => drop(input.drain(at..to)),
            4 => {
                let again = input[at..to].to_vec();
                input.splice(at..at, again);
            }
            5 => {
                let edge = EDGES[random.random_range(0..EDGES.len())];
                let over = (at + edge.len()).min(input.len());
                input.splice(at..over, edge.iter().copied());
            }
            _ => {
                let other = &seeds[random.random_range(0..seeds.len())];
                let from = random.random_range(0..=other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
        }
    }
    input.truncate(INPUT_BYTES_MAX);
    input
}

fn drive(name: &str, target: Target, seed: u64, seconds: Option<u64>) {
    let seeds = seeds::of(name);
    assert!(!seeds.is_empty(), "{name} has no seeds");
    let run = |input: &[u8]| {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(input))) {
            eprintln!("target {name}, seed {seed}, input {}", hex::encode(input));
            resume_unwind(panic);
        }
    };
    seeds.iter().for_each(|seed| run(seed));
    let until = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut random = StdRng::seed_from_u64(seed);
    let mut inputs = 0;
    while until.map_or(inputs < ROUNDS, |until| Instant::now() < until) {
        run(&mutated(&mut random, &seeds));
        inputs += 1;
    }
    println!("target {name}, seed {seed}: {inputs} inputs");
}

#[test]
fn no_input_brings_a_parser_down() {
    let number = |name: &str| var(name).ok().and_then(|text| text.parse().ok());
    let (seed, seconds) = (number("SHOAL_FUZZ_SEED").unwrap_or(SEED), number("SHOAL_FUZZ_SECONDS"));
    let wanted = var("SHOAL_FUZZ_TARGET").ok().filter(|name| !name.is_empty());
    let targets = TARGETS.iter().filter(|(name, _)| wanted.as_ref().is_none_or(|it| it == name));
    let driven = targets.map(|(name, target)| drive(name, *target, seed, seconds)).count();
    assert!(driven > 0, "there is no target {wanted:?}");
}

/// Seeds that are refused at the door would show nothing of what is behind it.
#[test]
fn seeds_of_tokens_backups_and_settings_are_good_ones() {
    use super::credentials::{AUDIENCE, NOW, key};
    let tokens = seeds::of("authorization");
    let held = tokens.iter().filter(|seed| {
        let text = String::from_utf8_lossy(seed);
        let token = text.strip_prefix("Bearer ").unwrap_or_default();
        crate::http::auth::fuzzed::holds(token, key().peer_id(), AUDIENCE, NOW)
    });
    assert_eq!(held.count(), 2);
    for seed in seeds::of("backup") {
        let mut reader = shoal_formats::backup::Reader::new(seed.as_slice()).unwrap();
        while reader.next_frame().unwrap().is_some() {}
    }
    let whole = seeds::of("settings").pop().unwrap();
    crate::config::Config::parse(&String::from_utf8(whole).unwrap()).unwrap();
}

/// A driver that changes nothing, or breaks everything, finds nothing.
#[test]
fn good_inputs_are_accepted_and_most_mutations_are_not() {
    let seeds = seeds::of("checkpoint");
    let accepted = |input: &[u8]| crate::registry::fuzzed::decode_checkpoint(input).is_some();
    assert!(seeds.iter().all(|seed| accepted(seed)));
    let mut random = StdRng::seed_from_u64(SEED);
    let inputs: Vec<Vec<u8>> = (0..200).map(|_| mutated(&mut random, &seeds)).collect();
    assert!(inputs.iter().filter(|input| !accepted(input)).count() > 100);
    let mut again = StdRng::seed_from_u64(SEED);
    assert!(inputs.iter().all(|input| *input == mutated(&mut again, &seeds)));
}
