//! Tables: what `kubectl get` prints, made by the server.

mod columns;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use self::columns::columns;
use super::resource::Resource;
use super::selector::selector_text;
use crate::clock::Timestamp;

/// How much of each object a row carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    None,
    #[default]
    Metadata,
    Object,
}

/// A table of the objects. `metadata` is the list's, or an object's resource version.
pub fn table(
    resource: &Resource,
    objects: Vec<Value>,
    metadata: Value,
    include: IncludeObject,
    now: Timestamp,
) -> Value {
    let definitions: Vec<Value> = columns(resource)
        .iter()
        .map(|column| {
            json!({
                "name": column.name,
                "type": column.kind,
                "format": if column.name == "Name" { "name" } else { "" },
                "description": "",
                "priority": i32::from(column.wide),
            })
        })
        .collect();
    let rows: Vec<Value> = objects
        .into_iter()
        .map(|object| {
            let cells = cells(resource, &object, now);
            let shown = match include {
                IncludeObject::None => Value::Null,
                IncludeObject::Object => object,
                IncludeObject::Metadata => json!({
                    "kind": "PartialObjectMetadata",
                    "apiVersion": "meta.k8s.io/v1",
                    "metadata": object["metadata"],
                }),
            };
            json!({"cells": cells, "object": shown})
        })
        .collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": definitions,
        "rows": rows,
    })
}

