//! The JSON gateway: the gRPC API for clients that speak HTTP and JSON, on the same port.
//!
//! No method is known here: a request is transcoded by the description of its message, goes to the same services as
//! any gRPC request, and its answer is transcoded back. So whatever the API can do, or refuses, is the same.

mod json;
mod route;

use std::convert::Infallible;

use bytes::{Bytes, BytesMut};
use futures::stream;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body as HttpBody, Frame};
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::Incoming;
use prost_reflect::{MessageDescriptor, MethodDescriptor};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::{Code, Status};

use super::auth::ViaGateway;
use super::service::Api;

/// Requests of one stream that wait for the service.
const STREAMED_REQUESTS: usize = 4;

/// Whether the path is the gateway's.
pub fn serves(path: &str) -> bool {
    path.starts_with("/v3/")
}

/// Answers one request.
pub async fn call(api: Api, request: Request<Incoming>) -> Response<Body> {
    match answer(api, request).await {
        Ok(response) => response,
        Err(status) => refuse(&status),
    }
}

fn refuse(status: &Status) -> Response<Body> {
    let mut code = StatusCode::from_u16(json::http_status(status.code()));
    if status.message() == NO_SUCH_METHOD {
        code = Ok(StatusCode::METHOD_NOT_ALLOWED);
    }
    let code = code.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    respond(code, json::failure(status).to_string().into())
}

const NO_SUCH_METHOD: &str = "Method Not Allowed";

fn respond(code: StatusCode, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(body)));
    *response.status_mut() = code;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

async fn answer(api: Api, request: Request<Incoming>) -> Result<Response<Body>, Status> {
    let Some(method) = route::find(request.uri().path()) else {
        return Err(Status::not_found("Not Found"));
    };
    if request.method() != Method::POST {
        return Err(Status::unimplemented(NO_SUCH_METHOD));
    }
    let (head, incoming) = request.into_parts();
    let limit = api.backend().server.config.max_message_bytes();
    let body = if method.is_client_streaming() {
        let (frames, requests) = mpsc::channel(STREAMED_REQUESTS);
        tokio::spawn(read_stream(method.input(), incoming, limit, frames));
        Body::new(StreamBody::new(ReceiverStream::new(requests)))
    } else {
        Body::new(Full::new(read_one(&method, incoming, limit).await?))
    };
    let mut inner = Request::new(body);
    *inner.method_mut() = Method::POST;
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    *inner.uri_mut() = path
        .parse()
        .map_err(|_| Status::internal("the method has no path"))?;
    let grpc = HeaderValue::from_static("application/grpc");
    inner.headers_mut().insert(header::CONTENT_TYPE, grpc);
    if let Some(credentials) = head.headers.get(header::AUTHORIZATION) {
        let credentials = credentials.clone();
        inner
            .headers_mut()
            .insert(header::AUTHORIZATION, credentials);
    }
    // Who the client has proven to be.
    *inner.extensions_mut() = head.extensions;
    inner.extensions_mut().insert(ViaGateway);

    let (call, inner) = api.backend().server.config.metrics.rpc.start(inner);
    let response = call.answer(api.call(inner).await);
    if let Some(status) = Status::from_header_map(response.headers()).filter(is_failure) {
        return Err(status);
    }
    if method.is_server_streaming() {
        let answers = Body::new(response.into_body());
        return Ok(stream_answers(method.output(), answers));
    }
    let collected = response.into_body().collect().await?;
    let status = collected.trailers().and_then(Status::from_header_map);
    if let Some(status) = status.filter(is_failure) {
        return Err(status);
    }
    let mut frames = BytesMut::from(&collected.to_bytes()[..]);
    let message = json::unframe(&mut frames).ok_or_else(|| Status::internal("no answer"))?;
    let value = json::write(&method.output(), message)?;
    Ok(respond(StatusCode::OK, value.to_string().into()))
}

fn is_failure(status: &Status) -> bool {
    status.code() != Code::Ok
}

/// The request in the body; nothing is one with all defaults.
async fn read_one(
    method: &MethodDescriptor,
    body: Incoming,
    limit: usize,
) -> Result<Bytes, Status> {
    // Base64 takes a third more.
    let limit = limit.saturating_mul(2);
    let collected = Limited::new(body, limit).collect().await;
    let text = match collected {
        Ok(collected) => collected.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            return Err(Status::resource_exhausted("http: request body too large"));
        }
        Err(error) => return Err(Status::invalid_argument(error.to_string())),
    };
    let message = match json::read(&method.input(), &text)? {
        Some((message, _)) => message,
        None if text.iter().all(u8::is_ascii_whitespace) => Bytes::new(),
        None => return Err(Status::invalid_argument("unexpected EOF")),
    };
    Ok(json::frame(&message))
}

type Requests = mpsc::Sender<Result<Frame<Bytes>, Status>>;

/// Hands on the requests of a stream as they come.
async fn read_stream(
    descriptor: MessageDescriptor,
    mut body: Incoming,
    limit: usize,
    requests: Requests,
) {
    let mut text = BytesMut::new();
    loop {
        let next = match json::read(&descriptor, &text) {
            Ok(Some((message, len))) => {
                let _ = text.split_to(len);
                Ok(json::frame(&message))
            }
            Ok(None) if text.len() > limit.saturating_mul(2) => {
                Err(Status::resource_exhausted("http: request body too large"))
            }
            Ok(None) => match body.frame().await {
                None => return,
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        text.extend_from_slice(&data);
                    }
                    continue;
                }
                Some(Err(error)) => Err(Status::cancelled(error.to_string())),
            },
            Err(status) => Err(status),
        };
        let failed = next.is_err();
        if requests.send(next.map(Frame::data)).await.is_err() || failed {
            return;
        }
    }
}

/// Answers of a stream as they come, each a line.
fn stream_answers(descriptor: MessageDescriptor, body: Body) -> Response<Body> {
    struct State {
        descriptor: MessageDescriptor,
        body: Body,
        frames: BytesMut,
        ended: bool,
    }
    let state = State {
        descriptor,
        body,
        frames: BytesMut::new(),
        ended: false,
    };
    let lines = stream::unfold(state, async |mut state| {
        loop {
            if state.ended {
                return None;
            }
            let line = match json::unframe(&mut state.frames) {
                Some(message) => json::write(&state.descriptor, message)
                    .map(|answer| serde_json::json!({ "result": answer })),
                None => match next_frame(&mut state.body).await {
                    None => return None,
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => {
                            state.frames.extend_from_slice(&data);
                            continue;
                        }
                        Err(frame) => {
                            let trailers = frame.into_trailers().ok();
                            let status = trailers.as_ref().and_then(Status::from_header_map);
                            match status.filter(is_failure) {
                                Some(status) => Err(status),
                                None => return None,
                            }
                        }
                    },
                    Some(Err(status)) => Err(status),
                },
            };
            let line = line.unwrap_or_else(|status| {
                state.ended = true;
                serde_json::json!({ "error": json::failure(&status) })
            });
            let line = Bytes::from(format!("{line}\n"));
            return Some((Ok::<_, Infallible>(Frame::data(line)), state));
        }
    });
    let mut response = respond(StatusCode::OK, Bytes::new());
    *response.body_mut() = Body::new(StreamBody::new(Box::pin(lines)));
    response
}

async fn next_frame(body: &mut Body) -> Option<Result<Frame<Bytes>, Status>> {
    std::future::poll_fn(|context| std::pin::Pin::new(&mut *body).poll_frame(context)).await
}
