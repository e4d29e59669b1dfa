//! What the tests of this layer stand on: a platform with a manual clock, in-process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;

use crate::clock::{Clock, TimeScale, Timestamp};
use crate::etcd::client::SharedKeyspaces;
use crate::infra::testing::MemoryKeyspaces;
use crate::infra::work_queue::Workers;
use crate::infra::{Cloud, CloudConfig};
use crate::kubernetes::{ControlPlane, Drain, EventSubject, EventType};
use crate::leader::Term;

use super::cluster::Applied;
use super::cluster_api::{ClusterApi, ClusterApiError};
use super::{
    ClusterId, ClusterStatus, CreateCluster, Flavor, NodeGroup, NodeGroupId, NodeGroupStatus,
    OwnerId, Platform, PlatformConfig, Topology,
};

/// 2026-01-01T00:00:00Z.
pub(super) const ORIGIN: Timestamp = Timestamp(1_767_225_600_000);

pub(super) fn owner() -> OwnerId {
    "orga_3547a882-e464-4c34-8168-add4b3e0c135"
        .parse()
        .expect("an owner")
}

/// What a recorded cluster's API is like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct KnownCluster {
    pub version: String,
    pub control_plane: ControlPlane,
    pub storage: bool,
    /// (node, cordoned) in the order of the calls.
    pub cordons: Vec<(String, bool)>,
    /// (node, force) in the order of the calls.
    pub drains: Vec<(String, bool)>,
    /// (reason, message) in the order of the calls.
    pub events: Vec<(String, String)>,
    pub rotations: u32,
    /// Manifests in the order of the calls.
    pub applied: Vec<String>,
}

/// Stands in for the Kubernetes layer: it outlives a kill, as that layer's records do.
#[derive(Default)]
pub(super) struct FakeKubernetes {
    pub clusters: Mutex<BTreeMap<String, KnownCluster>>,
    /// Disruption budgets let no pod go: a drain ends when it is forced.
    pub budgets: AtomicBool,
}

impl FakeKubernetes {
    fn change(
        &self,
        id: &str,
        change: impl FnOnce(&mut KnownCluster),
    ) -> Result<(), ClusterApiError> {
        match self.clusters.lock().get_mut(id) {
            Some(cluster) => {
                change(cluster);
                Ok(())
            }
            None => Err(ClusterApiError(format!("no cluster {id}"))),
        }
    }
}

