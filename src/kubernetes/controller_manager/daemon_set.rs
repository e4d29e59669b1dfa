//! DaemonSets: one pod on each node that takes it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::stateful_set::{REVISION, revision};
use super::{
    Outcome, Tools, controlled_by, count, is_available, is_ready, owner_reference, scaled, sooner,
};
use crate::kubernetes::api_client::{ApiClientError, At};
use crate::kubernetes::registry::Propagation;
use crate::kubernetes::registry::resource::{Kind, Resource};
use crate::kubernetes::scheduler::{matches_node, untolerated};

const NAME: &str = "daemonset-controller";

pub async fn reconcile(tools: &Tools) -> Result<Outcome, ApiClientError> {
    let resource = Resource::of_kind(Kind::DaemonSet);
    let sets = tools.api.list(resource).await?;
    if sets.is_empty() {
        return Ok(None);
    }
    let nodes = tools.api.list(Resource::of_kind(Kind::Node)).await?;
    let pods = tools.api.list(Resource::of_kind(Kind::Pod)).await?;
    let mut wake = None;
    for set in &sets {
        let own: Vec<&Value> = pods.iter().filter(|pod| controlled_by(pod, set)).collect();
        let plan = plan(set, &nodes, &own, tools.now);
        if set["metadata"]["deletionTimestamp"].is_null() {
            match carry_out(tools, set, &plan).await {
                // The namespace is going.
                Err(error) if matches!(error.code(), Some(403 | 404)) => {}
                outcome => outcome?,
            }
        }
        wake = sooner(wake, plan.wake);
        if plan.status != set["status"] {
            let mut next = set.clone();
            next["status"] = plan.status;
            match tools.api.replace_status(At::of(resource, set), &next).await {
                Err(error) if error.is_stale() => {}
                outcome => drop(outcome?),
            }
        }
    }
    Ok(wake)
}

async fn carry_out(tools: &Tools, set: &Value, plan: &Plan<'_>) -> Result<(), ApiClientError> {
    let resource = Resource::of_kind(Kind::Pod);
    let namespace = set["metadata"]["namespace"].as_str();
    for pod in &plan.delete {
        let at = At::of(resource, pod);
        let uid = &pod["metadata"]["uid"];
        tools
            .api
            .delete(at, uid, None, Propagation::Background)
            .await?;
        let message = format!("Deleted pod: {}", at.name);
        tools
            .event(set, "Normal", "SuccessfulDelete", &message, NAME)
            .await?;
    }
    for node in &plan.create {
        let made = tools
            .api
            .create(resource, namespace, &pod_of(set, node))
            .await?;
        let message = format!(
            "Created pod: {}",
            made["metadata"]["name"].as_str().unwrap_or("")
        );
        tools
            .event(set, "Normal", "SuccessfulCreate", &message, NAME)
            .await?;
    }
    Ok(())
}

#[derive(Debug, Default)]
struct Plan<'a> {
    /// Nodes that lack a pod.
    create: Vec<String>,
    delete: Vec<&'a Value>,
    status: Value,
    /// When a pod that is ready becomes available.
    wake: Outcome,
}

fn is_ending(pod: &Value) -> bool {
    !pod["metadata"]["deletionTimestamp"].is_null()
}

/// The node that the pod is on, or that it was made for.
fn node_of(pod: &Value) -> &str {
    let spec = &pod["spec"];
    let bound = spec["nodeName"].as_str().filter(|node| !node.is_empty());
    let required =
        &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let field = &required["nodeSelectorTerms"][0]["matchFields"][0]["values"][0];
    bound.or_else(|| field.as_str()).unwrap_or("")
}

