//! The bytes of a segment: a header, then frames. Numbers are little-endian.
//!
//! | segment header (64 bytes) | | frame header (36 bytes) | |
//! | --- | --- | --- | --- |
//! | magic | 8 | magic | 4 |
//! | format | u32 | crc32c | u32 |
//! | crc32c of what follows | u32 | length of the entry | u32 |
//! | first entry: t, i, term | u32, u32, i64 | t, i, term | u32, u32, i64 |
//! | segment before: its first entry's t, i | u32, u32 | bytes of the segment durable before | u64 |
//! | its length | u64 | | |
//! | its last entry: t, i, term | u32, u32, i64 | the entry | |
//!
//! A frame's checksum covers, besides its bytes, where it belongs (segment and offset): a frame that lies in an entry,
//! or in a stale block, is none. The bytes that were durable before it tell, when an earlier frame is bad, whether
//! that one was still being written (a crash: cut it off) or had been promised (damage: an error).

use bytes::{Buf, BufMut};

use super::ENTRY_BYTES_MAX;
use crate::position::{OpTime, Ts};

const SEGMENT_MAGIC: [u8; 8] = *b"SNAPSPOL";
pub(super) const FRAME_MAGIC: [u8; 4] = [0xf5, 0x53, 0x50, 0x4c];
const FORMAT: u32 = 1;

pub(super) const SEGMENT_HEADER_BYTES: u64 = 64;
pub(super) const FRAME_HEADER_BYTES: usize = 36;
/// Where a frame's checked bytes begin: after magic and checksum.
const FRAME_CHECKED_FROM: usize = 8;

/// How a segment begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) first: OpTime,
    /// `None` if the spool was empty: whatever lies before was discarded.
    pub(super) previous: Option<Previous>,
}

/// How the segment before ended, all of it durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Previous {
    pub(super) first: Ts,
    pub(super) bytes: u64,
    pub(super) last: OpTime,
}

/// Why a segment header cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BadHeader {
    Damaged(&'static str),
    Format(u32),
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut checked = Vec::new();
        put_optime(&mut checked, self.first);
        // A length of 0 stands for none: no segment is shorter than its header.
        let none = Previous { first: Ts::ZERO, bytes: 0, last: OpTime::default() };
        let previous = self.previous.unwrap_or(none);
        put_ts(&mut checked, previous.first);
        checked.put_u64_le(previous.bytes);
        put_optime(&mut checked, previous.last);

        let mut bytes = Vec::new();
        bytes.put_slice(&SEGMENT_MAGIC);
        bytes.put_u32_le(FORMAT);
        bytes.put_u32_le(crc32c::crc32c(&checked));
        bytes.put_slice(&checked);
        bytes
    }

    pub(super) fn decode(mut bytes: &[u8]) -> Result<Self, BadHeader> {
        if bytes.len() as u64 != SEGMENT_HEADER_BYTES {
            return Err(BadHeader::Damaged("it is shorter than its header"));
        }
        if !bytes.starts_with(&SEGMENT_MAGIC) {
            return Err(BadHeader::Damaged("it does not begin as a spool segment"));
        }
        bytes.advance(SEGMENT_MAGIC.len());
        let format = bytes.get_u32_le();
        if format != FORMAT {
            return Err(BadHeader::Format(format));
        }
        if bytes.get_u32_le() != crc32c::crc32c(bytes) {
            return Err(BadHeader::Damaged("the checksum of its header does not match"));
        }
        let first = get_optime(&mut bytes);
        let previous = Previous {
            first: get_ts(&mut bytes),
            bytes: bytes.get_u64_le(),
            last: get_optime(&mut bytes),
        };
        Ok(Self { first, previous: (previous.bytes > 0).then_some(previous) })
    }
}

/// Where a frame belongs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// First timestamp of its segment.
    pub(super) segment: Ts,
    /// Where it begins, in bytes from the beginning of the segment.
    pub(super) offset: u64,
}

/// What stands at the beginning of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// A sound frame.
    Frame {
        optime: OpTime,
        /// Bytes of the segment that were durable before the frame was written.
        durable: u64,
        /// Length of the frame; its entry is what follows the header.
        bytes: usize,
    },
    /// A frame may begin here, of which this many bytes are needed to go on.
    Short(usize),
    /// No frame.
    Bad(&'static str),
}

/// Appends a frame; `entry` is at most [`ENTRY_BYTES_MAX`] long.
pub(super) fn push_frame(
    buffer: &mut Vec<u8>,
    place: Place,
    optime: OpTime,
    durable: u64,
    entry: &[u8],
) {
    let mut header = [0u8; FRAME_HEADER_BYTES - FRAME_CHECKED_FROM];
    let mut fields = &mut header[..];
    // The length was checked against a limit far below 4 GiB.
    fields.put_u32_le(u32::try_from(entry.len()).unwrap_or(u32::MAX));
    put_optime(&mut fields, optime);
    fields.put_u64_le(durable);

    buffer.reserve(FRAME_HEADER_BYTES + entry.len());
    buffer.put_slice(&FRAME_MAGIC);
    buffer.put_u32_le(crc32c::crc32c_append(checksum(place, &header), entry));
    buffer.put_slice(&header);
    buffer.put_slice(entry);
}

