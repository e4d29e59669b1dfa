//! Deployments: a ReplicaSet for each template, scaled up and down so that enough pods stay available.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Outcome, Tools, controlled_by, count, owner_reference, parse, scaled, sooner};
use crate::clock::Timestamp;
use crate::kubernetes::api_client::{ApiClientError, At};
use crate::kubernetes::registry::Propagation;
use crate::kubernetes::registry::resource::{Kind, Resource};

const HASH_LABEL: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";
const COMPONENT: &str = "deployment-controller";

pub async fn reconcile(tools: &Tools) -> Result<Outcome, ApiClientError> {
    let deployments = tools.api.list(Resource::of_kind(Kind::Deployment)).await?;
    if deployments.is_empty() {
        return Ok(None);
    }
    let sets = tools.api.list(Resource::of_kind(Kind::ReplicaSet)).await?;
    let mut wake = None;
    for deployment in &deployments {
        if !deployment["metadata"]["deletionTimestamp"].is_null() {
            continue;
        }
        let own: Vec<&Value> = sets
            .iter()
            .filter(|set| controlled_by(set, deployment))
            .collect();
        match roll(tools, deployment, &own).await {
            // Somebody else changed it: that change brings it back here.
            Err(error) if error.is_stale() => {}
            outcome => wake = sooner(wake, outcome?),
        }
    }
    Ok(wake)
}

async fn roll(
    tools: &Tools,
    deployment: &Value,
    own: &[&Value],
) -> Result<Outcome, ApiClientError> {
    let resource = Resource::of_kind(Kind::ReplicaSet);
    let namespace = deployment["metadata"]["namespace"].as_str();
    let hash = template_hash(&deployment["spec"]["template"]);
    let latest = own.iter().map(|set| revision(set)).max().unwrap_or(0);
    let mut sets: Vec<Value> = own.iter().map(|set| (*set).clone()).collect();
    let paused = deployment["spec"]["paused"] == true;
    let newest = sets
        .iter()
        .position(|set| template_of(set) == deployment["spec"]["template"]);
    let newest = match newest {
        Some(index) => {
            let before = revision(&sets[index]);
            // A rollback: the old template is the newest again.
            if before < latest {
                sets[index]["metadata"]["annotations"][REVISION] = json!((latest + 1).to_string());
                let at = At::of(resource, &sets[index]);
                sets[index] = tools.api.replace(at, &sets[index]).await?;
            }
            Some(index)
        }
        None if paused => None,
        None => {
            let mut set = replica_set(deployment, &hash, latest + 1);
            set["spec"]["replicas"] = json!(0);
            let made = tools.api.create(resource, namespace, &set).await?;
            sets.push(made);
            Some(sets.len() - 1)
        }
    };
    if let Some(index) = newest {
        let wanted = sets[index]["metadata"]["annotations"][REVISION].clone();
        if deployment["metadata"]["annotations"][REVISION] != wanted {
            let mut next = deployment.clone();
            next["metadata"]["annotations"][REVISION] = wanted;
            let at = At::of(Resource::of_kind(Kind::Deployment), deployment);
            tools.api.replace(at, &next).await?;
            // The write brings the deployment back here.
            return Ok(None);
        }
    }
    let replicas: Vec<Replicas> = sets
        .iter()
        .enumerate()
        .map(|(index, set)| Replicas {
            newest: Some(index) == newest,
            desired: count(&set["spec"]["replicas"]),
            present: count(&set["status"]["replicas"]),
            available: count(&set["status"]["availableReplicas"]),
        })
        .collect();
    let plan = plan(&Strategy::of(deployment), paused, &replicas);
    for (index, desired) in plan.into_iter().enumerate() {
        let before = replicas[index].desired;
        if before == desired {
            continue;
        }
        sets[index]["spec"]["replicas"] = json!(desired);
        let at = At::of(resource, &sets[index]);
        let changed = tools.api.replace(at, &sets[index]).await?;
        let direction = if desired > before { "up" } else { "down" };
        let name = changed["metadata"]["name"].as_str().unwrap_or("");
        let message = format!("Scaled {direction} replica set {name} from {before} to {desired}");
        tools
            .event(
                deployment,
                "Normal",
                "ScalingReplicaSet",
                &message,
                COMPONENT,
            )
            .await?;
        sets[index] = changed;
    }
    forget_history(tools, deployment, &sets, newest).await?;
    let (status, wake) = status(deployment, &sets, newest, tools);
    if status != deployment["status"] {
        let mut next = deployment.clone();
        next["status"] = status;
        let at = At::of(Resource::of_kind(Kind::Deployment), deployment);
        tools.api.replace_status(at, &next).await?;
    }
    Ok(wake)
}

