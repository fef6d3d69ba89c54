//! Swarms small enough for every run of the tests; `./dev simulate` has the big ones.
//!
//! The bounds asserted are looser than what is measured, so that only a change for the worse
//! fails. A report prints its seed.

use shoal_simulation::{Report, Scenario, simulate};

fn scenario(name: &str, peers: usize, mib: u64) -> Scenario {
    let found = Scenario::named(name).unwrap_or_else(|| panic!("no scenario {name}"));
    Scenario { peers, bytes: mib << 20, ..found }
}

fn run(scenario: Scenario) -> Report {
    let report = simulate(scenario);
    println!("{}\n{report}", Report::heading());
    assert_eq!(report.unfinished, 0, "seed {}: hosts are stuck", report.seed);
    report
}

#[test]
fn a_thousand_cold_hosts_take_about_one_copy_from_the_node() {
    let report = run(scenario("flat", 1000, 24));
    assert!(report.origin_copies < 1.2, "{report}");
    // A tenth of the content that the target is set for: the start weighs ten times as much.
    assert!(report.quantile(0.99) < 2.5, "{report}");
    assert!(report.fairness > 0.8, "{report}");
    assert!(report.control < 0.01, "{report}");
}

#[test]
fn thirty_two_hosts_are_near_the_bound() {
    let report = run(scenario("hosts32", 32, 128));
    assert!(report.quantile(0.5) < 1.15 && report.quantile(1.0) < 1.3, "{report}");
    assert!(report.origin_copies < 1.1, "{report}");
}

#[test]
fn about_one_copy_crosses_the_line_of_each_zone() {
    let report = run(Scenario { zones: 5, ..scenario("zones", 100, 100) });
    assert!(report.zone_copies.0 < 1.03 && report.zone_copies.1 < 1.1, "{report}");
    assert!(report.quantile(0.99) < 1.4, "{report}");
}

#[test]
fn heads_find_each_other_among_more_members_than_anybody_remembers() {
    let report = run(Scenario { zones: 5, ..scenario("zones", 300, 40) });
    assert!(report.quantile(0.5) < 2.0 && report.quantile(0.99) < 2.2, "{report}");
    assert!(report.zone_copies.0 < 1.03, "{report}");
}

#[test]
fn a_head_that_is_banned_is_not_waited_for() {
    // So little content that the time that a head is given to come is forty times the bound.
    let report = run(scenario("hard", 300, 16));
    assert!(report.quantile(0.99) < 25.0, "{report}");
}

#[test]
fn a_head_that_crashes_costs_its_zone_no_second_copy() {
    // The whole is over in a fiftieth of the time after which its connections break.
    let report = run(Scenario { seed: 3, ..scenario("hard", 300, 60) });
    assert!(report.zone_copies.0 < 1.01 && report.zone_copies.1 < 1.1, "{report}");
}

#[test]
fn a_mesh_that_forms_later_than_the_content_comes_costs_the_nodes_no_second_copy() {
    for chunks in [5, 48, 300] {
        let found = scenario("late-mesh", 4, 1);
        let bytes = chunks * u64::from(found.chunk_bytes);
        let copies: Vec<f64> = (1..=20)
            .map(|seed| run(Scenario { seed, bytes, ..found.clone() }).origin_copies)
            .collect();
        let mean = copies.iter().sum::<f64>() / copies.len() as f64;
        assert!(mean < 1.05, "{chunks} chunks: {copies:?}");
        assert!(copies.iter().all(|&copies| copies < 1.2), "{chunks} chunks: {copies:?}");
    }
}

#[test]
fn crashes_liars_stallers_and_free_riders_stop_nobody() {
    for (name, worst) in [("churn", 2.5), ("hostile", 2.0), ("mixed", 2.5), ("node-lost", 2.0)] {
        for seed in 1..=2 {
            let report = run(Scenario { seed, ..scenario(name, 60, 256) });
            assert!(report.quantile(0.99) < worst, "{report}");
            assert!(report.origin_copies < 1.25, "{report}");
        }
    }
}

#[test]
fn a_slow_line_is_not_held_against_its_neighbours() {
    // One host has a hundredth of the others' line: chunks take it longer than a stall.
    let report = run(Scenario { seed: 21, ..scenario("mixed", 60, 256) });
    assert!(report.quantile(1.0) < 2.5, "{report}");
}

#[test]
fn a_seed_gives_the_same_run_again() {
    let twice = [(); 2].map(|()| run(scenario("churn", 40, 64)));
    let [first, second] = twice;
    assert_eq!((first.events, first.ratios), (second.events, second.ratios));
}
