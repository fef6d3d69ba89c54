//! What is known now, and is not shown while it is not known.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use shoal_metadata::Payer;
use shoal_raft::Raft;
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use crate::scrub::Scrubber;
use crate::store::{BlobStore, Usage};

/// How often storage is asked; it is one request to S3, or one to the file system.
const USAGE_INTERVAL: Duration = Duration::from_secs(60);

/// Shows a gauge, if its value is known.
pub fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: Option<u64>,
) -> fmt::Result {
    let Some(value) = value else { return Ok(()) };
    let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    let kind = prometheus_client::metrics::MetricType::Gauge;
    gauge.encode(encoder.encode_descriptor(name, help, None, kind)?)
}

/// How much of storage is taken. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct StorageGauges {
    known: Arc<Mutex<Usage>>,
}

impl StorageGauges {
    pub fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(self.clone()));
    }

    /// Keeps them true until it is dropped. Where storage does not say how much it holds, the last
    /// scrub of this node's does; `capacity` stands for what storage does not say of its size.
    pub async fn follow(self, store: Arc<dyn BlobStore>, scrubber: Scrubber, capacity: u64) {
        let mut ticks = interval(USAGE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match store.usage().await {
                Ok(usage) => self.note(usage, scrubber.bytes(), capacity),
                // What was true a minute ago is better than nothing; readiness says that it fails.
                Err(error) => debug!(%error, "storage does not say how full it is"),
            }
        }
    }

    fn note(&self, said: Usage, scrubbed: Option<u64>, capacity: u64) {
        let total = Some(capacity).filter(|bytes| *bytes > 0).or(said.total_bytes);
        *self.known.lock() = Usage { used_bytes: said.used_bytes.or(scrubbed), total_bytes: total };
    }
}

impl Collector for StorageGauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Usage { used_bytes, total_bytes } = *self.known.lock();
        let encoder = &mut encoder;
        gauge(encoder, "image_storage_used_bytes", "Bytes of storage in use", used_bytes)?;
        gauge(encoder, "image_storage_total_bytes", "Bytes that storage has", total_bytes)
    }
}

/// How many images there are and what they hold, as far as this node knows.
pub fn show_images(raft: Raft, registry: &mut Registry) {
    registry.register_collector(Box::new(Images(raft)));
}

#[derive(Debug)]
struct Images(Raft);

impl Collector for Images {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let view = self.0.local();
        let count = view.query().image_count().ok();
        let held = view.query().account(&Payer::Cluster).ok();
        let (bytes, reserved) = (held.map(|it| it.bytes), held.map(|it| it.reserved_bytes));
        let (what, encoder) = ("Bytes that projects hold, each for itself", &mut encoder);
        gauge(encoder, "shoal_images", "Images in the cluster", count)?;
        gauge(encoder, "shoal_logical_bytes", what, bytes)?;
        gauge(encoder, "shoal_reserved_bytes", "Bytes that uploads have reserved", reserved)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn what_is_not_known_is_not_shown() {
        let gauges = StorageGauges::default();
        let mut registry = Registry::default();
        gauges.register(&mut registry);
        let shown = || {
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            let values = text.lines().filter(|line| !line.starts_with('#'));
            values.map(str::to_owned).collect::<Vec<_>>()
        };
        assert!(shown().is_empty());
        let silent = Usage::default();
        gauges.note(silent, None, 0);
        assert!(shown().is_empty());
        gauges.note(silent, Some(5), 10);
        assert_eq!(shown(), ["image_storage_used_bytes 5", "image_storage_total_bytes 10"]);
        let telling = Usage { used_bytes: Some(6), total_bytes: Some(8) };
        gauges.note(telling, Some(5), 0);
        assert_eq!(shown(), ["image_storage_used_bytes 6", "image_storage_total_bytes 8"]);
    }
}
