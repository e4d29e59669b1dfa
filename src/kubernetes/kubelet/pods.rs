//! Pods on the simulated nodes: they start after their images are pulled, run, and end when they are told to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::clock::Timestamp;
use crate::infra::Load;
use crate::kubernetes::api_client::{ApiClientError, At};
use crate::kubernetes::controller_manager::{Outcome, Tools, parse, ready_condition, sooner};
use crate::kubernetes::registry::Propagation;
use crate::kubernetes::registry::resource::{Kind, Resource};
use crate::kubernetes::scheduler::Room;

/// From a pod's binding until its containers run: an image of some tens of megabytes from a registry nearby.
const PULL_MILLIS: i64 = 2_000;

/// What pods that run ask for, by node.
pub type Loads = BTreeMap<String, Load>;

/// Looks at every pod that has a node. `hosts` are the addresses of the nodes whose kubelets run here;
/// `nodes` are the names of all nodes that there are.
pub async fn reconcile(
    tools: &Tools,
    hosts: &BTreeMap<String, Ipv4Addr>,
    nodes: &BTreeSet<String>,
) -> Result<(Outcome, Loads), ApiClientError> {
    let resource = Resource::of_kind(Kind::Pod);
    let pods = tools.api.list(resource).await?;
    let mut addresses: BTreeSet<String> = pods
        .iter()
        .filter_map(|pod| pod["status"]["podIP"].as_str().map(str::to_owned))
        .collect();
    let mut wake = None;
    let mut loads = Loads::new();
    for pod in &pods {
        let Some(node) = pod["spec"]["nodeName"]
            .as_str()
            .filter(|node| !node.is_empty())
        else {
            continue;
        };
        if pod["status"]["phase"] == "Running" {
            let load = loads.entry(node.to_owned()).or_default();
            *load = *load + load_of(pod);
        }
        let at = At::of(resource, pod);
        match decide(
            pod,
            hosts.get(node).is_some(),
            nodes.contains(node),
            tools.now,
        ) {
            Next::Nothing => {}
            Next::At(due) => wake = sooner(wake, Some(Timestamp(due))),
            Next::Remove => {
                let uid = &pod["metadata"]["uid"];
                tools
                    .api
                    .delete(at, uid, Some(0), Propagation::Background)
                    .await?;
            }
            Next::Pull { due } => {
                let host = hosts.get(node).map(ToString::to_string).unwrap_or_default();
                let mut next = pod.clone();
                next["status"] = pulling(pod, &host, &tools.time());
                write(tools, at, &next).await?;
                wake = sooner(wake, Some(Timestamp(due)));
            }
            Next::Recover => {
                let mut next = pod.clone();
                next["status"]["conditions"] = json!(conditions(pod, true, &tools.time()));
                write(tools, at, &next).await?;
            }
            Next::Run => {
                let host = hosts.get(node).map(ToString::to_string).unwrap_or_default();
                let address = if pod["spec"]["hostNetwork"] == true {
                    host.clone()
                } else {
                    let Some(free) = free_address(&addresses) else {
                        tracing::warn!("a cluster has no address left for a pod");
                        continue;
                    };
                    addresses.insert(free.clone());
                    free
                };
                let mut next = pod.clone();
                next["status"] = running(pod, &host, &address, &tools.time());
                write(tools, at, &next).await?;
            }
        }
    }
    Ok((wake, loads))
}

