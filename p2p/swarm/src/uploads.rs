//! Upload slots: how many requests are answered at once, and who is called next.
//!
//! Few at once, so that a chunk is with its next holder soon and can be passed on from there; more
//! where the line is faster, by measurement, and where slow receivers leave it idle. Whoever finds
//! no slot is told so at once and waits in line; [`Uploads::invite`] names the next one, for whom
//! the slot is kept for [`INVITATION`].
//!
//! What was sent and is not acknowledged yet stays in memory, over all connections; where that is more
//! than its budget, nothing is begun either.
//!
//! Invariants: never more than [`UPLOADS_MAX`] answers at once; nothing queues here but names, at
//! most [`WAITING_MAX`] of them.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use shoal_content::PeerId;

use crate::line::{self, Line};
use crate::meter::Meter;
use crate::pace::Pace;

/// Requests answered at once.
pub const UPLOADS_MAX: usize = 64;
/// Bytes of answers that are not acknowledged to their end: of a host, and of a node, to which whole
/// swarms come. Answers that were begun before it was full are beyond it, one for each slot at most.
pub const UNACKNOWLEDGED_BYTES_MAX: u64 = 96 * 1024 * 1024;
pub const UNACKNOWLEDGED_NODE_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Of the answers at least.
pub(crate) const SLOTS_MIN: usize = 6;
const SLOTS_NODE: usize = 10;
/// One more slot for each so many bytes a second.
const BYTES_PER_SLOT: f64 = 256.0 * 1024.0 * 1000.0;
/// As long a slot is kept for whom it was offered to.
const INVITATION: Duration = Duration::from_millis(250);
const WAITING_MAX: usize = 512;
const NAMING_INTERVAL: Duration = Duration::from_secs(5);
/// So many of other rooms are called before one of this room that waits as well.
const FAR_RUN: u32 = 2;
/// Of the best rate seen; below it slots are added.
const IDLE_SHARE: f64 = 0.8;

/// What whoever asks is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// A slot is taken; [`Uploads::end`] gives it back.
    Granted,
    /// It will be called. Once in a while it should hear of others whom it may ask instead.
    Busy { name_others: bool },
}

#[derive(Debug)]
pub struct Uploads {
    slots_min: usize,
    by_peer: BTreeMap<PeerId, usize>,
    total: usize,
    /// With whether it is far; those are in front.
    waiting: VecDeque<(PeerId, bool)>,
    /// How many of other rooms were called since one of this room was.
    far_called: u32,
    invited: Vec<(PeerId, Duration)>,
    /// When others were last named to whom.
    named: BTreeMap<PeerId, Duration>,
    meter: Meter,
    line: Line,
    /// Slots beyond what the rate asks for, since those that are taken do not fill the line.
    extra: usize,
    pace: Pace,
    /// It serves nobody any more; who comes is told to ask others.
    closing: bool,
    /// Bytes that are in memory until their receivers have them.
    unacknowledged: u64,
    unacknowledged_max: u64,
}

impl Default for Uploads {
    fn default() -> Self {
        Self::with_slots(SLOTS_MIN, UNACKNOWLEDGED_BYTES_MAX)
    }
}

impl Uploads {
    /// Those of a node: what it sends is what all wait for, and the heads that get it have their
    /// lines full of what others send, so that few would not fill its line.
    pub fn of_node() -> Self {
        Self::with_slots(SLOTS_NODE, UNACKNOWLEDGED_NODE_BYTES_MAX)
    }

    fn with_slots(slots_min: usize, unacknowledged_max: u64) -> Self {
        Self {
            slots_min,
            by_peer: BTreeMap::new(),
            total: 0,
            waiting: VecDeque::new(),
            far_called: 0,
            invited: Vec::new(),
            named: BTreeMap::new(),
            meter: Meter::default(),
            line: Line::default(),
            extra: 0,
            pace: Pace::default(),
            closing: false,
            unacknowledged: 0,
            unacknowledged_max,
        }
    }

