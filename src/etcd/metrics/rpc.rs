//! Counts gRPC calls by method and code, and messages and bytes both ways, from the bodies as they
//! pass: so every service is counted, and none knows of it.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use prometheus::{IntCounter, IntCounterVec, Opts};
use prost_reflect::DescriptorPool;
use tonic::body::Body;
use tonic::{Code, Status};

use super::Registrar;
use crate::etcd::pings::Begun;

/// By code, as grpc-go spells them.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// Every method that the API has.
pub struct Methods {
    by_path: HashMap<String, Arc<Method>>,
}

/// etcd's totals of messages, without the five bytes before each.
#[derive(Clone)]
struct Bytewise {
    received: IntCounter,
    sent: IntCounter,
}

struct Method {
    started: IntCounter,
    handled: Vec<IntCounter>,
    received: IntCounter,
    sent: IntCounter,
    total: Bytewise,
}

impl Methods {
    pub(super) fn new(to: &Registrar) -> Methods {
        let method = ["grpc_method", "grpc_service", "grpc_type"];
        let counters = |name: &str, help: &str, labels: &[&str]| -> IntCounterVec {
            to.add(IntCounterVec::new(Opts::new(name, help), labels))
        };
        let started = counters(
            "grpc_server_started_total",
            "Total number of RPCs started on the server.",
            &method,
        );
        let received = counters(
            "grpc_server_msg_received_total",
            "Total number of RPC stream messages received on the server.",
            &method,
        );
        let sent = counters(
            "grpc_server_msg_sent_total",
            "Total number of gRPC stream messages sent by the server.",
            &method,
        );
        let handled = counters(
            "grpc_server_handled_total",
            "Total number of RPCs completed on the server, regardless of success or failure.",
            &["grpc_code", "grpc_method", "grpc_service", "grpc_type"],
        );
        let total = Bytewise {
            received: to.counter(
                "etcd_network_client_grpc_received_bytes_total",
                "The total number of bytes received from grpc clients.",
            ),
            sent: to.counter(
                "etcd_network_client_grpc_sent_bytes_total",
                "The total number of bytes sent to grpc clients.",
            ),
        };
        let pool = DescriptorPool::decode(etcd_proto::FILE_DESCRIPTOR_SET);
        let pool = pool.expect("the build has written the descriptors");
        let mut by_path = HashMap::new();
        for service in pool.services() {
            for method in service.methods() {
                let kind = match (method.is_client_streaming(), method.is_server_streaming()) {
                    (false, false) => "unary",
                    (true, false) => "client_stream",
                    (false, true) => "server_stream",
                    (true, true) => "bidi_stream",
                };
                let labels = [method.name(), service.full_name(), kind];
                let handled = CODES.map(|code| {
                    handled.with_label_values(&[code, method.name(), service.full_name(), kind])
                });
                let counted = Method {
                    started: started.with_label_values(&labels),
                    handled: handled.into(),
                    received: received.with_label_values(&labels),
                    sent: sent.with_label_values(&labels),
                    total: total.clone(),
                };
                let path = format!("/{}/{}", service.full_name(), method.name());
                by_path.insert(path, Arc::new(counted));
            }
        }
        Methods { by_path }
    }

    /// Counts a call that begins. Calls of methods that do not exist are not counted.
    pub fn start<B>(&self, request: http::Request<B>) -> (Call, http::Request<Received<B>>) {
        let method = self.by_path.get(request.uri().path()).cloned();
        if let Some(method) = &method {
            method.started.inc();
        }
        let received = method.clone();
        let request = request.map(|body| Received {
            body,
            messages: Messages::default(),
            method: received,
        });
        let call = Call { method, code: None };
        (call, request)
    }
}

/// Finds the messages in a body: each has five bytes before it, the last four its length. Frames
/// may be cut anywhere.
#[derive(Default)]
struct Messages {
    /// Of the message that has begun, how many bytes are still to come.
    left: usize,
    prefix: [u8; 5],
    prefix_len: usize,
}

