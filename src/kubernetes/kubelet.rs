//! The simulated kubelets: what runs in worker VMs, as far as the cluster sees it.
//!
//! A running VM whose user data has a `kubelet` is a Node of that cluster; when the VM goes, so does
//! the Node. Each cluster is looked at as a whole, from the VMs and Nodes that there are: so a crash
//! midway, or a VM that went while nobody watched, is made good by the next look. The clusters'
//! APIs are spoken to as any client does, by requests that stay in the process ([`ApiClient`]).
//!
//! A Node is written when something about it changes and not at an interval: heartbeats would tell
//! nothing that the VM's state does not, and would keep a manual clock from ever being idle.

mod pods;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};

use super::api_client::{ApiClient, ApiClientError, At};
use super::component::{Bell, CLUSTERS_AT_ONCE};
use super::controller_manager::{Outcome, Tools, sooner};
use super::registry::resource::{Kind, Resource};
use super::registry::{Propagation, name_of, seconds};
use super::{Kubernetes, KubernetesError};
use crate::clock::{Clock, Timestamp};
use crate::infra::record::Record;
use crate::infra::work_queue::{WorkQueue, Workers, side_by_side};
use crate::infra::{Cloud, CloudError, Load, Observed, Requested, Vm, VmId};
use crate::leader::Term;

/// Memory that the kubelet keeps from pods, in KiB (contract clever-api 4.4).
const RESERVED_MEMORY_KIB: u64 = 100 * 1024;
/// Disk of every node, and what eviction keeps free of it, in KiB (contract cke-models 9).
const EPHEMERAL_STORAGE_KIB: u64 = 40_971_488;
const EVICTION_THRESHOLD_KIB: u64 = 4_097_149;
const PODS: u32 = 110;
/// Without a heartbeat for so long a node counts as lost (`--node-monitor-grace-period`).
const HEARTBEAT_GRACE: Duration = Duration::from_secs(50);
/// On every Node that a simulated kubelet made, and on no other.
const ROLE_LABEL: &str = "clever-cloud.com/cluster-node-role";

const NODES: &Resource = Resource::of_kind(Kind::Node);

/// User data of a VM that is a node.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KubeletGuest {
    cluster_id: String,
    node_name: String,
    vcpus: u32,
    /// What the kernel sees.
    memory_kib: u64,
    labels: BTreeMap<String, String>,
    taints: Vec<Value>,
    /// Such as `v1.36.0`.
    version: String,
}

