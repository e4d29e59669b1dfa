//! What can be asked of standalone nodes (`contracts/cke-models.md` 6.8): each is kept as a node group of one node that
//! cannot be resized, and shown apart from the groups.

use super::model::{
    ClusterId, CreateNodeGroup, Flavor, NodeGroup, NodeGroupId, NodeGroupStatus, NodeStatus,
    OwnerId, Taint,
};
use super::replacement::Replica as _;
use super::{Platform, PlatformError, Result};

use std::collections::BTreeMap;

/// A request for a standalone node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateStandaloneNode {
    pub name: String,
    pub description: Option<String>,
    pub tag: Option<String>,
    pub flavor: Flavor,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
}

impl Platform {
    /// In the order of creation.
    pub async fn list_standalone_nodes(
        &self,
        owner: &OwnerId,
        cluster: &ClusterId,
    ) -> Result<Vec<NodeGroup>> {
        self.store().cluster(owner, cluster).await?;
        let mut groups = self.store().node_groups(cluster).await?;
        groups.retain(|group| group.standalone);
        Ok(groups)
    }

    /// Takes of the quota what a group of one takes.
    pub async fn create_standalone_node(
        &self,
        owner: &OwnerId,
        cluster: &ClusterId,
        request: CreateStandaloneNode,
    ) -> Result<NodeGroup> {
        let group = CreateNodeGroup {
            description: request.description,
            tag: request.tag,
            min_node_count: Some(1),
            max_node_count: Some(1),
            autoscaling_enabled: Some(false),
            labels: request.labels,
            taints: request.taints,
            ..CreateNodeGroup::new(&request.name, request.flavor, 1)
        };
        self.add_node_group(owner, cluster, group, true).await
    }

    pub async fn get_standalone_node(
        &self,
        owner: &OwnerId,
        cluster: &ClusterId,
        id: &NodeGroupId,
    ) -> Result<NodeGroup> {
        let group = self.get_node_group(owner, cluster, id).await;
        let group = group.map_err(|error| not_a_group(error, id))?;
        match group.standalone {
            true => Ok(group),
            false => Err(PlatformError::NodeNotFound(id.clone())),
        }
    }

    /// It is drained, and then goes. One on its way out is returned as it is.
    pub async fn delete_standalone_node(
        &self,
        owner: &OwnerId,
        cluster: &ClusterId,
        id: &NodeGroupId,
    ) -> Result<NodeGroup> {
        self.get_standalone_node(owner, cluster, id).await?;
        let deleted = self.delete_node_group(owner, cluster, id).await;
        deleted.map_err(|error| not_a_group(error, id))
    }
}

/// Who asks for a node is told of a node.
fn not_a_group(error: PlatformError, id: &NodeGroupId) -> PlatformError {
    match error {
        PlatformError::NodeGroupNotFound(_) => PlatformError::NodeNotFound(id.clone()),
        other => other,
    }
}

/// Of the group's one node; what is wrong with a node that is not there yet is known of the group.
pub fn status(group: &NodeGroup) -> NodeStatus {
    if group.status == NodeGroupStatus::Deleted {
        return NodeStatus::Deleted;
    }
    if group.is_going() {
        return NodeStatus::Draining;
    }
    let node = group.nodes.iter().find(|node| node.counts());
    match node {
        Some(node) => node.status,
        None if group.status == NodeGroupStatus::Failed => NodeStatus::Failed,
        None => NodeStatus::Deploying,
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::Cluster;
    use super::super::testing::{SMALL, World, owner};
    use super::*;

    fn order(name: &str) -> CreateStandaloneNode {
        CreateStandaloneNode {
            name: name.to_owned(),
            description: None,
            tag: None,
            flavor: Flavor::Xs,
            labels: BTreeMap::new(),
            taints: Vec::new(),
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_node_comes_is_healed_and_goes() {
        let (world, us) = (World::new().await, owner());
        let id = world.active_cluster(SMALL).await;
        let platform = &world.platform;
        let made = platform
            .create_standalone_node(&us, &id, order("lone"))
            .await;
        let made = made.unwrap();
        assert_eq!(status(&made), NodeStatus::Deploying);
        world.advance(300).await;
        let ready = platform
            .get_standalone_node(&us, &id, &made.id)
            .await
            .unwrap();
        assert_eq!(status(&ready), NodeStatus::Ready);
        assert_eq!(ready.nodes[0].name, "lone-node0");
        let listed = platform.list_node_groups(&us, &id, &[]).await.unwrap();
        assert!(listed.is_empty(), "it is no group");

        let vm = crate::infra::VmId(ready.nodes[0].id.to_string());
        world.cloud.kill_vm(&vm).await.unwrap();
        world.advance(40).await;
        let sick = platform
            .get_standalone_node(&us, &id, &made.id)
            .await
            .unwrap();
        assert_eq!(status(&sick), NodeStatus::Failed);
        world.advance(600).await;
        let healed = platform
            .get_standalone_node(&us, &id, &made.id)
            .await
            .unwrap();
        assert_eq!(status(&healed), NodeStatus::Ready);
        assert_eq!(healed.nodes.len(), 1);
        assert_ne!(healed.nodes[0].id, ready.nodes[0].id);

        let going = platform
            .delete_standalone_node(&us, &id, &made.id)
            .await
            .unwrap();
        assert_eq!(status(&going), NodeStatus::Draining);
        world.advance(120).await;
        let gone = platform.get_standalone_node(&us, &id, &made.id).await;
        assert_eq!(gone.unwrap_err(), PlatformError::NodeNotFound(made.id));
        assert_eq!(
            platform.usage(&us).await.unwrap().len(),
            1,
            "the control plane's"
        );
        world.check_invariants().await;
        world.shutdown().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn it_is_neither_resized_nor_a_group_that_can_be_asked_for_as_a_node() {
        let (world, us) = (World::new().await, owner());
        let id = world.active_cluster(SMALL).await;
        let platform = &world.platform;
        let lone = platform
            .create_standalone_node(&us, &id, order("lone"))
            .await;
        let lone = lone.unwrap();
        let group = CreateNodeGroup::new("w", Flavor::Xxs, 1);
        let group = platform.create_node_group(&us, &id, group).await.unwrap();
        world.advance(300).await;
        let patch = |target, autoscaling_enabled| super::super::model::NodeGroupPatch {
            name: String::from("lone"),
            target_node_count: target,
            description: Some(Some(String::from("alone"))),
            tag: None,
            min_node_count: None,
            max_node_count: Some(target),
            autoscaling_enabled,
        };
        for patch in [patch(2, None), patch(1, Some(true))] {
            let refused = platform.update_node_group(&us, &id, &lone.id, patch).await;
            let refused = refused.unwrap_err();
            assert!(
                matches!(refused, PlatformError::WrongState { .. }),
                "{refused}"
            );
        }
        let described = platform.update_node_group(&us, &id, &lone.id, patch(1, None));
        assert_eq!(
            described.await.unwrap().description.as_deref(),
            Some("alone")
        );
        for asked in [
            platform.get_standalone_node(&us, &id, &group.id).await,
            platform.delete_standalone_node(&us, &id, &group.id).await,
        ] {
            assert_eq!(
                asked.unwrap_err(),
                PlatformError::NodeNotFound(group.id.clone())
            );
        }
        // An update renews it as any other.
        let cluster: Cluster = platform.get_cluster(&us, &id).await.unwrap().cluster;
        assert_eq!(cluster.running_version, "1.36");
        world.shutdown().await;
    }
}
