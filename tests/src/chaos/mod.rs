//! Faults while clients work, and what must hold all the same.
//!
//! Clients push, pull, retag and delete through all nodes and write down what they saw
//! ([`workload`], [`history`]); meanwhile a seeded schedule of faults befalls the nodes, the links
//! between them, their clocks and disks, and the storage ([`fault`], [`stage`]). Afterwards the
//! histories are judged (`linear`), and all that was acknowledged is fetched ([`verdict`]).
//!
//! The seed fixes the schedule and what each client asks for; when it happens is the machine's.

pub mod client;
pub mod fault;
pub mod history;
pub mod record;
pub mod stage;
pub mod verdict;
pub mod workload;
