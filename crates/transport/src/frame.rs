//! Frames: how messages stand on a connection.
//!
//! ```text
//! length u32 | crc32c of the length u32 | crc32c of the rest u32 |
//!     sequence u64 | shape u8 | kind u8 | request u64 | deadline_ms u32 | payload
//! ```
//!
//! All numbers are little endian. `length` counts everything after the second checksum, and the second
//! checksum covers the same bytes. The length has a checksum of its own, because a reader that trusted a
//! damaged length would wait for bytes that never come. `sequence` starts at 0 on every connection and in
//! each direction, and grows by one. A smaller number than expected is a repetition (dropped, harmless). A
//! larger one means that something was lost, which a byte stream never does by itself.
//!
//! The failure model is Hadzilacos and Toueg's: omission shows as a gap or a passed deadline,
//! arbitrary failure of the channel as a wrong checksum or sequence.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes of a frame before its payload.
pub const HEADER_BYTES: usize = PREFIX_BYTES + BODY_HEADER_BYTES;
/// The length and the two checksums.
pub const PREFIX_BYTES: usize = 12;
const BODY_HEADER_BYTES: usize = 8 + 1 + 1 + 8 + 4;
/// The largest payload. Larger things are sent in chunks.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The first frame of each side: it says which node speaks.
    Hello = 1,
    Request = 2,
    Reply = 3,
    /// The reply to a request whose kind has no handler here.
    NoHandler = 4,
    /// The answer was not ready at the deadline. The asker waits no longer, but learns that the connection
    /// works.
    Late = 5,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub shape: Shape,
    /// The [`crate::MessageKind`]'s number; the priority's in a greeting.
    pub kind: u8,
    /// Ties a reply to its request.
    pub request: u64,
    /// How long the asker waits from now on. No clocks are compared.
    pub deadline_ms: u32,
    pub payload: Bytes,
}

/// Why a byte stream stopped being a frame stream.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("a frame claims {0} bytes")]
    Length(usize),
    #[error("a frame's checksum is wrong")]
    Checksum,
    #[error("a frame has the unknown shape {0}")]
    Shape(u8),
    #[error("frame {got} came where {expected} was due: something was lost")]
    Gap { expected: u64, got: u64 },
}

/// Appends frames to a buffer, numbering them.
#[derive(Default)]
pub struct Writer {
    sequence: u64,
}

impl Writer {
    pub fn write(&mut self, out: &mut BytesMut, frame: &Frame) {
        let length = BODY_HEADER_BYTES + frame.payload.len();
        out.reserve(PREFIX_BYTES + length);
        out.put_u32_le(length as u32);
        out.put_u32_le(crc32c::crc32c(&(length as u32).to_le_bytes()));
        let checksum_at = out.len();
        out.put_u32_le(0);
        out.put_u64_le(self.sequence);
        out.put_u8(frame.shape as u8);
        out.put_u8(frame.kind);
        out.put_u64_le(frame.request);
        out.put_u32_le(frame.deadline_ms);
        out.put_slice(&frame.payload);
        let checksum = crc32c::crc32c(&out[checksum_at + 4..]);
        out[checksum_at..checksum_at + 4].copy_from_slice(&checksum.to_le_bytes());
        self.sequence += 1;
    }
}

/// The thing that [`Reader::read`] found at the front of the buffer.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    Frame(Frame),
    /// A frame that was here before; it is gone from the buffer.
    Repeated,
    /// More bytes are needed.
    Incomplete,
}

/// Takes frames off a buffer, checking them.
#[derive(Default)]
pub struct Reader {
    expected: u64,
}

impl Reader {
    /// Removes one frame from the front of `input`. After an error the stream is of no more use.
    pub fn read(&mut self, input: &mut BytesMut) -> Result<Read, Broken> {
        if input.len() < 8 {
            return Ok(Read::Incomplete);
        }
        let mut prefix = &input[..8];
        let checked = crc32c::crc32c(&prefix[..4]);
        let length = prefix.get_u32_le() as usize;
        if prefix.get_u32_le() != checked {
            return Err(Broken::Checksum);
        }
        if !(BODY_HEADER_BYTES..=BODY_HEADER_BYTES + PAYLOAD_BYTES_MAX).contains(&length) {
            return Err(Broken::Length(length));
        }
        if input.len() < PREFIX_BYTES + length {
            return Ok(Read::Incomplete);
        }
        let mut body = input.split_to(PREFIX_BYTES + length).freeze();
        body.advance(8);
        let checksum = body.get_u32_le();
        if crc32c::crc32c(&body) != checksum {
            return Err(Broken::Checksum);
        }
        let sequence = body.get_u64_le();
        if sequence < self.expected {
            return Ok(Read::Repeated);
        }
        if sequence > self.expected {
            return Err(Broken::Gap { expected: self.expected, got: sequence });
        }
        self.expected += 1;
        let shape = match body.get_u8() {
            1 => Shape::Hello,
            2 => Shape::Request,
            3 => Shape::Reply,
            4 => Shape::NoHandler,
            5 => Shape::Late,
            other => return Err(Broken::Shape(other)),
        };
        let kind = body.get_u8();
        let request = body.get_u64_le();
        let deadline_ms = body.get_u32_le();
        Ok(Read::Frame(Frame { shape, kind, request, deadline_ms, payload: body }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(request: u64) -> Frame {
        let payload = Bytes::from(vec![request as u8; request as usize]);
        Frame { shape: Shape::Request, kind: 7, request, deadline_ms: 50, payload }
    }

    fn written(requests: &[u64]) -> Vec<BytesMut> {
        let mut writer = Writer::default();
        let write = |&request: &u64| {
            let mut out = BytesMut::new();
            writer.write(&mut out, &frame(request));
            out
        };
        requests.iter().map(write).collect()
    }

    #[test]
    fn frames_arrive_whole_however_the_stream_is_cut() {
        let stream: Vec<u8> = written(&[0, 5, 100]).concat();
        let mut reader = Reader::default();
        let mut input = BytesMut::new();
        let mut got = vec![];
        for byte in stream {
            input.put_u8(byte);
            while let Read::Frame(frame) = reader.read(&mut input).unwrap() {
                got.push(frame);
            }
        }
        assert_eq!(got, [frame(0), frame(5), frame(100)]);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let whole = written(&[9]).remove(0);
        for bit in 0..whole.len() * 8 {
            let mut input = whole.clone();
            input[bit / 8] ^= 1 << (bit % 8);
            let read = Reader::default().read(&mut input);
            // At once: a reader that waits for more does not know that anything is wrong.
            assert!(matches!(read, Err(_) | Ok(Read::Repeated)), "bit {bit}: {read:?}");
        }
    }

    #[test]
    fn a_repeated_frame_is_dropped_and_a_gap_is_an_error() {
        let frames = written(&[1, 2, 3]);
        let mut reader = Reader::default();
        assert_eq!(reader.read(&mut frames[0].clone()), Ok(Read::Frame(frame(1))));
        assert_eq!(reader.read(&mut frames[0].clone()), Ok(Read::Repeated));
        assert_eq!(reader.read(&mut frames[2].clone()), Err(Broken::Gap { expected: 1, got: 2 }));
    }
}
