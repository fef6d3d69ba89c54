//! How an upstream stands with this node: what it answered last, how many requests it takes yet,
//! and whether it is to be left alone for a while.
//!
//! Invariants: soft state of this node; texts and times are bounded; an upstream that said when it
//! may be asked again is not asked before.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use reqwest::header::HeaderMap;
use shoal_content::Timestamp;

use super::error::Error;
use crate::clock;

/// An upstream that could not be reached is not tried again for so long.
const AWAY_PAUSE: Duration = Duration::from_secs(15);
/// Of the last error that is kept.
const ERROR_CHARS_MAX: usize = 400;

/// Labels are names of the operator's.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct UpstreamLabels {
    upstream: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct UpstreamErrorLabels {
    upstream: String,
    kind: &'static str,
}

/// What all upstreams count.
#[derive(Debug, Clone, Default)]
pub struct UpstreamMetrics {
    hits: Family<UpstreamLabels, Counter>,
    misses: Family<UpstreamLabels, Counter>,
    stale: Family<UpstreamLabels, Counter>,
    bytes: Family<UpstreamLabels, Counter>,
    errors: Family<UpstreamErrorLabels, Counter>,
    remaining: Family<UpstreamLabels, Gauge>,
}

impl UpstreamMetrics {
    pub fn register(&self, registry: &mut Registry) {
        for (name, help, family) in [
            ("shoal_upstream_hits", "Manifests and blobs of upstreams that were here", &self.hits),
            (
                "shoal_upstream_misses",
                "Manifests and blobs that upstreams were asked for",
                &self.misses,
            ),
            (
                "shoal_upstream_stale",
                "Tags given as last known, while the upstream did not answer",
                &self.stale,
            ),
            ("shoal_upstream_bytes", "Bytes of blobs received from upstreams", &self.bytes),
        ] {
            registry.register(name, help, family.clone());
        }
        registry.register(
            "shoal_upstream_errors",
            "Answers of upstreams that were none",
            self.errors.clone(),
        );
        registry.register(
            "shoal_upstream_limit_remaining",
            "Requests that an upstream says it takes yet; -1 where it does not say",
            self.remaining.clone(),
        );
    }
}

#[derive(Debug, Default)]
struct State {
    asked_at: Option<Timestamp>,
    answered_at: Option<Timestamp>,
    error: Option<(Timestamp, String)>,
    /// Until when it is left alone, and why.
    paused: Option<(Instant, Error)>,
    limit: Option<u64>,
    remaining: Option<u64>,
}

/// What people see of it.
#[derive(Debug, Clone, Default)]
pub struct Shown {
    pub asked_at: Option<Timestamp>,
    pub answered_at: Option<Timestamp>,
    pub error: Option<(Timestamp, String)>,
    pub paused: Option<Duration>,
    pub limit: Option<u64>,
    pub remaining: Option<u64>,
    pub hits: u64,
    pub misses: u64,
    pub stale: u64,
    pub bytes: u64,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Standing {
    name: String,
    metrics: UpstreamMetrics,
    labels: UpstreamLabels,
    state: Mutex<State>,
}

impl Standing {
    pub fn new(name: &str, metrics: UpstreamMetrics) -> Self {
        let labels = UpstreamLabels { upstream: name.to_owned() };
        // A series that begins with its first event has no rate.
        for family in [&metrics.hits, &metrics.misses, &metrics.stale, &metrics.bytes] {
            drop(family.get_or_create(&labels));
        }
        metrics.remaining.get_or_create(&labels).set(-1);
        Self { name: name.to_owned(), metrics, labels, state: Mutex::default() }
    }

    /// # Errors
    /// While it is to be left alone: with why, and for how long yet.
    pub fn check(&self) -> Result<(), Error> {
        let mut state = self.state.lock();
        let now = Instant::now();
        match &state.paused {
            Some((until, error)) if *until > now => Err(match error {
                Error::Limited { name, .. } => {
                    Error::Limited { name: name.clone(), after: *until - now }
                }
                error => error.clone(),
            }),
            _ => {
                state.paused = None;
                Ok(())
            }
        }
    }

    /// The same for the rest of something, which is asked for though a connection broke.
    ///
    /// # Errors
    /// While it takes no more requests.
    pub fn check_limit(&self) -> Result<(), Error> {
        match self.check() {
            Err(error @ Error::Limited { .. }) => Err(error),
            _ => Ok(()),
        }
    }

    /// What became of a request.
    pub fn note(&self, answer: Result<(), &Error>) {
        let Err(error) = answer else {
            let mut state = self.state.lock();
            state.asked_at = Some(clock::now());
            state.answered_at = state.asked_at;
            return;
        };
        let pause = match error {
            Error::Limited { after, .. } => Some(*after),
            Error::Away { .. } => Some(AWAY_PAUSE),
            _ => None,
        };
        self.note_error(error, pause);
    }

