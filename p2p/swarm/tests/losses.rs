//! Who is lost, and what it costs: exact, on a virtual clock.
//!
//! `SHOAL_FUZZ_SEEDS` says how many seeds to try, from `SHOAL_FUZZ_SEED` on; a failure names its
//! seed.

mod draw;
mod lan;

use std::time::Duration;

use draw::{Draw, seeds};
use lan::{DETECTION, Lan, Number};
use shoal_content::RecipeId;
use shoal_swarm::{Tables, ranked};

const SEEDS: u64 = 4;
/// A gigabit a second, in bytes.
const GBIT: f64 = 125_000_000.0;
/// So long no swarm here takes.
const END: Duration = Duration::from_secs(300);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

fn recipe(seed: u64) -> RecipeId {
    RecipeId::of(&seed.to_be_bytes())
}

/// Cold hosts that all want the same at once.
fn cold(
    lan: &mut Lan,
    zone: &str,
    id: RecipeId,
    hosts: usize,
    chunks: u32,
    line: f64,
) -> Vec<Number> {
    let all: Vec<Number> = (0..hosts).map(|_| lan.add(zone, line)).collect();
    all.iter().for_each(|&host| lan.fetch(host, id, chunks));
    all
}

fn are_done(lan: &Lan, of: &[Number], id: RecipeId) -> bool {
    of.iter().all(|&host| lan.hosts[host].done.contains_key(&id))
}

/// Goes on until each of these hosts has so many chunks.
fn until_held(lan: &mut Lan, by: &[Number], id: RecipeId, chunks: u32) {
    lan.run_until(END, |lan| by.iter().all(|&host| lan.holds(host, id) >= chunks));
}

fn from_nodes(lan: &Lan, to: &[Number]) -> u64 {
    to.iter().map(|&host| lan.hosts[host].from_nodes).sum()
}

#[test]
fn a_dead_peer_is_replaced_within_300_ms() {
    const CHUNKS: u32 = 400;
    for line in [GBIT, 10.0 * GBIT] {
        let mut all: Vec<Duration> = Vec::new();
        for seed in seeds(SEEDS) {
            let (mut lan, mut draw, id) = (Lan::new(seed, 1, line), Draw(seed), recipe(seed));
            let mut left = cold(&mut lan, "", id, 20, CHUNKS, line);
            for _ in 0..5 {
                let share = CHUNKS / 8 + draw.below(u64::from(CHUNKS) * 3 / 4) as u32;
                until_held(&mut lan, &left, id, share);
                lan.kill(left.remove(draw.below(left.len() as u64) as usize));
            }
            lan.run_until(END, |lan| are_done(lan, &left, id));
            assert!(are_done(&lan, &left, id), "seed {seed}: somebody is stuck");
            assert_eq!(lan.orphans(), 0, "seed {seed}");
            all.append(&mut lan.replaced);
        }
        all.sort_unstable();
        assert!(all.len() > 40, "only {} chunks were asked of the dead", all.len());
        let p99 = all[(all.len() - 1) * 99 / 100];
        println!("{} replaced: p99 {p99:?}, max {:?}", all.len(), all[all.len() - 1]);
        assert!(p99 <= Duration::from_millis(300), "{p99:?} at {line} bytes a second");
    }
}

#[test]
fn one_that_stalls_and_one_with_a_hundredth_of_the_line_hold_up_nobody() {
    const CHUNKS: u32 = 512;
    const LINE: f64 = GBIT / 20.0;
    for seed in seeds(SEEDS) {
        let run = |with_them: bool| {
            let (mut lan, id) = (Lan::new(seed, 1, LINE), recipe(seed));
            if with_them {
                let stalls = lan.add("", LINE);
                lan.hosts[stalls].stalls = true;
                lan.offer(stalls, id, CHUNKS);
                let slow = lan.add("", LINE / 100.0);
                lan.fetch(slow, id, CHUNKS);
                lan.run_for(SECOND);
            }
            let began = lan.now;
            let hosts = cold(&mut lan, "", id, 12, CHUNKS, LINE);
            lan.run_until(END, |lan| are_done(lan, &hosts, id));
            assert!(are_done(&lan, &hosts, id), "seed {seed}: somebody is stuck");
            let bans: usize = hosts.iter().map(|&host| lan.hosts[host].bans.len()).sum();
            (lan.now - began, bans)
        };
        let ((whole, none), (held_up, bans)) = (run(false), run(true));
        println!("seed {seed}: {whole:?}, with them {held_up:?} and {bans} bans");
        assert!(held_up < whole.mul_f64(1.25), "seed {seed}: {whole:?} and {held_up:?}");
        assert!(none == 0 && bans > 0, "seed {seed}: {bans} banned who stalls");
    }
}