fn cells(resource: &Resource, object: &Value, now: Timestamp) -> Vec<Value> {
    let metadata = &object["metadata"];
    let (spec, status) = (&object["spec"], &object["status"]);
    let name = metadata["name"].clone();
    let age = json!(age(&metadata["creationTimestamp"], now));
    let text = |value: &Value, absent: &str| match value.as_str() {
        Some(text) if !text.is_empty() => json!(text),
        _ => json!(absent),
    };
    let size = |value: &Value| value.as_object().map_or(0, serde_json::Map::len);
    match resource.kind {
        "Node" => {
            let info = &status["nodeInfo"];
            let address = |kind: &str| {
                let addresses = status["addresses"].as_array();
                let found = addresses
                    .into_iter()
                    .flatten()
                    .find(|address| address["type"] == kind);
                text(
                    found.map_or(&Value::Null, |address| &address["address"]),
                    "<none>",
                )
            };
            vec![
                name,
                json!(node_status(object)),
                json!(node_roles(metadata)),
                age,
                text(&info["kubeletVersion"], ""),
                address("InternalIP"),
                address("ExternalIP"),
                text(&info["osImage"], "<unknown>"),
                text(&info["kernelVersion"], "<unknown>"),
                text(&info["containerRuntimeVersion"], "<unknown>"),
            ]
        }
        "Pod" => {
            let statuses = status["containerStatuses"].as_array();
            let ready = statuses
                .into_iter()
                .flatten()
                .filter(|container| container["ready"] == true)
                .count();
            let restarts: i64 = statuses
                .into_iter()
                .flatten()
                .filter_map(|container| container["restartCount"].as_i64())
                .sum();
            let total = spec["containers"].as_array().map_or(0, Vec::len);
            let waiting = statuses
                .into_iter()
                .flatten()
                .find_map(|container| container["state"]["waiting"]["reason"].as_str());
            let phase = if metadata["deletionTimestamp"].is_null() && waiting.is_some() {
                json!(waiting)
            } else if metadata["deletionTimestamp"].is_null() {
                text(
                    &status["reason"],
                    status["phase"].as_str().unwrap_or("Unknown"),
                )
            } else {
                json!("Terminating")
            };
            vec![
                name,
                json!(format!("{ready}/{total}")),
                phase,
                json!(restarts.to_string()),
                age,
                text(&status["podIP"], "<none>"),
                text(&spec["nodeName"], "<none>"),
                text(&status["nominatedNodeName"], "<none>"),
                json!("<none>"),
            ]
        }
        "Service" => vec![
            name,
            text(&spec["type"], "ClusterIP"),
            text(&spec["clusterIP"], "<none>"),
            json!(external_ip(object)),
            json!(ports(&spec["ports"])),
            age,
            json!(labels(&spec["selector"])),
        ],
        "Secret" => vec![
            name,
            text(&object["type"], "Opaque"),
            json!(size(&object["data"])),
            age,
        ],
        "ConfigMap" => vec![
            name,
            json!(size(&object["data"]) + size(&object["binaryData"])),
            age,
        ],
        "Namespace" => vec![name, text(&status["phase"], ""), age],
        "Event" => {
            let seen = [
                &object["lastTimestamp"],
                &object["eventTime"],
                &metadata["creationTimestamp"],
            ];
            let last = seen.into_iter().find(|time| time.is_string());
            let involved = &object["involvedObject"];
            let kind = involved["kind"].as_str().unwrap_or("").to_lowercase();
            vec![
                json!(self::age(last.unwrap_or(&Value::Null), now)),
                text(&object["type"], ""),
                text(&object["reason"], ""),
                json!(format!(
                    "{kind}/{}",
                    involved["name"].as_str().unwrap_or("")
                )),
                json!(object["message"].as_str().unwrap_or("").trim()),
            ]
        }
        "Lease" => vec![name, text(&spec["holderIdentity"], ""), age],
        "NodeGroup" => vec![
            name,
            spec["nodeCount"].clone(),
            json!(status["nodeCount"].as_i64().unwrap_or(0)),
            text(&spec["flavor"], ""),
            text(&status["phase"], ""),
            age,
        ],
        "Deployment" => {
            let count = |value: &Value| value.as_i64().unwrap_or(0);
            let template = &spec["template"]["spec"]["containers"];
            vec![
                name,
                json!(format!(
                    "{}/{}",
                    count(&status["readyReplicas"]),
                    count(&spec["replicas"])
                )),
                json!(count(&status["updatedReplicas"])),
                json!(count(&status["availableReplicas"])),
                age,
                json!(joined(template, "name")),
                json!(joined(template, "image")),
                json!(selector(&spec["selector"])),
            ]
        }
        "ReplicaSet" => {
            let count = |value: &Value| json!(value.as_i64().unwrap_or(0));
            let template = &spec["template"]["spec"]["containers"];
            vec![
                name,
                count(&spec["replicas"]),
                count(&status["replicas"]),
                count(&status["readyReplicas"]),
                age,
                json!(joined(template, "name")),
                json!(joined(template, "image")),
                json!(selector(&spec["selector"])),
            ]
        }
        "PodDisruptionBudget" => {
            let bound = |value: &Value| match value {
                Value::Null => json!("N/A"),
                Value::String(text) => json!(text),
                number => json!(number.to_string()),
            };
            vec![
                name,
                bound(&spec["minAvailable"]),
                bound(&spec["maxUnavailable"]),
                json!(status["disruptionsAllowed"].as_i64().unwrap_or(0)),
                age,
            ]
        }
        "StorageClass" => {
            let default = &metadata["annotations"]["storageclass.kubernetes.io/is-default-class"];
            let shown = name.as_str().unwrap_or("");
            vec![
                json!(if default == "true" {
                    format!("{shown} (default)")
                } else {
                    shown.to_owned()
                }),
                text(&object["provisioner"], ""),
                text(&object["reclaimPolicy"], "Delete"),
                text(&object["volumeBindingMode"], "<unset>"),
                json!((object["allowVolumeExpansion"] == true).to_string()),
                age,
            ]
        }
        "PersistentVolume" => {
            let claim = &spec["claimRef"];
            let claim = match (claim["namespace"].as_str(), claim["name"].as_str()) {
                (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
                _ => String::new(),
            };
            vec![
                name,
                text(&spec["capacity"]["storage"], ""),
                json!(access_modes(&spec["accessModes"])),
                text(&spec["persistentVolumeReclaimPolicy"], ""),
                json!(phase(object)),
                json!(claim),
                text(&spec["storageClassName"], ""),
                text(&spec["volumeAttributesClassName"], "<unset>"),
                text(&status["reason"], ""),
                age,
                text(&spec["volumeMode"], "<unset>"),
            ]
        }
        "PersistentVolumeClaim" => {
            let bound = !spec["volumeName"].as_str().unwrap_or("").is_empty();
            let shown = |value: Value| if bound { value } else { json!("") };
            vec![
                name,
                json!(phase(object)),
                text(&spec["volumeName"], ""),
                shown(text(&status["capacity"]["storage"], "")),
                shown(json!(access_modes(&status["accessModes"]))),
                text(&spec["storageClassName"], ""),
                text(&spec["volumeAttributesClassName"], "<unset>"),
                age,
                text(&spec["volumeMode"], "<unset>"),
            ]
        }
        "Endpoints" => {
            let subsets = object["subsets"].as_array().into_iter().flatten();
            let mut found = Vec::new();
            for subset in subsets {
                let ports = subset["ports"].as_array();
                let ports: Vec<&Value> =
                    ports.into_iter().flatten().map(|it| &it["port"]).collect();
                for address in subset["addresses"].as_array().into_iter().flatten() {
                    let ip = address["ip"].as_str().unwrap_or("");
                    if ports.is_empty() {
                        found.push(ip.to_owned());
                    }
                    found.extend(ports.iter().map(|port| format!("{ip}:{port}")));
                }
            }
            vec![name, json!(some_of(&found, "<none>")), age]
        }
        "EndpointSlice" => {
            let ports = object["ports"].as_array().into_iter().flatten();
            let ports: Vec<String> = ports.map(|it| it["port"].to_string()).collect();
            let endpoints = object["endpoints"].as_array().into_iter().flatten();
            let addresses: Vec<String> = endpoints
                .flat_map(|it| it["addresses"].as_array().into_iter().flatten())
                .filter_map(|it| it.as_str().map(str::to_owned))
                .collect();
            vec![
                name,
                text(&object["addressType"], ""),
                json!(some_of(&ports, "<unset>")),
                json!(some_of(&addresses, "<unset>")),
                age,
            ]
        }
        "StatefulSet" => {
            let count = |value: &Value| value.as_i64().unwrap_or(0);
            let template = &spec["template"]["spec"]["containers"];
            let (ready, all) = (count(&status["readyReplicas"]), count(&spec["replicas"]));
            vec![
                name,
                json!(format!("{ready}/{all}")),
                age,
                json!(joined(template, "name")),
                json!(joined(template, "image")),
            ]
        }
        "DaemonSet" => {
            let count = |field: &str| json!(status[field].as_i64().unwrap_or(0));
            let template = &spec["template"]["spec"];
            let selected = labels(&template["nodeSelector"]);
            vec![
                name,
                count("desiredNumberScheduled"),
                count("currentNumberScheduled"),
                count("numberReady"),
                count("updatedNumberScheduled"),
                count("numberAvailable"),
                json!(selected),
                age,
                json!(joined(&template["containers"], "name")),
                json!(joined(&template["containers"], "image")),
                json!(selector(&spec["selector"])),
            ]
        }
        _ => vec![name, age],
    }
}

/// The first three, and how many more there are.
fn some_of(list: &[String], none: &str) -> String {
    const SHOWN: usize = 3;
    if list.is_empty() {
        return none.to_owned();
    }
    let shown = list[..list.len().min(SHOWN)].join(",");
    match list.len().checked_sub(SHOWN) {
        Some(more) if more > 0 => format!("{shown} + {more} more..."),
        _ => shown,
    }
}

fn phase(object: &Value) -> &str {
    if object["metadata"]["deletionTimestamp"].is_null() {
        object["status"]["phase"].as_str().unwrap_or("")
    } else {
        "Terminating"
    }
}

fn joined(list: &Value, field: &str) -> String {
    let texts: Vec<&str> = list
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|element| element[field].as_str())
        .collect();
    texts.join(",")
}

