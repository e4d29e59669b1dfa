//! Patches: JSON Patch, JSON Merge Patch, and the strategic merge patch of `kubectl`.

use serde_json::{Map, Value};

use super::resource::Resource;
use crate::kubernetes::status::ApiError;
use http::StatusCode;

/// Media type of configurations that are applied: see [`super::apply`].
pub const APPLY: &str = "application/apply-patch+yaml";

/// Which kind of patch a body is, by its media type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    Strategic,
}

impl PatchType {
    pub fn of(media_type: &str, resource: &Resource) -> Result<PatchType, ApiError> {
        let media_type = media_type.split(';').next().unwrap_or("").trim();
        match media_type {
            "application/json-patch+json" => Ok(PatchType::Json),
            "application/merge-patch+json" => Ok(PatchType::Merge),
            "application/strategic-merge-patch+json" if resource.strategic_merge => {
                Ok(PatchType::Strategic)
            }
            _ => {
                let mut supported = vec![
                    "application/json-patch+json",
                    "application/merge-patch+json",
                    APPLY,
                ];
                if resource.strategic_merge {
                    supported.push("application/strategic-merge-patch+json");
                }
                Err(ApiError::new(
                    StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    "UnsupportedMediaType",
                    format!(
                        "the body of the request was in an unknown format - accepted media types include: {}",
                        supported.join(", ")
                    ),
                ))
            }
        }
    }
}

/// `object` with `patch` applied.
pub fn apply(kind: PatchType, mut object: Value, patch: &Value) -> Result<Value, ApiError> {
    match kind {
        PatchType::Json => {
            let patch: json_patch::Patch = serde_json::from_value(patch.clone())
                .map_err(|error| ApiError::bad_request(error.to_string()))?;
            json_patch::patch(&mut object, &patch).map_err(|error| {
                ApiError::new(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "Invalid",
                    format!(
                        "the server rejected our request due to an error in our request: {error}"
                    ),
                )
            })?;
        }
        PatchType::Merge => json_patch::merge(&mut object, patch),
        PatchType::Strategic => merge(&mut object, patch, ""),
    }
    if !object.is_object() {
        return Err(ApiError::bad_request("the patch does not leave an object"));
    }
    Ok(object)
}

/// Key by which the elements of a list are told apart, by the list's field name and its parent's;
/// none for a list that is replaced as a whole. From the API's `patchMergeKey`s.
fn merge_key(field: &str, element: &Value) -> Option<&'static str> {
    match field {
        "containers"
        | "initContainers"
        | "ephemeralContainers"
        | "volumes"
        | "env"
        | "imagePullSecrets"
        | "secrets" => Some("name"),
        "ports" if element.get("containerPort").is_some() => Some("containerPort"),
        "ports" => Some("port"),
        "volumeMounts" => Some("mountPath"),
        "volumeDevices" => Some("devicePath"),
        "conditions" | "addresses" => Some("type"),
        "ownerReferences" => Some("uid"),
        "hostAliases" | "podIPs" => Some("ip"),
        "topologySpreadConstraints" => Some("topologyKey"),
        _ => None,
    }
}

const PRIMITIVE_DELETE: &str = "$deleteFromPrimitiveList/";

fn merge(target: &mut Value, patch: &Value, field: &str) {
    let Value::Object(patch) = patch else {
        match (target.as_array_mut(), patch.as_array()) {
            (Some(target), Some(patch)) => merge_list(target, patch, field),
            (_, Some(patch)) => {
                let mut list = Vec::new();
                merge_list(&mut list, patch, field);
                *target = Value::Array(list);
            }
            _ => *target = patch.clone(),
        }
        return;
    };
    if patch.get("$patch") == Some(&Value::from("replace")) {
        let mut replaced = patch.clone();
        replaced.remove("$patch");
        *target = Value::Object(replaced);
        return;
    }
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(target) = target.as_object_mut() else {
        return;
    };
    if let Some(retained) = patch.get("$retainKeys").and_then(Value::as_array) {
        target.retain(|key, _| retained.iter().any(|kept| kept == key));
    }
    for (key, value) in patch {
        if let Some(list) = key.strip_prefix(PRIMITIVE_DELETE) {
            let doomed = value.as_array();
            if let (Some(Value::Array(present)), Some(doomed)) = (target.get_mut(list), doomed) {
                present.retain(|element| !doomed.contains(element));
            }
        } else if key.starts_with('$') {
            // Order of elements, and what was handled above.
        } else if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value, key);
        }
    }
}

fn merge_list(target: &mut Vec<Value>, patch: &[Value], field: &str) {
    if patch.iter().any(|element| element["$patch"] == "replace") {
        *target = patch
            .iter()
            .filter(|element| element["$patch"] != "replace")
            .cloned()
            .collect();
        return;
    }
    let key = patch.iter().find_map(|element| merge_key(field, element));
    let Some(key) = key else {
        if field == "finalizers" {
            for element in patch {
                if !target.contains(element) {
                    target.push(element.clone());
                }
            }
        } else {
            *target = patch.to_vec();
        }
        return;
    };
    for element in patch {
        let position = target
            .iter()
            .position(|present| !present[key].is_null() && present[key] == element[key]);
        match (position, element["$patch"] == "delete") {
            (Some(position), true) => drop(target.remove(position)),
            (None, true) => {}
            (Some(position), false) => merge(&mut target[position], element, ""),
            (None, false) => target.push(element.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn strategic_merge_follows_the_merge_keys() {
        let check = |target: Value, patch: Value, expect: Value| {
            let patched =
                apply(PatchType::Strategic, target, &patch).expect("a patch that applies");
            assert_eq!(patched, expect, "{patch}");
        };
        check(
            json!({"imagePullSecrets": [{"name": "a"}]}),
            json!({"imagePullSecrets": [{"name": "b"}]}),
            json!({"imagePullSecrets": [{"name": "a"}, {"name": "b"}]}),
        );
        check(
            json!({"containers": [{"name": "a", "image": "x", "tty": true}]}),
            json!({"containers": [{"name": "a", "image": "y"}]}),
            json!({"containers": [{"name": "a", "image": "y", "tty": true}]}),
        );
        check(
            json!({"containers": [{"name": "a"}, {"name": "b"}]}),
            json!({"containers": [{"name": "a", "$patch": "delete"}]}),
            json!({"containers": [{"name": "b"}]}),
        );
        check(
            json!({"metadata": {"labels": {"a": "1", "b": "2"}, "finalizers": ["x", "y"]}}),
            json!({"metadata": {"labels": {"a": null, "c": "3"}, "$deleteFromPrimitiveList/finalizers": ["x"]}}),
            json!({"metadata": {"labels": {"b": "2", "c": "3"}, "finalizers": ["y"]}}),
        );
        check(
            json!({"taints": [{"key": "a"}], "spec": {"x": 1}}),
            json!({"taints": [{"key": "b"}], "spec": {"$patch": "replace", "y": 2}}),
            json!({"taints": [{"key": "b"}], "spec": {"y": 2}}),
        );
    }
}
