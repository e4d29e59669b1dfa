//! A client of the provider's REST API, as a cluster's components have one: a base URL, an organisation and a
//! token of the cluster's own. Whoever puts the layers together says what these are.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// In the machine's time: an API that does not answer must not hold a round for ever.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer: lists of an organisation's things.
const ANSWER_LIMIT_BYTES: usize = 8 << 20;

/// Where and as whom a cluster's components reach the provider.
#[derive(Clone)]
pub struct CloudAccess {
    /// Such as `http://127.0.0.1:8080`.
    pub base_url: String,
    /// The organisation's id, as it stands in paths.
    pub organisation: String,
    /// Bearer token.
    pub token: String,
}

/// The access of a cluster's components; none for a cluster that the provider does not know.
pub type Accesses = Arc<dyn Fn(&str) -> Option<CloudAccess> + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub enum CloudApiError {
    /// The API's refusal, in its own words.
    #[error("{status}: {message}")]
    Refused {
        status: StatusCode,
        /// Such as `clever.core.quota-exceeded`.
        code: String,
        message: String,
    },
    #[error("the provider's API does not answer: {0}")]
    Unreachable(String),
    #[error("the provider's API answers what cannot be read: {0}")]
    Unreadable(String),
}

impl CloudApiError {
    /// The quota does not allow it now.
    pub fn is_quota(&self) -> bool {
        matches!(self, CloudApiError::Refused { code, .. } if code == "clever.core.quota-exceeded")
    }

    pub fn is_not_found(&self) -> bool {
        matches!(self, CloudApiError::Refused { status, .. } if *status == StatusCode::NOT_FOUND)
    }
}

#[derive(Deserialize)]
struct ErrorBody {
    #[serde(default)]
    code: String,
    #[serde(default)]
    error: String,
}

/// Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct CloudApi {
    http: Client<HttpConnector, Full<Bytes>>,
}

impl CloudApi {
    pub fn new() -> CloudApi {
        CloudApi {
            http: Client::builder(TokioExecutor::new()).build_http(),
        }
    }

    /// `path` follows the base URL.
    pub async fn send<T: DeserializeOwned>(
        &self,
        access: &CloudAccess,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<T, CloudApiError> {
        let unreachable = |error: String| CloudApiError::Unreachable(error);
        let body = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", access.base_url))
            .header(header::AUTHORIZATION, format!("Bearer {}", access.token))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .body(Full::new(body))
            .map_err(|error| unreachable(error.to_string()))?;
        let exchange = async {
            let response = self.http.request(request).await;
            let response = response.map_err(|error| unreachable(error.to_string()))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_LIMIT_BYTES);
            let body = body.collect().await;
            let body = body.map_err(|error| unreachable(error.to_string()))?;
            Ok((status, body.to_bytes()))
        };
        let (status, body) = tokio::time::timeout(TIMEOUT, exchange)
            .await
            .map_err(|_| unreachable(format!("no answer within {} s", TIMEOUT.as_secs())))??;
        if status.is_success() {
            return serde_json::from_slice(&body)
                .map_err(|error| CloudApiError::Unreadable(error.to_string()));
        }
        let said = serde_json::from_slice::<ErrorBody>(&body);
        let said = said.map_err(|error| CloudApiError::Unreadable(format!("{status}: {error}")))?;
        Err(CloudApiError::Refused {
            status,
            code: said.code,
            message: said.error,
        })
    }
}

impl Default for CloudApi {
    fn default() -> Self {
        CloudApi::new()
    }
}
