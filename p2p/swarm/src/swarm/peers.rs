//! Who is connected, who is dialled again and when, who is scored how, and who is banned.
//!
//! Invariant: a peer that is banned is neither connected nor dialled nor asked.

use std::time::Duration;

use shoal_content::PeerId;

use super::requests::Request;
use super::{RequestId, Swarm};
use crate::event::{Action, BanReason};
use crate::frames::{Contact, Member};

pub(super) const COOLDOWN_MIN: Duration = Duration::from_millis(200);
const COOLDOWN_MAX: Duration = Duration::from_secs(5);
/// After this, another one is dialled beside one that does not answer.
const DIAL_PATIENCE: Duration = Duration::from_millis(200);
/// How long past its due time a pause is remembered.
const REDIAL_MEMORY: Duration = Duration::from_secs(60);
/// The first ban; each further one is twice as long, to [`BAN_DOUBLINGS_MAX`].
const BAN: Duration = Duration::from_secs(60);
const BAN_DOUBLINGS_MAX: u32 = 6;
/// A chunk that came, and the most that can be gathered; a promise not kept costs 1.
const SCORE_CHUNK: f64 = 0.02;
const SCORE_MAX: f64 = 2.0;
const SCORE_BAN: f64 = -2.5;
/// Half of a bad score is forgotten in this time.
const SCORE_HALF_LIFE: f64 = 60.0;

/// Who says nothing at all for so long may be cut off, and is not blamed before the connection to
/// it would have broken.
const SILENCE_MIN: Duration = Duration::from_millis(500);
const SILENCE_MAX: Duration = Duration::from_secs(6);

/// Of what came last, in a peer's rate.
const RATE_SHARE: f64 = 0.2;
/// No chunk counts as faster, in seconds.
const TOOK_MIN: f64 = 1e-5;

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) member: Member,
    pub(super) node: bool,
    /// In the same room.
    pub(super) near: bool,
    pub(super) rtt: Duration,
    pub(super) requests: usize,
    /// Those of them that are late: before they bring anything it is asked for nothing else.
    pub(super) owes: usize,
    /// One chunk's bytes and seconds, smoothed apart: chunks that come together say nothing of the
    /// line each for itself.
    brought_bytes: f64,
    brought_seconds: f64,
    /// When it last brought a chunk.
    pub(super) brought_at: Duration,
    /// When it last said or brought anything.
    pub(super) heard_at: Duration,
    /// It said that it is busy, and is asked again when it calls, or then.
    pub(super) busy_until: Duration,
    pub(super) cool_until: Duration,
    pub(super) cooldown: Duration,
    /// Since when it brings nothing of what it was asked for.
    stalled_since: Option<Duration>,
    score: f64,
    scored_at: Duration,
}

impl Peer {
    /// A chunk came, so long after it was asked for or after the one before.
    pub(super) fn brought(&mut self, bytes: u32, took: Duration) {
        let (bytes, seconds) = (f64::from(bytes), took.as_secs_f64().max(TOOK_MIN));
        let share = if self.brought_seconds == 0.0 { 1.0 } else { RATE_SHARE };
        self.brought_bytes += (bytes - self.brought_bytes) * share;
        self.brought_seconds += (seconds - self.brought_seconds) * share;
    }

    /// Bytes a second; 0 before the first chunk.
    pub(super) fn rate(&self) -> f64 {
        if self.brought_seconds == 0.0 { 0.0 } else { self.brought_bytes / self.brought_seconds }
    }

    pub(super) fn praise(&mut self) {
        self.cooldown = COOLDOWN_MIN;
        self.stalled_since = None;
        self.score = (self.score + SCORE_CHUNK).min(SCORE_MAX);
    }
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
    /// Since when it is being dialled.
    pub(super) dialling: Option<Duration>,
}

impl Swarm {
    pub(super) fn connected(&mut self, member: Member, node: bool, rtt: Duration) {
        let id = member.contact.peer;
        if self.is_banned(id) {
            self.actions.push_back(Action::Close { peer: id });
            return;
        }
        self.disconnected(id);
        self.redials.remove(&id);
        let peer = Peer {
            member: member.clone(),
            node,
            near: self.is_near(&member.zone),
            rtt,
            requests: 0,
            owes: 0,
            brought_bytes: 0.0,
            brought_seconds: 0.0,
            brought_at: Duration::ZERO,
            heard_at: self.now,
            busy_until: Duration::ZERO,
            cool_until: Duration::ZERO,
            cooldown: COOLDOWN_MIN,
            stalled_since: None,
            score: 0.0,
            scored_at: self.now,
        };
        self.peers.insert(id, peer);
        // Two that dial each other at once lose one connection: the other one counts.
        for membership in self.memberships.values_mut() {
            if let Some(download) = &mut membership.download {
                download.heads.find(id);
            }
        }
        if node {
            return self.node_changed(id);
        }
        let under_way: Vec<_> = self.under_way.iter().copied().collect();
        for recipe in under_way {
            // What was said of its place before was hearsay.
            if let Some(membership) = self.memberships.get_mut(&recipe)
                && let Some(known) = membership.known.get_mut(&id)
            {
                *known = member.clone();
                self.gather_soon(recipe);
            }
        }
    }

