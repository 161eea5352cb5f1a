//! The trace that a request belongs to, from its `traceparent` field (W3C Trace Context).

use std::num::{NonZeroU64, NonZeroU128};

/// The trace that a request belongs to, and the span of its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// 16 bytes. A trace ID of all zeros is invalid.
    pub trace_id: NonZeroU128,
    /// 8 bytes. A span ID of all zeros is invalid.
    pub span_id: NonZeroU64,
}

impl TraceContext {
    /// Parses the value of `traceparent` (Trace Context, section 3.2.2). Returns `None` if it is malformed or
    /// if the trace is not sampled. A later version may append fields. They are ignored, as the section
    /// "Versioning of traceparent" requires.
    pub fn sampled(traceparent: &[u8]) -> Option<Self> {
        let (value, appended) = traceparent.split_first_chunk::<55>()?;
        let is_known = match hexadecimal(&value[..2])? {
            0 => appended.is_empty(),
            0xff => false,
            _ => matches!(appended, [] | [b'-', ..]),
        };
        let has_shape = is_known && value[2] == b'-' && value[35] == b'-' && value[52] == b'-';
        let flags = has_shape.then(|| hexadecimal(&value[53..]))??;
        let is_sampled = flags & 1 == 1;
        is_sampled.then_some(Self {
            trace_id: NonZeroU128::new(hexadecimal(&value[3..35])?)?,
            span_id: NonZeroU64::new(hexadecimal(&value[36..52])? as u64)?,
        })
    }
}

/// Parses at most 32 hexadecimal digits. Uppercase digits are not allowed.
fn hexadecimal(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sampled_traceparent_is_parsed() {
        for flags in ["01", "03", "ff"] {
            let value = format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}");
            assert_eq!(
                TraceContext::sampled(value.as_bytes()),
                Some(TraceContext {
                    trace_id: NonZeroU128::new(0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c).unwrap(),
                    span_id: NonZeroU64::new(0xb7ad_6b71_6920_3331).unwrap(),
                })
            );
        }
        let largest = format!("00-{}-{}-01", "f".repeat(32), "f".repeat(16));
        let context = TraceContext::sampled(largest.as_bytes()).unwrap();
        assert_eq!(context.trace_id, NonZeroU128::MAX);
        assert_eq!(context.span_id, NonZeroU64::MAX);
    }

    #[test]
    fn the_known_fields_of_a_later_version_are_parsed() {
        let known = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let version_00 = TraceContext::sampled(format!("00-{known}").as_bytes());
        assert!(version_00.is_some());
        for (version, appended) in [
            ("01", ""),
            ("01", "-"),
            ("cc", "-what-is-to-come"),
            ("fe", "-\u{e9}"),
        ] {
            let value = format!("{version}-{known}{appended}");
            assert_eq!(
                TraceContext::sampled(value.as_bytes()),
                version_00,
                "{value}"
            );
        }
    }

    #[test]
    fn a_traceparent_that_is_unsampled_or_malformed_is_ignored() {
        for value in [
            // Not sampled.
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-02",
            // All zeros.
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-01",
            // The version that is invalid, and others that are malformed.
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-is-to-come",
            "CC-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "0g-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            // A later version whose known fields are not followed by a dash, or are malformed.
            "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01.what-is-to-come",
            "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-010",
            "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
            "cc-0af7651916cd43dd8448eb211c80319c.b7ad6b7169203331-01-what-is-to-come",
            // Digits other than lowercase hexadecimal ones.
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-B7AD6B7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319g-b7ad6b7169203331-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0 ",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-.1",
            // A wrong length or separator.
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01 ",
            " 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-is-to-come",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-001",
            "00_0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331_01",
            "00-0af7651916cd43dd8448eb211c80319cb-7ad6b7169203331-01",
            "\u{e9}0-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
        ] {
            assert_eq!(TraceContext::sampled(value.as_bytes()), None, "{value}");
        }
    }
}
