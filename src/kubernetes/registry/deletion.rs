//! Deletion: at once, or a mark that is followed when nothing holds the object any more.

use serde_json::{Value, json};

use super::resource::{Kind, Resource};
use super::{ATTEMPTS, Place, Registry, decode, seconds, with_version, without_version};
use crate::clock::Timestamp;
use crate::kubernetes::status::ApiError;

/// What a delete insists on.
#[derive(Clone, Debug, Default)]
pub struct Preconditions {
    pub uid: Option<String>,
    pub resource_version: Option<String>,
}

/// What becomes of the objects that an object owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// They are collected once it is gone.
    Background,
    /// It waits for them.
    Foreground,
    /// They stay, and have no owner any more.
    Orphan,
}

#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    pub preconditions: Preconditions,
    pub dry_run: bool,
    /// How long a pod may take to end; none: what the pod says.
    pub grace_period_seconds: Option<i64>,
    /// None: in the background.
    pub propagation: Option<Propagation>,
}

/// Holds an object until what it owns is gone.
pub const FOREGROUND: &str = "foregroundDeletion";
/// Holds an object until what it owns has no owner.
pub const ORPHAN: &str = "orphan";

/// What a delete did.
#[derive(Clone, Debug, PartialEq)]
pub enum Deleted {
    /// Gone; this is what it was.
    Now(Value),
    /// Waits for its finalizers.
    Later(Value),
}

impl Registry {
    /// Deletes an object, or marks it if finalizers hold it or it needs time to end.
    pub async fn delete(
        &self,
        place: Place<'_>,
        name: &str,
        preconditions: &Preconditions,
        dry_run: bool,
    ) -> Result<Deleted, ApiError> {
        let options = DeleteOptions {
            preconditions: preconditions.clone(),
            dry_run,
            ..DeleteOptions::default()
        };
        self.delete_with(place, name, &options).await
    }

    /// See [`Registry::delete`].
    pub async fn delete_with(
        &self,
        place: Place<'_>,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Deleted, ApiError> {
        let key = place.key(name);
        for _ in 0..ATTEMPTS {
            let Some(kv) = self.client.get(key.clone()).await?.value else {
                return Err(ApiError::not_found(place.resource, name));
            };
            let current = decode(&kv)?;
            self.check_preconditions(place, name, &current, &options.preconditions)?;
            let Some(mut marked) = marked(&current, options, self.clock.now()) else {
                if options.dry_run {
                    return Ok(Deleted::Now(current));
                }
                match self.remove(&key, kv.mod_revision).await? {
                    Some(revision) => return Ok(Deleted::Now(with_version(current, revision))),
                    None => continue,
                }
            };
            if marked == current || options.dry_run {
                return Ok(Deleted::Later(marked));
            }
            if place.resource.kind == "Namespace" {
                marked["status"]["phase"] = Value::from("Terminating");
            }
            let marked = without_version(marked);
            if let Some(revision) = self.write(&key, kv.mod_revision, &marked).await? {
                return Ok(Deleted::Later(with_version(marked, revision)));
            }
        }
        Err(ApiError::modified(place.resource, name))
    }

    fn check_preconditions(
        &self,
        place: Place<'_>,
        name: &str,
        current: &Value,
        preconditions: &Preconditions,
    ) -> Result<(), ApiError> {
        let metadata = &current["metadata"];
        for (what, asked, is) in [
            ("UID", &preconditions.uid, &metadata["uid"]),
            (
                "ResourceVersion",
                &preconditions.resource_version,
                &metadata["resourceVersion"],
            ),
        ] {
            let is = is.as_str().unwrap_or("");
            if let Some(asked) = asked
                && asked != is
            {
                let why = format!(
                    "Precondition failed: {what} in precondition: {asked}, {what} in object meta: {is}"
                );
                return Err(ApiError::conflict(place.resource, name, &why));
            }
        }
        Ok(())
    }

    /// Removes an emptied namespace whatever holds it. For the namespace controller.
    pub async fn finish_namespace(&self, name: &str) -> Result<(), ApiError> {
        let key = Resource::of_kind(Kind::Namespace).key(None, name);
        let Some(kv) = self.client.get(key.clone()).await?.value else {
            return Ok(());
        };
        let namespace = decode(&kv)?;
        // Finalizers of the metadata are somebody else's to remove.
        let mut finished = without_version(namespace);
        finished["spec"]["finalizers"] = json!([]);
        if is_finished(&finished) {
            self.remove(&key, kv.mod_revision).await?;
        } else {
            self.write(&key, kv.mod_revision, &finished).await?;
        }
        Ok(())
    }
}

fn has_finalizers(object: &Value) -> bool {
    let held = |list: &Value| list.as_array().is_some_and(|list| !list.is_empty());
    held(&object["metadata"]["finalizers"])
        || (object["kind"] == "Namespace" && held(&object["spec"]["finalizers"]))
}

/// Being deleted, and nothing holds it any more, nor does it need more time to end.
pub(super) fn is_finished(object: &Value) -> bool {
    let metadata = &object["metadata"];
    !metadata["deletionTimestamp"].is_null()
        && metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && !has_finalizers(object)
}

/// The object as its deletion leaves it; none if it goes at once.
fn marked(object: &Value, options: &DeleteOptions, now: Timestamp) -> Option<Value> {
    let metadata = &object["metadata"];
    let grace = grace(object, options.grace_period_seconds);
    let finalizer = match options.propagation {
        Some(Propagation::Foreground) => Some(FOREGROUND),
        Some(Propagation::Orphan) => Some(ORPHAN),
        Some(Propagation::Background) | None => None,
    };
    if grace == 0 && finalizer.is_none() && !has_finalizers(object) {
        return None;
    }
    let ending = !metadata["deletionTimestamp"].is_null();
    let left = metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    // Being asked again can only shorten it.
    if ending && grace >= left {
        return Some(object.clone());
    }
    let mut marked = object.clone();
    let metadata = &mut marked["metadata"];
    if let Some(finalizer) = finalizer {
        let mut held: Vec<Value> = metadata["finalizers"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        if !held.contains(&Value::from(finalizer)) {
            held.push(Value::from(finalizer));
        }
        metadata["finalizers"] = Value::from(held);
    }
    let end = Timestamp(now.0.saturating_add(grace.saturating_mul(1000)));
    metadata["deletionTimestamp"] = Value::from(seconds(end));
    metadata["deletionGracePeriodSeconds"] = Value::from(grace);
    Some(marked)
}

/// Seconds that an object is given to end: only what runs on a node needs any.
fn grace(object: &Value, asked: Option<i64>) -> i64 {
    let phase = object["status"]["phase"].as_str().unwrap_or("");
    let runs = object["kind"] == "Pod"
        && object["spec"]["nodeName"]
            .as_str()
            .is_some_and(|node| !node.is_empty())
        && !["Succeeded", "Failed"].contains(&phase);
    if !runs {
        return 0;
    }
    let own = || object["spec"]["terminationGracePeriodSeconds"].as_i64();
    asked.or_else(own).unwrap_or(30).max(0)
}
