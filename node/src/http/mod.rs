//! HTTP: who asks, what errors look like, and the server itself.

mod access;
pub mod auth;
mod backlog;
mod certificate;
pub mod cors;
mod drain;
mod forwarded;
mod leftover;
mod linger;
mod listener;
pub mod noted;
pub mod pace;
pub mod permit;
pub mod problem;
mod prompt;
pub mod rates;
mod readiness;
pub mod routes;
mod safeguards;
mod server;
pub mod signature;
mod silence;
mod unencrypted;

pub(crate) use access::check_trace_parent;
pub use certificate::Certificates;
pub use drain::Drain;
pub(crate) use forwarded::check_forwarded;
pub use listener::{InTheClear, Listening};
pub use readiness::Readiness;
pub use server::{router, routes};
