//! Where a Service's connections go: EndpointSlices, and Endpoints for those who still read them.
//!
//! A pod that the Service selects is an endpoint from when it has an address until it has ended; it is ready
//! while its Ready condition says so and it is not being deleted. Pods whose named ports have different
//! numbers are in slices of their own, and no slice has more than [`SLICE_LIMIT`].

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Outcome, Tools, is_ready, owner_reference};
use crate::kubernetes::api_client::{ApiClientError, At};
use crate::kubernetes::registry::Propagation;
use crate::kubernetes::registry::resource::{Kind, Resource};

/// Endpoints in one slice (`--max-endpoints-per-slice`).
const SLICE_LIMIT: usize = 100;
/// Addresses in one Endpoints object, as Kubernetes truncates it.
const ENDPOINTS_LIMIT: usize = 1000;
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";

pub async fn reconcile(tools: &Tools) -> Result<Outcome, ApiClientError> {
    let services = tools.api.list(Resource::of_kind(Kind::Service)).await?;
    let selects = |it: &&Value| {
        let selector = it["spec"]["selector"].as_object();
        it["spec"]["type"] != "ExternalName"
            && selector.is_some_and(|selector| !selector.is_empty())
            && it["metadata"]["deletionTimestamp"].is_null()
    };
    let services: Vec<&Value> = services.iter().filter(selects).collect();
    let slices = tools
        .api
        .list(Resource::of_kind(Kind::EndpointSlice))
        .await?;
    let ours = |it: &&Value| it["metadata"]["labels"][MANAGED_BY] == MANAGER;
    let slices: Vec<&Value> = slices.iter().filter(ours).collect();
    if services.is_empty() && slices.is_empty() {
        return Ok(None);
    }
    let pods = tools.api.list(Resource::of_kind(Kind::Pod)).await?;
    let endpoints = tools.api.list(Resource::of_kind(Kind::Endpoints)).await?;
    let mut wanted: BTreeMap<(String, String), Value> = BTreeMap::new();
    for service in &services {
        let selected = selected(service, &pods);
        for slice in slices_of(service, &selected) {
            wanted.insert(key(&slice), slice);
        }
        let next = endpoints_of(service, &selected);
        let present = endpoints.iter().find(|it| key(it) == key(service));
        write(tools, Kind::Endpoints, present, &next, &["subsets"]).await?;
    }
    for slice in &slices {
        if !wanted.contains_key(&key(slice)) {
            let at = At::of(Resource::of_kind(Kind::EndpointSlice), slice);
            let uid = &slice["metadata"]["uid"];
            tools
                .api
                .delete(at, uid, None, Propagation::Background)
                .await?;
        }
    }
    for (key_of, slice) in &wanted {
        let present = slices.iter().find(|it| key(it) == *key_of);
        let fields = ["endpoints", "ports", "addressType"];
        write(tools, Kind::EndpointSlice, present.copied(), slice, &fields).await?;
    }
    // Endpoints without a Service are collected with their owner; those of Services that no longer select
    // anything are the user's, as in Kubernetes.
    Ok(None)
}

/// Creates the object, or replaces those fields and the labels if they are not as they should be.
async fn write(
    tools: &Tools,
    kind: Kind,
    present: Option<&Value>,
    wanted: &Value,
    fields: &[&str],
) -> Result<(), ApiClientError> {
    let resource = Resource::of_kind(kind);
    let outcome = match present {
        None => {
            let namespace = wanted["metadata"]["namespace"].as_str();
            match tools.api.create(resource, namespace, wanted).await {
                // The namespace is going.
                Err(error) if error.code() == Some(403) => return Ok(()),
                outcome => outcome,
            }
        }
        Some(present) => {
            let mut next = present.clone();
            for field in fields {
                next[*field] = wanted[*field].clone();
            }
            next["metadata"]["labels"] = wanted["metadata"]["labels"].clone();
            let same = |field: &str| next[field] == present[field];
            let labels = next["metadata"]["labels"] == present["metadata"]["labels"];
            if labels && fields.iter().all(|field| same(field)) {
                return Ok(());
            }
            tools.api.replace(At::of(resource, present), &next).await
        }
    };
    match outcome {
        // Its change brings it back here.
        Err(error) if error.is_stale() => Ok(()),
        outcome => outcome.map(drop),
    }
}

fn key(object: &Value) -> (String, String) {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or("").to_owned();
    (text("namespace"), text("name"))
}

/// Pods that the Service selects and that have an address, in the order of their names.
fn selected<'a>(service: &Value, pods: &'a [Value]) -> Vec<&'a Value> {
    let selector = service["spec"]["selector"].as_object();
    let selects = |pod: &&Value| {
        let (metadata, status) = (&pod["metadata"], &pod["status"]);
        let ended = ["Succeeded", "Failed"].contains(&status["phase"].as_str().unwrap_or(""));
        metadata["namespace"] == service["metadata"]["namespace"]
            && !ended
            && !status["podIP"].as_str().unwrap_or("").is_empty()
            && selector.is_some_and(|selector| {
                let mut pairs = selector.iter();
                pairs.all(|(key, value)| metadata["labels"][key] == *value)
            })
    };
    pods.iter().filter(selects).collect()
}

