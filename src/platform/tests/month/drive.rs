//! Does what the steps say, and looks at the world while time passes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use sha2::Digest as _;

use crate::clock::Timestamp;
use crate::infra::metering::Run;
use crate::infra::testing::MemoryKeyspaces;
use crate::infra::{
    BootFault, BootScope, CapacityFault, CloudError, Datacenter, DatacenterState, Flapping, Load,
    Requested, VmId,
};
use crate::platform::load_balancer::{Configuration, CreateLoadBalancer, FLAVOR};
use crate::platform::model::*;
use crate::platform::quota::Limits;
use crate::platform::redeployment::Hooks;
use crate::platform::standalone_nodes::CreateStandaloneNode;
use crate::platform::testing::{Settings, World, owner};
use crate::platform::{CreateNodeGroup, PlatformError};

use super::rules::{self, Rules, as_totals};
use super::settled;
use super::step::{PEACE_SECONDS, Shape, Step, Timed};
use super::volumes::Volumes;

/// How long everything that was wrong may take to be right again: the slowest boot is an hour and a half, an
/// update of everything as long, and a group shrinks by a node every ten minutes.
const RECOVERY: Duration = Duration::from_secs(10 * 3600);
/// No work of an instant takes this long, in real time: somebody waits for ever.
const HANG: Duration = Duration::from_secs(100);
/// How long a flapping VM is let to: every swing is an instant.
const FLAPPING: Duration = Duration::from_secs(1800);

pub type Outcome<T> = Result<T, String>;

/// A month in the life of a cloud.
pub struct Month {
    store: Arc<MemoryKeyspaces>,
    /// Taken only while it is started again.
    world: Option<World>,
    rules: Arc<Mutex<Rules>>,
    /// When the next wait is cut short by a kill.
    crash: Option<(u32, bool)>,
    flapping: Vec<VmId>,
    volumes: Volumes,
    number: u32,
}

/// What came of it.
pub struct Account {
    pub instants: u64,
    pub replacements: u64,
    /// How many of those for a better site.
    pub moves: u64,
    pub refused: u64,
    pub granted: u64,
    /// The same in every run of the same steps.
    pub digest: String,
}

/// Lives through `steps`. Tells what went wrong.
pub async fn live(steps: &[Timed]) -> Outcome<Account> {
    let mut month = Month::begin().await;
    let (mut granted, mut refused) = (0, 0);
    let trace = std::env::var_os("CKE_MONTH_TRACE").is_some();
    for (index, timed) in steps.iter().enumerate() {
        let told = |what: String| format!("at step {index} ({timed:?}): {what}");
        month.pass(timed.after_seconds).await.map_err(told)?;
        if trace {
            let (now, instants) = (month.world().clock.now(), month.rules.lock().instants);
            println!("{} {index} {instants} {:?}", now.to_rfc3339(), timed.step);
        }
        match month.step(&timed.step).await {
            Ok(true) => granted += 1,
            Ok(false) => refused += 1,
            Err(what) => return Err(told(what)),
        }
    }
    let told = |what: String| format!("after the last step: {what}");
    month.make_peace().await.map_err(told)?;
    month.end().await.map_err(told)?;
    let rules = month.rules.lock();
    Ok(Account {
        instants: rules.instants,
        replacements: rules.replacements,
        moves: rules.moves,
        granted,
        refused,
        digest: format!("{:x}", rules.digest.clone().finalize()),
    })
}

impl Month {
    async fn begin() -> Month {
        let store = Arc::new(MemoryKeyspaces::default());
        let settings = Settings {
            // Room for a handful of clusters: a site that is half gone is full.
            fleet: Some((2, 96, 160)),
            ..Settings::default()
        };
        let world = World::start(store.clone(), Arc::default(), settings).await;
        let limits = Limits {
            vcpus: 200,
            ram_gb: 300,
            ips: 4,
        };
        let raised = world.platform.set_limits(&owner(), limits).await;
        raised.expect("an owner may hold more");
        let rules = Arc::default();
        rules::follow(&rules, &world);
        Month {
            store,
            world: Some(world),
            rules,
            crash: None,
            flapping: Vec::new(),
            volumes: Volumes::default(),
            number: 0,
        }
    }

    fn world(&self) -> &World {
        self.world.as_ref().expect("a world that lives")
    }

    /// Lets time pass. A long time is one of peace.
    async fn pass(&mut self, seconds: u64) -> Outcome<()> {
        if seconds < PEACE_SECONDS {
            return self.advance(Duration::from_secs(seconds)).await;
        }
        self.advance(Duration::from_secs(seconds - PEACE_SECONDS))
            .await?;
        self.make_peace().await
    }

