//! StatefulSets: pods with names, claims and an order of their own.
//!
//! ```text
//! replicas 3, OrderedReady:  web-0 ready ─▶ web-1 ready ─▶ web-2      (each with its claims, made before it)
//! scaled to 1:               web-2 gone ─▶ web-1 gone                 (claims stay, unless the set says otherwise)
//! new template:              web-2 replaced, ready ─▶ web-1 ─▶ web-0
//! ```

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    Outcome, Tools, controlled_by, count, is_available, is_ready, owner_reference, sooner,
};
use crate::kubernetes::api_client::{ApiClientError, At};
use crate::kubernetes::registry::Propagation;
use crate::kubernetes::registry::resource::{Kind, Resource};

const NAME: &str = "statefulset-controller";
pub const REVISION: &str = "controller-revision-hash";

pub async fn reconcile(tools: &Tools) -> Result<Outcome, ApiClientError> {
    let resource = Resource::of_kind(Kind::StatefulSet);
    let sets = tools.api.list(resource).await?;
    if sets.is_empty() {
        return Ok(None);
    }
    let pods = tools.api.list(Resource::of_kind(Kind::Pod)).await?;
    let mut wake = None;
    for set in &sets {
        let own = own(set, &pods);
        if set["metadata"]["deletionTimestamp"].is_null() {
            for act in decide(set, &own, tools.now) {
                match perform(tools, set, act).await {
                    // The namespace is going.
                    Err(error) if matches!(error.code(), Some(403 | 404)) => break,
                    // Somebody else's pod or claim by that name: it is tried again when that changes.
                    Err(error) if error.is_stale() => break,
                    outcome => outcome?,
                }
            }
        }
        let (status, due) = status(set, &own, tools.now);
        wake = sooner(wake, due);
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

/// The set's pods by ordinal.
fn own<'a>(set: &Value, pods: &'a [Value]) -> BTreeMap<i64, &'a Value> {
    let prefix = format!("{}-", set["metadata"]["name"].as_str().unwrap_or(""));
    let ordinal = |pod: &Value| -> Option<i64> {
        let name = pod["metadata"]["name"].as_str()?;
        name.strip_prefix(&prefix)?.parse().ok()
    };
    pods.iter()
        .filter(|pod| controlled_by(pod, set))
        .filter_map(|pod| Some((ordinal(pod)?, pod)))
        .collect()
}

/// Names the template: pods of another one are to be replaced.
pub fn revision(owner: &Value) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let digest = Sha256::digest(owner["spec"]["template"].to_string());
    digest
        .iter()
        .take(10)
        .map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]))
        .collect()
}

fn revision_name(set: &Value) -> String {
    let name = set["metadata"]["name"].as_str().unwrap_or("");
    format!("{name}-{}", revision(set))
}

#[derive(Clone, Debug, PartialEq)]
enum Act<'a> {
    Create(i64),
    Delete(&'a Value),
    /// Of a pod that the set has no longer.
    DeleteClaims(i64),
}

fn has_ended(pod: &Value) -> bool {
    ["Succeeded", "Failed"].contains(&pod["status"]["phase"].as_str().unwrap_or(""))
}

fn is_ending(pod: &Value) -> bool {
    !pod["metadata"]["deletionTimestamp"].is_null()
}

