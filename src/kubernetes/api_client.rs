//! The components' client of a cluster's API: the crate `kube`, over requests that stay in the process.
//!
//! The requests and answers are those of HTTPS, with who asks said instead of proved by a certificate: so a
//! component of an idle cluster costs neither a connection nor a key.

use std::sync::Arc;

use http::{HeaderValue, Method, Request, Response};
use serde_json::{Value, json};

use super::api;
use super::body::{self, Body};
use super::pki::Identity;
use super::registry::Propagation;
use super::registry::resource::Resource;
use super::status::ApiError;
use super::{Kubernetes, KubernetesError};

#[derive(Debug, thiserror::Error)]
pub enum ApiClientError {
    #[error(transparent)]
    Kube(Box<kube::Error>),
    #[error("a request cannot be written: {0}")]
    Request(#[from] http::Error),
    #[error("a body cannot be written: {0}")]
    Body(#[from] serde_json::Error),
}

impl From<kube::Error> for ApiClientError {
    fn from(error: kube::Error) -> Self {
        ApiClientError::Kube(Box::new(error))
    }
}

impl ApiClientError {
    /// The HTTP status of a refusal.
    pub fn code(&self) -> Option<u16> {
        match self {
            ApiClientError::Kube(error) => match error.as_ref() {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            _ => None,
        }
    }

    /// A refusal in the API's words; else what went wrong.
    pub fn message(&self) -> String {
        match self {
            ApiClientError::Kube(error) => match error.as_ref() {
                kube::Error::Api(status) => status.message.clone(),
                error => error.to_string(),
            },
            error => error.to_string(),
        }
    }

    /// What was to be changed has changed or gone meanwhile: whoever decides from state looks again.
    pub fn is_stale(&self) -> bool {
        matches!(self.code(), Some(404 | 409))
    }
}

type Result<T> = std::result::Result<T, ApiClientError>;

/// Cheap to clone.
#[derive(Clone)]
pub struct ApiClient {
    client: kube::Client,
    kubernetes: Kubernetes,
    cluster: String,
}

/// An object's kind and place.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    pub resource: &'static Resource,
    pub namespace: Option<&'a str>,
    pub name: &'a str,
}

impl<'a> At<'a> {
    /// Where `object`, of this kind, is.
    pub fn of(resource: &'static Resource, object: &'a Value) -> At<'a> {
        At {
            resource,
            namespace: object["metadata"]["namespace"].as_str(),
            name: object["metadata"]["name"].as_str().unwrap_or(""),
        }
    }
}

impl ApiClient {
    /// A client of the cluster that is `user`.
    pub fn new(kubernetes: &Kubernetes, cluster: &str, user: &str) -> ApiClient {
        let identity = Identity {
            user: user.to_owned(),
            groups: vec![String::from("system:masters")],
        };
        let agent = user.trim_start_matches("system:");
        ApiClient {
            client: in_process(kubernetes, cluster, identity, agent),
            kubernetes: kubernetes.clone(),
            cluster: cluster.to_owned(),
        }
    }

    /// Every object of a kind, in the order of namespaces and names. While the API answers it is what a request would
    /// be answered, without writing it down and reading it again.
    pub async fn list(&self, resource: &'static Resource) -> Result<Vec<Value>> {
        if let Some(items) = self.kubernetes.objects(&self.cluster, resource).await {
            return Ok(items);
        }
        let url = url(resource, None, &[]);
        let mut list = self.send(Method::GET, &url, None, "").await?;
        match list["items"].take() {
            Value::Array(items) => Ok(items),
            _ => Ok(Vec::new()),
        }
    }

    /// The object, if it is there.
    pub async fn get(&self, at: At<'_>) -> Result<Option<Value>> {
        let url = url(at.resource, at.namespace, &[at.name]);
        match self.send(Method::GET, &url, None, "").await {
            Err(error) if error.code() == Some(404) => Ok(None),
            outcome => outcome.map(Some),
        }
    }

    pub async fn create(
        &self,
        resource: &'static Resource,
        namespace: Option<&str>,
        object: &Value,
    ) -> Result<Value> {
        let url = url(resource, namespace, &[]);
        self.send(Method::POST, &url, Some(object), "application/json")
            .await
    }

    /// Replaces the object; one that has changed since it was read is refused.
    pub async fn replace(&self, at: At<'_>, object: &Value) -> Result<Value> {
        let url = url(at.resource, at.namespace, &[at.name]);
        self.send(Method::PUT, &url, Some(object), "application/json")
            .await
    }

