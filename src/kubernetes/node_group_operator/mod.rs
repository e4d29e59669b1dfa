//! The node-group operator: NodeGroup resources of the clusters, in agreement with the provider's node groups.
//!
//! What is to be done is [`agreement`]'s to say; here it is done, over the cluster's API and the
//! provider's REST API, and told in the resources' status: phase `Synced` or `QuotaExceeded`, and the
//! conditions of contract cke-models 1.6. What the provider refuses is asked for again after a pause that
//! grows, or when the resource changes, or when the provider says that there may be room.

mod agreement;

use std::collections::BTreeMap;
use std::sync::Arc;

use http::Method;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams,
};
use kube::core::GroupVersionKind;
use parking_lot::Mutex;
use serde_json::{Value, json};

use self::agreement::{Act, Resource, Upstream};
use super::api_client::in_process;
use super::cloud_api::{Accesses, CloudAccess, CloudApi, CloudApiError};
use super::component::{Bell, CLUSTERS_AT_ONCE, ComponentError, Listener, Notice};
use super::pki::Identity;
use super::refusal::{Refusal, Refusals};
use super::registry::seconds;
use super::{Kubernetes, KubernetesError};
use crate::clock::{Clock, Timestamp};
use crate::infra::work_queue::{WorkQueue, Workers, side_by_side};
use crate::leader::Term;

const NAME: &str = "node-group-operator";
/// A resource is not gone before its VMs are.
const FINALIZER: &str = "api.clever-cloud.com/node-group-operator";
/// Rounds of deciding and doing before the cluster goes to the end of the queue.
const TURNS: usize = 8;

/// How the operator leaves resources, by cluster: a write that leaves one so is its own, or changes nothing for it.
/// In memory alone, and bounded by the resources.
type LeftAs = Arc<Mutex<BTreeMap<String, BTreeMap<String, Left>>>>;

/// What of a resource is of interest here.
#[derive(PartialEq)]
struct Left {
    generation: i64,
    deleting: bool,
    held: bool,
    status: Value,
}

impl Left {
    fn of(object: &Value) -> Left {
        let metadata = &object["metadata"];
        let finalizers = metadata["finalizers"].as_array();
        Left {
            generation: metadata["generation"].as_i64().unwrap_or(0),
            deleting: !metadata["deletionTimestamp"].is_null(),
            held: finalizers.is_some_and(|all| all.iter().any(|one| one == FINALIZER)),
            status: object["status"].clone(),
        }
    }
}

/// Tells the operator of clusters that it has to look at.
struct Ears {
    queue: WorkQueue<String>,
    left: LeftAs,
}

impl Listener for Ears {
    fn written(&self, cluster: &str, key: &str, object: Option<&Value>) {
        let Some(name) = key.strip_prefix("/registry/api.clever-cloud.com/nodegroups/") else {
            return;
        };
        let is_as_left = object.is_some_and(|object| {
            let left = self.left.lock();
            let left = left.get(cluster).and_then(|of| of.get(name));
            left.is_some_and(|left| *left == Left::of(object))
        });
        if !is_as_left {
            self.queue.push(cluster.to_owned());
        }
    }

    fn noticed(&self, cluster: &str, notice: Notice) {
        if notice == Notice::NodeGroups {
            self.queue.push(cluster.to_owned());
        }
    }

    fn cluster_changed(&self, cluster: &str) {
        self.queue.push(cluster.to_owned());
    }
}

struct Operator {
    left: LeftAs,
    kubernetes: Kubernetes,
    cloud: CloudApi,
    accesses: Accesses,
    clock: Clock,
    /// By resource.
    refusals: Refusals,
}

