//! A cluster as this layer knows it: its record, and what serves it while it exists.

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::namespace::NamespaceQueue;
use super::pki::Pair;
use super::registry::Registry;

/// What is kept of a cluster in the keyspace of this layer.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterRecord {
    pub id: String,
    /// Such as `1.36`.
    pub version: String,
    /// Whether a VM with a healthy apiserver runs.
    pub available: bool,
    /// Signs the cluster's client certificates.
    pub authority: Pair,
}

/// A cluster while it is served. Another version of its record makes another one.
pub struct Cluster {
    pub record: ClusterRecord,
    pub registry: Registry,
    pub namespaces: NamespaceQueue,
    /// `host:port` of the listener.
    pub server_address: String,
    /// Cancelled once the cluster is deleted or no longer available: its watches end.
    pub ended: CancellationToken,
}

impl Cluster {
    /// The path that everything of the cluster is under.
    pub fn root(&self) -> String {
        format!("/clusters/{}", self.record.id)
    }
}
