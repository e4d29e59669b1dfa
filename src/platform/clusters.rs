//! What can be asked of clusters.

use super::catalog::minor;
use super::cluster::Operation;
use super::cluster_event::ClusterEvent;
use super::creation;
use super::deployment_event::{DeploymentEvent, EventStatus, OperationKind, Step};
use super::error::PlatformError;
use super::model::{
    Cluster, ClusterId, ClusterPatch, ClusterStatus, ClusterView, CreateCluster, Features,
    FeaturesPatch, KubeconfigType, OwnerId, VersionCheck,
};
use super::redeployment::Hooks;
use super::store::{Change, is_listed};
use super::{ATTEMPTS, Platform, Result, contention, validation};
use crate::clock::Timestamp;

/// How long a cluster that is being deployed keeps its kubeconfig to itself, in milliseconds of the
/// clock (contract cke-models 5).
const KUBECONFIG_PATIENCE_MS: i64 = 2 * 60 * 1000;

impl Platform {
    /// Records the cluster, its node groups, and what they reserve, or none of it.
    pub async fn create_cluster(
        &self,
        owner: &OwnerId,
        request: CreateCluster,
    ) -> Result<ClusterView> {
        let order = validation::cluster_order(request, &self.catalog())?;
        if let Some(network) = &order.request.network_group_id
            && self.inner.context.cloud.network(network).is_none()
        {
            let reason = "there is no such network group";
            return Err(PlatformError::invalid("networkGroupId", network, reason));
        }
        let _serial = self.ledger_lock(owner).await;
        for _ in 0..ATTEMPTS {
            // What is new holds nothing yet.
            let mut account = self.store().account(owner, &[]).await?;
            let (now, seed) = (self.now(), self.inner.context.seed);
            let mut cluster = creation::cluster(&order, &mut account.value.ledger, seed, now);
            let autoscaling = cluster.requested_features.autoscaling_enabled;
            let mut node_groups = Vec::new();
            for group in &order.node_groups {
                let ledger = &mut account.value.ledger;
                node_groups.push(creation::node_group(
                    group,
                    &cluster.id,
                    autoscaling,
                    ledger,
                    seed,
                    now,
                ));
            }
            let holdings = node_groups
                .iter()
                .map(|group| creation::node_group_holding(group, group.target_node_count));
            let holdings: Vec<_> = holdings
                .chain([creation::cluster_holding(&cluster)])
                .collect();
            account.value.reserve(holdings)?;

            let mut change = Change::new();
            change.account(&account)?;
            let event =
                DeploymentEvent::new(now, OperationKind::Create, None, EventStatus::Started);
            change.cluster(None, &mut cluster, &[event])?;
            for vm in &cluster.control_plane {
                if let Some(name) = &vm.node_name {
                    change.take_name(&cluster.id, name, &vm.id)?;
                }
            }
            for group in &mut node_groups {
                let event = node_group_started(now, group);
                change.node_group(None, group, &[event])?;
            }
            if self.store().commit(change).await? {
                return Ok(ClusterView {
                    cluster,
                    node_groups,
                });
            }
        }
        Err(contention(owner))
    }

    /// In the order of creation. Without a filter: all but the deleted ones.
    pub async fn list_clusters(
        &self,
        owner: &OwnerId,
        statuses: &[ClusterStatus],
    ) -> Result<Vec<ClusterView>> {
        let mut views = Vec::new();
        for cluster in self.store().clusters(owner).await? {
            if is_listed(cluster.status, statuses) {
                views.push(self.view(cluster).await?);
            }
        }
        Ok(views)
    }

    /// A deleted cluster is still found, as DELETED.
    pub async fn get_cluster(&self, owner: &OwnerId, id: &ClusterId) -> Result<ClusterView> {
        let cluster = self.store().cluster(owner, id).await?;
        self.view(cluster.value).await
    }

    /// Name, description and tags change at once. A change of features is carried out by the
    /// controller, and needs an ACTIVE cluster; meanwhile `features` says what is installed.
    pub async fn update_cluster(
        &self,
        owner: &OwnerId,
        id: &ClusterId,
        patch: ClusterPatch,
    ) -> Result<ClusterView> {
        if let Some(name) = &patch.name {
            validation::cluster_name("name", name)?;
        }
        if let Some(Some(text)) = &patch.description {
            validation::description("description", Some(text))?;
        }
        if let Some(tags) = &patch.tags {
            validation::tags("tags", tags)?;
        }
        self.change_cluster(owner, id, |cluster, now| {
            if cluster.status == ClusterStatus::Deleted {
                return Err(deleted(cluster));
            }
            let mut next = cluster.clone();
            if let Some(name) = &patch.name {
                next.name.clone_from(name);
            }
            if let Some(description) = &patch.description {
                next.description.clone_from(description);
            }
            if let Some(tags) = &patch.tags {
                next.tags.clone_from(tags);
            }
            let requested = merge(&cluster.requested_features, &patch.features)?;
            if requested == cluster.requested_features {
                return Ok(Some((next, Vec::new())));
            }
            must_be_active(cluster, "change features")?;
            next.requested_features = requested;
            Ok(Some(ask(
                next,
                ClusterStatus::ToReconcile,
                OperationKind::Reconcile,
                now,
            )))
        })
        .await
    }

