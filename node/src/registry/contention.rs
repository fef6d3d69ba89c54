//! Who gives way where something shared is scarce: memory for bodies whose senders may be slow.
//!
//! Whoever holds some may take its time while there is enough for all. While others wait, what has
//! been held for so long that it is their turn is given up, as much as they want; and nobody waits
//! for ever. Invariant: what is given up counts until those who waited have got it, so that no more
//! is given up for the same wish.
//! Non-goals: how much there is, and in which order it is had: a semaphore of the caller's; what
//! becomes of the work of whoever gives way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// What is wanted by those who wait, and what is on its way to them; in units of the caller's.
#[derive(Debug, Default, PartialEq, Eq)]
struct Demand {
    wanted: u64,
    /// By who holds it yet.
    given_up: u64,
    /// Free again, for somebody among those who wait and has not noticed yet.
    arriving: u64,
}

impl Demand {
    fn begins(&mut self, units: u32) {
        self.wanted += u64::from(units);
    }

    /// Somebody waits no more; nearly always because it has got what it wanted.
    fn ends(&mut self, units: u32) {
        self.wanted -= u64::from(units);
        self.arriving = self.arriving.saturating_sub(units.into()).min(self.wanted);
    }

    /// Whether something that has been held for long enough is to be given up, too; it counts from
    /// then on.
    fn takes(&mut self, units: u32) -> bool {
        let takes = self.wanted > self.given_up + self.arriving;
        if takes {
            self.given_up += u64::from(units);
        }
        takes
    }

    /// What was given up is about to be free.
    fn released(&mut self, units: u32) {
        self.given_up -= u64::from(units);
        self.arriving = (self.arriving + u64::from(units)).min(self.wanted);
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Contention {
    demand: Mutex<Demand>,
    /// Told whenever somebody begins to wait.
    waits: Notify,
    held_max: Duration,
    wait_max: Duration,
}

impl Contention {
    /// Something may be held for `held_max` while others wait, who wait for `wait_max`.
    pub fn new(held_max: Duration, wait_max: Duration) -> Arc<Self> {
        let (demand, waits) = (Mutex::default(), Notify::new());
        Arc::new(Self { demand, waits, held_max, wait_max })
    }

    /// What `turn` brings, which is waited for because `units` were not free. `None` where it takes
    /// too long.
    pub async fn wait<T>(&self, units: u32, turn: impl Future<Output = T>) -> Option<T> {
        let _waiting = Waiting::begin(self, units);
        tokio::time::timeout(self.wait_max, turn).await.ok()
    }

    /// `permit` is what is held.
    pub fn hold<P>(self: &Arc<Self>, units: u32, permit: P) -> Held<P> {
        let (since, is_given_up) = (Instant::now(), AtomicBool::new(false));
        Held { contention: Arc::clone(self), units, since, is_given_up, _permit: permit }
    }
}

/// Somebody who waits.
struct Waiting<'a> {
    contention: &'a Contention,
    units: u32,
}

impl<'a> Waiting<'a> {
    fn begin(contention: &'a Contention, units: u32) -> Self {
        contention.demand.lock().begins(units);
        contention.waits.notify_waiters();
        Self { contention, units }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.contention.demand.lock().ends(self.units);
    }
}

/// Something that others may wait for, until this is dropped.
#[derive(Debug)]
pub struct Held<P> {
    contention: Arc<Contention>,
    units: u32,
    since: Instant,
    is_given_up: AtomicBool,
    /// Is free only once that was counted: nobody may be done waiting for it before.
    _permit: P,
}

impl<P> Held<P> {
    /// Returns when it has to be given up.
    pub async fn is_wanted(&self) {
        if self.is_given_up.load(Ordering::Relaxed) {
            return;
        }
        tokio::time::sleep_until(self.since + self.contention.held_max).await;
        loop {
            // Whoever begins to wait after the look wakes this one all the same.
            let another = self.contention.waits.notified();
            let takes = self.contention.demand.lock().takes(self.units);
            if takes {
                self.is_given_up.store(true, Ordering::Relaxed);
                return;
            }
            another.await;
        }
    }