/// Starts the operator of every cluster.
pub async fn start(
    kubernetes: Kubernetes,
    accesses: Accesses,
    clock: Clock,
    term: &Term,
) -> Workers {
    let queue: WorkQueue<String> = WorkQueue::new(clock.clone(), term.clone());
    let operator = Arc::new(Operator {
        left: LeftAs::default(),
        cloud: CloudApi::new(),
        kubernetes,
        accesses,
        clock,
        refusals: Refusals::default(),
    });
    let (waiting, woken) = (Arc::clone(&operator), queue.clone());
    let listeners = &operator.kubernetes.inner.listeners;
    listeners.add(Ears {
        queue: queue.clone(),
        left: Arc::clone(&operator.left),
    });
    listeners.add(Bell {
        prefixes: &[],
        notices: &[Notice::Quota],
        wake: Box::new(move |cluster| {
            // Only who was refused has something to ask for again.
            if waiting.refusals.make_room(cluster) {
                woken.push(cluster.to_owned());
            }
        }),
    });
    match operator.kubernetes.cluster_ids().await {
        Ok(clusters) => clusters.into_iter().for_each(|cluster| queue.push(cluster)),
        Err(error) => {
            tracing::warn!(%error, "cannot list clusters: node groups follow their next change");
        }
    }
    queue.start_together(
        CLUSTERS_AT_ONCE,
        |_, _| true,
        move |clusters| {
            let operator = Arc::clone(&operator);
            async move { operator.reconcile_all(clusters).await }
        },
    )
}

/// A resource, and its status as it was read.
struct Seen {
    resource: Resource,
    status: Value,
}

/// What came of a look at a cluster.
enum Looked {
    /// Both sides agree, or there is nothing to agree about.
    Done(Option<Timestamp>),
    /// One of them is to change.
    Differs,
}

impl Operator {
    /// Looks at all of them side by side, and then brings those together that differ, one after the other: what is asked
    /// of the provider, which may refuse it for want of room, is asked in the order of the clusters.
    async fn reconcile_all(
        self: Arc<Self>,
        clusters: Vec<String>,
    ) -> Vec<Result<Option<Timestamp>, ComponentError>> {
        let looked = side_by_side(clusters.clone(), |cluster| {
            let operator = Arc::clone(&self);
            async move { operator.look(&cluster).await }
        });
        let mut outcomes = Vec::new();
        for (looked, cluster) in looked.await.into_iter().zip(clusters) {
            outcomes.push(match looked {
                Ok(Looked::Done(wake)) => Ok(wake),
                Ok(Looked::Differs) => self.reconcile(&cluster).await,
                Err(error) => Err(error),
            });
        }
        outcomes
    }

    /// One look, which changes no more than what the resources say of themselves.
    async fn look(&self, cluster: &str) -> Result<Looked, ComponentError> {
        let Some((access, api)) = self.ways(cluster).await? else {
            return Ok(Looked::Done(None));
        };
        let groups = match self.groups(&access, cluster).await {
            // The provider has let the cluster go: there is nothing to agree with.
            Err(error) if error.is_not_found() => return Ok(Looked::Done(None)),
            outcome => outcome?,
        };
        let seen = list(&api).await?;
        let known: Vec<Resource> = seen.iter().map(|one| one.resource.clone()).collect();
        if !agreement::decide(&known, &groups).is_empty() {
            return Ok(Looked::Differs);
        }
        let now = self.clock.now();
        self.tell(cluster, &api, &seen, &groups, now).await?;
        Ok(Looked::Done(self.wake(cluster, &known)))
    }

    /// How both sides are reached, while the component works.
    async fn ways(
        &self,
        cluster: &str,
    ) -> Result<Option<(CloudAccess, Api<DynamicObject>)>, ComponentError> {
        let works = match self.kubernetes.load(cluster).await {
            Ok(found) => {
                let control_plane = &found.record.control_plane;
                control_plane.serves() && !control_plane.node_group_operator.is_empty()
            }
            Err(KubernetesError::ClusterNotFound(_)) => false,
            Err(error) => return Err(error.into()),
        };
        let access = works.then(|| (self.accesses)(cluster)).flatten();
        let Some(access) = access else {
            // Looked at again when that changes.
            self.refusals.forget(cluster);
            self.left.lock().remove(cluster);
            return Ok(None);
        };
        let identity = Identity {
            user: NAME.to_owned(),
            groups: vec![String::from("system:masters")],
        };
        let api = resources(in_process(&self.kubernetes, cluster, identity, NAME));
        Ok(Some((access, api)))
    }

