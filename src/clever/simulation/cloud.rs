//! Faults of the cloud: of its VMs and of its datacenters; and every fault at once.

use std::sync::Arc;

use axum::extract::{Path, State};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::clever::Clever;
use crate::clever::error::ApiError;
use crate::clever::simulation::injection::ApiFaultView;
use crate::clever::simulation::openapi::{Api, Operation};
use crate::clever::transport::{Json, JsonBody, Parameters};
use crate::infra::{
    BootFault, BootScope, CapacityFault, Cloud, CloudError, Datacenter, DatacenterState, Flapping,
    Health, Load, Observed, Power, Site, Vm, VmId,
};
use crate::platform::store::CloudOwner;

const CLUSTER: (&str, &str) = ("cluster", "Only VMs of the cluster with this id");

pub fn operations(api: Api) -> Api {
    let on_vm = |operation: Operation| operation.query(CLUSTER.0, CLUSTER.1).answers::<VmView>();
    api.add(
        Operation::get(
            "/_sim/vms",
            "The VMs of the cloud, in the order of their ids",
        )
        .query(CLUSTER.0, CLUSTER.1)
        .answers::<Vec<VmView>>(),
        list_vms,
    )
    .add(
        on_vm(Operation::get(
            "/_sim/vms/{vm}",
            "A VM, by its id or its name",
        )),
        get_vm,
    )
    .add(
        on_vm(Operation::post(
            "/_sim/vms/{vm}/kill",
            "Power a VM off, for good",
        )),
        kill,
    )
    .add(
        on_vm(Operation::post(
            "/_sim/vms/{vm}/wedge",
            "Let a VM run and answer nothing",
        )),
        wedge,
    )
    .add(
        on_vm(Operation::post(
            "/_sim/vms/{vm}/recover",
            "Let a VM that is wedged or flaps work again",
        )),
        recover,
    )
    .add(
        on_vm(
            Operation::put("/_sim/vms/{vm}/flapping", "Let a VM come and go")
                .takes::<FlappingBody>(),
        ),
        flap,
    )
    .add(
        on_vm(
            Operation::put(
                "/_sim/vms/{vm}/load",
                "Set what a VM uses on top of what runs in it",
            )
            .takes::<LoadBody>(),
        ),
        set_load,
    )
    .add(
        Operation::get(
            "/_sim/datacenters",
            "The datacenters, and what happens to them",
        )
        .answers::<Vec<DatacenterView>>(),
        list_datacenters,
    )
    .add(
        Operation::put(
            "/_sim/datacenters/{datacenter}",
            "Change what happens to a datacenter. What is not given stays",
        )
        .takes::<DatacenterChange>()
        .answers::<DatacenterView>(),
        change_datacenter,
    )
    .add(
        Operation::get("/_sim/faults", "Every fault that is set").answers::<Faults>(),
        list_faults,
    )
    .add(
        Operation::delete(
            "/_sim/faults",
            "Clear every fault. What was killed stays killed",
        )
        .answers::<Faults>(),
        clear_faults,
    )
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VmView {
    pub id: String,
    pub name: String,
    /// Whose it is; absent if it is nobody's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_group: Option<String>,
    pub datacenter: String,
    pub hypervisor: String,
    pub vcpus: u32,
    pub ram_gb: u32,
    pub status: VmStatus,
    /// Whether it answers.
    pub reachable: bool,
    /// Whether its health probes say so.
    pub healthy: bool,
    pub killed: bool,
    pub wedged: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flapping: Option<FlappingBody>,
    /// What it uses.
    pub load: LoadBody,
    /// The part of it that was set here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_load: Option<LoadBody>,
}

#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum VmStatus {
    Provisioning,
    Running,
    Failed,
    Deleting,
}

/// Seconds without an answer, and with; over and over.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FlappingBody {
    /// 1 to 86400.
    pub down_seconds: u32,
    /// 1 to 86400.
    pub up_seconds: u32,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadBody {
    /// Thousandths of a vCPU.
    #[serde(default)]
    pub cpu_millis: u64,
    #[serde(default)]
    pub memory_kib: u64,
}

