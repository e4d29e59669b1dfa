//! Creates, resizes and removes node groups: see [`crate::platform::node_group`] for the rules.

use std::collections::BTreeMap;

use futures::future::BoxFuture;

use crate::clock::Timestamp;
use crate::infra::reflector::{self, Change as Observed};
use crate::infra::{self, CloudError, VmId};
use crate::kubernetes::{EventSubject, EventType};
use crate::platform::error::PlatformError;
use crate::platform::guest;
use crate::platform::model::{
    Cluster, ClusterId, ClusterStatus, NodeGroup, NodeGroupId, NodeGroupStatus,
};
use crate::platform::node_group::{self, Act, Decision, Notice, Seen};
use crate::platform::placement::Openings;
use crate::platform::quota::{Holding, Resources};
use crate::platform::store::{self, Change, CloudOwner, Record, Versioned};
use crate::platform::turns::{Turn, under_way};
use crate::platform::vm_state::VmState;

use super::{ATTEMPTS, Context, Controller, Outcome, Round, drain};

pub(super) struct NodeGroupController {
    context: Context,
}

impl NodeGroupController {
    pub(super) fn new(context: Context) -> NodeGroupController {
        NodeGroupController { context }
    }

    async fn observe(&self, cluster: &Cluster, group: &NodeGroup) -> Seen {
        let vms: BTreeMap<String, VmState> = group
            .nodes
            .iter()
            .filter_map(|node| {
                let seen = self.context.cloud.get_vm(&VmId(node.id.to_string()))?;
                Some((node.id.to_string(), VmState::of(&seen)))
            })
            .collect();
        let nodes = group.nodes.iter().map(|node| (node, node.name.as_str()));
        let drains = drain::round(&self.context, cluster, nodes, &vms).await;
        let operation = cluster.operation.as_ref();
        let rolls = operation.is_some_and(|going| going.node_group.as_ref() == Some(&group.id));
        Seen {
            vms,
            drains,
            cluster_takes_nodes: cluster.can_take_nodes(),
            cluster_is_going: cluster.is_going(),
            version: cluster.running_version.clone(),
            rolls: rolls && cluster.status != ClusterStatus::Failed,
            taken_names: store::taken_names(&self.context.store.view, &cluster.id),
            replacements: None,
            openings: match cluster.status {
                ClusterStatus::Active => {
                    let wanted = node_group::wanted_sites(group);
                    self.context.openings(group.flavor, wanted)
                }
                _ => Openings::default(),
            },
        }
    }

    /// Keys of the groups with nodes that would be better off elsewhere.
    fn misplaced(&self) -> Vec<String> {
        self.context.store.view.with(|records| {
            reflector::under(records, store::NODE_GROUPS)
                .filter(|(_, stored)| match stored.record.as_ref() {
                    Record::NodeGroup(group) => !node_group::wanted_sites(group).is_empty(),
                    _ => false,
                })
                .map(|(key, _)| key.clone())
                .collect()
        })
    }