    /// Whether it has to be given up now: it was held for long enough, and others wait.
    pub fn is_wanted_now(&self) -> bool {
        if self.is_given_up.load(Ordering::Relaxed) {
            return true;
        }
        let takes = self.since.elapsed() >= self.contention.held_max
            && self.contention.demand.lock().takes(self.units);
        if takes {
            self.is_given_up.store(true, Ordering::Relaxed);
        }
        takes
    }
}

impl<P> Drop for Held<P> {
    fn drop(&mut self) {
        if self.is_given_up.load(Ordering::Relaxed) {
            self.contention.demand.lock().released(self.units);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn as_much_is_given_up_as_is_wanted_and_no_more() {
        let mut demand = Demand::default();
        assert!(!demand.takes(64), "nobody waits");
        demand.begins(65);
        assert!(demand.takes(64) && demand.takes(64));
        assert!(!demand.takes(64), "two make room for 65");
        // Both are free again, and who waits has not noticed yet.
        demand.released(64);
        demand.released(64);
        assert!(!demand.takes(64), "it has as good as got it");
        demand.ends(65);
        assert!(!demand.takes(64), "nobody waits any more");
        assert_eq!(demand, Demand::default());
    }

    #[test]
    fn what_one_has_got_is_given_up_once_more_for_the_next() {
        let mut demand = Demand::default();
        demand.begins(1);
        demand.begins(1);
        assert!(demand.takes(1));
        demand.released(1);
        demand.ends(1);
        assert!(demand.takes(1), "the second waits yet");
        // It gets another one's, which ended by itself.
        demand.ends(1);
        demand.released(1);
        demand.begins(1);
        assert!(demand.takes(1), "what was free while nobody waited is gone");
    }

    #[tokio::test]
    async fn what_was_held_for_long_goes_to_who_waits_for_it() {
        let (free, contention) = (Semaphore::new(2), Contention::new(SHORT, LONG));
        let hold = || contention.hold(1, free.try_acquire().unwrap());
        let (slow, quick) = (hold(), hold());
        let kept = tokio::time::timeout(SHORT * 3, slow.is_wanted()).await;
        assert!(kept.is_err(), "nobody waits, and it is taken away");
        let gives_up = async move {
            slow.is_wanted().await;
            drop(slow);
        };
        let (third, ()) = tokio::join!(contention.wait(1, free.acquire()), gives_up);
        assert!(third.is_some());
        // One was enough.
        assert!(tokio::time::timeout(SHORT * 3, quick.is_wanted()).await.is_err());
        assert_eq!(*contention.demand.lock(), Demand::default());
    }

    #[tokio::test]
    async fn who_asks_hears_whether_it_is_to_give_way_now() {
        let (free, contention) = (Semaphore::new(2), Contention::new(Duration::ZERO, LONG));
        let hold = || contention.hold(1, free.try_acquire().unwrap());
        let (first, second) = (hold(), hold());
        assert!(!first.is_wanted_now(), "nobody waits");
        let gives_way = async {
            assert!(first.is_wanted_now());
            assert!(first.is_wanted_now(), "it was taken back");
            assert!(!second.is_wanted_now(), "one is enough");
            drop(first);
        };
        let (third, ()) = tokio::join!(contention.wait(1, free.acquire()), gives_way);
        assert!(third.is_some() && !second.is_wanted_now());
        let patient = Contention::new(LONG, LONG);
        let held = patient.hold(1, ());
        let waits = patient.wait(1, std::future::pending::<()>());
        tokio::select! {
            biased;
            _ = waits => panic!("nothing comes"),
            () = std::future::ready(()) => assert!(!held.is_wanted_now(), "it was held for a moment"),
        }
    }

    #[tokio::test]
    async fn nobody_waits_for_ever() {
        let (free, contention) = (Semaphore::new(1), Contention::new(LONG, SHORT));
        let held = contention.hold(1, free.try_acquire().unwrap());
        assert!(contention.wait(1, free.acquire()).await.is_none());
        assert_eq!(*contention.demand.lock(), Demand::default());
        drop(held);
        assert!(contention.wait(1, free.acquire()).await.is_some());
    }
}
