//! What the core is told and what it asks for: its whole interface to the world outside.

use std::ops::Range;
use std::time::Duration;

use shoal_content::{PeerId, RecipeId};

use crate::chunk_set::ChunkSet;
use crate::frames::{Contact, Frame, Member};

/// Names a request until it ends.
pub type RequestId = u64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BanReason {
    WrongContent,
    BadFrame,
    /// It promised and did not deliver, again and again.
    Unreliable,
}

impl BanReason {
    pub const ALL: [Self; 3] = [Self::WrongContent, Self::BadFrame, Self::Unreliable];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::WrongContent => "wrong_content",
            Self::BadFrame => "bad_frame",
            Self::Unreliable => "unreliable",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestEnd {
    Done,
    Busy,
    /// It holds nothing of the recipe any more.
    Absent,
    Failed,
}

/// What happened outside.
#[derive(Debug, Clone)]
pub enum Event {
    /// Fetch a recipe of `held.len()` chunks; the shell holds a ticket for it.
    Start {
        recipe: RecipeId,
        held: ChunkSet,
    },
    /// Tell the tracker that this recipe can be had here.
    Seed {
        recipe: RecipeId,
    },
    Stop {
        recipe: RecipeId,
    },
    Demand {
        recipe: RecipeId,
        range: Range<u32>,
    },
    Nodes(Vec<Contact>),
    /// Bring in no more than so many bytes a second; `None` is any number.
    Limit {
        bytes_per_second: Option<u64>,
    },
    /// This process ends soon: offer nothing any more, and say so. What is on its way here goes on.
    Retire,
    /// A member that somebody named.
    Hint {
        recipe: RecipeId,
        contact: Contact,
    },
    Connected {
        member: Member,
        node: bool,
        /// There and back.
        rtt: Duration,
    },
    Disconnected {
        peer: PeerId,
    },
    DialFailed {
        peer: PeerId,
    },
    /// A Join whose ticket the shell found good.
    Joined {
        peer: PeerId,
        recipe: RecipeId,
    },
    Frame {
        peer: PeerId,
        frame: Frame,
    },
    BadFrame {
        peer: PeerId,
    },
    /// Verified, and being written: its sender has done its part, however long this host's disk takes.
    /// [`Event::Arrived`] or the request's end follows. A shell that writes at once leaves it out.
    Landed {
        request: RequestId,
        index: u32,
        /// What came over the line, compressed or not: rates, deadlines and limits are the line's.
        bytes: u32,
    },
    /// Verified and written.
    Arrived {
        request: RequestId,
        index: u32,
        /// As for [`Event::Landed`].
        bytes: u32,
    },
    /// A node gave the chunk to `by`, from whom it will come.
    Elsewhere {
        request: RequestId,
        index: u32,
        by: PeerId,
    },
    /// The content was not what the chunk's id says.
    Wrong {
        request: RequestId,
    },
    Ended {
        request: RequestId,
        end: RequestEnd,
    },
    /// Time passed.
    Tick,
}

/// What shall happen outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Dial(Contact),
    Close {
        peer: PeerId,
    },
    /// Send a Join with the shell's ticket.
    Join {
        peer: PeerId,
        recipe: RecipeId,
    },
    Send {
        peer: PeerId,
        frame: Frame,
    },
    Request {
        request: RequestId,
        peer: PeerId,
        recipe: RecipeId,
        indices: Vec<u32>,
        /// The node said that others have it; they do not bring it.
        insists: bool,
    },
    Cancel {
        request: RequestId,
    },
    Ban {
        peer: PeerId,
        reason: BanReason,
        until: Duration,
    },
    Complete {
        recipe: RecipeId,
    },
}
