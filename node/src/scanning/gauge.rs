//! How many critical vulnerabilities images have, for alerts: by the image's name, which is how
//! people find it.
//!
//! It is counted in the background, so that a scrape reads memory alone. The names are those of
//! images, of which at most [`SHOWN_MAX`] are shown.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use shoal_metadata::{Fault, ScanKey};
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::{Scanner, changed};
use crate::http::problem::chain;

/// Images that are shown.
const SHOWN_MAX: usize = 1000;
/// Rows of one look.
const PAGE_ROWS: usize = 500;
/// It is counted again at least so often, since an image may go without its scans changing, and at
/// most so often.
const INTERVAL_MAX: Duration = Duration::from_secs(60);
const INTERVAL_MIN: Duration = Duration::from_secs(5);

/// By image. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Criticals {
    known: Arc<Mutex<BTreeMap<String, u32>>>,
}

impl Collector for Criticals {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let known = self.known.lock();
        if known.is_empty() {
            return Ok(());
        }
        let help = "Critical vulnerabilities in the latest version of an image";
        let name = "image_vulnerabilities_critical";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (image, count) in known.iter() {
            let labels = [("image_name", image.as_str())];
            ConstGauge::new(i64::from(*count)).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl Scanner {
    /// Runs until it is dropped.
    pub(super) async fn count_criticals(&self) {
        let mut events = self.inner.raft.events();
        loop {
            let this = self.clone();
            // All scans are looked at, and nobody else is to wait for that.
            match tokio::task::spawn_blocking(move || this.criticals()).await {
                Ok(Ok(counted)) => *self.inner.criticals.known.lock() = counted,
                Ok(Err(fault)) => warn!(error = chain(&fault), "vulnerabilities cannot be counted"),
                Err(error) => warn!(%error, "vulnerabilities cannot be counted"),
            }
            sleep(INTERVAL_MIN).await;
            let _ = timeout(INTERVAL_MAX, changed(&mut events)).await;
        }
    }

    fn criticals(&self) -> Result<BTreeMap<String, u32>, Fault> {
        let mut counted = BTreeMap::new();
        let mut after: Option<ScanKey> = None;
        loop {
            let view = self.inner.raft.local();
            let query = view.query();
            let page = query.scans_after(after.as_ref(), PAGE_ROWS)?;
            let Some(last) = page.last() else { return Ok(counted) };
            after = Some(last.of.clone());
            for scan in page {
                let critical = scan.report.map_or(0, |report| report.found.critical);
                if critical == 0 {
                    continue;
                }
                let image = query.live_image(scan.of.image)?;
                let image = image.filter(|image| image.latest.as_ref() == Some(&scan.of.digest));
                if let Some(image) = image
                    && counted.len() < SHOWN_MAX
                {
                    counted.insert(image.name.to_string(), critical);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn each_image_is_a_series_and_none_is_no_metric() {
        let criticals = Criticals::default();
        let mut registry = Registry::default();
        registry.register_collector(Box::new(criticals.clone()));
        let shown = || {
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            text.lines()
                .filter(|line| !line.starts_with('#'))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert!(shown().is_empty());
        *criticals.known.lock() = [("a/b".to_owned(), 2), ("c".to_owned(), 1)].into();
        let of = |image: &str, count| {
            format!("image_vulnerabilities_critical{{image_name=\"{image}\"}} {count}")
        };
        assert_eq!(shown(), [of("a/b", 2), of("c", 1)]);
    }
}
