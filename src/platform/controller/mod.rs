//! What acts. A controller observes the records and the cloud, decides with a pure function, acts, and
//! records what it did: always from state, never from the memory of an event.
//!
//! To add one: a file here, and a line in [`all`].

mod autoscaler;
mod cluster;
mod drain;
mod load_balancer;
mod metering;
mod node_group;
mod notice;
mod orphan;

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::future::BoxFuture;

use crate::clock::Timestamp;
use crate::infra::fleet::Room;
use crate::infra::reflector::Change;
use crate::infra::work_queue::{WorkQueue, Workers};
use crate::infra::{self, Cloud, Datacenter};
use crate::leader::Term;

use super::cluster_api::ClusterApi;
use super::error::PlatformError;
use super::model::Flavor;
use super::placement::Openings;
use super::store::{self, CloudOwner, Store};
use super::turns::{Turns, under_way};

/// What the controllers share.
#[derive(Clone)]
pub struct Context {
    pub store: Store,
    pub cloud: Cloud,
    pub kubernetes: Arc<dyn ClusterApi>,
    pub seed: u64,
    pub auto_upgrade: bool,
    pub turns: Turns,
}

impl Context {
    /// Which of the `wanted` sites would take a VM of that flavor now.
    fn openings(&self, flavor: Flavor, wanted: BTreeSet<Datacenter>) -> Openings {
        let size = flavor.size();
        let room = Room {
            vcpus: size.vcpus,
            ram_gb: size.ram_gb,
        };
        let mut openings = Openings::default();
        for site in wanted {
            if !self.cloud.site(site).is_reachable() {
                continue;
            }
            match self.cloud.has_room(site, room) {
                true => openings.open.insert(site),
                false => openings.full.insert(site),
            };
        }
        openings
    }
}

/// How often a round is taken again at once, after somebody else's change came first.
const ATTEMPTS: usize = 16;

/// Keys of one controller that are worked on together, while the clock is manual.
const AT_ONCE: usize = 64;

type Outcome = Result<Option<Timestamp>, PlatformError>;
type Round<'a> = BoxFuture<'a, Outcome>;

trait Controller: Send + Sync {
    fn name(&self) -> &'static str;

    /// Keys that a change of the platform's records concerns.
    fn on_record(&self, change: &Change<'_, store::Record>) -> Vec<String>;

    /// Keys that a change in the cloud concerns; `None` if what changed is not the platform's.
    fn on_cloud(
        &self,
        owner: Option<&CloudOwner>,
        change: &Change<'_, infra::record::Record>,
    ) -> Vec<String>;

    /// Brings what `key` names a step further. Returns when to look again, if nothing changes before.
    fn reconcile<'a>(&'a self, key: &'a str) -> Round<'a>;

    /// As [`Controller::reconcile`] for each, with an outcome for each: for who can do many at once.
    fn reconcile_all<'a>(&'a self, keys: &'a [String]) -> BoxFuture<'a, Vec<Outcome>> {
        Box::pin(async move {
            let mut outcomes = Vec::with_capacity(keys.len());
            for key in keys {
                outcomes.push(self.reconcile(key).await);
            }
            outcomes
        })
    }
}

/// Places in [`all`].
const CLUSTERS: usize = 0;
const NODE_GROUPS: usize = 1;

/// Every controller there is.
fn all(context: &Context) -> Vec<Arc<dyn Controller>> {
    vec![
        Arc::new(cluster::ClusterController::new(context.clone())),
        Arc::new(node_group::NodeGroupController::new(context.clone())),
        Arc::new(autoscaler::AutoscalerController::new(context.clone())),
        Arc::new(load_balancer::LoadBalancerController::new(context.clone())),
        Arc::new(orphan::OrphanController::new(context.clone())),
        Arc::new(metering::MeteringController::new(context.clone())),
    ]
}

/// A key of one of the controllers; in this order they are worked on.
type Task = (usize, String);

/// Starts the controllers with everything that there is; they go on with what changes.
pub fn start(context: &Context, term: &Term) -> Workers {
    let controllers: Arc<Vec<Arc<dyn Controller>>> = Arc::new(all(context));
    let queue: WorkQueue<Task> = WorkQueue::new(context.store.clock.clone(), term.clone());

    let (kubernetes, changed) = (Arc::clone(&context.kubernetes), queue.clone());
    context.store.view.observe(Box::new(move |change| {
        for (cluster, notice) in notice::notices(change) {
            kubernetes.notify(cluster.as_str(), notice);
        }
        !changed.is_closed()
    }));

    // Both controllers that replace VMs are asked: only one of them knows the key.
    let waiting = queue.clone();
    context.turns.on_room(Box::new(move |key| {
        waiting.push((CLUSTERS, key.to_owned()));
        waiting.push((NODE_GROUPS, key.to_owned()));
    }));
    let (turns, open) = (context.turns.clone(), queue.clone());
    context.store.view.observe(Box::new(move |change| {
        let count = match change.new.map(AsRef::as_ref) {
            Some(store::Record::Cluster(cluster)) => under_way(&cluster.control_plane),
            Some(store::Record::NodeGroup(group)) => under_way(&group.nodes),
            _ => 0,
        };
        turns.record(change.key, count);
        !open.is_closed()
    }));

    let (list, changed) = (Arc::clone(&controllers), queue.clone());
    context.store.view.observe(Box::new(move |change| {
        for (index, controller) in list.iter().enumerate() {
            for key in controller.on_record(change) {
                changed.push((index, key));
            }
        }
        !changed.is_closed()
    }));

    let (list, changed) = (Arc::clone(&controllers), queue.clone());
    context.cloud.observe(Box::new(move |change| {
        let owner = change.new.or(change.old).and_then(owner_of);
        for (index, controller) in list.iter().enumerate() {
            for key in controller.on_cloud(owner.as_ref(), change) {
                changed.push((index, key));
            }
        }
        !changed.is_closed()
    }));

    let of_one = |a: &Task, b: &Task| a.0 == b.0;
    queue.start_together(AT_ONCE, of_one, move |tasks: Vec<Task>| {
        let controllers = Arc::clone(&controllers);
        async move {
            let index = tasks.first().map_or(0, |(index, _)| *index);
            let keys: Vec<String> = tasks.into_iter().map(|(_, key)| key).collect();
            let Some(controller) = controllers.get(index) else {
                return Vec::new();
            };
            tracing::trace!(controller = controller.name(), ?keys, "round");
            controller.reconcile_all(&keys).await
        }
    })
}

fn owner_of(record: &Arc<infra::record::Record>) -> Option<CloudOwner> {
    use infra::record::Record;
    match record.as_ref() {
        Record::Vm(vm) => CloudOwner::parse(&vm.spec.owner),
        Record::LoadBalancer(load_balancer) => CloudOwner::parse(&load_balancer.owner),
        Record::Network(network) => CloudOwner::parse(&network.owner),
        Record::Volume(volume) => CloudOwner::parse(&volume.owner),
        Record::Peer(_)
        | Record::Site(..)
        | Record::Hypervisor(_)
        | Record::Address(_)
        | Record::Interval(_) => None,
    }
}