fn selector(selector: &Value) -> String {
    let text = selector_text(selector);
    if text.is_empty() {
        return String::from("<none>");
    }
    text
}

fn access_modes(modes: &Value) -> String {
    let texts: Vec<&str> = modes
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|mode| match mode.as_str()? {
            "ReadWriteOnce" => Some("RWO"),
            "ReadOnlyMany" => Some("ROX"),
            "ReadWriteMany" => Some("RWX"),
            "ReadWriteOncePod" => Some("RWOP"),
            _ => None,
        })
        .collect();
    texts.join(",")
}

fn node_status(node: &Value) -> String {
    let conditions = node["status"]["conditions"].as_array();
    let ready = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == "Ready");
    let mut words = vec![match ready.map(|ready| &ready["status"]) {
        Some(status) if status == "True" => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }];
    if node["spec"]["unschedulable"] == true {
        words.push("SchedulingDisabled");
    }
    words.join(",")
}

fn node_roles(metadata: &Value) -> String {
    let labels = metadata["labels"].as_object();
    let roles: Vec<&str> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| {
            key.strip_prefix("node-role.kubernetes.io/").or_else(|| {
                (key == "kubernetes.io/role")
                    .then(|| value.as_str())
                    .flatten()
            })
        })
        .filter(|role| !role.is_empty())
        .collect();
    if roles.is_empty() {
        return String::from("<none>");
    }
    roles.join(",")
}

