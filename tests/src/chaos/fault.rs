//! Which fault comes when: a schedule that a seed fixes.
//!
//! Each kind comes once before any comes twice. Some come two at a time, of different sorts.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

/// What befalls the cluster. Whoever leads when it begins is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// No packet between the leader and the others.
    LeaderAlone,
    FollowerAlone,
    /// The leader hears the others, who do not hear it.
    LeaderMute,
    /// The others hear the leader, which does not hear them.
    LeaderDeaf,
    FollowerMute,
    /// Two of three do not hear each other.
    LinkCut,
    /// One packet in a few is lost on its way to a node.
    Loss,
    /// A node's packets queue at a narrow link.
    NarrowLink,
    /// A node does not reach storage.
    StorageCut,
    LeaderKilled,
    FollowerKilled,
    AllKilled,
    LeaderPaused,
    FollowerPaused,
    ClockAhead,
    ClockBehind,
    LeaderDiskSlow,
    FollowerDiskSlow,
    GatewayKilled,
    GatewayPaused,
    GatewayRefuses,
    GatewayCuts,
}

impl Kind {
    pub const ALL: [Self; 22] = [
        Self::LeaderAlone,
        Self::FollowerAlone,
        Self::LeaderMute,
        Self::LeaderDeaf,
        Self::FollowerMute,
        Self::LinkCut,
        Self::Loss,
        Self::NarrowLink,
        Self::StorageCut,
        Self::LeaderKilled,
        Self::FollowerKilled,
        Self::AllKilled,
        Self::LeaderPaused,
        Self::FollowerPaused,
        Self::ClockAhead,
        Self::ClockBehind,
        Self::LeaderDiskSlow,
        Self::FollowerDiskSlow,
        Self::GatewayKilled,
        Self::GatewayPaused,
        Self::GatewayRefuses,
        Self::GatewayCuts,
    ];

    /// Kinds of one sort do not come at the same time.
    fn sort(self) -> u8 {
        match self {
            Self::LeaderAlone
            | Self::FollowerAlone
            | Self::LeaderMute
            | Self::LeaderDeaf
            | Self::FollowerMute
            | Self::LinkCut
            | Self::Loss
            | Self::NarrowLink
            | Self::StorageCut => 0,
            Self::LeaderKilled
            | Self::FollowerKilled
            | Self::AllKilled
            | Self::LeaderPaused
            | Self::FollowerPaused => 1,
            Self::ClockAhead | Self::ClockBehind => 2,
            Self::LeaderDiskSlow | Self::FollowerDiskSlow => 3,
            Self::GatewayKilled
            | Self::GatewayPaused
            | Self::GatewayRefuses
            | Self::GatewayCuts => 4,
        }
    }
}

/// One entry of the schedule.
#[derive(Debug, Clone)]
pub struct Fault {
    /// One or two.
    pub kinds: Vec<Kind>,
    pub lasts: Duration,
    /// Until the next one.
    pub calm: Duration,
    /// How bad it is, and whom it meets, from 0 to 1000.
    pub parameter: u32,
}

/// Endless.
#[derive(Debug)]
pub struct Schedule {
    random: StdRng,
    deck: Vec<Kind>,
}

impl Schedule {
    pub fn new(seed: u64) -> Self {
        Self { random: StdRng::seed_from_u64(seed), deck: Vec::new() }
    }

    fn draw(&mut self) -> Kind {
        if self.deck.is_empty() {
            self.deck = Kind::ALL.to_vec();
            self.deck.shuffle(&mut self.random);
        }
        self.deck.pop().unwrap_or(Kind::Loss)
    }
}

impl Iterator for Schedule {
    type Item = Fault;

    fn next(&mut self) -> Option<Fault> {
        let mut kinds = vec![self.draw()];
        let twice = self.random.random_range(0..100) < 35;
        let other = self.deck.last().filter(|other| other.sort() != kinds[0].sort());
        if twice && other.is_some() {
            kinds.push(self.draw());
        }
        let lasts = Duration::from_millis(self.random.random_range(2500..6500));
        let calm = Duration::from_millis(self.random.random_range(800..2500));
        let parameter = self.random.random_range(0..=1000);
        Some(Fault { kinds, lasts, calm, parameter })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_comes_before_any_comes_again_and_a_seed_fixes_all() {
        let kinds = |seed| {
            let faults: Vec<Fault> = Schedule::new(seed).take(60).collect();
            faults.into_iter().flat_map(|fault| fault.kinds).collect::<Vec<_>>()
        };
        for seed in 0..50 {
            let drawn = kinds(seed);
            for kind in Kind::ALL {
                assert!(drawn[..Kind::ALL.len()].contains(&kind), "{kind:?} with seed {seed}");
            }
            assert_eq!(drawn, kinds(seed));
        }
        assert_ne!(kinds(1), kinds(2));
    }

    #[test]
    fn two_at_a_time_are_of_different_sorts() {
        let pairs: Vec<_> =
            Schedule::new(3).take(200).filter(|fault| fault.kinds.len() == 2).collect();
        assert!(pairs.len() > 20);
        for pair in pairs {
            assert_ne!(pair.kinds[0].sort(), pair.kinds[1].sort());
        }
    }
}
