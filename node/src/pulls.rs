//! When tags and versions were last pulled.
//!
//! Pulls are noted in memory and written down together once an interval, so that an image that is
//! pulled a thousand times a second costs one write a minute. What a crash loses is the last
//! interval's pulls; a node that is stopped writes down what it has.
//!
//! Invariant: memory is bounded by [`NOTED_MAX`] names; the pulls of names beyond that are counted
//! and not noted, until the next interval.
//! Counting them is `downloads`' affair, which this writes down at the same interval.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use shoal_content::{Digest, ImageId, NodeId, TagName, Timestamp};
use shoal_metadata::{Command, ImagePulls, PULLS_MAX};
use shoal_raft::{ProposeError, Raft};
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::warn;

use crate::clock;
use crate::downloads::Downloads;

/// Tags and versions that wait to be written down.
const NOTED_MAX: usize = 50_000;

/// See the module's documentation. Clones note together.
#[derive(Debug, Clone)]
pub struct Pulls {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    raft: Raft,
    interval: Duration,
    noted: Mutex<Noted>,
    /// Held by who writes down: whoever comes next finds what that has taken out written.
    writing: AsyncMutex<()>,
    downloads: Downloads,
    written: Counter,
    lost: Counter,
}

#[derive(Debug, Default)]
struct Noted {
    images: BTreeMap<ImageId, ImagePulls>,
    /// Tags and versions in `images`.
    count: usize,
}

impl Noted {
    /// Whether there was room for it.
    fn note(
        &mut self,
        image: ImageId,
        tag: Option<&TagName>,
        of: Option<&Digest>,
        at: Timestamp,
    ) -> bool {
        let has_room = self.count + 2 <= NOTED_MAX;
        let known = self.images.get(&image).is_some_and(|pulls| {
            tag.is_none_or(|tag| pulls.tags.contains_key(tag))
                && of.is_none_or(|of| pulls.versions.contains_key(of))
        });
        if !has_room && !known {
            return false;
        }
        let pulls = self.images.entry(image).or_default();
        let before = pulls.tags.len() + pulls.versions.len();
        if let Some(tag) = tag {
            let last = pulls.tags.entry(tag.clone()).or_default();
            *last = at.max(*last);
        }
        if let Some(of) = of {
            let last = pulls.versions.entry(of.clone()).or_default();
            *last = at.max(*last);
        }
        self.count += pulls.tags.len() + pulls.versions.len() - before;
        true
    }

    /// Takes out at most `limit` tags and versions, to be written down by one command.
    fn take(&mut self, limit: usize) -> BTreeMap<ImageId, ImagePulls> {
        let mut taken: BTreeMap<ImageId, ImagePulls> = BTreeMap::new();
        let mut room = limit;
        while room > 0
            && let Some(mut entry) = self.images.first_entry()
        {
            let image = *entry.key();
            let (from, to) = (entry.get_mut(), taken.entry(image).or_default());
            if let Some((tag, at)) = from.tags.pop_first() {
                to.tags.insert(tag, at);
            } else if let Some((digest, at)) = from.versions.pop_first() {
                to.versions.insert(digest, at);
            } else {
                entry.remove();
                continue;
            }
            room -= 1;
            self.count -= 1;
        }
        taken.retain(|_, pulls| !pulls.tags.is_empty() || !pulls.versions.is_empty());
        taken
    }
}

impl Pulls {
    pub fn new(raft: Raft, node: NodeId, interval: Duration, registry: &mut Registry) -> Self {
        let (written, lost) = (Counter::default(), Counter::default());
        registry.register(
            "shoal_pulls_written",
            "Last pulls of tags and versions written down",
            written.clone(),
        );
        registry.register(
            "shoal_pulls_lost",
            "Pulls that were not noted because too many waited to be",
            lost.clone(),
        );
        let (noted, writing) = (Mutex::new(Noted::default()), AsyncMutex::new(()));
        let downloads = Downloads::new(node);
        let inner = Inner { raft, interval, noted, writing, downloads, written, lost };
        Self { inner: Arc::new(inner) }
    }

    /// How long a pull waits to be written down, where the metadata take it.
    pub fn interval(&self) -> Duration {
        self.inner.interval
    }

    /// Notes that a version was pulled, by `tag` where it was by name.
    pub fn note(&self, image: ImageId, tag: Option<&TagName>, digest: &Digest) {
        let noted = self.inner.noted.lock().note(image, tag, Some(digest), clock::now());
        if !noted {
            self.inner.lost.inc();
        }
    }

    /// Counts a download of a version.
    pub fn count(&self, image: ImageId, digest: &Digest) {
        if !self.inner.downloads.count(image, digest) {
            self.inner.lost.inc();
        }
    }

