//! What a scenario may expect. An expectation is told apart by its first key:
//!
//! | key | what must be true |
//! |---|---|
//! | `cluster` | its status |
//! | `nodeGroup` | its status and numbers of nodes |
//! | `vms` | how many VMs of a cluster are as described, and over how many datacenters they are spread |
//! | `kubernetes` | an answer of the cluster's Kubernetes API |
//! | `activity` | deployment events of a cluster |
//! | `answer` | an answer of the REST API or of the control API |
//! | `happened` | events of the stream since the last step but one that expects |
//! | `invariants` | `hold` |

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

#[derive(Clone, Debug)]
pub enum Expectation {
    Cluster(ClusterIs),
    NodeGroup(NodeGroupIs),
    Vms(VmsAre),
    Kubernetes(KubernetesAnswers),
    Activity(ActivityIs),
    Answer(AnswerIs),
    Happened(HasHappened),
    Invariants(InvariantsHold),
}

impl<'de> Deserialize<'de> for Expectation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let has = |key: &str| value.get(key).is_some();
        let read = if has("vms") {
            parse(value).map(Expectation::Vms)
        } else if has("kubernetes") {
            parse(value).map(Expectation::Kubernetes)
        } else if has("activity") {
            parse(value).map(Expectation::Activity)
        } else if has("nodeGroup") {
            parse(value).map(Expectation::NodeGroup)
        } else if has("cluster") {
            parse(value).map(Expectation::Cluster)
        } else if has("answer") {
            parse(value).map(Expectation::Answer)
        } else if has("happened") {
            parse(value).map(Expectation::Happened)
        } else if has("invariants") {
            parse(value).map(Expectation::Invariants)
        } else {
            Err(String::from(
                "an expectation is of a cluster, nodeGroup, vms, kubernetes, activity, answer, happened or \
                 invariants",
            ))
        };
        read.map_err(serde::de::Error::custom)
    }
}

fn parse<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| error.to_string())
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterIs {
    pub cluster: String,
    /// `DELETED` is also true of one that is not there any more.
    pub status: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeGroupIs {
    /// `<cluster>.<group>`.
    pub node_group: String,
    #[serde(default)]
    pub status: Option<String>,
    #[serde(default)]
    pub current_node_count: Option<u64>,
    #[serde(default)]
    pub target_node_count: Option<u64>,
}

/// VMs are counted that are as every given field says.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VmsAre {
    /// Name of the cluster.
    pub vms: String,
    /// `<cluster>.<group>`, or `none` for the control plane.
    #[serde(default)]
    pub node_group: Option<String>,
    /// A name; a `*` at the end stands for anything.
    #[serde(default)]
    pub named: Option<String>,
    /// Where they are.
    #[serde(default)]
    pub datacenter: Option<String>,
    #[serde(default)]
    pub status: Option<String>,
    #[serde(default)]
    pub healthy: Option<bool>,
    #[serde(default)]
    pub reachable: Option<bool>,
    /// How many.
    #[serde(default)]
    pub count: Option<usize>,
    #[serde(default)]
    pub at_least: Option<usize>,
    #[serde(default)]
    pub at_most: Option<usize>,
    /// How many datacenters they are in.
    #[serde(default)]
    pub datacenters: Option<usize>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KubernetesAnswers {
    /// Name of the cluster.
    pub kubernetes: String,
    /// A path to GET, such as `/api/v1/nodes`.
    pub path: String,
    /// 200 unless given.
    #[serde(default)]
    pub status: Option<u16>,
    /// Values in the answer, by JSON pointer.
    #[serde(default)]
    pub values: BTreeMap<String, Value>,
    /// Numbers in the answer, by JSON pointer, that are so large or larger; one that is not there is 0.
    #[serde(default)]
    pub least: BTreeMap<String, u64>,
    /// How many items the list has: those with [`KubernetesAnswers::each`].
    #[serde(default)]
    pub items: Option<usize>,
    /// Values in an item, by JSON pointer, for it to count.
    #[serde(default)]
    pub each: BTreeMap<String, Value>,
}

/// Deployment events, what `clever k8s activity` shows: of all time, as far as they are as described.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ActivityIs {
    /// Name of the cluster.
    pub activity: String,
    #[serde(default)]
    pub operation: Option<String>,
    /// A step, or `none` for the operation as a whole.
    #[serde(default)]
    pub step: Option<String>,
    #[serde(default)]
    pub status: Option<String>,
    /// Part of the detail.
    #[serde(default)]
    pub detail: Option<String>,
    /// How many at least; one unless given.
    #[serde(default = "once")]
    pub times: usize,
    #[serde(default)]
    pub at_most: Option<usize>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AnswerIs {
    /// A path to GET.
    pub answer: String,
    #[serde(default)]
    pub status: Option<u16>,
    /// Values in the answer, by JSON pointer.
    #[serde(default)]
    pub values: BTreeMap<String, Value>,
}

/// Something happened since the last step but one that expects.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HasHappened {
    /// Kind of the record, as the event stream names it.
    pub happened: String,
    /// Values in the event, by JSON pointer.
    #[serde(default)]
    pub values: BTreeMap<String, Value>,
    /// How often at least; once unless given.
    #[serde(default = "once")]
    pub times: usize,
    #[serde(default)]
    pub at_most: Option<usize>,
}

fn once() -> usize {
    1
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InvariantsHold {
    pub invariants: Hold,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Hold {
    Hold,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said_of_the_kind_that_is_meant() {
        let check = |text: &str, expect: &str| {
            let read = serde_json::from_str::<Expectation>(text);
            let error = read.expect_err(text).to_string();
            assert!(error.contains(expect), "{text}: {error}");
        };
        check(r#"{"cluster": "a"}"#, "missing field `status`");
        check(r#"{"vms": "a", "counts": 1}"#, "unknown field `counts`");
        check(r#"{"kubernetes": "a"}"#, "missing field `path`");
        check(r#"{"invariants": "break"}"#, "unknown variant `break`");
        check(r#"{"weather": "fine"}"#, "an expectation is of a");
    }
}