    /// Advances with every instant looked at, and is killed on the way if that is due.
    async fn advance(&mut self, by: Duration) -> Outcome<()> {
        if !self.flapping.is_empty() && by > FLAPPING {
            self.advance_by(FLAPPING).await?;
            for vm in std::mem::take(&mut self.flapping) {
                fault(self.world().cloud.flap_vm(&vm, None).await)?;
            }
            return self.advance_by(by - FLAPPING).await;
        }
        self.advance_by(by).await
    }

    async fn advance_by(&mut self, by: Duration) -> Outcome<()> {
        let until = self.world().clock.now().saturating_add(by);
        if let Some((transactions, makes_last)) = self.crash.take() {
            let killed = tokio::select! {
                outcome = self.advance_unharmed(until) => {
                    outcome?;
                    false
                }
                () = self.store.freeze_at(transactions, makes_last) => true,
            };
            if let Some(world) = self.world.take() {
                let dead = world.kill().await;
                self.store.thaw();
                let world = dead.restart().await;
                rules::follow(&self.rules, &world);
                self.world = Some(world);
            }
            if !killed {
                return Ok(());
            }
        }
        self.advance_unharmed(until).await
    }

    async fn advance_unharmed(&self, until: Timestamp) -> Outcome<()> {
        let world = self.world();
        let by = world.clock.now().until(until);
        let advance = world
            .clock
            .advance_while(by, || self.rules.lock().instant(world));
        if tokio::time::timeout(HANG, advance).await.is_err() {
            return Err(String::from("the clock waits for ever"));
        }
        self.rules.lock().instant(world);
        // As whoever advances a manual clock does.
        let saved = world.platform.save_reading().await;
        saved.map_err(|error| error.to_string())?;
        self.rightly()
    }

    fn rightly(&self) -> Outcome<()> {
        let rules = self.rules.lock();
        match rules.found.is_empty() {
            true => Ok(()),
            false => Err(rules.found.join("\n")),
        }
    }

    /// Mends whatever is at fault, gives everything the time to recover, and looks whether it did. A site that
    /// alone is away stays so at first: everything must be well without it.
    async fn make_peace(&mut self) -> Outcome<()> {
        let cloud = self.world().cloud.clone();
        let is_up = |site: &Datacenter| cloud.site(*site).state == DatacenterState::Up;
        let away: Vec<_> = Datacenter::ALL
            .into_iter()
            .filter(|it| !is_up(it))
            .collect();
        let alone = match away[..] {
            [site] => Some(site),
            _ => None,
        };
        for site in Datacenter::ALL {
            if Some(site) != alone {
                fault(cloud.set_datacenter(site, DatacenterState::Up).await)?;
            }
            fault(cloud.set_capacity(site, CapacityFault::None).await)?;
        }
        let boots = cloud.set_boot_fault(BootScope::Everywhere, BootFault::default());
        fault(boots.await)?;
        for vm in cloud.list_vms() {
            let id = &vm.spec.id;
            fault(cloud.wedge_vm(id, false).await)?;
            fault(cloud.flap_vm(id, None).await)?;
            fault(cloud.set_user_load(id, None).await)?;
        }
        self.flapping.clear();
        let budgets = &self.world().kubernetes.budgets;
        budgets.store(false, Ordering::Relaxed);
        self.recover(alone.is_some()).await?;
        let Some(site) = alone else { return Ok(()) };
        let cloud = self.world().cloud.clone();
        fault(cloud.set_datacenter(site, DatacenterState::Up).await)?;
        self.recover(false).await
    }

    async fn recover(&mut self, without_a_site: bool) -> Outcome<()> {
        self.advance(RECOVERY).await?;
        // What took too long has failed, and its owner is to say whether to go on.
        let mut resumed = false;
        for cluster in self.clusters().await? {
            if cluster.status == ClusterStatus::Failed {
                let id = &cluster.id;
                let platform = &self.world().platform;
                let outcome = platform.resume_cluster(&owner(), id).await;
                outcome.map_err(|error| error.to_string())?;
                resumed = true;
            }
        }
        if resumed {
            self.advance(RECOVERY).await?;
        }
        let world = self.world.as_ref().expect("a world that lives");
        let snapshot = world.platform.seen(world.cloud.seen());
        let told = world.kubernetes.clusters.lock();
        let mut unsettled = settled::check(&snapshot, &told, without_a_site);
        let volumes = self.volumes.check(&snapshot.clusters, &snapshot.inventory);
        unsettled.extend(volumes);
        if !unsettled.is_empty() {
            let without = if without_a_site {
                " without a site"
            } else {
                ""
            };
            return Err(format!("not settled{without}:\n{}", unsettled.join("\n")));
        }
        Ok(())
    }

