//! Deployments: what agents are told, what they report, and what watchers see.
//!
//! Orders and their ends are replicated; how far a host is, is soft: it lies on the node that the
//! host reported to, and nodes ask each other for it. So the loss of a node costs nothing but the
//! progress of the second before: agents go on reporting to another node.
//!
//! Non-goals: HTTP routes (see `api`); carrying out an order (the agent's).

mod board;
mod changes;
mod deadlines;
mod gather;
pub(crate) mod node_token;
mod orders;
mod siblings;
mod view;
mod warm_up;
mod watch;

pub use board::{Board, Reported, Reports};
pub use changes::{HostChange, HostChanges, REASON_CHARS_MAX, next_state, standing};
pub use deadlines::keep_deadlines;
pub use gather::Gatherer;
pub use orders::{ORDER_STREAMS_MAX, OrderDesk, node_addresses, ticket_keys};
pub use siblings::{Siblings, SiblingsError};
pub use view::{Names, is_over, state, view};
pub use warm_up::{Terms, keep_warm, named};
pub use watch::watch;
