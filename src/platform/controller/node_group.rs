//! Creates, resizes and removes node groups: see [`crate::platform::node_group`] for the rules.

use std::collections::BTreeMap;

use crate::infra::reflector::{self, Change as Observed};
use crate::infra::{self, CloudError, VmId};
use crate::kubernetes::{EventSubject, EventType};
use crate::platform::error::PlatformError;
use crate::platform::guest;
use crate::platform::model::{
    Cluster, ClusterId, ClusterStatus, NodeGroup, NodeGroupId, NodeGroupStatus,
};
use crate::platform::node_group::{self, Act, Notice, Seen};
use crate::platform::placement::Openings;
use crate::platform::quota::Resources;
use crate::platform::store::{self, Change, CloudOwner, Record, Versioned};
use crate::platform::vm_state::VmState;

use super::{ATTEMPTS, Context, Controller, Round, drain};

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

    /// Whether it could be done: a site may have no room.
    async fn act(
        &self,
        cluster: &Cluster,
        group: &NodeGroup,
        act: &Act,
    ) -> Result<bool, PlatformError> {
        let cloud = &self.context.cloud;
        match act {
            Act::CreateVm(node) => {
                match cloud.create_vm(guest::node_vm(cluster, group, node)).await {
                    Err(CloudError::NoCapacity { .. }) => return Ok(false),
                    outcome => drop(outcome?),
                }
            }
            Act::DeleteVm(id) => cloud.delete_vm(&VmId(id.to_string())).await?,
        }
        Ok(true)
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

    /// Whether the change was made.
    async fn record(
        &self,
        before: &Versioned<NodeGroup>,
        decision: &node_group::Decision,
    ) -> Result<bool, PlatformError> {
        let Some(mut next) = decision.next.clone() else {
            return Ok(true);
        };
        let store = &self.context.store;
        let mut change = Change::new();
        let id = next.id.to_string();
        if decision.remove {
            change.remove_node_group(before, &mut next, &decision.events)?;
            let mut ledger = store.ledger(&next.owner).await?;
            ledger.value.release(&id);
            change.ledger(&ledger)?;
        } else {
            change.node_group(Some(before), &mut next, &decision.events)?;
            if next.status == NodeGroupStatus::Ready
                && before.value.status != NodeGroupStatus::Ready
            {
                // What a smaller size no longer needs is given back when it is no longer there.
                let mut ledger = store.ledger(&next.owner).await?;
                let needed = Resources::of(next.flavor, next.target_node_count);
                if let Some(holding) = ledger.value.holdings.get_mut(&id)
                    && holding.resources != needed
                {
                    holding.resources = needed;
                    change.ledger(&ledger)?;
                }
            }
        }
        store.commit(change).await
    }
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
            let Some((cluster, id)) = parse(key) else {
                return Ok(None);
            };
            let store = &self.context.store;
            for _ in 0..ATTEMPTS {
                let Some(group) = store.find_node_group(&cluster, &id).await? else {
                    return Ok(None);
                };
                let owner = &group.value.owner;
                let Some(cluster) = store.find_cluster(owner, &cluster).await? else {
                    let reason = format!("node group {id} is without its cluster");
                    return Err(PlatformError::conflict(reason));
                };
                // Names taken before the record was read must be in view.
                store.view.wait_for(cluster.read_at).await;
                let mut seen = self.observe(&cluster.value, &group.value).await;
                let turn = self.context.turns.ask(1);
                seen.replacements = Some(turn.replacements);
                let now = store.clock.now();
                let mut decision = node_group::decide(&group.value, &seen, now, self.context.seed);
                let acts = std::mem::take(&mut decision.acts);
                for act in &acts {
                    let done = self.act(&cluster.value, &group.value, act).await?;
                    if let (false, Act::CreateVm(node)) = (done, act) {
                        node_group::refuse(&group.value, node.id.as_str(), now, &mut decision);
                    }
                }
                if self.record(&group, &decision).await? {
                    if decision.deferred {
                        self.context.turns.wait(key);
                    }
                    self.tell(&group.value, &decision.notices).await;
                    return Ok(decision.wake);
                }
            }
            Err(PlatformError::conflict(format!(
                "too many changes at once to {id}"
            )))
        })
    }
}
