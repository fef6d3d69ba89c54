//! What a transfer waits for, for people who ask why it takes so long.
//!
//! Non-goal: deciding anything by it.

use shoal_content::{PeerId, RecipeId};

use super::Swarm;

/// What would have to happen next for more to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Somebody who has what is lacking, or a turn to bring it in.
    Sources,
    /// Those who have it answer others; they call.
    Slots,
    /// The limit of what may be brought in lets more be asked for.
    Limit,
    /// What was asked for comes.
    Chunks,
    /// What came is written.
    Disk,
}

impl Wait {
    /// For people, behind "waits for".
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sources => "somebody who has what is lacking",
            Self::Slots => "others that have it and are busy",
            Self::Limit => "the limit of what it may bring in",
            Self::Chunks => "chunks that are on their way",
            Self::Disk => "its own disk",
        }
    }
}

impl Swarm {
    /// `None` where the recipe is not on its way here.
    pub fn waits_for(&self, recipe: RecipeId) -> Option<Wait> {
        if !self.under_way.contains(&recipe) {
            return None;
        }
        let of_it = self.requests.values().filter(|request| request.recipe == recipe);
        let (mut asked, mut writing) = (0, 0);
        for request in of_it {
            asked += 1;
            writing += usize::from(request.landing.is_some());
        }
        if asked > 0 {
            return Some(if writing == asked { Wait::Disk } else { Wait::Chunks });
        }
        if !self.pace.is_free(self.now) {
            return Some(Wait::Limit);
        }
        let is_busy =
            |peer: &PeerId| self.peers.get(peer).is_some_and(|peer| peer.busy_until > self.now);
        let sources = self.peek(recipe).map(|download| &download.sources);
        let busy = sources.is_some_and(|sources| sources.keys().any(is_busy));
        Some(if busy { Wait::Slots } else { Wait::Sources })
    }
}