impl ClusterApi for FakeKubernetes {
    fn provision_cluster<'a>(
        &'a self,
        id: &'a str,
        version: &'a str,
    ) -> BoxFuture<'a, Result<(), ClusterApiError>> {
        Box::pin(async move {
            let known = KnownCluster {
                version: version.to_owned(),
                ..KnownCluster::default()
            };
            self.clusters.lock().entry(id.to_owned()).or_insert(known);
            Ok(())
        })
    }

    fn set_control_plane<'a>(
        &'a self,
        id: &'a str,
        control_plane: ControlPlane,
    ) -> BoxFuture<'a, Result<(), ClusterApiError>> {
        Box::pin(async move { self.change(id, |cluster| cluster.control_plane = control_plane) })
    }

    fn drain_node<'a>(
        &'a self,
        id: &'a str,
        node: &'a str,
        force: bool,
    ) -> BoxFuture<'a, Result<Drain, ClusterApiError>> {
        Box::pin(async move {
            let serves = |cluster: &KnownCluster| cluster.control_plane.serves();
            if !force && !self.clusters.lock().get(id).is_some_and(serves) {
                return Err(ClusterApiError(format!("nobody answers for {id}")));
            }
            self.change(id, |cluster| cluster.drains.push((node.to_owned(), force)))?;
            Ok(match self.budgets.load(Ordering::Relaxed) && !force {
                true => Drain::Remaining {
                    pods: 1,
                    blocked_by_budget: 1,
                },
                false => Drain::Drained,
            })
        })
    }

    /// Refuses those that say `forbidden`.
    fn apply_manifests<'a>(
        &'a self,
        id: &'a str,
        manifests: &'a [String],
    ) -> BoxFuture<'a, Result<Applied, ClusterApiError>> {
        Box::pin(async move {
            let serves = |cluster: &KnownCluster| cluster.control_plane.serves();
            if !self.clusters.lock().get(id).is_some_and(serves) {
                return Err(ClusterApiError(format!("nobody answers for {id}")));
            }
            if manifests.iter().any(|text| text.contains("forbidden")) {
                return Ok(Applied::Refused(String::from("it is forbidden")));
            }
            self.change(id, |cluster| cluster.applied.extend_from_slice(manifests))?;
            Ok(Applied::All)
        })
    }

    fn cordon_node<'a>(
        &'a self,
        id: &'a str,
        node: &'a str,
        cordoned: bool,
    ) -> BoxFuture<'a, Result<(), ClusterApiError>> {
        let call = (node.to_owned(), cordoned);
        Box::pin(async move { self.change(id, |cluster| cluster.cordons.push(call)) })
    }

    fn record_event<'a>(
        &'a self,
        id: &'a str,
        _about: EventSubject,
        _kind: EventType,
        reason: &'a str,
        message: &'a str,
    ) -> BoxFuture<'a, Result<(), ClusterApiError>> {
        let event = (reason.to_owned(), message.to_owned());
        Box::pin(async move { self.change(id, |cluster| cluster.events.push(event)) })
    }

    fn expire_certificates(&self, _expired: bool) -> Result<(), ClusterApiError> {
        Ok(())
    }

    fn certificates_are_expired(&self) -> bool {
        false
    }

    fn rotate_certificates<'a>(
        &'a self,
        id: &'a str,
    ) -> BoxFuture<'a, Result<(), ClusterApiError>> {
        Box::pin(async move { self.change(id, |cluster| cluster.rotations += 1) })
    }

    fn set_storage<'a>(
        &'a self,
        id: &'a str,
        enabled: bool,
    ) -> BoxFuture<'a, Result<(), ClusterApiError>> {
        Box::pin(async move { self.change(id, |cluster| cluster.storage = enabled) })
    }

    fn set_version<'a>(
        &'a self,
        id: &'a str,
        version: &'a str,
    ) -> BoxFuture<'a, Result<(), ClusterApiError>> {
        Box::pin(async move { self.change(id, |cluster| cluster.version = version.to_owned()) })
    }

    fn delete_cluster<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), ClusterApiError>> {
        Box::pin(async move {
            self.clusters.lock().remove(id);
            Ok(())
        })
    }

    fn kubeconfig<'a>(
        &'a self,
        id: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<String, ClusterApiError>> {
        Box::pin(async move { Ok(format!("# {id} {name}")) })
    }

    fn server_url(&self, id: &str) -> String {
        format!("https://127.0.0.1:6443/clusters/{id}")
    }
}

/// What a world is made of.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub scale: TimeScale,
    pub origin: Timestamp,
    pub seed: u64,
    /// Hypervisors in each site, and vCPU and GB of each; `None`: as many as the product has.
    pub fleet: Option<(u32, u32, u32)>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            scale: TimeScale::Manual,
            origin: ORIGIN,
            seed: 0,
            fleet: None,
        }
    }
}

/// A platform, its cloud and its clock; the store and the Kubernetes layer outlive it.
pub(super) struct World {
    pub keyspaces: SharedKeyspaces,
    pub kubernetes: Arc<FakeKubernetes>,
    pub clock: Clock,
    pub cloud: Cloud,
    pub platform: Platform,
    controllers: Workers,
    machinery: Workers,
    settings: Settings,
}

impl World {
    pub async fn new() -> World {
        World::at(TimeScale::Manual).await
    }

    pub async fn at(scale: TimeScale) -> World {
        World::on(Arc::new(MemoryKeyspaces::default()), scale).await
    }

    /// On a manual clock that reads `origin`.
    pub async fn from(origin: Timestamp) -> World {
        let keyspaces: SharedKeyspaces = Arc::new(MemoryKeyspaces::default());
        let settings = Settings {
            origin,
            ..Settings::default()
        };
        World::start(keyspaces, Arc::default(), settings).await
    }

    pub async fn on(keyspaces: SharedKeyspaces, scale: TimeScale) -> World {
        let settings = Settings {
            scale,
            ..Settings::default()
        };
        World::start(keyspaces, Arc::default(), settings).await
    }