fn plan<'a>(set: &Value, nodes: &[Value], own: &[&'a Value], now: i64) -> Plan<'a> {
    let mut plan = Plan::default();
    let hash = revision(set);
    let minimum = count(&set["spec"]["minReadySeconds"]);
    let sample = json!({"spec": spec_of(set, "")});
    let mut by_node: BTreeMap<&str, Vec<&'a Value>> = BTreeMap::new();
    for pod in own {
        by_node.entry(node_of(pod)).or_default().push(pod);
    }
    let (mut desired, mut current, mut misplaced, mut ready, mut updated, mut available) =
        (0, 0, 0, 0, 0, 0);
    let mut outdated = Vec::new();
    for node in nodes {
        let name = node["metadata"]["name"].as_str().unwrap_or("");
        let suits = matches_node(&sample, node);
        let runs = suits && untolerated(&sample, node, &["NoSchedule", "NoExecute"]).is_none();
        let stays = suits && untolerated(&sample, node, &["NoExecute"]).is_none();
        let mut here = by_node.remove(name).unwrap_or_default();
        // The oldest stays.
        here.sort_by_key(|pod| {
            let text = |field: &str| pod["metadata"][field].as_str().unwrap_or("").to_owned();
            (is_ending(pod), text("creationTimestamp"), text("name"))
        });
        if !stays || (!runs && here.is_empty()) {
            if !here.is_empty() {
                misplaced += 1;
            }
            plan.delete
                .extend(here.iter().copied().filter(|it| !is_ending(it)));
            continue;
        }
        desired += 1;
        let Some((first, rest)) = here.split_first() else {
            plan.create.push(name.to_owned());
            continue;
        };
        current += 1;
        plan.delete
            .extend(rest.iter().copied().filter(|it| !is_ending(it)));
        let ended =
            ["Succeeded", "Failed"].contains(&first["status"]["phase"].as_str().unwrap_or(""));
        if ended && !is_ending(first) {
            plan.delete.push(first);
            continue;
        }
        let serves = !is_ending(first) && is_ready(first);
        if serves {
            ready += 1;
            match is_available(first, minimum, now) {
                Ok(true) => available += 1,
                Ok(false) => {}
                Err(due) => plan.wake = sooner(plan.wake, Some(due)),
            }
        }
        if first["metadata"]["labels"][REVISION] == hash {
            updated += 1;
        } else if !is_ending(first) {
            outdated.push((serves, *first));
        }
    }
    // On nodes that are gone; whoever collects pods does it.
    let unavailable = desired - available;
    if set["spec"]["updateStrategy"]["type"] != "OnDelete" {
        let limit = &set["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"];
        let most = scaled(limit, desired, true).max(1);
        let mut room = most - unavailable;
        // Those that serve nobody cost nothing.
        outdated.sort_by_key(|(serves, _)| *serves);
        for (serves, pod) in outdated {
            if serves {
                if room <= 0 {
                    break;
                }
                room -= 1;
            }
            plan.delete.push(pod);
        }
    }
    plan.status = json!({
        "observedGeneration": set["metadata"]["generation"],
        "desiredNumberScheduled": desired, "currentNumberScheduled": current,
        "numberMisscheduled": misplaced, "numberReady": ready,
        "updatedNumberScheduled": updated, "numberAvailable": available,
        "numberUnavailable": unavailable,
    });
    // As Go leaves out what is zero.
    if let Some(map) = plan.status.as_object_mut() {
        let optional = [
            "updatedNumberScheduled",
            "numberAvailable",
            "numberUnavailable",
        ];
        map.retain(|key, value| !optional.contains(&key.as_str()) || *value != json!(0));
    }
    plan
}

/// The template's spec, for the node of that name: what keeps other pods from a node does not keep these.
fn spec_of(set: &Value, node: &str) -> Value {
    let mut spec = set["spec"]["template"]["spec"].clone();
    let mut tolerations = spec["tolerations"].as_array().cloned().unwrap_or_default();
    for (key, effect) in [
        ("not-ready", "NoExecute"),
        ("unreachable", "NoExecute"),
        ("disk-pressure", "NoSchedule"),
        ("memory-pressure", "NoSchedule"),
        ("pid-pressure", "NoSchedule"),
        ("unschedulable", "NoSchedule"),
    ] {
        let key = format!("node.kubernetes.io/{key}");
        tolerations.push(json!({"key": key, "operator": "Exists", "effect": effect}));
    }
    spec["tolerations"] = json!(tolerations);
    if !node.is_empty() {
        let field = json!({"key": "metadata.name", "operator": "In", "values": [node]});
        let required = json!({"nodeSelectorTerms": [{"matchFields": [field]}]});
        spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
            required;
    }
    spec
}

