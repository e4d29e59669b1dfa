//! What the platform asks of the layer that runs the clusters' Kubernetes APIs.

use futures::future::BoxFuture;

use crate::kubernetes::component::Notice;
use crate::kubernetes::{
    ControlPlane, Drain, EventSubject, EventType, Kubernetes, KubernetesError,
};

use super::cluster::Applied;

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

    /// Says which instances of the control plane work: the API answers 503 without an apiserver, and a
    /// component without an instance stands still.
    fn set_control_plane<'a>(
        &'a self,
        id: &'a str,
        control_plane: ControlPlane,
    ) -> BoxFuture<'a, Result<(), ClusterApiError>>;

    /// One round of cordon and eviction (budgets honoured). Called again until drained. `force`: the
    /// deadline is over, pods are deleted, and a node or an API that is not there counts as drained.
    fn drain_node<'a>(
        &'a self,
        id: &'a str,
        node: &'a str,
        force: bool,
    ) -> BoxFuture<'a, Result<Drain, ClusterApiError>>;

    /// Says that the node takes no new pods, or takes them again.
    fn cordon_node<'a>(
        &'a self,
        id: &'a str,
        node: &'a str,
        cordoned: bool,
    ) -> BoxFuture<'a, Result<(), ClusterApiError>>;

    /// Applies manifests, texts in YAML, one object after the other.
    fn apply_manifests<'a>(
        &'a self,
        id: &'a str,
        manifests: &'a [String],
    ) -> BoxFuture<'a, Result<Applied, ClusterApiError>>;

    /// Tells the cluster's users by a Kubernetes event in its namespace `default`.
    fn record_event<'a>(
        &'a self,
        id: &'a str,
        about: EventSubject,
        kind: EventType,
        reason: &'a str,
        message: &'a str,
    ) -> BoxFuture<'a, Result<(), ClusterApiError>>;

    /// Lets the certificate that the APIs serve with expire, or makes it anew.
    fn expire_certificates(&self, expired: bool) -> Result<(), ClusterApiError>;

    fn certificates_are_expired(&self) -> bool;

    /// Makes the control plane's certificates anew; nobody's connection or kubeconfig suffers.
    fn rotate_certificates<'a>(&'a self, id: &'a str)
    -> BoxFuture<'a, Result<(), ClusterApiError>>;

    /// Says whether the cluster has persistent storage.
    fn set_storage<'a>(
        &'a self,
        id: &'a str,
        enabled: bool,
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

    /// Says that something of the cluster's changed, for its own components to read over the REST API.
    fn notify(&self, _id: &str, _notice: Notice) {}
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

    fn set_control_plane<'a>(
        &'a self,
        id: &'a str,
        control_plane: ControlPlane,
    ) -> BoxFuture<'a, Result<(), ClusterApiError>> {
        Box::pin(async move { Ok(Kubernetes::set_control_plane(self, id, control_plane).await?) })
    }

    fn drain_node<'a>(
        &'a self,
        id: &'a str,
        node: &'a str,
        force: bool,
    ) -> BoxFuture<'a, Result<Drain, ClusterApiError>> {
        Box::pin(async move { Ok(Kubernetes::drain_node(self, id, node, force).await?) })
    }

    fn cordon_node<'a>(
        &'a self,
        id: &'a str,
        node: &'a str,
        cordoned: bool,
    ) -> BoxFuture<'a, Result<(), ClusterApiError>> {
        Box::pin(async move { Ok(Kubernetes::cordon_node(self, id, node, cordoned).await?) })
    }

    fn apply_manifests<'a>(
        &'a self,
        id: &'a str,
        manifests: &'a [String],
    ) -> BoxFuture<'a, Result<Applied, ClusterApiError>> {
        Box::pin(async move {
            match Kubernetes::apply_manifests(self, id, manifests).await {
                Ok(()) => Ok(Applied::All),
                Err(KubernetesError::Refused { message, .. }) => Ok(Applied::Refused(message)),
                Err(error) => Err(error.into()),
            }
        })
    }

    fn record_event<'a>(
        &'a self,
        id: &'a str,
        about: EventSubject,
        kind: EventType,
        reason: &'a str,
        message: &'a str,
    ) -> BoxFuture<'a, Result<(), ClusterApiError>> {
        Box::pin(async move {
            Ok(Kubernetes::record_event(self, id, &about, kind, reason, message).await?)
        })
    }

    fn expire_certificates(&self, expired: bool) -> Result<(), ClusterApiError> {
        Ok(Kubernetes::expire_certificates(self, expired)?)
    }

    fn certificates_are_expired(&self) -> bool {
        Kubernetes::certificates_are_expired(self)
    }

    fn rotate_certificates<'a>(
        &'a self,
        id: &'a str,
    ) -> BoxFuture<'a, Result<(), ClusterApiError>> {
        Box::pin(async move { Ok(Kubernetes::rotate_certificates(self, id).await?) })
    }

    fn set_storage<'a>(
        &'a self,
        id: &'a str,
        enabled: bool,
    ) -> BoxFuture<'a, Result<(), ClusterApiError>> {
        Box::pin(async move { Ok(Kubernetes::set_storage(self, id, enabled).await?) })
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

    fn notify(&self, id: &str, notice: Notice) {
        Kubernetes::notify(self, id, notice);
    }

    fn server_url(&self, id: &str) -> String {
        Kubernetes::server_url(self, id)
    }
}
