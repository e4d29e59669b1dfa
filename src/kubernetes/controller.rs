//! The controllers of the clusters' components, and what runs them: one queue of (cluster, controller) for all
//! clusters, fed by the registries' changes. A cluster in which nothing changes costs nothing: no watch, no
//! timer, no connection.
//!
//! A controller acts only while the control plane has an instance of its component; of several, the one that
//! holds the Lease `kube-system/<component>`. The Lease is written when its holder changes and not at an
//! interval: renewals would tell nothing that the VMs' state does not, and keep a manual clock from ever being
//! idle.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::api_client::{ApiClient, ApiClientError, At};
use super::cloud_api::{Accesses, CloudApiError};
use super::cloud_controller_manager::CloudControllerManager;
use super::cluster::{Cluster, ClusterRecord};
use super::component::{CLUSTERS_AT_ONCE, Listener, Notice};
use super::controller_manager::{
    Outcome, Tools, daemon_set, deployment, disruption, endpoints, garbage, node_lifecycle,
    replica_set, stateful_set, volume,
};
use super::csi::Csi;
use super::namespace::announce_terminating;
use super::registry::resource::{Kind, Resource};
use super::registry::{FOREGROUND, ORPHAN};
use super::status::ApiError;
use super::{Kubernetes, KubernetesError, scheduler};
use crate::clock::{Clock, Timestamp};
use crate::infra::work_queue::{WorkQueue, Workers, side_by_side};
use crate::leader::Term;

/// How long a holder would keep the Lease without renewing it, as Kubernetes' default.
const LEASE_SECONDS: u32 = 15;
/// The driver's provisioner, one for each cluster.
const CSI_INSTANCE: &str = "csi-rbdplugin-provisioner";

const NODES: &str = "/registry/minions/";
const CLAIMS: &str = "/registry/persistentvolumeclaims/";
const VOLUMES: &str = "/registry/persistentvolumes/";
const CLASSES: &str = "/registry/storageclasses/";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Controller {
    Deployment,
    ReplicaSet,
    Disruption,
    Garbage,
    Scheduler,
    LoadBalancer,
    Volume,
    Csi,
    Namespace,
    NodeLifecycle,
    Endpoints,
    StatefulSet,
    DaemonSet,
}

const ALL: [Controller; 13] = [
    Controller::Deployment,
    Controller::ReplicaSet,
    Controller::Disruption,
    Controller::Garbage,
    Controller::Scheduler,
    Controller::LoadBalancer,
    Controller::Volume,
    Controller::Csi,
    Controller::Namespace,
    Controller::NodeLifecycle,
    Controller::Endpoints,
    Controller::StatefulSet,
    Controller::DaemonSet,
];

