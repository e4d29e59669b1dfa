//! Nodes that stop to answer: they are tainted, their pods are no endpoints any more, and go when they no longer
//! tolerate it. What the node lifecycle and taint eviction controllers of Kubernetes do.
//!
//! ```text
//! Ready is Unknown ─▶ taints node.kubernetes.io/unreachable, NoSchedule and NoExecute
//!                  ─▶ its pods are not Ready; 300 s later, by their default toleration, they are deleted
//! Ready is True    ─▶ the taints go; the kubelet says what becomes of the pods
//! ```
//!
//! That a node no longer answers is concluded where heartbeats would be missed: see the kubelet.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Outcome, Tools, parse, ready_condition, sooner};
use crate::clock::Timestamp;
use crate::kubernetes::api_client::{ApiClientError, At};
use crate::kubernetes::registry::Propagation;
use crate::kubernetes::registry::resource::{Kind, Resource};
use crate::kubernetes::scheduler::is_tolerated;

const NAME: &str = "node-controller";
const EVICTION: &str = "taint-eviction-controller";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const NOT_READY: &str = "node.kubernetes.io/not-ready";

pub async fn reconcile(tools: &Tools) -> Result<Outcome, ApiClientError> {
    let nodes = tools.api.list(Resource::of_kind(Kind::Node)).await?;
    let mut troubled: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for node in &nodes {
        let taints = taints(node, &tools.time());
        let name = node["metadata"]["name"].as_str().unwrap_or("").to_owned();
        if !same(&taints, &node["spec"]["taints"]) {
            let mut next = node.clone();
            next["spec"]["taints"] = json!(taints);
            let at = At::of(Resource::of_kind(Kind::Node), node);
            match tools.api.replace(at, &next).await {
                // Its change brings it back here.
                Err(error) if error.is_stale() => continue,
                outcome => drop(outcome?),
            }
            tell(tools, node, &name).await?;
        }
        if taints.iter().any(|taint| taint["effect"] == "NoExecute") {
            troubled.insert(name, taints);
        }
    }
    if troubled.is_empty() {
        return Ok(None);
    }
    let resource = Resource::of_kind(Kind::Pod);
    let mut wake = None;
    for pod in tools.api.list(resource).await? {
        let node = pod["spec"]["nodeName"].as_str().unwrap_or("");
        let ended =
            ["Succeeded", "Failed"].contains(&pod["status"]["phase"].as_str().unwrap_or(""));
        let Some(taints) = troubled.get(node).filter(|_| !ended) else {
            continue;
        };
        let lost = taints.iter().any(is_ours);
        if lost && ready_condition(&pod).is_some() {
            unready(tools, &pod).await?;
        }
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            continue;
        }
        match evicted_at(&pod, taints) {
            Some(due) if due <= tools.now => evict(tools, &pod).await?,
            Some(due) => wake = sooner(wake, Some(Timestamp(due))),
            None => {}
        }
    }
    Ok(wake)
}

