//! Which parts of an upload have come, for who reads the disk before the last one is there.
//!
//! The reader waits for a part that it wants. Parts on their way in wait for the reader, while as much
//! as [`BACKLOG_BYTES_MAX`] has come that is ahead of it: so what is left to read after the last byte
//! takes no longer than that much does, however fast the bytes come.
//!
//! Invariants: nobody waits for both: while the reader waits for a part, every part may come; a part
//! waits at most [`WAY_WAIT_MAX`]; a part that becomes another after it was made known ends the
//! reading, since its bytes may have been read already.
//! Non-goal: storing parts, and reading them (see `source`).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use shoal_metadata::UploadPart;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

/// Bytes of parts that are here or on their way, and ahead of the reader.
const BACKLOG_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// A part may come after this, whatever the reader does.
const WAY_WAIT_MAX: Duration = Duration::from_secs(30);
/// An upload of which nothing comes for so long is read when it is there.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// What is known of parts that are not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outlook {
    /// They may come.
    Coming,
    /// There will be no others.
    Whole,
    /// Nobody waits for them any more.
    GivenUp,
}

/// What the reader does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// It looks for tables and maps, here and there.
    Surveying,
    /// It goes over the disk from its beginning to its end.
    Cutting,
    /// It goes over what it has read once more, and wants nothing else.
    Again,
    Ended,
}

#[derive(Debug)]
struct State {
    parts: BTreeMap<u32, UploadPart>,
    outlook: Outlook,
    reading: Reading,
    /// The part that the reader wanted last, and whether it has to wait for it.
    wanted: u32,
    is_waiting: bool,
    /// Parts that were read once.
    read: BTreeSet<u32>,
    /// Bytes of parts that were let in and are not among `parts` yet.
    under_way: u64,
}