fn decide<'a>(set: &Value, own: &BTreeMap<i64, &'a Value>, now: i64) -> Vec<Act<'a>> {
    let spec = &set["spec"];
    let first = count(&spec["ordinals"]["start"]);
    let end = first.saturating_add(count(&spec["replicas"]));
    let ordered = spec["podManagementPolicy"] != "Parallel";
    let minimum = count(&spec["minReadySeconds"]);
    let serves = |pod: &Value| {
        !is_ending(pod) && is_ready(pod) && is_available(pod, minimum, now) == Ok(true)
    };
    let mut acts = Vec::new();
    for ordinal in first..end {
        match own.get(&ordinal) {
            Some(pod) if has_ended(pod) && !is_ending(pod) => acts.push(Act::Delete(pod)),
            Some(pod) if serves(pod) || !ordered => continue,
            // It is waited for.
            Some(_) => return acts,
            None => acts.push(Act::Create(ordinal)),
        }
        if ordered {
            return acts;
        }
    }
    let mut condemned = own
        .iter()
        .filter(|(ordinal, _)| !(first..end).contains(*ordinal));
    while let Some((_, pod)) = condemned.next_back() {
        if !is_ending(pod) {
            acts.push(Act::Delete(pod));
        }
        if ordered {
            return acts;
        }
    }
    if spec["persistentVolumeClaimRetentionPolicy"]["whenScaled"] == "Delete" {
        acts.push(Act::DeleteClaims(end));
    }
    if spec["updateStrategy"]["type"] == "OnDelete" {
        return acts;
    }
    let revision = revision_name(set);
    let partition = count(&spec["updateStrategy"]["rollingUpdate"]["partition"]);
    for (ordinal, pod) in own.iter().rev() {
        if !(first..end).contains(ordinal) || *ordinal < partition {
            continue;
        }
        if pod["metadata"]["labels"][REVISION] != revision {
            if !is_ending(pod) {
                acts.push(Act::Delete(pod));
            }
            return acts;
        }
        if !serves(pod) {
            return acts;
        }
    }
    acts
}

async fn perform(tools: &Tools, set: &Value, act: Act<'_>) -> Result<(), ApiClientError> {
    let set_name = set["metadata"]["name"].as_str().unwrap_or("");
    let namespace = set["metadata"]["namespace"].as_str();
    match act {
        Act::Create(ordinal) => {
            let pod = pod_of(set, ordinal);
            let name = pod["metadata"]["name"].as_str().unwrap_or("");
            let resource = Resource::of_kind(Kind::PersistentVolumeClaim);
            for claim in claims_of(set, ordinal) {
                let claim_name = claim["metadata"]["name"].as_str().unwrap_or("");
                match tools.api.create(resource, namespace, &claim).await {
                    Err(error) if error.code() == Some(409) => continue,
                    outcome => drop(outcome?),
                }
                let message = format!(
                    "create Claim {claim_name} Pod {name} in StatefulSet {set_name} success"
                );
                tools
                    .event(set, "Normal", "SuccessfulCreate", &message, NAME)
                    .await?;
            }
            let resource = Resource::of_kind(Kind::Pod);
            tools.api.create(resource, namespace, &pod).await?;
            let message = format!("create Pod {name} in StatefulSet {set_name} successful");
            tools
                .event(set, "Normal", "SuccessfulCreate", &message, NAME)
                .await
        }
        Act::Delete(pod) => {
            let at = At::of(Resource::of_kind(Kind::Pod), pod);
            let uid = &pod["metadata"]["uid"];
            tools
                .api
                .delete(at, uid, None, Propagation::Background)
                .await?;
            let message = format!(
                "delete Pod {} in StatefulSet {set_name} successful",
                at.name
            );
            tools
                .event(set, "Normal", "SuccessfulDelete", &message, NAME)
                .await
        }
        Act::DeleteClaims(end) => {
            let resource = Resource::of_kind(Kind::PersistentVolumeClaim);
            for claim in tools.api.list(resource).await? {
                if ordinal_of_claim(set, &claim).is_some_and(|ordinal| ordinal >= end)
                    && !is_ending(&claim)
                {
                    let at = At::of(resource, &claim);
                    let uid = &claim["metadata"]["uid"];
                    tools
                        .api
                        .delete(at, uid, None, Propagation::Background)
                        .await?;
                }
            }
            Ok(())
        }
    }
}

fn templates(set: &Value) -> impl Iterator<Item = &Value> {
    let listed = set["spec"]["volumeClaimTemplates"].as_array();
    listed.into_iter().flatten()
}

fn claim_name(set: &Value, template: &Value, ordinal: i64) -> String {
    let name = |object: &Value| object["metadata"]["name"].as_str().unwrap_or("").to_owned();
    format!("{}-{}-{ordinal}", name(template), name(set))
}

/// Of which of the set's pods the claim is.
fn ordinal_of_claim(set: &Value, claim: &Value) -> Option<i64> {
    if claim["metadata"]["namespace"] != set["metadata"]["namespace"] {
        return None;
    }
    let name = claim["metadata"]["name"].as_str()?;
    let ordinal: i64 = name.rsplit('-').next()?.parse().ok()?;
    let named = |template: &Value| claim_name(set, template, ordinal) == name;
    templates(set).any(named).then_some(ordinal)
}

