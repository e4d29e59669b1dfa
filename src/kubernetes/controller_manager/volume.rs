//! Claims and volumes find each other, and are protected while they are used: the binder of Kubernetes'
//! controller manager.
//!
//! ```text
//! claim, Pending ── a volume fits ─▶ volume names claim ─▶ claim names volume ─▶ both Bound
//!               └─ its class has a provisioner ─▶ asked of it by an annotation; its volume names the claim
//! claim goes ─▶ volume Released: given back or kept, as its reclaim policy says
//! ```
//!
//! Each arrow is a write of its own, decided from what the objects say: so a crash between two of them
//! is made good by the next round.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Outcome, Tools};
use crate::kubernetes::api_client::{ApiClientError, At};
use crate::kubernetes::registry::resource::{Kind, Resource};
use crate::kubernetes::scheduler::quantity_millis;

/// Holds a claim while a pod uses it.
pub const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
/// Holds a volume while a claim has it.
pub const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";
/// Asks the provisioner of this name for a volume.
pub const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
const BETA_PROVISIONER: &str = "volume.beta.kubernetes.io/storage-provisioner";
/// The node that a claim's first pod is to run on, where that is waited for.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
const NAME: &str = "persistentvolume-controller";

pub async fn reconcile(tools: &Tools) -> Result<Outcome, ApiClientError> {
    let claims = tools
        .api
        .list(Resource::of_kind(Kind::PersistentVolumeClaim))
        .await?;
    let mut volumes = tools
        .api
        .list(Resource::of_kind(Kind::PersistentVolume))
        .await?;
    if claims.is_empty() && volumes.is_empty() {
        return Ok(None);
    }
    let classes = tools
        .api
        .list(Resource::of_kind(Kind::StorageClass))
        .await?;
    let in_use = if claims.iter().any(is_ending) {
        claims_in_use(&tools.api.list(Resource::of_kind(Kind::Pod)).await?)
    } else {
        BTreeSet::new()
    };
    for claim in &claims {
        let outcome = if is_ending(claim) {
            let held = in_use.contains(&key(claim));
            release(
                tools,
                Kind::PersistentVolumeClaim,
                claim,
                CLAIM_PROTECTION,
                held,
            )
            .await
        } else {
            claim_round(tools, claim, &mut volumes, &classes).await
        };
        unless_stale(outcome)?;
    }
    for volume in &volumes {
        unless_stale(volume_round(tools, volume, &claims).await)?;
    }
    Ok(None)
}

/// What has changed meanwhile comes back here by its change.
fn unless_stale(outcome: Result<(), ApiClientError>) -> Result<(), ApiClientError> {
    match outcome {
        Err(error) if error.is_stale() => Ok(()),
        outcome => outcome,
    }
}

fn is_ending(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}

/// Namespace and name.
fn key(object: &Value) -> (String, String) {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or("").to_owned();
    (text("namespace"), text("name"))
}

/// Claims of pods that have not ended.
fn claims_in_use(pods: &[Value]) -> BTreeSet<(String, String)> {
    let mut used = BTreeSet::new();
    for pod in pods {
        if ["Succeeded", "Failed"].contains(&pod["status"]["phase"].as_str().unwrap_or("")) {
            continue;
        }
        for name in claims_of(pod) {
            used.insert((key(pod).0, name.to_owned()));
        }
    }
    used
}

/// Names of the claims that a pod mounts.
pub fn claims_of(pod: &Value) -> impl Iterator<Item = &str> {
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    volumes.filter_map(|volume| volume["persistentVolumeClaim"]["claimName"].as_str())
}

