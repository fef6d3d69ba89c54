//! What the benchmarks share: runs in turn, medians, ratios, and how they are printed.
//!
//! These machines are noisy: an absolute figure means little. So every benchmark runs the peer or
//! the physical limit beside Shoal, in turn within one run, and prints the ratio.

pub mod debian;
pub mod fanout;
pub mod grpc;
pub mod http;
pub mod load;
pub mod member;
pub mod process;
pub mod registries;
pub mod report;
pub mod sample;
pub mod sendme;
pub mod tls;
