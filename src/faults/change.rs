//! A change of the settings of a target, and when it ends: the setting `for`.

use std::fmt::Write;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use crate::duration;

/// The name of the setting that ends a change.
pub const FOR: &str = "for";
/// The accepted values of `for`.
const CHANGE_DURATION_RANGE: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
/// The accepted values of `for`, to complete "expected …".
pub const ACCEPTED_CHANGE_DURATION: &str = "a duration from 1s to 24h with its unit, such as 2m";
/// The error for a change without `for` to a target that requires it.
pub const MISSING_END: &str = "for is missing: expected for=TIME, a duration from 1s to 24h with its unit, \
                           such as for=2m; only changes to probe, and the settings freeze \
                           and exit-after of process, need no for\n";

/// The settings of a target, with the last change.
pub struct Change<S> {
    /// The settings that the service started with.
    pub at_start: S,
    /// The settings after the last change.
    pub changed: S,
    /// When the change ends. `None` if it lasts until it is reverted.
    pub until: Option<Instant>,
}

impl<S: Clone + PartialEq> Change<S> {
    /// Creates the settings at the start, without a change.
    pub fn new(at_start: S) -> Self {
        Self {
            changed: at_start.clone(),
            at_start,
            until: None,
        }
    }

    /// Returns the settings in force at `now`.
    pub fn settings(&self, now: Instant) -> &S {
        match self.until {
            Some(until) if until <= now => &self.at_start,
            _ => &self.changed,
        }
    }

    /// Returns when the change ends, if one is in force at `now` and has an end.
    pub fn end(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| *until > now)
    }

    /// Returns whether the settings differ from those at the start.
    pub fn is_active(&self, now: Instant) -> bool {
        *self.settings(now) != self.at_start
    }

    /// Replaces the settings in force. Returns whether they or their end differ from before.
    pub fn put(&mut self, settings: S, until: Option<Instant>, now: Instant) -> bool {
        let is_change = (self.settings(now), self.end(now)) != (&settings, until);
        self.changed = settings;
        self.until = until;
        is_change
    }

    /// Ends the change now. Returns whether there was one.
    pub fn revert(&mut self, now: Instant) -> bool {
        let is_change = self.is_active(now) || self.end(now).is_some();
        self.until = Some(now);
        is_change
    }

    /// Writes the last line of a target's settings: the time until the change ends.
    pub fn write_end(&self, to: &mut String, now: Instant) {
        if let Some(until) = self.end(now) {
            // Writing to a String cannot fail, here and below.
            let _ = writeln!(to, "for={}", write_time_left(until, now));
        }
    }
}

/// Parses `for`, which counts from `now`. Returns `None` if it is not accepted.
pub fn parse_end(value: &str, now: Instant) -> Option<Instant> {
    duration::parse(value, CHANGE_DURATION_RANGE).map(|time| now + time)
}

/// Writes the time until `end`, rounded up to whole seconds.
pub fn write_time_left(end: Instant, now: Instant) -> String {
    let left = end.saturating_duration_since(now) + Duration::from_nanos(999_999_999);
    duration::write(Duration::from_secs(left.as_secs()))
}
