//! What an object must be before it is kept.

use serde_json::{Value, json};

use super::resource::{Names, Resource};
use super::selector::matches_selector;
use crate::kubernetes::scheduler::quantity_millis;

/// (field, message) of what is wrong.
pub type Causes = Vec<(String, String)>;

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric \
    characters, '-' or '.', and must start and end with an alphanumeric character (e.g. \
    'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters \
    or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', \
    regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const RFC_1035_LABEL: &str = "a DNS-1035 label must consist of lower case alphanumeric characters \
    or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. \
    'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";

/// Most nodes of a group, by the NodeGroup resource's schema.
const NODE_COUNT_LIMIT: i64 = 16;
const FLAVORS: [&str; 6] = ["2XS", "XS", "S", "M", "L", "XL"];
const RESERVED_LABELS: [&str; 3] = ["kubernetes.io/", "node.kubernetes.io/", "clever-cloud.com/"];

/// Everything wrong with a new object, or with `old` becoming `object`.
pub fn validate(resource: &Resource, object: &Value, old: Option<&Value>) -> Causes {
    let mut causes = Causes::new();
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().unwrap_or("");
    if let Err(message) = check_name(resource.names, name) {
        causes.push(invalid_value("metadata.name", name, message));
    }
    if let Some(labels) = metadata["labels"].as_object() {
        for (key, value) in labels {
            check_label("metadata.labels", key, value, &mut causes);
        }
    }
    match resource.kind {
        "NodeGroup" => node_group(object, old, &mut causes),
        "Pod" => pod(&object["spec"], "spec", &mut causes),
        "Deployment" => {
            workload(object, old, &mut causes);
            strategy(&object["spec"]["strategy"], &mut causes);
        }
        "ReplicaSet" => workload(object, old, &mut causes),
        "StatefulSet" => {
            workload(object, old, &mut causes);
            stateful_set(object, old, &mut causes);
        }
        "DaemonSet" => workload(object, old, &mut causes),
        "PodDisruptionBudget" => {
            let spec = &object["spec"];
            if !spec["minAvailable"].is_null() && !spec["maxUnavailable"].is_null() {
                causes.push((
                    String::from("spec"),
                    format!(
                        "Invalid value: {spec}: minAvailable and maxUnavailable cannot be both set"
                    ),
                ));
            }
        }
        "StorageClass" if object["provisioner"].as_str().unwrap_or("").is_empty() => {
            causes.push(required("provisioner", ""));
        }
        "PersistentVolumeClaim" => claim(object, old, &mut causes),
        "Service" => service(object, &mut causes),
        "ConfigMap" | "Secret" => data(object, &mut causes),
        _ => {}
    }
    causes
}

fn invalid_value(field: &str, value: &str, message: &str) -> (String, String) {
    let value = Value::from(value);
    (
        field.to_owned(),
        format!("Invalid value: {value}: {message}"),
    )
}

fn required(field: &str, message: &str) -> (String, String) {
    let message = if message.is_empty() {
        String::from("Required value")
    } else {
        format!("Required value: {message}")
    };
    (field.to_owned(), message)
}

fn check_name(names: Names, name: &str) -> Result<(), &'static str> {
    let edge = |byte: Option<u8>| {
        byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    let is_label = |label: &str| {
        edge(label.bytes().next())
            && edge(label.bytes().last())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    match names {
        Names::Label if name.len() > 63 => Err("must be no more than 63 characters"),
        Names::Label => is_label(name).then_some(()).ok_or(LABEL),
        Names::Rfc1035Label if name.len() > 63 => Err("must be no more than 63 characters"),
        Names::Rfc1035Label => {
            let starts = name
                .bytes()
                .next()
                .is_some_and(|byte| byte.is_ascii_lowercase());
            (starts && is_label(name))
                .then_some(())
                .ok_or(RFC_1035_LABEL)
        }
        Names::Subdomain if name.len() > 253 => Err("must be no more than 253 characters"),
        Names::Subdomain => name.split('.').all(is_label).then_some(()).ok_or(SUBDOMAIN),
    }
}

fn check_label(field: &str, key: &str, value: &Value, causes: &mut Causes) {
    let edge = |byte: Option<u8>| byte.is_none_or(|byte| byte.is_ascii_alphanumeric());
    let legal = |text: &str| {
        edge(text.bytes().next())
            && edge(text.bytes().last())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    let name = key.rsplit('/').next().unwrap_or("");
    if name.is_empty() || name.len() > 63 || !legal(name) {
        causes.push(invalid_value(
            field,
            key,
            "name part must consist of alphanumeric characters, '-', '_' or '.', and must start \
             and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', \
             regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
        ));
    }
    let value = value.as_str().unwrap_or("");
    if value.len() > 63 {
        causes.push(invalid_value(field, value, "must be no more than 63 bytes"));
    } else if !legal(value) {
        causes.push(invalid_value(
            field,
            value,
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' \
             or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or \
             'my_value',  or '12345', regex used for validation is \
             '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
        ));
    }
}

/// The NodeGroup resource's schema and its immutable fields (contract cke-models 11.1).
fn node_group(object: &Value, old: Option<&Value>, causes: &mut Causes) {
    let spec = &object["spec"];
    match spec["flavor"].as_str() {
        None => causes.push(required("spec.flavor", "")),
        Some(flavor) if !FLAVORS.contains(&flavor) => {
            let supported: Vec<String> = FLAVORS.iter().map(|name| format!("{name:?}")).collect();
            causes.push((
                String::from("spec.flavor"),
                format!(
                    "Unsupported value: {flavor:?}: supported values: {}",
                    supported.join(", ")
                ),
            ));
        }
        Some(_) => {}
    }
    match &spec["nodeCount"] {
        Value::Null => causes.push(required("spec.nodeCount", "")),
        count => match count.as_i64() {
            None => causes.push((
                String::from("spec.nodeCount"),
                format!("Invalid value: {count}: spec.nodeCount in body must be of type integer"),
            )),
            Some(number) if number < 0 => causes.push((
                String::from("spec.nodeCount"),
                format!(
                    "Invalid value: {number}: spec.nodeCount in body should be greater than or equal to 0"
                ),
            )),
            Some(number) if number > NODE_COUNT_LIMIT => causes.push((
                String::from("spec.nodeCount"),
                format!(
                    "Invalid value: {number}: spec.nodeCount in body should be less than or equal to {NODE_COUNT_LIMIT}"
                ),
            )),
            Some(_) => {}
        },
    }
    if let Some(labels) = spec["labels"].as_object() {
        for (key, value) in labels {
            if RESERVED_LABELS
                .iter()
                .any(|reserved| key.starts_with(reserved))
            {
                causes.push(invalid_value("spec.labels", key, "the prefix is reserved"));
            }
            check_label("spec.labels", key, value, causes);
        }
    }
    for (index, taint) in spec["taints"].as_array().into_iter().flatten().enumerate() {
        let effect = taint["effect"].as_str().unwrap_or("");
        if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
            causes.push((
                format!("spec.taints[{index}].effect"),
                format!(
                    "Unsupported value: {effect:?}: supported values: \"NoSchedule\", \
                     \"PreferNoSchedule\", \"NoExecute\""
                ),
            ));
        }
        if taint["key"].as_str().unwrap_or("").is_empty() {
            causes.push(required(&format!("spec.taints[{index}].key"), ""));
        }
    }
    let Some(old) = old else {
        return;
    };
    for field in ["flavor", "labels", "taints"] {
        let (now, before) = (&spec[field], &old["spec"][field]);
        let absent = |value: &Value| value.is_null() || value == &json!({}) || value == &json!([]);
        if now != before && !(absent(now) && absent(before)) {
            causes.push((
                format!("spec.{field}"),
                format!("Invalid value: {now}: {field} is immutable"),
            ));
        }
    }
}

/// Replicas of a template: Deployments and ReplicaSets.
fn workload(object: &Value, old: Option<&Value>, causes: &mut Causes) {
    let spec = &object["spec"];
    if let Some(replicas) = spec["replicas"].as_i64().filter(|replicas| *replicas < 0) {
        causes.push((
            String::from("spec.replicas"),
            format!("Invalid value: {replicas}: must be greater than or equal to 0"),
        ));
    }
    let selector = &spec["selector"];
    let labels = &spec["template"]["metadata"]["labels"];
    if selector.is_null() {
        causes.push(required("spec.selector", ""));
    } else if selector == &json!({}) {
        causes.push((
            String::from("spec.selector"),
            format!(
                "Invalid value: {selector}: empty selector is invalid for {}",
                object["kind"].as_str().unwrap_or("").to_lowercase()
            ),
        ));
    } else if !matches_selector(selector, labels) {
        let shown = if labels.is_null() { &json!({}) } else { labels };
        causes.push((
            String::from("spec.template.metadata.labels"),
            format!("Invalid value: {shown}: `selector` does not match template `labels`"),
        ));
    }
    pod(&spec["template"]["spec"], "spec.template.spec", causes);
    let policy = spec["template"]["spec"]["restartPolicy"]
        .as_str()
        .unwrap_or("Always");
    if policy != "Always" {
        causes.push((
            String::from("spec.template.spec.restartPolicy"),
            format!("Unsupported value: {policy:?}: supported values: \"Always\""),
        ));
    }
    if let Some(old) = old
        && old["spec"]["selector"] != *selector
    {
        causes.push((
            String::from("spec.selector"),
            format!("Invalid value: {selector}: field is immutable"),
        ));
    }
}

/// What of a StatefulSet does not change.
fn stateful_set(object: &Value, old: Option<&Value>, causes: &mut Causes) {
    let Some(old) = old else { return };
    let fixed = |set: &Value| {
        let mut spec = set["spec"].clone();
        for field in [
            "replicas",
            "ordinals",
            "template",
            "updateStrategy",
            "revisionHistoryLimit",
            "persistentVolumeClaimRetentionPolicy",
            "minReadySeconds",
            // Told of by itself.
            "selector",
        ] {
            super::remove(&mut spec, field);
        }
        spec
    };
    if fixed(object) != fixed(old) {
        causes.push((
            String::from("spec"),
            String::from(
                "Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', \
                 'template', 'updateStrategy', 'revisionHistoryLimit', \
                 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
            ),
        ));
    }
}

fn strategy(strategy: &Value, causes: &mut Causes) {
    match strategy["type"].as_str().unwrap_or("RollingUpdate") {
        "RollingUpdate" => {
            let zero = |value: &Value| value == &json!(0) || value == &json!("0%");
            let rolling = &strategy["rollingUpdate"];
            if zero(&rolling["maxSurge"]) && zero(&rolling["maxUnavailable"]) {
                causes.push((
                    String::from("spec.strategy.rollingUpdate.maxUnavailable"),
                    format!(
                        "Invalid value: {}: may not be 0 when `maxSurge` is 0",
                        rolling["maxUnavailable"]
                    ),
                ));
            }
        }
        "Recreate" if !strategy["rollingUpdate"].is_null() => causes.push((
            String::from("spec.strategy.rollingUpdate"),
            String::from("Forbidden: may not be specified when strategy `type` is 'Recreate'"),
        )),
        "Recreate" => {}
        other => causes.push((
            String::from("spec.strategy.type"),
            format!(
                "Unsupported value: {other:?}: supported values: \"Recreate\", \"RollingUpdate\""
            ),
        )),
    }
}

fn claim(object: &Value, old: Option<&Value>, causes: &mut Causes) {
    let spec = &object["spec"];
    if spec["accessModes"].as_array().is_none_or(Vec::is_empty) {
        causes.push(required(
            "spec.accessModes",
            "at least 1 access mode is required",
        ));
    }
    if spec["resources"]["requests"]["storage"].is_null() {
        causes.push(required("spec.resources[storage]", ""));
    }
    if let Some(old) = old {
        // A claim may grow, and be bound; nothing else of it changes.
        for field in ["accessModes", "selector", "volumeMode"] {
            if old["spec"][field] != spec[field] {
                causes.push((
                    String::from("spec"),
                    String::from(
                        "Forbidden: spec is immutable after creation except resources.requests and \
                         volumeAttributesClassName for bound claims",
                    ),
                ));
                break;
            }
        }
        let request =
            |claim: &Value| quantity_millis(&claim["spec"]["resources"]["requests"]["storage"]);
        let has = quantity_millis(&old["status"]["capacity"]["storage"]);
        if request(object) < request(old) && request(object) < has {
            causes.push((
                String::from("spec.resources.requests.storage"),
                String::from("Forbidden: field can not be less than status.capacity"),
            ));
        } else if request(object) != request(old) && old["status"]["phase"] != "Bound" {
            causes.push((
                String::from("spec"),
                String::from(
                    "Forbidden: spec is immutable after creation except resources.requests and \
                     volumeAttributesClassName for bound claims",
                ),
            ));
        }
    }
}

fn pod(spec: &Value, path: &str, causes: &mut Causes) {
    let containers = spec["containers"].as_array();
    if containers.is_none_or(Vec::is_empty) {
        causes.push(required(&format!("{path}.containers"), ""));
    }
    for (index, container) in containers.into_iter().flatten().enumerate() {
        let at = format!("{path}.containers[{index}]");
        let name = container["name"].as_str().unwrap_or("");
        if name.is_empty() {
            causes.push(required(&format!("{at}.name"), ""));
        } else if let Err(message) = check_name(Names::Label, name) {
            causes.push(invalid_value(&format!("{at}.name"), name, message));
        }
        if container["image"].as_str().unwrap_or("").is_empty() {
            causes.push(required(&format!("{at}.image"), ""));
        }
    }
}

fn service(object: &Value, causes: &mut Causes) {
    let spec = &object["spec"];
    let kind = spec["type"].as_str().unwrap_or("ClusterIP");
    if !["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"].contains(&kind) {
        causes.push((
            String::from("spec.type"),
            format!(
                "Unsupported value: {kind:?}: supported values: \"ClusterIP\", \"ExternalName\", \
                 \"LoadBalancer\", \"NodePort\""
            ),
        ));
    }
    let headless = spec["clusterIP"] == "None";
    let ports = spec["ports"].as_array();
    if kind != "ExternalName" && !headless && ports.is_none_or(Vec::is_empty) {
        causes.push(required("spec.ports", ""));
    }
    for (index, port) in ports.into_iter().flatten().enumerate() {
        let number = port["port"].as_i64().unwrap_or(0);
        if !(1..=65535).contains(&number) {
            causes.push((
                format!("spec.ports[{index}].port"),
                format!("Invalid value: {number}: must be between 1 and 65535, inclusive"),
            ));
        }
    }
}

fn data(object: &Value, causes: &mut Causes) {
    for field in ["data", "binaryData", "stringData"] {
        for key in object[field]
            .as_object()
            .into_iter()
            .flat_map(|map| map.keys())
        {
            let legal = !key.is_empty()
                && key.len() <= 253
                && key
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
            if !legal {
                causes.push(invalid_value(
                    &format!("{field}[{key}]"),
                    key,
                    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' \
                     (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is \
                     '[-._a-zA-Z0-9]+')",
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::registry::defaults::fill;
    use crate::kubernetes::registry::resource::RESOURCES;

    fn resource(kind: &str) -> &'static Resource {
        RESOURCES
            .iter()
            .find(|resource| resource.kind == kind)
            .expect(kind)
    }

    #[test]
    fn names_are_checked_by_kind() {
        let check = |kind: &str, name: &str, valid: bool| {
            let object = json!({"metadata": {"name": name}});
            let causes = validate(resource(kind), &object, None);
            assert_eq!(causes.is_empty(), valid, "{kind} {name} {causes:?}");
        };
        check("ConfigMap", "a.b-c", true);
        check("ConfigMap", "A", false);
        check("ConfigMap", "", false);
        check("ConfigMap", "-a", false);
        check("Namespace", "a.b", false);
        check("Namespace", &"a".repeat(64), false);
    }

    #[test]
    fn workloads_are_checked_with_kube_apiservers_texts() {
        let check = |change: fn(&mut Value), old: bool, expect: &[&str]| {
            let mut object = json!({"metadata": {"name": "web"}, "spec": {
                "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{"name": "c", "image": "nginx"}]},
                },
            }});
            fill(resource("Deployment"), &mut object);
            let before = object.clone();
            change(&mut object);
            let causes = validate(resource("Deployment"), &object, old.then_some(&before));
            let found: Vec<String> = causes
                .iter()
                .map(|(field, message)| format!("{field}: {message}"))
                .collect();
            assert_eq!(found, expect);
        };
        check(|_| {}, false, &[]);
        check(
            |it| it["spec"]["replicas"] = json!(-1),
            false,
            &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
        );
        check(
            |it| it["spec"]["template"]["metadata"]["labels"] = json!({"app": "api"}),
            false,
            &[
                "spec.template.metadata.labels: Invalid value: {\"app\":\"api\"}: `selector` does not match template `labels`",
            ],
        );
        check(
            |it| {
                it["spec"]["selector"] = json!({"matchLabels": {"app": "x"}});
                it["spec"]["template"]["metadata"]["labels"] = json!({"app": "x"});
            },
            true,
            &[
                "spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"x\"}}: field is immutable",
            ],
        );
        check(
            |it| it["spec"]["template"]["spec"]["containers"] = json!([]),
            false,
            &["spec.template.spec.containers: Required value"],
        );
        check(
            |it| {
                it["spec"]["strategy"]["rollingUpdate"] =
                    json!({"maxSurge": 0, "maxUnavailable": 0});
            },
            false,
            &[
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
            ],
        );
    }

    #[test]
    fn node_groups_keep_their_schema() {
        let check = |spec: Value, old: Option<Value>, fields: &[&str]| {
            let object = json!({"metadata": {"name": "x"}, "spec": spec});
            let old = old.map(|spec| json!({"spec": spec}));
            let causes = validate(resource("NodeGroup"), &object, old.as_ref());
            let found: Vec<&str> = causes.iter().map(|(field, _)| field.as_str()).collect();
            assert_eq!(found, fields, "{causes:?}");
        };
        check(json!({"flavor": "M", "nodeCount": 2}), None, &[]);
        check(json!({"flavor": "M", "nodeCount": 0}), None, &[]);
        check(json!({}), None, &["spec.flavor", "spec.nodeCount"]);
        check(
            json!({"flavor": "m", "nodeCount": 17}),
            None,
            &["spec.flavor", "spec.nodeCount"],
        );
        check(
            json!({"flavor": "M", "nodeCount": -1}),
            None,
            &["spec.nodeCount"],
        );
        check(
            json!({"flavor": "M", "nodeCount": "2"}),
            None,
            &["spec.nodeCount"],
        );
        check(
            json!({"flavor": "M", "nodeCount": 1, "labels": {"kubernetes.io/os": "x"}}),
            None,
            &["spec.labels"],
        );
        check(
            json!({"flavor": "L", "nodeCount": 1, "labels": {}}),
            Some(json!({"flavor": "M", "nodeCount": 1})),
            &["spec.flavor"],
        );
    }
}