/// A pod uses what it requests: nothing runs in it.
fn load_of(pod: &Value) -> Load {
    let room = Room::of(pod);
    Load {
        cpu_millis: u64::try_from(room.cpu_millis).unwrap_or(0),
        memory_kib: u64::try_from(room.memory_bytes / 1024).unwrap_or(0),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Nothing,
    At(i64),
    Pull {
        due: i64,
    },
    Run,
    /// It runs, and was given up for lost meanwhile.
    Recover,
    Remove,
}

/// `here`: its node's kubelet runs. `known`: its node is there.
fn decide(pod: &Value, here: bool, known: bool, now: i64) -> Next {
    if !known {
        // Nobody will ever run it, or tell that it has ended.
        return Next::Remove;
    }
    if !here {
        return Next::Nothing;
    }
    if let Some(end) = parse(&pod["metadata"]["deletionTimestamp"]) {
        return if end <= now {
            Next::Remove
        } else {
            Next::At(end)
        };
    }
    if pod["status"]["phase"] == "Running" && ready_condition(pod).is_none() {
        return Next::Recover;
    }
    if pod["status"]["phase"] != "Pending" {
        return Next::Nothing;
    }
    let conditions = pod["status"]["conditions"].as_array();
    let bound = conditions
        .into_iter()
        .flatten()
        .find(|it| it["type"] == "PodScheduled" && it["status"] == "True")
        .and_then(|bound| parse(&bound["lastTransitionTime"]));
    // Whoever made it with a node needed no binding.
    let bound = bound.or_else(|| parse(&pod["metadata"]["creationTimestamp"]));
    let due = bound.unwrap_or(now).saturating_add(PULL_MILLIS);
    if due <= now {
        return Next::Run;
    }
    match pod["status"]["containerStatuses"].is_array() {
        true => Next::At(due),
        false => Next::Pull { due },
    }
}

async fn write(tools: &Tools, at: At<'_>, pod: &Value) -> Result<(), ApiClientError> {
    match tools.api.replace_status(at, pod).await {
        // Its change brings it back here.
        Err(error) if error.is_stale() => Ok(()),
        outcome => outcome.map(drop),
    }
}

/// The lowest address of the pods' network, 10.2.0.0/16, that no pod has.
fn free_address(taken: &BTreeSet<String>) -> Option<String> {
    (1..255u8)
        .flat_map(|high| (1..255u8).map(move |low| format!("10.2.{high}.{low}")))
        .find(|address| !taken.contains(address))
}

fn conditions(pod: &Value, ready: bool, now: &str) -> Vec<Value> {
    let known = pod["status"]["conditions"].as_array();
    let known = |kind: &str| {
        known
            .into_iter()
            .flatten()
            .find(|it| it["type"] == kind)
            .cloned()
    };
    let condition = |kind: &str, status: bool| {
        let status = if status { "True" } else { "False" };
        if let Some(known) = known(kind)
            && known["status"] == status
        {
            return known;
        }
        let mut made = json!({
            "type": kind, "status": status, "lastProbeTime": null, "lastTransitionTime": now,
        });
        if status == "False" {
            made["reason"] = json!("ContainersNotReady");
        }
        made
    };
    vec![
        condition("PodReadyToStartContainers", ready),
        condition("Initialized", true),
        condition("Ready", ready),
        condition("ContainersReady", ready),
        condition("PodScheduled", true),
    ]
}

fn pulling(pod: &Value, host: &str, now: &str) -> Value {
    let containers = pod["spec"]["containers"].as_array();
    let statuses: Vec<Value> = containers
        .into_iter()
        .flatten()
        .map(|container| {
            json!({
                "name": container["name"], "image": container["image"], "imageID": "",
                "ready": false, "started": false, "restartCount": 0,
                "state": {"waiting": {"reason": "ContainerCreating"}}, "lastState": {},
            })
        })
        .collect();
    json!({
        "phase": "Pending", "qosClass": pod["status"]["qosClass"],
        "conditions": conditions(pod, false, now),
        "hostIP": host, "hostIPs": [{"ip": host}], "startTime": now, "containerStatuses": statuses,
    })
}

fn running(pod: &Value, host: &str, address: &str, now: &str) -> Value {
    let uid = pod["metadata"]["uid"].as_str().unwrap_or("");
    let id = |what: &str| -> String {
        let digest = Sha256::digest(what.as_bytes());
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let containers = pod["spec"]["containers"].as_array();
    let statuses: Vec<Value> = containers
        .into_iter()
        .flatten()
        .map(|container| {
            let (name, image) = (
                container["name"].as_str().unwrap_or(""),
                container["image"].as_str().unwrap_or(""),
            );
            json!({
                "name": name, "image": image, "imageID": format!("{image}@sha256:{}", id(image)),
                "containerID": format!("containerd://{}", id(&format!("{uid}/{name}"))),
                "ready": true, "started": true, "restartCount": 0,
                "state": {"running": {"startedAt": now}}, "lastState": {},
            })
        })
        .collect();
    let started = match &pod["status"]["startTime"] {
        Value::Null => json!(now),
        known => known.clone(),
    };
    json!({
        "phase": "Running", "qosClass": pod["status"]["qosClass"],
        "conditions": conditions(pod, true, now),
        "hostIP": host, "hostIPs": [{"ip": host}], "podIP": address, "podIPs": [{"ip": address}],
        "startTime": started, "containerStatuses": statuses,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_pulled_runs_and_ends() {
        let check = |pod: &Value, here: bool, known: bool, now: i64, expect: Next| {
            assert_eq!(decide(pod, here, known, now), expect, "{pod} at {now}");
        };
        let mut pod = json!({
            "metadata": {"creationTimestamp": "1970-01-01T00:00:00Z"},
            "status": {"phase": "Pending", "conditions": [
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": "1970-01-01T00:00:10Z"}]},
        });
        check(&pod, true, true, 10_000, Next::Pull { due: 12_000 });
        check(&pod, true, true, 12_000, Next::Run);
        check(&pod, false, true, 12_000, Next::Nothing);
        check(&pod, false, false, 12_000, Next::Remove);
        pod["status"] = pulling(&pod, "10.0.0.1", "1970-01-01T00:00:10Z");
        check(&pod, true, true, 11_000, Next::At(12_000));
        pod["status"] = running(&pod, "10.0.0.1", "10.2.1.1", "1970-01-01T00:00:12Z");
        check(&pod, true, true, 12_000, Next::Nothing);
        let mut lost = pod.clone();
        lost["status"]["conditions"][2]["status"] = json!("False");
        check(&lost, true, true, 12_000, Next::Recover);
        check(&lost, false, true, 12_000, Next::Nothing);
        pod["metadata"]["deletionTimestamp"] = json!("1970-01-01T00:01:00Z");
        check(&pod, true, true, 12_000, Next::At(60_000));
        check(&pod, true, true, 60_000, Next::Remove);
    }
}
