//! Deploys, updates and deletes clusters: see [`crate::platform::cluster`] for the rules.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::infra::reflector::Change as Observed;
use crate::infra::{self, NetworkKind, VmId, reflector};
use crate::kubernetes::ControlPlane;
use crate::platform::cluster::{self, Act, Seen};
use crate::platform::cluster_api::ClusterApiError;
use crate::platform::error::PlatformError;
use crate::platform::guest;
use crate::platform::model::{Cluster, ClusterId, ClusterStatus, LoadBalancer, OwnerId};
use crate::platform::store::{self, Change, CloudOwner, Record, Versioned};
use crate::platform::vm_state::VmState;

use super::{ATTEMPTS, Context, Controller, Round};

/// Size of the load balancer in front of an API server; two instances, two addresses.
const LOAD_BALANCER_FLAVOR: &str = "XS-duo";
const LOAD_BALANCER_ADDRESSES: usize = 2;

pub(super) struct ClusterController {
    context: Context,
    /// What each cluster's Kubernetes API was last told by this process. Only saves repetitions: a new
    /// process tells it again.
    announced: Mutex<BTreeMap<ClusterId, ControlPlane>>,
}

impl From<ClusterApiError> for PlatformError {
    fn from(error: ClusterApiError) -> Self {
        PlatformError::Unavailable(error.to_string())
    }
}

impl ClusterController {
    pub(super) fn new(context: Context) -> ClusterController {
        ClusterController {
            context,
            announced: Mutex::new(BTreeMap::new()),
        }
    }

    fn observe(&self, cluster: &Cluster) -> Seen {
        let cloud = &self.context.cloud;
        let vms = cluster.control_plane.iter().filter_map(|vm| {
            let seen = cloud.get_vm(&VmId(vm.id.clone()))?;
            let guest = guest::Guest::of_control_plane(cluster, vm).to_value();
            Some((vm.id.clone(), VmState::of(&seen, &guest)))
        });
        let groups = store::node_groups_of(&cluster.id);
        let load_balancers = store::load_balancers_of(&cluster.id);
        Seen {
            vms: vms.collect(),
            network_group: cloud.network(&cluster.network_group_id).is_some(),
            load_balancer_network: cloud.network(&load_balancer_network_id(cluster)).is_some(),
            load_balancer: cloud
                .load_balancer(&load_balancer_id(cluster))
                .map(|found| LoadBalancer {
                    id: found.id,
                    flavor: found.flavor,
                    ips: found.addresses.iter().map(ToString::to_string).collect(),
                    domain_name: found.domain_name,
                }),
            node_groups: self
                .context
                .store
                .view
                .with(|records| reflector::under(records, &groups).count()),
            belongings: self
                .context
                .store
                .view
                .with(|records| reflector::under(records, &load_balancers).count()),
        }
    }

    async fn act(&self, cluster: &Cluster, act: &Act) -> Result<(), PlatformError> {
        let Context {
            cloud, kubernetes, ..
        } = &self.context;
        let id = cluster.id.as_str();
        let owner = CloudOwner::of_cluster(cluster).to_string();
        match act {
            Act::CreateNetworkGroup => {
                let network = &cluster.network_group_id;
                cloud
                    .create_network(network, &owner, NetworkKind::NetworkGroup)
                    .await?;
            }
            Act::CreateLoadBalancerNetwork => {
                let network = load_balancer_network_id(cluster);
                cloud
                    .create_network(&network, &owner, NetworkKind::LoadBalancer)
                    .await?;
            }
            Act::ProvisionKubernetes => {
                kubernetes
                    .provision_cluster(id, &cluster.running_version)
                    .await?;
            }
            Act::SetKubernetesVersion(version) => kubernetes.set_version(id, version).await?,
            Act::CreateVm(vm) => {
                cloud
                    .create_vm(guest::control_plane_vm(cluster, vm))
                    .await?;
            }
            Act::UpdateGuest(vm) => {
                let guest = guest::Guest::of_control_plane(cluster, vm).to_value();
                cloud.update_guest(&VmId(vm.id.clone()), &guest).await?;
            }
            Act::CreateLoadBalancer => {
                cloud
                    .create_load_balancer(
                        &load_balancer_id(cluster),
                        &owner,
                        LOAD_BALANCER_FLAVOR,
                        &load_balancer_domain(cluster),
                        LOAD_BALANCER_ADDRESSES,
                    )
                    .await?;
            }
            Act::DeleteVm(vm) => cloud.delete_vm(&VmId(vm.clone())).await?,
            Act::DeleteKubernetes => {
                kubernetes.delete_cluster(id).await?;
                self.announced.lock().remove(&cluster.id);
            }
            Act::DeleteLoadBalancer => {
                cloud
                    .delete_load_balancer(&load_balancer_id(cluster))
                    .await?;
            }
            Act::DeleteNetworks => {
                cloud
                    .delete_network(&load_balancer_network_id(cluster))
                    .await?;
                if !cluster.network_group_is_users {
                    cloud.delete_network(&cluster.network_group_id).await?;
                }
            }
        }
        Ok(())
    }

