//! Which trace a request belongs to: `traceparent`, as W3C's Trace Context has it.

use std::num::{NonZeroU64, NonZeroU128};

/// The trace of a request, and in it the span of whoever sent the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// 16 bytes; all zeros are not valid.
    pub trace_id: NonZeroU128,
    /// 8 bytes; all zeros are not valid.
    pub span_id: NonZeroU64,
}

impl TraceContext {
    /// Reads the value of `traceparent`, if it says that the trace is recorded somewhere (Trace
    /// Context, section 3.2.2). Only version 00 is known here, and that is exact to the byte.
    pub fn sampled(traceparent: &[u8]) -> Option<Self> {
        let value: &[u8; 55] = traceparent.try_into().ok()?;
        let has_shape = value.starts_with(b"00-") && value[35] == b'-' && value[52] == b'-';
        let flags = has_shape.then(|| hexadecimal(&value[53..]))??;
        let is_sampled = flags & 1 == 1;
        is_sampled.then_some(Self {
            trace_id: NonZeroU128::new(hexadecimal(&value[3..35])?)?,
            span_id: NonZeroU64::new(hexadecimal(&value[36..52])? as u64)?,
        })
    }
}

/// A number of at most 32 digits. Upper-case ones are not allowed.
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
    fn a_sampled_traceparent_is_read() {
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
        let most = format!("00-{}-{}-01", "f".repeat(32), "f".repeat(16));
        let context = TraceContext::sampled(most.as_bytes()).unwrap();
        assert_eq!(context.trace_id, NonZeroU128::MAX);
        assert_eq!(context.span_id, NonZeroU64::MAX);
    }

    #[test]
    fn what_is_not_sampled_not_valid_or_of_another_version_is_none() {
        for value in [
            // Not sampled.
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-02",
            // All zeros.
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            // Another version.
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-is-to-come",
            // Not hexadecimal in lower case.
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-B7AD6B7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319g-b7ad6b7169203331-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0 ",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-.1",
            // Not of its shape.
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01 ",
            " 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-001",
            "00_0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331_01",
            "00-0af7651916cd43dd8448eb211c80319cb-7ad6b7169203331-01",
            "\u{e9}0-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
        ] {
            assert_eq!(TraceContext::sampled(value.as_bytes()), None, "{value}");
        }
    }
}
