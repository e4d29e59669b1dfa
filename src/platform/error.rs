//! Why the platform refuses or fails. The layer above maps each to a status, a code and a context.

use crate::etcd::client::ClientError;

use super::model::{ClusterId, NodeGroupId};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlatformError {
    /// 400.
    #[error("Invalid {field}: {reason}")]
    Invalid {
        /// Path of the field as in the request, such as `nodeGroups[0].name`.
        field: String,
        value: String,
        reason: String,
    },
    /// 404; also for another owner's.
    #[error("Kubernetes cluster {0} not found")]
    ClusterNotFound(ClusterId),
    /// 404; also for another cluster's.
    #[error("Node group {0} not found")]
    NodeGroupNotFound(NodeGroupId),
    /// 404; also for a node of a group, and another cluster's.
    #[error("Node {0} not found")]
    NodeNotFound(NodeGroupId),
    /// `clever.core.quota-exceeded`.
    #[error("Quota exceeded: {item}: limit = {limit} | actual = {actual}")]
    QuotaExceeded {
        /// `RAM max` or `vCPU max`.
        item: String,
        /// Such as `40.0 GB`.
        limit: String,
        /// What would be held if the request were granted.
        actual: String,
    },
    /// 507: the public addresses of services.
    #[error("Quota exceeded: IP max: limit = {limit} | actual = {actual}")]
    IpQuotaExceeded {
        limit: u32,
        /// What would be held if the request were granted.
        actual: u32,
    },
    /// 404; also for another owner's.
    #[error("Load balancer {0} not found")]
    LoadBalancerNotFound(String),
    /// 404; also for another owner's.
    #[error("Storage {0} not found")]
    VolumeNotFound(String),
    /// 412: the state does not allow it now.
    #[error("{reason}")]
    WrongState { reason: String },
    /// 409: somebody else's change, or a thing that is already there.
    #[error("{reason}")]
    Conflict { reason: String },
    /// 503: the store or the cloud cannot be reached.
    #[error("The platform is unavailable: {0}")]
    Unavailable(String),
}

impl PlatformError {
    pub fn invalid(
        field: impl Into<String>,
        value: impl ToString,
        reason: impl Into<String>,
    ) -> PlatformError {
        PlatformError::Invalid {
            field: field.into(),
            value: value.to_string(),
            reason: reason.into(),
        }
    }

    pub fn wrong_state(reason: impl Into<String>) -> PlatformError {
        PlatformError::WrongState {
            reason: reason.into(),
        }
    }

    pub fn conflict(reason: impl Into<String>) -> PlatformError {
        PlatformError::Conflict {
            reason: reason.into(),
        }
    }
}

impl From<ClientError> for PlatformError {
    fn from(error: ClientError) -> Self {
        PlatformError::Unavailable(error.to_string())
    }
}

impl From<super::rates::RatesRefused> for PlatformError {
    fn from(refused: super::rates::RatesRefused) -> Self {
        PlatformError::conflict(refused.to_string())
    }
}

impl From<crate::infra::CloudError> for PlatformError {
    fn from(error: crate::infra::CloudError) -> Self {
        PlatformError::Unavailable(error.to_string())
    }
}
