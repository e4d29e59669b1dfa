//! The HTTP client of `cke sim`: a connection for each request, to a server without TLS.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// How long a server may take to answer, in real time: an advance over a year of a full cloud takes minutes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("`{0}` is not http://HOST:PORT")]
    Url(String),
    #[error("cannot reach {url}: {source}")]
    Connect { url: String, source: std::io::Error },
    #[error("no answer from {url}: {source}")]
    Http { url: String, source: hyper::Error },
    #[error("no answer from {url} within {} s", ANSWER_TIMEOUT.as_secs())]
    Timeout { url: String },
    #[error("a request cannot be made: {0}")]
    Request(#[from] http::Error),
    #[error("{method} {path} answers {status}: {said}")]
    Refused {
        method: Method,
        path: String,
        status: StatusCode,
        said: String,
    },
    #[error("{path} does not answer with JSON: {source}")]
    NotJson {
        path: String,
        source: serde_json::Error,
    },
}

/// An answer, whatever its status.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON; `null` if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// One server, and how to say who asks.
#[derive(Clone, Debug)]
pub struct Client {
    /// `http://HOST:PORT`.
    url: String,
    authority: String,
    /// Bearer token for everything but `/_sim`, which asks for none.
    token: String,
}

impl Client {
    pub fn new(url: &str, token: &str) -> Result<Client, ClientError> {
        let invalid = || ClientError::Url(url.to_owned());
        let parsed: Uri = url.parse().map_err(|_| invalid())?;
        if parsed.scheme_str() != Some("http") {
            return Err(invalid());
        }
        let host = parsed.host().ok_or_else(invalid)?;
        let port = parsed.port_u16().unwrap_or(80);
        Ok(Client {
            url: url.trim_end_matches('/').to_owned(),
            authority: format!("{host}:{port}"),
            token: token.to_owned(),
        })
    }

    /// The answer to a request, whatever its status.
    pub async fn send(
        &self,
        method: &Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, ClientError> {
        let url = || format!("{}{path}", self.url);
        let answer = async {
            let response = self.open(method, path, body).await?;
            let status = response.status();
            let body = response.into_body().collect().await;
            let body = body.map_err(|source| ClientError::Http { url: url(), source })?;
            Ok(Answer {
                status,
                body: body.to_bytes(),
            })
        };
        tokio::time::timeout(ANSWER_TIMEOUT, answer)
            .await
            .map_err(|_| ClientError::Timeout { url: url() })?
    }

    /// The head of the answer, and a body that is still to be read.
    pub async fn open(
        &self,
        method: &Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<http::Response<Incoming>, ClientError> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let body = Bytes::from(body);
        self.exchange(method, path, "application/json", body).await
    }

    /// As [`Client::open`], with a body of any type.
    pub async fn exchange(
        &self,
        method: &Method,
        path: &str,
        media_type: &str,
        body: Bytes,
    ) -> Result<http::Response<Incoming>, ClientError> {
        let url = || format!("{}{path}", self.url);
        let connecting = TcpStream::connect(&self.authority);
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
            .map_err(|source| ClientError::Connect { url: url(), source })?;
        let broken = |source| ClientError::Http { url: url(), source };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
        });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.authority)
            .header("authorization", format!("Bearer {}", self.token))
            .header("content-type", media_type)
            .body(Full::new(body))?;
        sender.send_request(request).await.map_err(broken)
    }

    /// The body of a success.
    pub async fn text(&self, method: &Method, path: &str) -> Result<String, ClientError> {
        let answer = self.send(method, path, None).await?;
        if answer.status.is_success() {
            return Ok(answer.text());
        }
        Err(ClientError::Refused {
            method: method.clone(),
            path: path.to_owned(),
            status: answer.status,
            said: answer.text(),
        })
    }

    /// The body of a success, as JSON.
    pub async fn json(
        &self,
        method: &Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, ClientError> {
        let answer = self.send(method, path, body).await?;
        if !answer.status.is_success() {
            return Err(ClientError::Refused {
                method: method.clone(),
                path: path.to_owned(),
                status: answer.status,
                said: answer.text(),
            });
        }
        serde_json::from_slice(&answer.body).map_err(|source| ClientError::NotJson {
            path: path.to_owned(),
            source,
        })
    }

    /// Everything that has happened after `since`, a line of JSON each.
    pub async fn history(&self, since: u64) -> Result<Vec<String>, ClientError> {
        let path = format!("/_sim/events?since={since}&follow=false");
        let answer = self.send(&Method::GET, &path, None).await?;
        let text = answer.text();
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        Ok(data.map(str::to_owned).collect())
    }
}
