//! What this host sends and brings in at most, and when.
//!
//! The first line of the schedule whose hours it is decides; what it does not say, and all other
//! times, is as the section has it.

use serde::{Deserialize, Serialize};
use shoal_settings::{Days, Rate, TimeOfDay, WeekMinute, covers};

/// Lines of a schedule.
pub const SCHEDULE_MAX: usize = 64;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// To other hosts.
    pub upload: Rate,
    /// From other hosts and nodes.
    pub download: Rate,
    pub schedule: Vec<LimitHours>,
}

/// Other limits at some hours of some days, by the clock on the host's wall.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitHours {
    #[serde(default)]
    pub days: Days,
    pub from: TimeOfDay,
    /// Past midnight where it is not after `from`.
    pub to: TimeOfDay,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<Rate>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download: Option<Rate>,
}

impl Limits {
    /// Upload and download at that time.
    pub fn at(&self, now: WeekMinute) -> (Rate, Rate) {
        let of_now = |line: &&LimitHours| covers(line.days, line.from, line.to, now);
        let (mut upload, mut download) = (self.upload, self.download);
        if let Some(line) = self.schedule.iter().find(of_now) {
            upload = line.upload.unwrap_or(upload);
            download = line.download.unwrap_or(download);
        }
        (upload, download)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_of_the_hour_decides_what_it_says() {
        let text = r#"
            upload = "100 Mbit/s"
            schedule = [
                { days = "mon-fri", from = "08:00", to = "18:00", upload = "50 Mbit/s", download = "200 Mbit/s" },
                { from = "22:00", to = "06:00", upload = "unlimited" },
            ]
        "#;
        let limits: Limits = toml::from_str(text).unwrap();
        let at = |minute: u16| {
            let (upload, download) = limits.at(WeekMinute::MONDAY.after(minute));
            (upload.to_string(), download.to_string())
        };
        let said = |upload: &str, download: &str| (upload.to_owned(), download.to_owned());
        assert_eq!(at(8 * 60), said("50 Mbit/s", "200 Mbit/s"));
        assert_eq!(at(18 * 60), said("100 Mbit/s", "unlimited"));
        assert_eq!(at(23 * 60), said("unlimited", "unlimited"));
        // Saturday.
        assert_eq!(at((5 * 24 + 8) * 60), said("100 Mbit/s", "unlimited"));
        let kept: Limits = toml::from_str(&toml::to_string(&limits).unwrap()).unwrap();
        assert_eq!(kept, limits);
        assert!(toml::from_str::<Limits>("schedule = [{ from = \"8\", to = \"9\" }]").is_err());
    }
}
