//! The value of the `Date` field (RFC 9110, section 6.6.1), made once a second.

use std::fmt::Write;
use std::time::SystemTime;

use httpdate::HttpDate;

/// The date of the current wake-up.
#[derive(Default)]
pub struct Date {
    second: u64,
    text: String,
}

impl Date {
    /// Takes what time it is.
    pub fn set(&mut self, now: SystemTime) {
        let second = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |age| age.as_secs());
        if second != self.second || self.text.is_empty() {
            self.second = second;
            self.text.clear();
            // A String takes every write.
            let _ = write!(self.text, "{}", HttpDate::from(now));
        }
    }

    /// The field's value.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_date_is_of_the_second() {
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
}
