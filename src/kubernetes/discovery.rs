//! What a cluster serves, as clients discover it.

use serde_json::{Value, json};

use super::registry::resource::{RESOURCES, Resource};

/// Groups other than the core one, each with its one version.
fn groups() -> Vec<(&'static str, &'static str)> {
    let mut groups = Vec::new();
    for resource in RESOURCES.iter().filter(|it| !it.group.is_empty()) {
        let group = (resource.group, resource.version);
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    groups
}

fn of_group(group: &str, version: &str) -> Vec<&'static Resource> {
    RESOURCES
        .iter()
        .filter(|resource| resource.group == group && resource.version == version)
        .collect()
}

const VERBS: [&str; 8] = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

fn subresource_verbs(name: &str) -> &'static [&'static str] {
    match name {
        "binding" | "eviction" => &["create"],
        _ => &["get", "patch", "update"],
    }
}

/// Subresource name, and the group, version and kind of its body.
fn subresources(resource: &Resource) -> Vec<(&'static str, Value)> {
    let own = json!({"group": resource.group, "version": resource.version, "kind": resource.kind});
    let mut found = Vec::new();
    if resource.status {
        found.push(("status", own.clone()));
    }
    if resource.scale {
        let scale = json!({"group": "autoscaling", "version": "v1", "kind": "Scale"});
        found.push(("scale", scale));
    }
    match resource.kind {
        "Namespace" => found.push(("finalize", own)),
        "Pod" => {
            let eviction = json!({"group": "policy", "version": "v1", "kind": "Eviction"});
            let binding = json!({"group": "", "version": "v1", "kind": "Binding"});
            found.push(("binding", binding));
            found.push(("eviction", eviction));
        }
        _ => {}
    }
    found
}

/// `/api`
pub fn core_versions(server_address: &str) -> Value {
    json!({
        "kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}],
    })
}

fn group_entry(group: &str, version: &str) -> Value {
    let version = json!({"groupVersion": format!("{group}/{version}"), "version": version});
    json!({"name": group, "versions": [version], "preferredVersion": version})
}

/// `/apis`
pub fn group_list() -> Value {
    let groups: Vec<Value> = groups()
        .into_iter()
        .map(|(group, version)| group_entry(group, version))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/<group>`
pub fn group(name: &str) -> Option<Value> {
    let (group, version) = groups().into_iter().find(|(group, _)| *group == name)?;
    let mut entry = group_entry(group, version);
    entry["kind"] = json!("APIGroup");
    entry["apiVersion"] = json!("v1");
    Some(entry)
}

/// `/api/v1`, `/apis/<group>/<version>`
pub fn resource_list(group: &str, version: &str) -> Option<Value> {
    let served = of_group(group, version);
    let first = served.first()?;
    let mut resources = Vec::new();
    for resource in &served {
        resources.push(json!({
            "name": resource.plural, "singularName": resource.singular,
            "namespaced": resource.namespaced, "kind": resource.kind, "verbs": VERBS,
            "shortNames": resource.short_names, "categories": resource.categories,
        }));
        for (name, body) in subresources(resource) {
            let mut entry = json!({
                "name": format!("{}/{name}", resource.plural), "singularName": "",
                "namespaced": resource.namespaced, "kind": body["kind"], "verbs": subresource_verbs(name),
            });
            if body["group"] != resource.group {
                entry["group"] = body["group"].clone();
                entry["version"] = body["version"].clone();
            }
            resources.push(entry);
        }
    }
    Some(json!({
        "kind": "APIResourceList", "apiVersion": "v1",
        "groupVersion": first.api_version(), "resources": resources,
    }))
}

/// `/api` or `/apis` in one document, for clients that accept aggregated discovery.
pub fn aggregated(core: bool) -> Value {
    let groups = if core { vec![("", "v1")] } else { groups() };
    let items: Vec<Value> = groups
        .into_iter()
        .map(|(group, version)| {
            let resources: Vec<Value> = of_group(group, version)
                .into_iter()
                .map(aggregated_resource)
                .collect();
            let name = if group.is_empty() {
                json!({})
            } else {
                json!({"name": group})
            };
            json!({
                "metadata": name,
                "versions": [{"version": version, "freshness": "Current", "resources": resources}],
            })
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {}, "items": items,
    })
}

fn aggregated_resource(resource: &Resource) -> Value {
    let scope = if resource.namespaced {
        "Namespaced"
    } else {
        "Cluster"
    };
    let subresources: Vec<Value> = subresources(resource)
        .into_iter()
        .map(|(name, body)| {
            json!({"subresource": name, "responseKind": body, "verbs": subresource_verbs(name)})
        })
        .collect();
    json!({
        "resource": resource.plural, "singularResource": resource.singular, "scope": scope,
        "responseKind": {
            "group": resource.group, "version": resource.version, "kind": resource.kind
        },
        "verbs": VERBS, "shortNames": resource.short_names, "categories": resource.categories,
        "subresources": subresources,
    })
}

/// `/version`. `version` is such as `1.36`.
pub fn version(version: &str) -> Value {
    let (major, minor) = version.split_once('.').unwrap_or((version, "0"));
    json!({
        "major": major, "minor": minor, "gitVersion": format!("v{version}.0"),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "", "compiler": "rustc", "platform": "linux/amd64",
    })
}