impl LoadBody {
    fn of(load: Load) -> LoadBody {
        LoadBody {
            cpu_millis: load.cpu_millis,
            memory_kib: load.memory_kib,
        }
    }
}

impl VmView {
    fn of(vm: &Vm) -> VmView {
        let owner = CloudOwner::parse(&vm.spec.owner);
        let node_group = owner.as_ref().and_then(|owner| owner.node_group.as_ref());
        VmView {
            id: vm.spec.id.to_string(),
            name: vm.spec.name.clone(),
            cluster: owner.as_ref().map(|owner| owner.cluster.to_string()),
            node_group: node_group.map(ToString::to_string),
            datacenter: vm.datacenter.to_string(),
            hypervisor: vm.hypervisor.clone(),
            vcpus: vm.spec.vcpus,
            ram_gb: vm.spec.ram_gb,
            status: match vm.observed {
                Observed::Provisioning => VmStatus::Provisioning,
                Observed::Running { .. } => VmStatus::Running,
                Observed::Failed => VmStatus::Failed,
                Observed::Deleting => VmStatus::Deleting,
            },
            reachable: vm.reachable,
            healthy: vm.health == Health::Healthy,
            killed: vm.power == Power::Off,
            wedged: vm.wedged,
            flapping: vm.flapping.map(|flapping| FlappingBody {
                down_seconds: flapping.down_seconds,
                up_seconds: flapping.up_seconds,
            }),
            load: LoadBody::of(vm.load),
            user_load: vm.user_load.map(LoadBody::of),
        }
    }

    fn is_faulty(&self) -> bool {
        self.killed || self.wedged || self.flapping.is_some() || self.user_load.is_some()
    }
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DatacenterView {
    pub name: String,
    pub state: StateBody,
    /// How much of its capacity new VMs can have.
    pub capacity_percent: u32,
    /// How long boots take: 100 is as usual.
    pub boot_time_percent: u32,
    /// So many of a thousand boots fail.
    pub boot_failures_per_mille: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum StateBody {
    Up,
    /// Without power: its VMs are off, and boot again when it is back.
    Lost,
    /// Its VMs run, and nothing reaches them.
    Partitioned,
    /// Half of its capacity is there, and boots take three times as long.
    Degraded,
}

/// What is absent or `null` stays.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DatacenterChange {
    pub state: Option<StateBody>,
    /// 0 to 100; 0 is exhausted, 100 is all of it.
    pub capacity_percent: Option<u32>,
    /// 1 to 100000.
    pub boot_time_percent: Option<u32>,
    /// 0 to 1000.
    pub boot_failures_per_mille: Option<u32>,
}

impl DatacenterView {
    fn of(datacenter: Datacenter, site: &Site) -> DatacenterView {
        DatacenterView {
            name: datacenter.to_string(),
            state: match site.state {
                DatacenterState::Up => StateBody::Up,
                DatacenterState::Lost => StateBody::Lost,
                DatacenterState::Partitioned => StateBody::Partitioned,
                DatacenterState::Degraded => StateBody::Degraded,
            },
            capacity_percent: match site.capacity {
                CapacityFault::None => 100,
                CapacityFault::Exhausted => 0,
                CapacityFault::Percent(percent) => percent,
            },
            boot_time_percent: site.boot.slow_factor_percent,
            boot_failures_per_mille: site.boot.failure_per_mille,
        }
    }

    fn is_faulty(&self) -> bool {
        self.state != StateBody::Up
            || self.capacity_percent != 100
            || self.boot_time_percent != 100
            || self.boot_failures_per_mille != 0
    }
}

/// Every fault that is set.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Faults {
    pub api: Vec<ApiFaultView>,
    pub datacenters: Vec<DatacenterView>,
    pub vms: Vec<VmView>,
}

impl Faults {
    fn of(clever: &Clever) -> Faults {
        let cloud = cloud(clever);
        let vms = cloud.list_vms();
        Faults {
            api: clever.simulation.inner.injections.list(),
            datacenters: datacenters(cloud)
                .into_iter()
                .filter(DatacenterView::is_faulty)
                .collect(),
            vms: vms
                .iter()
                .map(|vm| VmView::of(vm))
                .filter(VmView::is_faulty)
                .collect(),
        }
    }
}