    /// Takes a slot for `peer`, or puts it in line: in front where it comes from another room,
    /// since a whole room waits for what it asks for. This room may wait for the same, so that
    /// one of it is called after [`FAR_RUN`] of others.
    pub fn begin(&mut self, now: Duration, peer: PeerId, far: bool) -> Admission {
        let slots = self.slots();
        self.invited.retain(|&(_, until)| until > now);
        let invited = self.invited.iter().position(|&(invited, _)| invited == peer);
        let mine = self.by_peer.get(&peer).copied().unwrap_or(0);
        let others_wait = self.waiting.iter().any(|&(waiting, _)| waiting != peer);
        let may_begin = self.pace.is_free(now) && !self.closing && self.has_memory();
        let free =
            may_begin && self.total + self.invited.len() < slots && (mine == 0 || !others_wait);
        match invited {
            Some(at) if !self.closing => drop(self.invited.swap_remove(at)),
            _ if !free => {
                if !self.waiting.iter().any(|&(waiting, _)| waiting == peer)
                    && self.waiting.len() < WAITING_MAX
                {
                    let end = self.waiting.len();
                    let near = || self.waiting.iter().position(|&(_, far)| !far);
                    let place = if far { near().unwrap_or(end) } else { end };
                    self.waiting.insert(place, (peer, far));
                }
                return Admission::Busy { name_others: self.may_name(now, peer) };
            }
            _ => {}
        }
        self.leave_line(peer);
        self.by_peer.insert(peer, mine + 1);
        self.total += 1;
        Admission::Granted
    }

    /// So much of an answer went out, in bytes on the line.
    pub fn sent(&mut self, now: Duration, bytes: u64) {
        self.pace.count(now, bytes);
        self.line.count(now, bytes);
        let Some(rate) = self.meter.count(now, bytes) else { return };
        if rate >= self.meter.best * IDLE_SHARE || self.waiting.is_empty() {
            self.extra = self.extra.saturating_sub(1);
        } else if self.total >= self.slots() {
            self.extra += 1;
        }
    }

    /// Gives back a slot that [`Self::begin`] gave.
    pub fn end(&mut self, peer: PeerId) {
        if let Some(mine) = self.by_peer.get_mut(&peer) {
            *mine -= 1;
            self.total -= 1;
            if *mine == 0 {
                self.by_peer.remove(&peer);
            }
        }
    }

    /// An answer that was granted brings so many bytes at most: they are in memory until
    /// [`Self::acknowledged`].
    pub fn keep(&mut self, bytes: u64) {
        self.unacknowledged = self.unacknowledged.saturating_add(bytes);
    }

    /// They are in memory no more: their receiver has them, or will not get them. Says whether that
    /// lets others begin who could not before.
    pub fn acknowledged(&mut self, bytes: u64) -> bool {
        let had_memory = self.has_memory();
        self.unacknowledged = self.unacknowledged.saturating_sub(bytes);
        !had_memory && self.has_memory()
    }

    fn has_memory(&self) -> bool {
        self.unacknowledged < self.unacknowledged_max
    }

    /// `peer` needs no slot any more, or is gone.
    pub fn pass(&mut self, peer: PeerId) {
        self.leave_line(peer);
        self.invited.retain(|&(invited, _)| invited != peer);
    }

    fn leave_line(&mut self, peer: PeerId) {
        if let Some(at) = self.waiting.iter().position(|&(waiting, _)| waiting == peer) {
            self.waiting.remove(at);
        }
    }

    /// Who is to be told that a slot is free; to be asked until it names nobody.
    pub fn invite(&mut self, now: Duration) -> Option<PeerId> {
        self.invited.retain(|&(_, until)| until > now);
        let full = self.total + self.invited.len() >= self.slots();
        if full || self.closing || !self.has_memory() || !self.pace.is_free(now) {
            return None;
        }
        let near = || self.waiting.iter().position(|&(_, far)| !far);
        let next = if self.far_called < FAR_RUN { 0 } else { near().unwrap_or(0) };
        let (peer, far) = self.waiting.remove(next)?;
        self.far_called = if far { self.far_called + 1 } else { 0 };
        self.invited.push((peer, now + INVITATION));
        Some(peer)
    }