#[derive(Debug, thiserror::Error)]
enum KubeletError {
    #[error(transparent)]
    Kubernetes(#[from] KubernetesError),
    #[error(transparent)]
    Api(#[from] ApiClientError),
    #[error(transparent)]
    Cloud(#[from] CloudError),
}

/// Starts the kubelets of every VM.
pub async fn start(kubernetes: Kubernetes, cloud: Cloud, clock: Clock, term: &Term) -> Workers {
    let queue: WorkQueue<String> = WorkQueue::new(clock.clone(), term.clone());
    let woken = queue.clone();
    kubernetes.inner.listeners.add(Bell {
        prefixes: &["/registry/pods/"],
        notices: &[],
        wake: Box::new(move |cluster| woken.push(cluster.to_owned())),
    });
    let hosts: Arc<Mutex<Hosts>> = Arc::default();
    let kubelets = Arc::new(Kubelets {
        kubernetes,
        cloud: cloud.clone(),
        clock,
        hosts: Arc::clone(&hosts),
    });
    match kubelets.kubernetes.cluster_ids().await {
        Ok(clusters) => clusters.into_iter().for_each(|cluster| queue.push(cluster)),
        Err(error) => {
            tracing::warn!(%error, "cannot list clusters: nodes follow their next change");
        }
    }
    let changed = queue.clone();
    cloud.observe(Box::new(move |change| {
        if let Some(Record::Vm(vm)) = change.new.or(change.old).map(Arc::as_ref)
            && let Some(guest) = guest_of(vm)
        {
            let mut hosts = hosts.lock();
            let of = hosts.entry(guest.cluster_id.clone()).or_default();
            match change.new {
                Some(_) => of.insert(vm.spec.id.clone()),
                None => of.remove(&vm.spec.id),
            };
            if of.is_empty() {
                hosts.remove(&guest.cluster_id);
            }
            drop(hosts);
            if !is_alike(change.old.map(Arc::as_ref), change.new.map(Arc::as_ref)) {
                changed.push(guest.cluster_id);
            }
        }
        !changed.is_closed()
    }));
    queue.start_together(
        CLUSTERS_AT_ONCE,
        |_, _| true,
        move |clusters| {
            let kubelets = Arc::clone(&kubelets);
            side_by_side(clusters, move |cluster: String| {
                let kubelets = Arc::clone(&kubelets);
                async move { kubelets.reconcile(&cluster).await }
            })
        },
    )
}

/// Whether a VM is to its cluster after a change what it was before: one that boots is not there yet, and what
/// it uses and what is paid for it is not seen inside.
fn is_alike(old: Option<&Record>, new: Option<&Record>) -> bool {
    let seen = |record: Option<&Record>| match record {
        Some(Record::Vm(vm)) if vm.is_running() && vm.requested == Requested::Running => Some(Vm {
            load: Load::default(),
            guest_load: Load::default(),
            user_load: None,
            metered_since: None,
            ..Vm::clone(vm)
        }),
        _ => None,
    };
    seen(old) == seen(new)
}

fn guest_of(vm: &Vm) -> Option<KubeletGuest> {
    let kubelet = vm
        .spec
        .guest
        .get("kubelet")
        .filter(|guest| !guest.is_null())?;
    match serde_json::from_value(kubelet.clone()) {
        Ok(guest) => Some(guest),
        Err(error) => {
            tracing::error!(%error, vm = %vm.spec.id, "the VM's user data cannot be read");
            None
        }
    }
}

/// The VMs of each cluster that are nodes of it: of ten thousand VMs, a look at a cluster reads its own.
type Hosts = BTreeMap<String, BTreeSet<VmId>>;

struct Kubelets {
    kubernetes: Kubernetes,
    cloud: Cloud,
    clock: Clock,
    hosts: Arc<Mutex<Hosts>>,
}

impl Kubelets {
    /// Makes the cluster's Nodes those of its running VMs, and their pods what they are to be.
    async fn reconcile(&self, cluster: &str) -> Result<Outcome, KubeletError> {
        let watched = match self.kubernetes.load(cluster).await {
            Ok(found) if found.record.control_plane.serves() => {
                !found.record.control_plane.controller_manager.is_empty()
            }
            // Looked at again when that changes.
            Ok(_) | Err(KubernetesError::ClusterNotFound(_)) => {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let mut wanted: BTreeMap<String, (Arc<Vm>, KubeletGuest)> = BTreeMap::new();
        let own = self.hosts.lock().get(cluster).cloned().unwrap_or_default();
        for vm in own.iter().filter_map(|id| self.cloud.get_vm(id)) {
            if !vm.is_running() || vm.requested == Requested::Deleted {
                continue;
            }
            if let Some(guest) = guest_of(&vm).filter(|guest| guest.cluster_id == cluster) {
                wanted.insert(guest.node_name.clone(), (vm, guest));
            }
        }
        let machines: BTreeMap<String, Arc<Vm>> = wanted
            .iter()
            .filter(|(_, (vm, _))| vm.reachable)
            .map(|(name, (vm, _))| (name.clone(), Arc::clone(vm)))
            .collect();
        let hosts: BTreeMap<String, Ipv4Addr> = machines
            .iter()
            .map(|(name, vm)| (name.clone(), vm.address))
            .collect();
        let mut wake = None;
        let tools = Tools {
            api: ApiClient::new(&self.kubernetes, cluster, "system:kubelet"),
            now: self.clock.now().0,
        };
        let api = &tools.api;
        let listed = api.list(NODES).await?;
        let mut present: BTreeSet<String> = listed.iter().map(name_of).collect();
        for node in listed.iter().filter(|node| is_simulated(node)) {
            let name = name_of(node);
            match wanted.remove(&name) {
                None => {
                    delete(api, node).await?;
                    present.remove(&name);
                }
                Some((vm, _)) if machine_id(node) != vm.spec.id.0 => {
                    // Another VM by the same name: another node.
                    delete(api, node).await?;
                    wanted.extend(guest_of(&vm).map(|guest| (name, (vm, guest))));
                }
                Some((vm, guest)) if vm.reachable => {
                    self.update(api, node, &vm, &guest).await?;
                }
                Some((vm, _)) if watched => {
                    wake = sooner(wake, self.miss(api, node, &vm).await?);
                }
                // Nobody looks for heartbeats; once somebody does, it is looked at again.
                Some(_) => {}
            }
        }
        for (vm, guest) in wanted.values().filter(|(vm, _)| vm.reachable) {
            self.register(api, vm, guest).await?;
            present.insert(guest.node_name.clone());
        }
        let (due, mut loads) = pods::reconcile(&tools, &hosts, &present).await?;
        for (name, vm) in &machines {
            let load = loads.remove(name).unwrap_or_default();
            if vm.guest_load != load {
                match self.cloud.report_guest_load(&vm.spec.id, load).await {
                    Err(CloudError::VmNotFound(_)) => {}
                    outcome => outcome?,
                }
            }
        }
        Ok(sooner(wake, due))
    }

    /// What the node lifecycle controller concludes when a node's heartbeats stay away. No heartbeat is
    /// ever written, so it is concluded here, from what would have kept it away.
    async fn miss(
        &self,
        api: &ApiClient,
        present: &Value,
        vm: &Vm,
    ) -> Result<Outcome, KubeletError> {
        let now = self.clock.now();
        let due = vm.reachability_changed_at.saturating_add(HEARTBEAT_GRACE);
        if now < due {
            return Ok(Some(due));
        }
        let mut conditions = present["status"]["conditions"].clone();
        let mut changed = false;
        for condition in conditions.as_array_mut().into_iter().flatten() {
            if condition["status"] != "Unknown" {
                changed = true;
                condition["status"] = json!("Unknown");
                condition["reason"] = json!("NodeStatusUnknown");
                condition["message"] = json!("Kubelet stopped posting node status.");
                condition["lastTransitionTime"] = json!(seconds(now));
            }
        }
        if changed {
            let patch = json!({"status": {"conditions": conditions}});
            match api.merge_status(At::of(NODES, present), &patch).await {
                Err(error) if error.code() == Some(404) => {}
                outcome => drop(outcome?),
            }
        }
        Ok(None)
    }

    async fn register(
        &self,
        api: &ApiClient,
        vm: &Vm,
        guest: &KubeletGuest,
    ) -> Result<(), KubeletError> {
        let node = node(vm, guest, self.clock.now());
        match api.create(NODES, None, &node).await {
            Err(error) if error.code() == Some(409) => Ok(()),
            outcome => Ok(outcome.map(drop)?),
        }
    }

    async fn update(
        &self,
        api: &ApiClient,
        present: &Value,
        vm: &Vm,
        guest: &KubeletGuest,
    ) -> Result<(), KubeletError> {
        let status = &present["status"];
        let other_version = status["nodeInfo"]["kubeletVersion"] != guest.version;
        let conditions = status["conditions"].as_array();
        let mut conditions = conditions.into_iter().flatten();
        let was_lost = conditions.any(|it| it["status"] == "Unknown");
        if !(other_version || was_lost) {
            return Ok(());
        }
        let now = self.clock.now();
        let mut fresh = node(vm, guest, now);
        let mut change = json!({});
        if other_version {
            change["nodeInfo"] = fresh["status"]["nodeInfo"].take();
        }
        if was_lost {
            let mut conditions = fresh["status"]["conditions"].take();
            for condition in conditions.as_array_mut().into_iter().flatten() {
                condition["lastTransitionTime"] = json!(seconds(now));
            }
            change["conditions"] = conditions;
        }
        let patch = json!({"status": change});
        api.merge_status(At::of(NODES, present), &patch).await?;
        Ok(())
    }
}

/// Whether a simulated kubelet made it.
fn is_simulated(node: &Value) -> bool {
    !node["metadata"]["labels"][ROLE_LABEL].is_null()
}

fn machine_id(node: &Value) -> &str {
    node["status"]["nodeInfo"]["machineID"]
        .as_str()
        .unwrap_or("")
}

async fn delete(api: &ApiClient, node: &Value) -> Result<(), KubeletError> {
    let (at, uid) = (At::of(NODES, node), &node["metadata"]["uid"]);
    Ok(api.delete(at, uid, None, Propagation::Background).await?)
}

/// The Node that a kubelet would register from this VM.
fn node(vm: &Vm, guest: &KubeletGuest, now: Timestamp) -> Value {
    let since = match vm.observed {
        Observed::Running { since, .. } => since,
        _ => now,
    };
    let mut labels = guest.labels.clone();
    for (key, value) in [
        ("kubernetes.io/hostname", guest.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", "amd64"),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", "amd64"),
        ("topology.kubernetes.io/region", "par"),
        ("topology.kubernetes.io/zone", vm.datacenter.as_str()),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    let resources = |memory_kib: u64, storage_bytes: String| {
        json!({
            "cpu": guest.vcpus.to_string(), "memory": format!("{memory_kib}Ki"),
            "ephemeral-storage": storage_bytes, "pods": PODS.to_string(),
            "hugepages-1Gi": "0", "hugepages-2Mi": "0",
        })
    };
    let allocatable_storage = (EPHEMERAL_STORAGE_KIB - EVICTION_THRESHOLD_KIB) * 1024;
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": seconds(now), "lastTransitionTime": seconds(since),
        })
    };
    let address: Ipv4Addr = vm.address;
    json!({
        "metadata": {"name": guest.node_name, "labels": labels},
        "spec": {"taints": guest.taints},
        "status": {
            "capacity": resources(guest.memory_kib, format!("{EPHEMERAL_STORAGE_KIB}Ki")),
            "allocatable": resources(
                guest.memory_kib.saturating_sub(RESERVED_MEMORY_KIB),
                allocatable_storage.to_string(),
            ),
            "addresses": [
                {"type": "InternalIP", "address": address.to_string()},
                {"type": "Hostname", "address": guest.node_name},
            ],
            "conditions": [
                condition("MemoryPressure", "False", "KubeletHasSufficientMemory",
                    "kubelet has sufficient memory available"),
                condition("DiskPressure", "False", "KubeletHasNoDiskPressure",
                    "kubelet has no disk pressure"),
                condition("PIDPressure", "False", "KubeletHasSufficientPID",
                    "kubelet has sufficient PID available"),
                condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            "nodeInfo": {
                "machineID": vm.spec.id.0, "systemUUID": vm.spec.id.0, "bootID": vm.spec.id.0,
                "kernelVersion": "6.12.0", "osImage": "Clever Cloud Exherbo",
                "containerRuntimeVersion": "containerd://2.1.0", "kubeletVersion": guest.version,
                "kubeProxyVersion": "", "operatingSystem": "linux", "architecture": "amd64",
            },
        },
    })
}
