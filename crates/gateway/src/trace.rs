//! The trace that a request belongs to: `traceparent` (W3C Trace Context) names it; each attempt's
//! parent is a span of ours.

use crate::fields::{Fields, name};

/// A trace's name, and the span that we are in it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trace {
    pub trace: u128,
    pub span: u64,
    /// The client's span.
    pub parent: Option<u64>,
    pub is_sampled: bool,
}

impl Trace {
    /// The trace that the request belongs to, or a new one, which is sampled with probability
    /// `share`; new names are made of what is `random`.
    pub fn of(fields: &Fields, share: f64, random: [u64; 3]) -> Trace {
        let [span, high, low] = random.map(|random| random.max(1));
        let Some(given) = fields.ascii(name::TRACE_PARENT).and_then(parse) else {
            let trace = u128::from(high) << 64 | u128::from(low);
            // Drawn from the name, as W3C's level 2 has it: who knows the share agrees.
            let drawn = (low & ((1 << 56) - 1)) as f64 / (1_u64 << 56) as f64;
            return Trace { trace, span, parent: None, is_sampled: drawn < share };
        };
        Trace { span, ..given }
    }

    pub fn set(&self, fields: &mut Fields) {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        hex(&mut text[3..35], &self.trace.to_be_bytes());
        hex(&mut text[36..52], &self.span.to_be_bytes());
        hex(&mut text[53..55], &[u8::from(self.is_sampled)]);
        fields.set(name::TRACE_PARENT, text);
    }
}

fn hex(to: &mut [u8], bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (to, byte) in to.chunks_exact_mut(2).zip(bytes) {
        to[0] = DIGITS[usize::from(byte >> 4)];
        to[1] = DIGITS[usize::from(byte & 15)];
    }
}

/// `00-<32 hex>-<16 hex>-<2 hex>`; later versions may say more behind that. The span is nobody's.
fn parse(text: &str) -> Option<Trace> {
    let mut parts = text.split('-');
    let (version, trace) = (parts.next()?, parts.next()?);
    let (parent, flags) = (parts.next()?, parts.next()?);
    let is_hex = |text: &str, n: usize| {
        text.len() == n && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let lengths = is_hex(version, 2) && is_hex(trace, 32) && is_hex(parent, 16) && is_hex(flags, 2);
    if !lengths || version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let trace = u128::from_str_radix(trace, 16).ok().filter(|trace| *trace != 0)?;
    let parent = u64::from_str_radix(parent, 16).ok().filter(|parent| *parent != 0)?;
    let is_sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
    Some(Trace { trace, span: 0, parent: Some(parent), is_sampled })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(pairs: &[(&str, &str)]) -> Fields {
        let mut fields = Fields::default();
        for (name, value) in pairs {
            fields.add(name, value);
        }
        fields
    }

    #[test]
    fn a_trace_goes_on_and_a_broken_one_begins_anew() {
        let given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let trace = Trace::of(&fields(&[("traceparent", given)]), 0.0, [7; 3]);
        assert_eq!(trace.trace, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!((trace.parent, trace.is_sampled), (Some(0xb7ad_6b71_6920_3331), true));
        let mut headers = Fields::default();
        trace.set(&mut headers);
        assert_eq!(
            headers.ascii("traceparent"),
            Some("00-0af7651916cd43dd8448eb211c80319c-0000000000000007-01")
        );
        for wrong in [
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "00-short-b7ad6b7169203331-01",
        ] {
            assert!(parse(wrong).is_none(), "{wrong}");
        }
    }
}
