//! CKE itself: clusters, node groups, quotas, prices, and the controllers that make them real.
//!
//! May use `infra`, `kubernetes` (through [`cluster_api::ClusterApi`]), `etcd::client` and `clock`.
//! Must never know of the REST API above it, nor of what stores etcd's keys.
//!
//! Rules without I/O come first: `catalog`, `pricing`, `quota`, `placement`, `validation`, and the
//! state machines `cluster` and `node_group`. Around them: `store` (records and transactions) and
//! `controller` (what acts).

pub mod catalog;
pub mod cluster;
pub mod cluster_api;
pub mod deployment_event;
pub mod error;
pub mod model;

use std::sync::Arc;

use crate::clock::Clock;
use crate::etcd::client::SharedKeyspaces;
use crate::infra::Cloud;

pub use catalog::Catalog;
pub use cluster_api::{ClusterApi, ClusterApiError};
pub use deployment_event::DeploymentEvent;
pub use error::PlatformError;
pub use model::*;

pub struct PlatformConfig {
    pub keyspaces: SharedKeyspaces,
    pub clock: Clock,
    pub cloud: Cloud,
    pub kubernetes: Arc<dyn ClusterApi>,
    pub seed: u64,
}

/// The platform. Cheap to clone.
#[derive(Clone)]
pub struct Platform {
    catalog: Catalog,
}

type Result<T> = std::result::Result<T, PlatformError>;

fn not_yet<T>() -> Result<T> {
    Err(PlatformError::Unavailable(String::from("not started")))
}

impl Platform {
    /// Reads the state and starts the controllers.
    pub async fn start(_config: PlatformConfig) -> Result<Platform> {
        not_yet()
    }

    /// Stops the controllers: each finishes what it is at.
    pub async fn shutdown(&self) {}

    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    pub async fn create_cluster(
        &self,
        _owner: &OwnerId,
        _request: CreateCluster,
    ) -> Result<ClusterView> {
        not_yet()
    }

    /// In the order of creation. Without a filter: all but the deleted ones.
    pub async fn list_clusters(
        &self,
        _owner: &OwnerId,
        _statuses: &[ClusterStatus],
    ) -> Result<Vec<ClusterView>> {
        not_yet()
    }

    pub async fn get_cluster(&self, _owner: &OwnerId, _id: &ClusterId) -> Result<ClusterView> {
        not_yet()
    }

    pub async fn update_cluster(
        &self,
        _owner: &OwnerId,
        _id: &ClusterId,
        _patch: ClusterPatch,
    ) -> Result<ClusterView> {
        not_yet()
    }

    pub async fn delete_cluster(&self, _owner: &OwnerId, _id: &ClusterId) -> Result<ClusterView> {
        not_yet()
    }

    pub async fn resume_cluster(&self, _owner: &OwnerId, _id: &ClusterId) -> Result<ClusterView> {
        not_yet()
    }

    pub async fn redeploy_cluster(&self, _owner: &OwnerId, _id: &ClusterId) -> Result<ClusterView> {
        not_yet()
    }

    /// YAML.
    pub async fn kubeconfig(
        &self,
        _owner: &OwnerId,
        _id: &ClusterId,
        _kind: KubeconfigType,
    ) -> Result<String> {
        not_yet()
    }

    pub async fn add_persistent_storage(
        &self,
        _owner: &OwnerId,
        _id: &ClusterId,
    ) -> Result<ClusterView> {
        not_yet()
    }

    /// Newest first.
    pub async fn deployment_events(
        &self,
        _owner: &OwnerId,
        _id: &ClusterId,
        _limit: usize,
    ) -> Result<Vec<DeploymentEvent>> {
        not_yet()
    }

    pub async fn version_check(&self, _owner: &OwnerId, _id: &ClusterId) -> Result<VersionCheck> {
        not_yet()
    }

    pub async fn update_version(
        &self,
        _owner: &OwnerId,
        _id: &ClusterId,
        _target: &str,
    ) -> Result<ClusterView> {
        not_yet()
    }

    /// In the order of creation. Without a filter: all that exist.
    pub async fn list_node_groups(
        &self,
        _owner: &OwnerId,
        _cluster: &ClusterId,
        _statuses: &[NodeGroupStatus],
    ) -> Result<Vec<NodeGroup>> {
        not_yet()
    }

    pub async fn create_node_group(
        &self,
        _owner: &OwnerId,
        _cluster: &ClusterId,
        _request: CreateNodeGroup,
    ) -> Result<NodeGroup> {
        not_yet()
    }

    pub async fn get_node_group(
        &self,
        _owner: &OwnerId,
        _cluster: &ClusterId,
        _id: &NodeGroupId,
    ) -> Result<NodeGroup> {
        not_yet()
    }

    pub async fn update_node_group(
        &self,
        _owner: &OwnerId,
        _cluster: &ClusterId,
        _id: &NodeGroupId,
        _patch: NodeGroupPatch,
    ) -> Result<NodeGroup> {
        not_yet()
    }

    pub async fn delete_node_group(
        &self,
        _owner: &OwnerId,
        _cluster: &ClusterId,
        _id: &NodeGroupId,
    ) -> Result<NodeGroup> {
        not_yet()
    }

    pub async fn resume_node_group(
        &self,
        _owner: &OwnerId,
        _cluster: &ClusterId,
        _id: &NodeGroupId,
    ) -> Result<NodeGroup> {
        not_yet()
    }

    pub async fn quota(&self, _owner: &OwnerId) -> Result<Quota> {
        not_yet()
    }

    /// What counts against the quota now, in the order of creation.
    pub async fn usage(&self, _owner: &OwnerId) -> Result<Vec<UsageItem>> {
        not_yet()
    }
}
