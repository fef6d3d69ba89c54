//! Drives the core: hands it events and time, does what it says.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_content::{RecipeId, Ticket};
use shoal_swarm::{Action, Event, RequestEnd, RequestId, Settings, Swarm as Core};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::MissedTickBehavior;
use tracing::{debug, info, warn};

use crate::link;
use crate::request;
use crate::status::Banned;
use crate::swarm::{PeerRole, Shared, wall_clock};
use crate::transfer::{FetchError, Owned};

/// Events taken before time is looked at again.
const BATCH: usize = 256;
/// A turn that comes so much too late is a stall of this process, or of its host.
const LATE_MIN: Duration = Duration::from_millis(20);
/// How often transfers that nobody waits for any more are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// A host's connection to another host is closed when it was of no use for so long: each costs both
/// some packets every second.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// From when an authority was taken out until connections with its certificates are closed: by then, who
/// is connected has one of another authority, and comes again at once.
const WITHDRAWN_GRACE: Duration = Duration::from_secs(20);

/// Says why a connection is closed.
const IDLE: u32 = 6;

struct Driver {
    shared: Arc<Shared>,
    core: Core,
    clock: Clock,
    requests: HashMap<RequestId, AbortHandle>,
    /// What the core hears of after the action at hand: requests that could not even begin.
    unmet: Vec<Event>,
    withdrawals: Withdrawals,
}

/// Authorities that were taken out of those that are believed.
struct Withdrawals {
    seen: u64,
    /// When connections are looked at for the last one.
    look_at: Option<Instant>,
}

impl Withdrawals {
    fn new(seen: u64) -> Self {
        Self { seen, look_at: None }
    }

    /// Whether it is time to look at all connections, where so many were taken out by `now`.
    fn is_due(&mut self, count: u64, now: Instant) -> bool {
        if count != self.seen {
            self.seen = count;
            self.look_at = Some(now + WITHDRAWN_GRACE);
        }
        let due = self.look_at.is_some_and(|at| at <= now);
        if due {
            self.look_at = None;
        }
        due
    }
}

pub(crate) async fn run(shared: Arc<Shared>, mut inbox: mpsc::Receiver<Event>) {
    let me = shared.config.credentials.peer_id();
    let zone = shared.config.zone.clone();
    let core = Core::new(Settings { me, seed: rand::random(), zone });
    let cancel = shared.cancel.clone();
    let mut driver = Driver {
        clock: Clock::new(shared.began),
        withdrawals: Withdrawals::new(shared.config.credentials.trust().withdrawals()),
        shared,
        core,
        requests: HashMap::new(),
        unmet: Vec::new(),
    };
    let mut events = Vec::with_capacity(BATCH);
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let due = driver.core.next_timeout().map(|at| driver.clock.wall(at));
        let timer = async {
            match due {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = cancel.cancelled() => break,
            count = inbox.recv_many(&mut events, BATCH) => if count == 0 { break },
            // What came meanwhile is heard first: it is not late.
            () = timer => while events.len() < BATCH && let Ok(event) = inbox.try_recv() {
                events.push(event);
            },
            _ = sweep.tick() => {
                driver.seek_where_no_node_helps();
                driver.close_idle_links();
                driver.close_distrusted_links();
                driver.tell_waits();
                driver.shared.relay.forget_old(driver.shared.began.elapsed());
                events.extend(driver.abandoned());
                events.extend(driver.expired());
            }
        }
        driver.clock.woken(due);
        for event in events.drain(..) {
            if let Event::Ended { request, .. } | Event::Wrong { request } = &event {
                driver.requests.remove(request);
            }
            if driver.is_of_another_transfer(&event) {
                continue;
            }
            driver.tell_discovery(&event);
            driver.core.hear(driver.clock.now(), event);
            driver.act();
        }
        driver.core.look(driver.clock.now());
        driver.act();
    }
    driver.requests.values().for_each(AbortHandle::abort);
}

/// The core's time: it stands still while this process gets no turn. Else a host that stalls
/// would find all its neighbours late, when what they sent only waits to be read.
struct Clock {
    began: Instant,
    stood: Duration,
}

