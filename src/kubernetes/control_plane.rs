//! Which instances of each component of a cluster's control plane work.

use serde::{Deserialize, Serialize};

/// Names of the instances of each component whose VM works, in a fixed order; the API answers iff
/// `apiserver` is not empty. A component acts iff its list is not empty, and the one that acts is the
/// holder of the Lease `kube-system/<component>`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ControlPlane {
    pub apiserver: Vec<String>,
    pub controller_manager: Vec<String>,
    pub scheduler: Vec<String>,
    pub cloud_controller_manager: Vec<String>,
    pub node_group_operator: Vec<String>,
}

impl ControlPlane {
    /// Somebody answers requests.
    pub fn serves(&self) -> bool {
        !self.apiserver.is_empty()
    }
}
