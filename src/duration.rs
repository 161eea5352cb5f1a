//! Durations as flags and /faults write them: a number and its unit.

use std::ops::RangeInclusive;
use std::time::Duration;

/// Parses a duration with its unit, within these bounds.
pub fn parse(value: &str, accepted: RangeInclusive<Duration>) -> Option<Duration> {
    // The parser accepts 0 without a unit. The messages always ask for a unit.
    if value == "0" {
        return None;
    }
    let duration = humantime::parse_duration(value).ok()?;
    accepted.contains(&duration).then_some(duration)
}

/// Writes a duration as a whole number of the largest possible unit, such as `90s` or `300ms`.
/// [`parse`] accepts it.
pub fn write(duration: Duration) -> String {
    // No duration is longer than 24 hours, and the type has room for 584 years.
    let nanoseconds = duration.as_nanos() as u64;
    let units = [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000)];
    let largest = units
        .iter()
        .find(|(_, unit)| nanoseconds.is_multiple_of(*unit));
    let (name, unit) = largest.unwrap_or(&("ns", 1));
    format!("{}{name}", nanoseconds / unit)
}
