//! Resizes node groups by their nodes' loads: see [`crate::platform::autoscaler`] for the rules.

use std::collections::BTreeMap;

use crate::clock::Timestamp;
use crate::infra::reflector::{self, Change as Observed};
use crate::infra::{self, Load, VmId};
use crate::kubernetes::{EventSubject, EventType};
use crate::platform::autoscaler::{self, Resize, Scaling};
use crate::platform::creation;
use crate::platform::deployment_event::{DeploymentEvent, EventStatus, OperationKind};
use crate::platform::error::PlatformError;
use crate::platform::model::{Cluster, ClusterStatus, NodeGroup, NodeGroupStatus};
use crate::platform::replacement;
use crate::platform::store::{self, Change, CloudOwner, Record, Versioned};
use crate::platform::vm_state::VmState;

use super::notice::makes_room;
use super::{ATTEMPTS, Context, Controller, Round, node_group};

pub(super) struct AutoscalerController {
    context: Context,
}

/// A change of the record that is ready to be made, and what is told of it.
struct Plan {
    change: Change,
    notice: Option<(EventType, &'static str, String)>,
}

impl AutoscalerController {
    pub(super) fn new(context: Context) -> AutoscalerController {
        AutoscalerController { context }
    }

    fn loads(&self, group: &NodeGroup) -> BTreeMap<String, Load> {
        let nodes = group.nodes.iter();
        nodes
            .filter_map(|node| {
                let vm = self.context.cloud.get_vm(&VmId(node.id.to_string()))?;
                Some((node.id.to_string(), vm.load))
            })
            .collect()
    }

    /// The resize, or as much of it as the quota allows.
    async fn plan(
        &self,
        cluster: &Versioned<Cluster>,
        group: &Versioned<NodeGroup>,
        resize: &Resize,
        scaling: Scaling,
        now: Timestamp,
    ) -> Result<Option<Plan>, PlatformError> {
        let store = &self.context.store;
        let current = group.value.target_node_count;
        let mut change = Change::new();
        let mut next = group.value.clone();
        let event = |status| {
            DeploymentEvent::new(now, OperationKind::NodeGroupScale, None, status)
                .of_node_group(&group.value.id)
        };
        next.target_node_count = resize.target;
        if resize.target > current {
            let (owner, id) = (&group.value.owner, group.value.id.as_str());
            let mut account = store.account(owner, &[id]).await?;
            let mut refusal = None;
            let fits = (current + 1..=resize.target).rev().find(|count| {
                let holding = creation::node_group_holding(&group.value, *count);
                let outcome = account.value.reserve([holding]);
                refusal = outcome.err().map(|error| error.to_string());
                refusal.is_none()
            });
            let Some(fits) = fits else {
                if group.value.scaling.quota_exceeded {
                    return Ok(None);
                }
                next.target_node_count = current;
                next.scaling = Scaling {
                    quota_exceeded: true,
                    ..scaling
                };
                let refusal = refusal.unwrap_or_default();
                let failed = event(EventStatus::Failed).because(refusal.clone());
                change.node_group(Some(group), &mut next, &[failed])?;
                return Ok(Some(Plan {
                    change,
                    notice: Some((EventType::Warning, "QuotaExceeded", refusal)),
                }));
            };
            next.target_node_count = fits;
            change.account(&account)?;
        }
        let target = next.target_node_count;
        let why = format!("{}: from {current} to {target} nodes", resize.why);
        next.status = NodeGroupStatus::ToResize;
        next.scaling = Scaling::default();
        next.updated_at = Some(now);
        for node in &mut next.nodes {
            if resize.victim.as_ref() == Some(&node.id) {
                let vm = self.context.cloud.get_vm(&VmId(node.id.to_string()));
                let state = vm.map_or(VmState::Absent, |vm| VmState::of(&vm));
                replacement::send_away(node, state, now);
            }
        }
        // It must still be ACTIVE, and switched on.
        change.expect_cluster(cluster);
        let started = event(EventStatus::Started).because(why.clone());
        change.node_group(Some(group), &mut next, &[started])?;
        let reason = match resize.victim {
            None => "ScalingUp",
            Some(_) => "ScalingDown",
        };
        Ok(Some(Plan {
            change,
            notice: Some((EventType::Normal, reason, why)),
        }))
    }
}

/// Whether the autoscaler has anything to do with a group, or had.
fn concerns(group: &NodeGroup) -> bool {
    group.autoscaling_enabled || group.scaling != Scaling::default()
}

impl Controller for AutoscalerController {
    fn name(&self) -> &'static str {
        "autoscaler"
    }