    /// Sets what may be sent in a second; `None` is any number.
    pub fn limit(&mut self, now: Duration, bytes_per_second: Option<u64>) {
        self.pace.limit(now, bytes_per_second);
    }

    /// How long to wait before the next chunk of an answer.
    pub fn pause(&self, now: Duration) -> Duration {
        self.pace.pause(now)
    }

    /// When who waits is to be called again, where a limit is what they wait for.
    pub fn call_at(&self, now: Duration) -> Option<Duration> {
        let limited = !self.waiting.is_empty() && !self.pace.is_free(now);
        limited.then(|| self.pace.free_at())
    }

    /// Whether it is the line that receivers wait for: by its limit, or by what it has carried. Before
    /// anything is measured it is not.
    pub fn line_is_slow(&self) -> bool {
        let limit = self.pace.bytes_per_second();
        limit.is_some_and(|rate| line::is_slow(rate as f64)) || self.line.is_slow()
    }

    /// Begins nothing any more; what is under way goes on.
    pub fn close(&mut self) {
        self.closing = true;
        self.waiting.clear();
        self.invited.clear();
    }

    fn may_name(&mut self, now: Duration, peer: PeerId) -> bool {
        if self.named.len() >= WAITING_MAX {
            self.named.retain(|_, at| now < *at + NAMING_INTERVAL);
        }
        let due = self.named.get(&peer).is_none_or(|&at| now >= at + NAMING_INTERVAL);
        if due && self.named.len() < WAITING_MAX {
            self.named.insert(peer, now);
        }
        due
    }

    pub fn total(&self) -> usize {
        self.total
    }

    /// Whom answers go to at the moment: they will soon have what others ask for.
    pub fn served(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.by_peer.keys().copied()
    }

    fn slots(&self) -> usize {
        let fills = (at_once(self.slots_min, &self.meter) + self.extra).min(UPLOADS_MAX);
        fills.min(self.pace.requests_max())
    }
}

