//! Both HTTP APIs of a real node over HTTPS: real Raft, real storage in a folder, real disks.
//!
//! One binary for all of it: linking RocksDB once is enough.

mod acme;
mod attacks;
mod audit;
mod backup;
mod catalog;
mod certificate;
mod cluster;
mod collection;
mod compatible;
mod directory;
mod disks;
mod document;
mod drain;
mod encryption;
mod examples;
mod forge;
mod forwarded;
mod hostile;
mod imports;
mod issuers;
mod keys;
mod limits;
mod lockout;
mod logins;
mod logs;
mod matrix;
mod members;
mod metrics;
mod node;
mod orders;
mod passkeys;
mod plans;
mod program;
mod quotas;
mod retention;
mod rights;
mod scrub;
mod strangers;
mod swarm;
mod tls;
mod traces;
mod upstreams;
mod v2;
mod wait;
