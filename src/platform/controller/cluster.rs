//! Deploys, updates and deletes clusters: see [`crate::platform::cluster`] for the rules.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::future::BoxFuture;
use parking_lot::Mutex;

use crate::clock::Timestamp;
use crate::infra::reflector::Change as Observed;
use crate::infra::work_queue::side_by_side;
use crate::infra::{self, CloudError, LoadBalancerSpec, NetworkKind, VmId, reflector};
use crate::kubernetes::{ControlPlane, Drain, EventSubject, EventType};
use crate::platform::cluster::{self, Act, Applied, Decision, Notice, Seen};
use crate::platform::cluster_api::ClusterApiError;
use crate::platform::control_plane;
use crate::platform::deployment_event::Step;
use crate::platform::error::PlatformError;
use crate::platform::guest;
use crate::platform::model::{
    Cluster, ClusterId, ClusterStatus, Component, Flavor, LoadBalancer, Node, NodeGroupId, OwnerId,
    TopologyKind,
};
use crate::platform::placement::Openings;
use crate::platform::store::{self, Change, CloudOwner, Record, Versioned};
use crate::platform::turns::{Turn, under_way};
use crate::platform::vm_state::VmState;

use super::{ATTEMPTS, Context, Controller, Outcome, Round, drain};

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

    async fn observe(&self, cluster: &Cluster) -> Seen {
        let cloud = &self.context.cloud;
        let vms: BTreeMap<String, VmState> = cluster
            .control_plane
            .iter()
            .filter_map(|vm| {
                let seen = cloud.get_vm(&VmId(vm.id.clone()))?;
                Some((vm.id.clone(), VmState::of(&seen)))
            })
            .collect();
        let mut drains = BTreeMap::new();
        let mut nodes = Vec::new();
        for vm in &cluster.control_plane {
            match &vm.node_name {
                Some(name) => nodes.push((vm, name.as_str())),
                // Nobody's pods are on it.
                None => {
                    drains.insert(vm.id.clone(), Drain::Drained);
                }
            }
        }
        let round = drain::round(&self.context, cluster, nodes.into_iter(), &vms).await;
        drains.extend(round);
        let groups = store::node_groups_of(&cluster.id);
        let load_balancers = store::load_balancers_of(&cluster.id);
        Seen {
            vms,
            drains,
            outdated: self.outdated(cluster),
            taken_names: match cluster.topology.kind() {
                TopologyKind::AllInOne => store::taken_names(&self.context.store.view, &cluster.id),
                _ => BTreeSet::new(),
            },
            replacements: None,
            due_update: {
                let releases = self.context.store.seen_releases();
                releases.due_update(&cluster.version, self.context.auto_upgrade)
            },
            network_group: cloud.network(&cluster.network_group_id).is_some(),
            load_balancer_network: cloud.network(&cluster.load_balancer_network_id()).is_some(),
            load_balancer: cloud
                .load_balancer(&cluster.load_balancer_id())
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
            applied: self.apply(cluster).await,
            openings: match cluster.status {
                ClusterStatus::Active => self.openings(cluster),
                _ => BTreeMap::new(),
            },
        }
    }

    /// Applies what the operation says is to be applied now; it may have been before.
    async fn apply(&self, cluster: &Cluster) -> Option<Applied> {
        let manifests = cluster.operation.as_ref()?.manifests();
        if manifests.is_empty() || cluster.status == ClusterStatus::Failed || cluster.is_going() {
            return None;
        }
        let id = cluster.id.as_str();
        let applied = self.context.kubernetes.apply_manifests(id, manifests);
        applied
            .await
            .inspect_err(|error| {
                tracing::debug!(%error, cluster = id, "manifests cannot be applied now");
            })
            .ok()
    }

    /// Where VMs could go that would be better off elsewhere; nothing, almost always.
    fn openings(&self, cluster: &Cluster) -> BTreeMap<Flavor, Openings> {
        let wanted = control_plane::wanted_sites(cluster).into_iter();
        wanted
            .map(|(flavor, sites)| (flavor, self.context.openings(flavor, sites)))
            .collect()
    }

    /// Keys of the clusters with VMs that would be better off elsewhere.
    fn misplaced(&self) -> Vec<String> {
        self.context.store.view.with(|records| {
            reflector::under(records, store::CLUSTERS)
                .filter(|(_, stored)| match stored.record.as_ref() {
                    Record::Cluster(cluster) => !control_plane::wanted_sites(cluster).is_empty(),
                    _ => false,
                })
                .map(|(key, _)| key.clone())
                .collect()
        })
    }

    /// While workers are being replaced: whose turn it is, and how many are left.
    fn outdated(&self, cluster: &Cluster) -> Option<(NodeGroupId, usize)> {
        let operation = cluster.operation.as_ref()?;
        if operation.step != Some(Step::NodeGroup) {
            return None;
        }
        let groups = store::node_groups_of(&cluster.id);
        self.context.store.view.with(|records| {
            let mut found: Option<(NodeGroupId, usize)> = None;
            for (_, stored) in reflector::under(records, &groups) {
                let Record::NodeGroup(group) = stored.record.as_ref() else {
                    continue;
                };
                let old = |node: &&Node| node.version != cluster.running_version;
                let left = group.nodes.iter().filter(old).count();
                if left > 0 && !group.is_going() {
                    let (_, total) = found.get_or_insert_with(|| (group.id.clone(), 0));
                    *total += left;
                }
            }
            found
        })
    }

    /// Whether it could be done: a site may have no room.
    async fn act(&self, cluster: &Cluster, act: &Act) -> Result<bool, PlatformError> {
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
                let network = cluster.load_balancer_network_id();
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
                match cloud.create_vm(guest::control_plane_vm(cluster, vm)).await {
                    Err(CloudError::NoCapacity { .. }) => return Ok(false),
                    outcome => drop(outcome?),
                }
            }
            Act::CreateLoadBalancer => {
                let spec = load_balancer_spec(cluster, owner);
                cloud.create_load_balancer(spec).await?;
            }
            Act::EnableStorage => kubernetes.set_storage(id, true).await?,
            Act::RotateCertificates => kubernetes.rotate_certificates(id).await?,
            Act::DeleteVm(vm) => cloud.delete_vm(&VmId(vm.clone())).await?,
            Act::DeleteKubernetes => {
                kubernetes.delete_cluster(id).await?;
                self.announced.lock().remove(&cluster.id);
            }
            Act::DeleteLoadBalancer => {
                cloud
                    .delete_load_balancer(&cluster.load_balancer_id())
                    .await?;
            }
            Act::DeleteVolumes => {
                for volume in cloud.volumes_of(&owner) {
                    cloud.delete_volume(&volume.id).await?;
                }
            }
            Act::DeleteNetworks => {
                cloud
                    .delete_network(&cluster.load_balancer_network_id())
                    .await?;
                if !cluster.network_group_is_users {
                    cloud.delete_network(&cluster.network_group_id).await?;
                }
            }
        }
        Ok(true)
    }

    async fn tell(&self, cluster: &Cluster, notices: &[Notice]) {
        for notice in notices {
            let kind = match notice.warning {
                true => EventType::Warning,
                false => EventType::Normal,
            };
            let (kubernetes, id) = (&self.context.kubernetes, cluster.id.as_str());
            let (about, reason) = (EventSubject::Cluster, notice.reason);
            let told = kubernetes.record_event(id, about, kind, reason, &notice.message);
            // An API that is away has nobody to tell.
            if let Err(error) = told.await {
                tracing::debug!(%error, cluster = id, "an event could not be recorded");
            }
        }
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

    /// The change of the record, if there is one.
    async fn change(
        &self,
        before: &Versioned<Cluster>,
        decision: &cluster::Decision,
    ) -> Result<Option<Change>, PlatformError> {
        let Some(mut next) = decision.next.clone() else {
            return Ok(None);
        };
        let mut change = Change::new();
        change.cluster(Some(before), &mut next, &decision.events)?;
        if next.status == ClusterStatus::Deleted {
            let id = next.id.as_str();
            let mut account = self.context.store.account(&next.owner, &[id]).await?;
            account.value.release(id);
            change.account(&account)?;
        }
        let names = |cluster: &Cluster| -> BTreeMap<String, String> {
            let named = cluster.control_plane.iter();
            named
                .filter_map(|vm| Some((vm.node_name.clone()?, vm.id.clone())))
                .collect()
        };
        let (old, new) = (names(&before.value), names(&next));
        for (name, vm) in new.iter().filter(|(name, _)| !old.contains_key(*name)) {
            change.take_name(&next.id, name, vm)?;
        }
        for name in old.keys().filter(|name| !new.contains_key(*name)) {
            change.free_name(&next.id, name);
        }
        Ok(Some(change))
    }

    /// What is to be done about the cluster, as it is seen now; `None` if there is no such cluster.
    async fn plan<'a>(&self, key: &'a str) -> Option<Plan<'a>> {
        let (owner, id) = parse(key)?;
        let cluster = self.context.store.cluster_in_view(&owner, &id)?;
        let seen = self.observe(&cluster.value).await;
        Some(Plan {
            key,
            cluster,
            seen,
            decision: Decision::default(),
            turn: None,
        })
    }

    fn decide(&self, plan: &mut Plan<'_>) {
        let turn = self.context.turns.ask(Component::ALL.len());
        plan.seen.replacements = Some(turn.replacements);
        let now = self.context.store.clock.now();
        let cluster = &plan.cluster.value;
        plan.decision = cluster::decide(cluster, &plan.seen, now);
        let next = plan.decision.next.as_ref();
        let count = |cluster: &Cluster| under_way(&cluster.control_plane);
        let begins = next.is_some_and(|next| count(next) > count(cluster));
        // Who begins nothing leaves the turn to the next.
        plan.turn = begins.then_some(turn);
    }

    /// Does what the plan says.
    async fn act_alone(&self, plan: &mut Plan<'_>) -> Result<(), PlatformError> {
        let now = self.context.store.clock.now();
        if let Some(working) = plan.decision.control_plane.clone() {
            self.announce(&plan.cluster.value, working).await?;
        }
        for act in std::mem::take(&mut plan.decision.acts) {
            let done = self.act(&plan.cluster.value, &act).await?;
            if let (false, Act::CreateVm(vm)) = (done, &act) {
                plan.refuse(&vm.id, now);
            }
        }
        Ok(())
    }

    /// Does what the plans say, what is of one kind in a few transactions. Only for acts of which each cluster's can
    /// be done in any order: see [`is_common`].
    async fn act_together(&self, plans: &mut [&mut Plan<'_>]) -> Result<(), PlatformError> {
        let Context {
            cloud, kubernetes, ..
        } = &self.context;
        let now = self.context.store.clock.now();
        let announcing = plans.iter().filter_map(|plan| {
            let working = plan.decision.control_plane.clone()?;
            Some(self.announce(&plan.cluster.value, working))
        });
        let announced = futures::future::join_all(announcing).await;
        announced.into_iter().collect::<Result<(), _>>()?;
        let mut networks = Vec::new();
        let mut load_balancers = Vec::new();
        let (mut wanted, mut specs, mut unwanted) = (Vec::new(), Vec::new(), Vec::new());
        let mut provisioned = Vec::new();
        for (index, plan) in plans.iter_mut().enumerate() {
            let acts = std::mem::take(&mut plan.decision.acts);
            let cluster = &plan.cluster.value;
            let owner = CloudOwner::of_cluster(cluster).to_string();
            for act in acts {
                match act {
                    Act::CreateNetworkGroup => {
                        let id = cluster.network_group_id.clone();
                        networks.push((id, owner.clone(), NetworkKind::NetworkGroup));
                    }
                    Act::CreateLoadBalancerNetwork => {
                        let id = cluster.load_balancer_network_id();
                        networks.push((id, owner.clone(), NetworkKind::LoadBalancer));
                    }
                    Act::CreateLoadBalancer => {
                        load_balancers.push(load_balancer_spec(cluster, owner.clone()));
                    }
                    Act::CreateVm(vm) => {
                        specs.push(guest::control_plane_vm(cluster, &vm));
                        wanted.push((index, vm.id));
                    }
                    Act::DeleteVm(vm) => unwanted.push(VmId(vm)),
                    Act::ProvisionKubernetes => {
                        let id = cluster.id.to_string();
                        provisioned.push((id, cluster.running_version.clone()));
                    }
                    _ => {}
                }
            }
        }
        cloud.create_networks(&networks).await?;
        cloud.create_load_balancers(&load_balancers).await?;
        cloud.delete_vms(&unwanted).await?;
        for ((index, id), outcome) in wanted.into_iter().zip(cloud.create_vms(&specs).await?) {
            match outcome {
                // A site may have no room.
                Err(CloudError::NoCapacity { .. }) => plans[index].refuse(&id, now),
                outcome => drop(outcome?),
            }
        }
        let provisioned = side_by_side(provisioned, |(id, version)| {
            let kubernetes = Arc::clone(kubernetes);
            async move { kubernetes.provision_cluster(&id, &version).await }
        });
        Ok(provisioned.await.into_iter().collect::<Result<(), _>>()?)
    }

    /// Once the change is recorded. Returns when to look again.
    async fn conclude(&self, plan: Plan<'_>) -> Option<Timestamp> {
        if plan.decision.deferred {
            self.context.turns.wait(plan.key);
        }
        drop(plan.turn);
        self.tell(&plan.cluster.value, &plan.decision.notices).await;
        plan.decision.wake
    }

    /// One round for many clusters, with an outcome for each; `None` where somebody else's change came first, or the round failed for
    /// many at once.
    async fn round(&self, keys: &[String]) -> Vec<Option<Outcome>> {
        // Each observes its own cluster: side by side, they share the waits for the disk.
        let observed = futures::future::join_all(keys.iter().map(|key| self.plan(key))).await;
        // What fails for many at once is tried for each alone: then it is known whose failure it is.
        let alone = keys.len() == 1;
        let mut outcomes: Vec<Option<Outcome>> = Vec::new();
        let (mut common, mut plans) = (Vec::new(), Vec::new());
        for (index, plan) in observed.into_iter().enumerate() {
            let Some(mut plan) = plan else {
                outcomes.push(Some(Ok(None)));
                continue;
            };
            outcomes.push(None);
            self.decide(&mut plan);
            if !alone && plan.decision.acts.iter().all(is_common) {
                common.push((index, plan));
                continue;
            }
            match self.act_alone(&mut plan).await {
                Ok(()) => plans.push((index, plan)),
                Err(error) => outcomes[index] = Some(Err(error)),
            }
        }
        let mut all: Vec<&mut Plan<'_>> = common.iter_mut().map(|(_, plan)| plan).collect();
        match self.act_together(&mut all).await {
            Ok(()) => plans.extend(common),
            Err(error) => {
                for (index, _) in common {
                    outcomes[index] = alone.then(|| Err(error.clone()));
                }
            }
        }
        let (mut changes, mut changing, mut concluded) = (Vec::new(), Vec::new(), Vec::new());
        for (index, plan) in plans {
            match self.change(&plan.cluster, &plan.decision).await {
                Ok(Some(change)) => {
                    changes.push(change);
                    changing.push((index, plan));
                }
                Ok(None) => concluded.push((index, plan)),
                Err(error) => outcomes[index] = Some(Err(error)),
            }
        }
        match self.context.store.commit_all(changes).await {
            Ok(made) => {
                let made = changing.into_iter().zip(made);
                concluded.extend(made.filter_map(|(plan, made)| made.then_some(plan)));
            }
            Err(error) => {
                for (index, _) in changing {
                    outcomes[index] = alone.then(|| Err(error.clone()));
                }
            }
        }
        let concluding = concluded.into_iter().map(|(index, plan)| async move {
            let wake = self.conclude(plan).await;
            (index, wake)
        });
        for (index, wake) in futures::future::join_all(concluding).await {
            outcomes[index] = Some(Ok(wake));
        }
        outcomes
    }
}

