//! What is asked of an object by a name behind its own: `scale`, `eviction`, `binding`.

use http::{Request, Response, StatusCode};
use serde_json::{Value, json};

use super::Exchange;
use super::media::{content_type, json_response, object_of};
use crate::kubernetes::body::{Body, Incoming};
use crate::kubernetes::eviction;
use crate::kubernetes::registry::patch::{self, PatchType};
use crate::kubernetes::registry::selector::selector_text;
use crate::kubernetes::registry::{Part, WriteOptions, seconds};
use crate::kubernetes::status::ApiError;

impl Exchange<'_> {
    /// `scale`: how many replicas there are to be, whatever the kind calls them.
    pub(super) async fn scale(
        &self,
        name: &str,
        verb: &str,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        let registry = &self.cluster.registry;
        let replicas = self.place.resource.replicas();
        let scaled = match verb {
            "get" => registry.get(self.place, name).await?,
            "update" | "patch" => {
                let manager = self.manager(request.headers());
                let options = WriteOptions {
                    subresource: "scale",
                    ..self.write(&manager)?
                };
                let kind = match verb {
                    "patch" => Some(match content_type(request.headers()) {
                        // A Scale has no lists: the strategic patch is the merge patch.
                        "application/strategic-merge-patch+json" => PatchType::Merge,
                        other => PatchType::of(other, self.place.resource)?,
                    }),
                    _ => None,
                };
                let body = object_of(request).await?;
                registry
                    .modify(self.place, name, Part::Object, options, |current| {
                        let scale = match kind {
                            Some(kind) => patch::apply(kind, scale_of(current, replicas), &body)?,
                            None => body.clone(),
                        };
                        let mut next = current.clone();
                        // A Scale that does not say means none.
                        next["spec"][replicas] = match &scale["spec"]["replicas"] {
                            Value::Null => json!(0),
                            given => given.clone(),
                        };
                        if let Some(version) = scale["metadata"]["resourceVersion"].as_str() {
                            next["metadata"]["resourceVersion"] = json!(version);
                        }
                        Ok(next)
                    })
                    .await?
            }
            _ => return Err(ApiError::method_not_allowed()),
        };
        Ok(json_response(StatusCode::OK, &scale_of(&scaled, replicas)))
    }

    /// `eviction`: policy/v1.
    pub(super) async fn evict(
        &self,
        name: &str,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        let eviction = object_of(request).await?;
        let given = eviction["metadata"]["name"].as_str().unwrap_or(name);
        if given != name {
            return Err(ApiError::bad_request(format!(
                "name in URL does not match name in Eviction object: {name} != {given}"
            )));
        }
        let options = self.delete_options(&eviction["deleteOptions"])?;
        eviction::evict(&self.cluster.registry, self.place, name, &options).await?;
        Ok(json_response(StatusCode::CREATED, &success()))
    }

    /// `binding`: the pod gets its node, once and for all.
    pub(super) async fn bind(
        &self,
        name: &str,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        let binding = object_of(request).await?;
        let Some(node) = binding["target"]["name"]
            .as_str()
            .filter(|node| !node.is_empty())
        else {
            return Err(ApiError::bad_request("target.name: Required value"));
        };
        let now = seconds(self.cluster.registry.now());
        let resource = self.place.resource;
        self.cluster
            .registry
            .bind(self.place, name, self.dry_run()?, |pod| {
                let conflict = |why: String| Err(ApiError::conflict(resource, name, &why));
                if !pod["metadata"]["deletionTimestamp"].is_null() {
                    return conflict(format!(
                        "pod {name} is being deleted, cannot be assigned to a host"
                    ));
                }
                if let Some(bound) = pod["spec"]["nodeName"].as_str().filter(|it| !it.is_empty()) {
                    return conflict(format!(
                        "pod {name} is already assigned to node \"{bound}\""
                    ));
                }
                let mut next = pod.clone();
                next["spec"]["nodeName"] = json!(node);
                let conditions = next["status"]["conditions"].as_array();
                let others = conditions.into_iter().flatten();
                let mut conditions: Vec<Value> = others
                    .filter(|it| it["type"] != "PodScheduled")
                    .cloned()
                    .collect();
                conditions.push(json!({
                    "type": "PodScheduled", "status": "True", "lastTransitionTime": now,
                    "lastProbeTime": null,
                }));
                next["status"]["conditions"] = Value::from(conditions);
                Ok(next)
            })
            .await?;
        Ok(json_response(StatusCode::CREATED, &success()))
    }
}

fn success() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}

fn scale_of(object: &Value, replicas: &str) -> Value {
    let metadata = &object["metadata"];
    let mut scale = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": metadata["name"], "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
            "creationTimestamp": metadata["creationTimestamp"],
        },
        "spec": {"replicas": object["spec"][replicas]},
        "status": {"replicas": object["status"][replicas].as_i64().unwrap_or(0)},
    });
    if metadata["namespace"].is_string() {
        scale["metadata"]["namespace"] = metadata["namespace"].clone();
    }
    if object["spec"]["selector"].is_object() {
        scale["status"]["selector"] = json!(selector_text(&object["spec"]["selector"]));
    }
    scale
}