    fn on_record(&self, change: &Observed<'_, Record>) -> Vec<String> {
        let groups_of = |cluster: &Cluster, wanted: fn(&NodeGroup) -> bool| -> Vec<String> {
            let prefix = store::node_groups_of(&cluster.id);
            reflector::under(change.records, &prefix)
                .filter(|(_, stored)| match stored.record.as_ref() {
                    Record::NodeGroup(group) => wanted(group),
                    _ => false,
                })
                .map(|(key, _)| key.clone())
                .collect()
        };
        match change.new.or(change.old).map(AsRef::as_ref) {
            Some(Record::NodeGroup(group)) if concerns(group) => vec![change.key.to_owned()],
            Some(Record::Cluster(cluster)) => groups_of(cluster, concerns),
            // Whoever was refused may be granted it now.
            Some(Record::Ledger(ledger)) if makes_room(change) => {
                let prefix = store::clusters_of(&ledger.owner);
                reflector::under(change.records, &prefix)
                    .filter_map(|(_, stored)| match stored.record.as_ref() {
                        Record::Cluster(cluster) => Some(cluster),
                        _ => None,
                    })
                    .flat_map(|cluster| groups_of(cluster, |g| g.scaling.quota_exceeded))
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
        let load = |record: &infra::record::Record| match record {
            infra::record::Record::Vm(vm) => vm.load,
            _ => Load::default(),
        };
        let before = change.old.map(|record| load(record)).unwrap_or_default();
        let after = change.new.map(|record| load(record)).unwrap_or_default();
        match owner.and_then(|owner| Some((owner, owner.node_group.as_ref()?))) {
            Some((owner, group)) if before != after => {
                vec![store::node_group_key(&owner.cluster, group)]
            }
            _ => Vec::new(),
        }
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> Round<'a> {
        Box::pin(async move {
            let store = &self.context.store;
            let Some((cluster_id, id)) = node_group::parse(key) else {
                return Ok(None);
            };
            for _ in 0..ATTEMPTS {
                // Most groups scale by hand: nothing is read for them.
                let seen = store.view.get(key);
                match seen.as_ref().map(|stored| stored.record.as_ref()) {
                    Some(Record::NodeGroup(group)) if concerns(group) => {}
                    _ => return Ok(None),
                }
                let Some(group) = store.find_node_group(&cluster_id, &id).await? else {
                    return Ok(None);
                };
                let owner = &group.value.owner;
                let Some(cluster) = store.find_cluster(owner, &cluster_id).await? else {
                    return Ok(None);
                };
                let enabled = cluster.value.status == ClusterStatus::Active
                    && cluster.value.requested_features.autoscaling_enabled;
                let (now, loads) = (store.clock.now(), self.loads(&group.value));
                let decision = autoscaler::decide(&group.value, enabled, &loads, now);
                let plan = match &decision.resize {
                    Some(resize) => {
                        let scaling = decision.scaling.clone();
                        let plan = self.plan(&cluster, &group, resize, scaling, now);
                        match plan.await? {
                            Some(plan) => plan,
                            None => return Ok(None),
                        }
                    }
                    None if decision.scaling == group.value.scaling => return Ok(decision.wake),
                    None => {
                        let mut next = group.value.clone();
                        next.scaling = decision.scaling.clone();
                        let mut change = Change::new();
                        change.node_group(Some(&group), &mut next, &[])?;
                        Plan {
                            change,
                            notice: None,
                        }
                    }
                };
                if store.commit(plan.change).await? {
                    if let Some((kind, reason, message)) = plan.notice {
                        let about = EventSubject::NodeGroup(group.value.name.clone());
                        let (kubernetes, id) = (&self.context.kubernetes, cluster_id.as_str());
                        let told = kubernetes.record_event(id, about, kind, reason, &message);
                        // An API that is away has nobody to tell.
                        if let Err(error) = told.await {
                            tracing::debug!(%error, cluster = id, "an event could not be recorded");
                        }
                    }
                    return Ok(decision.wake);
                }
            }
            Err(PlatformError::conflict(format!(
                "too many changes at once to {id}"
            )))
        })
    }
}
