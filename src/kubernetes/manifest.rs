//! Manifests that are applied to a cluster for its owner: documents of YAML, each a whole object, as
//! `kubectl apply --server-side --force-conflicts` applies them.

use http::{Method, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::api_client::{ApiClient, ApiClientError};
use super::registry::patch::APPLY;
use super::{Kubernetes, KubernetesError};

/// As whom they are applied.
const MANAGER: &str = "clever-kubernetes-engine";

/// Why a text is no manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidManifest(String);

/// The objects of a text, in its order; a `List` stands for its items, and an empty document for nothing.
///
/// # Errors
/// It is no YAML, or a document is no object that could be applied: it needs `apiVersion`, `kind` and a name.
pub fn parse(text: &str) -> Result<Vec<Value>, InvalidManifest> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|error| InvalidManifest(error.to_string()))?;
    let mut objects = Vec::new();
    for (index, document) in documents.into_iter().enumerate() {
        let invalid = |what: &str| InvalidManifest(format!("document {}: {what}", index + 1));
        let is_list = document["apiVersion"] == "v1" && document["kind"] == "List";
        let items = match document {
            Value::Null => continue,
            Value::Object(mut list) if is_list => match list.remove("items") {
                Some(Value::Array(items)) => items,
                _ => return Err(invalid("a List needs items")),
            },
            other => vec![other],
        };
        for item in items {
            if !item.is_object() {
                return Err(invalid("it is no object"));
            }
            for (field, pointer) in [
                ("apiVersion", "/apiVersion"),
                ("kind", "/kind"),
                ("metadata.name", "/metadata/name"),
            ] {
                let value = item.pointer(pointer).and_then(Value::as_str);
                if value.is_none_or(str::is_empty) {
                    return Err(invalid(&format!("{field} is required")));
                }
            }
            objects.push(item);
        }
    }
    Ok(objects)
}

impl Kubernetes {
    /// Applies manifests, one object after the other. Doing it again changes nothing.
    ///
    /// # Errors
    /// [`KubernetesError::Refused`] in the API's words; anything else may be tried again.
    pub async fn apply_manifests(&self, id: &str, texts: &[String]) -> Result<(), KubernetesError> {
        let refused = |message: String| KubernetesError::Refused {
            cluster: id.to_owned(),
            message,
        };
        self.answering(id).await?;
        let api = ApiClient::new(self, id, MANAGER);
        for text in texts {
            let objects = parse(text).map_err(|error| refused(error.to_string()))?;
            for object in &objects {
                if let Err(error) = apply(&api, object).await {
                    return Err(match error.status() {
                        Some(status) if is_final(status) => {
                            let name = object["metadata"]["name"].as_str().unwrap_or("");
                            let kind = object["kind"].as_str().unwrap_or("");
                            refused(format!("{kind} {name}: {error}"))
                        }
                        _ => KubernetesError::Unavailable(id.to_owned()),
                    });
                }
            }
        }
        Ok(())
    }
}

/// Whether it is of no use to try again.
fn is_final(status: u16) -> bool {
    let conflict = StatusCode::CONFLICT.as_u16();
    let throttled = StatusCode::TOO_MANY_REQUESTS.as_u16();
    (400..500).contains(&status) && status != conflict && status != throttled
}

#[derive(Debug, thiserror::Error)]
enum ApplyError {
    #[error("no matches for kind {kind:?} in version {version:?}")]
    NoKind { kind: String, version: String },
    #[error("{}", .0.message())]
    Api(ApiClientError),
}

impl From<ApiClientError> for ApplyError {
    fn from(error: ApiClientError) -> Self {
        ApplyError::Api(error)
    }
}

impl ApplyError {
    fn status(&self) -> Option<u16> {
        match self {
            ApplyError::NoKind { .. } => Some(StatusCode::NOT_FOUND.as_u16()),
            ApplyError::Api(error) => error.code(),
        }
    }
}

async fn apply(api: &ApiClient, object: &Value) -> Result<(), ApplyError> {
    let version = object["apiVersion"].as_str().unwrap_or("");
    let kind = object["kind"].as_str().unwrap_or("");
    let group = match version.contains('/') {
        true => format!("/apis/{version}"),
        false => format!("/api/{version}"),
    };
    let no_kind = || ApplyError::NoKind {
        kind: kind.to_owned(),
        version: version.to_owned(),
    };
    let found = match api.call(Method::GET, &group, None, "").await {
        Err(error) if error.code() == Some(404) => return Err(no_kind()),
        outcome => outcome?,
    };
    let resources = found["resources"].as_array();
    let is_meant = |it: &&Value| {
        it["kind"] == kind && it["name"].as_str().is_some_and(|name| !name.contains('/'))
    };
    let resource = resources.into_iter().flatten().find(is_meant);
    let resource = resource.ok_or_else(no_kind)?;
    let segment = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let mut path = group;
    if resource["namespaced"] == true {
        let namespace = object["metadata"]["namespace"].as_str();
        let namespace = segment(namespace.unwrap_or("default"));
        path = format!("{path}/namespaces/{namespace}");
    }
    let plural = resource["name"].as_str().unwrap_or("");
    let name = segment(object["metadata"]["name"].as_str().unwrap_or(""));
    path = format!("{path}/{plural}/{name}?fieldManager={MANAGER}&force=true");
    api.call(Method::PATCH, &path, Some(object), APPLY).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_a_row_of_objects() {
        let check = |text: &str, expect: Result<&[&str], &str>| match (parse(text), expect) {
            (Ok(objects), Ok(names)) => {
                let found = objects.iter().map(|object| &object["metadata"]["name"]);
                assert_eq!(found.collect::<Vec<_>>(), names, "{text}");
            }
            (Err(error), Err(part)) => {
                assert!(error.to_string().contains(part), "{text}: {error}");
            }
            (found, _) => panic!("{text}: {found:?}"),
        };
        let a = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n";
        let b = "apiVersion: v1\nkind: Secret\nmetadata: {name: b}\n";
        check("", Ok(&[]));
        check(a, Ok(&["a"]));
        check(&format!("---\n{a}---\n---\n{b}"), Ok(&["a", "b"]));
        let list = "{apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Pod, metadata: {name: c}}]}";
        check(list, Ok(&["c"]));
        check("a: [", Err("line"));
        check("just a text", Err("document 1: it is no object"));
        check(
            &format!("{a}---\nkind: Pod\n"),
            Err("document 2: apiVersion is required"),
        );
        check(
            "apiVersion: v1\nkind: Pod\nmetadata: {generateName: x-}\n",
            Err("metadata.name is required"),
        );
        check("{apiVersion: v1, kind: List}", Err("a List needs items"));
    }
}
