//! Times of the week as people write them, by the clock on this host's wall.
//!
//! The host's time zone counts (`TZ`, else `/etc/localtime`). Where its clock is put forward, the
//! hour that is left out is nobody's; where it is put back, the hour that comes twice counts twice:
//! `08:00` to `18:00` is always what the clock on the wall shows.

use std::fmt;
use std::str::FromStr;

use jiff::Zoned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const DAILY: &str = "daily";
const MINUTES_OF_DAY: u16 = 24 * 60;
/// Of a week.
pub const MINUTES_OF_WEEK: u16 = 7 * MINUTES_OF_DAY;

/// A text that is no time, or names no days.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HoursError {
    #[error("a time of day is HH:MM, from 00:00 to 24:00")]
    Time,
    #[error("days are daily, mon-fri, or sat,sun")]
    Days,
}

/// A minute of the week; the first is that of Monday at 00:00.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WeekMinute(u16);

impl WeekMinute {
    /// The first one.
    pub const MONDAY: Self = Self(0);

    /// What the clock on the wall shows now.
    pub fn now() -> Self {
        Self::of(&Zoned::now())
    }

    pub fn of(moment: &Zoned) -> Self {
        let day = moment.weekday().to_monday_zero_offset().unsigned_abs();
        let (hour, minute) = (moment.hour().unsigned_abs(), moment.minute().unsigned_abs());
        let minute = u16::from(hour) * 60 + u16::from(minute);
        Self(u16::from(day) * MINUTES_OF_DAY + minute)
    }

    /// So many minutes later.
    pub fn after(self, minutes: u16) -> Self {
        Self((self.0 + minutes % MINUTES_OF_WEEK) % MINUTES_OF_WEEK)
    }

    fn day(self) -> usize {
        usize::from(self.0 / MINUTES_OF_DAY)
    }

    fn time(self) -> TimeOfDay {
        TimeOfDay(self.0 % MINUTES_OF_DAY)
    }
}

impl fmt::Display for WeekMinute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", DAYS[self.day()], self.time())
    }
}

/// `HH:MM`; `24:00` is the end of a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TimeOfDay(u16);

impl FromStr for TimeOfDay {
    type Err = HoursError;

    fn from_str(text: &str) -> Result<Self, HoursError> {
        let (hours, minutes) = text.split_once(':').ok_or(HoursError::Time)?;
        let part = |text: &str| -> Result<u16, HoursError> {
            let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
            if digits { text.parse().map_err(|_| HoursError::Time) } else { Err(HoursError::Time) }
        };
        let (hours, minutes) = (part(hours)?, part(minutes)?);
        let of_day = hours * 60 + minutes;
        if minutes < 60 && of_day <= MINUTES_OF_DAY {
            Ok(Self(of_day))
        } else {
            Err(HoursError::Time)
        }
    }
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.0 / 60, self.0 % 60)
    }
}

impl TryFrom<String> for TimeOfDay {
    type Error = HoursError;

    fn try_from(text: String) -> Result<Self, HoursError> {
        text.parse()
    }
}

impl From<TimeOfDay> for String {
    fn from(time: TimeOfDay) -> Self {
        time.to_string()
    }
}

/// Some days of the week, at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Days([bool; 7]);

impl Default for Days {
    fn default() -> Self {
        Self([true; 7])
    }
}

impl FromStr for Days {
    type Err = HoursError;

    /// Days and ranges of them, `fri-mon` among them, after commas.
    fn from_str(text: &str) -> Result<Self, HoursError> {
        if text.trim() == DAILY {
            return Ok(Self::default());
        }
        let place =
            |name: &str| DAYS.iter().position(|day| *day == name.trim()).ok_or(HoursError::Days);
        let mut days = [false; 7];
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (place(first)?, place(last)?);
            let count = (last + 7 - first) % 7;
            (first..=first + count).for_each(|day| days[day % 7] = true);
        }
        Ok(Self(days))
    }
}

impl fmt::Display for Days {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == [true; 7] {
            return f.write_str(DAILY);
        }
        let named = DAYS.iter().zip(self.0).filter(|(_, is)| *is).map(|(name, _)| *name);
        f.write_str(&named.collect::<Vec<_>>().join(","))
    }
}

