//! What every request and response has in common, whatever the resource.
//!
//! From outside in: a leading `//` is collapsed, the request gets an id, a write goes on when its
//! client hangs up, errors get their body. See `contracts/clever-api.md` 1.6 and 1.7.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Request, State};
use axum::http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use ulid::Ulid;

use crate::clever::authentication::decode as decode_percent;
use crate::clever::error::{ApiError, ErrorBody, LegacyErrorBody};
use crate::clock::Clock;

/// Largest request body. The largest real one is a redeployment with its manifests.
pub const BODY_LIMIT_BYTES: usize = 1024 * 1024;

/// How long a client may take to send a body, in real time: a stalled one must not hold a connection.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Header with the request's id, which clients show.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("sozu-id");

/// Exactly this media type: the CLI parses no other, not even `application/json; charset=utf-8` of
/// another spelling.
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The request target as the client sent and signed it.
#[derive(Clone, Debug)]
pub struct ReceivedTarget(pub Uri);

/// Hands out request ids: the clock's time and a count, so that a seeded run repeats them.
#[derive(Clone)]
pub struct RequestIds {
    clock: Clock,
    next: Arc<AtomicU64>,
}

impl RequestIds {
    pub fn new(clock: Clock) -> RequestIds {
        RequestIds {
            clock,
            next: Arc::new(AtomicU64::new(1)),
        }
    }

    fn next(&self) -> String {
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        let millis = u64::try_from(self.clock.now().0).unwrap_or(0);
        Ulid::from_parts(millis, u128::from(count)).to_string()
    }
}

/// `http://host/` + `/v4/…` is what a client makes of an address with a trailing slash.
pub fn collapse_leading_slashes(mut request: Request) -> Request {
    let received = request.uri().clone();
    if let Some(target) = received.path_and_query()
        && target.as_str().starts_with("//")
    {
        let collapsed = format!("/{}", target.as_str().trim_start_matches('/'));
        let mut parts = received.clone().into_parts();
        if let Ok(target) = collapsed.parse() {
            parts.path_and_query = Some(target);
            if let Ok(uri) = Uri::from_parts(parts) {
                *request.uri_mut() = uri;
            }
        }
    }
    request.extensions_mut().insert(ReceivedTarget(received));
    request
}

/// Gives the request its id, and an error its body.
pub async fn finish(State(ids): State<RequestIds>, request: Request, next: Next) -> Response {
    let id = ids.next();
    let legacy = request.uri().path().starts_with("/v2/");
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let span = tracing::info_span!("request", %id, %method, %path);
    let mut response = tracing::Instrument::instrument(next.run(request), span.clone()).await;
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        span.in_scope(|| {
            tracing::debug!(status = error.status.as_u16(), code = %error.code, "refused");
        });
        let body = if legacy {
            serde_json::to_vec(&LegacyErrorBody::new(&error))
        } else {
            serde_json::to_vec(&ErrorBody {
                api_request_id: &id,
                code: &error.code,
                context: &error.context,
                error: &error.message,
            })
        };
        // Both bodies consist of text and numbers only, which always serialize.
        *response.body_mut() = Body::from(body.unwrap_or_default());
        let headers = response.headers_mut();
        headers.remove(axum::http::header::CONTENT_LENGTH);
        headers.insert(CONTENT_TYPE, JSON);
    }
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// Lets a request that changes something run to its end although the client has hung up: a
/// connection that breaks must not leave half of a change behind.
pub async fn outlive_the_client(request: Request, next: Next) -> Response {
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return next.run(request).await;
    }
    let work = tracing::Instrument::in_current_span(next.run(request));
    match tokio::spawn(work).await {
        Ok(response) => response,
        Err(error) => {
            tracing::error!(%error, "a request handler failed");
            ApiError::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "clever.core.internal-error",
                "Internal error",
            )
            .into_response()
        }
    }
}

pub async fn unknown_path(uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(256).collect();
    ApiError::not_found(format!("No resource at {path}"))
}

pub async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(256).collect();
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "clever.core.method-not-allowed",
        format!("{method} is not possible at {path}"),
    )
}

/// A response body.
pub struct Json<T>(pub T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(body) => ([(CONTENT_TYPE, JSON)], body).into_response(),
            Err(error) => {
                tracing::error!(%error, "a response cannot be written as JSON");
                ApiError::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "clever.core.internal-error",
                    "Internal error",
                )
                .into_response()
            }
        }
    }
}

/// A request body, whatever its declared media type: not every client declares one.
#[derive(Debug)]
pub struct JsonBody<T>(pub T);

impl<T, S> FromRequest<S> for JsonBody<T>
where
    T: DeserializeOwned,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let body = read_body(request, state).await?;
        decode(&body).map(JsonBody)
    }
}

/// A request body that may be absent.
#[derive(Debug)]
pub struct OptionalJsonBody<T>(pub Option<T>);

impl<T, S> FromRequest<S> for OptionalJsonBody<T>
where
    T: DeserializeOwned,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let body = read_body(request, state).await?;
        if body.trim_ascii().is_empty() {
            return Ok(OptionalJsonBody(None));
        }
        decode(&body).map(OptionalJsonBody)
    }
}

