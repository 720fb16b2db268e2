//! Messages on the session socket, generated from `proto/kvd/session/v1/session.proto`, and their framing: a little-endian
//! `u32` length, then the message.

use prost::Message;
use thiserror::Error;

use crate::{Interleave, Shard, ShardError};

#[allow(missing_docs, unreachable_pub, reason = "generated; the documentation stands in the .proto")]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/kvd.session.v1.rs"));
}

pub use generated::frame::Body;
pub use generated::{
    Error, Frame, GetSegment, Goodbye, Hello, ListSegments, ListShards, OpenView, RefusalCode, Refused, RingGeometry,
    Role, SegmentFd, Segments, SetPrefillRate, ShardRange, Shards, ViewOpened, Welcome,
};

/// The feature of offers with token ids.
pub const FEATURE_TOKEN_IDS: &str = "token_ids";
/// The feature of [`ListShards`].
pub const FEATURE_SHARDS: &str = "shards";
/// The feature of [`ListSegments`].
pub const FEATURE_SEGMENTS: &str = "segments";

/// The newest version of the protocol that this crate speaks.
pub const VERSION: u32 = 1;
/// The oldest.
pub const VERSION_MIN: u32 = 1;
/// The longest frame in bytes, its length field not counted.
pub const FRAME_BYTES_MAX: usize = 256 * 1024;

const LENGTH_BYTES: usize = 4;

/// Bytes that are no frame.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FrameError {
    /// Longer than a frame may be.
    #[error("a frame of {0} bytes; at most {FRAME_BYTES_MAX} are allowed")]
    Length(usize),
    /// The message does not parse.
    #[error("a frame that does not parse: {0}")]
    Parse(#[from] prost::DecodeError),
    /// The message is of a kind that this version does not know.
    #[error("a frame without a known message")]
    Unknown,
}

impl From<&Shard> for ShardRange {
    fn from(shard: &Shard) -> Self {
        let (layers, heads, interleave) = (shard.layers(), shard.heads(), shard.interleave());
        Self {
            layer_start: layers.start.into(),
            layer_end: layers.end.into(),
            head_start: heads.start.into(),
            head_end: heads.end.into(),
            interleave_index: interleave.index().into(),
            interleave_of: interleave.of().into(),
        }
    }
}

impl TryFrom<&ShardRange> for Shard {
    type Error = ShardError;

    fn try_from(range: &ShardRange) -> Result<Self, ShardError> {
        let narrow = |number| u16::try_from(number).map_err(|_| ShardError::Beyond(number));
        Self::new(
            narrow(range.layer_start)?..narrow(range.layer_end)?,
            narrow(range.head_start)?..narrow(range.head_end)?,
            Interleave::new(narrow(range.interleave_index)?, narrow(range.interleave_of)?)?,
        )
    }
}

/// The bytes of a frame with this message.
pub fn encode_frame(body: Body) -> Result<Vec<u8>, FrameError> {
    let frame = Frame { body: Some(body) };
    let len = frame.encoded_len();
    if len > FRAME_BYTES_MAX {
        return Err(FrameError::Length(len));
    }
    let mut out = Vec::with_capacity(LENGTH_BYTES + len);
    out.extend((len as u32).to_le_bytes());
    frame.encode_raw(&mut out);
    Ok(out)
}

/// The first message of `bytes` and how many bytes it took, or `None` while they are too few.
pub fn decode_frame(bytes: &[u8]) -> Result<Option<(Body, usize)>, FrameError> {
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
    let len = u32::from_le_bytes(*length) as usize;
    if len > FRAME_BYTES_MAX {
        return Err(FrameError::Length(len));
    }
    let Some(message) = rest.get(..len) else { return Ok(None) };
    let body = Frame::decode(message)?.body.ok_or(FrameError::Unknown)?;
    Ok(Some((body, LENGTH_BYTES + len)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_round_trip(instance in prop::collection::vec(any::<u8>(), 0..40), name in ".{0,20}", versions in any::<(u32, u32, u64)>()) {
            let hello = Body::Hello(Hello {
                version_min: versions.0,
                version_max: versions.1,
                features: vec![name.clone()],
                instance,
                role: Role::Worker as i32,
                client_name: name,
                last_epoch: versions.2,
                last_client_slot: versions.0,
            });
            let mut bytes = encode_frame(hello.clone()).unwrap();
            let used = bytes.len();
            prop_assert_eq!(decode_frame(&bytes[..used - 1]).unwrap(), None);
            bytes.push(7);
            prop_assert_eq!(decode_frame(&bytes).unwrap(), Some((hello, used)));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode_frame(&bytes);
            let mut framed = (bytes.len() as u32).to_le_bytes().to_vec();
            framed.extend(&bytes);
            let _ = decode_frame(&framed);
        }
    }

    #[test]
    fn long_frames_are_refused_before_they_are_read() {
        assert_eq!(decode_frame(&u32::MAX.to_le_bytes()), Err(FrameError::Length(u32::MAX as usize)));
        let namespace = vec![0; FRAME_BYTES_MAX];
        let body = Body::OpenView(OpenView { namespace, ..OpenView::default() });
        assert!(matches!(encode_frame(body), Err(FrameError::Length(_))));
    }
}