/// Takes the finalizer away once nobody uses what it protects.
async fn release(
    tools: &Tools,
    kind: Kind,
    object: &Value,
    finalizer: &str,
    in_use: bool,
) -> Result<(), ApiClientError> {
    let mut held = object["metadata"]["finalizers"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let before = held.len();
    held.retain(|held| held != finalizer);
    if in_use || held.len() == before {
        return Ok(());
    }
    let mut next = object.clone();
    next["metadata"]["finalizers"] = json!(held);
    let at = At::of(Resource::of_kind(kind), object);
    tools.api.replace(at, &next).await.map(drop)
}

async fn claim_round(
    tools: &Tools,
    claim: &Value,
    volumes: &mut [Value],
    classes: &[Value],
) -> Result<(), ApiClientError> {
    let name = claim["spec"]["volumeName"].as_str().unwrap_or("");
    let found = if name.is_empty() {
        choose(claim, volumes, classes)
    } else {
        let named = |volume: &Value| volume["metadata"]["name"] == name;
        match volumes.iter().position(named) {
            None if claim["metadata"]["annotations"][BIND_COMPLETED].is_null() => None,
            // Whatever was on it is gone with it.
            None => return lose(tools, claim).await,
            Some(index) if is_free_for(&volumes[index], claim) => Some(index),
            Some(_) => {
                let message = format!("volume {name:?} already bound to a different claim.");
                let reason = "FailedBinding";
                return tools.event(claim, "Warning", reason, &message, NAME).await;
            }
        }
    };
    match found {
        Some(index) => bind(tools, claim, &mut volumes[index]).await,
        None if name.is_empty() => ask(tools, claim, classes).await,
        None => Ok(()),
    }
}

/// Whether the volume is the claim's, or nobody's.
fn is_free_for(volume: &Value, claim: &Value) -> bool {
    let reference = &volume["spec"]["claimRef"];
    if reference.is_null() {
        return !is_ending(volume);
    }
    let (namespace, name) = key(claim);
    let uid = &reference["uid"];
    reference["namespace"] == json!(namespace)
        && reference["name"] == json!(name)
        && (uid.as_str().unwrap_or("").is_empty() || *uid == claim["metadata"]["uid"])
}

/// The volume that waits for the claim, or the smallest that fits it.
fn choose(claim: &Value, volumes: &[Value], classes: &[Value]) -> Option<usize> {
    let reserved =
        |volume: &Value| volume["spec"]["claimRef"].is_object() && is_free_for(volume, claim);
    if let Some(index) = volumes.iter().position(reserved) {
        return Some(index);
    }
    let spec = &claim["spec"];
    if waits_for_consumer(claim, classes) {
        return None;
    }
    let asked = quantity_millis(&spec["resources"]["requests"]["storage"]);
    let size = |volume: &Value| quantity_millis(&volume["spec"]["capacity"]["storage"]);
    let class = |object: &Value| object["storageClassName"].as_str().unwrap_or("").to_owned();
    let fits = |volume: &Value| {
        let has = &volume["spec"];
        has["claimRef"].is_null()
            && !is_ending(volume)
            && size(volume) >= asked
            && class(has) == class(spec)
            && has["volumeMode"] == spec["volumeMode"]
            && modes(spec).all(|mode| modes(has).any(|other| other == mode))
    };
    let fitting = volumes.iter().enumerate().filter(|(_, it)| fits(it));
    fitting
        .min_by_key(|(_, volume)| size(volume))
        .map(|(index, _)| index)
}

fn modes(spec: &Value) -> impl Iterator<Item = &Value> {
    spec["accessModes"].as_array().into_iter().flatten()
}

fn class_of<'a>(claim: &Value, classes: &'a [Value]) -> Option<&'a Value> {
    let name = &claim["spec"]["storageClassName"];
    classes
        .iter()
        .find(|class| class["metadata"]["name"] == *name)
}

/// Whether the claim is bound only once a pod of its needs it, and none has been given a node yet.
pub fn waits_for_consumer(claim: &Value, classes: &[Value]) -> bool {
    class_of(claim, classes)
        .is_some_and(|class| class["volumeBindingMode"] == "WaitForFirstConsumer")
        && claim["metadata"]["annotations"][SELECTED_NODE].is_null()
}

