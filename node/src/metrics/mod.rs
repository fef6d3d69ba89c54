//! The node's own metrics: every name stands here, and a test pins the list.
//!
//! What dashboards divide by each other has the same labels in both, since PromQL matches series by
//! their labels: `api_requests_errors_total / api_requests_total`,
//! `image_storage_used_bytes / image_storage_total_bytes`,
//! `image_cache_hits_total / (image_cache_hits_total + image_cache_misses_total)`.
//!
//! Invariants: no label takes a value that a client chooses, but for the names of images with critical
//! vulnerabilities, which are bounded (see `scanning`); a scrape reads nothing but memory and one row.

mod gauges;
mod kept;

use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use shoal_metadata::QuotaKind;

pub use gauges::{StorageGauges, gauge, show_images};

/// Methods by their names; others are [`OTHER`].
const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
const OTHER: &str = "other";
/// Where a path lies: `/v2`, `/api`, and what a node says of itself.
const AREAS: [&str; 3] = ["registry", "rest", "node"];

/// Labels of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    method: &'static str,
    area: &'static str,
}

impl RequestLabels {
    pub fn new(method: &str, path: &str) -> Self {
        let [registry, rest, node] = AREAS;
        let area = match path.split('/').nth(1) {
            Some("v2") => registry,
            Some("api") => rest,
            _ => node,
        };
        let known = METHODS.iter().find(|known| **known == method);
        Self { method: known.copied().unwrap_or(OTHER), area }
    }

