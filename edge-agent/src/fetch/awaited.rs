//! An image of another registry's, some of which its nodes are still being sent.
//!
//! Nodes are asked again until they hold all of it. Invariant: a wait in which nothing comes ends.

use std::time::{Duration, Instant};

use shoal_api::AwaitedContent;

/// Between two questions, which come the rarer the longer it takes.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// A pause is this part of the time that was waited.
const PAUSE_PART: u32 = 8;
/// The largest layers there are come within this over the lines that they are pulled by.
const STALL_MAX: Duration = Duration::from_secs(30 * 60);

/// As `linux/amd64`, which registries say (image-spec, "Image Index", after Go's names).
pub fn platform() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "loongarch64" => "loong64",
        "powerpc64" => "ppc64le",
        other => other,
    };
    format!("{}/{architecture}", std::env::consts::OS)
}

/// What people read meanwhile, and when it was too long.
pub fn text(awaited: &AwaitedContent) -> String {
    let AwaitedContent { from, blobs, bytes, said } = awaited;
    let said = said.as_deref().map(|text| format!("; it last failed with: {text}"));
    format!(
        "{blobs} blobs of {bytes} bytes are on their way from {from}{}",
        said.unwrap_or_default()
    )
}

/// How long it goes on, from its beginning.
#[derive(Debug)]
pub struct Wait {
    last: Option<(u64, u64)>,
    since: Instant,
    begun: Instant,
}

impl Wait {
    pub fn begin(now: Instant) -> Self {
        Self { last: None, since: now, begun: now }
    }

    /// When to ask again, if at all.
    pub fn next(&mut self, now: Instant, awaited: &AwaitedContent) -> Option<Duration> {
        let left = Some((awaited.blobs, awaited.bytes));
        if self.last != left {
            (self.last, self.since) = (left, now);
        }
        let pause = (now.duration_since(self.begun) / PAUSE_PART).clamp(PAUSE_MIN, PAUSE_MAX);
        (now.duration_since(self.since) < STALL_MAX).then_some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn awaited(blobs: u64) -> AwaitedContent {
        AwaitedContent { from: "docker.io".into(), blobs, bytes: blobs * 10, said: None }
    }

    #[test]
    fn a_wait_goes_on_while_something_comes() {
        let begun = Instant::now();
        let mut wait = Wait::begin(begun);
        let mut now = begun;
        assert_eq!(wait.next(now, &awaited(5)), Some(PAUSE_MIN));
        for left in (1..5).rev() {
            for _ in 0..3 {
                assert!(wait.next(now, &awaited(left)).is_some());
                now += STALL_MAX / 4;
            }
        }
        assert_eq!(wait.next(now, &awaited(1)), Some(PAUSE_MAX));
        now += STALL_MAX;
        assert_eq!(wait.next(now, &awaited(1)), None);
    }

    #[test]
    fn platforms_are_called_as_in_an_index() {
        let text = platform();
        let (os, architecture) = text.split_once('/').unwrap();
        assert!(!os.is_empty() && !["x86_64", "aarch64"].contains(&architecture), "{text}");
    }

    #[test]
    fn what_is_waited_for_is_said_with_the_last_trouble() {
        assert!(text(&awaited(2)).starts_with("2 blobs of 20 bytes"), "{}", text(&awaited(2)));
        let said = Some("it takes no more".to_owned());
        assert!(text(&AwaitedContent { said, ..awaited(2) }).ends_with("it takes no more"));
    }
}