async fn bind(tools: &Tools, claim: &Value, volume: &mut Value) -> Result<(), ApiClientError> {
    let at = At::of(Resource::of_kind(Kind::PersistentVolume), volume);
    let reference = &volume["spec"]["claimRef"];
    if reference["uid"] != claim["metadata"]["uid"] {
        let mut next = volume.clone();
        let metadata = &claim["metadata"];
        next["spec"]["claimRef"] = json!({
            "kind": "PersistentVolumeClaim", "apiVersion": "v1",
            "namespace": metadata["namespace"], "name": metadata["name"],
            "uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"],
        });
        if reference.is_null() {
            next["metadata"]["annotations"][BOUND_BY_CONTROLLER] = json!("yes");
        }
        *volume = tools.api.replace(at, &next).await?;
    }
    let resource = Resource::of_kind(Kind::PersistentVolumeClaim);
    let at = At::of(resource, claim);
    let mut bound = claim.clone();
    if claim["metadata"]["annotations"][BIND_COMPLETED].is_null() {
        if claim["spec"]["volumeName"]
            .as_str()
            .unwrap_or("")
            .is_empty()
        {
            bound["metadata"]["annotations"][BOUND_BY_CONTROLLER] = json!("yes");
        }
        bound["metadata"]["annotations"][BIND_COMPLETED] = json!("yes");
        bound["spec"]["volumeName"] = volume["metadata"]["name"].clone();
        bound = tools.api.replace(at, &bound).await?;
    }
    if bound["status"]["phase"] != "Bound" {
        bound["status"]["phase"] = json!("Bound");
        bound["status"]["accessModes"] = volume["spec"]["accessModes"].clone();
        bound["status"]["capacity"] = volume["spec"]["capacity"].clone();
        tools.api.replace_status(at, &bound).await?;
    }
    Ok(())
}

async fn lose(tools: &Tools, claim: &Value) -> Result<(), ApiClientError> {
    if claim["status"]["phase"] == "Lost" {
        return Ok(());
    }
    let at = At::of(Resource::of_kind(Kind::PersistentVolumeClaim), claim);
    let mut lost = claim.clone();
    lost["status"] = json!({"phase": "Lost"});
    tools.api.replace_status(at, &lost).await?;
    let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
    tools
        .event(claim, "Warning", "ClaimLost", message, NAME)
        .await
}

/// Asks the claim's class for a volume, or says why nobody can be asked.
async fn ask(tools: &Tools, claim: &Value, classes: &[Value]) -> Result<(), ApiClientError> {
    let told = |kind: &'static str, reason: &'static str, message: String| async move {
        // Once: the same said again at every round would tell nothing.
        tools.event_once(claim, kind, reason, &message, NAME).await
    };
    let name = claim["spec"]["storageClassName"].as_str().unwrap_or("");
    if name.is_empty() {
        let message = "no persistent volumes available for this claim and no storage class is set";
        return told("Normal", "FailedBinding", message.to_owned()).await;
    }
    let Some(class) = class_of(claim, classes) else {
        let message = format!("storageclass.storage.k8s.io {name:?} not found");
        return told("Warning", "ProvisioningFailed", message).await;
    };
    if waits_for_consumer(claim, classes) {
        let message = "waiting for first consumer to be created before binding";
        return told("Normal", "WaitForFirstConsumer", message.to_owned()).await;
    }
    let provisioner = class["provisioner"].as_str().unwrap_or("");
    if provisioner == "kubernetes.io/no-provisioner" {
        let message = "no persistent volumes available for this claim and no storage class is set";
        return told("Normal", "FailedBinding", message.to_owned()).await;
    }
    if claim["metadata"]["annotations"][PROVISIONER] == provisioner {
        return Ok(());
    }
    let mut next = claim.clone();
    for annotation in [PROVISIONER, BETA_PROVISIONER] {
        next["metadata"]["annotations"][annotation] = json!(provisioner);
    }
    let at = At::of(Resource::of_kind(Kind::PersistentVolumeClaim), claim);
    tools.api.replace(at, &next).await?;
    let message = format!(
        "Waiting for a volume to be created either by the external provisioner '{provisioner}' or \
         manually by the system administrator. If volume creation is delayed, please verify that \
         the provisioner is running and correctly registered."
    );
    told("Normal", "ExternalProvisioning", message).await
}

async fn volume_round(
    tools: &Tools,
    volume: &Value,
    claims: &[Value],
) -> Result<(), ApiClientError> {
    let phase = phase(volume, claims);
    if is_ending(volume) {
        let kind = Kind::PersistentVolume;
        release(tools, kind, volume, VOLUME_PROTECTION, phase == "Bound").await?;
    }
    if volume["status"]["phase"] == phase {
        return Ok(());
    }
    let mut next = volume.clone();
    next["status"]["phase"] = json!(phase);
    let at = At::of(Resource::of_kind(Kind::PersistentVolume), volume);
    // What was written a moment ago has another version by now: the next round sees it.
    tools.api.replace_status(at, &next).await.map(drop)
}