    async fn reconcile(&self, cluster: &str) -> Result<Option<Timestamp>, ComponentError> {
        let Some((access, api)) = self.ways(cluster).await? else {
            return Ok(None);
        };
        for _ in 0..TURNS {
            let groups = match self.groups(&access, cluster).await {
                // The provider has let the cluster go: there is nothing to agree with.
                Err(error) if error.is_not_found() => return Ok(None),
                outcome => outcome?,
            };
            let seen = list(&api).await?;
            let known: Vec<Resource> = seen.iter().map(|one| one.resource.clone()).collect();
            let acts = agreement::decide(&known, &groups);
            let now = self.clock.now();
            let mut done = false;
            for act in acts {
                done |= self.act(cluster, &access, &api, &known, act, now).await?;
            }
            if !done {
                self.tell(cluster, &api, &seen, &groups, now).await?;
                return Ok(self.wake(cluster, &known));
            }
        }
        // Somebody changes things as fast as they are followed: others have their turn first.
        Ok(Some(self.clock.now()))
    }

    async fn groups(
        &self,
        access: &CloudAccess,
        cluster: &str,
    ) -> Result<Vec<Upstream>, CloudApiError> {
        let path = groups_path(access, cluster);
        let mut groups: Vec<Upstream> = self.cloud.send(access, Method::GET, &path, None).await?;
        for group in &mut groups {
            // Absent values are `null` there, and absent here.
            for taint in group.taints.iter_mut().filter_map(Value::as_object_mut) {
                taint.retain(|_, value| !value.is_null());
            }
        }
        Ok(groups)
    }

