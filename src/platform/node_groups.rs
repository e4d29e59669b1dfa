//! What can be asked of node groups.

use super::clusters::node_group_started;
use super::creation;
use super::deployment_event::{DeploymentEvent, EventStatus, OperationKind};
use super::error::PlatformError;
use super::model::{
    Cluster, ClusterId, ClusterStatus, CreateNodeGroup, NodeGroup, NodeGroupId, NodeGroupPatch,
    NodeGroupStatus, OwnerId,
};
use super::store::{Change, Versioned};
use super::{ATTEMPTS, Platform, Result, contention, validation};

impl Platform {
    /// In the order of creation. Without a filter: all that exist. Standalone nodes are none.
    pub async fn list_node_groups(
        &self,
        owner: &OwnerId,
        cluster: &ClusterId,
        statuses: &[NodeGroupStatus],
    ) -> Result<Vec<NodeGroup>> {
        self.store().cluster(owner, cluster).await?;
        let mut groups = self.store().node_groups(cluster).await?;
        groups.retain(|group| {
            !group.standalone && (statuses.is_empty() || statuses.contains(&group.status))
        });
        Ok(groups)
    }

    /// Records the group and what it reserves, or neither. One in a cluster that is being deployed waits
    /// for the control plane.
    pub async fn create_node_group(
        &self,
        owner: &OwnerId,
        cluster: &ClusterId,
        request: CreateNodeGroup,
    ) -> Result<NodeGroup> {
        self.add_node_group(owner, cluster, request, false).await
    }

    pub(super) async fn add_node_group(
        &self,
        owner: &OwnerId,
        cluster: &ClusterId,
        request: CreateNodeGroup,
        standalone: bool,
    ) -> Result<NodeGroup> {
        // Whether the cluster is there comes first: a foreign one is not found, whatever is asked.
        self.store().cluster(owner, cluster).await?;
        let order = validation::node_group_order(request)?;
        let _serial = self.ledger_lock(owner).await;
        for _ in 0..ATTEMPTS {
            let cluster = self.store().cluster(owner, cluster).await?;
            must_take_groups(&cluster.value)?;
            // What is new holds nothing yet.
            let mut account = self.store().account(owner, &[]).await?;
            let now = self.now();
            let mut group = creation::node_group(
                &order,
                &cluster.value.id,
                cluster.value.requested_features.autoscaling_enabled,
                &mut account.value.ledger,
                self.inner.context.seed,
                now,
            );
            group.standalone = standalone;
            let holding = creation::node_group_holding(&group, group.target_node_count);
            account.value.reserve([holding])?;
            let mut change = Change::new();
            // A cluster that is being deleted must not gain a group that nobody will remove.
            change.expect_cluster(&cluster);
            change.account(&account)?;
            let event = node_group_started(now, &group);
            change.node_group(None, &mut group, &[event])?;
            if self.store().commit(change).await? {
                return Ok(group);
            }
        }
        Err(contention(cluster))
    }

    pub async fn get_node_group(
        &self,
        owner: &OwnerId,
        cluster: &ClusterId,
        id: &NodeGroupId,
    ) -> Result<NodeGroup> {
        self.store().cluster(owner, cluster).await?;
        Ok(self.store().node_group(cluster, id).await?.value)
    }

    /// What is not a change of the count is done at once, in any state. A change of the count needs an
    /// ACTIVE cluster and a READY group, and room in the quota if it grows.
    pub async fn update_node_group(
        &self,
        owner: &OwnerId,
        cluster: &ClusterId,
        id: &NodeGroupId,
        patch: NodeGroupPatch,
    ) -> Result<NodeGroup> {
        if let Some(Some(text)) = &patch.description {
            validation::description("description", Some(text))?;
        }
        if let Some(Some(tag)) = &patch.tag {
            validation::node_group_tag("tag", Some(tag))?;
        }
        let _serial = self.ledger_lock(owner).await;
        for _ in 0..ATTEMPTS {
            let cluster = self.store().cluster(owner, cluster).await?;
            let group = self.store().node_group(&cluster.value.id, id).await?;
            let mut next = patched(&group.value, &patch)?;
            let resizes = next.target_node_count != group.value.target_node_count;
            if next == group.value {
                return Ok(next);
            }
            let now = self.now();
            next.updated_at = Some(now);
            let mut change = Change::new();
            let mut events = Vec::new();
            if resizes {
                must_resize(&cluster.value, &group.value)?;
                change.expect_cluster(&cluster);
                next.status = NodeGroupStatus::ToResize;
                let started = DeploymentEvent::new(
                    now,
                    OperationKind::NodeGroupScale,
                    None,
                    EventStatus::Started,
                );
                events.push(started.of_node_group(id).because(format!(
                    "from {} to {} nodes",
                    group.value.target_node_count, next.target_node_count
                )));
                if next.target_node_count > group.value.target_node_count {
                    let mut account = self.store().account(owner, &[id.as_str()]).await?;
                    let holding = creation::node_group_holding(&next, next.target_node_count);
                    account.value.reserve([holding])?;
                    change.account(&account)?;
                }
            }
            change.node_group(Some(&group), &mut next, &events)?;
            if self.store().commit(change).await? {
                return Ok(next);
            }
        }
        Err(contention(id))
    }

