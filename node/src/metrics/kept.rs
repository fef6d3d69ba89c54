//! Counters outlive a clean stop: they are written when the node has ended its last request, and
//! read when it starts again.
//!
//! Invariant: a counter never goes back to an earlier value but zero. Prometheus takes any step
//! down for a restart from zero and adds the new value whole; so the file is removed before its
//! values are used, and after a crash there is none.
//! Non-goal: histograms and gauges.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use prometheus_client::metrics::counter::Counter;
use tracing::warn;

use super::{CacheReads, Metrics, RequestLabels};

/// A longer file is none of ours.
const FILE_BYTES_MAX: u64 = 64 * 1024;

impl Metrics {
    fn kept(&self) -> BTreeMap<String, Counter> {
        let CacheReads { hits, misses } = &self.cache;
        let mut all = BTreeMap::from([
            ("image_download_bytes".to_owned(), self.download_bytes.clone()),
            ("image_upload_bytes".to_owned(), self.upload_bytes.clone()),
            ("image_cache_hits".to_owned(), hits.clone()),
            ("image_cache_misses".to_owned(), misses.clone()),
        ]);
        for labels in RequestLabels::all() {
            let RequestLabels { method, area } = labels;
            let (requests, errors) = (&self.requests, &self.request_errors);
            all.insert(
                format!("api_requests {method} {area}"),
                requests.get_or_create_owned(&labels),
            );
            all.insert(
                format!("api_requests_errors {method} {area}"),
                errors.get_or_create_owned(&labels),
            );
        }
        all
    }

    /// Goes on from where the node stopped. A file that cannot be used is said to be so.
    pub fn restore(&self, path: &Path) {
        let values = match take(path) {
            Ok(values) => values,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                warn!(path = %path.display(), %error, "the kept counters cannot be used");
                return;
            }
        };
        for (name, counter) in self.kept() {
            counter.inc_by(values.get(&name).copied().unwrap_or(0));
        }
    }

    /// Keeps them for the next start; nothing may count any more.
    pub fn save(&self, path: &Path) {
        let values = self.kept().into_iter().map(|(name, counter)| (name, counter.get()));
        let values: BTreeMap<String, u64> = values.collect();
        if let Err(error) = write(path, &values) {
            warn!(path = %path.display(), %error, "the counters begin at zero next time");
        }
    }
}

fn take(path: &Path) -> io::Result<BTreeMap<String, u64>> {
    let mut text = String::new();
    let read = File::open(path)?.take(FILE_BYTES_MAX).read_to_string(&mut text);
    fs::remove_file(path)?;
    read?;
    Ok(serde_json::from_str(&text)?)
}

/// Whole or not at all: written beside, then renamed. A loss at a power failure is a reset to zero.
fn write(path: &Path, values: &BTreeMap<String, u64>) -> io::Result<()> {
    let beside = path.with_extension("part");
    File::create(&beside)?.write_all(&serde_json::to_vec(values)?)?;
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;

    fn metrics() -> Metrics {
        Metrics::new(Registry::default(), CacheReads::default())
    }

    #[test]
    fn counters_go_on_after_a_clean_stop_and_begin_anew_after_a_crash() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("counters.json");
        let labels = RequestLabels::new("GET", "/v2/");
        let first = metrics();
        first.restore(&path);
        first.download_bytes.inc_by(7);
        first.answered(labels, 503, 0.1);
        first.save(&path);

        let second = metrics();
        second.restore(&path);
        assert_eq!(second.download_bytes.get(), 7);
        assert_eq!(second.requests.get_or_create_owned(&labels).get(), 1);
        assert_eq!(second.request_errors.get_or_create_owned(&labels).get(), 1);

        // It crashes, having counted on.
        let third = metrics();
        third.restore(&path);
        assert_eq!(third.download_bytes.get(), 0);

        fs::write(&path, "{\"image_download_bytes\": -1}").unwrap();
        let fourth = metrics();
        fourth.restore(&path);
        assert_eq!(fourth.download_bytes.get(), 0);
        assert!(!path.exists());
    }
}
