//! W3C Trace Context: the one line that ties what several processes do for one request together.

use std::fmt;
use std::str::FromStr;

/// A `traceparent`: the trace, and the step in it that asked for what comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceParent {
    pub trace_id: u128,
    pub span_id: u64,
    /// Bit 0: whoever began the trace wants it recorded.
    pub flags: u8,
}

impl TraceParent {
    /// A trace of its own, wanted recorded. The numbers come from the caller; zero stands for "none" in the standard, so it becomes one.
    #[must_use]
    pub fn new(trace_id: u128, span_id: u64) -> Self {
        Self { trace_id: trace_id.max(1), span_id: span_id.max(1), flags: 1 }
    }

    /// The same trace, asked by another step.
    #[must_use]
    pub fn child(self, span_id: u64) -> Self {
        Self { span_id: span_id.max(1), ..self }
    }

    /// 32 hexadecimal digits: what logs are searched for.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{:032x}", self.trace_id)
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, self.flags)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no W3C traceparent")]
pub struct BadTraceParent;

impl FromStr for TraceParent {
    type Err = BadTraceParent;

    /// Strict, since the text comes from anywhere and goes into logs: lower case, the exact lengths, no zero ids. Of a later version
    /// than 00 only the four fields that are known are taken, as the standard asks.
    fn from_str(text: &str) -> Result<Self, BadTraceParent> {
        let mut fields = text.split('-');
        let mut field = |length: usize| {
            let text = fields.next().ok_or(BadTraceParent)?;
            let is_hex = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            if text.len() == length && is_hex { Ok(text) } else { Err(BadTraceParent) }
        };
        let (version, trace_id, span_id, flags) = (field(2)?, field(32)?, field(16)?, field(2)?);
        if version == "ff" || (version == "00" && fields.next().is_some()) {
            return Err(BadTraceParent);
        }
        let parent = Self {
            trace_id: u128::from_str_radix(trace_id, 16).map_err(|_| BadTraceParent)?,
            span_id: u64::from_str_radix(span_id, 16).map_err(|_| BadTraceParent)?,
            flags: u8::from_str_radix(flags, 16).map_err(|_| BadTraceParent)? & 1,
        };
        if parent.trace_id == 0 || parent.span_id == 0 { Err(BadTraceParent) } else { Ok(parent) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_reads_back_as_it_was_written_in_55_bytes() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let parent: TraceParent = text.parse().unwrap();
        assert_eq!((parent.to_string(), parent.id().as_str()), (text.to_owned(), "4bf92f3577b34da6a3ce929d0e0e4736"));
        assert_eq!(TraceParent::new(0, 0).to_string().len(), 55);
        assert_eq!(parent.child(7).trace_id, parent.trace_id);
    }

    #[test]
    fn what_is_no_traceparent_is_refused() {
        let (trace, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        assert!(format!("01-{trace}-{span}-01-more").parse::<TraceParent>().is_ok());
        for bad in [
            String::new(),
            format!("00-{trace}-{span}"),
            format!("00-{trace}-{span}-01-more"),
            format!("ff-{trace}-{span}-01"),
            format!("00-{}-{span}-01", trace.to_uppercase()),
            format!("00-{}-{span}-01", "0".repeat(32)),
            format!("00-{trace}-{}-01", "0".repeat(16)),
            format!("00-{trace}\n-{span}-01"),
            format!("00-+{}-{span}-01", &trace[1..]),
        ] {
            assert_eq!(bad.parse::<TraceParent>(), Err(BadTraceParent), "{bad}");
        }
    }
}