/// How long a swarm takes, with three nodes, one of which may die when a third is there.
fn spread(seed: u64, line: f64, chunks: u32, tracker_dies: bool) -> Duration {
    let (mut lan, id) = (Lan::new(seed, 3, line), recipe(seed));
    let hosts = cold(&mut lan, "", id, 16, chunks, line);
    if tracker_dies {
        until_held(&mut lan, &hosts, id, chunks / 3);
        let nodes = (0..3).map(|node| lan::contact(node).peer);
        lan.kill(lan::number(ranked(id, nodes)[0]));
    }
    lan.run_until(END, |lan| are_done(lan, &hosts, id));
    assert!(are_done(&lan, &hosts, id), "seed {seed}: somebody is stuck");
    let copies = from_nodes(&lan, &hosts) as f64 / f64::from(chunks);
    assert!(copies < 1.1, "seed {seed}: {copies} copies left the nodes");
    lan.now
}

#[test]
fn the_loss_of_the_tracker_costs_at_most_a_twentieth() {
    for seed in seeds(SEEDS) {
        // 128 MiB over 50 Mbit/s, as benches/fanout has it.
        let [whole, lost] = [false, true].map(|dies| spread(seed, GBIT / 20.0, 512, dies));
        println!("seed {seed}: {whole:?}, with the loss {lost:?}");
        assert!(lost < whole.mul_f64(1.05), "seed {seed}: {whole:?} and {lost:?}");
        // Where the line is fast, what it costs is noticing it, and not the connection's end.
        let [whole, lost] = [false, true].map(|dies| spread(seed, GBIT * 10.0, 4096, dies));
        println!("seed {seed}: {whole:?}, with the loss {lost:?}");
        assert!(lost < whole + DETECTION / 5, "seed {seed}: {whole:?} and {lost:?}");
    }
}

#[test]
fn a_zone_that_is_cut_off_for_a_minute_goes_on_inside_and_ends_after_it() {
    const CHUNKS: u32 = 512;
    for seed in seeds(SEEDS) {
        let (mut lan, id) = (Lan::new(seed, 3, GBIT / 20.0), recipe(seed));
        let near = cold(&mut lan, "eu/a/1", id, 8, CHUNKS, GBIT / 20.0);
        let cut = cold(&mut lan, "eu/b/1", id, 8, CHUNKS, GBIT / 20.0);
        until_held(&mut lan, &cut, id, CHUNKS / 3);
        let held = |lan: &Lan| cut.iter().map(|&host| lan.holds(host, id)).sum::<u32>();
        let before = held(&lan);
        lan.cut("eu/b/1");
        lan.run_for(MINUTE);
        assert!(are_done(&lan, &near, id), "seed {seed}: the others wait for who is cut off");
        assert!(!are_done(&lan, &cut, id), "seed {seed}: nothing was cut");
        assert!(held(&lan) > before, "seed {seed}: who is cut off has nothing of each other");
        lan.mend();
        let mended = lan.now;
        lan.run_until(END, |lan| are_done(lan, &cut, id));
        assert!(are_done(&lan, &cut, id), "seed {seed}: somebody is stuck");
        println!("seed {seed}: {:?} after the minute", lan.now - mended);
        assert!(lan.now - mended < MINUTE, "seed {seed}: {:?} after it", lan.now - mended);
        for host in near.iter().chain(&cut) {
            let bans = &lan.hosts[*host].bans;
            assert!(bans.is_empty(), "seed {seed}: {bans:?} for being cut off");
        }
        let copies = from_nodes(&lan, &[near, cut].concat()) as f64 / f64::from(CHUNKS);
        assert!(copies < 1.5, "seed {seed}: {copies} copies left the nodes");
    }
}

