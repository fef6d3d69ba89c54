//! Keeps the swarm within what this host may send and bring in, as the hours of the week have it.
//!
//! The clock on the wall is looked at every few seconds, so that a clock that is put right counts,
//! too; settings that are read anew count at once.
//!
//! Non-goal: the limiting itself; see `shoal-swarm`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use shoal_p2p::Swarm;
use shoal_settings::{Rate, WeekMinute, until};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tracing::info;

use crate::config::Limits;

const INTERVAL: Duration = Duration::from_secs(5);
/// Where the kernel says how fast interfaces are.
const INTERFACES: &str = "/sys/class/net";

/// The limits that are in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InForce {
    pub upload: Rate,
    pub download: Rate,
    /// When others will be, as the host's clock shows it.
    pub until: Option<String>,
}

/// What is in force, for whoever wants to know; clones share it.
pub type Shown = Arc<RwLock<InForce>>;

fn in_force(limits: &Limits, now: WeekMinute) -> InForce {
    let (upload, download) = limits.at(now);
    // Where there is no schedule, no minute of the week has others.
    let until = || until(now, |at| limits.at(at)).map(|at| at.to_string());
    let until = if limits.schedule.is_empty() { None } else { until() };
    InForce { upload, download, until }
}

/// Runs until nobody can change the settings any more.
pub async fn keep(swarm: Swarm, mut settings: watch::Receiver<Limits>, shown: Shown) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            changed = settings.changed() => if changed.is_err() { return },
        }
        let now = in_force(&settings.borrow_and_update(), WeekMinute::now());
        let before = std::mem::replace(&mut *shown.write(), now.clone());
        if (before.upload, before.download) == (now.upload, now.download) {
            continue;
        }
        info!(upload = %now.upload, download = %now.download, "limits changed");
        let (upload, download) = (now.upload.bytes_per_second(), now.download.bytes_per_second());
        swarm.set_limits(shoal_p2p::Limits { upload, download }).await;
    }
}

/// What this host's line brings at most, in bytes a second: its fastest line that is up, or the limit
/// that is in force. Nothing where neither is known.
pub fn line(shown: &Shown) -> Option<u64> {
    let limit = shown.read().download.bytes_per_second();
    [fastest(Path::new(INTERFACES)), limit].into_iter().flatten().min()
}

/// Of hardware and of bonds of it. A container's or a virtual machine's end, and the bridge between such,
/// say 10 Gbit/s whatever the host's line; they count where there is nothing else, as in a namespace.
fn fastest(interfaces: &Path) -> Option<u64> {
    let read = |path: &Path, what: &str| std::fs::read_to_string(path.join(what)).ok();
    let speeds = std::fs::read_dir(interfaces).ok()?.flatten().filter_map(|interface| {
        let path = interface.path();
        let up = read(&path, "operstate")?.trim() == "up";
        // In Mbit/s; -1 where it does not know.
        let speed: u64 = read(&path, "speed")?.trim().parse().ok()?;
        let is_line = ["device", "bonding"].iter().any(|entry| path.join(entry).exists());
        (up && speed > 0).then(|| (is_line, speed.saturating_mul(125_000)))
    });
    speeds.max().map(|(_, speed)| speed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_force_says_until_when() {
        let text = r#"
            upload = "1 Gbit/s"
            schedule = [{ days = "mon", from = "08:00", to = "18:00", upload = "50 Mbit/s" }]
        "#;
        let limits: Limits = toml::from_str(text).unwrap();
        let morning = in_force(&limits, WeekMinute::MONDAY);
        assert_eq!(
            (morning.upload.to_string(), morning.until),
            ("1 Gbit/s".into(), Some("mon 08:00".into()))
        );
        let noon = in_force(&limits, WeekMinute::MONDAY.after(12 * 60));
        assert_eq!(
            (noon.upload.to_string(), noon.until),
            ("50 Mbit/s".into(), Some("mon 18:00".into()))
        );
        assert_eq!(in_force(&Limits::default(), WeekMinute::MONDAY), InForce::default());
    }

    #[test]
    fn the_fastest_interface_that_is_up_counts() {
        let folder = tempfile::tempdir().unwrap();
        let add = |name: &str, state: &str, speed: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join("operstate"), format!("{state}\n")).unwrap();
            std::fs::write(path.join("speed"), format!("{speed}\n")).unwrap();
            path
        };
        for (name, state, speed) in
            [("lo", "unknown", ""), ("a", "up", "1000"), ("b", "down", "25000"), ("c", "up", "-1")]
        {
            add(name, state, speed);
        }
        assert_eq!(fastest(folder.path()), Some(125_000_000));
        assert_eq!(fastest(&folder.path().join("none")), None);
        // Hardware's speed is the line's, and what a bond of it makes.
        std::fs::create_dir(add("eth0", "up", "100").join("device")).unwrap();
        assert_eq!(fastest(folder.path()), Some(12_500_000));
        std::fs::create_dir(add("bond0", "up", "200").join("bonding")).unwrap();
        assert_eq!(fastest(folder.path()), Some(25_000_000));
    }
}