/// What is to be done about a cluster, and what that was decided from.
struct Plan<'a> {
    key: &'a str,
    cluster: Versioned<Cluster>,
    seen: Seen,
    decision: Decision,
    /// Held until a replacement that begins is recorded.
    turn: Option<Turn>,
}

impl Plan<'_> {
    /// A site has no room for the VM.
    fn refuse(&mut self, vm: &str, now: Timestamp) {
        cluster::refuse(&self.cluster.value, vm, now, &mut self.decision);
    }
}

/// What happens to many clusters at one instant, and needs no order among a cluster's acts.
fn is_common(act: &Act) -> bool {
    matches!(
        act,
        Act::CreateNetworkGroup
            | Act::CreateLoadBalancerNetwork
            | Act::ProvisionKubernetes
            | Act::CreateVm(_)
            | Act::DeleteVm(_)
            | Act::CreateLoadBalancer
    )
}

fn load_balancer_spec(cluster: &Cluster, owner: String) -> LoadBalancerSpec {
    LoadBalancerSpec {
        id: cluster.load_balancer_id(),
        owner,
        flavor: LOAD_BALANCER_FLAVOR.to_owned(),
        domain_name: load_balancer_domain(cluster),
        addresses: LOAD_BALANCER_ADDRESSES,
        // It comes with the control plane.
        metered: false,
    }
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
            Some(Record::Releases(_)) => reflector::under(change.records, store::CLUSTERS)
                .map(|(key, _)| key.clone())
                .collect(),
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
        change: &Observed<'_, infra::record::Record>,
    ) -> Vec<String> {
        match owner {
            Some(owner) if owner.node_group.is_none() => {
                vec![store::cluster_key(&owner.owner, &owner.cluster)]
            }
            Some(_) => Vec::new(),
            None => match change.new.map(AsRef::as_ref) {
                // There may be room again for who had to go elsewhere.
                Some(infra::record::Record::Site(..)) => self.misplaced(),
                _ => Vec::new(),
            },
        }
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> Round<'a> {
        Box::pin(async move {
            let key = [key.to_owned()];
            for _ in 0..ATTEMPTS {
                if let Some(Some(outcome)) = self.round(&key).await.pop() {
                    return outcome;
                }
            }
            let [key] = key;
            Err(PlatformError::conflict(format!(
                "too many changes at once to {key}"
            )))
        })
    }

    fn reconcile_all<'a>(&'a self, keys: &'a [String]) -> BoxFuture<'a, Vec<Outcome>> {
        Box::pin(async move {
            let mut outcomes = Vec::with_capacity(keys.len());
            for (key, outcome) in keys.iter().zip(self.round(keys).await) {
                outcomes.push(match outcome {
                    Some(outcome) => outcome,
                    None => self.reconcile(key).await,
                });
            }
            outcomes
        })
    }
}
