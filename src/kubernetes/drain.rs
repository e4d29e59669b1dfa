//! Taking a node out of service: cordon it, then evict its pods.

use serde_json::Value;

use super::eviction::{self, Evicted};
use super::registry::list::ListOptions;
use super::registry::resource::{Kind, Resource};
use super::registry::selector::Selector;
use super::registry::{DeleteOptions, Part, Place, Preconditions, Registry, WriteOptions, name_of};
use super::status::ApiError;

/// How far a drain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drain {
    /// Nothing is left on the node that would have to go.
    Drained,
    Remaining {
        /// Pods that are still there, the ones that are ending included.
        pods: u32,
        /// Those of them that a disruption budget does not let go now.
        blocked_by_budget: u32,
    },
}

/// As whom nodes are cordoned.
const MANAGER: &str = "clever-kubernetes-engine";

const NODES: Place<'static> = Place {
    resource: Resource::of_kind(Kind::Node),
    namespace: None,
};

/// Says that the node takes no new pods, or takes them again. A node that is not there is left so.
pub(super) async fn cordon(
    registry: &Registry,
    node: &str,
    cordoned: bool,
) -> Result<(), ApiError> {
    let changed = registry
        .modify(
            NODES,
            node,
            Part::Object,
            WriteOptions::by(MANAGER),
            |current| {
                let mut next = current.clone();
                if cordoned {
                    next["spec"]["unschedulable"] = Value::from(true);
                } else if let Some(spec) = next["spec"].as_object_mut() {
                    spec.remove("unschedulable");
                }
                Ok(next)
            },
        )
        .await;
    match changed {
        Err(error) if error.reason == "NotFound" => Ok(()),
        outcome => outcome.map(drop),
    }
}

/// One round: cordons the node and asks every pod on it to leave, as budgets allow. With `force`, pods
/// are deleted at once and budgets do not count.
pub(super) async fn round(registry: &Registry, node: &str, force: bool) -> Result<Drain, ApiError> {
    match registry.get(NODES, node).await {
        Err(error) if error.reason == "NotFound" => return Ok(Drain::Drained),
        outcome => drop(outcome?),
    }
    cordon(registry, node, true).await?;
    let resource = Resource::of_kind(Kind::Pod);
    let everywhere = Place {
        resource,
        namespace: None,
    };
    let options = ListOptions {
        selector: Selector::parse("", &format!("spec.nodeName={node}"))?,
        ..ListOptions::default()
    };
    let (mut pods, mut blocked_by_budget) = (0, 0);
    for pod in registry.list(everywhere, &options).await?.items {
        if !must_leave(&pod) {
            continue;
        }
        let name = name_of(&pod);
        let place = Place {
            resource,
            namespace: pod["metadata"]["namespace"].as_str(),
        };
        if force {
            let only_this = Preconditions {
                uid: pod["metadata"]["uid"].as_str().map(str::to_owned),
                resource_version: None,
            };
            let at_once = DeleteOptions {
                preconditions: only_this,
                grace_period_seconds: Some(0),
                ..DeleteOptions::default()
            };
            match registry.delete_with(place, &name, &at_once).await {
                // Finalizers hold it: it goes no further by being asked again.
                Ok(_) => {}
                Err(error) if ["NotFound", "Conflict"].contains(&error.reason) => {}
                Err(error) => return Err(error),
            }
            continue;
        }
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            pods += 1;
            continue;
        }
        match eviction::evict(registry, place, &name, &DeleteOptions::default()).await {
            Ok(Evicted::Gone) => {}
            Ok(Evicted::Ending) => pods += 1,
            Err(error) if error.reason == "TooManyRequests" => {
                pods += 1;
                blocked_by_budget += 1;
            }
            Err(error) if error.reason == "NotFound" => {}
            Err(error) => return Err(error),
        }
    }
    Ok(match pods {
        0 => Drain::Drained,
        pods => Drain::Remaining {
            pods,
            blocked_by_budget,
        },
    })
}

/// What has ended need not move, and a static or a DaemonSet's pod belongs to the node.
fn must_leave(pod: &Value) -> bool {
    let metadata = &pod["metadata"];
    let ended = ["Succeeded", "Failed"].contains(&pod["status"]["phase"].as_str().unwrap_or(""));
    let mirror = !metadata["annotations"]["kubernetes.io/config.mirror"].is_null();
    let owners = metadata["ownerReferences"].as_array();
    let of_daemon_set = owners
        .into_iter()
        .flatten()
        .any(|owner| owner["controller"] == true && owner["kind"] == "DaemonSet");
    !(ended || mirror || of_daemon_set)
}
