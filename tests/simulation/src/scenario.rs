//! What is simulated: hosts, lines, zones, and what goes wrong when.

use std::time::Duration;

/// A gigabit a second, in bytes.
const GBIT: f64 = 125_000_000.0;

/// What a host does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conduct {
    Honest,
    /// Sends wrong bytes, and claims to hold all.
    Liar,
    /// Takes requests and never answers.
    Staller,
    /// Downloads and refuses every upload.
    FreeRider,
}

/// Shares of the hosts are from 0 to 1.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub name: &'static str,
    pub about: &'static str,
    pub peers: usize,
    pub seed: u64,
    pub bytes: u64,
    pub chunk_bytes: u32,
    /// Of one host's line, each way, in bytes a second.
    pub line: f64,
    /// Nodes that are origins; the first by rank for the recipe tracks it where it is reached.
    pub nodes: usize,
    /// Of each node, up.
    pub origin_line: f64,
    /// 1 means that nobody has labels.
    pub zones: usize,
    /// Of each zone, each way, in bytes a second.
    pub zone_line: f64,
    /// One way within a zone, and between zones and to the node.
    pub latency_near: Duration,
    pub latency_far: Duration,
    /// Messages that are lost and sent again after a round trip.
    pub loss: f64,
    /// A connection takes so long beside its handshake's round trips: from, to.
    pub dial: (Duration, Duration),
    /// Hosts and nodes do nothing for up to `pause`, as often as every `pause_every` on average:
    /// others have the CPU.
    pub pause: Duration,
    pub pause_every: Duration,
    /// A node's storage takes up to so long for each answer.
    pub storage: Duration,
    /// All start within this time.
    pub arrival: Duration,
    /// Hosts with a tenth and a hundredth of the line.
    pub slow: f64,
    pub very_slow: f64,
    pub liars: f64,
    pub stallers: f64,
    pub free_riders: f64,
    /// Hosts that crash at a random time of the transfer, and are replaced by cold ones.
    pub churn: f64,
    /// The nodes die when so much of the bound has passed.
    pub node_dies_at: Option<f64>,
    /// How long a broken connection goes unnoticed.
    pub detection: Duration,
    /// Simulated time after which whoever is not done counts as stuck, in bounds.
    pub limit: f64,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            name: "flat",
            about: "all in one place, 10 Gbit/s, 200 MiB, cold",
            peers: 1000,
            seed: 1,
            bytes: 200 << 20,
            chunk_bytes: 256 << 10,
            line: 10.0 * GBIT,
            nodes: 1,
            origin_line: 10.0 * GBIT,
            zones: 1,
            zone_line: f64::INFINITY,
            latency_near: Duration::from_micros(50),
            latency_far: Duration::from_micros(250),
            loss: 0.0,
            dial: (Duration::ZERO, Duration::ZERO),
            pause: Duration::ZERO,
            pause_every: Duration::ZERO,
            storage: Duration::ZERO,
            arrival: Duration::from_millis(2),
            slow: 0.0,
            very_slow: 0.0,
            liars: 0.0,
            stallers: 0.0,
            free_riders: 0.0,
            churn: 0.0,
            node_dies_at: None,
            detection: Duration::from_secs(4),
            limit: 200.0,
        }
    }
}

impl Scenario {
    /// All of them, by name.
    pub fn all() -> Vec<Self> {
        let base = Self::default;
        let zoned = || Self { zones: 20, zone_line: 20.0 * GBIT, ..base() };
        let large = |of: Self| Self { bytes: 10 << 30, chunk_bytes: 4 << 20, ..of };
        let lan = || Self {
            line: GBIT,
            origin_line: GBIT,
            bytes: 512 << 20,
            chunk_bytes: 1 << 20,
            arrival: Duration::from_millis(100),
            ..base()
        };
        vec![
            base(),
            Self {
                name: "flat-large",
                about: "flat with 10 GiB, in pieces of 4 MiB",
                ..large(base())
            },
            Self {
                name: "zones",
                about: "20 zones behind 20 Gbit/s each, 10 Gbit/s hosts, 200 MiB",
                ..zoned()
            },
            Self {
                name: "zones-large",
                about: "zones with 10 GiB, in pieces of 4 MiB",
                ..large(zoned())
            },
            Self {
                name: "hard",
                about: "zones with 1 % churn and 1 % liars",
                churn: 0.01,
                liars: 0.01,
                ..zoned()
            },
            Self {
                name: "hard-large",
                about: "hard with 10 GiB, in pieces of 4 MiB",
                churn: 0.01,
                liars: 0.01,
                ..large(zoned())
            },
            Self {
                name: "hosts32",
                about: "32 hosts at 50 Mbit/s, 128 MiB, as benches/fanout has them",
                peers: 32,
                line: 6_250_000.0,
                origin_line: 6_250_000.0,
                bytes: 128 << 20,
                arrival: Duration::from_millis(50),
                latency_near: Duration::from_micros(100),
                latency_far: Duration::from_micros(100),
                ..base()
            },
            Self {
                name: "mixed",
                about: "1 Gbit/s, 512 MiB; a tenth at a tenth of it, 1 % at a hundredth",
                slow: 0.1,
                very_slow: 0.01,
                ..lan()
            },
            Self {
                name: "hostile",
                about: "1 Gbit/s, 512 MiB; 2 % liars, 2 % stallers, 10 % free-riders",
                liars: 0.02,
                stallers: 0.02,
                free_riders: 0.1,
                ..lan()
            },
            Self {
                name: "churn",
                about: "1 Gbit/s, 512 MiB; a quarter crashes and cold ones come instead",
                churn: 0.25,
                ..lan()
            },
            Self {
                name: "node-lost",
                about: "1 Gbit/s, 512 MiB; the only node, at 4 Gbit/s, dies at 0.6 of the bound",
                origin_line: 4.0 * GBIT,
                node_dies_at: Some(0.6),
                ..lan()
            },
            Self {
                name: "lossy",
                about: "1 Gbit/s, 512 MiB, 10 ms away, 1 % loss",
                latency_near: Duration::from_millis(10),
                latency_far: Duration::from_millis(10),
                loss: 0.01,
                ..lan()
            },
            Self {
                name: "late-mesh",
                about: "4 hosts, 3 nodes, 12 MiB: connections take longer than the content",
                peers: 4,
                nodes: 3,
                line: 2.0 * GBIT,
                origin_line: 2.0 * GBIT,
                bytes: 12 << 20,
                dial: (Duration::from_millis(200), Duration::from_millis(1500)),
                pause: Duration::from_millis(400),
                pause_every: Duration::from_millis(1000),
                storage: Duration::from_millis(60),
                arrival: Duration::from_millis(1000),
                ..base()
            },
        ]
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|scenario| scenario.name == name)
    }

    pub fn chunks(&self) -> u32 {
        self.bytes.div_ceil(u64::from(self.chunk_bytes)) as u32
    }
}
