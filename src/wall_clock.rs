//! The wall clock, limited to the times that HTTP dates and RFC 3339 timestamps can express.

use std::time::{Duration, SystemTime};

/// The last nanosecond of the year 9999, since the epoch. Both formats have four digits for the year, and
/// the crates that write them panic or fail outside of 1970 to 9999.
const LATEST: Duration = Duration::new(253_402_300_799, 999_999_999);

/// Reads the wall clock. A time before 1970 or after 9999 is replaced with the nearest time in that range.
pub fn now() -> SystemTime {
    expressible(SystemTime::now())
}

fn expressible(time: SystemTime) -> SystemTime {
    time.clamp(SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + LATEST)
}

#[cfg(test)]
mod tests {
    use httpdate::fmt_http_date;
    use humantime::format_rfc3339_millis;

    use super::*;

    #[test]
    fn times_outside_1970_to_9999_are_clamped() {
        let epoch = SystemTime::UNIX_EPOCH;
        let second = Duration::from_secs(1);
        let first = "Thu, 01 Jan 1970 00:00:00 GMT";
        let last = "Fri, 31 Dec 9999 23:59:59 GMT";
        for (time, date, timestamp) in [
            (
                epoch - 1_000_000_000 * second,
                first,
                "1970-01-01T00:00:00.000Z",
            ),
            (epoch - second, first, "1970-01-01T00:00:00.000Z"),
            (epoch, first, "1970-01-01T00:00:00.000Z"),
            (
                epoch + 784_111_777 * second,
                "Sun, 06 Nov 1994 08:49:37 GMT",
                "1994-11-06T08:49:37.000Z",
            ),
            (epoch + LATEST, last, "9999-12-31T23:59:59.999Z"),
            (epoch + LATEST + second, last, "9999-12-31T23:59:59.999Z"),
            (epoch + 1000 * LATEST, last, "9999-12-31T23:59:59.999Z"),
        ] {
            let time = expressible(time);
            assert_eq!(fmt_http_date(time), date);
            assert_eq!(format_rfc3339_millis(time).to_string(), timestamp);
        }
    }
}
