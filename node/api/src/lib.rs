//! The REST API's data: what `/api/v1` takes and gives, as JSON.
//!
//! Serde and the schemas that follow from it: no logic, no I/O. The node, the agent and the command
//! line share these types, so that a field cannot mean one thing on one side and another on the
//! other. Times are RFC 3339 texts in UTC; sizes end in `_bytes`.

mod absent;
mod account;
mod agent;
mod audit;
mod cluster;
mod deployment;
mod encryption;
mod health;
mod image;
mod instance;
mod passkey;
mod policy;
mod problem;
mod project;
mod quota;
mod scan;
mod session;
mod storage;
mod upload;
mod upstream;
mod version;

pub use account::*;
pub use agent::*;
pub use audit::*;
pub use cluster::*;
pub use deployment::*;
pub use encryption::*;
pub use health::*;
pub use image::*;
pub use instance::*;
pub use passkey::*;
pub use policy::*;
pub use problem::*;
pub use project::*;
pub use quota::*;
pub use scan::*;
pub use session::*;
pub use storage::*;
pub use upload::*;
pub use upstream::*;
pub use version::*;