    /// Writes down what was noted, once an interval. Runs until it is dropped.
    pub async fn run(self) {
        let every = self.inner.interval;
        let mut ticks = interval_at(Instant::now() + every, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = self.write_down().await {
                let error = crate::http::problem::chain(&error);
                warn!(error, "pulls were not written down; they wait for the next time");
            }
        }
    }

    /// Writes down what was noted, now. When it returns, all that was noted before is in the metadata.
    ///
    /// # Errors
    /// Where the metadata do not take it; it waits for the next time.
    pub async fn write_down(&self) -> Result<(), ProposeError> {
        let Inner { raft, noted, writing, written, downloads, .. } = &*self.inner;
        let _turn = writing.lock().await;
        downloads.write_down(raft).await?;
        loop {
            let mut taken = Taken::of(noted);
            if taken.pulls.is_empty() {
                return Ok(());
            }
            let pulls = taken.pulls.clone();
            let count = pulls.values().map(|of| of.tags.len() + of.versions.len()).sum::<usize>();
            raft.propose(clock::now(), Command::NotePulls { pulls }).await?;
            taken.pulls.clear();
            written.inc_by(count as u64);
        }
    }
}

/// Pulls that are about to be written down. Those that were not, whatever the reason, are noted again.
struct Taken<'a> {
    noted: &'a Mutex<Noted>,
    pulls: BTreeMap<ImageId, ImagePulls>,
}

impl<'a> Taken<'a> {
    fn of(noted: &'a Mutex<Noted>) -> Self {
        let pulls = noted.lock().take(PULLS_MAX);
        Self { noted, pulls }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut noted = self.noted.lock();
        for (image, ImagePulls { tags, versions }) in std::mem::take(&mut self.pulls) {
            for (tag, at) in &tags {
                noted.note(image, Some(tag), None, *at);
            }
            for (digest, at) in &versions {
                noted.note(image, None, Some(digest), *at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(number: u8) -> ImageId {
        ImageId::from_bytes([number; 16])
    }

    #[test]
    fn the_last_pull_counts_and_comes_out_once() {
        let mut noted = Noted::default();
        let (tag, digest): (TagName, Digest) = ("v1".parse().unwrap(), Digest::sha256([1; 32]));
        for millis in [5, 9, 7] {
            assert!(noted.note(
                image(1),
                Some(&tag),
                Some(&digest),
                Timestamp::from_millis(millis)
            ));
        }
        assert!(noted.note(image(2), None, Some(&digest), Timestamp::from_millis(1)));
        assert_eq!(noted.count, 3);
        let first = noted.take(1);
        assert_eq!(first[&image(1)].tags[&tag], Timestamp::from_millis(9));
        let rest = noted.take(10);
        assert_eq!(rest[&image(1)].versions[&digest], Timestamp::from_millis(9));
        assert_eq!((rest.len(), noted.count), (2, 0));
        assert!(noted.take(10).is_empty() && noted.images.is_empty());
    }

    #[test]
    fn what_was_taken_out_and_not_written_is_noted_again() {
        let noted = Mutex::new(Noted::default());
        let (tag, digest): (TagName, Digest) = ("v1".parse().unwrap(), Digest::sha256([1; 32]));
        let at = Timestamp::from_millis;
        assert!(noted.lock().note(image(1), Some(&tag), Some(&digest), at(5)));
        let taken = Taken::of(&noted);
        assert!(noted.lock().images.is_empty());
        assert!(noted.lock().note(image(1), Some(&tag), None, at(7)));
        drop(taken);
        assert_eq!(noted.lock().count, 2);
        let mut taken = Taken::of(&noted);
        assert_eq!(taken.pulls[&image(1)].tags[&tag], at(7));
        assert_eq!(taken.pulls[&image(1)].versions[&digest], at(5));
        taken.pulls.clear();
        drop(taken);
        assert_eq!(noted.lock().count, 0);
    }

    #[test]
    fn names_beyond_the_bound_are_not_noted_and_known_ones_are() {
        let mut noted = Noted::default();
        let at = Timestamp::from_millis;
        let digest = |number: u32| {
            let mut bytes = [0; 32];
            bytes[..4].copy_from_slice(&number.to_be_bytes());
            Digest::sha256(bytes)
        };
        let fits = (0..NOTED_MAX as u32 + 10)
            .filter(|number| noted.note(image(1), None, Some(&digest(*number)), at(1)));
        assert!(fits.count() <= NOTED_MAX);
        assert!(noted.note(image(1), None, Some(&digest(0)), at(2)));
        assert_eq!(noted.images[&image(1)].versions[&digest(0)], at(2));
    }
}
