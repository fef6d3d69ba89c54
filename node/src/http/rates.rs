//! How often somebody may ask: one rate for each address and each account, at each node.
//!
//! The generic cell rate algorithm (ITU-T I.371): for each one, the time is kept at which its
//! requests so far would have come evenly; who is ahead of that by more than the burst waits.
//! Invariants: the table is bounded; when it is full of those who asked just now, newcomers share
//! one place. Machines of the cluster, and networks that are exempt, have no rate.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use shoal_metadata::Suspect;

use super::problem::Problem;
use crate::config;
use crate::registry::RegistryError;
use crate::state::App;

const PLACES_MAX: usize = 50_000;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Asking {
    /// Of IPv6, its network.
    Address(IpAddr),
    Principal(String),
    /// Whoever has no place of its own.
    Others,
}

impl Asking {
    /// As whom the lock-out knows it: whoever has a whole network has one rate.
    pub fn address(client: IpAddr) -> Self {
        Self::Address(Suspect::network(client))
    }
}

#[derive(Debug)]
struct Table {
    /// Nanoseconds since the start at which the next request would be even.
    even: HashMap<Asking, u64>,
    cleared: u64,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Rates {
    start: Instant,
    address_per_second: u32,
    principal_per_second: u32,
    burst_seconds: u32,
    table: Mutex<Table>,
}

impl Rates {
    pub fn new(rates: &config::Rates) -> Self {
        Self {
            start: Instant::now(),
            address_per_second: rates.address_per_second,
            principal_per_second: rates.principal_per_second,
            burst_seconds: rates.burst_seconds.max(1),
            table: Mutex::new(Table { even: HashMap::new(), cleared: 0 }),
        }
    }

    /// Counts a request.
    ///
    /// # Errors
    /// With the time to wait; then it does not count.
    pub fn count(&self, who: Asking) -> Result<(), Duration> {
        let now = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.count_at(who, now)
    }

    fn count_at(&self, who: Asking, now: u64) -> Result<(), Duration> {
        const SECOND: u64 = 1_000_000_000;
        let rate = match who {
            Asking::Principal(_) => self.principal_per_second,
            Asking::Address(_) | Asking::Others => self.address_per_second,
        };
        if rate == 0 {
            return Ok(());
        }
        let (step, burst) = (SECOND / u64::from(rate), SECOND * u64::from(self.burst_seconds));
        let mut table = self.table.lock();
        let known = table.even.contains_key(&who);
        let who = if known || table.has_room(now) { who } else { Asking::Others };
        let even = table.even.entry(who).or_insert(now);
        let next = (*even).max(now) + step;
        match next.checked_sub(now + burst) {
            Some(ahead) if ahead > 0 => Err(Duration::from_nanos(ahead)),
            _ => {
                *even = next;
                Ok(())
            }
        }
    }
}

impl Table {
    /// At most once a second, those who have not asked for a while give their places away.
    fn has_room(&mut self, now: u64) -> bool {
        const SECOND: u64 = 1_000_000_000;
        if self.even.len() < PLACES_MAX {
            return true;
        }
        if now >= self.cleared + SECOND {
            self.cleared = now;
            self.even.retain(|_, even| *even > now);
        }
        self.even.len() < PLACES_MAX
    }
}

/// The middleware for addresses.
pub async fn slow_down(State(app): State<App>, request: Request, next: Next) -> Response {
    let client = super::auth::client_of(request.extensions());
    let path = request.uri().path();
    let (registry, counted) =
        (path.starts_with("/v2"), path.starts_with("/v2") || path.starts_with("/api"));
    if let Some(client) = client.filter(|client| counted && !app.lockout.is_exempt(*client))
        && let Err(wait) = app.rates.count(Asking::address(client))
    {
        app.metrics.slowed_down("address");
        let problem = Problem::too_often(wait);
        return match registry {
            true => RegistryError::from(problem).into_response(),
            false => problem.into_response(),
        };
    }
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(address: u32, principal: u32) -> Rates {
        Rates::new(&config::Rates {
            address_per_second: address,
            principal_per_second: principal,
            burst_seconds: 2,
        })
    }

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_burst_passes_and_then_one_in_its_time() {
        let rates = rates(10, 5);
        let alice = || Asking::Principal("alice".into());
        let passed = |at| (0..100).filter(|_| rates.count_at(alice(), at).is_ok()).count();
        assert_eq!(passed(0), 10);
        assert_eq!(rates.count_at(alice(), 0), Err(Duration::from_millis(200)));
        assert_eq!(passed(SECOND), 5);
        assert_eq!(passed(60 * SECOND), 10);
        // Others are others, and an address is none of them.
        assert!(rates.count_at(Asking::Principal("bob".into()), 0).is_ok());
        assert!(rates.count_at(Asking::Address([10, 0, 0, 1].into()), 0).is_ok());
    }

    #[test]
    fn who_has_a_whole_network_has_one_rate() {
        let rates = rates(1, 1);
        let address = |text: &str| Asking::address(text.parse().unwrap());
        let passed = |text| (0..10).filter(|_| rates.count_at(address(text), 0).is_ok()).count();
        assert_eq!((passed("2001:db8::1"), passed("2001:db8::2")), (2, 0));
        assert_eq!((passed("2001:db8:0:1::1"), passed("10.0.0.1"), passed("10.0.0.2")), (2, 2, 2));
        assert_eq!(passed("::ffff:10.0.0.1"), 0);
    }

    #[test]
    fn without_a_rate_nobody_waits() {
        let rates = rates(0, 0);
        assert!((0..10_000).all(|_| rates.count_at(Asking::Others, 0).is_ok()));
        assert!(rates.table.lock().even.is_empty());
    }

    #[test]
    fn a_flood_of_addresses_has_a_bound() {
        let rates = rates(1, 1);
        let address = |n: u32| Asking::Address(std::net::Ipv4Addr::from_bits(n).into());
        for n in 0..60_000 {
            let _ = rates.count_at(address(n), 0);
        }
        assert!(rates.table.lock().even.len() <= PLACES_MAX + 1);
        assert!(rates.count_at(address(70_000), 0).is_err(), "they share a place");
        assert!(rates.count_at(address(70_000), 10 * SECOND).is_ok());
        assert_eq!(rates.table.lock().even.len(), 1);
    }
}
