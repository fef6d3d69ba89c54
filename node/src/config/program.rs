//! Which program this is, to the other nodes: the newest command that it knows.
//!
//! It is no setting. A test of a rolling upgrade has one program stand for an earlier one, by a
//! variable of the environment that nobody else has a use for ([`VARIABLE`]).

use shoal_metadata::{COMMAND_VERSION, FIRST_LEVEL};

/// Holds the number of a command's version.
pub const VARIABLE: &str = "SHOAL_NODE_STANDS_FOR";

/// See the module's documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program {
    command_version: u8,
}

impl Default for Program {
    fn default() -> Self {
        Self { command_version: COMMAND_VERSION }
    }
}

impl Program {
    /// An earlier program; `None` for one that there is not.
    pub fn earlier(text: &str) -> Option<Self> {
        let command_version = text.parse().ok()?;
        (FIRST_LEVEL..=COMMAND_VERSION)
            .contains(&command_version)
            .then_some(Self { command_version })
    }

    /// The newest command that it knows.
    pub fn command_version(self) -> u8 {
        self.command_version
    }
}
