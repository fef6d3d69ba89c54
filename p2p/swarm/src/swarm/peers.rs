//! Who is connected, who is dialled again and when, and who is banned.
//!
//! Invariant: a peer that is banned is neither connected nor dialled nor asked.

use std::time::Duration;

use shoal_content::PeerId;

use super::requests::{Request, STALL_PEER};
use super::{RequestId, Swarm};
use crate::download::REQUESTS_PER_SOURCE;
use crate::event::{Action, BanReason};
use crate::frames::Contact;

pub(super) const COOLDOWN_MIN: Duration = Duration::from_millis(200);
const COOLDOWN_MAX: Duration = Duration::from_secs(5);
/// How long past its due time a pause is remembered.
const REDIAL_MEMORY: Duration = Duration::from_secs(60);
/// The first ban; each further one is twice as long, to [`BAN_DOUBLINGS_MAX`].
const BAN: Duration = Duration::from_secs(60);
const BAN_DOUBLINGS_MAX: u32 = 6;

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) contact: Contact,
    pub(super) node: bool,
    pub(super) requests: usize,
    /// Bytes a second, smoothed.
    pub(super) rate: f64,
    pub(super) cool_until: Duration,
    pub(super) cooldown: Duration,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Ban {
    pub(super) until: Duration,
    pub(super) times: u32,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Redial {
    pub(super) at: Duration,
    pub(super) pause: Duration,
    pub(super) dialling: bool,
}

impl Swarm {
    pub(super) fn connected(&mut self, contact: Contact, node: bool) {
        if self.is_banned(contact.peer) {
            self.actions.push_back(Action::Close { peer: contact.peer });
            return;
        }
        self.disconnected(contact.peer);
        self.redials.remove(&contact.peer);
        let peer = Peer {
            contact,
            node,
            requests: 0,
            rate: 0.0,
            cool_until: Duration::ZERO,
            cooldown: COOLDOWN_MIN,
        };
        self.peers.insert(contact.peer, peer);
    }

    pub(super) fn disconnected(&mut self, peer: PeerId) {
        if self.peers.remove(&peer).is_none() {
            return;
        }
        let of_it = |(&id, request): (&RequestId, &Request)| (request.peer == peer).then_some(id);
        let open: Vec<RequestId> = self.requests.iter().filter_map(of_it).collect();
        for request in open {
            self.drop_request(request, true);
        }
        for membership in self.memberships.values_mut() {
            membership.joined.remove(&peer);
            if membership.tracker == Some(peer) {
                membership.tracker = None;
                membership.announce_at = self.now;
            }
            if let Some(download) = &mut membership.download {
                download.lose(peer);
            }
        }
        self.tracker.forget(peer);
        self.pause_dialling(peer);
    }

    /// A peer that was lost or not reached is dialled again later, each time later. One that stays
    /// away is no longer known: whoever names it again gives it a new chance.
    pub(super) fn pause_dialling(&mut self, peer: PeerId) {
        let now = self.now;
        self.redials.retain(|_, redial| redial.dialling || redial.at + REDIAL_MEMORY > now);
        let redial = self.redials.entry(peer).or_default();
        redial.dialling = false;
        redial.pause = (redial.pause * 2).clamp(COOLDOWN_MIN, COOLDOWN_MAX);
        redial.at = now + redial.pause;
        if redial.pause == COOLDOWN_MAX {
            for membership in self.memberships.values_mut() {
                membership.known.remove(&peer);
            }
        }
    }

    pub(super) fn dial(&mut self, contact: Contact) {
        if self.peers.contains_key(&contact.peer) || self.is_banned(contact.peer) {
            return;
        }
        let redial = self.redials.entry(contact.peer).or_default();
        if !redial.dialling && redial.at <= self.now {
            redial.dialling = true;
            self.actions.push_back(Action::Dial(contact));
        }
    }

    pub(super) fn ban(&mut self, peer: PeerId, reason: BanReason) {
        let now = self.now;
        self.bans.retain(|_, ban| ban.until + BAN * (1 << BAN_DOUBLINGS_MAX) > now);
        let ban = self.bans.entry(peer).or_insert(Ban { until: now, times: 0 });
        ban.until = now + BAN * (1 << ban.times.min(BAN_DOUBLINGS_MAX));
        ban.times += 1;
        let until = ban.until;
        self.disconnected(peer);
        self.actions.push_back(Action::Ban { peer, reason, until });
        self.actions.push_back(Action::Close { peer });
    }

    pub(super) fn cool(&mut self, peer: PeerId) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.cool_until = self.now + peer.cooldown;
            peer.cooldown = (peer.cooldown * 2).min(COOLDOWN_MAX);
        }
    }
}

/// How long one chunk takes from `peer`, from its measured rate.
pub(super) fn expected(peer: &Peer) -> Duration {
    let bytes = f64::from(shoal_content::CHUNK_BYTES_MAX) * REQUESTS_PER_SOURCE as f64;
    if peer.rate > 0.0 {
        Duration::from_secs_f64((bytes / peer.rate).min(10.0))
    } else {
        STALL_PEER / 4
    }
}
