//! HTTP: who asks, what errors look like, and the server itself.

pub mod auth;
pub mod problem;
mod server;

pub use server::{Listening, serve};