    pub async fn start(
        keyspaces: SharedKeyspaces,
        kubernetes: Arc<FakeKubernetes>,
        settings: Settings,
    ) -> World {
        let clock = Clock::new(settings.scale, settings.origin);
        let seed = settings.seed;
        let mut config = CloudConfig::new(keyspaces.clone(), clock.clone(), seed);
        if let Some((hypervisors, vcpus, ram_gb)) = settings.fleet {
            config.hypervisors_per_datacenter = hypervisors;
            config.hypervisor_vcpus = vcpus;
            config.hypervisor_ram_gb = ram_gb;
        }
        let cloud = Cloud::start(config).await.expect("the cloud starts");
        let platform = Platform::start(PlatformConfig {
            keyspaces: keyspaces.clone(),
            clock: clock.clone(),
            cloud: cloud.clone(),
            kubernetes: kubernetes.clone(),
            seed,
            auto_upgrade: false,
        })
        .await
        .expect("the platform starts");
        let term = Term::for_ever();
        World {
            machinery: cloud.act(&term),
            controllers: platform.act(&term),
            keyspaces,
            kubernetes,
            clock,
            cloud,
            platform,
            settings,
        }
    }

    /// Ends the platform and the cloud wherever they are.
    pub async fn kill(self) -> Dead {
        self.controllers.abort().await;
        self.machinery.abort().await;
        self.platform.close();
        self.cloud.close();
        Dead {
            keyspaces: self.keyspaces,
            kubernetes: self.kubernetes,
            clock: self.clock,
            settings: self.settings,
        }
    }

    /// Ends the platform and the cloud after what is under way.
    pub async fn shutdown(self) {
        self.controllers.finish().await;
        self.machinery.finish().await;
        self.platform.close();
        self.cloud.close();
    }

    pub async fn advance(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds)).await;
    }

    pub async fn status(&self, id: &ClusterId) -> ClusterStatus {
        let view = self.platform.get_cluster(&owner(), id).await;
        view.expect("the cluster is there").cluster.status
    }

    pub async fn group(&self, cluster: &ClusterId, id: &NodeGroupId) -> NodeGroup {
        let group = self.platform.get_node_group(&owner(), cluster, id).await;
        group.expect("the group is there")
    }

    /// Creates a cluster and lets it become ACTIVE.
    pub async fn active_cluster(&self, topology: Topology) -> ClusterId {
        let view = self
            .platform
            .create_cluster(&owner(), request("demo", topology))
            .await
            .expect("the cluster is accepted");
        self.advance(120).await;
        assert_eq!(self.status(&view.cluster.id).await, ClusterStatus::Active);
        view.cluster.id
    }

    pub async fn check_invariants(&self) {
        let violations = self.platform.check_invariants().await;
        assert_eq!(violations.expect("the records can be read"), []);
    }

    pub async fn wait_for_group(
        &self,
        cluster: &ClusterId,
        id: &NodeGroupId,
        status: NodeGroupStatus,
    ) {
        for _ in 0..400 {
            if self.group(cluster, id).await.status == status {
                return;
            }
            self.advance(1).await;
        }
        panic!("{:?}", self.group(cluster, id).await);
    }
}

/// A world that was killed; its store was not.
pub(super) struct Dead {
    keyspaces: SharedKeyspaces,
    kubernetes: Arc<FakeKubernetes>,
    clock: Clock,
    settings: Settings,
}

impl Dead {
    /// Starts a new one on the same store, with a clock that reads what the store knows.
    pub async fn restart(self) -> World {
        let Dead {
            keyspaces,
            kubernetes,
            clock,
            settings,
        } = self;
        let origin = super::last_instant(&keyspaces)
            .await
            .expect("the store can be read")
            .expect("the clock was kept");
        assert!(origin <= clock.now(), "the clock was never there");
        let settings = Settings {
            scale: clock.scale(),
            origin,
            ..settings
        };
        World::start(keyspaces, kubernetes, settings).await
    }
}

pub(super) fn request(name: &str, topology: Topology) -> CreateCluster {
    CreateCluster {
        name: name.to_owned(),
        topology: Some(topology),
        ..CreateCluster::default()
    }
}

pub(super) const SMALL: Topology = Topology::DedicatedCompute {
    flavor: Flavor::Xs,
    replication_factor: 1,
};

pub(super) const BUNDLE: Topology = Topology::AllInOne {
    flavor: Flavor::S,
    replication_factor: 1,
};