impl From<CloudError> for ApiError {
    fn from(error: CloudError) -> ApiError {
        let message = error.to_string();
        match error {
            CloudError::VmNotFound(id) => ApiError::resource_not_found("Vm", &id.0),
            CloudError::VolumeNotFound(id) => ApiError::resource_not_found("Volume", &id),
            CloudError::OutOfRange { what, given, .. } => {
                ApiError::invalid_field(what, given.to_string(), message)
            }
            _ => ApiError::unavailable(message),
        }
    }
}

fn cloud(clever: &Clever) -> &Cloud {
    &clever.simulation.inner.cloud
}

fn vms_of(clever: &Clever, parameters: &Parameters) -> Vec<Arc<Vm>> {
    let wanted = parameters.get(CLUSTER.0);
    let mut vms = cloud(clever).list_vms();
    vms.retain(|vm| {
        let owner = || CloudOwner::parse(&vm.spec.owner);
        wanted.is_none_or(|id| owner().is_some_and(|owner| owner.cluster.as_str() == id))
    });
    vms
}

/// The one VM that `name` means: its id, or the name that no other VM has.
fn find(clever: &Clever, name: &str, parameters: &Parameters) -> Result<Arc<Vm>, ApiError> {
    let mut found = vms_of(clever, parameters);
    found.retain(|vm| vm.spec.id.0 == name || vm.spec.name == name);
    match found.as_slice() {
        [] => Err(ApiError::resource_not_found("Vm", name)),
        [vm] => Ok(Arc::clone(vm)),
        [first, second, ..] => Err(ApiError::conflict(format!(
            "More than one VM is called so: {} and {}; say its id, or its cluster's with ?cluster=",
            first.spec.id, second.spec.id
        ))),
    }
}

fn view(clever: &Clever, id: &VmId) -> Result<Json<VmView>, ApiError> {
    let vm = cloud(clever).get_vm(id);
    let vm = vm.ok_or_else(|| ApiError::resource_not_found("Vm", &id.0))?;
    Ok(Json(VmView::of(&vm)))
}

async fn list_vms(State(clever): State<Clever>, parameters: Parameters) -> Json<Vec<VmView>> {
    let vms = vms_of(&clever, &parameters);
    Json(vms.iter().map(|vm| VmView::of(vm)).collect())
}

async fn get_vm(
    State(clever): State<Clever>,
    Path(name): Path<String>,
    parameters: Parameters,
) -> Result<Json<VmView>, ApiError> {
    Ok(Json(VmView::of(&*find(&clever, &name, &parameters)?)))
}

async fn kill(
    State(clever): State<Clever>,
    Path(name): Path<String>,
    parameters: Parameters,
) -> Result<Json<VmView>, ApiError> {
    let vm = find(&clever, &name, &parameters)?;
    cloud(&clever).kill_vm(&vm.spec.id).await?;
    view(&clever, &vm.spec.id)
}

async fn wedge(
    State(clever): State<Clever>,
    Path(name): Path<String>,
    parameters: Parameters,
) -> Result<Json<VmView>, ApiError> {
    let vm = find(&clever, &name, &parameters)?;
    cloud(&clever).wedge_vm(&vm.spec.id, true).await?;
    view(&clever, &vm.spec.id)
}

async fn recover(
    State(clever): State<Clever>,
    Path(name): Path<String>,
    parameters: Parameters,
) -> Result<Json<VmView>, ApiError> {
    let vm = find(&clever, &name, &parameters)?;
    if vm.power == Power::Off {
        return Err(ApiError::conflict(
            "A VM that was killed does not come back",
        ));
    }
    cloud(&clever).wedge_vm(&vm.spec.id, false).await?;
    cloud(&clever).flap_vm(&vm.spec.id, None).await?;
    view(&clever, &vm.spec.id)
}

async fn flap(
    State(clever): State<Clever>,
    Path(name): Path<String>,
    parameters: Parameters,
    JsonBody(body): JsonBody<FlappingBody>,
) -> Result<Json<VmView>, ApiError> {
    let vm = find(&clever, &name, &parameters)?;
    let flapping = Flapping {
        down_seconds: body.down_seconds,
        up_seconds: body.up_seconds,
    };
    cloud(&clever).flap_vm(&vm.spec.id, Some(flapping)).await?;
    view(&clever, &vm.spec.id)
}

