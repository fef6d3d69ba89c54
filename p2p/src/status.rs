//! What a swarm is doing, for people and for programs that show it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use serde::Serialize;
use shoal_content::{PeerId, Zone};
use shoal_swarm::BanReason;

use crate::bulk::Path;
use crate::swarm::{PeerRole, Swarm};
use crate::transfer::Progress;

/// A ban as the shell keeps it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Banned {
    pub(crate) until: Instant,
    pub(crate) reason: BanReason,
}

/// One connection.
#[derive(Debug, Clone, Serialize)]
pub struct PeerStatus {
    pub peer: PeerId,
    pub address: SocketAddr,
    pub zone: Zone,
    pub node: bool,
    pub rtt_ms: u64,
    /// How chunks go between the two.
    pub path: Path,
}

/// Why nothing is had from a peer, and how much longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct BanStatus {
    /// `wrong_content`, `bad_frame` or `unreliable`.
    pub reason: &'static str,
    pub seconds_left: u64,
}

/// What the swarm does, for `explain`.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    pub peer: PeerId,
    pub role: PeerRole,
    pub peers: Vec<PeerStatus>,
    /// Those that are banned now.
    pub banned: BTreeMap<PeerId, BanStatus>,
    pub transfers: BTreeMap<String, Progress>,
    pub uploads: usize,
}

impl Swarm {
    pub fn status(&self) -> Status {
        let peers = self
            .0
            .links
            .lock()
            .iter()
            .map(|(&peer, link)| PeerStatus {
                peer,
                address: link.address,
                zone: link.zone.clone(),
                node: link.node,
                rtt_ms: link.connection.rtt().as_millis() as u64,
                path: link.lanes.path(),
            })
            .collect();
        let transfers = self
            .0
            .transfers
            .lock()
            .iter()
            .filter(|(_, owned)| owned.has_owner())
            .map(|(id, owned)| (id.to_string(), owned.running.snapshot()))
            .collect();
        Status {
            peer: self.peer_id(),
            role: self.0.config.role,
            peers,
            banned: self.banned(),
            transfers,
            uploads: self.0.uploads.lock().total(),
        }
    }

    /// Those that are banned now.
    pub fn banned(&self) -> BTreeMap<PeerId, BanStatus> {
        let now = Instant::now();
        let bans = self.0.bans.lock();
        let left = bans.iter().filter(|(_, banned)| banned.until > now).map(|(&peer, banned)| {
            let seconds_left = banned.until.duration_since(now).as_secs();
            (peer, BanStatus { reason: banned.reason.as_str(), seconds_left })
        });
        left.collect()
    }
}
