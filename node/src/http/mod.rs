//! HTTP: who asks, what errors look like, and the server itself.

mod access;
pub mod auth;
mod certificate;
pub mod cors;
mod door;
mod leftover;
pub mod noted;
pub mod pace;
pub mod permit;
pub mod problem;
mod prompt;
mod server;

pub use certificate::Certificates;
pub use server::{Listening, serve};
