//! ReplicaSets: as many pods as asked for, and a status that counts them.

use serde_json::{Value, json};

use super::{Outcome, Tools, controlled_by, count, is_available, is_ready, owner_reference};
use crate::kubernetes::api_client::{ApiClientError, At};
use crate::kubernetes::registry::Propagation;
use crate::kubernetes::registry::resource::{Kind, Resource};

/// Pods that one round makes or ends for one ReplicaSet; the next goes on.
const BURST: usize = 500;

pub async fn reconcile(tools: &Tools) -> Result<Outcome, ApiClientError> {
    let resource = Resource::of_kind(Kind::ReplicaSet);
    let sets = tools.api.list(resource).await?;
    if sets.is_empty() {
        return Ok(None);
    }
    let pods = tools.api.list(Resource::of_kind(Kind::Pod)).await?;
    let mut wake = None;
    for set in &sets {
        let own: Vec<&Value> = pods
            .iter()
            .filter(|pod| controlled_by(pod, set) && !has_ended(pod))
            .collect();
        manage(tools, set, &own).await?;
        let (status, due) = status(set, &own, tools.now);
        wake = super::sooner(wake, due);
        if status != set["status"] {
            let mut next = set.clone();
            next["status"] = status;
            match tools.api.replace_status(At::of(resource, set), &next).await {
                Err(error) if error.is_stale() => {}
                outcome => drop(outcome?),
            }
        }
    }
    Ok(wake)
}

fn has_ended(pod: &Value) -> bool {
    ["Succeeded", "Failed"].contains(&pod["status"]["phase"].as_str().unwrap_or(""))
}

async fn manage(tools: &Tools, set: &Value, own: &[&Value]) -> Result<(), ApiClientError> {
    if !set["metadata"]["deletionTimestamp"].is_null() {
        return Ok(());
    }
    let resource = Resource::of_kind(Kind::Pod);
    let mut active: Vec<&Value> = own
        .iter()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
        .copied()
        .collect();
    let desired = usize::try_from(count(&set["spec"]["replicas"])).unwrap_or(0);
    let namespace = set["metadata"]["namespace"].as_str();
    for _ in active.len()..desired.min(active.len() + BURST) {
        let made = tools.api.create(resource, namespace, &pod_of(set)).await;
        let pod = match made {
            // The namespace is going.
            Err(error) if matches!(error.code(), Some(403 | 404)) => return Ok(()),
            outcome => outcome?,
        };
        let message = format!(
            "Created pod: {}",
            pod["metadata"]["name"].as_str().unwrap_or("")
        );
        tools
            .event(
                set,
                "Normal",
                "SuccessfulCreate",
                &message,
                "replicaset-controller",
            )
            .await?;
    }
    if active.len() > desired {
        // The least useful go first: without a node, not running, not ready, youngest.
        active.sort_by_key(|pod| {
            (
                pod["spec"]["nodeName"].is_string(),
                pod["status"]["phase"] == "Running",
                is_ready(pod),
                std::cmp::Reverse(pod["metadata"]["creationTimestamp"].to_string()),
                pod["metadata"]["name"].to_string(),
            )
        });
        for pod in &active[..(active.len() - desired).min(BURST)] {
            let at = At::of(resource, pod);
            tools
                .api
                .delete(at, &pod["metadata"]["uid"], None, Propagation::Background)
                .await?;
            let message = format!("Deleted pod: {}", at.name);
            tools
                .event(
                    set,
                    "Normal",
                    "SuccessfulDelete",
                    &message,
                    "replicaset-controller",
                )
                .await?;
        }
    }
    Ok(())
}

fn pod_of(set: &Value) -> Value {
    let template = &set["spec"]["template"];
    let mut metadata = json!({
        "generateName": format!("{}-", set["metadata"]["name"].as_str().unwrap_or("")),
        "labels": template["metadata"]["labels"],
        "ownerReferences": [owner_reference(set)],
    });
    if template["metadata"]["annotations"].is_object() {
        metadata["annotations"] = template["metadata"]["annotations"].clone();
    }
    json!({"metadata": metadata, "spec": template["spec"]})
}

/// The status, and when a pod that is ready becomes available.
fn status(set: &Value, own: &[&Value], now: i64) -> (Value, Outcome) {
    let active: Vec<&&Value> = own
        .iter()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
        .collect();
    let minimum = count(&set["spec"]["minReadySeconds"]);
    let ready = active.iter().filter(|pod| is_ready(pod)).count();
    let mut wake = None;
    let mut available = 0;
    for pod in &active {
        match is_available(pod, minimum, now) {
            Ok(true) => available += 1,
            Ok(false) => {}
            Err(due) => wake = super::sooner(wake, Some(due)),
        }
    }
    let mut status = json!({
        "replicas": active.len(), "fullyLabeledReplicas": active.len(),
        "readyReplicas": ready, "availableReplicas": available,
        "observedGeneration": set["metadata"]["generation"],
    });
    // As Go leaves out what is zero.
    if let Some(map) = status.as_object_mut() {
        map.retain(|key, value| key == "replicas" || *value != json!(0));
    }
    (status, wake)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_counts_what_is_ready_and_available() {
        let pod = |ready: &str, ending: bool| {
            let mut pod = json!({"metadata": {"name": "p"}, "status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": ready, "lastTransitionTime": "1970-01-01T00:00:10Z"}]}});
            if ending {
                pod["metadata"]["deletionTimestamp"] = json!("1970-01-01T00:01:00Z");
            }
            pod
        };
        let set = json!({"metadata": {"generation": 3}, "spec": {"minReadySeconds": 10}});
        let (ready, not, ending) = (pod("True", false), pod("False", false), pod("True", true));
        let pods = [&ready, &not, &ending];
        let (early, wake) = status(&set, &pods, 15_000);
        assert_eq!(
            early,
            json!({"replicas": 2, "fullyLabeledReplicas": 2, "readyReplicas": 1, "observedGeneration": 3})
        );
        assert_eq!(wake.map(|at| at.0), Some(20_000));
        let (late, wake) = status(&set, &pods, 20_000);
        assert_eq!(late["availableReplicas"], 1);
        assert_eq!(wake, None);
    }
}