impl TryFrom<String> for Days {
    type Error = HoursError;

    fn try_from(text: String) -> Result<Self, HoursError> {
        text.parse()
    }
}

impl From<Days> for String {
    fn from(days: Days) -> Self {
        days.to_string()
    }
}

/// From one time to another on some days; past midnight where `to` is not after `from`, and then
/// the day is that on which it begins.
pub fn covers(days: Days, from: TimeOfDay, to: TimeOfDay, now: WeekMinute) -> bool {
    let (day, time) = (now.day(), now.time());
    if from < to {
        return days.0[day] && (from..to).contains(&time);
    }
    let yesterday = (day + 6) % 7;
    days.0[day] && time >= from || days.0[yesterday] && time < to
}

/// When something that depends on the minute of the week changes next; nothing where it never does.
pub fn until<T: PartialEq>(now: WeekMinute, what: impl Fn(WeekMinute) -> T) -> Option<WeekMinute> {
    let current = what(now);
    (1..MINUTES_OF_WEEK).map(|minutes| now.after(minutes)).find(|at| what(*at) != current)
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;
    use jiff::tz::TimeZone;

    use super::*;

    fn at(day: i8, hour: i8, minute: i8) -> WeekMinute {
        // The first of June 2026 is a Monday.
        let moment = date(2026, 6, 1 + day).at(hour, minute, 0, 0);
        WeekMinute::of(&moment.to_zoned(TimeZone::UTC).unwrap())
    }

    fn hours(days: &str, from: &str, to: &str) -> impl Fn(WeekMinute) -> bool {
        let (days, from, to) = (days.parse().unwrap(), from.parse().unwrap(), to.parse().unwrap());
        move |now| covers(days, from, to, now)
    }

    #[test]
    fn hours_hold_on_their_days_and_past_midnight() {
        let work = hours("mon-fri", "08:00", "18:00");
        assert!(work(at(0, 8, 0)) && work(at(4, 17, 59)));
        assert!(!work(at(0, 7, 59)) && !work(at(0, 18, 0)) && !work(at(5, 12, 0)));
        let night = hours("fri,sun", "22:00", "06:00");
        assert!(night(at(4, 23, 0)) && night(at(5, 5, 59)) && night(at(0, 1, 0)));
        assert!(!night(at(5, 23, 0)) && !night(at(4, 5, 0)));
        assert!(hours("daily", "00:00", "24:00")(at(6, 23, 59)));
        assert!(hours("sat-mon", "00:00", "24:00")(at(6, 0, 0)));
        assert_eq!(until(at(0, 7, 0), &work).unwrap().to_string(), "mon 08:00");
        assert_eq!(until(at(4, 18, 0), &work).unwrap(), at(0, 8, 0));
        assert_eq!(until(at(0, 0, 0), |_| ()), None);
    }

    #[test]
    fn what_is_no_time_or_day_is_refused() {
        for bad in ["8:00", "24:01", "12:60", "-1:00", "+1:00", "12", ""] {
            assert_eq!(bad.parse::<TimeOfDay>(), Err(HoursError::Time), "{bad}");
        }
        for bad in ["", "monday", "mon-", "mon,,tue"] {
            assert_eq!(bad.parse::<Days>(), Err(HoursError::Days), "{bad}");
        }
        assert_eq!("mon-wed,sun".parse::<Days>().unwrap().to_string(), "mon,tue,wed,sun");
    }

    #[test]
    fn the_wall_clock_counts_where_the_clock_is_changed() {
        // Central Europe, without a database of time zones.
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let shown = |text: &str| {
            let moment: jiff::Timestamp = text.parse().unwrap();
            WeekMinute::of(&moment.to_zoned(zone.clone())).to_string()
        };
        assert_eq!(shown("2026-03-29T00:59:00Z"), "sun 01:59");
        assert_eq!(shown("2026-03-29T01:00:00Z"), "sun 03:00");
        assert_eq!(shown("2026-10-25T00:30:00Z"), "sun 02:30");
        assert_eq!(shown("2026-10-25T01:30:00Z"), "sun 02:30");
        assert_eq!(shown("2026-10-25T02:30:00Z"), "sun 03:30");
    }
}
