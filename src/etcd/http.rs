//! The plain HTTP endpoints beside gRPC: `/health`, `/version`, `/livez`, `/readyz`,
//! `/metrics`.

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use tonic::body::Body;

use super::VERSION;
use super::service::Backend;

/// Cluster and storage version: etcd announces the minor release.
const MINOR_VERSION: &str = "3.6.0";
const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

const LIVEZ_CHECKS: &[&str] = &["serializable_read"];
const READYZ_CHECKS: &[&str] = &["data_corruption", "linearizable_read", "serializable_read"];

fn answer(status: StatusCode, content_type: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(Bytes::from(body))));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(content_type),
    );
    response
}

/// Alarms that the query wants to be passed over: `exclude=NOSPACE`, which may be repeated.
fn excluded(query: &str) -> impl Iterator<Item = &str> + Clone {
    query
        .split('&')
        .filter_map(|pair| pair.strip_prefix("exclude="))
}

/// Prometheus' text format.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Lets pages of any origin read the answer, as etcd does unless told otherwise.
pub fn allow_origins(response: &mut Response<Body>) {
    for (name, value) in [
        (
            header::ACCESS_CONTROL_ALLOW_METHODS,
            "POST, GET, OPTIONS, PUT, DELETE",
        ),
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            "accept, content-type, authorization",
        ),
    ] {
        let value = header::HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
}

/// Answers a browser that asks what it may send.
pub fn options() -> Response<Body> {
    Response::new(Body::new(Full::new(Bytes::new())))
}

/// Answers a request that is not gRPC.
pub async fn call<B>(backend: &Backend, request: &Request<B>) -> Response<Body> {
    let path = request.uri().path();
    let checks = match path {
        "/health" | "/version" | "/metrics" => &[],
        "/livez" => LIVEZ_CHECKS,
        "/readyz" => READYZ_CHECKS,
        _ => {
            let text = String::from("404 page not found\n");
            return answer(StatusCode::NOT_FOUND, TEXT, text);
        }
    };
    if request.method() != Method::GET {
        let text = String::from("Method Not Allowed\n");
        let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, TEXT, text);
        let get = header::HeaderValue::from_static("GET");
        response.headers_mut().insert(header::ALLOW, get);
        return response;
    }
    if path == "/version" {
        let body = format!(
            r#"{{"etcdserver":"{VERSION}","etcdcluster":"{MINOR_VERSION}","storage":"{MINOR_VERSION}"}}"#
        );
        return answer(StatusCode::OK, JSON, body);
    }
    if path == "/metrics" {
        let server = &backend.server;
        return match server.config.metrics.render(server) {
            Ok(text) => answer(StatusCode::OK, METRICS, text),
            Err(error) => {
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                answer(status, TEXT, format!("{error}\n"))
            }
        };
    }
    let query = request.uri().query().unwrap_or_default();
    if path == "/health"
        && let Some(alarm) = backend.alarm_besides(excluded(query)).await
    {
        backend.server.config.metrics.health_failures.inc();
        let body = format!(r#"{{"health":"false","reason":"ALARM {alarm}"}}"#);
        return answer(StatusCode::SERVICE_UNAVAILABLE, JSON, body);
    }
    let failure = backend.check_health().await.err();
    let metrics = &backend.server.config.metrics;
    match failure {
        None => metrics.health_successes.inc(),
        Some(_) => metrics.health_failures.inc(),
    }
    let status = match failure {
        None => StatusCode::OK,
        Some(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    if path == "/health" {
        let reason = failure.map_or_else(String::new, |error| format!("RANGE ERROR:{error}"));
        let body = format!(
            r#"{{"health":"{}","reason":"{reason}"}}"#,
            reason.is_empty()
        );
        return answer(status, JSON, body);
    }
    let verbose = query.split('&').any(|pair| pair.starts_with("verbose"));
    let mut body = String::new();
    if verbose || failure.is_some() {
        for check in checks {
            body += &match failure {
                None => format!("[+]{check} ok\n"),
                Some(error) => format!("[-]{check} failed: {error}\n"),
            };
        }
    }
    if failure.is_none() {
        body += "ok\n";
    }
    answer(status, TEXT, body)
}