fn claims_of(set: &Value, ordinal: i64) -> Vec<Value> {
    let claim = |template: &Value| {
        let mut metadata = json!({"name": claim_name(set, template, ordinal)});
        let mut labels = template["metadata"]["labels"].clone();
        let selected = set["spec"]["selector"]["matchLabels"].as_object();
        for (key, value) in selected.into_iter().flatten() {
            labels[key] = value.clone();
        }
        metadata["labels"] = labels;
        metadata["annotations"] = template["metadata"]["annotations"].clone();
        if set["spec"]["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Delete" {
            let mut owner = owner_reference(set);
            owner["blockOwnerDeletion"] = json!(false);
            metadata["ownerReferences"] = json!([owner]);
        }
        json!({"metadata": metadata, "spec": template["spec"]})
    };
    templates(set).map(claim).collect()
}

fn pod_of(set: &Value, ordinal: i64) -> Value {
    let template = &set["spec"]["template"];
    let set_name = set["metadata"]["name"].as_str().unwrap_or("");
    let name = format!("{set_name}-{ordinal}");
    let mut labels = template["metadata"]["labels"].clone();
    labels[REVISION] = json!(revision_name(set));
    labels["statefulset.kubernetes.io/pod-name"] = json!(name);
    labels["apps.kubernetes.io/pod-index"] = json!(ordinal.to_string());
    let mut spec = template["spec"].clone();
    spec["hostname"] = json!(name);
    if !set["spec"]["serviceName"].as_str().unwrap_or("").is_empty() {
        spec["subdomain"] = set["spec"]["serviceName"].clone();
    }
    // A claim's volume takes the place of one of the same name.
    let mut volumes = spec["volumes"].as_array().cloned().unwrap_or_default();
    for template in templates(set) {
        let volume = &template["metadata"]["name"];
        volumes.retain(|other| other["name"] != *volume);
        let claim = claim_name(set, template, ordinal);
        volumes.push(json!({"name": volume, "persistentVolumeClaim": {"claimName": claim}}));
    }
    if !volumes.is_empty() {
        spec["volumes"] = json!(volumes);
    }
    json!({
        "metadata": {
            "name": name, "labels": labels, "annotations": template["metadata"]["annotations"],
            "ownerReferences": [owner_reference(set)],
        },
        "spec": spec,
    })
}

/// The status, and when a pod that is ready becomes available.
fn status(set: &Value, own: &BTreeMap<i64, &Value>, now: i64) -> (Value, Outcome) {
    let minimum = count(&set["spec"]["minReadySeconds"]);
    let revision = revision_name(set);
    let active: Vec<&&Value> = own.values().filter(|pod| !is_ending(pod)).collect();
    let updated = active
        .iter()
        .filter(|pod| pod["metadata"]["labels"][REVISION] == revision)
        .count();
    let ready = active.iter().filter(|pod| is_ready(pod)).count();
    let (mut available, mut wake) = (0, None);
    for pod in &active {
        match is_available(pod, minimum, now) {
            Ok(true) => available += 1,
            Ok(false) => {}
            Err(due) => wake = sooner(wake, Some(due)),
        }
    }
    let known = set["status"]["currentRevision"].as_str();
    let settled = updated == active.len() && ready == active.len();
    let current = match known.filter(|known| !known.is_empty() && !settled) {
        Some(known) => known.to_owned(),
        None => revision.clone(),
    };
    let of_current = active
        .iter()
        .filter(|pod| pod["metadata"]["labels"][REVISION] == current)
        .count();
    let mut status = json!({
        "observedGeneration": set["metadata"]["generation"], "replicas": own.len(),
        "readyReplicas": ready, "currentReplicas": of_current, "updatedReplicas": updated,
        "availableReplicas": available, "currentRevision": current, "updateRevision": revision,
        "collisionCount": 0,
    });
    // As Go leaves out what is zero.
    if let Some(map) = status.as_object_mut() {
        let kept = ["replicas", "availableReplicas", "collisionCount"];
        map.retain(|key, value| kept.contains(&key.as_str()) || *value != json!(0));
    }
    (status, wake)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(replicas: i64) -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": {"namespace": "default", "name": "web", "uid": "1"},
            "spec": {"replicas": replicas, "serviceName": "web", "template": {"spec": {}},
                "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}]},
        })
    }

    fn pod(ordinal: i64, ready: bool, revision: &str) -> Value {
        let ready = if ready { "True" } else { "False" };
        json!({
            "metadata": {"name": format!("web-{ordinal}"), "labels": {REVISION: revision},
                "ownerReferences": [{"controller": true, "uid": "1"}]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready,
                "lastTransitionTime": "1970-01-01T00:00:00Z"}]},
        })
    }

    #[track_caller]
    fn check(set: &Value, pods: &[Value], expect: &[&str]) {
        let own = own(set, pods);
        let acts = decide(set, &own, 0);
        let told: Vec<String> = acts
            .iter()
            .map(|act| match act {
                Act::Create(ordinal) => format!("+{ordinal}"),
                Act::Delete(pod) => format!("-{}", pod["metadata"]["name"].as_str().unwrap_or("")),
                Act::DeleteClaims(end) => format!("claims from {end}"),
            })
            .collect();
        assert_eq!(told, expect);
    }

    #[test]
    fn pods_come_and_go_one_after_the_other() {
        let three = set(3);
        let revision = revision_name(&three);
        let pod = |ordinal: i64, ready: bool| pod(ordinal, ready, &revision);
        check(&three, &[], &["+0"]);
        check(&three, &[pod(0, false)], &[]);
        check(&three, &[pod(0, true)], &["+1"]);
        check(&three, &[pod(0, true), pod(2, true)], &["+1"]);
        let all = [pod(0, true), pod(1, true), pod(2, true)];
        check(&three, &all, &[]);
        check(&set(1), &all, &["-web-2"]);
        let mut ending = pod(2, true);
        ending["metadata"]["deletionTimestamp"] = json!("now");
        check(&set(1), &[pod(0, true), pod(1, true), ending], &[]);
        let mut failed = pod(0, false);
        failed["status"]["phase"] = json!("Failed");
        check(&three, &[failed], &["-web-0"]);
        let mut parallel = set(3);
        parallel["spec"]["podManagementPolicy"] = json!("Parallel");
        check(&parallel, &[], &["+0", "+1", "+2"]);
        let mut shrinking = set(1);
        shrinking["spec"]["persistentVolumeClaimRetentionPolicy"] = json!({"whenScaled": "Delete"});
        check(&shrinking, &[pod(0, true)], &["claims from 1"]);
        let mut later = set(1);
        later["spec"]["ordinals"]["start"] = json!(5);
        check(&later, &[], &["+5"]);
    }

    #[test]
    fn a_new_template_rolls_from_the_last_to_the_first() {
        let mut two = set(2);
        let new = revision_name(&two);
        let old = "web-old";
        check(&two, &[pod(0, true, old), pod(1, true, old)], &["-web-1"]);
        check(&two, &[pod(0, true, old), pod(1, false, &new)], &[]);
        check(&two, &[pod(0, true, old), pod(1, true, &new)], &["-web-0"]);
        two["spec"]["updateStrategy"]["rollingUpdate"]["partition"] = json!(1);
        check(&two, &[pod(0, true, old), pod(1, true, &new)], &[]);
        two["spec"]["updateStrategy"]["type"] = json!("OnDelete");
        check(&two, &[pod(0, true, old), pod(1, true, old)], &[]);
    }

    #[test]
    fn claims_are_named_after_their_pods() {
        let set = set(1);
        let claim = &claims_of(&set, 3)[0];
        assert_eq!(claim["metadata"]["name"], "data-web-3");
        let mut found = claim.clone();
        found["metadata"]["namespace"] = json!("default");
        assert_eq!(ordinal_of_claim(&set, &found), Some(3));
        found["metadata"]["name"] = json!("data-api-3");
        assert_eq!(ordinal_of_claim(&set, &found), None);
        let pod = pod_of(&set, 3);
        let volume = &pod["spec"]["volumes"][0]["persistentVolumeClaim"];
        assert_eq!(volume["claimName"], "data-web-3");
        assert_eq!(pod["spec"]["subdomain"], "web");
    }
}
