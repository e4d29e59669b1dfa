//! `cke health`: asks a server whether it is well, for a container's health check where there is no curl.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use http::{StatusCode, Uri};

/// How long the server may take to accept, and between two parts of its answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// As much of an answer is read: enough for what `/readyz` says, which is shown when it is not well.
const ANSWER_LIMIT: u64 = 16 << 10;

#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    #[error("cannot ask {url}: {source}")]
    Ask { url: Uri, source: io::Error },
    #[error("{url} does not answer with HTTP")]
    NotHttp { url: Uri },
    #[error("{url} answers {status}: {said}")]
    NotWell {
        url: Uri,
        status: StatusCode,
        said: String,
    },
}

/// Options of `cke health`.
#[derive(Args, Clone, Debug)]
pub struct HealthOptions {
    /// What to ask; of a server with TLS, an address of its --listen-metrics-urls
    #[arg(value_name = "URL", default_value = "http://127.0.0.1:2379/readyz")]
    pub url: HttpUrl,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpUrl(Uri);

impl FromStr for HttpUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<HttpUrl, String> {
        let url: Uri = text.parse().map_err(|error| format!("{error}"))?;
        if url.scheme_str() != Some("http") || url.port_u16().is_none() {
            return Err(String::from("expected http://HOST:PORT/PATH"));
        }
        Ok(HttpUrl(url))
    }
}

impl HealthOptions {
    /// Says nothing of a server that is well.
    ///
    /// # Errors
    /// Whatever is not an answer with a status of success.
    pub fn run(&self) -> Result<(), HealthError> {
        let HttpUrl(url) = &self.url;
        let answer = ask(url).map_err(|source| HealthError::Ask {
            url: url.clone(),
            source,
        })?;
        let answer = String::from_utf8_lossy(&answer);
        let status = answer
            .strip_prefix("HTTP/1.")
            .and_then(|rest| rest.split_whitespace().nth(1))
            .and_then(|status| status.parse::<StatusCode>().ok())
            .ok_or_else(|| HealthError::NotHttp { url: url.clone() })?;
        if status.is_success() {
            return Ok(());
        }
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        Err(HealthError::NotWell {
            url: url.clone(),
            status,
            said: body.trim_end().to_owned(),
        })
    }
}

/// The whole answer, head and body. The connection is closed after it, so where it ends needs no parsing.
fn ask(url: &Uri) -> io::Result<Vec<u8>> {
    let authority = url.authority().map_or("", |it| it.as_str());
    let path = url.path_and_query().map_or("/", |it| it.as_str());
    let mut stream = connect(authority)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.take(ANSWER_LIMIT).read_to_end(&mut answer)?;
    Ok(answer)
}

/// To the first address of the host that accepts.
fn connect(authority: &str) -> io::Result<TcpStream> {
    let mut failed = io::Error::from(io::ErrorKind::NotFound);
    for address in authority.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, TIMEOUT) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// What is said of a server that answers every request so.
    fn said(answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).expect("a request");
                request.extend(byte);
            }
            stream.write_all(answer.as_bytes()).expect("an answer");
            String::from_utf8(request).expect("text")
        });
        let url: HttpUrl = format!("http://{address}/readyz?verbose")
            .parse()
            .expect("a URL");
        let outcome = HealthOptions { url }.run();
        let request = server.join().expect("the server ended");
        assert_eq!(
            request,
            format!("GET /readyz?verbose HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")
        );
        outcome.map_or_else(|error| error.to_string(), |()| String::from("well"))
    }

    #[test]
    fn only_a_status_of_success_is_well() {
        let check = |answer, expect| assert!(said(answer).ends_with(expect), "{answer}");
        check("HTTP/1.1 200 OK\r\n\r\nok\n", "well");
        check("HTTP/1.0 204 No Content\r\n\r\n", "well");
        check(
            "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 9\r\n\r\nno quorum",
            "/readyz?verbose answers 503 Service Unavailable: no quorum",
        );
        check("\x15\x03\x03\x00\x02\x02\x50", "does not answer with HTTP");
        check("HTTP/1.1 soon\r\n\r\n", "does not answer with HTTP");
        check("", "does not answer with HTTP");
    }

    #[test]
    fn a_server_that_is_not_there_is_not_well() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        drop(listener);
        let url: HttpUrl = format!("http://{address}").parse().expect("a URL");
        let error = HealthOptions { url }.run().expect_err("nobody listens");
        assert!(error.to_string().contains("cannot ask http://"), "{error}");
    }

    #[test]
    fn a_url_is_plain_http_with_a_port() {
        let check = |text: &str, expect: bool| {
            assert_eq!(text.parse::<HttpUrl>().is_ok(), expect, "{text}");
        };
        check("http://127.0.0.1:2379/readyz", true);
        check("http://[::1]:2379", true);
        check("http://localhost:8080/_sim/clock?a=b", true);
        check("https://127.0.0.1:2379/readyz", false);
        check("http://127.0.0.1/readyz", false);
        check("127.0.0.1:2379", false);
        check("", false);
    }
}