    /// Persistent storage, which never goes away again.
    pub async fn add_persistent_storage(
        &self,
        owner: &OwnerId,
        id: &ClusterId,
    ) -> Result<ClusterView> {
        self.change_cluster(owner, id, |cluster, now| {
            if cluster.requested_features.csi {
                return Err(PlatformError::conflict(
                    "Persistent storage is already activated",
                ));
            }
            must_be_active(cluster, "add persistent storage")?;
            let mut next = cluster.clone();
            next.requested_features.csi = true;
            Ok(Some(ask(
                next,
                ClusterStatus::ToReconcile,
                OperationKind::Reconcile,
                now,
            )))
        })
        .await
    }

    /// Asks for the deletion; a cluster on its way out is returned as it is.
    pub async fn delete_cluster(&self, owner: &OwnerId, id: &ClusterId) -> Result<ClusterView> {
        self.change_cluster(owner, id, |cluster, now| {
            if cluster.is_going() {
                return Ok(None);
            }
            let next = cluster.clone();
            Ok(Some(ask(
                next,
                ClusterStatus::ToDelete,
                OperationKind::Delete,
                now,
            )))
        })
        .await
    }

    /// Goes on with the operation that failed.
    pub async fn resume_cluster(&self, owner: &OwnerId, id: &ClusterId) -> Result<ClusterView> {
        self.change_cluster(owner, id, |cluster, now| {
            let Some(operation) = cluster
                .operation
                .as_ref()
                .filter(|_| cluster.status == ClusterStatus::Failed)
            else {
                let reason = format!(
                    "Cannot resume cluster {}: status is {}, expected FAILED",
                    cluster.id, cluster.status
                );
                return Err(PlatformError::wrong_state(reason));
            };
            let mut next = cluster.clone();
            next.status = ClusterStatus::Deploying;
            next.operation = Some(Operation {
                started_at: now,
                due: now,
                ..operation.clone()
            });
            let started =
                DeploymentEvent::new(now, operation.kind, operation.step, EventStatus::Started);
            Ok(Some((next, vec![started])))
        })
        .await
    }

    /// Rolls the control plane, and applies manifests before and after.
    pub async fn redeploy_cluster(
        &self,
        owner: &OwnerId,
        id: &ClusterId,
        hooks: Hooks,
    ) -> Result<ClusterView> {
        self.change_cluster(owner, id, |cluster, now| {
            must_be_active(cluster, "redeploy")?;
            let (status, kind) = (ClusterStatus::ToRedeploy, OperationKind::Redeploy);
            let (mut next, events) = ask(cluster.clone(), status, kind, now);
            if let Some(operation) = next.operation.as_mut() {
                operation.hooks = (!hooks.is_empty()).then(|| Box::new(hooks.clone()));
            }
            Ok(Some((next, events)))
        })
        .await
    }

    /// YAML. All kinds name the same server: there is one way into a simulated cluster.
    pub async fn kubeconfig(
        &self,
        owner: &OwnerId,
        id: &ClusterId,
        _kind: KubeconfigType,
    ) -> Result<String> {
        let cluster = self.store().cluster(owner, id).await?.value;
        let age = self.now().0.saturating_sub(cluster.created_at.0);
        let given = match cluster.status {
            ClusterStatus::Active
            | ClusterStatus::Failed
            | ClusterStatus::ToRedeploy
            | ClusterStatus::Redeploying
            | ClusterStatus::ToUpgrade
            | ClusterStatus::Updating
            | ClusterStatus::ToReconcile
            | ClusterStatus::Reconciling => true,
            ClusterStatus::ToDeploy | ClusterStatus::Deploying => age > KUBECONFIG_PATIENCE_MS,
            ClusterStatus::ToDelete | ClusterStatus::Deleting | ClusterStatus::Deleted => false,
        };
        if !given || cluster.deployed_step < Some(Step::MateriaLogicalDb) {
            let reason = format!(
                "The kubeconfig of {id} is not available: status is {}",
                cluster.status
            );
            return Err(PlatformError::wrong_state(reason));
        }
        let kubernetes = &self.inner.context.kubernetes;
        Ok(kubernetes.kubeconfig(id.as_str(), &cluster.name).await?)
    }

    /// Newest first.
    pub async fn deployment_events(
        &self,
        owner: &OwnerId,
        id: &ClusterId,
        limit: usize,
    ) -> Result<Vec<DeploymentEvent>> {
        self.store().cluster(owner, id).await?;
        self.store().events(id, limit).await
    }

    /// What the cluster is made of and what became of it, newest first.
    pub async fn cluster_events(
        &self,
        owner: &OwnerId,
        id: &ClusterId,
        limit: usize,
    ) -> Result<Vec<(Timestamp, ClusterEvent)>> {
        self.store().cluster(owner, id).await?;
        self.store().cluster_events(id, limit).await
    }