    /// An answer that broke off: it is asked for the rest at once.
    pub fn note_broken(&self, error: &Error) {
        self.note_error(error, None);
    }

    fn note_error(&self, error: &Error, pause: Option<Duration>) {
        let labels = UpstreamErrorLabels { upstream: self.name.clone(), kind: error.kind() };
        self.metrics.errors.get_or_create(&labels).inc();
        let now = clock::now();
        let mut state = self.state.lock();
        state.asked_at = Some(now);
        if error.is_settled() {
            // It answers.
            state.answered_at = Some(now);
            return;
        }
        if let Some(pause) = pause {
            state.paused = Some((Instant::now() + pause, error.clone()));
        }
        let text = error.to_string().chars().take(ERROR_CHARS_MAX).collect();
        state.error = Some((now, text));
    }

    /// `RateLimit-Limit: 100;w=21600` and `RateLimit-Remaining`, as Docker Hub and others say.
    pub fn note_limits(&self, headers: &HeaderMap) {
        let number = |name: &str| {
            let text = headers.get(name)?.to_str().ok()?;
            text.split([';', ',']).next()?.trim().parse::<u64>().ok()
        };
        let (limit, remaining) = (number("ratelimit-limit"), number("ratelimit-remaining"));
        let mut state = self.state.lock();
        state.limit = limit.or(state.limit);
        if let Some(remaining) = remaining {
            state.remaining = Some(remaining);
            let shown = i64::try_from(remaining).unwrap_or(i64::MAX);
            self.metrics.remaining.get_or_create(&self.labels).set(shown);
        }
    }

    pub fn hit(&self) {
        self.metrics.hits.get_or_create(&self.labels).inc();
    }

    pub fn miss(&self) {
        self.metrics.misses.get_or_create(&self.labels).inc();
    }

    pub fn gave_stale(&self) {
        self.metrics.stale.get_or_create(&self.labels).inc();
    }

    pub fn received(&self, bytes: u64) {
        self.metrics.bytes.get_or_create(&self.labels).inc_by(bytes);
    }

    pub fn shown(&self) -> Shown {
        let state = self.state.lock();
        let now = Instant::now();
        let paused = state.paused.as_ref().map(|(until, _)| until.saturating_duration_since(now));
        Shown {
            asked_at: state.asked_at,
            answered_at: state.answered_at,
            error: state.error.clone(),
            paused: paused.filter(|left| !left.is_zero()),
            limit: state.limit,
            remaining: state.remaining,
            hits: self.metrics.hits.get_or_create(&self.labels).get(),
            misses: self.metrics.misses.get_or_create(&self.labels).get(),
            stale: self.metrics.stale.get_or_create(&self.labels).get(),
            bytes: self.metrics.bytes.get_or_create(&self.labels).get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_that_wants_to_be_left_alone_is() {
        let standing = Standing::new("hub", UpstreamMetrics::default());
        standing.check().unwrap();
        standing.note(Err(&Error::Unknown("hub".into())));
        standing.check().unwrap();
        let limited = Error::Limited { name: "hub".into(), after: Duration::from_secs(40) };
        standing.note(Err(&limited));
        let Err(Error::Limited { after, .. }) = standing.check() else { panic!("it is asked") };
        assert!(after <= Duration::from_secs(40));
        assert!(standing.shown().paused.is_some() && standing.shown().error.is_some());
        assert!(standing.check_limit().is_err());
        let short = Error::Limited { name: "hub".into(), after: Duration::ZERO };
        standing.note(Err(&short));
        standing.check().unwrap();
    }

    #[test]
    fn what_broke_off_is_asked_for_the_rest_and_what_is_away_only_for_that() {
        let standing = Standing::new("hub", UpstreamMetrics::default());
        let away = Error::Away { name: "hub".into(), why: "it broke".into() };
        standing.note_broken(&away);
        standing.check().unwrap();
        assert!(standing.shown().error.is_some());
        standing.note(Err(&away));
        assert!(matches!(standing.check(), Err(Error::Away { .. })));
        standing.check_limit().unwrap();
    }

    #[test]
    fn what_is_left_of_a_limit_is_read_as_registries_write_it() {
        let standing = Standing::new("hub", UpstreamMetrics::default());
        let mut headers = HeaderMap::new();
        headers.insert("ratelimit-limit", "100;w=21600".parse().unwrap());
        headers.insert("ratelimit-remaining", "76;w=21600".parse().unwrap());
        standing.note_limits(&headers);
        standing.note_limits(&HeaderMap::new());
        let shown = standing.shown();
        assert_eq!((shown.limit, shown.remaining), (Some(100), Some(76)));
    }
}
