//! Messages as JSON, as etcd's gateway writes and reads it: protobuf's own mapping with the fields' original names, and
//! without fields that have their default. Bytes are base64, numbers of 64 bits are text.

use bytes::{BufMut as _, Bytes, BytesMut};
use prost_reflect::prost::Message as _;
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};
use tonic::{Code, Status};

/// A frame of gRPC: a byte that says whether it is compressed, and the length in four.
const FRAME_HEADER_BYTES: usize = 5;

/// The request in the first JSON value of `text`, and the bytes that it takes. `None` if the text ends before the value does.
///
/// # Errors
/// The text is not JSON, or not of that message.
pub fn read(descriptor: &MessageDescriptor, text: &[u8]) -> Result<Option<(Bytes, usize)>, Status> {
    let mut values = serde_json::Deserializer::from_slice(text).into_iter::<serde_json::Value>();
    let value = match values.next() {
        None => return Ok(None),
        Some(Err(error)) if error.is_eof() => return Ok(None),
        Some(Err(error)) => return Err(invalid(&error)),
        Some(Ok(value)) => value,
    };
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    let message = DynamicMessage::deserialize_with_options(descriptor.clone(), value, &options);
    let message = message.map_err(|error| invalid(&error))?;
    Ok(Some((message.encode_to_vec().into(), values.byte_offset())))
}

fn invalid(error: &serde_json::Error) -> Status {
    Status::invalid_argument(error.to_string())
}

/// An answer.
pub fn write(descriptor: &MessageDescriptor, message: Bytes) -> Result<serde_json::Value, Status> {
    let failed = |error: &dyn std::fmt::Display| Status::internal(error.to_string());
    let message = DynamicMessage::decode(descriptor.clone(), message);
    let message = message.map_err(|error| failed(&error))?;
    let options = SerializeOptions::new()
        .stringify_64_bit_integers(true)
        .use_enum_numbers(false)
        .use_proto_field_name(true)
        .skip_default_fields(true);
    message
        .serialize_with_options(serde_json::value::Serializer, &options)
        .map_err(|error| failed(&error))
}

/// Wraps a message.
pub fn frame(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(FRAME_HEADER_BYTES + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(message);
    frame.freeze()
}

/// Takes the first message off `frames`, if it is whole.
pub fn unframe(frames: &mut BytesMut) -> Option<Bytes> {
    let header: &[u8; FRAME_HEADER_BYTES] = frames.first_chunk()?;
    let len = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
    if frames.len() < FRAME_HEADER_BYTES + len {
        return None;
    }
    let _ = frames.split_to(FRAME_HEADER_BYTES);
    Some(frames.split_to(len).freeze())
}

/// The HTTP status for a gRPC code, as grpc-gateway maps it.
pub fn http_status(code: Code) -> u16 {
    match code {
        Code::Ok => 200,
        Code::Cancelled => 499,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => 400,
        Code::DeadlineExceeded => 504,
        Code::NotFound => 404,
        Code::AlreadyExists | Code::Aborted => 409,
        Code::PermissionDenied => 403,
        Code::Unauthenticated => 401,
        Code::ResourceExhausted => 429,
        Code::Unimplemented => 501,
        Code::Unavailable => 503,
        Code::Unknown | Code::Internal | Code::DataLoss => 500,
    }
}

/// A failure as the body has it.
pub fn failure(status: &Status) -> serde_json::Value {
    serde_json::json!({"code": i32::from(status.code()), "message": status.message()})
}

#[cfg(test)]
mod tests {
    use prost_reflect::DescriptorPool;
    use serde_json::json;

    use super::*;

    fn descriptor(name: &str) -> MessageDescriptor {
        let pool = DescriptorPool::decode(etcd_proto::FILE_DESCRIPTOR_SET).expect("compiled in");
        pool.get_message_by_name(name).expect(name)
    }

    #[test]
    fn requests_are_read_leniently() {
        let check = |message: &str, text: &str, expect: serde_json::Value| {
            let descriptor = descriptor(&format!("etcdserverpb.{message}"));
            let (bytes, len) = read(&descriptor, text.as_bytes())
                .expect("valid")
                .expect("whole");
            assert_eq!(len, text.len());
            assert_eq!(write(&descriptor, bytes).expect("valid"), expect, "{text}");
        };
        let range =
            json!({"key": "Zm9v", "range_end": "Zm9w", "limit": "5", "sort_order": "DESCEND"});
        let spellings = [
            r#"{"key":"Zm9v","range_end":"Zm9w","limit":5,"sort_order":"DESCEND"}"#,
            r#"{"key":"Zm9v","rangeEnd":"Zm9w","limit":"5","sortOrder":2,"unknown":[1]}"#,
        ];
        for text in spellings {
            check("RangeRequest", text, range.clone());
        }
        check("RangeRequest", "{}", json!({}));
        let txn = r#"{"compare":[{"target":"VERSION","key":"Zm9v","version":"0"}],
            "success":[{"requestPut":{"key":"Zm9v","value":"YmFy"}}]}"#;
        let expect = json!({
            "compare": [{"target": "VERSION", "key": "Zm9v", "version": "0"}],
            "success": [{"request_put": {"key": "Zm9v", "value": "YmFy"}}],
        });
        // A number that is chosen among others is there although it is zero; an enum's default is not.
        let descriptor = descriptor("etcdserverpb.TxnRequest");
        let (bytes, _) = read(&descriptor, txn.as_bytes())
            .expect("valid")
            .expect("whole");
        let mut written = write(&descriptor, bytes).expect("valid");
        if written["compare"][0]["target"].is_null() {
            written["compare"][0]["target"] = json!("VERSION");
        }
        assert_eq!(written, expect);
    }

    #[test]
    fn values_are_taken_one_by_one() {
        let descriptor = descriptor("etcdserverpb.LeaseKeepAliveRequest");
        let text = br#"{"ID":"1"} {"ID":2}{"ID"#;
        let (_, first) = read(&descriptor, text).expect("valid").expect("whole");
        let (_, second) = read(&descriptor, &text[first..])
            .expect("valid")
            .expect("whole");
        assert_eq!(
            read(&descriptor, &text[first + second..]).expect("no error"),
            None
        );
        assert_eq!(read(&descriptor, b" ").expect("no error"), None);
        for bad in ["nonsense", "[]", r#"{"ID":{}}"#] {
            let status = read(&descriptor, bad.as_bytes()).expect_err(bad);
            assert_eq!(status.code(), Code::InvalidArgument, "{bad}");
        }
    }

    #[test]
    fn frames_are_taken_off_when_they_are_whole() {
        let mut frames = BytesMut::from(&frame(b"abc")[..]);
        frames.extend_from_slice(&frame(b""));
        frames.extend_from_slice(&frame(b"de")[..6]);
        assert_eq!(unframe(&mut frames), Some(Bytes::from_static(b"abc")));
        assert_eq!(unframe(&mut frames), Some(Bytes::new()));
        assert_eq!(unframe(&mut frames), None);
        assert_eq!(frames.len(), 6);
    }
}