fn pod_of(set: &Value, node: &str) -> Value {
    let template = &set["spec"]["template"];
    let mut labels = template["metadata"]["labels"].clone();
    labels[REVISION] = json!(revision(set));
    labels["pod-template-generation"] = json!(count(&set["metadata"]["generation"]).to_string());
    json!({
        "metadata": {
            "generateName": format!("{}-", set["metadata"]["name"].as_str().unwrap_or("")),
            "labels": labels, "annotations": template["metadata"]["annotations"],
            "ownerReferences": [owner_reference(set)],
        },
        "spec": spec_of(set, node),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set() -> Value {
        json!({
            "metadata": {"name": "agent", "uid": "1", "generation": 1},
            "spec": {"template": {"metadata": {"labels": {"app": "agent"}}, "spec": {}},
                "updateStrategy": {"rollingUpdate": {"maxUnavailable": 1}}},
        })
    }

    fn node(name: &str, taint: &str) -> Value {
        let mut node = json!({"metadata": {"name": name}, "spec": {}});
        if let Some((key, effect)) = taint.split_once(':') {
            node["spec"]["taints"] = json!([{"key": key, "effect": effect}]);
        }
        node
    }

    fn pod(name: &str, node: &str, hash: &str) -> Value {
        json!({
            "metadata": {"name": name, "labels": {REVISION: hash}},
            "spec": {"nodeName": node},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True",
                "lastTransitionTime": "1970-01-01T00:00:00Z"}]},
        })
    }

    #[track_caller]
    fn check(nodes: &[Value], pods: &[Value], create: &[&str], delete: &[&str]) {
        let own: Vec<&Value> = pods.iter().collect();
        let plan = plan(&set(), nodes, &own, 0);
        assert_eq!(plan.create, create);
        let names: Vec<&str> = plan
            .delete
            .iter()
            .filter_map(|pod| pod["metadata"]["name"].as_str())
            .collect();
        assert_eq!(names, delete);
    }

    #[test]
    fn every_node_that_takes_it_has_one() {
        let hash = revision(&set());
        let plain = [node("a", ""), node("b", "")];
        check(&plain, &[], &["a", "b"], &[]);
        check(&plain, &[pod("x", "a", &hash)], &["b"], &[]);
        let two = [pod("x", "a", &hash), pod("y", "a", &hash)];
        check(&plain[..1], &two, &[], &["y"]);
        check(&[node("a", "t:NoSchedule")], &[], &[], &[]);
        check(&[node("a", "t:NoSchedule")], &two[..1], &[], &[]);
        check(&[node("a", "t:NoExecute")], &two[..1], &[], &["x"]);
        let unreachable = node("a", "node.kubernetes.io/unreachable:NoExecute");
        check(&[unreachable], &two[..1], &[], &[]);
        let made = json!({"metadata": {"name": "z"}, "spec": spec_of(&set(), "a")});
        assert_eq!(node_of(&made), "a");
    }

    #[test]
    fn a_new_template_rolls_within_what_may_be_unavailable() {
        let hash = revision(&set());
        let nodes = [node("a", ""), node("b", "")];
        check(
            &nodes,
            &[pod("x", "a", "old"), pod("y", "b", "old")],
            &[],
            &["x"],
        );
        let mut starting = pod("x", "a", &hash);
        starting["status"]["conditions"] = json!([]);
        check(&nodes, &[starting, pod("y", "b", "old")], &[], &[]);
        check(
            &nodes,
            &[pod("x", "a", &hash), pod("y", "b", "old")],
            &[],
            &["y"],
        );
    }
}