/// The Service's ports as the pod has them; a named port that the pod has not is left out.
fn ports(service: &Value, pod: &Value) -> Value {
    let listed = service["spec"]["ports"].as_array().into_iter().flatten();
    listed
        .filter_map(|port| {
            let number = match &port["targetPort"] {
                Value::String(name) => named_port(pod, name, &port["protocol"])?,
                number => number.as_i64().or_else(|| port["port"].as_i64())?,
            };
            let name = port["name"].as_str().unwrap_or("");
            let mut entry = json!({"name": name, "port": number, "protocol": port["protocol"]});
            if port["appProtocol"].is_string() {
                entry["appProtocol"] = port["appProtocol"].clone();
            }
            Some(entry)
        })
        .collect()
}

fn named_port(pod: &Value, name: &str, protocol: &Value) -> Option<i64> {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let mut ports = containers.flat_map(|it| it["ports"].as_array().into_iter().flatten());
    let found = ports.find(|port| {
        let same = port["protocol"].as_str().unwrap_or("TCP") == protocol.as_str().unwrap_or("TCP");
        port["name"] == name && same
    })?;
    found["containerPort"].as_i64()
}

fn target(pod: &Value) -> Value {
    let metadata = &pod["metadata"];
    json!({
        "kind": "Pod", "namespace": metadata["namespace"], "name": metadata["name"],
        "uid": metadata["uid"],
    })
}

fn endpoint(service: &Value, pod: &Value) -> Value {
    let terminating = !pod["metadata"]["deletionTimestamp"].is_null();
    let serving = is_ready(pod);
    let ready = (serving && !terminating) || service["spec"]["publishNotReadyAddresses"] == true;
    let mut endpoint = json!({
        "addresses": [pod["status"]["podIP"]],
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        "targetRef": target(pod),
    });
    if pod["spec"]["nodeName"].is_string() {
        endpoint["nodeName"] = pod["spec"]["nodeName"].clone();
    }
    if let Some(hostname) = hostname(service, pod) {
        endpoint["hostname"] = hostname;
    }
    endpoint
}

/// Pods of a headless Service may have names of their own in it.
fn hostname(service: &Value, pod: &Value) -> Option<Value> {
    let subdomain = pod["spec"]["subdomain"].as_str()?;
    let hostname = pod["spec"]["hostname"].as_str()?;
    (service["metadata"]["name"] == subdomain).then(|| json!(hostname))
}

fn slices_of(service: &Value, pods: &[&Value]) -> Vec<Value> {
    let mut groups: BTreeMap<String, (Value, Vec<Value>)> = BTreeMap::new();
    for pod in pods {
        let ports = ports(service, pod);
        let (_, endpoints) = groups
            .entry(ports.to_string())
            .or_insert_with(|| (ports, Vec::new()));
        endpoints.push(endpoint(service, pod));
    }
    if groups.is_empty() {
        // A Service without pods has a slice, too, that says so.
        groups.insert(String::new(), (Value::Null, Vec::new()));
    }
    let metadata = &service["metadata"];
    let name = metadata["name"].as_str().unwrap_or("");
    let mut labels = metadata["labels"].clone();
    if !labels.is_object() {
        labels = json!({});
    }
    labels[SERVICE_NAME] = json!(name);
    labels[MANAGED_BY] = json!(MANAGER);
    if service["spec"]["clusterIP"] == "None" {
        labels["service.kubernetes.io/headless"] = json!("");
    }
    let mut slices = Vec::new();
    for (ports, endpoints) in groups.into_values() {
        let mut chunks: Vec<&[Value]> = endpoints.chunks(SLICE_LIMIT).collect();
        if chunks.is_empty() {
            chunks.push(&[]);
        }
        for chunk in chunks {
            let index = slices.len();
            slices.push(json!({
                "metadata": {
                    "namespace": metadata["namespace"], "labels": labels,
                    "name": slice_name(name, &metadata["uid"], index),
                    "generateName": format!("{name}-"),
                    "ownerReferences": [owner_reference(service)],
                },
                "addressType": "IPv4", "endpoints": chunk, "ports": ports,
            }));
        }
    }
    slices
}

/// Follows from the Service, so that a slice is made once: with a suffix as a generated name has.
fn slice_name(name: &str, uid: &Value, index: usize) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let digest = Sha256::digest(format!("{uid}/{index}"));
    let suffix: String = digest
        .iter()
        .take(5)
        .map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]))
        .collect();
    format!("{name}-{suffix}")
}