    /// Deletes everything: nothing is left, and the meter says what was used.
    async fn end(&mut self) -> Outcome<()> {
        for cluster in self.clusters().await? {
            let platform = &self.world().platform;
            let outcome = platform.delete_cluster(&owner(), &cluster.id).await;
            outcome.map_err(|error| error.to_string())?;
        }
        self.advance(Duration::from_secs(3600)).await?;
        let world = self.world();
        let left = world.cloud.seen();
        let placed = left.hypervisors.iter().map(|it| it.placed.len());
        let counts = [
            ("VMs", left.vms.len()),
            ("addresses", left.addresses.len()),
            ("load balancers", left.load_balancers.len()),
            ("networks", left.networks.len()),
            ("peers", left.peers.len()),
            ("volumes", left.volumes.len()),
            ("places", placed.sum()),
            ("Kubernetes APIs", world.kubernetes.clusters.lock().len()),
        ];
        let left: Vec<_> = counts.iter().filter(|(_, count)| *count > 0).collect();
        if !left.is_empty() {
            return Err(format!("left over: {left:?}"));
        }
        let usage = world.platform.usage(&owner()).await;
        let usage = usage.map_err(|error| error.to_string())?;
        if !usage.is_empty() {
            return Err(format!("still in the ledger: {usage:?}"));
        }
        let metered = world.cloud.metered("").await;
        let metered = metered.map_err(|error| error.to_string())?;
        let mut totals: BTreeMap<String, [i128; 4]> = BTreeMap::new();
        let mut add = |owner: &str, usage| {
            let total = totals.entry(owner.to_owned()).or_default();
            let more = as_totals(usage);
            *total = std::array::from_fn(|of| total[of] + more[of]);
        };
        for it in &metered.intervals {
            add(&it.owner, it.level.between(it.started_at, it.ended_at));
        }
        for it in &metered.rolled_up {
            for step in it.runs.iter().flat_map(Run::steps) {
                add(&it.owner, step.usage);
            }
        }
        totals.retain(|_, total| *total != [0; 4]);
        let used = self.rules.lock().used();
        if totals != used {
            return Err(format!(
                "the meter says {totals:#?}, and used was {used:#?}"
            ));
        }
        Ok(())
    }

    async fn clusters(&self) -> Outcome<Vec<Cluster>> {
        let views = self.world().platform.list_clusters(&owner(), &[]).await;
        let views = views.map_err(|error| error.to_string())?;
        Ok(views.into_iter().map(|view| view.cluster).collect())
    }

    async fn cluster(&self, number: u8) -> Outcome<Option<Cluster>> {
        let clusters = self.clusters().await?;
        Ok(pick(&clusters, number).cloned())
    }

    async fn group(&self, number: u8) -> Outcome<Option<NodeGroup>> {
        let views = self.world().platform.list_clusters(&owner(), &[]).await;
        let views = views.map_err(|error| error.to_string())?;
        let groups: Vec<_> = views.into_iter().flat_map(|it| it.node_groups).collect();
        Ok(pick(&groups, number).cloned())
    }

    fn vm(&self, number: u8) -> Option<VmId> {
        let mut vms = self.world().cloud.list_vms();
        vms.retain(|vm| vm.requested == Requested::Running);
        pick(&vms, number).map(|vm| vm.spec.id.clone())
    }