impl Messages {
    /// How many messages begin in this frame, and how many bytes of messages it has.
    fn count(&mut self, frame: &[u8]) -> (u64, u64) {
        let (mut begun, mut bytes) = (0, 0);
        let mut rest = frame;
        while !rest.is_empty() {
            if self.left > 0 {
                let taken = self.left.min(rest.len());
                bytes += taken as u64;
                self.left -= taken;
                rest = &rest[taken..];
                continue;
            }
            let taken = (self.prefix.len() - self.prefix_len).min(rest.len());
            self.prefix[self.prefix_len..][..taken].copy_from_slice(&rest[..taken]);
            self.prefix_len += taken;
            rest = &rest[taken..];
            if self.prefix_len == self.prefix.len() {
                self.prefix_len = 0;
                let [_, length @ ..] = self.prefix;
                self.left = u32::from_be_bytes(length) as usize;
                begun += 1;
            }
        }
        (begun, bytes)
    }
}

/// A request's body, counted.
pub struct Received<B> {
    body: B,
    messages: Messages,
    method: Option<Arc<Method>>,
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for Received<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        if let (Some(method), Some(Ok(frame))) = (&this.method, &frame)
            && let Some(data) = frame.data_ref()
        {
            let (messages, bytes) = this.messages.count(data);
            method.received.inc_by(messages);
            method.total.received.inc_by(bytes);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The code that a call ended with, without its words and details.
fn code_of(headers: &http::HeaderMap) -> Option<Code> {
    let code = headers.get(Status::GRPC_STATUS)?;
    Some(Code::from_bytes(code.as_bytes()))
}

/// A call under way. Dropped before it has said its code it was canceled.
pub struct Call {
    method: Option<Arc<Method>>,
    code: Option<Code>,
}

impl Call {
    /// Counts what is answered.
    pub fn answer(mut self, response: http::Response<Body>) -> http::Response<Answered> {
        // A refusal without a body has its code in the head.
        self.code = code_of(response.headers());
        response.map(|body| Answered {
            body,
            messages: Messages::default(),
            call: Some(self),
            begun: None,
        })
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(method) = &self.method {
            let code = self.code.unwrap_or(Code::Cancelled);
            if let Some(handled) = usize::try_from(i32::from(code))
                .ok()
                .and_then(|code| method.handled.get(code))
            {
                handled.inc();
            }
        }
    }
}

/// An answer's body, counted if it is a gRPC call's.
pub struct Answered {
    body: Body,
    messages: Messages,
    call: Option<Call>,
    #[expect(dead_code, reason = "to be dropped with the answer")]
    begun: Option<Begun>,
}

impl Answered {
    /// The answer to a request that is no call.
    pub fn uncounted(response: http::Response<Body>) -> http::Response<Answered> {
        response.map(|body| Answered {
            body,
            messages: Messages::default(),
            call: None,
            begun: None,
        })
    }

    /// The request is under way as long as its answer.
    pub fn holding(self, begun: Begun) -> Answered {
        Answered {
            begun: Some(begun),
            ..self
        }
    }
}

impl HttpBody for Answered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        if let Some(call) = &mut this.call
            && let Some(method) = &call.method
        {
            match &frame {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        let (messages, bytes) = this.messages.count(data);
                        method.sent.inc_by(messages);
                        method.total.sent.inc_by(bytes);
                    } else if let Some(trailers) = frame.trailers_ref() {
                        call.code = code_of(trailers);
                    }
                }
                Some(Err(status)) => call.code = Some(status.code()),
                None => {}
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_however_frames_are_cut() {
        let mut body = Vec::new();
        for message in [&b"hello"[..], b"", b"world!"] {
            body.push(0);
            body.extend(u32::try_from(message.len()).expect("short").to_be_bytes());
            body.extend(message);
        }
        for size in 1..=body.len() {
            let mut messages = Messages::default();
            let counts = body.chunks(size).map(|frame| messages.count(frame));
            let total = counts.fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
            assert_eq!(total, (3, 11), "frames of {size} bytes");
        }
    }

    #[test]
    fn every_code_has_its_name() {
        for (at, name) in CODES.iter().enumerate() {
            let code = Code::from_i32(i32::try_from(at).expect("small"));
            assert_eq!(i32::from(code), i32::try_from(at).expect("small"), "{name}");
        }
    }
}
