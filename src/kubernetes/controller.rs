//! The controllers of the clusters' components, and what runs them: one queue of (cluster, controller) for all
//! clusters, fed by the registries' changes. A cluster in which nothing changes costs nothing: no watch, no
//! timer, no connection.
//!
//! A controller acts only while the control plane has an instance of its component; of several, the one that
//! holds the Lease `kube-system/<component>`. The Lease is written when its holder changes and not at an
//! interval: renewals would tell nothing that the VMs' state does not, and keep a manual clock from ever being
//! idle.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::api_client::{ApiClient, ApiClientError, At};
use super::component::{Listener, Notice};
use super::controller_manager::{Outcome, Tools, deployment, disruption, garbage, replica_set};
use super::registry::resource::{Kind, Resource};
use super::registry::{FOREGROUND, ORPHAN};
use super::{ControlPlane, Kubernetes, KubernetesError, scheduler};
use crate::clock::{Clock, Timestamp};
use crate::infra::work_queue::{WorkQueue, Workers};
use crate::leader::Term;

/// How long a holder would keep the Lease without renewing it, as Kubernetes' default.
const LEASE_SECONDS: u32 = 15;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Controller {
    Deployment,
    ReplicaSet,
    Disruption,
    Garbage,
    Scheduler,
}

const ALL: [Controller; 5] = [
    Controller::Deployment,
    Controller::ReplicaSet,
    Controller::Disruption,
    Controller::Garbage,
    Controller::Scheduler,
];

impl Controller {
    /// The component that the controller is part of: its Lease's name.
    fn component(self) -> &'static str {
        match self {
            Controller::Scheduler => "kube-scheduler",
            _ => "kube-controller-manager",
        }
    }

    fn instances(self, control_plane: &ControlPlane) -> &[String] {
        match self {
            Controller::Scheduler => &control_plane.scheduler,
            _ => &control_plane.controller_manager,
        }
    }

    /// Whether the controller looks at the object under `key`, which is `object` now, or gone.
    fn is_concerned(self, key: &str, object: Option<&Value>) -> bool {
        let of = |kinds: &[&str]| kinds.iter().any(|kind| key.starts_with(kind));
        match self {
            Controller::Deployment => of(&["/registry/deployments/", "/registry/replicasets/"]),
            Controller::ReplicaSet => of(&["/registry/replicasets/", "/registry/pods/"]),
            Controller::Disruption => of(&[
                "/registry/poddisruptionbudgets/",
                "/registry/pods/",
                "/registry/replicasets/",
            ]),
            Controller::Scheduler => of(&["/registry/pods/", "/registry/minions/"]),
            Controller::Garbage => {
                !of(&["/registry/events/", "/registry/leases/"])
                    && object.is_none_or(|object| {
                        let held = object["metadata"]["finalizers"].as_array();
                        held.into_iter().flatten().any(|it| it == FOREGROUND || it == ORPHAN)
                            // Made by a controller whose object may have gone meanwhile.
                            || (object["metadata"]["ownerReferences"].is_array()
                                && object["status"]["phase"] == "Pending"
                                && object["spec"]["nodeName"].is_null())
                            || key.starts_with("/registry/replicasets/")
                    })
            }
        }
    }
}

/// Work on the clusters' controllers.
type Queue = WorkQueue<(String, Controller)>;

impl Listener for Queue {
    fn written(&self, cluster: &str, key: &str, object: Option<&Value>) {
        for controller in ALL {
            if controller.is_concerned(key, object) {
                self.push((cluster.to_owned(), controller));
            }
        }
    }

    fn noticed(&self, _: &str, _: Notice) {}

    fn cluster_changed(&self, cluster: &str) {
        for controller in ALL {
            self.push((cluster.to_owned(), controller));
        }
    }
}

/// Starts the controllers of every cluster.
pub async fn start(kubernetes: Kubernetes, clock: Clock, term: &Term) -> Workers {
    let queue: Queue = WorkQueue::new(clock.clone(), term.clone());
    kubernetes.inner.listeners.add(queue.clone());
    match kubernetes.cluster_ids().await {
        Ok(clusters) => clusters
            .iter()
            .for_each(|cluster| queue.cluster_changed(cluster)),
        Err(error) => {
            tracing::warn!(%error, "cannot list clusters: controllers follow their next change");
        }
    }
    let controllers = Arc::new(Controllers {
        kubernetes,
        clock,
        holders: Mutex::new(BTreeMap::new()),
    });
    queue.start(move |(cluster, controller)| {
        let controllers = Arc::clone(&controllers);
        async move { controllers.round(&cluster, controller).await }
    })
}