/// The query, decoded; a name may repeat. Unknown names are nobody's business: the Go client
/// misspells one.
#[derive(Debug)]
pub struct Parameters(Vec<(String, String)>);

impl Parameters {
    pub fn parse(query: &str) -> Parameters {
        let form = |text: &str| decode_percent(&text.replace('+', " "));
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        Parameters(
            pairs
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (form(name), form(value))
                })
                .collect(),
        )
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        let mut pairs = self.0.iter();
        pairs
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let named = self.0.iter().filter(move |(known, _)| known == name);
        named.map(|(_, value)| value.as_str())
    }

    /// Every value of `name`, each of which must be a `T`.
    pub fn parse_all<T: std::str::FromStr>(&self, name: &str) -> Result<Vec<T>, ApiError>
    where
        T::Err: std::fmt::Display,
    {
        self.all(name)
            .map(|value| {
                value.parse().map_err(|error: T::Err| {
                    ApiError::invalid_field(name, value, error.to_string())
                })
            })
            .collect()
    }

    /// How many items a list may have: 50 unless `limit` says another number, from 1 to 1000.
    pub fn limit(&self) -> Result<usize, ApiError> {
        let limits: Vec<i64> = self.parse_all("limit")?;
        let limit = limits.first().copied().unwrap_or(50).clamp(1, 1000);
        Ok(usize::try_from(limit).unwrap_or(1))
    }
}

impl<S: Sync> FromRequestParts<S> for Parameters {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Parameters::parse(parts.uri.query().unwrap_or_default()))
    }
}

async fn read_body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, ApiError> {
    let read = tokio::time::timeout(BODY_TIMEOUT, Bytes::from_request(request, state)).await;
    match read {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            Err(ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "clever.core.payload-too-large",
                format!("The body is larger than {BODY_LIMIT_BYTES} bytes"),
            ))
        }
        Ok(Err(rejection)) => Err(ApiError::bad_request(rejection.body_text())),
        Err(_) => Err(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "clever.core.request-timeout",
            format!("No body within {} s", BODY_TIMEOUT.as_secs()),
        )),
    }
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request(format!("Cannot decode the body: {error}")))
}

/// Present but `null`, and absent, are different in a merge patch: `Some(None)` and `None`.
pub fn nullable<'de, T, D>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    T: serde::Deserialize<'de>,
    D: serde::Deserializer<'de>,
{
    serde::Deserialize::deserialize(deserializer).map(Some)
}

/// The router as a service of its own, so that the target is rewritten before routing.
pub type RewritingService<S> = tower::util::MapRequest<S, fn(Request) -> Request>;

pub fn rewriting<S>(service: S) -> RewritingService<S>
where
    S: tower::Service<Request, Response = Response, Error = Infallible>,
{
    tower::util::MapRequest::new(service, collapse_leading_slashes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doubled_slash_in_front_is_collapsed() {
        let check = |target: &str, expect: &str| {
            let request = Request::builder()
                .uri(target)
                .body(Body::empty())
                .expect("a request");
            let request = collapse_leading_slashes(request);
            assert_eq!(request.uri().to_string(), expect);
            let received = request.extensions().get::<ReceivedTarget>();
            assert_eq!(received.map(|it| it.0.to_string()).as_deref(), Some(target));
        };
        check("/v4/x", "/v4/x");
        check("//v4/x?a=b//c", "/v4/x?a=b//c");
        check("///v4", "/v4");
        check("/v4//x", "/v4//x");
    }

    #[test]
    fn limits_are_clamped() {
        let check = |query: &str, expect: Option<usize>| {
            assert_eq!(Parameters::parse(query).limit().ok(), expect, "{query}");
        };
        check("", Some(50));
        check("limit=7", Some(7));
        check("limit=0", Some(1));
        check("limit=-3", Some(1));
        check("limit=100000", Some(1000));
        check("limit=many", None);
        check("limit=", None);
    }

    #[test]
    fn parameters_may_repeat() {
        let parameters = Parameters::parse("status=ACTIVE&a=x+y%21&status=FAILED&flag");
        let statuses: Vec<&str> = parameters.all("status").collect();
        assert_eq!(statuses, ["ACTIVE", "FAILED"]);
        assert_eq!(parameters.get("a"), Some("x y!"));
        assert_eq!(parameters.get("flag"), Some(""));
        assert_eq!(parameters.get("b"), None);
    }

    #[test]
    fn a_merge_patch_tells_null_from_absent() {
        #[derive(serde::Deserialize, Debug, PartialEq)]
        struct Patch {
            #[serde(default, deserialize_with = "nullable")]
            csi: Option<Option<bool>>,
        }
        let check = |text: &str, expect: Option<Option<bool>>| {
            let patch: Patch = serde_json::from_str(text).expect("a patch");
            assert_eq!(patch.csi, expect, "{text}");
        };
        check("{}", None);
        check(r#"{"csi":null}"#, Some(None));
        check(r#"{"csi":true}"#, Some(Some(true)));
    }
}
