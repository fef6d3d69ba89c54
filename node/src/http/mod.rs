//! HTTP: who asks, what errors look like, and the server itself.

pub mod auth;
mod door;
mod leftover;
pub mod problem;
mod server;

pub use server::{Listening, serve};