    pub async fn version_check(&self, owner: &OwnerId, id: &ClusterId) -> Result<VersionCheck> {
        let cluster = self.store().cluster(owner, id).await?.value;
        let catalog = self.catalog();
        let installed = minor(&cluster.version);
        let mut available = catalog.versions();
        available.retain(|version| minor(version) >= installed);
        if !available.contains(&cluster.version) {
            // It can no longer be ordered, and is what is installed all the same.
            available.insert(0, cluster.version.clone());
        }
        let latest = catalog.latest_version();
        Ok(VersionCheck {
            available,
            need_update: installed < minor(&latest),
            latest,
            installed: cluster.version,
        })
    }

    /// Asks for an update; to the installed version too, which ends ACTIVE as it was.
    pub async fn update_version(
        &self,
        owner: &OwnerId,
        id: &ClusterId,
        target: &str,
    ) -> Result<ClusterView> {
        let catalog = self.catalog();
        self.change_cluster(owner, id, |cluster, now| {
            // The installed version, and the one after it, even if they can no longer be ordered.
            let next = catalog.next_version(&cluster.version);
            if target != cluster.version && next.as_deref() != Some(target) {
                validation::available_version("targetVersion", target, &catalog)?;
                let reason = match minor(target) < minor(&cluster.version) {
                    true => format!("the cluster is at {}: it cannot go back", cluster.version),
                    // Kubernetes' components may be one minor version apart, not two.
                    false => format!(
                        "the cluster is at {}: no version can be skipped, update to {} first",
                        cluster.version,
                        next.unwrap_or_default()
                    ),
                };
                return Err(PlatformError::invalid("targetVersion", target, reason));
            }
            must_be_active(cluster, "update")?;
            let mut next = cluster.clone();
            target.clone_into(&mut next.version);
            Ok(Some(ask(
                next,
                ClusterStatus::ToUpgrade,
                OperationKind::Upgrade,
                now,
            )))
        })
        .await
    }

    async fn view(&self, mut cluster: Cluster) -> Result<ClusterView> {
        cluster.storage_usage_bytes = self.storage_usage(&cluster).await?;
        let node_groups = self.store().node_groups(&cluster.id).await?;
        Ok(ClusterView {
            cluster,
            node_groups,
        })
    }

    /// Applies `change` until nobody comes in between. `None` leaves the cluster as it is.
    async fn change_cluster(
        &self,
        owner: &OwnerId,
        id: &ClusterId,
        change: impl Fn(&Cluster, Timestamp) -> Result<Option<(Cluster, Vec<DeploymentEvent>)>>,
    ) -> Result<ClusterView> {
        for _ in 0..ATTEMPTS {
            let before = self.store().cluster(owner, id).await?;
            let Some((mut next, events)) = change(&before.value, self.now())? else {
                return self.view(before.value).await;
            };
            if next == before.value && events.is_empty() {
                return self.view(before.value).await;
            }
            let mut record = Change::new();
            record.cluster(Some(&before), &mut next, &events)?;
            if self.store().commit(record).await? {
                return self.view(next).await;
            }
        }
        Err(contention(id))
    }
}

pub(super) fn node_group_started(
    now: Timestamp,
    group: &super::model::NodeGroup,
) -> DeploymentEvent {
    DeploymentEvent::new(
        now,
        OperationKind::NodeGroupCreate,
        None,
        EventStatus::Started,
    )
    .of_node_group(&group.id)
}

/// Has the controller carry out an operation.
fn ask(
    mut next: Cluster,
    status: ClusterStatus,
    kind: OperationKind,
    now: Timestamp,
) -> (Cluster, Vec<DeploymentEvent>) {
    next.status = status;
    next.operation = Some(Operation::asked(kind, now));
    let started = DeploymentEvent::new(now, kind, None, EventStatus::Started);
    (next, vec![started])
}

fn must_be_active(cluster: &Cluster, what: &str) -> Result<()> {
    if cluster.status == ClusterStatus::Active {
        return Ok(());
    }
    Err(PlatformError::wrong_state(format!(
        "Cannot {what} cluster {}: status is {}, expected ACTIVE",
        cluster.id, cluster.status
    )))
}

fn deleted(cluster: &Cluster) -> PlatformError {
    PlatformError::wrong_state(format!("Cluster {} is deleted", cluster.id))
}

/// A merge patch (RFC 7386): what is absent stays, null unsets.
fn merge(features: &Features, patch: &FeaturesPatch) -> Result<Features> {
    let mut merged = features.clone();
    if let Some(autoscaling) = patch.autoscaling_enabled {
        merged.autoscaling_enabled = autoscaling.unwrap_or(false);
    }
    if let Some(csi) = patch.csi {
        merged.csi = csi.unwrap_or(false);
        if features.csi && !merged.csi {
            let reason = "persistent storage cannot be removed from a cluster";
            return Err(PlatformError::invalid("features.csi", false, reason));
        }
    }
    if let Some(registries) = &patch.registries {
        merged.registries.clone_from(registries);
    }
    Ok(merged)
}
