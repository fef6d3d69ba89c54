//! Ports for the nodes of tests, which nobody else takes meanwhile.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Result, bail};

/// Ports that the system gives to nobody by itself, below Linux' range for that: a port that was
/// free a moment ago must not become another test's.
fn free(bind: impl Fn(SocketAddr) -> bool) -> Result<SocketAddr> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 12_000;
    // Test programs that run at the same time start at different places.
    let start = (std::process::id() % u32::from(COUNT)) as u16;
    for _ in 0..COUNT {
        let number = (start + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT) % COUNT;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, FIRST + number));
        if bind(address) {
            return Ok(address);
        }
    }
    bail!("no free port")
}

pub fn free_tcp() -> Result<SocketAddr> {
    free(|address| TcpListener::bind(address).is_ok())
}

pub fn free_udp() -> Result<SocketAddr> {
    free(|address| UdpSocket::bind(address).is_ok())
}
