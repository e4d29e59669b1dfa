//! Garbage collection: objects go with their owners, in the background, before them, or stay as orphans.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Outcome, Tools};
use crate::kubernetes::api_client::{ApiClientError, At};
use crate::kubernetes::registry::resource::{RESOURCES, Resource};
use crate::kubernetes::registry::{FOREGROUND, ORPHAN, Propagation};

pub async fn reconcile(tools: &Tools) -> Result<Outcome, ApiClientError> {
    let mut objects: Vec<(&'static Resource, Value)> = Vec::new();
    for resource in &RESOURCES {
        // Events and Leases own nothing and are owned by nobody.
        if ["Event", "Lease"].contains(&resource.kind) {
            continue;
        }
        let listed = tools.api.list(resource).await?;
        objects.extend(listed.into_iter().map(|object| (resource, object)));
    }
    let uid = |object: &Value| object["metadata"]["uid"].as_str().unwrap_or("").to_owned();
    let present: BTreeSet<String> = objects.iter().map(|(_, object)| uid(object)).collect();
    for (resource, object) in &objects {
        let ending = !object["metadata"]["deletionTimestamp"].is_null();
        let at = At::of(resource, object);
        if ending && has_finalizer(object, ORPHAN) {
            for (theirs, dependent) in &objects {
                if owners(dependent).any(|owner| owner["uid"] == object["metadata"]["uid"]) {
                    let mut next = dependent.clone();
                    let kept: Vec<Value> = owners(dependent)
                        .filter(|owner| owner["uid"] != object["metadata"]["uid"])
                        .cloned()
                        .collect();
                    next["metadata"]["ownerReferences"] = json!(kept);
                    tools.api.replace(At::of(theirs, dependent), &next).await?;
                }
            }
            release(tools, at, object, ORPHAN).await?;
        } else if ending && has_finalizer(object, FOREGROUND) {
            let mut blocked = false;
            for (theirs, dependent) in &objects {
                let owned = owners(dependent).any(|owner| {
                    owner["uid"] == object["metadata"]["uid"] && owner["blockOwnerDeletion"] == true
                });
                if owned {
                    blocked = true;
                    if dependent["metadata"]["deletionTimestamp"].is_null() {
                        let at = At::of(theirs, dependent);
                        let uid = &dependent["metadata"]["uid"];
                        tools
                            .api
                            .delete(at, uid, None, Propagation::Foreground)
                            .await?;
                    }
                }
            }
            if !blocked {
                release(tools, at, object, FOREGROUND).await?;
            }
        }
        if ending || owners(object).next().is_none() {
            continue;
        }
        let mut solid = false;
        for owner in owners(object) {
            let listed = owner["uid"]
                .as_str()
                .is_some_and(|uid| present.contains(uid));
            // It may have been made while the lists were read: only a look at it tells.
            solid |= listed || exists(tools, owner, object).await?;
        }
        if !solid {
            let uid = &object["metadata"]["uid"];
            tools
                .api
                .delete(at, uid, None, Propagation::Background)
                .await?;
        }
    }
    Ok(None)
}

fn owners(object: &Value) -> impl Iterator<Item = &Value> {
    let references = object["metadata"]["ownerReferences"].as_array();
    references.into_iter().flatten()
}

fn has_finalizer(object: &Value, finalizer: &str) -> bool {
    let held = object["metadata"]["finalizers"].as_array();
    held.into_iter().flatten().any(|held| held == finalizer)
}

/// Whether the owner is there. One of a kind that is not served here cannot be missed.
async fn exists(tools: &Tools, owner: &Value, object: &Value) -> Result<bool, ApiClientError> {
    let found = RESOURCES.iter().find(|resource| {
        owner["kind"] == resource.kind && owner["apiVersion"] == resource.api_version()
    });
    let Some(resource) = found else {
        return Ok(true);
    };
    let at = At {
        resource,
        namespace: resource
            .namespaced
            .then(|| object["metadata"]["namespace"].as_str())
            .flatten(),
        name: owner["name"].as_str().unwrap_or(""),
    };
    let found = tools.api.get(at).await?;
    Ok(found.is_some_and(|found| found["metadata"]["uid"] == owner["uid"]))
}

async fn release(
    tools: &Tools,
    at: At<'_>,
    object: &Value,
    finalizer: &str,
) -> Result<(), ApiClientError> {
    let mut next = object.clone();
    if let Some(held) = next["metadata"]["finalizers"].as_array_mut() {
        held.retain(|held| held != finalizer);
    }
    match tools.api.replace(at, &next).await {
        Err(error) if error.is_stale() => Ok(()),
        outcome => outcome.map(drop),
    }
}
