//! The controller manager: what makes workloads of what they are asked to be. It acts only while an
//! instance of it works.

pub mod daemon_set;
pub mod deployment;
pub mod disruption;
pub mod endpoints;
pub mod garbage;
pub mod node_lifecycle;
pub mod replica_set;
pub mod stateful_set;
pub mod volume;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::api_client::{ApiClient, ApiClientError, At};
use super::registry::resource::{Kind, Resource};
use super::registry::seconds;
use crate::clock::Timestamp;

/// When to look again if nothing changes before.
pub type Outcome = Option<Timestamp>;

/// What a controller works with for one round.
pub struct Tools {
    pub api: ApiClient,
    /// Milliseconds, as of the round's begin.
    pub now: i64,
}

impl Tools {
    pub fn time(&self) -> String {
        seconds(Timestamp(self.now))
    }

    /// Tells what stays true until something changes: not again if it was told before.
    pub async fn event_once(
        &self,
        object: &Value,
        kind: &str,
        reason: &str,
        message: &str,
        component: &str,
    ) -> Result<(), ApiClientError> {
        let told = self.create_event(object, kind, reason, message, component);
        told.await.map(drop)
    }

    /// Tells of something that was done about `object`. What was told before is counted once more, as
    /// client-go's recorder does, but for the same instant.
    pub async fn event(
        &self,
        object: &Value,
        kind: &str,
        reason: &str,
        message: &str,
        component: &str,
    ) -> Result<(), ApiClientError> {
        let told = self.create_event(object, kind, reason, message, component);
        let Some((namespace, event)) = told.await? else {
            return Ok(());
        };
        let at = At {
            namespace: Some(&namespace),
            ..At::of(Resource::of_kind(Kind::Event), &event)
        };
        let Some(mut before) = self.api.get(at).await? else {
            return Ok(());
        };
        if before["lastTimestamp"] == event["lastTimestamp"] {
            return Ok(());
        }
        before["count"] = json!(count(&before["count"]).saturating_add(1));
        before["lastTimestamp"] = event["lastTimestamp"].clone();
        match self.api.replace(at, &before).await {
            Err(error) if error.is_stale() => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    /// The event and its namespace, if it was told before.
    async fn create_event(
        &self,
        object: &Value,
        kind: &str,
        reason: &str,
        message: &str,
        component: &str,
    ) -> Result<Option<(String, Value)>, ApiClientError> {
        let metadata = &object["metadata"];
        let mut hash = Sha256::new();
        for part in [metadata["uid"].as_str().unwrap_or(""), reason, message] {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        let digest = hash.finalize();
        let suffix: String = digest
            .iter()
            .take(8)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let name = metadata["name"].as_str().unwrap_or("");
        let namespace = metadata["namespace"].as_str().unwrap_or("default");
        let event = json!({
            "metadata": {"name": format!("{name}.{suffix}")},
            "involvedObject": {
                "kind": object["kind"], "apiVersion": object["apiVersion"], "name": name,
                "namespace": metadata["namespace"], "uid": metadata["uid"],
                "resourceVersion": metadata["resourceVersion"],
            },
            "type": kind, "reason": reason, "message": message, "count": 1,
            "firstTimestamp": self.time(), "lastTimestamp": self.time(),
            "source": {"component": component},
            "reportingComponent": component, "reportingInstance": "",
        });
        let resource = Resource::of_kind(Kind::Event);
        match self.api.create(resource, Some(namespace), &event).await {
            Err(error) if error.code() == Some(409) => Ok(Some((namespace.to_owned(), event))),
            // The namespace is going.
            Err(error) if matches!(error.code(), Some(403 | 404)) => Ok(None),
            outcome => outcome.map(|_| None),
        }
    }
}

pub(super) fn sooner(one: Outcome, other: Outcome) -> Outcome {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

pub(super) fn count(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

fn controlled_by(object: &Value, owner: &Value) -> bool {
    object["metadata"]["ownerReferences"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|reference| {
            reference["controller"] == true && reference["uid"] == owner["metadata"]["uid"]
        })
}

fn owner_reference(owner: &Value) -> Value {
    json!({
        "apiVersion": owner["apiVersion"], "kind": owner["kind"],
        "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"],
        "controller": true, "blockOwnerDeletion": true,
    })
}

pub(super) fn ready_condition(pod: &Value) -> Option<&Value> {
    let conditions = pod["status"]["conditions"].as_array()?;
    conditions
        .iter()
        .find(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

fn is_ready(pod: &Value) -> bool {
    ready_condition(pod).is_some()
}

/// Whether the pod has been ready for so many seconds; the error is when it will have been.
fn is_available(pod: &Value, minimum: i64, now: i64) -> Result<bool, Timestamp> {
    let Some(ready) = ready_condition(pod) else {
        return Ok(false);
    };
    let since = parse(&ready["lastTransitionTime"]).unwrap_or(now);
    let due = since.saturating_add(minimum.saturating_mul(1000));
    if due <= now {
        Ok(true)
    } else {
        Err(Timestamp(due))
    }
}

/// Milliseconds of an RFC 3339 time.
pub(super) fn parse(time: &Value) -> Option<i64> {
    use time::format_description::well_known::Rfc3339;
    let parsed = time::OffsetDateTime::parse(time.as_str()?, &Rfc3339).ok()?;
    i64::try_from(parsed.unix_timestamp_nanos() / 1_000_000).ok()
}

/// A number, or a percentage of `total`.
fn scaled(value: &Value, total: i64, up: bool) -> i64 {
    match value {
        Value::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let exact = percent.saturating_mul(total);
            if up {
                (exact + 99).div_euclid(100)
            } else {
                exact.div_euclid(100)
            }
        }
        number => number.as_i64().unwrap_or(0),
    }
}
