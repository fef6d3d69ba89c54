//! What a simulation found, for people and for assertions.

use std::fmt;
use std::time::Duration;

use crate::scenario::Scenario;

#[derive(Debug, Clone)]
pub struct Report {
    pub scenario: &'static str,
    pub seed: u64,
    pub peers: usize,
    /// Honest hosts that were alive at the end and did not have everything.
    pub unfinished: usize,
    /// The fluid bound of a host with a full line, from its start.
    pub bound: Duration,
    /// Each finished honest host's time in its own bounds, ascending.
    pub ratios: Vec<f64>,
    /// What the node sent, in copies of the content.
    pub origin_copies: f64,
    /// What came into each zone from outside, in copies; the mean and the most.
    pub zone_copies: (f64, f64),
    /// Bytes that arrived twice, were wrong or were cancelled, for each byte that was of use.
    pub waste: f64,
    /// Jain's index over what the honest hosts with a full line sent: 1 is all alike.
    pub fairness: f64,
    /// Control bytes for each byte of content delivered.
    pub control: f64,
    pub events: u64,
    pub wall: Duration,
}

impl Report {
    /// `share` from 0 to 1; infinite where somebody did not finish and would count.
    pub fn quantile(&self, share: f64) -> f64 {
        let all = self.ratios.len() + self.unfinished;
        let at = ((all as f64 * share).ceil() as usize).clamp(1, all.max(1)) - 1;
        self.ratios.get(at).copied().unwrap_or(f64::INFINITY)
    }

    pub fn heading() -> String {
        format!(
            "{:<12} {:>6} {:>5} {:>9}  {:>6} {:>6} {:>6}  {:>6} {:>6} {:>6}  {:>6} {:>5} {:>8} {:>5} {:>7}",
            "scenario",
            "peers",
            "seed",
            "bound ms",
            "p50",
            "p99",
            "max",
            "origin",
            "zone",
            "zmax",
            "waste",
            "fair",
            "control",
            "stuck",
            "wall s"
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<12} {:>6} {:>5} {:>9.1}  {:>6.3} {:>6.3} {:>6.3}  {:>6.3} {:>6.3} {:>6.3}  {:>6.4} {:>5.2} {:>8.5} {:>5} {:>7.1}",
            self.scenario,
            self.peers,
            self.seed,
            self.bound.as_secs_f64() * 1e3,
            self.quantile(0.5),
            self.quantile(0.99),
            self.quantile(1.0),
            self.origin_copies,
            self.zone_copies.0,
            self.zone_copies.1,
            self.waste,
            self.fairness,
            self.control,
            self.unfinished,
            self.wall.as_secs_f64(),
        )
    }
}

/// The fluid bound in seconds of a host whose line down carries `down` bytes a second (Kumar and
/// Ross 2006), with each zone's line as one more cut.
pub fn bound(scenario: &Scenario, uplinks: f64, down: f64) -> f64 {
    let bytes = scenario.bytes as f64;
    let (peers, zones) = (scenario.peers as f64, scenario.zones as f64);
    let mut bound = (bytes / scenario.origin_line).max(bytes / down);
    bound = bound.max(peers * bytes / (scenario.origin_line + uplinks));
    if scenario.zones > 1 {
        let crossing = scenario.origin_line + zones * scenario.zone_line;
        bound = bound.max(bytes / scenario.zone_line).max(zones * bytes / crossing);
    }
    bound
}
