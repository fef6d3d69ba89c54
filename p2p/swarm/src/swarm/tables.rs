//! How much the core remembers, for whoever looks for what is never forgotten.

use super::Swarm;

/// How many entries each of the core's tables has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tables {
    pub peers: usize,
    pub redials: usize,
    pub bans: usize,
    pub waiting: usize,
    pub requests: usize,
    /// Recipes that are on their way or offered.
    pub recipes: usize,
    /// Members and neighbours, over all recipes.
    pub known: usize,
    pub joined: usize,
    pub sources: usize,
    /// Chunks that are counted one by one, over all recipes.
    pub chunks: usize,
    /// What is tracked here for others.
    pub swarms: usize,
    pub members: usize,
}

impl Swarm {
    /// As they are now; counting takes time that grows with them.
    pub fn tables(&self) -> Tables {
        let downloads = || self.memberships.values().filter_map(|one| one.download.as_ref());
        let (swarms, members) = self.tracker.entries();
        Tables {
            peers: self.peers.len(),
            redials: self.redials.len(),
            bans: self.bans.len(),
            waiting: self.waiting.len(),
            requests: self.requests.len(),
            recipes: self.memberships.len(),
            known: self.memberships.values().map(|one| one.known.len()).sum(),
            joined: self.memberships.values().map(|one| one.joined.len()).sum(),
            sources: downloads().map(|download| download.sources.len()).sum(),
            chunks: downloads().map(|download| download.chunks_counted()).sum(),
            swarms,
            members,
        }
    }
}