    /// Returns whether it was done; `false` if it was refused, or there is nothing to do it to.
    async fn step(&mut self, step: &Step) -> Outcome<bool> {
        let (world, owner) = (self.world(), owner());
        let (platform, cloud) = (world.platform.clone(), world.cloud.clone());
        let done = match *step {
            Step::CreateCluster(ref shape) => {
                self.number += 1;
                let order = order(self.number, shape, &platform.catalog().versions());
                request(platform.create_cluster(&owner, order).await)
            }
            Step::DeleteCluster(number) => match self.cluster(number).await? {
                Some(it) => request(platform.delete_cluster(&owner, &it.id).await),
                None => Ok(false),
            },
            Step::Upgrade(number) => match self.cluster(number).await? {
                Some(it) => {
                    let next = platform.catalog().next_version(&it.version);
                    let target = next.unwrap_or_else(|| it.version.clone());
                    request(platform.update_version(&owner, &it.id, &target).await)
                }
                None => Ok(false),
            },
            Step::Redeploy(number) => match self.cluster(number).await? {
                Some(it) => {
                    // Manifests before and after, or none.
                    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\n";
                    let texts = vec![text.to_owned(); usize::from(number % 2)];
                    let hooks = Hooks::new(texts.clone(), texts);
                    let hooks = hooks.map_err(|error| error.to_string())?;
                    request(platform.redeploy_cluster(&owner, &it.id, hooks).await)
                }
                None => Ok(false),
            },
            Step::Resume(number) => match self.cluster(number).await? {
                Some(it) => request(platform.resume_cluster(&owner, &it.id).await),
                None => Ok(false),
            },
            Step::AddStorage(number) => match self.cluster(number).await? {
                Some(it) => request(platform.add_persistent_storage(&owner, &it.id).await),
                None => Ok(false),
            },
            Step::ClusterAutoscaling(number, on) => match self.cluster(number).await? {
                Some(it) => {
                    let patch = ClusterPatch {
                        features: FeaturesPatch {
                            autoscaling_enabled: Some(Some(on)),
                            ..FeaturesPatch::default()
                        },
                        ..ClusterPatch::default()
                    };
                    request(platform.update_cluster(&owner, &it.id, patch).await)
                }
                None => Ok(false),
            },
            Step::CreateGroup {
                cluster,
                nodes,
                autoscaling,
            } => match self.cluster(cluster).await? {
                Some(it) => {
                    let order = group_order(nodes, autoscaling);
                    request(platform.create_node_group(&owner, &it.id, order).await)
                }
                None => Ok(false),
            },
            Step::CreateNode(number) => match self.cluster(number).await? {
                Some(it) => {
                    let order = CreateStandaloneNode {
                        name: String::from("lone"),
                        description: None,
                        tag: None,
                        flavor: Flavor::Xxs,
                        labels: BTreeMap::new(),
                        taints: Vec::new(),
                    };
                    request(platform.create_standalone_node(&owner, &it.id, order).await)
                }
                None => Ok(false),
            },
            Step::Resize { group, nodes } => match self.group(group).await? {
                Some(it) => {
                    let patch = patch(&it, nodes, None);
                    let (cluster, id) = (&it.cluster, &it.id);
                    request(platform.update_node_group(&owner, cluster, id, patch).await)
                }
                None => Ok(false),
            },
            Step::GroupAutoscaling(group, on) => match self.group(group).await? {
                Some(it) => {
                    let patch = patch(&it, it.target_node_count, Some(on));
                    let (cluster, id) = (&it.cluster, &it.id);
                    request(platform.update_node_group(&owner, cluster, id, patch).await)
                }
                None => Ok(false),
            },
            Step::DeleteGroup(group) => match self.group(group).await? {
                Some(it) => {
                    let deleted = platform.delete_node_group(&owner, &it.cluster, &it.id);
                    request(deleted.await)
                }
                None => Ok(false),
            },
            Step::Limits { vcpus, ips } => {
                let limits = Limits {
                    vcpus,
                    ram_gb: vcpus * 3 / 2,
                    ips,
                };
                // A limit below what is held is a violation of the ledger's own rule, and legal.
                let usage = platform.usage(&owner).await;
                let usage = usage.map_err(|error| error.to_string())?;
                let held: u64 = usage.iter().map(|it| it.cpu_millicores / 1000).sum();
                let ram: u64 = usage.iter().map(|it| it.ram_bytes >> 30).sum();
                let limits = Limits {
                    vcpus: limits.vcpus.max(held),
                    ram_gb: limits.ram_gb.max(ram),
                    ips: limits.ips.max(8),
                };
                request(platform.set_limits(&owner, limits).await)
            }
            Step::CreateLoadBalancer(number) => match self.cluster(number).await? {
                Some(it) => {
                    let order = CreateLoadBalancer {
                        cluster: it.id.clone(),
                        flavor: FLAVOR.to_owned(),
                        tags: Vec::new(),
                        configuration: Configuration::default(),
                    };
                    request(platform.create_load_balancer(&owner, order).await)
                }
                None => Ok(false),
            },
            Step::DeleteLoadBalancer(number) => {
                let found = platform.list_load_balancers(&owner).await;
                let found = found.map_err(|error| error.to_string())?;
                match pick(&found, number) {
                    Some(it) => request(platform.delete_load_balancer(&owner, &it.id).await),
                    None => Ok(false),
                }
            }
            Step::Volume(ref step) => {
                let clusters = self.clusters().await?;
                let world = self.world.as_ref().expect("a world that lives");
                self.volumes.step(world, &clusters, step).await
            }
            Step::Kill(number) => match self.vm(number) {
                Some(vm) => fault(cloud.kill_vm(&vm).await),
                None => Ok(false),
            },
            Step::Wedge(number, on) => match self.vm(number) {
                Some(vm) => fault(cloud.wedge_vm(&vm, on).await),
                None => Ok(false),
            },
            Step::Flap {
                vm,
                down_seconds,
                up_seconds,
            } => match self.vm(vm) {
                Some(vm) => {
                    self.flapping.push(vm.clone());
                    let flapping = Flapping {
                        down_seconds,
                        up_seconds,
                    };
                    fault(cloud.flap_vm(&vm, Some(flapping)).await)
                }
                None => Ok(false),
            },
            Step::Load(number, percent) => match self.vm(number) {
                Some(vm) => {
                    let found = cloud.get_vm(&vm);
                    let vcpus = found.map_or(0, |found| u64::from(found.spec.vcpus));
                    let load = Load {
                        cpu_millis: vcpus * 10 * percent,
                        memory_kib: 0,
                    };
                    fault(cloud.set_user_load(&vm, Some(load)).await)
                }
                None => Ok(false),
            },
            Step::Site(site, state) => fault(cloud.set_datacenter(site, state).await),
            Step::Capacity(site, capacity) => fault(cloud.set_capacity(site, capacity).await),
            Step::Boots {
                slow_factor_percent,
                failure_per_mille,
            } => {
                let boots = BootFault {
                    slow_factor_percent,
                    failure_per_mille,
                };
                fault(cloud.set_boot_fault(BootScope::Everywhere, boots).await)
            }
            Step::Budgets(on) => {
                self.world().kubernetes.budgets.store(on, Ordering::Relaxed);
                Ok(true)
            }
            Step::Crash {
                transactions,
                makes_last,
            } => {
                self.crash = Some((transactions, makes_last));
                Ok(true)
            }
        }?;
        self.rightly()?;
        Ok(done)
    }
}

