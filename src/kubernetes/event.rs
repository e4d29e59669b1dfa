//! Kubernetes events that the platform tells a cluster's users.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::registry::resource::{Kind, Resource};
use super::registry::{Part, Place, Registry, WriteOptions, seconds};
use super::status::ApiError;

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventSubject {
    /// A Node, by name.
    Node(String),
    /// A NodeGroup, by name.
    NodeGroup(String),
    /// The cluster as a whole: its first namespace.
    Cluster,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    pub fn as_str(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

/// Who tells, in events of the platform's.
const SOURCE: &str = "clever-kubernetes-engine";
/// Events about what is in no namespace are here.
const NAMESPACE: &str = "default";

/// Records an event, or counts it once more if it was told before: as client-go's recorder does.
pub(super) async fn record(
    registry: &Registry,
    about: &EventSubject,
    kind: EventType,
    reason: &str,
    message: &str,
) -> Result<(), ApiError> {
    let involved = involved(registry, about).await?;
    let mut hash = Sha256::new();
    for part in [
        involved["kind"].as_str().unwrap_or(""),
        kind.as_str(),
        reason,
        message,
    ] {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let digest = hash.finalize();
    let suffix: String = digest
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let name = format!("{}.{suffix}", involved["name"].as_str().unwrap_or(""));
    let place = Place {
        resource: Resource::of_kind(Kind::Event),
        namespace: Some(NAMESPACE),
    };
    let now = seconds(registry.now());
    let counted = registry
        .modify(
            place,
            &name,
            Part::Object,
            WriteOptions::by(SOURCE),
            |event| {
                let mut event = event.clone();
                event["count"] =
                    Value::from(event["count"].as_i64().unwrap_or(0).saturating_add(1));
                event["lastTimestamp"] = Value::from(now.clone());
                Ok(event)
            },
        )
        .await;
    match counted {
        Err(error) if error.reason == "NotFound" => {}
        outcome => return outcome.map(drop),
    }
    let event = json!({
        "metadata": {"name": name},
        "involvedObject": involved,
        "type": kind.as_str(), "reason": reason, "message": message, "count": 1,
        "firstTimestamp": now, "lastTimestamp": now,
        "source": {"component": SOURCE},
        "reportingComponent": SOURCE, "reportingInstance": "",
    });
    registry.create(place, event, false).await.map(drop)
}

/// A reference to the object, with its uid if it is there: `kubectl describe` finds events by it.
async fn involved(registry: &Registry, about: &EventSubject) -> Result<Value, ApiError> {
    let (kind, name) = match about {
        EventSubject::Node(name) => (Kind::Node, name.as_str()),
        EventSubject::NodeGroup(name) => (Kind::NodeGroup, name.as_str()),
        EventSubject::Cluster => (Kind::Namespace, NAMESPACE),
    };
    let resource = Resource::of_kind(kind);
    let place = Place {
        resource,
        namespace: None,
    };
    let mut involved = json!({
        "kind": resource.kind, "apiVersion": resource.api_version(), "name": name,
    });
    match registry.get(place, name).await {
        // The kubelet's own events name the node as its uid, and so does what `kubectl describe node` asks for.
        Ok(_) if kind == Kind::Node => involved["uid"] = Value::from(name),
        Ok(object) => involved["uid"] = object["metadata"]["uid"].clone(),
        Err(error) if error.reason == "NotFound" => {}
        Err(error) => return Err(error),
    }
    Ok(involved)
}