    async fn announce(
        &self,
        cluster: &Cluster,
        working: ControlPlane,
    ) -> Result<(), PlatformError> {
        if self.announced.lock().get(&cluster.id) == Some(&working) {
            return Ok(());
        }
        let told = self
            .context
            .kubernetes
            .set_control_plane(cluster.id.as_str(), working.clone())
            .await;
        match told {
            Ok(()) => {
                self.announced.lock().insert(cluster.id.clone(), working);
                Ok(())
            }
            // It may be gone already: a kill came between its deletion and the record's.
            Err(_) if cluster.is_going() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the change was made.
    async fn record(
        &self,
        before: &Versioned<Cluster>,
        decision: cluster::Decision,
    ) -> Result<bool, PlatformError> {
        let Some(mut next) = decision.next else {
            return Ok(true);
        };
        let mut change = Change::new();
        change.cluster(&mut next, before.revision, &decision.events)?;
        if next.status == ClusterStatus::Deleted {
            let mut ledger = self.context.store.ledger(&next.owner).await?;
            ledger.value.release(next.id.as_str());
            change.ledger(&ledger)?;
            for vm in &before.value.control_plane {
                if let Some(name) = &vm.node_name {
                    change.free_name(&next.id, name);
                }
            }
        }
        self.context.store.commit(change).await
    }
}

fn load_balancer_id(cluster: &Cluster) -> String {
    format!("loadbalancer_{}", cluster.id.ulid())
}

fn load_balancer_network_id(cluster: &Cluster) -> String {
    format!("lbnetwork_{}", cluster.id.ulid())
}

fn load_balancer_domain(cluster: &Cluster) -> String {
    // RFC 6761: no such name exists outside of tests.
    format!(
        "{}.{}.kubernetes.test",
        cluster.id.ulid().to_ascii_lowercase(),
        cluster.location
    )
}

/// Owner and id from the key of a cluster's record.
fn parse(key: &str) -> Option<(OwnerId, ClusterId)> {
    let (owner, id) = key.strip_prefix(store::CLUSTERS)?.split_once('/')?;
    Some((owner.parse().ok()?, id.parse().ok()?))
}

impl Controller for ClusterController {
    fn name(&self) -> &'static str {
        "cluster"
    }

    fn on_record(&self, change: &Observed<'_, Record>) -> Vec<String> {
        match change.new.or(change.old).map(AsRef::as_ref) {
            Some(Record::Cluster(cluster)) => vec![store::cluster_key(&cluster.owner, &cluster.id)],
            Some(Record::NodeGroup(group)) => {
                vec![store::cluster_key(&group.owner, &group.cluster)]
            }
            // The deletion of a cluster waits for its load balancers.
            Some(Record::LoadBalancer(gone)) if change.new.is_none() => {
                vec![store::cluster_key(&gone.owner, &gone.cluster)]
            }
            _ => Vec::new(),
        }
    }

    fn on_cloud(
        &self,
        owner: Option<&CloudOwner>,
        _change: &Observed<'_, infra::record::Record>,
    ) -> Vec<String> {
        match owner {
            Some(owner) if owner.node_group.is_none() => {
                vec![store::cluster_key(&owner.owner, &owner.cluster)]
            }
            _ => Vec::new(),
        }
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> Round<'a> {
        Box::pin(async move {
            let Some((owner, id)) = parse(key) else {
                return Ok(None);
            };
            for _ in 0..ATTEMPTS {
                let store = &self.context.store;
                let Some(cluster) = store.find_cluster(&owner, &id).await? else {
                    return Ok(None);
                };
                // The view must not be behind the record: a group created before it is in view.
                store.view.wait_for(cluster.read_at).await;
                let seen = self.observe(&cluster.value);
                let decision = cluster::decide(&cluster.value, &seen, store.clock.now());
                if let Some(working) = decision.control_plane.clone() {
                    self.announce(&cluster.value, working).await?;
                }
                for act in &decision.acts {
                    self.act(&cluster.value, act).await?;
                }
                let wake = decision.wake;
                if self.record(&cluster, decision).await? {
                    return Ok(wake);
                }
            }
            Err(PlatformError::conflict(format!(
                "too many changes at once to {id}"
            )))
        })
    }
}