/// Names the ReplicaSet of a template: ten characters that no word is made of.
fn template_hash(template: &Value) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let digest = Sha256::digest(template.to_string().as_bytes());
    digest
        .iter()
        .take(10)
        .map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]))
        .collect()
}

fn revision(set: &Value) -> i64 {
    let text = set["metadata"]["annotations"][REVISION].as_str();
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The template that a ReplicaSet was made of.
fn template_of(set: &Value) -> Value {
    let mut template = set["spec"]["template"].clone();
    if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
        labels.remove(HASH_LABEL);
    }
    template
}

fn replica_set(deployment: &Value, hash: &str, revision: i64) -> Value {
    let (metadata, spec) = (&deployment["metadata"], &deployment["spec"]);
    let mut template = spec["template"].clone();
    template["metadata"]["labels"][HASH_LABEL] = json!(hash);
    let mut selector = spec["selector"].clone();
    selector["matchLabels"][HASH_LABEL] = json!(hash);
    json!({
        "metadata": {
            "name": format!("{}-{hash}", metadata["name"].as_str().unwrap_or("")),
            "labels": template["metadata"]["labels"],
            "annotations": {REVISION: revision.to_string()},
            "ownerReferences": [owner_reference(deployment)],
        },
        "spec": {
            "selector": selector, "template": template,
            "minReadySeconds": count(&spec["minReadySeconds"]),
        },
    })
}

#[derive(Clone, Copy, Debug)]
struct Replicas {
    newest: bool,
    desired: i64,
    present: i64,
    available: i64,
}

#[derive(Debug)]
struct Strategy {
    replicas: i64,
    recreate: bool,
    surge: i64,
    unavailable: i64,
}

impl Strategy {
    fn of(deployment: &Value) -> Strategy {
        let spec = &deployment["spec"];
        let replicas = count(&spec["replicas"]);
        let rolling = &spec["strategy"]["rollingUpdate"];
        let surge = scaled(&rolling["maxSurge"], replicas, true);
        let mut unavailable = scaled(&rolling["maxUnavailable"], replicas, false);
        if surge == 0 && unavailable == 0 {
            // Else it would stand still: percentages of few are none.
            unavailable = 1;
        }
        Strategy {
            replicas,
            recreate: spec["strategy"]["type"] == "Recreate",
            surge,
            unavailable: unavailable.min(replicas),
        }
    }
}

/// How many replicas each ReplicaSet is to have next, oldest first as given.
fn plan(strategy: &Strategy, paused: bool, sets: &[Replicas]) -> Vec<i64> {
    let mut next: Vec<i64> = sets.iter().map(|set| set.desired).collect();
    let newest = sets.iter().position(|set| set.newest);
    let others = |index: &usize| Some(*index) != newest;
    // Nothing is rolled while paused, but what is there is scaled: the newest takes the difference.
    let Some(newest_index) = newest else {
        if let Some(last) = (0..sets.len()).rev().find(|index| sets[*index].desired > 0) {
            let rest: i64 = next.iter().sum::<i64>() - next[last];
            next[last] = (strategy.replicas - rest).max(0);
        }
        return next;
    };
    let new = sets[newest_index];
    if strategy.recreate {
        let gone = (0..sets.len())
            .filter(others)
            .all(|index| sets[index].present == 0);
        for index in (0..sets.len()).filter(others) {
            next[index] = if paused { next[index] } else { 0 };
        }
        if gone {
            next[newest_index] = strategy.replicas;
        }
        return next;
    }
    let total: i64 = next.iter().sum();
    if new.desired > strategy.replicas {
        next[newest_index] = strategy.replicas;
    } else if new.desired < strategy.replicas {
        let room = (strategy.replicas + strategy.surge - total).max(0);
        next[newest_index] += room.min(strategy.replicas - new.desired);
    }
    if paused {
        return next;
    }
    // As many of the old may go as leave enough available; what is not available goes first.
    let total: i64 = next.iter().sum();
    let minimum = strategy.replicas - strategy.unavailable;
    let new_unavailable = next[newest_index] - new.available.min(next[newest_index]);
    let mut budget = (total - minimum - new_unavailable).max(0);
    for index in (0..sets.len()).filter(others) {
        let broken = (next[index] - sets[index].available).max(0).min(budget);
        next[index] -= broken;
        budget -= broken;
    }
    let available: i64 = (0..sets.len())
        .map(|index| sets[index].available.min(next[index]))
        .sum();
    let mut spare = (available - minimum).max(0);
    for index in (0..sets.len()).filter(others) {
        let gone = next[index].min(spare);
        next[index] -= gone;
        spare -= gone;
    }
    next
}