    /// Does it, unless it was refused a moment ago. Says whether it was done.
    async fn act(
        &self,
        cluster: &str,
        access: &CloudAccess,
        api: &Api<DynamicObject>,
        known: &[Resource],
        act: Act,
        now: Timestamp,
    ) -> Result<bool, ComponentError> {
        tracing::debug!(cluster, ?act, "node group");
        let parameters = PatchParams::default();
        match act {
            Act::CreateResource { name, of } => {
                let mut spec =
                    json!({"flavor": of.flavor, "nodeCount": of.target_node_count.min(16)});
                if !of.labels.is_empty() {
                    spec["labels"] = json!(of.labels);
                }
                if !of.taints.is_empty() {
                    spec["taints"] = json!(of.taints);
                }
                let object: DynamicObject = serde_json::from_value(json!({
                    "apiVersion": "api.clever-cloud.com/v1", "kind": "NodeGroup",
                    "metadata": {"name": name, "finalizers": [FINALIZER]}, "spec": spec,
                }))?;
                match api.create(&PostParams::default(), &object).await {
                    // Somebody was faster: what there is now is looked at.
                    Err(kube::Error::Api(status)) if status.code == 409 => {}
                    outcome => drop(outcome?),
                }
                self.link(api, &name, &of.id).await
            }
            Act::Hold { resource } => hold(api, &resource, true).await,
            Act::LetGo { resource } => {
                self.refusals.granted(cluster, &resource);
                hold(api, &resource, false).await
            }
            Act::Link { resource, upstream } => self.link(api, &resource, &upstream).await,
            Act::CreateUpstream { resource } => {
                let Some(wanted) = known.iter().find(|one| one.name == resource) else {
                    return Ok(false);
                };
                let path = groups_path(access, cluster);
                let body = json!({
                    "name": wanted.name, "flavor": wanted.flavor,
                    "targetNodeCount": wanted.node_count,
                    "labels": wanted.labels, "taints": wanted.taints,
                });
                let asked = || {
                    self.cloud
                        .send::<Upstream>(access, Method::POST, &path, Some(&body))
                };
                match self.ask(cluster, wanted, now, asked).await? {
                    Some(made) => self.link(api, &resource, &made.id).await,
                    None => Ok(false),
                }
            }
            Act::ScaleUpstream {
                resource,
                upstream,
                count,
            } => {
                let Some(wanted) = known.iter().find(|one| one.name == resource) else {
                    return Ok(false);
                };
                let path = format!("{}/{upstream}", groups_path(access, cluster));
                let ask = || async {
                    let group: Value = self.cloud.send(access, Method::GET, &path, None).await?;
                    // The bounds are the autoscaler's; what somebody wants by hand widens them.
                    let bound = |name: &str| group[name].as_u64().unwrap_or(0);
                    let count_wide = u64::from(count);
                    let body = json!({
                        "name": group["name"], "targetNodeCount": count,
                        "minNodeCount": bound("minNodeCount").min(count_wide),
                        "maxNodeCount": bound("maxNodeCount").max(count_wide),
                    });
                    self.cloud
                        .send::<Upstream>(access, Method::PATCH, &path, Some(&body))
                        .await
                };
                Ok(self.ask(cluster, wanted, now, ask).await?.is_some())
            }
            Act::ScaleResource { resource, count } => {
                let patch = json!({"spec": {"nodeCount": count}});
                let scaled = api
                    .patch(&resource, &parameters, &Patch::Merge(patch))
                    .await;
                unless_gone(scaled)
            }
            Act::DeleteUpstream { resource, upstream } => {
                let Some(wanted) = known.iter().find(|one| one.name == resource) else {
                    return Ok(false);
                };
                let path = format!("{}/{upstream}", groups_path(access, cluster));
                let asked = || {
                    self.cloud
                        .send::<Upstream>(access, Method::DELETE, &path, None)
                };
                Ok(self.ask(cluster, wanted, now, asked).await?.is_some())
            }
            Act::DeleteResource { resource } => {
                match api.delete(&resource, &DeleteParams::default()).await {
                    Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
                    outcome => {
                        outcome?;
                        Ok(true)
                    }
                }
            }
        }
    }

    async fn link(
        &self,
        api: &Api<DynamicObject>,
        resource: &str,
        upstream: &str,
    ) -> Result<bool, ComponentError> {
        let patch = json!({"status": {"upstreamId": upstream}});
        let parameters = PatchParams::default();
        let linked = api
            .patch_status(resource, &parameters, &Patch::Merge(patch))
            .await;
        unless_gone(linked)
    }

