//! Lines that are faster than disks: what this host's own disk holds up is nobody else's fault, and is
//! not fetched again.
//!
//! `SHOAL_FUZZ_SEEDS` says how many seeds to try, from `SHOAL_FUZZ_SEED` on; a failure names its
//! seed.

mod draw;
mod lan;

use std::time::Duration;

use draw::seeds;
use lan::{Disk, Lan, Number};
use shoal_content::RecipeId;
use shoal_swarm::Wait;

const SEEDS: u64 = 4;
/// Ten gigabits a second, in bytes, at latencies of a tenth of a millisecond.
const LINE: f64 = 1_250_000_000.0;
const CHUNKS: u32 = 800;
const HOSTS: usize = 8;
/// So long no swarm here takes.
const END: Duration = Duration::from_secs(300);
/// Of all chunks, so many may come twice.
const DOUBLES_MAX: f64 = 0.02;
/// The same where all disks pause, so that all hosts ask for the last chunks at once.
const DOUBLES_PAUSING_MAX: f64 = 0.05;

/// Runs a cold swarm whose hosts have such disks; gives the share of chunks that came twice.
fn doubles(seed: u64, disk: Option<Disk>) -> f64 {
    let (mut lan, id) = (Lan::new(seed, 1, LINE), RecipeId::of(&seed.to_be_bytes()));
    let hosts: Vec<Number> = (0..HOSTS).map(|_| lan.add("", LINE)).collect();
    for &host in &hosts {
        lan.hosts[host].disk = disk;
        lan.fetch(host, id, CHUNKS);
    }
    let done = |lan: &Lan| hosts.iter().all(|&host| lan.hosts[host].done.contains_key(&id));
    lan.run_until(END, done);
    assert!(done(&lan), "seed {seed}: somebody is stuck");
    let all = hosts.iter().map(|&host| &lan.hosts[host]);
    assert!(all.clone().all(|host| host.bans.is_empty()), "seed {seed}: somebody is blamed");
    let doubles: u64 = all.map(|host| host.doubles).sum();
    let share = doubles as f64 / (HOSTS as f64 * f64::from(CHUNKS));
    println!("seed {seed}: {:.2} % came twice, in {:?}", share * 100.0, lan.now);
    share
}

#[test]
fn little_comes_twice_where_lines_are_fast() {
    for seed in seeds(SEEDS) {
        let share = doubles(seed, None);
        assert!(share <= DOUBLES_MAX, "seed {seed}: {share} of all chunks came twice");
    }
}

#[test]
fn a_transfer_says_that_it_waits_for_its_own_disk() {
    let (mut lan, id) = (Lan::new(1, 1, LINE), RecipeId::of(b"waits"));
    let host = lan.add("", LINE);
    assert_eq!(lan.hosts[host].core.waits_for(id), None);
    lan.hosts[host].disk = Some(Disk::pausing(32, Duration::from_secs(1)));
    lan.fetch(host, id, CHUNKS);
    assert_eq!(lan.hosts[host].core.waits_for(id), Some(Wait::Sources));
    lan.run_for(Duration::from_millis(500));
    assert!((1..CHUNKS).contains(&lan.holds(host, id)));
    assert_eq!(lan.hosts[host].core.waits_for(id), Some(Wait::Disk));
    lan.run_until(END, |lan| lan.hosts[host].done.contains_key(&id));
    assert_eq!(lan.hosts[host].core.waits_for(id), None);
}

#[test]
fn a_disk_that_pauses_for_a_sync_has_little_asked_twice_and_nobody_blamed() {
    for seed in seeds(SEEDS) {
        // 8 MiB between two syncs; a second is longer than who stalls is waited for.
        for pause in [60, 1200].map(Duration::from_millis) {
            let share = doubles(seed, Some(Disk::pausing(32, pause)));
            assert!(share <= DOUBLES_PAUSING_MAX, "seed {seed}: {share} of all chunks came twice");
        }
    }
}