#[test]
fn a_quarter_that_is_killed_and_comes_back_gets_what_it_lacks() {
    const CHUNKS: u32 = 512;
    for seed in seeds(SEEDS) {
        let (mut lan, id) = (Lan::new(seed, 3, GBIT), recipe(seed));
        let hosts = cold(&mut lan, "", id, 16, CHUNKS, GBIT);
        until_held(&mut lan, &hosts, id, CHUNKS / 2);
        let mut draw = Draw(seed);
        let first = draw.below(hosts.len() as u64) as usize;
        let quarter: Vec<Number> = (0..4).map(|at| hosts[(first + at * 3) % hosts.len()]).collect();
        quarter.iter().for_each(|&host| lan.kill(host));
        lan.run_for(SECOND / 4);
        for &host in &quarter {
            lan.revive(host);
            lan.fetch(host, id, CHUNKS);
        }
        lan.run_until(END, |lan| are_done(lan, &hosts, id));
        assert!(are_done(&lan, &hosts, id), "seed {seed}: somebody is stuck");
        assert!(hosts.iter().all(|&host| lan.hosts[host].bans.is_empty()), "seed {seed}");
        let copies = from_nodes(&lan, &hosts) as f64 / f64::from(CHUNKS);
        println!("seed {seed}: {:?}, {copies:.3} copies left the nodes", lan.now);
        assert!(copies < 1.25, "seed {seed}: {copies} copies left the nodes");
    }
}

/// Guests come each minute, each fetches something of late, and most go without a word; one host
/// stays, and drops what is old.
#[test]
fn a_day_of_churn_leaves_nothing_behind() {
    const CHUNKS: u32 = 64;
    const HOURS_KEPT: u64 = 3;
    const GUESTS: usize = 5;
    let mut lan = Lan::new(7, 2, GBIT);
    let resident = lan.add("", GBIT);
    let (mut draw, mut guests) = (Draw(7), Vec::new());
    for minute in 0..24 * 60 {
        let hour = u64::from(minute / 60);
        if minute % 60 == 0 {
            lan.fetch(resident, recipe(hour), CHUNKS);
            if let Some(old) = hour.checked_sub(HOURS_KEPT) {
                lan.drop_recipe(resident, recipe(old));
            }
        }
        let guest = lan.add("", GBIT);
        let wanted = recipe(hour - draw.below(hour.min(HOURS_KEPT - 1) + 1));
        lan.fetch(guest, wanted, CHUNKS);
        guests.push(guest);
        // Some are there for less time than they would need.
        lan.run_for(Duration::from_millis(draw.below(2) * 150));
        if draw.below(4) == 0 {
            lan.kill(guest);
        }
        if guests.len() > GUESTS {
            let goes = guests.remove(draw.below(GUESTS as u64) as usize);
            if draw.below(2) == 0 { lan.leave(goes) } else { lan.kill(goes) }
        }
        lan.run_until(MINUTE * (minute + 1), |_| false);
        let stays = lan.hosts[resident].core.tables();
        let all = [stays.peers, stays.redials, stays.requests, stays.sources, stays.swarms];
        // Those who are there, those who went a moment ago, and what they have in each recipe.
        assert!(all.iter().all(|&count| count <= 8 * (GUESTS + 2)), "minute {minute}: {stays:?}");
    }
    let fetched = guests.iter().filter(|&&guest| !lan.hosts[guest].done.is_empty()).count();
    assert!(fetched > 0, "nobody got anything: nothing was tried");
    guests.into_iter().for_each(|guest| lan.kill(guest));
    lan.run_for(MINUTE * 20);
    let Tables { peers, recipes, redials, members, .. } = lan.hosts[resident].core.tables();
    assert_eq!((peers, recipes, members), (2, HOURS_KEPT as usize, 0));
    assert!(redials <= GUESTS, "{redials}");
    let left = Tables { peers, recipes, redials, ..Tables::default() };
    assert_eq!(lan.hosts[resident].core.tables(), left, "only offers are left");
    for hour in 24 - HOURS_KEPT..24 {
        lan.drop_recipe(resident, recipe(hour));
    }
    lan.run_for(SECOND);
    for node in 0..2 {
        let tables = lan.hosts[node].core.tables();
        let left = Tables { peers: 1, redials: tables.redials, ..Tables::default() };
        assert_eq!(tables, left, "node {node} remembers who is gone");
        assert!(tables.redials <= GUESTS, "{tables:?}");
    }
}
