//! Keeps web pages away from the control API.
//!
//! It asks for no credentials, and a browser on the same machine reaches the port: without this, any
//! page that its user opens could reset the world. Three things tell such a request from a tool's:
//! - `Origin`: browsers send it with everything that is not a plain link, image or form by GET, none of
//!   which changes anything here. It must be this server's own.
//! - `Sec-Fetch-Site`: the same, said by the browser itself.
//! - `Host`: a page whose host name is made to resolve to this machine has the right origin, but its
//!   requests name that host. An address, `localhost`, or the server's public host is meant.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::header::{HOST, HeaderMap, ORIGIN};
use axum::http::uri::Authority;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::clever::Clever;
use crate::clever::error::ApiError;

/// Refuses what a page of another origin sent to the control API.
pub async fn guard(State(clever): State<Clever>, request: Request, next: Next) -> Response {
    if request.uri().path().starts_with("/_sim/")
        && let Err(reason) = check(request.headers(), &clever.simulation.inner.public_host)
    {
        return ApiError::forbidden(reason).into_response();
    }
    next.run(request).await
}

fn check(headers: &HeaderMap, public_host: &str) -> Result<(), String> {
    let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let host = header(HOST.as_str()).unwrap_or_default();
    let is_ours = host
        .parse::<Authority>()
        .is_ok_and(|authority| is_local_name(authority.host(), public_host));
    if !is_ours {
        return Err(format!(
            "The host `{host}` is none of this server's: use an address, localhost or --public-host"
        ));
    }
    if let Some(origin) = header(ORIGIN.as_str())
        && origin != format!("http://{host}")
        && origin != format!("https://{host}")
    {
        return Err(format!("A page of {origin} may not control the simulation"));
    }
    match header("sec-fetch-site") {
        None | Some("same-origin" | "none") => Ok(()),
        Some(_) => Err(String::from(
            "A page of another site may not control the simulation",
        )),
    }
}

fn is_local_name(host: &str, public_host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.parse::<IpAddr>().is_ok()
        || host.eq_ignore_ascii_case("localhost")
        || host.to_ascii_lowercase().ends_with(".localhost")
        || host.eq_ignore_ascii_case(public_host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::{HeaderName, HeaderValue};

    #[test]
    fn only_this_servers_own_pages_and_tools_are_let_in() {
        let check = |headers: &[(&'static str, &'static str)], expect: bool| {
            let map: HeaderMap = headers
                .iter()
                .map(|(name, value)| {
                    let name = HeaderName::from_static(name);
                    (name, HeaderValue::from_static(value))
                })
                .collect();
            assert_eq!(check(&map, "cke.test").is_ok(), expect, "{headers:?}");
        };
        let local = ("host", "127.0.0.1:8080");
        check(&[local], true);
        check(&[("host", "localhost:8080")], true);
        check(&[("host", "[::1]:8080")], true);
        check(&[("host", "192.168.1.7")], true);
        check(&[("host", "cke.test:8080")], true);
        check(&[("host", "CKE.test:8080")], true);
        check(&[("host", "sim.localhost:8080")], true);
        // A name that was made to resolve to this machine.
        check(&[("host", "evil.test:8080")], false);
        check(
            &[
                ("host", "evil.test:8080"),
                ("origin", "http://evil.test:8080"),
            ],
            false,
        );
        check(&[("host", "127.0.0.1.evil.test")], false);
        check(&[], false);
        check(&[local, ("origin", "http://127.0.0.1:8080")], true);
        check(&[local, ("origin", "http://127.0.0.1:9090")], false);
        check(&[local, ("origin", "http://evil.test")], false);
        check(&[local, ("origin", "null")], false);
        check(&[local, ("sec-fetch-site", "same-origin")], true);
        check(&[local, ("sec-fetch-site", "none")], true);
        check(&[local, ("sec-fetch-site", "cross-site")], false);
        check(&[local, ("sec-fetch-site", "same-site")], false);
    }
}