/// Whether there is something to do about the node, or about pods on it: for most nodes there never is.
pub fn is_troubled(node: &Value) -> bool {
    let taints = node["spec"]["taints"].as_array();
    let mut taints = taints.into_iter().flatten();
    let conditions = node["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    taints.any(|taint| taint["effect"] == "NoExecute" || is_ours(taint))
        || !conditions.any(|it| it["type"] == "Ready" && it["status"] == "True")
}

fn is_ours(taint: &Value) -> bool {
    taint["key"] == UNREACHABLE || taint["key"] == NOT_READY
}

fn same(taints: &[Value], given: &Value) -> bool {
    match given.as_array() {
        Some(given) => given.as_slice() == taints,
        None => taints.is_empty(),
    }
}

/// The node's taints as they should be: ours by its condition, those of others with the time since when they
/// evict.
fn taints(node: &Value, now: &str) -> Vec<Value> {
    let given = node["spec"]["taints"].as_array().cloned();
    let given = given.unwrap_or_default();
    let conditions = node["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    let ready = conditions.find(|condition| condition["type"] == "Ready");
    let key = match ready.and_then(|condition| condition["status"].as_str()) {
        Some("True") => None,
        Some("Unknown") | None => Some(UNREACHABLE),
        Some(_) => Some(NOT_READY),
    };
    let mut taints: Vec<Value> = given
        .iter()
        .filter(|taint| !is_ours(taint))
        .cloned()
        .collect();
    for effect in ["NoSchedule", "NoExecute"] {
        let Some(key) = key else { continue };
        let present = given
            .iter()
            .find(|taint| taint["key"] == key && taint["effect"] == effect);
        taints.push(match present {
            Some(taint) => taint.clone(),
            None => json!({"key": key, "effect": effect}),
        });
    }
    for taint in &mut taints {
        if taint["effect"] == "NoExecute" && taint["timeAdded"].is_null() {
            taint["timeAdded"] = json!(now);
        }
    }
    taints
}

async fn tell(tools: &Tools, node: &Value, name: &str) -> Result<(), ApiClientError> {
    let was = node["spec"]["taints"].as_array();
    let was = was.into_iter().flatten().any(is_ours);
    let is = taints(node, "").iter().any(is_ours);
    let status = match (was, is) {
        (false, true) => "NodeNotReady",
        (true, false) => "NodeReady",
        _ => return Ok(()),
    };
    let message = format!("Node {name} status is now: {status}");
    tools.event(node, "Normal", status, &message, NAME).await
}

async fn unready(tools: &Tools, pod: &Value) -> Result<(), ApiClientError> {
    let mut next = pod.clone();
    let conditions = next["status"]["conditions"].as_array_mut();
    for condition in conditions.into_iter().flatten() {
        if condition["type"] == "Ready" {
            condition["status"] = json!("False");
            condition["lastTransitionTime"] = json!(tools.time());
        }
    }
    let at = At::of(Resource::of_kind(Kind::Pod), pod);
    match tools.api.replace_status(at, &next).await {
        Err(error) if error.is_stale() => return Ok(()),
        outcome => drop(outcome?),
    }
    let reason = "NodeNotReady";
    tools
        .event(pod, "Warning", reason, "Node is not ready", NAME)
        .await
}

/// When the pod has to go, in milliseconds; none if it tolerates the taints for ever.
fn evicted_at(pod: &Value, taints: &[Value]) -> Option<i64> {
    let mut due: Option<i64> = None;
    for taint in taints.iter().filter(|it| it["effect"] == "NoExecute") {
        let tolerations = pod["spec"]["tolerations"].as_array();
        let matching: Vec<&Value> = tolerations
            .into_iter()
            .flatten()
            .filter(|toleration| is_tolerated(toleration, taint))
            .collect();
        let since = parse(&taint["timeAdded"]).unwrap_or(0);
        // The shortest counts, as in Kubernetes; one that names no time, only if none does.
        let limits = matching
            .iter()
            .filter_map(|it| it["tolerationSeconds"].as_i64());
        let limit = match limits.min() {
            Some(seconds) => Some(seconds.max(0)),
            None if matching.is_empty() => Some(0),
            None => None,
        };
        if let Some(seconds) = limit {
            let at = since.saturating_add(seconds.saturating_mul(1000));
            due = Some(due.map_or(at, |due| due.min(at)));
        }
    }
    due
}

async fn evict(tools: &Tools, pod: &Value) -> Result<(), ApiClientError> {
    let at = At::of(Resource::of_kind(Kind::Pod), pod);
    let uid = &pod["metadata"]["uid"];
    let message = format!(
        "Marking for deletion Pod {}/{}",
        at.namespace.unwrap_or(""),
        at.name
    );
    tools
        .event(pod, "Normal", "TaintManagerEviction", &message, EVICTION)
        .await?;
    tools
        .api
        .delete(at, uid, None, Propagation::Background)
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_tainted_while_it_is_not_ready() {
        let check = |status: &str, given: Value, expect: Value| {
            let node = json!({"spec": {"taints": given},
                "status": {"conditions": [{"type": "Ready", "status": status}]}});
            assert_eq!(json!(taints(&node, "now")), expect, "{node}");
        };
        let unreachable = json!([
            {"key": UNREACHABLE, "effect": "NoSchedule"},
            {"key": UNREACHABLE, "effect": "NoExecute", "timeAdded": "now"},
        ]);
        check("True", Value::Null, json!([]));
        check("Unknown", Value::Null, unreachable.clone());
        check("True", unreachable.clone(), json!([]));
        let mut before = unreachable;
        before[1]["timeAdded"] = json!("before");
        check("Unknown", before.clone(), before);
        let theirs = json!([{"key": "a", "value": "b", "effect": "NoSchedule"}]);
        check("True", theirs.clone(), theirs);
        check(
            "True",
            json!([{"key": "a", "effect": "NoExecute"}]),
            json!([{"key": "a", "effect": "NoExecute", "timeAdded": "now"}]),
        );
    }

    #[test]
    fn a_pod_stays_as_long_as_it_tolerates() {
        let check = |tolerations: Value, expect: Option<i64>| {
            let pod = json!({"spec": {"tolerations": tolerations}});
            let taint = json!({"key": UNREACHABLE, "effect": "NoExecute",
                "timeAdded": "1970-01-01T00:01:00Z"});
            assert_eq!(evicted_at(&pod, &[taint]), expect, "{pod}");
        };
        let seconds = |seconds: i64| {
            json!({"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": seconds})
        };
        check(json!([]), Some(60_000));
        check(json!([seconds(300)]), Some(360_000));
        check(json!([seconds(300), seconds(30)]), Some(90_000));
        check(json!([{"operator": "Exists"}]), None);
        check(json!([{"operator": "Exists"}, seconds(30)]), Some(90_000));
    }
}
