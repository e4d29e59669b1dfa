//! What admission does to claims and volumes.

use serde_json::{Value, json};

use super::{ApiError, Place};
use crate::kubernetes::controller_manager::volume::{CLAIM_PROTECTION, VOLUME_PROTECTION};
use crate::kubernetes::scheduler::quantity_millis;

const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";

/// Objects that are used are held by a finalizer (admission plugin StorageObjectInUseProtection).
pub fn protect(kind: &str, object: &mut Value) {
    let finalizer = match kind {
        "PersistentVolumeClaim" => CLAIM_PROTECTION,
        "PersistentVolume" => VOLUME_PROTECTION,
        _ => return,
    };
    let held = object["metadata"]["finalizers"].as_array();
    let mut held = held.cloned().unwrap_or_default();
    if !held.iter().any(|held| held == finalizer) {
        held.push(json!(finalizer));
    }
    object["metadata"]["finalizers"] = json!(held);
}

/// A claim that names no class gets the default one, the youngest of several (admission plugin
/// DefaultStorageClass). One that names the empty class wants none.
pub fn choose_class(claim: &mut Value, classes: &[Value]) {
    if !claim["spec"]["storageClassName"].is_null() {
        return;
    }
    let defaults = classes
        .iter()
        .filter(|class| class["metadata"]["annotations"][DEFAULT_CLASS] == "true");
    let age = |class: &&Value| {
        let text = |field: &str| class["metadata"][field].as_str().unwrap_or("").to_owned();
        (text("creationTimestamp"), std::cmp::Reverse(text("name")))
    };
    if let Some(class) = defaults.max_by_key(age) {
        claim["spec"]["storageClassName"] = class["metadata"]["name"].clone();
    }
}

fn requested(claim: &Value) -> i64 {
    quantity_millis(&claim["spec"]["resources"]["requests"]["storage"])
}

pub fn grows(old: &Value, new: &Value) -> bool {
    requested(new) > requested(old)
}

/// Whether the claim's class lets it grow (admission plugin PersistentVolumeClaimResize).
pub fn may_grow(place: Place<'_>, claim: &Value, classes: &[Value]) -> Result<(), ApiError> {
    let name = &claim["spec"]["storageClassName"];
    let class = classes
        .iter()
        .find(|class| class["metadata"]["name"] == *name);
    if class.is_some_and(|class| class["allowVolumeExpansion"] == true) {
        return Ok(());
    }
    Err(ApiError::forbidden(format!(
        "{} {} is forbidden: only dynamically provisioned pvc can be resized and the storageclass \
         that provisions the pvc must support resize",
        place.resource.qualified(),
        json!(super::name_of(claim)),
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_youngest_default_class_is_chosen() {
        let class = |name: &str, created: &str, default: &str| {
            json!({"metadata": {"name": name, "creationTimestamp": created,
                "annotations": {DEFAULT_CLASS: default}}})
        };
        let classes = [
            class("a", "2026-01-01T00:00:00Z", "true"),
            class("c", "2026-01-02T00:00:00Z", "true"),
            class("b", "2026-01-02T00:00:00Z", "true"),
            class("d", "2026-01-03T00:00:00Z", "false"),
        ];
        let check = |given: Value, classes: &[Value], expect: Value| {
            let mut claim = json!({"spec": {"storageClassName": given}});
            choose_class(&mut claim, classes);
            assert_eq!(claim["spec"]["storageClassName"], expect);
        };
        check(Value::Null, &classes, json!("b"));
        check(Value::Null, &classes[3..], Value::Null);
        check(json!(""), &classes, json!(""));
        check(json!("x"), &classes, json!("x"));
    }

    #[test]
    fn what_is_used_is_held_once() {
        let mut claim = json!({"metadata": {"finalizers": ["a"]}});
        protect("PersistentVolumeClaim", &mut claim);
        protect("PersistentVolumeClaim", &mut claim);
        let finalizers = &claim["metadata"]["finalizers"];
        assert_eq!(*finalizers, json!(["a", CLAIM_PROTECTION]));
    }
}
