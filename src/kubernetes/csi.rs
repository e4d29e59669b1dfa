//! The CSI driver of the provider's block storage (Ceph RBD): the StorageClass `csi-rbd-sc`, and volumes for
//! the claims that ask for it.
//!
//! ```text
//! claim asks ─▶ volume at the provider, named after the claim ─▶ PersistentVolume that names the claim
//! claim asks for more ─▶ volume grows at the provider ─▶ PersistentVolume ─▶ claim
//! PersistentVolume released ─▶ volume given back ─▶ PersistentVolume goes
//! ```
//!
//! Whether claim and volume belong together is the binder's to say, as with any driver.

use std::collections::BTreeSet;

use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::api_client::{ApiClientError, At};
use super::cloud_api::{Accesses, CloudAccess, CloudApi, CloudApiError};
use super::controller::ControllerError;
use super::controller_manager::volume::PROVISIONER;
use super::controller_manager::{Outcome, Tools};
use super::refusal::Refusals;
use super::registry::Propagation;
use super::registry::resource::{Kind, Resource};
use super::scheduler::quantity_millis;
use crate::clock::Timestamp;

pub const CLASS: &str = "csi-rbd-sc";
pub const DRIVER: &str = "rbd.csi.ceph.com";
/// Holds a PersistentVolume until the provider's volume is given back.
const FINALIZER: &str = "external-provisioner.volume.kubernetes.io/finalizer";
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// Who tells, in events: the instance of the provisioner and of the resizer.
const NAME: &str = "rbd.csi.ceph.com_csi-rbdplugin-provisioner";
const RESIZER: &str = "external-resizer rbd.csi.ceph.com";

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A volume, as the provider tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Storage {
    id: String,
    size_bytes: u64,
}

pub struct Csi {
    accesses: Accesses,
    cloud: CloudApi,
    refusals: Refusals,
}

impl Csi {
    pub fn new(accesses: Accesses) -> Csi {
        Csi {
            accesses,
            cloud: CloudApi::new(),
            refusals: Refusals::default(),
        }
    }

    /// The cluster has no persistent storage, or does not answer.
    pub fn forget(&self, cluster: &str) {
        self.refusals.forget(cluster);
    }

    pub async fn reconcile(
        &self,
        cluster: &str,
        tools: &Tools,
    ) -> Result<Outcome, ControllerError> {
        let classes = tools
            .api
            .list(Resource::of_kind(Kind::StorageClass))
            .await?;
        if !classes
            .iter()
            .any(|class| class["metadata"]["name"] == CLASS)
        {
            let resource = Resource::of_kind(Kind::StorageClass);
            unless_stale(tools.api.create(resource, None, &class(cluster)).await)?;
        }
        let claims = tools
            .api
            .list(Resource::of_kind(Kind::PersistentVolumeClaim))
            .await?;
        let volumes = tools
            .api
            .list(Resource::of_kind(Kind::PersistentVolume))
            .await?;
        let ours: Vec<&Value> = volumes
            .iter()
            .filter(|volume| volume["spec"]["csi"]["driver"] == DRIVER)
            .collect();
        let asking: Vec<&Value> = claims.iter().filter(|claim| asks(claim)).collect();
        if ours.is_empty() && asking.is_empty() {
            self.refusals.forget(cluster);
            return Ok(None);
        }
        let Some(access) = (self.accesses)(cluster) else {
            return Ok(None);
        };
        for claim in &asking {
            let name = volume_name(claim);
            let made = volumes.iter().any(|it| it["metadata"]["name"] == name);
            let class = &claim["spec"]["storageClassName"];
            let class = classes.iter().find(|it| it["metadata"]["name"] == *class);
            if !made && let Some(class) = class {
                self.provision(cluster, &access, tools, claim, class)
                    .await?;
            }
        }
        for volume in &ours {
            match next(volume, &claims, &classes) {
                Next::Nothing => {}
                Next::GiveBack => self.give_back(&access, tools, volume).await?,
                Next::LetGo => let_go(tools, volume).await?,
                Next::Grow { claim } => {
                    self.grow(cluster, &access, tools, volume, claim).await?;
                }
            }
        }
        let known: BTreeSet<&str> = claims.iter().map(uid).collect();
        self.refusals.retain(cluster, |uid| known.contains(uid));
        Ok(self.refusals.wake(cluster))
    }