    /// What is to be done about the group, as it is seen now; `None` if there is no such group.
    async fn plan<'a>(&self, key: &'a str) -> Result<Option<Plan<'a>>, PlatformError> {
        let Some((cluster, id)) = parse(key) else {
            return Ok(None);
        };
        let store = &self.context.store;
        let Some(group) = store.node_group_in_view(&cluster, &id) else {
            return Ok(None);
        };
        let owner = &group.value.owner;
        let Some(cluster) = store.cluster_in_view(owner, &cluster) else {
            let reason = format!("node group {id} is without its cluster");
            return Err(PlatformError::conflict(reason));
        };
        let seen = self.observe(&cluster.value, &group.value).await;
        Ok(Some(Plan {
            key,
            cluster,
            group,
            seen,
            decision: Decision::default(),
            turn: None,
        }))
    }

    fn decide(&self, plan: &mut Plan<'_>) {
        let turn = self.context.turns.ask(1);
        plan.seen.replacements = Some(turn.replacements);
        let now = self.context.store.clock.now();
        let group = &plan.group.value;
        plan.decision = node_group::decide(group, &plan.seen, now, self.context.seed);
        let next = plan.decision.next.as_ref();
        let begins = next.is_some_and(|next| under_way(&next.nodes) > under_way(&group.nodes));
        // Who begins nothing leaves the turn to the next.
        plan.turn = begins.then_some(turn);
    }

    /// Does what the plans say, all VMs in a few transactions.
    async fn act(&self, plans: &mut [&mut Plan<'_>]) -> Result<(), PlatformError> {
        let (cloud, now) = (&self.context.cloud, self.context.store.clock.now());
        let (mut wanted, mut specs, mut unwanted) = (Vec::new(), Vec::new(), Vec::new());
        for (index, plan) in plans.iter_mut().enumerate() {
            for act in std::mem::take(&mut plan.decision.acts) {
                match act {
                    Act::CreateVm(node) => {
                        let (cluster, group) = (&plan.cluster.value, &plan.group.value);
                        specs.push(guest::node_vm(cluster, group, &node));
                        wanted.push((index, node.id));
                    }
                    Act::DeleteVm(id) => unwanted.push(VmId(id.to_string())),
                }
            }
        }
        cloud.delete_vms(&unwanted).await?;
        for ((index, id), outcome) in wanted.into_iter().zip(cloud.create_vms(&specs).await?) {
            match outcome {
                // A site may have no room.
                Err(CloudError::NoCapacity { .. }) => {
                    let Plan {
                        decision, group, ..
                    } = &mut *plans[index];
                    node_group::refuse(&group.value, id.as_str(), now, decision);
                }
                outcome => drop(outcome?),
            }
        }
        Ok(())
    }

    /// Once the change is recorded. Returns when to look again.
    async fn conclude(&self, plan: Plan<'_>) -> Option<Timestamp> {
        if plan.decision.deferred {
            self.context.turns.wait(plan.key);
        }
        drop(plan.turn);
        self.tell(&plan.group.value, &plan.decision.notices).await;
        plan.decision.wake
    }

    async fn tell(&self, group: &NodeGroup, notices: &[Notice]) {
        for notice in notices {
            let about = EventSubject::NodeGroup(group.name.clone());
            let kind = match notice.warning {
                true => EventType::Warning,
                false => EventType::Normal,
            };
            let kubernetes = &self.context.kubernetes;
            let id = group.cluster.as_str();
            let told = kubernetes.record_event(id, about, kind, notice.reason, &notice.message);
            // An API that is away has nobody to tell.
            if let Err(error) = told.await {
                tracing::debug!(%error, cluster = id, "an event could not be recorded");
            }
        }
    }

    /// The change of the record, if there is one.
    async fn change(
        &self,
        before: &Versioned<NodeGroup>,
        decision: &Decision,
    ) -> Result<Option<Change>, PlatformError> {
        let Some(mut next) = decision.next.clone() else {
            return Ok(None);
        };
        let store = &self.context.store;
        let mut change = Change::new();
        let id = next.id.to_string();
        if decision.remove {
            change.remove_node_group(before, &mut next, &decision.events)?;
            let mut account = store.account(&next.owner, &[&id]).await?;
            account.value.release(&id);
            change.account(&account)?;
        } else {
            change.node_group(Some(before), &mut next, &decision.events)?;
            if next.status == NodeGroupStatus::Ready
                && before.value.status != NodeGroupStatus::Ready
            {
                // What a smaller size no longer needs is given back when it is no longer there.
                let mut account = store.account(&next.owner, &[&id]).await?;
                let resources = Resources::of(next.flavor, next.target_node_count);
                if let Some(holding) = account.value.holding(&id)
                    && holding.resources != resources
                {
                    let holding = Holding {
                        resources,
                        ..holding.clone()
                    };
                    account.value.hold(holding);
                    change.account(&account)?;
                }
            }
        }
        Ok(Some(change))
    }

    /// One round for many groups, with an outcome for each; `None` where another's change came first, or the round failed for many at
    /// once.
    async fn round(&self, keys: &[String]) -> Vec<Option<Outcome>> {
        // Each observes its own cluster: side by side, they share the waits for the disk.
        let observed = futures::future::join_all(keys.iter().map(|key| self.plan(key))).await;
        // What fails for many at once is tried for each alone: then it is known whose failure it is.
        let alone = keys.len() == 1;
        let mut outcomes: Vec<Option<Outcome>> = Vec::new();
        let mut plans = Vec::new();
        for (index, plan) in observed.into_iter().enumerate() {
            outcomes.push(match plan {
                Ok(Some(mut plan)) => {
                    self.decide(&mut plan);
                    plans.push((index, plan));
                    None
                }
                Ok(None) => Some(Ok(None)),
                Err(error) => Some(Err(error)),
            });
        }
        let mut all: Vec<&mut Plan<'_>> = plans.iter_mut().map(|(_, plan)| plan).collect();
        if let Err(error) = self.act(&mut all).await {
            for (index, _) in plans {
                outcomes[index] = alone.then(|| Err(error.clone()));
            }
            return outcomes;
        }
        let (mut changes, mut changing, mut concluded) = (Vec::new(), Vec::new(), Vec::new());
        for (index, plan) in plans {
            match self.change(&plan.group, &plan.decision).await {
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

/// What is to be done about a group, and what that was decided from.
struct Plan<'a> {
    key: &'a str,
    cluster: Versioned<Cluster>,
    group: Versioned<NodeGroup>,
    seen: Seen,
    decision: Decision,
    /// Held until a replacement that begins is recorded.
    turn: Option<Turn>,
}

/// Cluster and id from the key of a node group's record.
pub(super) fn parse(key: &str) -> Option<(ClusterId, NodeGroupId)> {
    let (cluster, id) = key.strip_prefix(store::NODE_GROUPS)?.split_once('/')?;
    Some((cluster.parse().ok()?, id.parse().ok()?))
}

impl Controller for NodeGroupController {
    fn name(&self) -> &'static str {
        "node_group"
    }

    fn on_record(&self, change: &Observed<'_, Record>) -> Vec<String> {
        match change.new.or(change.old).map(AsRef::as_ref) {
            Some(Record::NodeGroup(group)) => {
                vec![store::node_group_key(&group.cluster, &group.id)]
            }
            Some(Record::Cluster(cluster)) => {
                let prefix = store::node_groups_of(&cluster.id);
                reflector::under(change.records, &prefix)
                    .map(|(key, _)| key.clone())
                    .collect()
            }
            _ => Vec::new(),
        }
    }

    fn on_cloud(
        &self,
        owner: Option<&CloudOwner>,
        change: &Observed<'_, infra::record::Record>,
    ) -> Vec<String> {
        if let Some(owner) = owner {
            let id = owner.node_group.as_ref();
            let key = id.map(|id| store::node_group_key(&owner.cluster, id));
            return key.into_iter().collect();
        }
        match change.new.map(AsRef::as_ref) {
            // There may be room again for who had to go elsewhere.
            Some(infra::record::Record::Site(..)) => self.misplaced(),
            _ => Vec::new(),
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