    /// Asks the provider, unless it refused a moment ago. `None` is a refusal, kept to be told.
    async fn ask<F>(
        &self,
        cluster: &str,
        resource: &Resource,
        now: Timestamp,
        request: impl FnOnce() -> F,
    ) -> Result<Option<Upstream>, ComponentError>
    where
        F: Future<Output = Result<Upstream, CloudApiError>>,
    {
        let asked = resource.generation.to_string();
        if self.refusals.hold(cluster, &resource.name, &asked, now) {
            return Ok(None);
        }
        match request().await {
            Ok(answer) => {
                self.refusals.granted(cluster, &resource.name);
                Ok(Some(answer))
            }
            Err(error @ CloudApiError::Refused { .. }) => {
                self.refusals
                    .refuse(cluster, &resource.name, &asked, &error, now);
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Writes what a resource's status does not say yet.
    async fn tell(
        &self,
        cluster: &str,
        api: &Api<DynamicObject>,
        seen: &[Seen],
        groups: &[Upstream],
        now: Timestamp,
    ) -> Result<(), ComponentError> {
        let refusals = self.refusals.of_cluster(cluster);
        for Seen { resource, status } in seen {
            let id = resource.upstream_id.as_ref();
            let group = groups.iter().find(|group| Some(&group.id) == id);
            let refusal = refusals.get(&resource.name);
            let told = told(resource, status, group, refusal, now);
            if told == *status {
                continue;
            }
            let left = Left {
                generation: resource.generation,
                deleting: resource.deleting,
                held: resource.held,
                status: told.clone(),
            };
            self.leave(cluster, &resource.name, left);
            let patch = Patch::Merge(json!({"status": told}));
            let parameters = PatchParams::default();
            let written = api.patch_status(&resource.name, &parameters, &patch).await;
            unless_gone(written)?;
        }
        Ok(())
    }

    fn leave(&self, cluster: &str, resource: &str, left: Left) {
        let mut all = self.left.lock();
        let of_cluster = all.entry(cluster.to_owned()).or_default();
        of_cluster.insert(resource.to_owned(), left);
    }

    /// When to ask again for what was refused; what concerns resources that are gone is forgotten.
    fn wake(&self, cluster: &str, known: &[Resource]) -> Option<Timestamp> {
        let is_known = |name: &str| known.iter().any(|one| one.name == *name);
        self.refusals.retain(cluster, is_known);
        if let Some(of_cluster) = self.left.lock().get_mut(cluster) {
            of_cluster.retain(|name, _| is_known(name));
        }
        self.refusals.wake(cluster)
    }
}

fn groups_path(access: &CloudAccess, cluster: &str) -> String {
    format!(
        "/v4/kubernetes/organisations/{}/clusters/{cluster}/node-groups",
        access.organisation
    )
}

fn resources(client: kube::Client) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("api.clever-cloud.com", "v1", "NodeGroup");
    Api::all_with(
        client,
        &ApiResource::from_gvk_with_plural(&kind, "nodegroups"),
    )
}

/// Adds the operator's finalizer or takes it away; those of others stay.
async fn hold(
    api: &Api<DynamicObject>,
    resource: &str,
    held: bool,
) -> Result<bool, ComponentError> {
    let Some(mut object) = api.get_opt(resource).await? else {
        return Ok(false);
    };
    let finalizers = object.metadata.finalizers.get_or_insert_default();
    finalizers.retain(|other| other != FINALIZER);
    if held {
        finalizers.push(FINALIZER.to_owned());
    }
    // With the version that was read: nobody's finalizer is lost.
    let replaced = api.replace(resource, &PostParams::default(), &object).await;
    match replaced {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(true),
        outcome => unless_gone(outcome),
    }
}

/// Whether there was something to write.
fn unless_gone<T>(outcome: Result<T, kube::Error>) -> Result<bool, ComponentError> {
    match outcome {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        outcome => Ok(outcome.map(|_| true)?),
    }
}

async fn list(api: &Api<DynamicObject>) -> Result<Vec<Seen>, ComponentError> {
    let listed = api.list(&ListParams::default()).await?;
    Ok(listed.items.into_iter().map(seen).collect())
}

fn seen(object: DynamicObject) -> Seen {
    let (spec, status) = (&object.data["spec"], object.data["status"].clone());
    let count = |value: &Value| value.as_u64().and_then(|count| u32::try_from(count).ok());
    let labels = spec["labels"].as_object().into_iter().flatten();
    let metadata = object.metadata;
    Seen {
        resource: Resource {
            name: metadata.name.unwrap_or_default(),
            generation: metadata.generation.unwrap_or(0),
            flavor: spec["flavor"].as_str().unwrap_or("").to_owned(),
            node_count: count(&spec["nodeCount"]).unwrap_or(0),
            labels: labels
                .map(|(key, value)| (key.clone(), value.as_str().unwrap_or("").to_owned()))
                .collect(),
            taints: spec["taints"].as_array().cloned().unwrap_or_default(),
            deleting: metadata.deletion_timestamp.is_some(),
            held: metadata
                .finalizers
                .is_some_and(|all| all.iter().any(|one| one == FINALIZER)),
            upstream_id: status["upstreamId"].as_str().map(str::to_owned),
            agreed: count(&status["targetNodeCount"]),
        },
        status,
    }
}

/// What the status should say.
fn told(
    resource: &Resource,
    before: &Value,
    group: Option<&Upstream>,
    refusal: Option<&Refusal>,
    now: Timestamp,
) -> Value {
    let mut status = if before.is_object() {
        before.clone()
    } else {
        json!({})
    };
    let mut ready = false;
    status["nodeCount"] = json!(group.map_or(0, |group| group.current_node_count));
    if let Some(group) = group {
        ready = group.status == "READY";
        if group.target_node_count.min(16) == resource.node_count {
            status["targetNodeCount"] = json!(group.target_node_count);
        }
        status["labels"] = json!(group.labels);
        status["taints"] = json!(group.taints);
    }
    let over_quota = refusal.is_some_and(|refusal| refusal.quota);
    let agreed = group.is_some_and(|group| group.target_node_count.min(16) == resource.node_count);
    if over_quota {
        status["phase"] = json!("QuotaExceeded");
    } else if agreed {
        status["phase"] = json!("Synced");
    }
    let (reason, message) = match refusal {
        Some(refusal) if refusal.quota => ("QuotaExceeded", refusal.message.as_str()),
        Some(refusal) => ("Refused", refusal.message.as_str()),
        None => ("Accepted", ""),
    };
    let in_progress = !(ready && agreed) && refusal.is_none();
    let conditions = [
        (
            "Ready",
            ready,
            if ready { "NodesReady" } else { "NodesNotReady" },
            "",
        ),
        (
            "ReconcileInProgress",
            in_progress,
            if in_progress {
                "Reconciling"
            } else {
                "Settled"
            },
            "",
        ),
        ("ReconcileFailed", refusal.is_some(), reason, message),
        (
            "Terminating",
            resource.deleting,
            if resource.deleting {
                "Draining"
            } else {
                "InUse"
            },
            "",
        ),
    ];
    let earlier = before["conditions"].as_array().cloned().unwrap_or_default();
    let written: Vec<Value> = conditions
        .into_iter()
        .map(|(kind, holds, reason, message)| {
            let holds = if holds { "True" } else { "False" };
            let last = earlier
                .iter()
                .find(|other| other["type"] == kind && other["status"] == holds);
            let since = last.map_or_else(
                || json!(seconds(now)),
                |last| last["lastTransitionTime"].clone(),
            );
            json!({
                "type": kind, "status": holds, "reason": reason, "message": message,
                "lastTransitionTime": since, "observedGeneration": resource.generation,
            })
        })
        .collect();
    status["conditions"] = json!(written);
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_of_interest_makes_a_resource_another() {
        let resource = json!({
            "metadata": {"generation": 2, "finalizers": [FINALIZER], "resourceVersion": "7"},
            "spec": {"nodeCount": 2}, "status": {"phase": "Synced"},
        });
        let check = |pointer: &str, value: Value, expect: bool| {
            let mut other = resource.clone();
            let (parent, field) = pointer.rsplit_once('/').expect("a pointer");
            other.pointer_mut(parent).expect(parent)[field] = value;
            assert_eq!(Left::of(&other) == Left::of(&resource), expect, "{pointer}");
        };
        check("/metadata/resourceVersion", json!("8"), true);
        check("/metadata/labels", json!({"a": "b"}), true);
        check("/metadata/generation", json!(3), false);
        check(
            "/metadata/deletionTimestamp",
            json!("2026-01-01T00:00:00Z"),
            false,
        );
        check("/metadata/finalizers", json!([]), false);
        check("/status/phase", json!("QuotaExceeded"), false);
        check("/status/nodeCount", json!(1), false);
    }
}