impl Controller {
    /// The component that the controller is part of: its Lease's name.
    fn component(self) -> &'static str {
        match self {
            Controller::Scheduler => "kube-scheduler",
            Controller::LoadBalancer => "cloud-controller-manager",
            Controller::Csi => "rbd-csi-ceph-com",
            _ => "kube-controller-manager",
        }
    }

    /// Who can act as the component now.
    fn instances(self, record: &ClusterRecord) -> Vec<String> {
        let control_plane = &record.control_plane;
        let instances = match self {
            Controller::Scheduler => &control_plane.scheduler,
            Controller::LoadBalancer => &control_plane.cloud_controller_manager,
            // It runs in the cluster, not on the control plane.
            Controller::Csi if record.storage => return vec![String::from(CSI_INSTANCE)],
            Controller::Csi => return Vec::new(),
            _ => &control_plane.controller_manager,
        };
        instances.clone()
    }

    /// Whether its rounds may ask the provider for something.
    fn asks_the_provider(self) -> bool {
        matches!(self, Controller::LoadBalancer | Controller::Csi)
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
            Controller::Scheduler => of(&["/registry/pods/", "/registry/minions/", CLAIMS]),
            Controller::Volume => {
                let ended = object.is_none_or(|pod| {
                    let phase = pod["status"]["phase"].as_str().unwrap_or("");
                    ["Succeeded", "Failed"].contains(&phase)
                });
                of(&[CLAIMS, VOLUMES, CLASSES]) || (of(&["/registry/pods/"]) && ended)
            }
            Controller::NodeLifecycle => {
                of(&["/registry/minions/"]) && object.is_some_and(node_lifecycle::is_troubled)
            }
            Controller::Endpoints => of(&[
                "/registry/services/",
                "/registry/endpointslices/",
                "/registry/pods/",
            ]),
            Controller::StatefulSet => of(&["/registry/statefulsets/", "/registry/pods/", CLAIMS]),
            Controller::DaemonSet => of(&[
                "/registry/daemonsets/",
                "/registry/pods/",
                "/registry/minions/",
            ]),
            Controller::Csi => of(&[CLAIMS, VOLUMES, CLASSES]),
            // A namespace that is being deleted may have waited for it.
            Controller::Namespace => {
                object.is_none()
                    && !of(&[
                        "/registry/events/",
                        "/registry/leases/",
                        "/registry/minions/",
                    ])
            }
            Controller::LoadBalancer => of(&["/registry/services/specs/", "/registry/minions/"]),
            Controller::Garbage => {
                // What comes by the thousand and owns nothing is left out.
                !of(&[
                    "/registry/events/",
                    "/registry/leases/",
                    "/registry/minions/",
                ]) && object.is_none_or(|object| {
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

/// Controllers that have seen everything that concerns them: until something does, a change of who works
/// costs them nothing. Bounded by the clusters.
type Settled = Arc<Mutex<BTreeSet<(String, Controller)>>>;

/// Puts into the queue what changes concern.
struct Dispatch {
    queue: Queue,
    cloud: Arc<CloudControllerManager>,
    settled: Settled,
}

impl Dispatch {
    fn push(&self, cluster: &str, controller: Controller) {
        let key = (cluster.to_owned(), controller);
        self.settled.lock().remove(&key);
        self.queue.push(key);
    }
}

impl Listener for Dispatch {
    fn written(&self, cluster: &str, key: &str, object: Option<&Value>) {
        for controller in ALL {
            // Nodes are of interest to load balancers alone, of which most clusters have none.
            let idle = controller == Controller::LoadBalancer
                && key.starts_with(NODES)
                && self.cloud.has_none(cluster);
            if controller.is_concerned(key, object) && !idle {
                self.push(cluster, controller);
            }
        }
    }

    fn noticed(&self, cluster: &str, notice: Notice) {
        let concerned = match notice {
            Notice::NodeGroups => false,
            Notice::LoadBalancers => true,
            // Only who was refused has something to ask for again.
            Notice::Quota => self.cloud.make_room(cluster),
        };
        if concerned {
            self.push(cluster, Controller::LoadBalancer);
        }
    }

    fn cluster_changed(&self, cluster: &str) {
        for controller in ALL {
            self.queue.push((cluster.to_owned(), controller));
        }
    }
}

/// Starts the controllers of every cluster.
pub async fn start(
    kubernetes: Kubernetes,
    accesses: Accesses,
    clock: Clock,
    term: &Term,
) -> Workers {
    let queue: Queue = WorkQueue::new(clock.clone(), term.clone());
    let cloud = Arc::new(CloudControllerManager::new(Arc::clone(&accesses)));
    let settled = Settled::default();
    let dispatch = Dispatch {
        queue: queue.clone(),
        cloud: Arc::clone(&cloud),
        settled: Arc::clone(&settled),
    };
    match kubernetes.cluster_ids().await {
        Ok(clusters) => clusters
            .iter()
            .for_each(|cluster| dispatch.cluster_changed(cluster)),
        Err(error) => {
            tracing::warn!(%error, "cannot list clusters: controllers follow their next change");
        }
    }
    kubernetes.inner.listeners.add(dispatch);
    let controllers = Arc::new(Controllers {
        // Where other servers write, too, what they write is not always heard of.
        settled: (kubernetes.inner.instance == 0).then_some(settled),
        kubernetes,
        cloud,
        csi: Csi::new(accesses),
        clock,
        holders: Mutex::new(BTreeMap::new()),
    });
    queue.start_together(
        ALL.len() * CLUSTERS_AT_ONCE,
        |_, _| true,
        move |keys| {
            let controllers = Arc::clone(&controllers);
            async move { controllers.rounds(keys).await }
        },
    )
}

#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    #[error(transparent)]
    Kubernetes(#[from] KubernetesError),
    #[error(transparent)]
    Api(#[from] ApiClientError),
    #[error(transparent)]
    Cloud(#[from] CloudApiError),
    #[error("the cluster's objects cannot be read: {0}")]
    Registry(String),
}

impl From<ApiError> for ControllerError {
    fn from(error: ApiError) -> Self {
        ControllerError::Registry(error.message)
    }
}

struct Controllers {
    kubernetes: Kubernetes,
    cloud: Arc<CloudControllerManager>,
    csi: Csi,
    settled: Option<Settled>,
    clock: Clock,
    /// Who holds each component's Lease, as last seen: saves looking. Bounded by the clusters.
    holders: Mutex<BTreeMap<(String, &'static str), String>>,
}

impl Controllers {
    /// The rounds of different clusters side by side, those of one cluster one after the other. Those that may ask the
    /// provider, who may refuse for want of room, come in the order of the keys.
    async fn rounds(
        self: Arc<Self>,
        keys: Vec<(String, Controller)>,
    ) -> Vec<Result<Outcome, ControllerError>> {
        let mut by_cluster: BTreeMap<&str, Vec<Controller>> = BTreeMap::new();
        for (cluster, controller) in &keys {
            if !controller.asks_the_provider() {
                by_cluster.entry(cluster).or_default().push(*controller);
            }
        }
        let work = by_cluster
            .into_iter()
            .map(|(cluster, own)| (cluster.to_owned(), own));
        let done = side_by_side(work.collect(), |(cluster, own)| {
            let controllers = Arc::clone(&self);
            async move {
                let mut outcomes = Vec::new();
                for controller in own {
                    let outcome = controllers.round(&cluster, controller).await;
                    outcomes.push(((cluster.clone(), controller), outcome));
                }
                outcomes
            }
        });
        let mut done: BTreeMap<_, _> = done.await.into_iter().flatten().collect();
        let mut outcomes = Vec::new();
        for key in keys {
            outcomes.push(match done.remove(&key) {
                Some(outcome) => outcome,
                None => self.round(&key.0, key.1).await,
            });
        }
        outcomes
    }

    async fn round(
        &self,
        cluster: &str,
        controller: Controller,
    ) -> Result<Outcome, ControllerError> {
        let found = match self.kubernetes.load(cluster).await {
            Ok(found) => Some(found),
            Err(KubernetesError::ClusterNotFound(_)) => None,
            Err(error) => return Err(error.into()),
        };
        let answers = found.filter(|found| found.record.control_plane.serves());
        let instances = answers
            .as_ref()
            .map(|found| controller.instances(&found.record))
            .unwrap_or_default();
        let key = (cluster.to_owned(), controller.component());
        let Some(found) = answers.filter(|_| !instances.is_empty()) else {
            // Announced again when that changes.
            self.holders.lock().remove(&key);
            self.unsettle(cluster, controller);
            match controller {
                Controller::LoadBalancer => self.cloud.forget(cluster),
                Controller::Csi => self.csi.forget(cluster),
                _ => {}
            }
            return Ok(None);
        };
        let user = format!("system:{}", controller.component());
        let now = self.clock.now();
        let tools = Tools {
            api: ApiClient::new(&self.kubernetes, cluster, &user),
            now: now.0,
        };
        let known = self.holders.lock().get(&key).cloned();
        if known.is_none_or(|holder| !instances.contains(&holder)) {
            let holder = elect(&tools, controller.component(), &instances, now).await?;
            self.holders.lock().insert(key, holder);
        }
        let whole = (cluster.to_owned(), controller);
        if let Some(settled) = &self.settled
            && !settled.lock().insert(whole)
        {
            return Ok(None);
        }
        let outcome = self.act(cluster, controller, &found, &tools).await;
        if !matches!(outcome, Ok(None)) {
            self.unsettle(cluster, controller);
        }
        outcome
    }

    fn unsettle(&self, cluster: &str, controller: Controller) {
        if let Some(settled) = &self.settled {
            settled.lock().remove(&(cluster.to_owned(), controller));
        }
    }

    async fn act(
        &self,
        cluster: &str,
        controller: Controller,
        found: &Cluster,
        tools: &Tools,
    ) -> Result<Outcome, ControllerError> {
        Ok(match controller {
            Controller::Deployment => deployment::reconcile(tools).await?,
            Controller::ReplicaSet => replica_set::reconcile(tools).await?,
            Controller::Disruption => disruption::reconcile(tools).await?,
            Controller::Garbage => garbage::reconcile(tools).await?,
            Controller::Scheduler => scheduler::reconcile(tools).await?,
            Controller::LoadBalancer => self.cloud.services(cluster, tools).await?,
            Controller::NodeLifecycle => node_lifecycle::reconcile(tools).await?,
            Controller::Endpoints => endpoints::reconcile(tools).await?,
            Controller::StatefulSet => stateful_set::reconcile(tools).await?,
            Controller::DaemonSet => daemon_set::reconcile(tools).await?,
            Controller::Volume => volume::reconcile(tools).await?,
            Controller::Csi => self.csi.reconcile(cluster, tools).await?,
            Controller::Namespace => {
                announce_terminating(found).await?;
                None
            }
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
                Controller::Endpoints,
                Controller::StatefulSet,
                Controller::DaemonSet,
            ],
        );
        check(
            "/registry/deployments/default/web",
            None,
            &[
                Controller::Deployment,
                Controller::Garbage,
                Controller::Namespace,
            ],
        );
        check("/registry/events/default/web.1", None, &[]);
        check(
            "/registry/minions/n",
            Some(json!({})),
            &[
                Controller::Scheduler,
                Controller::LoadBalancer,
                Controller::NodeLifecycle,
                Controller::DaemonSet,
            ],
        );
    }
}