    pub(super) fn disconnected(&mut self, peer: PeerId) {
        if self.peers.remove(&peer).is_none() {
            return;
        }
        self.waiting.remove(&peer);
        let of_it = |(&id, request): (&RequestId, &Request)| (request.peer == peer).then_some(id);
        let open: Vec<RequestId> = self.requests.iter().filter_map(of_it).collect();
        for request in open {
            self.drop_request(request, true);
        }
        for membership in self.memberships.values_mut() {
            membership.joined.remove(&peer);
            membership.lose_standby(peer);
            if membership.tracker == Some(peer) {
                membership.tracker = None;
                membership.announce_at = self.now;
                membership.alone_since = self.now;
            }
            if let Some(download) = &mut membership.download {
                download.lose(peer);
                download.heads.lose(peer);
            }
            // Nobody dials for what is only offered.
            if !membership.is_under_way() {
                membership.known.remove(&peer);
            }
        }
        self.tracker.forget(peer);
        self.tell_heads_soon();
        self.pause_dialling(peer);
        self.gather_all_soon();
    }

    fn gather_all_soon(&mut self) {
        let under_way: Vec<_> = self.under_way.iter().copied().collect();
        under_way.into_iter().for_each(|recipe| self.gather_soon(recipe));
        self.wake_by(self.now);
    }

    /// A peer that was lost or not reached is dialled again later, each time later. One that stays
    /// away is no longer known: whoever names it again gives it a new chance.
    pub(super) fn pause_dialling(&mut self, peer: PeerId) {
        let now = self.now;
        self.redials
            .retain(|_, redial| redial.dialling.is_some() || redial.at + REDIAL_MEMORY > now);
        let redial = self.redials.entry(peer).or_default();
        redial.dialling = None;
        redial.pause = (redial.pause * 2).clamp(COOLDOWN_MIN, COOLDOWN_MAX);
        redial.at = now + redial.pause;
        let first = redial.pause == COOLDOWN_MIN;
        let gone = redial.pause == COOLDOWN_MAX;
        for membership in self.memberships.values_mut() {
            if gone {
                membership.known.remove(&peer);
            }
            if let Some(download) = &mut membership.download
                && !self.peers.contains_key(&peer)
            {
                download.heads.lose(peer);
            }
        }
        if first && self.nodes.iter().any(|node| node.peer == peer) {
            self.node_changed(peer);
        }
    }

    /// It may still answer; another one need not be dialled in its place.
    pub(super) fn is_being_dialled(&self, peer: PeerId) -> bool {
        let since = self.redials.get(&peer).and_then(|redial| redial.dialling);
        since.is_some_and(|since| self.now < since + DIAL_PATIENCE)
    }

    pub(super) fn dial(&mut self, contact: Contact) {
        if self.peers.contains_key(&contact.peer) || self.is_banned(contact.peer) {
            return;
        }
        let redial = self.redials.entry(contact.peer).or_default();
        if redial.dialling.is_none() && redial.at <= self.now {
            redial.dialling = Some(self.now);
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
        for membership in self.memberships.values_mut() {
            membership.known.remove(&peer);
        }
        // What the same event asked of it before is not asked any more.
        self.actions.retain(|action| {
            let (Action::Request { peer: of, .. } | Action::Join { peer: of, .. }) = action else {
                return true;
            };
            *of != peer
        });
        self.actions.push_back(Action::Ban { peer, reason, until });
        self.actions.push_back(Action::Close { peer });
    }

    /// A request that was made at `since` brought nothing. That is a promise not kept, unless the
    /// peer may be cut off.
    pub(super) fn stalled(&mut self, id: PeerId, since: Duration) {
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let began = *peer.stalled_since.get_or_insert(since);
        let is_silent = now >= peer.heard_at + SILENCE_MIN && now < began + SILENCE_MAX;
        if !is_silent {
            return self.cool(id);
        }
        if peer.cool_until <= now {
            peer.cool_until = now + peer.cooldown;
            peer.cooldown = (peer.cooldown * 2).min(COOLDOWN_MAX);
        }
    }

    /// It did not keep a promise: it is left alone for a while, and banned if that is its habit.
    /// Several requests that end in one stall are one promise. Nodes are not banned: there may be
    /// no other source.
    pub(super) fn cool(&mut self, id: PeerId) {
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&id).filter(|peer| peer.cool_until <= now) else {
            return;
        };
        peer.cool_until = now + peer.cooldown;
        peer.cooldown = (peer.cooldown * 2).min(COOLDOWN_MAX);
        let past = (now - peer.scored_at).as_secs_f64();
        peer.score = peer.score * 0.5_f64.powf(past / SCORE_HALF_LIFE) - 1.0;
        peer.scored_at = now;
        if peer.score <= SCORE_BAN && !peer.node {
            self.ban(id, BanReason::Unreliable);
        }
    }
}