    async fn provision(
        &self,
        cluster: &str,
        access: &CloudAccess,
        tools: &Tools,
        claim: &Value,
        class: &Value,
    ) -> Result<(), ControllerError> {
        let metadata = &claim["metadata"];
        let named = format!(
            "{}/{}",
            metadata["namespace"].as_str().unwrap_or(""),
            metadata["name"].as_str().unwrap_or("")
        );
        let class_name = class["metadata"]["name"].as_str().unwrap_or("");
        if let Err(why) = supported(claim) {
            let message = format!(
                "failed to provision volume with StorageClass {class_name:?}: rpc error: code = InvalidArgument desc = {why}"
            );
            let reason = "ProvisioningFailed";
            return Ok(tools
                .event_once(claim, "Warning", reason, &message, NAME)
                .await?);
        }
        let size = rounded(requested(claim));
        let name = volume_name(claim);
        let asked = json!({"name": name, "sizeBytes": size, "kubernetesClusterId": cluster});
        let (text, now) = (asked.to_string(), Timestamp(tools.now));
        if self.refusals.hold(cluster, uid(claim), &text, now) {
            return Ok(());
        }
        let message = format!("External provisioner is provisioning volume for claim {named:?}");
        tools
            .event(claim, "Normal", "Provisioning", &message, NAME)
            .await?;
        let path = storages(access);
        let made: Result<Storage, _> = self
            .cloud
            .send(access, Method::POST, &path, Some(&asked))
            .await;
        let storage = match made {
            Ok(storage) => storage,
            Err(error @ CloudApiError::Refused { .. }) => {
                let message = format!(
                    "failed to provision volume with StorageClass {class_name:?}: rpc error: code = Internal desc = {error}"
                );
                self.refusals
                    .refuse(cluster, uid(claim), &text, &error, now);
                let reason = "ProvisioningFailed";
                return Ok(tools
                    .event(claim, "Warning", reason, &message, NAME)
                    .await?);
            }
            Err(error) => return Err(error.into()),
        };
        self.refusals.granted(cluster, uid(claim));
        let volume = persistent_volume(claim, class, &storage);
        let resource = Resource::of_kind(Kind::PersistentVolume);
        unless_stale(tools.api.create(resource, None, &volume).await)?;
        let message = format!("Successfully provisioned volume {name}");
        Ok(tools
            .event(claim, "Normal", "ProvisioningSucceeded", &message, NAME)
            .await?)
    }

    async fn give_back(
        &self,
        access: &CloudAccess,
        tools: &Tools,
        volume: &Value,
    ) -> Result<(), ControllerError> {
        let path = format!("{}/{}", storages(access), handle(volume));
        let gone: Result<Value, _> = self.cloud.send(access, Method::DELETE, &path, None).await;
        match gone {
            Err(error) if error.is_not_found() => {}
            outcome => drop(outcome?),
        }
        if volume["metadata"]["deletionTimestamp"].is_null() {
            let at = At::of(Resource::of_kind(Kind::PersistentVolume), volume);
            let uid = &volume["metadata"]["uid"];
            // Held by its finalizers, it comes back here to be let go.
            tools
                .api
                .delete(at, uid, None, Propagation::Background)
                .await?;
            return Ok(());
        }
        let_go(tools, volume).await
    }

    async fn grow(
        &self,
        cluster: &str,
        access: &CloudAccess,
        tools: &Tools,
        volume: &Value,
        claim: &Value,
    ) -> Result<(), ControllerError> {
        let size = rounded(requested(claim));
        let name = volume["metadata"]["name"].as_str().unwrap_or("");
        if bytes(&volume["spec"]["capacity"]["storage"]) < size {
            let asked = json!({"sizeBytes": size});
            let (text, now) = (asked.to_string(), Timestamp(tools.now));
            if self.refusals.hold(cluster, uid(claim), &text, now) {
                return Ok(());
            }
            let message = format!("External resizer is resizing volume {name}");
            tools
                .event(claim, "Normal", "Resizing", &message, RESIZER)
                .await?;
            let path = format!("{}/{}", storages(access), handle(volume));
            let grown: Result<Storage, _> = self
                .cloud
                .send(access, Method::PATCH, &path, Some(&asked))
                .await;
            match grown {
                Ok(_) => self.refusals.granted(cluster, uid(claim)),
                Err(error @ CloudApiError::Refused { .. }) => {
                    let message = format!(
                        "resize volume {name:?} by resizer {DRIVER:?} failed: rpc error: code = Internal desc = {error}"
                    );
                    self.refusals
                        .refuse(cluster, uid(claim), &text, &error, now);
                    let reason = "VolumeResizeFailed";
                    return Ok(tools
                        .event(claim, "Warning", reason, &message, RESIZER)
                        .await?);
                }
                Err(error) => return Err(error.into()),
            }
            let mut next = volume.clone();
            next["spec"]["capacity"]["storage"] = json!(quantity(size));
            let at = At::of(Resource::of_kind(Kind::PersistentVolume), volume);
            unless_stale(tools.api.replace(at, &next).await)?;
        }
        let mut next = claim.clone();
        next["status"]["capacity"]["storage"] = json!(quantity(size));
        let at = At::of(Resource::of_kind(Kind::PersistentVolumeClaim), claim);
        unless_stale(tools.api.replace_status(at, &next).await)?;
        let message = "Resize volume succeeded";
        let reason = "VolumeResizeSuccessful";
        Ok(tools
            .event(claim, "Normal", reason, message, RESIZER)
            .await?)
    }
}

