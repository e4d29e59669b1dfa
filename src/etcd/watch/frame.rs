//! A watch stream's answers, encoded without building the messages of events again.

use bytes::{BufMut as _, Bytes};
use etcd_proto::etcdserverpb::{ResponseHeader, WatchRequest, WatchResponse};
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use tonic::Status;
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic_prost::ProstCodec;

/// Fields of `etcdserverpb.WatchResponse`.
const EVENTS_FIELD: u32 = 11;

/// One answer.
#[derive(Clone, Debug)]
pub enum Frame {
    /// Created, canceled, or progress.
    Control(Box<WatchResponse>),
    Events(EventsFrame),
}

#[derive(Clone, Debug)]
pub struct EventsFrame {
    pub header: ResponseHeader,
    pub watch_id: i64,
    /// More of the same revision follows.
    pub fragment: bool,
    /// Encoded `mvccpb.Event`s.
    pub events: Vec<Bytes>,
}

fn event_len(event: &Bytes) -> usize {
    key_len(EVENTS_FIELD) + encoded_len_varint(event.len() as u64) + event.len()
}

impl EventsFrame {
    fn without_events(&self) -> WatchResponse {
        WatchResponse {
            header: Some(self.header),
            watch_id: self.watch_id,
            fragment: self.fragment,
            ..WatchResponse::default()
        }
    }

    fn encoded_len(&self) -> usize {
        let events: usize = self.events.iter().map(event_len).sum();
        self.without_events().encoded_len() + events
    }

    /// Cuts the answer so that each part stays below `max_bytes`, unless one event alone does not.
    pub fn fragments(self, max_bytes: usize) -> Vec<EventsFrame> {
        if self.encoded_len() < max_bytes || self.events.len() < 2 {
            return vec![self];
        }
        let part = |events| EventsFrame {
            header: self.header,
            watch_id: self.watch_id,
            fragment: true,
            events,
        };
        let base = part(Vec::new()).encoded_len();
        let mut parts = Vec::new();
        let mut events = Vec::new();
        let mut len = base;
        for event in self.events {
            let more = event_len(&event);
            if !events.is_empty() && len + more >= max_bytes {
                parts.push(part(std::mem::take(&mut events)));
                len = base;
            }
            len += more;
            events.push(event);
        }
        let mut last = part(events);
        last.fragment = false;
        parts.push(last);
        parts
    }
}

/// Encodes [`Frame`]s as `WatchResponse`s.
#[derive(Default)]
pub struct FrameEncoder;

impl Encoder for FrameEncoder {
    type Item = Frame;
    type Error = Status;

    fn encode(&mut self, frame: Frame, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let encoded = match frame {
            Frame::Control(response) => response.encode(buffer),
            Frame::Events(frame) => {
                buffer.reserve(frame.encoded_len());
                let encoded = frame.without_events().encode(buffer);
                for event in &frame.events {
                    encode_key(EVENTS_FIELD, WireType::LengthDelimited, buffer);
                    encode_varint(event.len() as u64, buffer);
                    buffer.put_slice(event);
                }
                encoded
            }
        };
        encoded.map_err(|error| Status::internal(error.to_string()))
    }
}

/// The codec of the Watch method.
#[derive(Default)]
pub struct WatchCodec;

impl Codec for WatchCodec {
    type Encode = Frame;
    type Decode = WatchRequest;
    type Encoder = FrameEncoder;
    type Decoder = <ProstCodec<WatchResponse, WatchRequest> as Codec>::Decoder;

    fn encoder(&mut self) -> FrameEncoder {
        FrameEncoder
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<WatchResponse, WatchRequest>::default().decoder()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_hold_all_events_in_order() {
        let frame = EventsFrame {
            header: ResponseHeader::default(),
            watch_id: 1,
            fragment: false,
            events: (0..10u8).map(|n| Bytes::from(vec![n; 100])).collect(),
        };
        for (max_bytes, sizes) in [
            (10_000, vec![10]),
            (340, vec![3, 3, 3, 1]),
            (50, vec![1; 10]),
        ] {
            let parts = frame.clone().fragments(max_bytes);
            let found: Vec<_> = parts.iter().map(|part| part.events.len()).collect();
            assert_eq!(found, sizes, "at most {max_bytes} bytes");
            let together: Vec<_> = parts.iter().flat_map(|part| part.events.clone()).collect();
            assert_eq!(together, frame.events);
            let more = parts.iter().filter(|part| part.fragment).count();
            assert_eq!(more, parts.len() - 1);
            assert!(!parts[parts.len() - 1].fragment);
        }
    }
}