    fn all() -> impl Iterator<Item = Self> {
        let methods = METHODS.into_iter().chain([OTHER]);
        methods.flat_map(|method| AREAS.map(|area| Self { method, area }))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabels {
    kind: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AnswerLabels {
    pub status: u16,
}

/// Reads of objects through the node's cache.
#[derive(Debug, Clone, Default)]
pub struct CacheReads {
    /// Windows that the cache had, in memory or on its disk.
    pub hits: Counter,
    /// Windows that were read from storage.
    pub misses: Counter,
}

#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    requests: Family<RequestLabels, Counter>,
    request_errors: Family<RequestLabels, Counter>,
    request_seconds: Family<RequestLabels, Histogram, fn() -> Histogram>,
    answers: Family<AnswerLabels, Counter>,
    quota_refusals: Family<KindLabels, Counter>,
    login_failures: Family<KindLabels, Counter>,
    slowed_down: Family<KindLabels, Counter>,
    /// Requests whose answers have not been sent whole.
    pub requests_under_way: Gauge,
    /// Bytes of blobs and disks sent by HTTP.
    pub download_bytes: Counter,
    /// Bytes of blobs and disks received by HTTP.
    pub upload_bytes: Counter,
    cache: CacheReads,
}

impl Metrics {
    /// Adds the node's metrics to `registry`, which the node's other parts have filled.
    pub fn new(registry: Registry, cache: CacheReads) -> Self {
        let buckets = || Histogram::new(exponential_buckets(0.001, 2.0, 16));
        let metrics = Self {
            registry: Mutex::new(registry),
            requests: Family::default(),
            request_errors: Family::default(),
            request_seconds: Family::new_with_constructor(buckets),
            answers: Family::default(),
            quota_refusals: Family::default(),
            login_failures: Family::default(),
            slowed_down: Family::default(),
            requests_under_way: Gauge::default(),
            download_bytes: Counter::default(),
            upload_bytes: Counter::default(),
            cache,
        };
        // A series that begins with its first error has no rate.
        for labels in RequestLabels::all() {
            drop(metrics.requests.get_or_create(&labels));
            drop(metrics.request_errors.get_or_create(&labels));
        }
        for kind in [QuotaKind::Bytes, QuotaKind::Images, QuotaKind::ImageBytes] {
            let labels = KindLabels { kind: kind.as_str() };
            drop(metrics.quota_refusals.get_or_create(&labels));
        }
        for kind in ["password", "token", "locked"] {
            drop(metrics.login_failures.get_or_create(&KindLabels { kind }));
        }
        for kind in ["address", "principal"] {
            drop(metrics.slowed_down.get_or_create(&KindLabels { kind }));
        }
        metrics.register();
        metrics
    }

    fn register(&self) {
        let mut registry = self.registry.lock();
        let mut counter = |name: &str, help: &str, counter: &Counter| {
            registry.register(name, help, counter.clone());
        };
        let (sent, received) = (&self.download_bytes, &self.upload_bytes);
        counter("image_download_bytes", "Bytes of blobs and disks sent by HTTP", sent);
        counter("image_upload_bytes", "Bytes of blobs and disks received by HTTP", received);
        let CacheReads { hits, misses } = &self.cache;
        counter("image_cache_hits", "Reads that the node's cache of storage answered", hits);
        counter("image_cache_misses", "Reads that went on to storage", misses);
        registry.register("api_requests", "HTTP requests answered", self.requests.clone());
        registry.register(
            "api_requests_errors",
            "HTTP requests answered with 5xx",
            self.request_errors.clone(),
        );
        registry.register(
            "api_request_duration_seconds",
            "Time to the first byte of an answer",
            self.request_seconds.clone(),
        );
        registry.register("shoal_http_answers", "Answers by their status", self.answers.clone());
        registry.register(
            "shoal_http_requests_under_way",
            "Requests whose answers have not been sent whole",
            self.requests_under_way.clone(),
        );
        registry.register(
            "shoal_quota_refusals",
            "Pushes that a quota refused, by its kind",
            self.quota_refusals.clone(),
        );
        registry.register(
            "shoal_login_failures",
            "Wrong passwords and tokens, and what came from who is locked out",
            self.login_failures.clone(),
        );
        registry.register(
            "shoal_requests_slowed_down",
            "Requests that came faster than their rate",
            self.slowed_down.clone(),
        );
    }

    /// Counts an answer, `seconds` after its request came.
    pub fn answered(&self, labels: RequestLabels, status: u16, seconds: f64) {
        self.requests.get_or_create(&labels).inc();
        if status >= 500 {
            self.request_errors.get_or_create(&labels).inc();
        }
        self.request_seconds.get_or_create(&labels).observe(seconds);
        self.answers.get_or_create(&AnswerLabels { status }).inc();
    }

    /// `password`, `code`, `passkey`, `token` or `locked`.
    pub fn login_failed(&self, kind: &'static str) {
        self.login_failures.get_or_create(&KindLabels { kind }).inc();
    }

    /// `address` or `principal`.
    pub fn slowed_down(&self, kind: &'static str) {
        self.slowed_down.get_or_create(&KindLabels { kind }).inc();
    }

    pub fn refused_by_quota(&self, kind: QuotaKind) {
        self.quota_refusals.get_or_create(&KindLabels { kind: kind.as_str() }).inc();
    }

    /// All metrics in OpenMetrics text.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry.lock())?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_do_not_change_silently() {
        let metrics = Metrics::new(Registry::default(), CacheReads::default());
        metrics.answered(RequestLabels::new("GET", "/v2/"), 200, 0.01);
        let text = metrics.text().unwrap();
        let names: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        assert_eq!(
            names,
            [
                "image_download_bytes counter",
                "image_upload_bytes counter",
                "image_cache_hits counter",
                "image_cache_misses counter",
                "api_requests counter",
                "api_requests_errors counter",
                "api_request_duration_seconds histogram",
                "shoal_http_answers counter",
                "shoal_http_requests_under_way gauge",
                "shoal_quota_refusals counter",
                "shoal_login_failures counter",
                "shoal_requests_slowed_down counter",
            ]
        );
    }

    #[test]
    fn errors_and_requests_can_be_divided_and_no_client_makes_series() {
        let metrics = Metrics::new(Registry::default(), CacheReads::default());
        let series = |name: &str| {
            let text = metrics.text().unwrap();
            let lines = text.lines().filter_map(|line| line.strip_prefix(name));
            let labels = lines.filter_map(|line| line.rsplit_once(' '));
            labels.map(|(labels, _)| labels.to_owned()).collect::<std::collections::BTreeSet<_>>()
        };
        let before = series("api_requests_total");
        assert_eq!(before, series("api_requests_errors_total"));
        for method in ["BREW", "get", "PROPFIND"] {
            metrics.answered(RequestLabels::new(method, "/x"), 500, 0.1);
        }
        metrics.answered(RequestLabels::new("PUT", "/v2/a/manifests/b"), 201, 0.1);
        assert_eq!(before, series("api_requests_total"));
        let text = metrics.text().unwrap();
        let line = "api_requests_errors_total{method=\"other\",area=\"node\"} 3";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("api_requests_total{method=\"PUT\",area=\"registry\"} 1"), "{text}");
    }
}