    /// Asks for the removal; a group on its way out is returned as it is.
    pub async fn delete_node_group(
        &self,
        owner: &OwnerId,
        cluster: &ClusterId,
        id: &NodeGroupId,
    ) -> Result<NodeGroup> {
        self.store().cluster(owner, cluster).await?;
        for _ in 0..ATTEMPTS {
            let group = self.store().node_group(cluster, id).await?;
            if group.value.is_going() {
                return Ok(group.value);
            }
            let mut next = group.value.clone();
            next.status = NodeGroupStatus::ToTerminate;
            next.due = None;
            if self.replace(&group, &mut next, &[]).await? {
                return Ok(next);
            }
        }
        Err(contention(id))
    }

    /// Has another look taken at a group that is being deployed.
    pub async fn resume_node_group(
        &self,
        owner: &OwnerId,
        cluster: &ClusterId,
        id: &NodeGroupId,
    ) -> Result<NodeGroup> {
        for _ in 0..ATTEMPTS {
            let cluster = self.store().cluster(owner, cluster).await?.value;
            let group = self.store().node_group(&cluster.id, id).await?;
            if cluster.status != ClusterStatus::Active {
                return Err(PlatformError::conflict(format!(
                    "Cannot resume node group {id}: cluster status is {}, expected ACTIVE",
                    cluster.status
                )));
            }
            if group.value.status != NodeGroupStatus::Deploying {
                return Err(PlatformError::wrong_state(format!(
                    "Cannot resume node group {id}: status is {}, expected DEPLOYING",
                    group.value.status
                )));
            }
            let mut next = group.value.clone();
            let resumed = DeploymentEvent::new(
                self.now(),
                OperationKind::NodeGroupResume,
                None,
                EventStatus::Started,
            );
            // The change of the record is what brings the controller back to it.
            let events = [resumed.of_node_group(id)];
            if self.replace(&group, &mut next, &events).await? {
                return Ok(next);
            }
        }
        Err(contention(id))
    }

    async fn replace(
        &self,
        before: &Versioned<NodeGroup>,
        next: &mut NodeGroup,
        events: &[DeploymentEvent],
    ) -> Result<bool> {
        let mut change = Change::new();
        change.node_group(Some(before), next, events)?;
        self.store().commit(change).await
    }
}

fn must_take_groups(cluster: &Cluster) -> Result<()> {
    if !cluster.is_going() {
        return Ok(());
    }
    Err(PlatformError::wrong_state(format!(
        "Cannot create a node group in cluster {}: status is {}",
        cluster.id, cluster.status
    )))
}

fn must_resize(cluster: &Cluster, group: &NodeGroup) -> Result<()> {
    if cluster.status != ClusterStatus::Active {
        return Err(PlatformError::wrong_state(format!(
            "Cannot resize node group {}: cluster status is {}, expected ACTIVE",
            group.id, cluster.status
        )));
    }
    if group.status != NodeGroupStatus::Ready {
        return Err(PlatformError::wrong_state(format!(
            "Cannot resize node group {}: status is {}, expected READY",
            group.id, group.status
        )));
    }
    Ok(())
}

/// The group as the patch would have it; whether its state allows that is another matter.
fn patched(group: &NodeGroup, patch: &NodeGroupPatch) -> Result<NodeGroup> {
    if patch.name != group.name {
        let reason = format!("the name of node group {} cannot be changed", group.name);
        return Err(PlatformError::invalid("name", &patch.name, reason));
    }
    let resizes = patch.target_node_count != group.target_node_count;
    if group.standalone && (resizes || patch.autoscaling_enabled == Some(true)) {
        let reason = format!(
            "Cannot resize node group {}: it is a standalone node",
            group.id
        );
        return Err(PlatformError::wrong_state(reason));
    }
    let mut next = group.clone();
    next.target_node_count = patch.target_node_count;
    if let Some(description) = &patch.description {
        next.description.clone_from(description);
    }
    if let Some(tag) = &patch.tag {
        next.tag.clone_from(tag);
    }
    if let Some(min) = patch.min_node_count {
        next.min_node_count = min;
    }
    if let Some(max) = patch.max_node_count {
        next.max_node_count = max;
    }
    if let Some(autoscaling) = patch.autoscaling_enabled {
        next.autoscaling_enabled = autoscaling;
    }
    validation::node_counts(
        "",
        next.target_node_count,
        next.min_node_count,
        next.max_node_count,
    )?;
    Ok(next)
}