/// What has changed meanwhile comes back here by its change.
fn unless_stale<T>(outcome: Result<T, ApiClientError>) -> Result<(), ApiClientError> {
    match outcome {
        Err(error) if error.is_stale() => Ok(()),
        outcome => outcome.map(drop),
    }
}

async fn let_go(tools: &Tools, volume: &Value) -> Result<(), ControllerError> {
    let mut next = volume.clone();
    if let Some(held) = next["metadata"]["finalizers"].as_array_mut() {
        held.retain(|held| held != FINALIZER);
    }
    let at = At::of(Resource::of_kind(Kind::PersistentVolume), volume);
    Ok(unless_stale(tools.api.replace(at, &next).await)?)
}

fn uid(object: &Value) -> &str {
    object["metadata"]["uid"].as_str().unwrap_or("")
}

/// Whether the claim waits for a volume of this driver.
fn asks(claim: &Value) -> bool {
    claim["metadata"]["annotations"][PROVISIONER] == DRIVER
        && claim["spec"]["volumeName"]
            .as_str()
            .unwrap_or("")
            .is_empty()
        && claim["metadata"]["deletionTimestamp"].is_null()
}

/// One claim never has two volumes: the name follows from it, and so does the provider's id from the name.
fn volume_name(claim: &Value) -> String {
    format!("pvc-{}", uid(claim))
}

fn handle(volume: &Value) -> &str {
    volume["spec"]["csi"]["volumeHandle"].as_str().unwrap_or("")
}

fn bytes(quantity: &Value) -> u64 {
    u64::try_from(quantity_millis(quantity) / 1000).unwrap_or(0)
}

fn requested(claim: &Value) -> u64 {
    bytes(&claim["spec"]["resources"]["requests"]["storage"])
}

/// To whole MiB below one GiB and to whole GiB from there, as the driver rounds.
fn rounded(bytes: u64) -> u64 {
    let unit = if bytes < GIB { MIB } else { GIB };
    bytes.max(1).div_ceil(unit).saturating_mul(unit)
}

fn quantity(bytes: u64) -> String {
    match bytes {
        bytes if bytes.is_multiple_of(GIB) => format!("{}Gi", bytes / GIB),
        bytes if bytes.is_multiple_of(MIB) => format!("{}Mi", bytes / MIB),
        bytes => bytes.to_string(),
    }
}

/// A file system is of one node at a time; a bare device may be shared.
fn supported(claim: &Value) -> Result<(), &'static str> {
    let modes = claim["spec"]["accessModes"].as_array();
    let shared = modes
        .into_iter()
        .flatten()
        .any(|mode| mode == "ReadWriteMany");
    if shared && claim["spec"]["volumeMode"] != "Block" {
        return Err("multi node access modes are only supported on rbd `block` type volumes");
    }
    Ok(())
}

#[derive(Debug, PartialEq)]
enum Next<'a> {
    Nothing,
    Grow {
        claim: &'a Value,
    },
    /// Away from the provider, then from the cluster.
    GiveBack,
    /// It goes, and what is on it stays with the provider.
    LetGo,
}

fn next<'a>(volume: &Value, claims: &'a [Value], classes: &[Value]) -> Next<'a> {
    let held = volume["metadata"]["finalizers"].as_array();
    let held = held.into_iter().flatten().any(|held| held == FINALIZER);
    let ending = !volume["metadata"]["deletionTimestamp"].is_null();
    let phase = volume["status"]["phase"].as_str().unwrap_or("");
    let returns = volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete";
    if ending && phase != "Bound" {
        return match (held, returns) {
            (false, _) => Next::Nothing,
            (true, true) => Next::GiveBack,
            (true, false) => Next::LetGo,
        };
    }
    if phase == "Released" && returns {
        return Next::GiveBack;
    }
    let of = |claim: &&Value| claim["metadata"]["uid"] == volume["spec"]["claimRef"]["uid"];
    let Some(claim) = claims.iter().find(of) else {
        return Next::Nothing;
    };
    let class = &volume["spec"]["storageClassName"];
    let class = classes.iter().find(|it| it["metadata"]["name"] == *class);
    let may_grow = class.is_some_and(|class| class["allowVolumeExpansion"] == true);
    let size = rounded(requested(claim));
    let has = bytes(&claim["status"]["capacity"]["storage"]);
    if may_grow && phase == "Bound" && claim["status"]["phase"] == "Bound" && size > has {
        return Next::Grow { claim };
    }
    Next::Nothing
}

