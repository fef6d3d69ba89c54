//! The state machine of the metadata: rows, commands, and how one changes the other; pure.

mod command;
mod record;

pub use command::*;
pub use record::*;