/// Looks for a frame at the beginning of `bytes`, which were read from `place`.
pub(super) fn parse_frame(bytes: &[u8], place: Place) -> Parsed {
    let Some((mut header, _)) = bytes.split_at_checked(FRAME_HEADER_BYTES) else {
        return Parsed::Short(FRAME_HEADER_BYTES);
    };
    if !header.starts_with(&FRAME_MAGIC) {
        return Parsed::Bad("no entry begins there");
    }
    header.advance(FRAME_MAGIC.len());
    let crc = header.get_u32_le();
    let length = header.get_u32_le() as usize;
    if length > ENTRY_BYTES_MAX {
        return Parsed::Bad("an entry has an impossible length");
    }
    let frame_bytes = FRAME_HEADER_BYTES + length;
    let Some(checked) = bytes.get(FRAME_CHECKED_FROM..frame_bytes) else {
        return Parsed::Short(frame_bytes);
    };
    if crc != checksum(place, checked) {
        return Parsed::Bad("the checksum of an entry does not match");
    }
    let optime = get_optime(&mut header);
    Parsed::Frame { optime, durable: header.get_u64_le(), bytes: frame_bytes }
}

fn checksum(place: Place, bytes: &[u8]) -> u32 {
    let mut crc = crc32c::crc32c(&super::ordinal(place.segment).to_le_bytes());
    crc = crc32c::crc32c_append(crc, &place.offset.to_le_bytes());
    crc32c::crc32c_append(crc, bytes)
}

fn put_ts(bytes: &mut impl BufMut, ts: Ts) {
    bytes.put_u32_le(ts.t);
    bytes.put_u32_le(ts.i);
}

fn put_optime(bytes: &mut impl BufMut, optime: OpTime) {
    put_ts(bytes, optime.ts);
    bytes.put_i64_le(optime.term);
}

fn get_ts(bytes: &mut &[u8]) -> Ts {
    Ts { t: bytes.get_u32_le(), i: bytes.get_u32_le() }
}

fn get_optime(bytes: &mut &[u8]) -> OpTime {
    OpTime { ts: get_ts(bytes), term: bytes.get_i64_le() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLACE: Place = Place { segment: Ts::new(7, 1), offset: 64 };

    fn optime() -> impl Strategy<Value = OpTime> {
        any::<(u32, u32, i64)>().prop_map(|(t, i, term)| OpTime::new(Ts::new(t, i), term))
    }

    proptest! {
        #[test]
        fn headers_read_back(first in optime(), last in optime(), bytes in 0u64..9) {
            let previous = (bytes > 0).then_some(Previous { first: first.ts, bytes, last });
            let header = SegmentHeader { first, previous };
            prop_assert_eq!(header.encode().len() as u64, SEGMENT_HEADER_BYTES);
            prop_assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
        }

        #[test]
        fn frames_read_back(optime in optime(), durable: u64, entry: Vec<u8>, rest: Vec<u8>) {
            let mut bytes = Vec::new();
            push_frame(&mut bytes, PLACE, optime, durable, &entry);
            let length = bytes.len();
            for cut in 0..length {
                prop_assert!(matches!(parse_frame(&bytes[..cut], PLACE), Parsed::Short(n) if n > cut));
            }
            bytes.extend(rest);
            prop_assert_eq!(parse_frame(&bytes, PLACE), Parsed::Frame { optime, durable, bytes: length });
            prop_assert_eq!(&bytes[FRAME_HEADER_BYTES..length], &entry);
        }

        #[test]
        fn damage_is_seen(entry: Vec<u8>, at: prop::sample::Index, bits in 1u8..) {
            let mut frame = Vec::new();
            push_frame(&mut frame, PLACE, OpTime::default(), 0, &entry);
            let at_frame = at.index(frame.len());
            frame[at_frame] ^= bits;
            let is_frame = matches!(parse_frame(&frame, PLACE), Parsed::Frame { .. });
            prop_assert!(!is_frame);

            let mut header = SegmentHeader { first: OpTime::default(), previous: None }.encode();
            let at_header = at.index(header.len());
            header[at_header] ^= bits;
            prop_assert!(SegmentHeader::decode(&header).is_err());
        }
    }

    #[test]
    fn a_frame_in_another_place_is_none() {
        let mut frame = Vec::new();
        push_frame(&mut frame, PLACE, OpTime::default(), 0, b"entry");
        for place in [Place { offset: 65, ..PLACE }, Place { segment: Ts::new(7, 2), ..PLACE }] {
            assert!(matches!(parse_frame(&frame, place), Parsed::Bad(_)));
        }
    }

    #[test]
    fn an_impossible_length_is_not_waited_for() {
        let mut frame = Vec::new();
        push_frame(&mut frame, PLACE, OpTime::default(), 0, b"entry");
        frame[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(parse_frame(&frame, PLACE), Parsed::Bad(_)));
    }
}
