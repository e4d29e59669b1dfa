//! What an object is given if it does not say.

use serde_json::{Value, json};

use super::resource::Resource;

/// Fills in what kube-apiserver fills in, as far as `kubectl` and controllers look at it.
pub fn fill(resource: &Resource, object: &mut Value) {
    let set = |object: &mut Value, field: &str, value: Value| {
        if object[field].is_null() {
            object[field] = value;
        }
    };
    // Empty collections are not there, as in Kubernetes' own encoding.
    for field in ["finalizers", "ownerReferences", "annotations", "labels"] {
        let given = &object["metadata"][field];
        if given == &json!([]) || given == &json!({}) || given.is_null() {
            super::remove(&mut object["metadata"], field);
        }
    }
    match resource.kind {
        "Namespace" => {
            let name = object["metadata"]["name"].clone();
            object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
            set(object, "spec", json!({}));
            set(&mut object["spec"], "finalizers", json!(["kubernetes"]));
            set(object, "status", json!({"phase": "Active"}));
        }
        "Pod" => {
            let spec = &mut object["spec"];
            pod_spec(spec);
            // By admission, and so not in templates.
            set(spec, "serviceAccountName", json!("default"));
            set(spec, "serviceAccount", spec["serviceAccountName"].clone());
            set(spec, "enableServiceLinks", json!(true));
            set(spec, "priority", json!(0));
            set(spec, "preemptionPolicy", json!("PreemptLowerPriority"));
            tolerate_outages(spec);
            let class = quality_of_service(&object["spec"]);
            set(
                object,
                "status",
                json!({"phase": "Pending", "qosClass": class}),
            );
        }
        "Deployment" => {
            let spec = &mut object["spec"];
            set(spec, "replicas", json!(1));
            set(spec, "strategy", json!({}));
            let strategy = &mut spec["strategy"];
            if strategy["type"].as_str().unwrap_or("").is_empty() {
                strategy["type"] = json!("RollingUpdate");
            }
            if strategy["type"] == "RollingUpdate" {
                set(strategy, "rollingUpdate", json!({}));
                set(
                    &mut strategy["rollingUpdate"],
                    "maxUnavailable",
                    json!("25%"),
                );
                set(&mut strategy["rollingUpdate"], "maxSurge", json!("25%"));
            }
            set(spec, "revisionHistoryLimit", json!(10));
            set(spec, "progressDeadlineSeconds", json!(600));
            pod_spec(&mut spec["template"]["spec"]);
        }
        "ReplicaSet" => {
            let spec = &mut object["spec"];
            set(spec, "replicas", json!(1));
            pod_spec(&mut spec["template"]["spec"]);
            set(object, "status", json!({"replicas": 0}));
        }
        "StatefulSet" => {
            let spec = &mut object["spec"];
            set(spec, "replicas", json!(1));
            set(spec, "podManagementPolicy", json!("OrderedReady"));
            set(spec, "revisionHistoryLimit", json!(10));
            set(
                spec,
                "persistentVolumeClaimRetentionPolicy",
                json!({"whenDeleted": "Retain", "whenScaled": "Retain"}),
            );
            rolling(spec, json!({"partition": 0}));
            let templates = spec["volumeClaimTemplates"].as_array_mut();
            for template in templates.into_iter().flatten() {
                set(template, "apiVersion", json!("v1"));
                set(template, "kind", json!("PersistentVolumeClaim"));
                set(&mut template["spec"], "volumeMode", json!("Filesystem"));
                template["status"] = json!({"phase": "Pending"});
                super::remove(&mut template["metadata"], "creationTimestamp");
            }
            pod_spec(&mut spec["template"]["spec"]);
            set(
                object,
                "status",
                json!({"replicas": 0, "availableReplicas": 0}),
            );
        }
        "DaemonSet" => {
            let spec = &mut object["spec"];
            set(spec, "revisionHistoryLimit", json!(10));
            rolling(spec, json!({"maxUnavailable": 1, "maxSurge": 0}));
            pod_spec(&mut spec["template"]["spec"]);
            let status = json!({
                "currentNumberScheduled": 0, "numberMisscheduled": 0,
                "desiredNumberScheduled": 0, "numberReady": 0,
            });
            set(object, "status", status);
        }
        "StorageClass" => {
            set(object, "reclaimPolicy", json!("Delete"));
            set(object, "volumeBindingMode", json!("Immediate"));
        }
        "PersistentVolume" => {
            set(object, "spec", json!({}));
            let spec = &mut object["spec"];
            set(spec, "persistentVolumeReclaimPolicy", json!("Retain"));
            set(spec, "volumeMode", json!("Filesystem"));
            set(object, "status", json!({"phase": "Pending"}));
        }
        "PersistentVolumeClaim" => {
            set(object, "spec", json!({}));
            set(&mut object["spec"], "volumeMode", json!("Filesystem"));
            set(object, "status", json!({"phase": "Pending"}));
        }
        "Service" => {
            let spec = &mut object["spec"];
            set(spec, "type", json!("ClusterIP"));
            set(spec, "sessionAffinity", json!("None"));
            set(spec, "internalTrafficPolicy", json!("Cluster"));
            // Typed clients send empty texts for what is not set.
            for field in ["clusterIP", "externalTrafficPolicy", "loadBalancerClass"] {
                if spec[field] == "" {
                    spec[field] = Value::Null;
                }
            }
            if spec["type"] == "NodePort" || spec["type"] == "LoadBalancer" {
                set(spec, "externalTrafficPolicy", json!("Cluster"));
            }
            if spec["type"] == "LoadBalancer" {
                set(spec, "allocateLoadBalancerNodePorts", json!(true));
            }
            for port in spec["ports"].as_array_mut().into_iter().flatten() {
                set(port, "protocol", json!("TCP"));
                // Typed clients send 0 for what is not set.
                if port["targetPort"].is_null() || port["targetPort"] == 0 {
                    port["targetPort"] = port["port"].clone();
                }
            }
            set(object, "status", json!({"loadBalancer": {}}));
        }
        "Secret" => {
            set(object, "type", json!("Opaque"));
            fold_string_data(object);
        }
        "Node" => {
            set(object, "spec", json!({}));
        }
        _ => {}
    }
}

