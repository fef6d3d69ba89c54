//! What the end-to-end tests stand on: real processes, real Ceph, real network namespaces.
//!
//! Nothing here fakes a part of Shoal: the binaries are started as a user starts them, on hosts
//! that are network namespaces joined by a bridge, with storage in a real Ceph. Every process is
//! killed and every namespace removed when its value is dropped, also after a failed assertion.
//!
//! Needs root (namespaces) and the packages that `./dev test` installs; says so where one lacks.

pub mod ceph;
pub mod chaos;
pub mod clock;
pub mod cluster;
pub mod docker;
pub mod field;
pub mod gateway;
pub mod host;
pub mod leaks;
pub mod linear;
pub mod process;
pub mod sample;
pub mod scene;
pub mod skew;
pub mod throttle;
pub mod trivy;