/// A request is granted, or refused for a reason that a client can understand.
pub fn request<T>(outcome: Result<T, PlatformError>) -> Outcome<bool> {
    match outcome {
        Ok(_) => Ok(true),
        Err(
            PlatformError::Invalid { .. }
            | PlatformError::QuotaExceeded { .. }
            | PlatformError::IpQuotaExceeded { .. }
            | PlatformError::WrongState { .. }
            // It went with its cluster a moment ago.
            | PlatformError::VolumeNotFound(_),
        ) => Ok(false),
        Err(PlatformError::Conflict { reason }) if !reason.contains("too many") => Ok(false),
        Err(error) => Err(format!("{error:?}")),
    }
}

pub fn fault(outcome: Result<(), CloudError>) -> Outcome<bool> {
    match outcome {
        Ok(()) => Ok(true),
        // It went a moment ago.
        Err(CloudError::VmNotFound(_) | CloudError::VolumeNotFound(_)) => Ok(false),
        Err(error) => Err(error.to_string()),
    }
}

pub fn pick<T>(from: &[T], number: u8) -> Option<&T> {
    let count = from.len().max(1);
    from.get(usize::from(number) % count)
}

fn order(number: u32, shape: &Shape, versions: &[String]) -> CreateCluster {
    let replication_factor = shape.replicas;
    let topology = match shape.topology {
        0 => Topology::AllInOne {
            flavor: Flavor::S,
            replication_factor,
        },
        1 => Topology::DedicatedCompute {
            flavor: Flavor::Xs,
            replication_factor,
        },
        _ => Topology::Distributed {
            components: Components::uniform(ComponentConfig {
                flavor: Flavor::Xxs,
                replication_factor,
            }),
        },
    };
    let groups = (shape.nodes > 0).then(|| group_order(shape.nodes, shape.autoscaling));
    CreateCluster {
        name: format!("cluster-{number}"),
        version: pick(versions, shape.version).cloned(),
        topology: Some(topology),
        features: Features {
            autoscaling_enabled: shape.autoscaling,
            csi: shape.storage,
            ..Features::default()
        },
        node_groups: groups.into_iter().collect(),
        ..CreateCluster::default()
    }
}

fn group_order(nodes: u32, autoscaling: bool) -> CreateNodeGroup {
    CreateNodeGroup {
        min_node_count: Some(0),
        max_node_count: Some(8),
        autoscaling_enabled: Some(autoscaling),
        ..CreateNodeGroup::new("w", Flavor::Xxs, nodes)
    }
}

fn patch(group: &NodeGroup, nodes: u32, autoscaling_enabled: Option<bool>) -> NodeGroupPatch {
    NodeGroupPatch {
        name: group.name.clone(),
        target_node_count: nodes,
        description: None,
        tag: None,
        min_node_count: None,
        max_node_count: None,
        autoscaling_enabled,
    }
}
