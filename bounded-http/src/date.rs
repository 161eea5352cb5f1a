//! The value of the `Date` field (RFC 9110, section 6.6.1), formatted once a second.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use httpdate::HttpDate;

/// The last second of the year 9999, since the epoch. The format has four digits for the year, and
/// httpdate panics outside of 1970 to 9999, where a wrong clock may be.
const LATEST: Duration = Duration::from_secs(253_402_300_799);

/// The date of the current wake-up of the event loop.
#[derive(Default)]
pub struct Date {
    second: u64,
    text: String,
}

impl Date {
    /// Reads the wall clock.
    pub fn update(&mut self) {
        self.set(SystemTime::now());
    }

    /// Sets the time.
    pub fn set(&mut self, now: SystemTime) {
        let epoch = SystemTime::UNIX_EPOCH;
        let now = now.clamp(epoch, epoch + LATEST);
        let second = now.duration_since(epoch).map_or(0, |age| age.as_secs());
        if second != self.second || self.text.is_empty() {
            self.second = second;
            self.text.clear();
            // Writing to a String cannot fail.
            let _ = write!(self.text, "{}", HttpDate::from(now));
        }
    }

    /// Returns the field's value.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_has_the_current_second() {
        let mut date = Date::default();
        let mut at = |millis| {
            date.set(SystemTime::UNIX_EPOCH + Duration::from_millis(millis));
            date.as_str().to_owned()
        };
        assert_eq!(at(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(at(784_111_777_000), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(at(784_111_777_999), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(at(784_111_778_000), "Sun, 06 Nov 1994 08:49:38 GMT");
    }

    #[test]
    fn a_clock_before_1970_or_after_9999_reads_as_the_nearest_time_in_between() {
        let mut date = Date::default();
        let years = Duration::from_secs(10_000 * 365 * 86_400);
        date.set(SystemTime::UNIX_EPOCH - years);
        assert_eq!(date.as_str(), "Thu, 01 Jan 1970 00:00:00 GMT");
        date.set(SystemTime::UNIX_EPOCH + years);
        assert_eq!(date.as_str(), "Fri, 31 Dec 9999 23:59:59 GMT");
    }

    #[test]
    fn an_update_reads_the_wall_clock() {
        let mut date = Date::default();
        let before = SystemTime::now() - Duration::from_secs(1);
        date.update();
        let parsed = httpdate::parse_http_date(date.as_str()).unwrap();
        assert!((before..=SystemTime::now()).contains(&parsed), "{parsed:?}");
    }
}