/// How a set replaces its pods if it does not say, and within what limits.
fn rolling(spec: &mut Value, limits: Value) {
    let strategy = &mut spec["updateStrategy"];
    if strategy["type"].as_str().unwrap_or("").is_empty() {
        strategy["type"] = json!("RollingUpdate");
    }
    if strategy["type"] != "RollingUpdate" {
        return;
    }
    for (field, value) in limits.as_object().into_iter().flatten() {
        if strategy["rollingUpdate"][field].is_null() {
            strategy["rollingUpdate"][field] = value.clone();
        }
    }
}

/// What a pod's spec, and a template's, is given if it does not say.
fn pod_spec(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    let set = |object: &mut Value, field: &str, value: Value| {
        if object[field].is_null() {
            object[field] = value;
        }
    };
    set(spec, "restartPolicy", json!("Always"));
    set(spec, "terminationGracePeriodSeconds", json!(30));
    set(spec, "dnsPolicy", json!("ClusterFirst"));
    set(spec, "schedulerName", json!("default-scheduler"));
    set(spec, "securityContext", json!({}));
    for container in spec["containers"].as_array_mut().into_iter().flatten() {
        let latest = container["image"].as_str().is_some_and(|image| {
            let name = image.rsplit('/').next().unwrap_or(image);
            !name.contains([':', '@']) || name.ends_with(":latest")
        });
        let policy = if latest { "Always" } else { "IfNotPresent" };
        set(container, "imagePullPolicy", json!(policy));
        set(container, "resources", json!({}));
        set(
            container,
            "terminationMessagePath",
            json!("/dev/termination-log"),
        );
        set(container, "terminationMessagePolicy", json!("File"));
        for port in container["ports"].as_array_mut().into_iter().flatten() {
            set(port, "protocol", json!("TCP"));
        }
    }
}

/// A pod stays five minutes on a node that is not ready (admission plugin DefaultTolerationSeconds).
fn tolerate_outages(spec: &mut Value) {
    const SECONDS: i64 = 300;
    let mut tolerations: Vec<Value> = spec["tolerations"].as_array().cloned().unwrap_or_default();
    for key in [
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    ] {
        let tolerated = tolerations.iter().any(|toleration| {
            let theirs = toleration["key"].as_str().unwrap_or("");
            let effect = toleration["effect"].as_str().unwrap_or("");
            (theirs == key || theirs.is_empty()) && (effect == "NoExecute" || effect.is_empty())
        });
        if !tolerated {
            tolerations.push(json!({
                "key": key, "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": SECONDS,
            }));
        }
    }
    spec["tolerations"] = Value::from(tolerations);
}

/// The class that decides who is evicted first: `Guaranteed` if every container's requests are its
/// limits, for CPU and memory; `BestEffort` if no container has any.
fn quality_of_service(spec: &Value) -> &'static str {
    let containers = ["containers", "initContainers"]
        .iter()
        .flat_map(|field| spec[*field].as_array().into_iter().flatten());
    let (mut any, mut all) = (false, true);
    for container in containers {
        for resource in ["cpu", "memory"] {
            let limit = &container["resources"]["limits"][resource];
            let request = &container["resources"]["requests"][resource];
            any |= !limit.is_null() || !request.is_null();
            all &= !limit.is_null() && (request.is_null() || request == limit);
        }
    }
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// `stringData` is write-only: it goes into `data`, encoded.
fn fold_string_data(object: &mut Value) {
    use base64::Engine as _;
    let Some(texts) = object
        .as_object_mut()
        .and_then(|map| map.remove("stringData"))
    else {
        return;
    };
    for (key, text) in texts.as_object().into_iter().flatten() {
        let encoded = base64::engine::general_purpose::STANDARD.encode(text.as_str().unwrap_or(""));
        object["data"][key] = Value::from(encoded);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_classed_by_their_resources() {
        let check = |resources: [Value; 2], expect: &str| {
            let [first, second] = resources;
            let spec = json!({"containers": [{"resources": first}, {"resources": second}]});
            assert_eq!(quality_of_service(&spec), expect, "{spec}");
        };
        let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        let equal = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1"}});
        let less = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}});
        let some = json!({"requests": {"memory": "1Gi"}});
        check([json!({}), Value::Null], "BestEffort");
        check([full.clone(), equal], "Guaranteed");
        check([full.clone(), less], "Burstable");
        check([full, json!({})], "Burstable");
        check([some, json!({})], "Burstable");
    }
}