/// Deletes the oldest ReplicaSets without pods beyond the history's limit.
async fn forget_history(
    tools: &Tools,
    deployment: &Value,
    sets: &[Value],
    newest: Option<usize>,
) -> Result<(), ApiClientError> {
    let limit = deployment["spec"]["revisionHistoryLimit"]
        .as_i64()
        .unwrap_or(10);
    let mut old: Vec<&Value> = sets
        .iter()
        .enumerate()
        .filter(|(index, set)| {
            Some(*index) != newest
                && count(&set["spec"]["replicas"]) == 0
                && count(&set["status"]["replicas"]) == 0
                && set["metadata"]["deletionTimestamp"].is_null()
        })
        .map(|(_, set)| set)
        .collect();
    old.sort_by_key(|set| revision(set));
    let surplus = old
        .len()
        .saturating_sub(usize::try_from(limit).unwrap_or(0));
    for set in &old[..surplus] {
        let at = At::of(Resource::of_kind(Kind::ReplicaSet), set);
        tools
            .api
            .delete(at, &set["metadata"]["uid"], None, Propagation::Background)
            .await?;
    }
    Ok(())
}

fn status(
    deployment: &Value,
    sets: &[Value],
    newest: Option<usize>,
    tools: &Tools,
) -> (Value, Outcome) {
    let sum = |field: &str| -> i64 { sets.iter().map(|set| count(&set["status"][field])).sum() };
    let desired = count(&deployment["spec"]["replicas"]);
    let newest = newest.map(|index| &sets[index]);
    let updated = newest.map_or(0, |set| count(&set["status"]["replicas"]));
    let (replicas, ready, available) = (
        sum("replicas"),
        sum("readyReplicas"),
        sum("availableReplicas"),
    );
    let before = &deployment["status"];
    let condition = |kind: &str| {
        let conditions = before["conditions"].as_array();
        conditions
            .into_iter()
            .flatten()
            .find(|it| it["type"] == kind)
            .cloned()
    };
    let now = tools.time();
    let made = |kind: &str, status: &str, reason: &str, message: String, updated: bool| {
        let known = condition(kind).unwrap_or_default();
        let same = known["status"] == status;
        if same && known["reason"] == reason && known["message"] == message && !updated {
            return known;
        }
        let since = if same {
            known["lastTransitionTime"].clone()
        } else {
            json!(now)
        };
        json!({
            "type": kind, "status": status, "lastUpdateTime": now, "lastTransitionTime": since,
            "reason": reason, "message": message,
        })
    };
    let minimum = desired - Strategy::of(deployment).unavailable;
    let enough = available >= minimum;
    let available_condition = if enough {
        made(
            "Available",
            "True",
            "MinimumReplicasAvailable",
            String::from("Deployment has minimum availability."),
            false,
        )
    } else {
        made(
            "Available",
            "False",
            "MinimumReplicasUnavailable",
            String::from("Deployment does not have minimum availability."),
            false,
        )
    };
    let mut wake = None;
    let progressing = match newest {
        None => condition("Progressing"),
        Some(set) => {
            let name = set["metadata"]["name"].as_str().unwrap_or("");
            let complete = updated == desired && replicas == desired && available == desired;
            let moved = ["updatedReplicas", "readyReplicas", "availableReplicas"]
                .iter()
                .zip([updated, ready, available])
                .any(|(field, is)| is > count(&before[*field]));
            let known = condition("Progressing");
            let since = known
                .as_ref()
                .and_then(|known| parse(&known["lastUpdateTime"]));
            let limit = count(&deployment["spec"]["progressDeadlineSeconds"]).saturating_mul(1000);
            let due = since.unwrap_or(tools.now).saturating_add(limit);
            Some(if complete {
                made(
                    "Progressing",
                    "True",
                    "NewReplicaSetAvailable",
                    format!("ReplicaSet \"{name}\" has successfully progressed."),
                    false,
                )
            } else if known.is_some() && !moved && due <= tools.now {
                made(
                    "Progressing",
                    "False",
                    "ProgressDeadlineExceeded",
                    format!("ReplicaSet \"{name}\" has timed out progressing."),
                    false,
                )
            } else {
                wake = Some(Timestamp(if moved {
                    tools.now.saturating_add(limit)
                } else {
                    due
                }));
                made(
                    "Progressing",
                    "True",
                    "ReplicaSetUpdated",
                    format!("ReplicaSet \"{name}\" is progressing."),
                    moved,
                )
            })
        }
    };
    let conditions: Vec<Value> = [Some(available_condition), progressing]
        .into_iter()
        .flatten()
        .collect();
    let mut status = json!({
        "observedGeneration": deployment["metadata"]["generation"],
        "replicas": replicas, "updatedReplicas": updated, "readyReplicas": ready,
        "availableReplicas": available,
        "unavailableReplicas": (desired.max(replicas) - available).max(0),
        "conditions": conditions,
    });
    // As Go leaves out what is zero.
    if let Some(map) = status.as_object_mut() {
        map.retain(|_, value| *value != json!(0));
    }
    (status, wake)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strategy(replicas: i64, surge: &str, unavailable: &str) -> Strategy {
        Strategy::of(&json!({"spec": {"replicas": replicas, "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}}))
    }

    #[test]
    fn steps_keep_enough_available_and_never_too_many() {
        // Each set: desired, present, available; the last one is the newest.
        let check = |strategy: &Strategy, sets: &[[i64; 3]], expect: &[i64]| {
            let last = sets.len() - 1;
            let sets: Vec<Replicas> = sets
                .iter()
                .enumerate()
                .map(|(index, [desired, present, available])| Replicas {
                    newest: index == last,
                    desired: *desired,
                    present: *present,
                    available: *available,
                })
                .collect();
            assert_eq!(plan(strategy, false, &sets), expect, "{sets:?}");
        };
        let rolling = strategy(4, "25%", "25%");
        check(&rolling, &[[0, 0, 0]], &[4]);
        check(&rolling, &[[6, 6, 6]], &[4]);
        check(&rolling, &[[4, 4, 4], [0, 0, 0]], &[3, 1]);
        check(&rolling, &[[3, 3, 3], [1, 1, 0]], &[3, 2]);
        check(&rolling, &[[3, 3, 3], [2, 2, 2]], &[1, 2]);
        check(&rolling, &[[0, 0, 0], [4, 4, 4]], &[0, 4]);
        // What never became available is replaced first.
        check(&rolling, &[[4, 4, 0], [1, 1, 0]], &[3, 1]);
        // One at least moves.
        check(&strategy(1, "0%", "0%"), &[[1, 1, 1], [0, 0, 0]], &[0, 0]);
        let recreate = Strategy {
            recreate: true,
            ..strategy(2, "0", "0")
        };
        check(&recreate, &[[2, 2, 2], [0, 0, 0]], &[0, 0]);
        check(&recreate, &[[0, 1, 0], [0, 0, 0]], &[0, 0]);
        check(&recreate, &[[0, 0, 0], [0, 0, 0]], &[0, 2]);
    }
}