impl State {
    /// What is ahead of a reader that is busy, in bytes.
    fn backlog(&self) -> u64 {
        let busy =
            self.outlook == Outlook::Coming && self.reading == Reading::Cutting && !self.is_waiting;
        if !busy {
            return 0;
        }
        let ahead = self.parts.range(self.wanted.saturating_add(1)..);
        let unread = ahead.filter(|(part, _)| !self.read.contains(part));
        unread.map(|(_, part)| part.bytes).sum::<u64>() + self.under_way
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Arrivals {
    state: Mutex<State>,
    /// For the reader: a part has come, or none will.
    came: Condvar,
    /// For parts on their way in: the reader went on, waits, or has ended.
    went_on: Notify,
    idle_max: Duration,
    way_wait_max: Duration,
}

/// A part's place among those on their way in.
#[derive(Debug)]
#[must_use]
pub struct Way {
    arrivals: Arc<Arrivals>,
    bytes: u64,
}

impl Drop for Way {
    fn drop(&mut self) {
        self.arrivals.state.lock().under_way -= self.bytes;
        self.arrivals.went_on.notify_waiters();
    }
}

impl Arrivals {
    /// Of an upload that is there whole.
    pub fn whole(parts: BTreeMap<u32, UploadPart>) -> Self {
        Self::new(parts, Outlook::Whole)
    }

    /// Of an upload of which more may come.
    pub fn coming(parts: BTreeMap<u32, UploadPart>) -> Self {
        Self::new(parts, Outlook::Coming)
    }

    fn new(parts: BTreeMap<u32, UploadPart>, outlook: Outlook) -> Self {
        let state = State {
            parts,
            outlook,
            reading: Reading::Surveying,
            wanted: 0,
            is_waiting: false,
            read: BTreeSet::new(),
            under_way: 0,
        };
        Self {
            state: Mutex::new(state),
            came: Condvar::new(),
            went_on: Notify::new(),
            idle_max: IDLE_MAX,
            way_wait_max: WAY_WAIT_MAX,
        }
    }

    /// Makes known what has come so far.
    pub fn came(&self, parts: &BTreeMap<u32, UploadPart>) {
        self.learn(parts, Outlook::Coming);
    }

    /// Makes known what the file consists of. Gives whether all that was known before is as it was,
    /// and somebody still reads it.
    #[must_use]
    pub fn complete(&self, parts: &BTreeMap<u32, UploadPart>) -> bool {
        self.learn(parts, Outlook::Whole);
        self.state.lock().outlook == Outlook::Whole
    }

    fn learn(&self, parts: &BTreeMap<u32, UploadPart>, outlook: Outlook) {
        let mut state = self.state.lock();
        if state.outlook != Outlook::Coming {
            return;
        }
        let changed = state.parts.iter().any(|(part, known)| parts.get(part) != Some(known));
        state.outlook = if changed { Outlook::GivenUp } else { outlook };
        state.parts.clone_from(parts);
        drop(state);
        self.came.notify_all();
        self.went_on.notify_waiters();
    }

    /// Nobody is to wait any more: what is not there will not be read.
    pub fn give_up(&self) {
        let mut state = self.state.lock();
        if state.outlook == Outlook::Coming {
            state.outlook = Outlook::GivenUp;
        }
        drop(state);
        self.came.notify_all();
        self.went_on.notify_waiters();
    }

    /// The part as it was acknowledged, once it is there; `None` where it will not come. Waits on
    /// this thread.
    ///
    /// # Errors
    /// Where nobody waits for it any more.
    pub fn wait(&self, part: u32) -> io::Result<Option<UploadPart>> {
        let mut state = self.state.lock();
        loop {
            if state.outlook == Outlook::GivenUp {
                return Err(io::Error::other("the upload changed, or is not gone on with"));
            }
            let found = state.parts.get(&part).cloned();
            if found.is_some() || state.outlook == Outlook::Whole {
                state.is_waiting = false;
                return Ok(found);
            }
            state.is_waiting = true;
            self.went_on.notify_waiters();
            if self.came.wait_for(&mut state, self.idle_max).timed_out()
                && state.outlook == Outlook::Coming
                && !state.parts.contains_key(&part)
            {
                state.outlook = Outlook::GivenUp;
            }
        }
    }

    /// The reader is at a part.
    pub fn at(&self, part: u32) {
        let mut state = self.state.lock();
        let moved = state.wanted != part;
        state.wanted = part;
        drop(state);
        if moved {
            self.went_on.notify_waiters();
        }
    }

    /// The reader has read a part to its end.
    pub fn read(&self, part: u32) {
        self.state.lock().read.insert(part);
        self.went_on.notify_waiters();
    }

    /// From now on the reader goes over the disk.
    pub fn begin_cut(&self) {
        let mut state = self.state.lock();
        if state.reading == Reading::Surveying {
            state.reading = Reading::Cutting;
        }
    }

    /// From now on it reads only what it has read before: nothing waits for it any more. Gives whether
    /// somebody still wants it.
    pub fn read_again(&self) -> bool {
        let mut state = self.state.lock();
        let begins = matches!(state.reading, Reading::Surveying | Reading::Cutting);
        if begins {
            state.reading = Reading::Again;
        }
        let is_wanted = state.outlook != Outlook::GivenUp;
        drop(state);
        if begins {
            self.went_on.notify_waiters();
        }
        is_wanted
    }

    /// The reader reads no more.
    pub fn end_reading(&self) {
        self.state.lock().reading = Reading::Ended;
        self.went_on.notify_waiters();
    }

    pub fn has_ended(&self) -> bool {
        self.state.lock().reading == Reading::Ended
    }

    /// Waits until the reader reads no more.
    pub async fn ended(&self) {
        loop {
            let mut went_on = std::pin::pin!(self.went_on.notified());
            // Before the look, so that what happens after it is not missed.
            went_on.as_mut().enable();
            if self.has_ended() {
                return;
            }
            went_on.await;
        }
    }

    /// Waits until a part of so many bytes may come.
    pub async fn make_way(self: Arc<Self>, bytes: u64) -> Way {
        let latest = Instant::now() + self.way_wait_max;
        loop {
            let mut went_on = std::pin::pin!(self.went_on.notified());
            // Before the look, so that what happens after it is not missed.
            went_on.as_mut().enable();
            if self.enter(bytes, BACKLOG_BYTES_MAX) {
                break;
            }
            if timeout_at(latest, went_on).await.is_err() {
                self.enter(bytes, u64::MAX);
                break;
            }
        }
        Way { arrivals: self, bytes }
    }

    fn enter(&self, bytes: u64, backlog_max: u64) -> bool {
        let mut state = self.state.lock();
        let enters = state.backlog() < backlog_max;
        if enters {
            state.under_way += bytes;
        }
        enters
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const PART: u64 = BACKLOG_BYTES_MAX / 2;

    fn parts(numbers: impl IntoIterator<Item = u32>) -> BTreeMap<u32, UploadPart> {
        let part = |number| UploadPart { bytes: PART, sha256: [number as u8; 32] };
        numbers.into_iter().map(|number| (number, part(number))).collect()
    }

    fn may_come(arrivals: &Arc<Arrivals>) -> Option<Way> {
        Arc::clone(arrivals).make_way(PART).now_or_never()
    }

    #[tokio::test]
    async fn parts_wait_while_too_much_is_ahead_of_a_busy_reader() {
        let arrivals = Arc::new(Arrivals::coming(parts(0..4)));
        assert!(may_come(&arrivals).is_some(), "nothing is cut yet");
        arrivals.begin_cut();
        arrivals.at(0);
        assert!(may_come(&arrivals).is_none());
        arrivals.read(2);
        assert!(may_come(&arrivals).is_none());
        arrivals.at(1);
        let first = may_come(&arrivals);
        assert!(first.is_some(), "only part 3 is ahead");
        assert!(may_come(&arrivals).is_none(), "what is under way counts");
        let mut second = std::pin::pin!(Arc::clone(&arrivals).make_way(PART));
        assert!(second.as_mut().now_or_never().is_none());
        drop(first);
        let second = second.await;
        assert_eq!(arrivals.state.lock().under_way, PART);
        drop(second);
        arrivals.at(0);
        assert!(may_come(&arrivals).is_none());
        arrivals.end_reading();
        assert!(may_come(&arrivals).is_some());
        assert_eq!(arrivals.state.lock().under_way, 0);
    }

    #[tokio::test]
    async fn nothing_waits_for_a_reader_that_reads_again() {
        let arrivals = Arc::new(Arrivals::coming(parts(0..4)));
        arrivals.begin_cut();
        let mut waiting = std::pin::pin!(Arc::clone(&arrivals).make_way(PART));
        assert!(waiting.as_mut().now_or_never().is_none());
        assert!(arrivals.read_again());
        assert!(waiting.now_or_never().is_some());
        // It begins where it began before.
        arrivals.at(0);
        arrivals.begin_cut();
        assert!(may_come(&arrivals).is_some());
        assert!(!arrivals.has_ended());
        arrivals.give_up();
        assert!(!arrivals.read_again(), "nobody wants it");
        arrivals.end_reading();
        assert!(!arrivals.read_again());
        assert!(arrivals.has_ended());
    }

    #[tokio::test]
    async fn a_reader_that_stands_still_holds_nobody_up_for_ever() {
        let way_wait_max = Duration::from_millis(5);
        let arrivals = Arc::new(Arrivals { way_wait_max, ..Arrivals::coming(parts(0..4)) });
        arrivals.begin_cut();
        assert!(may_come(&arrivals).is_none());
        drop(Arc::clone(&arrivals).make_way(PART).await);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn while_the_reader_waits_for_a_part_every_part_may_come() {
        let arrivals = Arc::new(Arrivals::coming(parts([0, 2, 3, 4])));
        arrivals.begin_cut();
        assert!(may_come(&arrivals).is_none());
        let reader = Arc::clone(&arrivals);
        let waiting = tokio::task::spawn_blocking(move || reader.wait(1));
        drop(Arc::clone(&arrivals).make_way(PART).await);
        assert!(arrivals.state.lock().is_waiting);
        arrivals.came(&parts(0..5));
        assert_eq!(waiting.await.unwrap().unwrap(), parts([1]).remove(&1));
        assert!(may_come(&arrivals).is_none());
    }

    #[test]
    fn a_part_that_becomes_another_ends_the_reading() {
        let arrivals = Arrivals::coming(parts(0..2));
        let mut changed = parts(0..3);
        changed.get_mut(&1).unwrap().sha256 = [9; 32];
        arrivals.came(&changed);
        assert!(arrivals.wait(0).is_err());
        assert!(!arrivals.complete(&changed));
    }

    #[test]
    fn what_is_whole_is_not_waited_for() {
        let arrivals = Arrivals::coming(parts(0..2));
        assert!(arrivals.complete(&parts(0..3)));
        // Whoever gives up later changes nothing of that.
        arrivals.give_up();
        assert_eq!(arrivals.wait(2).unwrap(), parts([2]).remove(&2));
        assert_eq!(arrivals.wait(3).unwrap(), None);
    }

    #[test]
    fn an_upload_that_nobody_goes_on_with_is_given_up() {
        let idle_max = Duration::from_millis(5);
        let arrivals = Arrivals { idle_max, ..Arrivals::coming(parts([0])) };
        assert!(arrivals.wait(0).is_ok());
        assert!(arrivals.wait(1).is_err());
        assert!(!arrivals.complete(&parts(0..2)), "nobody reads it any more");
        let arrivals = Arrivals::coming(parts([0]));
        arrivals.give_up();
        assert!(arrivals.wait(1).is_err());
    }

    #[test]
    fn whoever_waits_for_the_reader_hears_of_its_end() {
        let arrivals = Arrivals::coming(parts([0]));
        let mut ended = Box::pin(arrivals.ended());
        assert!(ended.as_mut().now_or_never().is_none());
        arrivals.read(0);
        assert!(ended.as_mut().now_or_never().is_none());
        arrivals.end_reading();
        assert!(ended.as_mut().now_or_never().is_some());
    }
}