fn class(cluster: &str) -> Value {
    json!({
        "metadata": {
            "name": CLASS,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": DRIVER,
        "parameters": {
            "clusterID": cluster, "pool": "kubernetes", "imageFeatures": "layering",
            "csi.storage.k8s.io/fstype": "ext4",
        },
        "reclaimPolicy": "Delete",
        "allowVolumeExpansion": true,
        "mountOptions": ["discard"],
        "volumeBindingMode": "Immediate",
    })
}

fn persistent_volume(claim: &Value, class: &Value, storage: &Storage) -> Value {
    let (metadata, spec) = (&claim["metadata"], &claim["spec"]);
    let mut volume = json!({
        "metadata": {
            "name": volume_name(claim),
            "annotations": {PROVISIONED_BY: DRIVER},
            "finalizers": [FINALIZER],
        },
        "spec": {
            "capacity": {"storage": quantity(storage.size_bytes)},
            "accessModes": spec["accessModes"],
            "volumeMode": spec["volumeMode"],
            "persistentVolumeReclaimPolicy": class["reclaimPolicy"],
            "storageClassName": class["metadata"]["name"],
            "claimRef": {
                "kind": "PersistentVolumeClaim", "apiVersion": "v1",
                "namespace": metadata["namespace"], "name": metadata["name"],
                "uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"],
            },
            "csi": {
                "driver": DRIVER, "volumeHandle": storage.id,
                "volumeAttributes": class["parameters"],
            },
        },
    });
    if spec["volumeMode"] != "Block" {
        volume["spec"]["csi"]["fsType"] = json!("ext4");
    }
    if class["mountOptions"].is_array() {
        volume["spec"]["mountOptions"] = class["mountOptions"].clone();
    }
    volume
}

fn storages(access: &CloudAccess) -> String {
    format!("/v4/tenants/{}/storages", access.organisation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_up_and_written_short() {
        let check = |asked: &str, expect: &str| {
            assert_eq!(quantity(rounded(bytes(&json!(asked)))), expect, "{asked}");
        };
        check("1", "1Mi");
        check("100M", "96Mi");
        check("1023Mi", "1023Mi");
        check("1Gi", "1Gi");
        check("1.5Gi", "2Gi");
        check("10G", "10Gi");
        check("1Ti", "1024Gi");
    }

    #[test]
    fn a_volume_grows_with_its_claim_and_goes_as_its_policy_says() {
        let claims = [json!({
            "metadata": {"uid": "1"},
            "spec": {"resources": {"requests": {"storage": "2Gi"}}},
            "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}},
        })];
        let classes = [class("kubernetes_1")];
        let volume = || {
            json!({
                "metadata": {"finalizers": [FINALIZER]},
                "spec": {"persistentVolumeReclaimPolicy": "Delete", "storageClassName": CLASS,
                    "capacity": {"storage": "1Gi"}, "claimRef": {"uid": "1"}},
                "status": {"phase": "Bound"},
            })
        };
        let check = |change: &dyn Fn(&mut Value), expect: Next<'_>| {
            let mut volume = volume();
            change(&mut volume);
            assert_eq!(next(&volume, &claims, &classes), expect, "{volume}");
        };
        let ending = |it: &mut Value| it["metadata"]["deletionTimestamp"] = json!("now");
        let released = |it: &mut Value| {
            it["status"]["phase"] = json!("Released");
            it["spec"]["claimRef"]["uid"] = json!("2");
        };
        let retained = |it: &mut Value| {
            it["spec"]["persistentVolumeReclaimPolicy"] = json!("Retain");
        };
        check(&|_| {}, Next::Grow { claim: &claims[0] });
        check(&released, Next::GiveBack);
        check(
            &|it| {
                released(it);
                retained(it);
            },
            Next::Nothing,
        );
        check(
            &|it| {
                released(it);
                retained(it);
                ending(it);
            },
            Next::LetGo,
        );
        check(
            &|it| {
                released(it);
                ending(it);
                it["metadata"]["finalizers"] = json!([]);
            },
            Next::Nothing,
        );
        check(
            &|it| it["spec"]["storageClassName"] = json!("fixed"),
            Next::Nothing,
        );
    }

    #[test]
    fn a_file_system_is_of_one_node() {
        let check = |mode: &str, access: &str, expect: bool| {
            let claim = json!({"spec": {"volumeMode": mode, "accessModes": [access]}});
            assert_eq!(supported(&claim).is_ok(), expect, "{claim}");
        };
        check("Filesystem", "ReadWriteOnce", true);
        check("Filesystem", "ReadWriteMany", false);
        check("Block", "ReadWriteMany", true);
    }
}
