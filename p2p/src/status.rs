//! What a swarm is doing, for people and for programs that show it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Instant;

use serde::Serialize;
use shoal_content::{PeerId, Zone};

use crate::bulk::Path;
use crate::swarm::{PeerRole, Swarm};
use crate::transfer::Progress;

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

/// What the swarm does, for `explain`.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    pub peer: PeerId,
    pub role: PeerRole,
    pub peers: Vec<PeerStatus>,
    pub banned: BTreeSet<PeerId>,
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
        let now = Instant::now();
        let bans = self.0.bans.lock().clone();
        let banned =
            bans.iter().filter(|&(_, &until)| until > now).map(|(&peer, _)| peer).collect();
        Status {
            peer: self.peer_id(),
            role: self.0.config.role,
            peers,
            banned,
            transfers,
            uploads: self.0.uploads.lock().total(),
        }
    }
}
