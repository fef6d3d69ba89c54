//! The node's own metrics: every name stands here, and a test pins the list.

use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Labels of a request: its method and the class of its answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    pub method: String,
    pub status: u16,
}

/// Cloning is cheap; clones count the same.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    pub requests: Family<RequestLabels, Counter>,
    pub request_errors: Counter,
    pub request_seconds: Histogram,
    /// Bytes of blobs sent by HTTP.
    pub download_bytes: Counter<u64, AtomicU64>,
}

impl Metrics {
    /// Adds the node's metrics to `registry`, which the node's other parts have filled.
    pub fn new(mut registry: Registry) -> Self {
        let requests = Family::default();
        let request_errors = Counter::default();
        let request_seconds = Histogram::new(exponential_buckets(0.001, 4.0, 9));
        let download_bytes = Counter::default();
        registry.register("api_requests", "HTTP requests answered", requests.clone());
        registry.register(
            "api_requests_errors",
            "HTTP requests answered with 5xx",
            request_errors.clone(),
        );
        registry.register(
            "api_request_duration_seconds",
            "Time to the first byte of an answer",
            request_seconds.clone(),
        );
        registry.register(
            "image_download_bytes",
            "Bytes of blobs and disks sent by HTTP",
            download_bytes.clone(),
        );
        Self {
            registry: Mutex::new(registry),
            requests,
            request_errors,
            request_seconds,
            download_bytes,
        }
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
        let metrics = Metrics::new(Registry::default());
        metrics.requests.get_or_create(&RequestLabels { method: "GET".into(), status: 200 }).inc();
        let text = metrics.text().unwrap();
        let names: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        assert_eq!(
            names,
            [
                "api_requests counter",
                "api_requests_errors counter",
                "api_request_duration_seconds histogram",
                "image_download_bytes counter",
            ]
        );
    }
}