impl Clock {
    fn new(began: Instant) -> Self {
        Self { began, stood: Duration::ZERO }
    }

    fn now(&self) -> Duration {
        self.began.elapsed().saturating_sub(self.stood)
    }

    fn wall(&self, at: Duration) -> Instant {
        self.began + self.stood + at
    }

    /// Called on each turn, with the time at which it should have come at the latest.
    fn woken(&mut self, due: Option<Instant>) {
        let late = due.map(|due| due.elapsed()).unwrap_or_default();
        if late > LATE_MIN {
            self.stood += late;
        }
    }
}

impl Driver {
    fn act(&mut self) {
        loop {
            while let Some(action) = self.core.poll_action() {
                self.perform(action);
            }
            let Some(unmet) = self.unmet.pop() else { return };
            self.core.hear(self.clock.now(), unmet);
        }
    }

    /// Whether it is about a transfer that is not the one of its recipe any more. A stop may come
    /// after the start of the next one, which goes on; a start after its owner has gone, when
    /// opening the store took long, and nobody would end what it began.
    fn is_of_another_transfer(&self, event: &Event) -> bool {
        let (recipe, wanted) = match event {
            Event::Start { recipe, .. } => (recipe, true),
            Event::Stop { recipe } => (recipe, false),
            _ => return false,
        };
        let under_way = self.shared.transfers.lock().get(recipe).is_some_and(Owned::is_under_way);
        under_way != wanted
    }

    fn tell_discovery(&self, event: &Event) {
        let Some(discovery) = &self.shared.discovery else { return };
        match *event {
            Event::Start { recipe, .. } => {
                discovery.offer(recipe);
                if !self.shared.has_node() {
                    discovery.seek(recipe);
                }
            }
            Event::Seed { recipe } => discovery.offer(recipe),
            Event::Stop { recipe } => discovery.withdraw(recipe),
            _ => {}
        }
    }

    fn seek_where_no_node_helps(&self) {
        let Some(discovery) = &self.shared.discovery else { return };
        let alone = !self.shared.has_node();
        for (&recipe, owned) in self.shared.transfers.lock().iter() {
            if alone && owned.is_under_way() {
                discovery.seek(recipe);
            } else {
                discovery.rest(recipe);
            }
        }
    }

    /// What each transfer waits for, for who asks.
    fn tell_waits(&self) {
        for (&recipe, owned) in self.shared.transfers.lock().iter() {
            if owned.is_under_way() {
                owned.running.waits(self.core.waits_for(recipe));
            }
        }
    }

    /// Where nothing is on its way here; whoever still wants something of this one dials again.
    fn close_idle_links(&self) {
        let shared = &self.shared;
        crate::bulk::close_idle(shared);
        let is_busy = || shared.transfers.lock().values().any(Owned::is_under_way);
        if shared.config.role == PeerRole::Origin || is_busy() {
            return;
        }
        let links = shared.links.lock();
        for link in links.values().filter(|link| !link.node && link.idle() >= IDLE_MAX) {
            debug!(peer = %link.peer, "of no use for long");
            link.connection.close(IDLE.into(), b"idle");
        }
    }

    /// Some time after an authority was taken out, those with its certificates.
    fn close_distrusted_links(&mut self) {
        let count = self.shared.config.credentials.trust().withdrawals();
        if self.withdrawals.is_due(count, Instant::now()) {
            let shared = self.shared.clone();
            // A node has thousands, and each costs a signature or two.
            self.shared.tasks.spawn_blocking(move || link::close_distrusted(&shared));
        }
    }

    /// Transfers whose owner is gone without that the driver was told. Who watches one of them yet sees
    /// that it has ended.
    fn abandoned(&mut self) -> Vec<Event> {
        let mut stops = Vec::new();
        self.shared.transfers.lock().retain(|&recipe, owned| {
            if owned.is_abandoned() {
                owned.end(FetchError::Stopped);
                stops.push(Event::Stop { recipe });
            }
            owned.has_owner()
        });
        stops
    }

