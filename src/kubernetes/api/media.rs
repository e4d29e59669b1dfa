//! Bodies of requests and answers, by their media types.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use serde_json::Value;

use crate::kubernetes::body::{Body, Incoming, full};
use crate::kubernetes::protobuf;
use crate::kubernetes::status::ApiError;

/// Largest body of a request, as kube-apiserver's.
const BODY_LIMIT: usize = 3 << 20;

pub(super) fn accept(headers: &HeaderMap) -> String {
    let values: Vec<&str> = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect();
    values.join(",")
}

/// JSON is YAML, and what nearly everybody sends.
pub(super) fn applied_configuration(body: &[u8]) -> Result<Value, ApiError> {
    if let Ok(config) = serde_json::from_slice(body) {
        return Ok(config);
    }
    let malformed = |error: String| ApiError::bad_request(format!("error decoding YAML: {error}"));
    let text = std::str::from_utf8(body).map_err(|error| malformed(error.to_string()))?;
    serde_saphyr::from_str(text).map_err(|error| malformed(error.to_string()))
}

pub(super) fn content_type(headers: &HeaderMap) -> &str {
    let value = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    value.unwrap_or("").split(';').next().unwrap_or("").trim()
}

pub(super) async fn bytes_of(request: Request<Incoming>) -> Result<Bytes, ApiError> {
    let body = Limited::new(request.into_body(), BODY_LIMIT)
        .collect()
        .await;
    match body {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestEntityTooLarge",
            format!("limit is {BODY_LIMIT}"),
        )),
        Err(error) => Err(ApiError::bad_request(error.to_string())),
    }
}

/// The body as a value. It may be JSON or protobuf; YAML is for kubectl's own side.
pub(super) async fn object_of(request: Request<Incoming>) -> Result<Value, ApiError> {
    let media_type = content_type(request.headers()).to_owned();
    parse(&media_type, bytes_of(request).await?)
}

pub(super) fn parse(media_type: &str, body: Bytes) -> Result<Value, ApiError> {
    let bare = media_type.split(';').next().unwrap_or("").trim();
    if bare == protobuf::MEDIA_TYPE {
        return protobuf::decode(body).map_err(|error| ApiError::bad_request(error.to_string()));
    }
    let json = bare.is_empty() || bare == "application/json" || bare.ends_with("-patch+json");
    if !json {
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: \
                 application/json, {}",
                protobuf::MEDIA_TYPE
            ),
        ));
    }
    serde_json::from_slice(&body).map_err(|error| {
        ApiError::bad_request(format!(
            "the object provided is unrecognized (must be of type JSON): {error}"
        ))
    })
}

pub(super) fn json_response(code: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(full(value.to_string()));
    *response.status_mut() = code;
    set_content_type(&mut response, "application/json");
    response
}

pub(super) fn set_content_type(response: &mut Response<Body>, media_type: &'static str) {
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
}
