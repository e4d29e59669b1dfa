//! What the platform asks of the layer that runs the clusters' Kubernetes APIs.

use futures::future::BoxFuture;

use crate::kubernetes::{Kubernetes, KubernetesError};

/// The Kubernetes layer could not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("kubernetes: {0}")]
pub struct ClusterApiError(pub String);

/// The Kubernetes APIs of the clusters. Everything is idempotent: the caller repeats what it cannot
/// be sure of. `id` is the cluster's id, and the name of its keyspace.
pub trait ClusterApi: Send + Sync {
    /// Makes the certificate authority and the first objects. `version` is such as `1.36`.
    fn provision_cluster<'a>(
        &'a self,
        id: &'a str,
        version: &'a str,
    ) -> BoxFuture<'a, Result<(), ClusterApiError>>;

    /// While false, the API answers 503: no healthy apiserver VM runs.
    fn set_available<'a>(
        &'a self,
        id: &'a str,
        available: bool,
    ) -> BoxFuture<'a, Result<(), ClusterApiError>>;

    fn set_version<'a>(
        &'a self,
        id: &'a str,
        version: &'a str,
    ) -> BoxFuture<'a, Result<(), ClusterApiError>>;

    /// Removes the registration, the certificate authority and the keyspace.
    fn delete_cluster<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), ClusterApiError>>;

    /// A kubeconfig in YAML with a fresh client certificate. `name` is what the contexts are called.
    fn kubeconfig<'a>(
        &'a self,
        id: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<String, ClusterApiError>>;

    fn server_url(&self, id: &str) -> String;
}

impl From<KubernetesError> for ClusterApiError {
    fn from(error: KubernetesError) -> Self {
        ClusterApiError(error.to_string())
    }
}

impl ClusterApi for Kubernetes {
    fn provision_cluster<'a>(
        &'a self,
        id: &'a str,
        version: &'a str,
    ) -> BoxFuture<'a, Result<(), ClusterApiError>> {
        Box::pin(async move { Ok(Kubernetes::provision_cluster(self, id, version).await?) })
    }

    fn set_available<'a>(
        &'a self,
        id: &'a str,
        available: bool,
    ) -> BoxFuture<'a, Result<(), ClusterApiError>> {
        Box::pin(async move { Ok(Kubernetes::set_available(self, id, available).await?) })
    }

    fn set_version<'a>(
        &'a self,
        id: &'a str,
        version: &'a str,
    ) -> BoxFuture<'a, Result<(), ClusterApiError>> {
        Box::pin(async move { Ok(Kubernetes::set_version(self, id, version).await?) })
    }

    fn delete_cluster<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), ClusterApiError>> {
        Box::pin(async move { Ok(Kubernetes::delete_cluster(self, id).await?) })
    }

    fn kubeconfig<'a>(
        &'a self,
        id: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<String, ClusterApiError>> {
        Box::pin(async move { Ok(Kubernetes::kubeconfig(self, id, name).await?) })
    }

    fn server_url(&self, id: &str) -> String {
        Kubernetes::server_url(self, id)
    }
}