    pub async fn replace_status(&self, at: At<'_>, object: &Value) -> Result<Value> {
        let url = url(at.resource, at.namespace, &[at.name, "status"]);
        self.send(Method::PUT, &url, Some(object), "application/json")
            .await
    }

    /// Changes what `patch`, a JSON Merge Patch, says of the status.
    pub async fn merge_status(&self, at: At<'_>, patch: &Value) -> Result<Value> {
        let url = url(at.resource, at.namespace, &[at.name, "status"]);
        let media_type = "application/merge-patch+json";
        self.send(Method::PATCH, &url, Some(patch), media_type)
            .await
    }

    /// Posts to a subresource.
    pub async fn post(&self, at: At<'_>, subresource: &str, body: &Value) -> Result<Value> {
        let url = url(at.resource, at.namespace, &[at.name, subresource]);
        self.send(Method::POST, &url, Some(body), "application/json")
            .await
    }

    /// Deletes exactly the object of this uid. One that is gone is left so.
    pub async fn delete(
        &self,
        at: At<'_>,
        uid: &Value,
        grace_period_seconds: Option<i64>,
        propagation: Propagation,
    ) -> Result<()> {
        let url = url(at.resource, at.namespace, &[at.name]);
        let policy = match propagation {
            Propagation::Background => "Background",
            Propagation::Foreground => "Foreground",
            Propagation::Orphan => "Orphan",
        };
        let mut options = json!({
            "kind": "DeleteOptions", "apiVersion": "v1",
            "preconditions": {"uid": uid}, "propagationPolicy": policy,
        });
        if let Some(seconds) = grace_period_seconds {
            options["gracePeriodSeconds"] = json!(seconds);
        }
        match self
            .send(Method::DELETE, &url, Some(&options), "application/json")
            .await
        {
            Err(error) if error.is_stale() => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    /// A request to any path of the cluster's API.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        media_type: &str,
    ) -> Result<Value> {
        self.send(method, path, body, media_type).await
    }

    async fn send(
        &self,
        method: Method,
        url: &str,
        body: Option<&Value>,
        media_type: &str,
    ) -> Result<Value> {
        let body = body.map(serde_json::to_vec).transpose()?;
        let mut request = Request::builder().method(method).uri(url);
        if !media_type.is_empty() {
            request = request.header(http::header::CONTENT_TYPE, media_type);
        }
        let request = request.body(body.unwrap_or_default())?;
        Ok(self.client.request::<Value>(request).await?)
    }
}

fn url(resource: &Resource, namespace: Option<&str>, rest: &[&str]) -> String {
    let mut url = if resource.group.is_empty() {
        format!("/api/{}", resource.version)
    } else {
        format!("/apis/{}/{}", resource.group, resource.version)
    };
    if let Some(namespace) = namespace {
        url.push_str("/namespaces/");
        url.push_str(namespace);
    }
    for part in std::iter::once(resource.plural).chain(rest.iter().copied()) {
        url.push('/');
        url.push_str(part);
    }
    url
}

/// The crate's client of a cluster, whose requests stay in the process. `agent` is who writes, in the objects'
/// managed fields.
pub fn in_process(
    kubernetes: &Kubernetes,
    cluster: &str,
    identity: Identity,
    agent: &str,
) -> kube::Client {
    let asked = Arc::new((kubernetes.clone(), cluster.to_owned(), identity));
    let agent = HeaderValue::from_str(agent).ok();
    let service = tower::service_fn(move |mut request: Request<kube::client::Body>| {
        if let Some(agent) = &agent {
            let headers = request.headers_mut();
            headers.insert(http::header::USER_AGENT, agent.clone());
        }
        let asked = Arc::clone(&asked);
        async move {
            let (kubernetes, cluster, identity) = &*asked;
            let answer = answer(kubernetes, cluster, identity, request).await;
            Ok::<_, std::convert::Infallible>(answer)
        }
    });
    kube::Client::new(service, "default")
}

async fn answer(
    kubernetes: &Kubernetes,
    cluster: &str,
    identity: &Identity,
    request: Request<kube::client::Body>,
) -> Response<Body> {
    let path = request.uri().path().to_owned();
    match kubernetes.answering(cluster).await {
        Ok(cluster) => {
            let request = request.map(body::incoming);
            api::handle(&cluster, Some(identity.clone()), &path, request).await
        }
        Err(KubernetesError::ClusterNotFound(_)) => ApiError::no_such_path().to_response(),
        Err(error) => ApiError::unavailable(error.to_string()).to_response(),
    }
}