fn phase(volume: &Value, claims: &[Value]) -> &'static str {
    let reference = &volume["spec"]["claimRef"];
    if reference.is_null() {
        return "Available";
    }
    let claim = claims.iter().find(|claim| {
        let (namespace, name) = key(claim);
        reference["namespace"] == json!(namespace) && reference["name"] == json!(name)
    });
    let uid = reference["uid"].as_str().unwrap_or("");
    match claim {
        // Reserved for a claim that is still to come, or to be bound.
        _ if uid.is_empty() => "Available",
        Some(claim) if claim["metadata"]["uid"] == uid => "Bound",
        _ => "Released",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(name: &str, size: &str) -> Value {
        json!({
            "metadata": {"name": name},
            "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"],
                "volumeMode": "Filesystem", "storageClassName": "manual"},
        })
    }

    fn claim(size: &str, class: &str) -> Value {
        json!({
            "metadata": {"namespace": "default", "name": "data", "uid": "1"},
            "spec": {"resources": {"requests": {"storage": size}}, "accessModes": ["ReadWriteOnce"],
                "volumeMode": "Filesystem", "storageClassName": class},
        })
    }

    #[test]
    fn a_claim_gets_the_smallest_volume_that_fits_or_the_one_that_waits_for_it() {
        let check = |claim: Value, change: &dyn Fn(&mut Vec<Value>), expect: Option<usize>| {
            let mut volumes = vec![volume("a", "10Gi"), volume("b", "5Gi"), volume("c", "1Gi")];
            change(&mut volumes);
            let lazy =
                json!({"metadata": {"name": "lazy"}, "volumeBindingMode": "WaitForFirstConsumer"});
            assert_eq!(choose(&claim, &volumes, &[lazy]), expect, "{claim}");
        };
        check(claim("2Gi", "manual"), &|_| {}, Some(1));
        check(claim("5Gi", "manual"), &|_| {}, Some(1));
        check(claim("6Gi", "manual"), &|_| {}, Some(0));
        check(claim("11Gi", "manual"), &|_| {}, None);
        check(claim("1Gi", "other"), &|_| {}, None);
        let reserve = |uid: &'static str| {
            move |volumes: &mut Vec<Value>| {
                volumes[0]["spec"]["claimRef"] =
                    json!({"namespace": "default", "name": "data", "uid": uid});
            }
        };
        check(claim("2Gi", "manual"), &reserve(""), Some(0));
        check(claim("2Gi", "manual"), &reserve("1"), Some(0));
        check(claim("6Gi", "manual"), &reserve("2"), None);
        let block = |volumes: &mut Vec<Value>| volumes[1]["spec"]["volumeMode"] = json!("Block");
        check(claim("2Gi", "manual"), &block, Some(0));
        let mut many = claim("1Gi", "manual");
        many["spec"]["accessModes"] = json!(["ReadWriteMany"]);
        check(many, &|_| {}, None);
        let lazily =
            |volumes: &mut Vec<Value>| volumes[0]["spec"]["storageClassName"] = json!("lazy");
        check(claim("1Gi", "lazy"), &lazily, None);
        let mut selected = claim("1Gi", "lazy");
        selected["metadata"]["annotations"][SELECTED_NODE] = json!("n");
        check(selected, &lazily, Some(0));
    }

    #[test]
    fn a_volume_is_available_bound_or_released() {
        let claims = [claim("1Gi", "manual")];
        let check = |reference: Value, expect: &str| {
            let mut volume = volume("a", "1Gi");
            volume["spec"]["claimRef"] = reference;
            assert_eq!(phase(&volume, &claims), expect);
        };
        check(Value::Null, "Available");
        check(json!({"namespace": "default", "name": "data"}), "Available");
        check(
            json!({"namespace": "default", "name": "data", "uid": "1"}),
            "Bound",
        );
        // Another claim of the same name.
        check(
            json!({"namespace": "default", "name": "data", "uid": "2"}),
            "Released",
        );
        check(
            json!({"namespace": "default", "name": "gone", "uid": "3"}),
            "Released",
        );
    }
}
