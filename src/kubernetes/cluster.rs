//! A cluster as this layer knows it: its record, and what serves it while it exists.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::control_plane::ControlPlane;
use super::namespace::NamespaceQueue;
use super::pki::Pair;
use super::registry::Registry;
use crate::clock::Timestamp;

/// What is kept of a cluster in the keyspace of this layer.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterRecord {
    pub id: String,
    /// Such as `1.36`.
    pub version: String,
    #[serde(default)]
    pub control_plane: ControlPlane,
    /// Persistent storage is on, for ever.
    #[serde(default)]
    pub storage: bool,
    /// When what the control plane proves itself with was last made anew.
    #[serde(default)]
    pub certificates_rotated_at: Option<Timestamp>,
    /// Signs the cluster's client certificates.
    pub authority: Pair,
}

/// A cluster as of a version of its record. While its API answers, versions share what serves them: so
/// neither a change among several apiservers nor an upgrade ends anybody's watch.
pub struct Cluster {
    pub record: ClusterRecord,
    /// Of the record's last change.
    pub revision: i64,
    pub registry: Arc<Registry>,
    pub namespaces: Arc<NamespaceQueue>,
    /// `host:port` of the listener.
    pub server_address: String,
    /// Cancelled once the cluster is deleted or its API no longer answers: its watches end.
    pub ended: CancellationToken,
}

impl Cluster {
    /// The path that everything of the cluster is under.
    pub fn root(&self) -> String {
        format!("/clusters/{}", self.record.id)
    }
}