fn endpoints_of(service: &Value, pods: &[&Value]) -> Value {
    let mut groups: BTreeMap<String, (Value, Vec<Value>, Vec<Value>)> = BTreeMap::new();
    for pod in pods.iter().take(ENDPOINTS_LIMIT) {
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            continue;
        }
        let mut ports = ports(service, pod);
        for port in ports.as_array_mut().into_iter().flatten() {
            if port["name"] == ""
                && let Some(port) = port.as_object_mut()
            {
                port.remove("name");
            }
        }
        let mut address = json!({"ip": pod["status"]["podIP"], "targetRef": target(pod)});
        if pod["spec"]["nodeName"].is_string() {
            address["nodeName"] = pod["spec"]["nodeName"].clone();
        }
        if let Some(hostname) = hostname(service, pod) {
            address["hostname"] = hostname;
        }
        let key = ports.to_string();
        let entry = groups.entry(key);
        let (_, ready, not_ready) = entry.or_insert_with(|| (ports, Vec::new(), Vec::new()));
        if is_ready(pod) || service["spec"]["publishNotReadyAddresses"] == true {
            ready.push(address);
        } else {
            not_ready.push(address);
        }
    }
    let subsets: Vec<Value> = groups
        .into_values()
        .map(|(ports, ready, not_ready)| {
            let mut subset = json!({"ports": ports});
            if !ready.is_empty() {
                subset["addresses"] = json!(ready);
            }
            if !not_ready.is_empty() {
                subset["notReadyAddresses"] = json!(not_ready);
            }
            subset
        })
        .collect();
    let metadata = &service["metadata"];
    let mut labels = metadata["labels"].clone();
    if !labels.is_object() {
        labels = json!({});
    }
    labels["endpoints.kubernetes.io/managed-by"] = json!("endpoint-controller");
    let mut endpoints = json!({
        "metadata": {
            "namespace": metadata["namespace"], "name": metadata["name"], "labels": labels,
            "ownerReferences": [owner_reference(service)],
        },
    });
    if !subsets.is_empty() {
        endpoints["subsets"] = json!(subsets);
    }
    endpoints
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(target: Value) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": "default", "name": "web", "uid": "1"},
            "spec": {"selector": {"app": "web"},
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": target}]},
        })
    }

    fn pod(name: &str, ready: &str, port: i64) -> Value {
        json!({
            "metadata": {"namespace": "default", "name": name, "labels": {"app": "web"}},
            "spec": {"nodeName": "n", "containers": [
                {"ports": [{"name": "http", "containerPort": port, "protocol": "TCP"}]}]},
            "status": {"phase": "Running", "podIP": format!("10.2.1.{port}"),
                "conditions": [{"type": "Ready", "status": ready}]},
        })
    }

    #[test]
    fn pods_are_endpoints_while_they_have_an_address() {
        let pods = [
            pod("a", "True", 1),
            pod("b", "False", 2),
            {
                let mut ending = pod("c", "True", 3);
                ending["metadata"]["deletionTimestamp"] = json!("now");
                ending
            },
            {
                let mut ended = pod("d", "True", 4);
                ended["status"]["phase"] = json!("Succeeded");
                ended
            },
            {
                let mut waiting = pod("e", "True", 5);
                waiting["status"]["podIP"] = Value::Null;
                waiting
            },
            {
                let mut other = pod("f", "True", 6);
                other["metadata"]["labels"] = json!({"app": "api"});
                other
            },
        ];
        let service = service(json!(8080));
        let selected = selected(&service, &pods);
        let slices = slices_of(&service, &selected);
        assert_eq!(slices.len(), 1);
        let states: Vec<(&Value, &Value, &Value)> = slices[0]["endpoints"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|it| {
                let conditions = &it["conditions"];
                (
                    &it["targetRef"]["name"],
                    &conditions["ready"],
                    &conditions["terminating"],
                )
            })
            .collect();
        let (yes, no) = (json!(true), json!(false));
        assert_eq!(
            states,
            [
                (&json!("a"), &yes, &no),
                (&json!("b"), &no, &no),
                (&json!("c"), &no, &yes)
            ]
        );
        assert_eq!(slices[0]["ports"][0]["port"], 8080);
        let endpoints = endpoints_of(&service, &selected);
        let subset = &endpoints["subsets"][0];
        assert_eq!(subset["addresses"][0]["targetRef"]["name"], "a");
        assert_eq!(subset["notReadyAddresses"][0]["targetRef"]["name"], "b");
        assert_eq!(subset["ports"], json!([{"port": 8080, "protocol": "TCP"}]));
    }

    #[test]
    fn slices_are_bounded_and_named_ports_are_the_pods() {
        let pods: Vec<Value> = (0..250)
            .map(|index| pod(&format!("p{index}"), "True", 7))
            .collect();
        let all: Vec<&Value> = pods.iter().collect();
        let sizes = |slices: Vec<Value>| -> Vec<usize> {
            slices
                .iter()
                .map(|it| it["endpoints"].as_array().map_or(0, Vec::len))
                .collect()
        };
        assert_eq!(sizes(slices_of(&service(json!(80)), &all)), [100, 100, 50]);
        assert_eq!(sizes(slices_of(&service(json!(80)), &[])), [0]);
        let (one, other) = (pod("a", "True", 8080), pod("b", "True", 9090));
        let slices = slices_of(&service(json!("http")), &[&one, &other]);
        let numbers: Vec<&Value> = slices.iter().map(|it| &it["ports"][0]["port"]).collect();
        assert_eq!(numbers, [&json!(8080), &json!(9090)]);
        assert_ne!(slices[0]["metadata"]["name"], slices[1]["metadata"]["name"]);
    }
}