/// How many at once fill a line of this rate, with `least` on a slow one.
pub(crate) fn at_once(least: usize, meter: &Meter) -> usize {
    least + (meter.best / BYTES_PER_SLOT) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8) -> PeerId {
        PeerId::from_public_key([n; 32])
    }

    fn begin(uploads: &mut Uploads, now: Duration, peer: PeerId) -> bool {
        uploads.begin(now, peer, false) == Admission::Granted
    }

    const NOW: Duration = Duration::from_millis(1);

    #[test]
    fn the_first_in_line_is_called_and_nobody_takes_its_slot() {
        let mut uploads = Uploads::default();
        let taken = (0..100).filter(|_| begin(&mut uploads, NOW, peer(1))).count();
        assert_eq!(taken, SLOTS_MIN);
        assert!(!begin(&mut uploads, NOW, peer(2)) && !begin(&mut uploads, NOW, peer(3)));
        assert_eq!(uploads.invite(NOW), None);
        uploads.end(peer(1));
        uploads.pass(peer(1));
        assert_eq!(uploads.invite(NOW), Some(peer(2)));
        assert!(!begin(&mut uploads, NOW, peer(4)), "the slot is kept");
        assert!(begin(&mut uploads, NOW, peer(2)));
        assert_eq!(uploads.total(), SLOTS_MIN);
    }

    #[test]
    fn who_is_over_the_limit_is_busy_and_calls_when_it_is_not() {
        let mut uploads = Uploads::default();
        uploads.limit(NOW, Some(1_000_000));
        assert!(begin(&mut uploads, NOW, peer(1)));
        assert!(!begin(&mut uploads, NOW, peer(2)), "one at a time on so thin a line");
        uploads.sent(NOW, 500_000);
        uploads.end(peer(1));
        assert_eq!(uploads.invite(NOW), None);
        let free = uploads.call_at(NOW).unwrap();
        assert_eq!(free, NOW + Duration::from_millis(500));
        assert_eq!(uploads.invite(free), Some(peer(2)));
        assert!(begin(&mut uploads, free, peer(2)));
        assert_eq!(uploads.call_at(free), None);
    }

    #[test]
    fn who_closes_ends_what_it_began_and_begins_nothing() {
        let mut uploads = Uploads::default();
        assert!(begin(&mut uploads, NOW, peer(1)));
        uploads.close();
        assert!(!begin(&mut uploads, NOW, peer(2)));
        assert_eq!(uploads.total(), 1);
        uploads.end(peer(1));
        assert_eq!((uploads.total(), uploads.invite(NOW)), (0, None));
        assert!(!begin(&mut uploads, NOW, peer(2)));
    }

    #[test]
    fn nothing_is_begun_while_what_was_sent_fills_the_memory_for_it() {
        const ANSWER: u64 = UNACKNOWLEDGED_BYTES_MAX / 4;
        let mut uploads = Uploads::default();
        let mut begun = 0;
        // Each answer is sent at once, as into a buffer, and its slot is free again.
        while begun < 100 && begin(&mut uploads, NOW, peer(1)) {
            uploads.keep(ANSWER);
            uploads.end(peer(1));
            begun += 1;
        }
        assert_eq!(begun, 4);
        assert!(!begin(&mut uploads, NOW, peer(2)));
        assert_eq!(uploads.invite(NOW), None);
        assert!(uploads.acknowledged(ANSWER));
        assert_eq!(uploads.invite(NOW), Some(peer(1)));
        assert_eq!(uploads.invite(NOW), Some(peer(2)));
        assert!(begin(&mut uploads, NOW, peer(2)));
    }

    #[test]
    fn an_invitation_that_nobody_takes_lapses() {
        let mut uploads = Uploads::default();
        assert!((0..SLOTS_MIN).all(|_| begin(&mut uploads, NOW, peer(1))));
        assert!(!begin(&mut uploads, NOW, peer(2)));
        uploads.end(peer(1));
        assert_eq!(uploads.invite(NOW), Some(peer(2)));
        assert!(begin(&mut uploads, NOW + INVITATION, peer(3)));
    }

    #[test]
    fn a_room_waits_for_two_of_others_at_most() {
        let mut uploads = Uploads::default();
        while begin(&mut uploads, NOW, peer(1)) {}
        uploads.pass(peer(1));
        (2..4).for_each(|n| assert!(!begin(&mut uploads, NOW, peer(n))));
        for n in 4..9 {
            uploads.begin(NOW, peer(n), true);
        }
        let called: Vec<PeerId> = std::iter::from_fn(|| {
            uploads.end(peer(1));
            uploads.invite(NOW)
        })
        .take(6)
        .collect();
        assert_eq!(called, [4, 5, 2, 6, 7, 3].map(peer));
    }

    #[test]
    fn a_line_is_slow_by_what_it_carried_or_by_its_limit() {
        let mut uploads = Uploads::default();
        assert!(!uploads.line_is_slow(), "nothing is known of it");
        uploads.limit(NOW, Some(10 << 20));
        assert!(uploads.line_is_slow());
        uploads.limit(NOW, Some(1 << 30));
        assert!(!uploads.line_is_slow());
        for second in 0..3 {
            uploads.sent(NOW + Duration::from_secs(second), 10 << 20);
        }
        assert!(uploads.line_is_slow());
    }

    #[test]
    fn slow_receivers_get_company() {
        let mut uploads = Uploads::default();
        let window = Duration::from_secs(1);
        uploads.sent(Duration::ZERO, 100 << 20);
        uploads.sent(window, 0);
        let mut now = window;
        while begin(&mut uploads, now, peer(1)) {}
        let before = uploads.total();
        for _ in 0..10 {
            now += window;
            uploads.sent(now, 1);
            assert!(uploads.total() <= UPLOADS_MAX);
            if let Some(next) = uploads.invite(now) {
                assert!(begin(&mut uploads, now, next));
            }
            begin(&mut uploads, now, peer(2));
        }
        assert!(uploads.total() > before, "{} slots of {before}", uploads.total());
    }
}
