//! The clients of the clusters' Kubernetes APIs: each with the kubeconfig that the REST API gives out.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;

use super::client::{Answer, Client, ClientError};

#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the kubeconfig cannot be used: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    #[error("no answer from the cluster: {0}")]
    Kube(Box<kube::Error>),
    #[error("a request cannot be made: {0}")]
    Request(#[from] http::Error),
}

impl From<kube::Error> for ClusterError {
    fn from(error: kube::Error) -> Self {
        ClusterError::Kube(Box::new(error))
    }
}

/// One client for each cluster that was asked, by the path of its kubeconfig.
#[derive(Default)]
pub struct Clusters {
    clients: BTreeMap<String, kube::Client>,
}

impl Clusters {
    /// The answer of a cluster, whatever its status. `cluster` is its path in the REST API.
    pub async fn send(
        &mut self,
        rest: &Client,
        cluster: &str,
        method: &Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, ClusterError> {
        let client = match self.clients.get(cluster) {
            Some(client) => client.clone(),
            None => {
                let client = connect(rest, cluster).await?;
                self.clients.insert(cluster.to_owned(), client.clone());
                client
            }
        };
        let media_type = match *method {
            Method::PATCH => "application/merge-patch+json",
            _ => "application/json",
        };
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", media_type)
            .body(Body::from(Bytes::from(body)))?;
        let answer = client.send(request).await?;
        let status: StatusCode = answer.status();
        let body = answer.into_body().collect_bytes().await?;
        Ok(Answer { status, body })
    }
}

async fn connect(rest: &Client, cluster: &str) -> Result<kube::Client, ClusterError> {
    let path = format!("{cluster}/kubeconfig.yaml");
    let answer = rest.send(&Method::GET, &path, None).await?;
    if !answer.status.is_success() {
        return Err(ClusterError::Client(ClientError::Refused {
            method: Method::GET,
            path,
            status: answer.status,
            said: answer.text(),
        }));
    }
    let kubeconfig = Kubeconfig::from_yaml(&answer.text())?;
    let options = KubeConfigOptions::default();
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
    // A 503 is an answer like any other here.
    config.default_retry = false;
    Ok(kube::Client::try_from(config)?)
}
