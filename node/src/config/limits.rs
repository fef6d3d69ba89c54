//! What this node gives to agents as the swarm's origin at most, and when.

use serde::{Deserialize, Serialize};
use shoal_settings::{Days, Rate, TimeOfDay, WeekMinute, covers};

/// Lines of a schedule.
pub const SCHEDULE_MAX: usize = 64;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Chunks by the peer port; what registry clients and the API get is not meant.
    pub origin: Rate,
    /// The first line whose hours it is decides.
    pub schedule: Vec<LimitHours>,
}

/// Another limit at some hours of some days, by the clock on the host's wall.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitHours {
    #[serde(default)]
    pub days: Days,
    pub from: TimeOfDay,
    /// Past midnight where it is not after `from`.
    pub to: TimeOfDay,
    pub origin: Rate,
}

impl Limits {
    pub fn at(&self, now: WeekMinute) -> Rate {
        let of_now = |line: &&LimitHours| covers(line.days, line.from, line.to, now);
        self.schedule.iter().find(of_now).map_or(self.origin, |line| line.origin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hour_decides() {
        let text = r#"
            origin = "10 Gbit/s"
            schedule = [{ days = "mon", from = "08:00", to = "18:00", origin = "500 Mbit/s" }]
        "#;
        let limits: Limits = toml::from_str(text).unwrap();
        let at = |hour: u16| limits.at(WeekMinute::MONDAY.after(hour * 60)).to_string();
        assert_eq!(
            (at(7), at(8), at(18), at(32)),
            ("10 Gbit/s".into(), "500 Mbit/s".into(), "10 Gbit/s".into(), "10 Gbit/s".into())
        );
    }
}
