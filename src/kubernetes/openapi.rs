//! OpenAPI v3: the schemas of what is served, by group and version.
//!
//! Built once, from the types of `k8s-openapi`. `kubectl` validates by it, and asks whether a kind's
//! PATCH knows `fieldValidation`: so paths are listed, too.

use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::registry::resource::{RESOURCES, Resource};

/// The documents, by path behind `/openapi/v3/`: `api/v1`, `apis/<group>/<version>`.
static DOCUMENTS: LazyLock<Map<String, Value>> = LazyLock::new(|| {
    let mut documents = Map::new();
    for resource in &RESOURCES {
        let path = path_of(resource);
        if !documents.contains_key(&path) {
            let served: Vec<&Resource> = RESOURCES
                .iter()
                .filter(|other| other.api_version() == resource.api_version())
                .collect();
            documents.insert(path, document(&served));
        }
    }
    documents
});

fn path_of(resource: &Resource) -> String {
    if resource.group.is_empty() {
        format!("api/{}", resource.version)
    } else {
        format!("apis/{}/{}", resource.group, resource.version)
    }
}

/// `/openapi/v3`: where the documents are, below `root`.
pub fn index(root: &str) -> Value {
    let paths: Map<String, Value> = DOCUMENTS
        .keys()
        .map(|path| {
            let url = json!({"serverRelativeURL": format!("{root}/openapi/v3/{path}")});
            (path.clone(), url)
        })
        .collect();
    json!({"paths": paths})
}

pub fn get(path: &str) -> Option<&'static Value> {
    DOCUMENTS.get(path)
}

fn document(served: &[&Resource]) -> Value {
    let mut generator = SchemaSettings::openapi3().into_generator();
    for resource in served {
        if let Some(add) = resource.schema {
            add(&mut generator);
        }
    }
    let mut schemas: Map<String, Value> = generator.take_definitions(true);
    let mut paths = Map::new();
    for resource in served {
        let gvk = json!({
            "group": resource.group, "version": resource.version, "kind": resource.kind
        });
        let name = schema_name(resource);
        if resource.schema.is_none() {
            schemas.insert(name.clone(), node_group_schema());
        }
        if let Some(schema) = schemas.get_mut(&name) {
            schema["x-kubernetes-group-version-kind"] = json!([gvk]);
        }
        let (collection, object) = url_paths(resource);
        paths.insert(
            collection,
            json!({"get": operation(&gvk, &name), "post": operation(&gvk, &name)}),
        );
        paths.insert(
            object,
            json!({
                "get": operation(&gvk, &name), "put": operation(&gvk, &name),
                "patch": operation(&gvk, &name), "delete": operation(&gvk, &name),
            }),
        );
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.36.0"},
        "paths": paths,
        "components": {"schemas": schemas},
    })
}

fn schema_name(resource: &Resource) -> String {
    match resource.group {
        "" => format!("io.k8s.api.core.v1.{}", resource.kind),
        "apps" => format!("io.k8s.api.apps.v1.{}", resource.kind),
        "coordination.k8s.io" => format!("io.k8s.api.coordination.v1.{}", resource.kind),
        "discovery.k8s.io" => format!("io.k8s.api.discovery.v1.{}", resource.kind),
        "policy" => format!("io.k8s.api.policy.v1.{}", resource.kind),
        "storage.k8s.io" => format!("io.k8s.api.storage.v1.{}", resource.kind),
        _ => format!(
            "com.clever-cloud.api.{}.{}",
            resource.version, resource.kind
        ),
    }
}

fn url_paths(resource: &Resource) -> (String, String) {
    let scope = if resource.namespaced {
        "namespaces/{namespace}/"
    } else {
        ""
    };
    let collection = format!("/{}/{scope}{}", path_of(resource), resource.plural);
    let object = format!("{collection}/{{name}}");
    (collection, object)
}

fn operation(gvk: &Value, schema: &str) -> Value {
    let parameter = |name: &str| json!({"name": name, "in": "query", "schema": {"type": "string"}});
    let body = json!({"$ref": format!("#/components/schemas/{schema}")});
    json!({
        "parameters": [parameter("fieldValidation"), parameter("dryRun"), parameter("fieldManager")],
        "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": body}}}},
        "x-kubernetes-group-version-kind": gvk,
    })
}

/// The NodeGroup custom resource (contract cke-models 11.1).
fn node_group_schema() -> Value {
    let text = json!({"type": "string"});
    let taint = json!({
        "type": "object", "required": ["key", "effect"],
        "properties": {
            "key": text, "value": text,
            "effect": {"type": "string", "enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
        },
    });
    let labels = json!({"type": "object", "additionalProperties": text});
    json!({
        "type": "object",
        "description": "A pool of worker VMs of one flavor.",
        "required": ["spec"],
        "properties": {
            "apiVersion": text, "kind": text, "metadata": {"type": "object"},
            "spec": {
                "type": "object", "required": ["flavor", "nodeCount"],
                "properties": {
                    "flavor": {
                        "type": "string", "description": "Size of every node. Immutable.",
                        "enum": ["2XS", "XS", "S", "M", "L", "XL"],
                    },
                    "nodeCount": {
                        "type": "integer", "minimum": 0, "maximum": 16,
                        "description": "How many nodes there should be.",
                    },
                    "labels": labels,
                    "taints": {"type": "array", "items": taint},
                },
            },
            "status": {
                "type": "object",
                "properties": {
                    "phase": text, "upstreamId": text,
                    "nodeCount": {"type": "integer"}, "targetNodeCount": {"type": "integer"},
                    "labels": labels, "taints": {"type": "array", "items": taint},
                    "conditions": {"type": "array", "items": {"type": "object"}},
                },
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_schema_and_a_patch() {
        for resource in &RESOURCES {
            let document = get(&path_of(resource)).expect("a document");
            let schema = &document["components"]["schemas"][schema_name(resource)];
            let gvk = &schema["x-kubernetes-group-version-kind"][0];
            assert_eq!(gvk["kind"], resource.kind);
            let (_, object) = url_paths(resource);
            assert!(
                document["paths"][object]["patch"].is_object(),
                "{}",
                resource.kind
            );
        }
    }
}