    /// Ends transfers whose right has run out: nobody gives them anything any more.
    fn expired(&self) -> Vec<Event> {
        let (now, mut stops) = (wall_clock(), Vec::new());
        for (&recipe, owned) in self.shared.transfers.lock().iter() {
            let until = self.shared.tickets.lock().get(&recipe).map(Ticket::expires);
            if owned.is_under_way() && until.is_none_or(|until| until <= now) {
                owned.end(FetchError::Expired);
                stops.push(Event::Stop { recipe });
            }
        }
        stops
    }

    fn perform(&mut self, action: Action) {
        let shared = &self.shared;
        let link = |peer| shared.links.lock().get(peer).cloned();
        match action {
            Action::Dial(contact) => {
                shared.tasks.spawn(link::dial(shared.clone(), contact));
            }
            Action::Close { peer } => {
                if let Some(link) = link(&peer) {
                    link.connection.close(2u32.into(), b"refused");
                }
            }
            Action::Join { peer, recipe } => {
                if let Some(link) = link(&peer) {
                    shared.join(&link, recipe);
                }
            }
            Action::Send { peer, frame } => {
                if let Some(link) = link(&peer) {
                    link.send(frame);
                }
            }
            Action::Request { request, peer, recipe, indices, insists } => {
                let Some(running) = shared.running(recipe) else {
                    // Its owner has gone; whoever was to be asked has nothing to do with that.
                    return self.unmet.push(Event::Stop { recipe });
                };
                let Some(link) = link(&peer) else {
                    return self.unmet.push(Event::Ended { request, end: RequestEnd::Failed });
                };
                let work =
                    request::chunks(shared.clone(), link, running, request, (indices, insists));
                self.requests.insert(request, shared.tasks.spawn(work).abort_handle());
            }
            Action::Cancel { request } => {
                if let Some(task) = self.requests.remove(&request) {
                    task.abort();
                }
            }
            Action::Ban { peer, reason, until } => {
                warn!(%peer, reason = reason.as_str(), "banned");
                shared.metrics.banned(reason.as_str());
                shared.ban(peer, Banned { until: self.clock.wall(until), reason });
            }
            Action::Complete { recipe } => {
                shared.tasks.spawn(complete(shared.clone(), recipe));
            }
        }
    }
}

async fn complete(shared: Arc<Shared>, recipe: RecipeId) {
    let Some(running) = shared.running(recipe) else { return };
    match shared.store.complete(recipe).await {
        Ok(()) => {
            info!(%recipe, "complete");
            running.end(Ok(()));
        }
        Err(error) => running.end(Err(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_looked_at_once_after_each_withdrawal() {
        let now = Instant::now();
        let mut withdrawals = Withdrawals::new(3);
        assert!(!withdrawals.is_due(3, now + WITHDRAWN_GRACE), "none was taken out");
        assert!(!withdrawals.is_due(4, now));
        assert!(withdrawals.is_due(4, now + WITHDRAWN_GRACE));
        assert!(!withdrawals.is_due(4, now + WITHDRAWN_GRACE * 2), "twice for one");
        // Of two the later one counts: who shows its certificate had no time yet.
        assert!(!withdrawals.is_due(5, now) && !withdrawals.is_due(6, now + WITHDRAWN_GRACE / 2));
        assert!(!withdrawals.is_due(6, now + WITHDRAWN_GRACE));
        assert!(withdrawals.is_due(6, now + WITHDRAWN_GRACE * 2));
    }

    #[test]
    fn time_stands_still_while_the_process_gets_no_turn() {
        let long = Duration::from_secs(100);
        let Some(began) = Instant::now().checked_sub(long) else { return };
        let mut clock = Clock::new(began);
        assert!(clock.now() >= long);
        // A turn was due at once and comes only now; what is due later is due so much later.
        clock.woken(Some(began));
        assert!(clock.now() < long / 2);
        assert!(clock.wall(long) >= began + long * 2);
        let before = clock.now();
        clock.woken(Some(Instant::now()));
        clock.woken(None);
        assert!(clock.now() >= before, "a turn in time takes nothing away");
    }
}