#[derive(Debug, thiserror::Error)]
enum ControllerError {
    #[error(transparent)]
    Kubernetes(#[from] KubernetesError),
    #[error(transparent)]
    Api(#[from] ApiClientError),
}

struct Controllers {
    kubernetes: Kubernetes,
    clock: Clock,
    /// Who holds each component's Lease, as last seen: saves looking. Bounded by the clusters.
    holders: Mutex<BTreeMap<(String, &'static str), String>>,
}

impl Controllers {
    async fn round(
        &self,
        cluster: &str,
        controller: Controller,
    ) -> Result<Outcome, ControllerError> {
        let control_plane = match self.kubernetes.load(cluster).await {
            Ok(found) => found.record.control_plane.clone(),
            Err(KubernetesError::ClusterNotFound(_)) => ControlPlane::default(),
            Err(error) => return Err(error.into()),
        };
        let instances = controller.instances(&control_plane);
        let key = (cluster.to_owned(), controller.component());
        if instances.is_empty() || !control_plane.serves() {
            // Announced again when that changes.
            self.holders.lock().remove(&key);
            return Ok(None);
        }
        let user = format!("system:{}", controller.component());
        let now = self.clock.now();
        let tools = Tools {
            api: ApiClient::new(&self.kubernetes, cluster, &user),
            now: now.0,
        };
        let known = self.holders.lock().get(&key).cloned();
        if known.is_none_or(|holder| !instances.contains(&holder)) {
            let holder = elect(&tools, controller.component(), instances, now).await?;
            self.holders.lock().insert(key, holder);
        }
        Ok(match controller {
            Controller::Deployment => deployment::reconcile(&tools).await?,
            Controller::ReplicaSet => replica_set::reconcile(&tools).await?,
            Controller::Disruption => disruption::reconcile(&tools).await?,
            Controller::Garbage => garbage::reconcile(&tools).await?,
            Controller::Scheduler => scheduler::reconcile(&tools).await?,
        })
    }
}

/// The holder of the component's Lease: who has it keeps it while it works, or the first instance takes it.
async fn elect(
    tools: &Tools,
    component: &str,
    instances: &[String],
    now: Timestamp,
) -> Result<String, ApiClientError> {
    let at = At {
        resource: Resource::of_kind(Kind::Lease),
        namespace: Some("kube-system"),
        name: component,
    };
    let found = tools.api.get(at).await?;
    let holder = found
        .as_ref()
        .and_then(|lease| lease["spec"]["holderIdentity"].as_str())
        .filter(|holder| instances.iter().any(|instance| instance == holder));
    if let Some(holder) = holder {
        return Ok(holder.to_owned());
    }
    let instance = instances.first().cloned().unwrap_or_default();
    let time = micro_time(now);
    let transitions = found.as_ref().map_or(0, |lease| {
        lease["spec"]["leaseTransitions"]
            .as_i64()
            .unwrap_or(0)
            .saturating_add(1)
    });
    let spec = json!({
        "holderIdentity": instance, "leaseDurationSeconds": LEASE_SECONDS,
        "acquireTime": time, "renewTime": time, "leaseTransitions": transitions,
    });
    let written = match found {
        Some(mut lease) => {
            lease["spec"] = spec;
            tools.api.replace(at, &lease).await.map(drop)
        }
        None => {
            let lease = json!({"metadata": {"name": component}, "spec": spec});
            let made = tools.api.create(at.resource, at.namespace, &lease).await;
            made.map(drop)
        }
    };
    match written {
        // Another controller of the component's was faster, and has come to the same.
        Err(error) if error.is_stale() => Ok(instance),
        outcome => outcome.map(|()| instance),
    }
}

/// RFC 3339 to the microsecond, as `metav1.MicroTime` is written.
fn micro_time(now: Timestamp) -> String {
    format!("{}000Z", now.to_rfc3339().trim_end_matches('Z'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_concerns_who_looks_at_it() {
        let check = |key: &str, object: Option<Value>, expect: &[Controller]| {
            let found: Vec<Controller> = ALL
                .into_iter()
                .filter(|controller| controller.is_concerned(key, object.as_ref()))
                .collect();
            assert_eq!(found, expect, "{key}");
        };
        let running = json!({"spec": {"nodeName": "n"}, "status": {"phase": "Running"}});
        check(
            "/registry/pods/default/web",
            Some(running),
            &[
                Controller::ReplicaSet,
                Controller::Disruption,
                Controller::Scheduler,
            ],
        );
        check(
            "/registry/deployments/default/web",
            None,
            &[Controller::Deployment, Controller::Garbage],
        );
        check("/registry/events/default/web.1", None, &[]);
        check(
            "/registry/minions/n",
            Some(json!({})),
            &[Controller::Scheduler],
        );
    }
}