fn external_ip(service: &Value) -> String {
    let (spec, status) = (&service["spec"], &service["status"]);
    let texts = |values: &mut dyn Iterator<Item = &str>| values.collect::<Vec<_>>().join(",");
    let own = texts(
        &mut spec["externalIPs"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str),
    );
    match spec["type"].as_str() {
        Some("LoadBalancer") => {
            let given = texts(
                &mut status["loadBalancer"]["ingress"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|ingress| ingress["ip"].as_str().or(ingress["hostname"].as_str())),
            );
            if given.is_empty() {
                return String::from("<pending>");
            }
            given
        }
        Some("ExternalName") => spec["externalName"].as_str().unwrap_or("").to_owned(),
        _ if own.is_empty() => String::from("<none>"),
        _ => own,
    }
}

fn ports(ports: &Value) -> String {
    let texts: Vec<String> = ports
        .as_array()
        .into_iter()
        .flatten()
        .map(|port| {
            let number = port["port"].as_i64().unwrap_or(0);
            let protocol = port["protocol"].as_str().unwrap_or("TCP");
            match port["nodePort"].as_i64() {
                Some(node_port) if node_port > 0 => format!("{number}:{node_port}/{protocol}"),
                _ => format!("{number}/{protocol}"),
            }
        })
        .collect();
    if texts.is_empty() {
        return String::from("<none>");
    }
    texts.join(",")
}

fn labels(labels: &Value) -> String {
    let texts: Vec<String> = labels
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or("")))
        .collect();
    if texts.is_empty() {
        return String::from("<none>");
    }
    texts.join(",")
}

fn age(created: &Value, now: Timestamp) -> String {
    let created = created
        .as_str()
        .and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
    match created {
        Some(created) => human_duration(
            (now.0 - i64::try_from(created.unix_timestamp_nanos() / 1_000_000).unwrap_or(0)) / 1000,
        ),
        None => String::from("<unknown>"),
    }
}

/// Seconds as `kubectl` writes ages: two units at most while that says something.
fn human_duration(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |large: i64, unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{large}{unit}"),
        _ => format!("{large}{unit}{small}{small_unit}"),
    };
    match seconds {
        i64::MIN..-1 => String::from("<invalid>"),
        -1..=0 => String::from("0s"),
        1..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => two(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_kubectls() {
        let check = |seconds: i64, expect: &str| assert_eq!(human_duration(seconds), expect);
        check(-5, "<invalid>");
        check(0, "0s");
        check(119, "119s");
        check(120, "2m");
        check(125, "2m5s");
        check(600, "10m");
        check(10_860, "3h1m");
        check(36_000, "10h");
        check(180_000, "2d2h");
        check(800_000, "9d");
        check(70_000_000, "2y80d");
    }
}