async fn set_load(
    State(clever): State<Clever>,
    Path(name): Path<String>,
    parameters: Parameters,
    JsonBody(body): JsonBody<LoadBody>,
) -> Result<Json<VmView>, ApiError> {
    let vm = find(&clever, &name, &parameters)?;
    let load = Load {
        cpu_millis: body.cpu_millis,
        memory_kib: body.memory_kib,
    };
    let load = Some(load).filter(|load| *load != Load::default());
    cloud(&clever).set_user_load(&vm.spec.id, load).await?;
    view(&clever, &vm.spec.id)
}

fn datacenters(cloud: &Cloud) -> Vec<DatacenterView> {
    let all = Datacenter::ALL.into_iter();
    all.map(|datacenter| DatacenterView::of(datacenter, &cloud.site(datacenter)))
        .collect()
}

async fn list_datacenters(State(clever): State<Clever>) -> Json<Vec<DatacenterView>> {
    Json(datacenters(cloud(&clever)))
}

async fn change_datacenter(
    State(clever): State<Clever>,
    Path(name): Path<String>,
    JsonBody(change): JsonBody<DatacenterChange>,
) -> Result<Json<DatacenterView>, ApiError> {
    let datacenter = Datacenter::from_name(&name)
        .ok_or_else(|| ApiError::resource_not_found("Datacenter", &name))?;
    let cloud = cloud(&clever);
    let site = cloud.site(datacenter);
    // What may be refused comes first, so that a refused request has changed nothing.
    let capacity = change.capacity_percent;
    if let Some(percent) = capacity.filter(|percent| *percent > 100) {
        return Err(ApiError::invalid_field(
            "capacityPercent",
            percent.to_string(),
            "0 to 100",
        ));
    }
    let boot = BootFault {
        slow_factor_percent: change
            .boot_time_percent
            .unwrap_or(site.boot.slow_factor_percent),
        failure_per_mille: change
            .boot_failures_per_mille
            .unwrap_or(site.boot.failure_per_mille),
    };
    cloud
        .set_boot_fault(BootScope::Datacenter(datacenter), boot)
        .await?;
    if let Some(percent) = capacity {
        let capacity = match percent {
            0 => CapacityFault::Exhausted,
            100 => CapacityFault::None,
            percent => CapacityFault::Percent(percent),
        };
        cloud.set_capacity(datacenter, capacity).await?;
    }
    if let Some(state) = change.state {
        let state = match state {
            StateBody::Up => DatacenterState::Up,
            StateBody::Lost => DatacenterState::Lost,
            StateBody::Partitioned => DatacenterState::Partitioned,
            StateBody::Degraded => DatacenterState::Degraded,
        };
        cloud.set_datacenter(datacenter, state).await?;
    }
    Ok(Json(DatacenterView::of(
        datacenter,
        &cloud.site(datacenter),
    )))
}

async fn list_faults(State(clever): State<Clever>) -> Json<Faults> {
    Json(Faults::of(&clever))
}

async fn clear_faults(State(clever): State<Clever>) -> Result<Json<Faults>, ApiError> {
    let cloud = cloud(&clever);
    clever.simulation.inner.injections.clear();
    if clever.platform.certificates_are_expired() {
        clever.platform.expire_certificates(false)?;
    }
    for datacenter in Datacenter::ALL {
        cloud
            .set_datacenter(datacenter, DatacenterState::Up)
            .await?;
        cloud.set_capacity(datacenter, CapacityFault::None).await?;
    }
    cloud
        .set_boot_fault(BootScope::Everywhere, BootFault::default())
        .await?;
    for vm in cloud.list_vms() {
        let id = &vm.spec.id;
        if vm.wedged {
            cloud.wedge_vm(id, false).await?;
        }
        if vm.flapping.is_some() {
            cloud.flap_vm(id, None).await?;
        }
        if vm.user_load.is_some() {
            cloud.set_user_load(id, None).await?;
        }
    }
    Ok(Json(Faults::of(&clever)))
}
