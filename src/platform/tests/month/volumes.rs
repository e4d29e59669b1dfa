//! Volumes in a month: asked for, made larger and given back as a cluster's CSI driver does, and what of them
//! there must then be.

use std::collections::BTreeMap;

use crate::infra::Inventory;
use crate::platform::model::{Cluster, ClusterId, ClusterStatus};
use crate::platform::testing::{World, owner};
use crate::platform::volumes::StorageVolume;

use super::drive::{Outcome, fault, pick, request};
use super::step::VolumeStep;

const MIB: u64 = 1 << 20;

/// What was granted and not given back.
#[derive(Default)]
pub struct Volumes {
    known: BTreeMap<String, Known>,
    asked: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    cluster: ClusterId,
    size_bytes: u64,
    used_bytes: u64,
}

impl Volumes {
    /// Whether the step was granted.
    pub async fn step(
        &mut self,
        world: &World,
        clusters: &[Cluster],
        step: &VolumeStep,
    ) -> Outcome<bool> {
        let (platform, owner) = (&world.platform, owner());
        let found = platform.list_volumes(&owner).await;
        let found = found.map_err(|error| error.to_string())?;
        let volume = |number| pick(&found, number).cloned();
        match *step {
            VolumeStep::Create { cluster, mib } => {
                let Some(cluster) = pick(clusters, cluster) else {
                    return Ok(false);
                };
                self.asked += 1;
                let (name, size) = (format!("pvc-{}", self.asked), u64::from(mib) * MIB);
                let made = platform
                    .create_volume(&owner, &cluster.id, &name, size)
                    .await;
                self.keep(made, size)
            }
            VolumeStep::Grow { volume: which, mib } => {
                let Some(it) = volume(which) else {
                    return Ok(false);
                };
                let size = it.size_bytes + u64::from(mib) * MIB;
                let grown = platform.resize_volume(&owner, &it.id, size).await;
                self.keep(grown, size)
            }
            VolumeStep::Delete(which) => {
                let Some(it) = volume(which) else {
                    return Ok(false);
                };
                self.known.remove(&it.id);
                request(platform.delete_volume(&owner, &it.id).await)
            }
            VolumeStep::Write {
                volume: which,
                percent,
            } => {
                let Some(it) = volume(which) else {
                    return Ok(false);
                };
                let used = it.size_bytes / 100 * percent;
                let written = fault(world.cloud.set_volume_usage(&it.id, used).await)?;
                if let Some(known) = self.known.get_mut(&it.id) {
                    known.used_bytes = used;
                }
                Ok(written)
            }
        }
    }

    fn keep(
        &mut self,
        granted: Result<StorageVolume, crate::platform::PlatformError>,
        size: u64,
    ) -> Outcome<bool> {
        if let Ok(volume) = &granted {
            if volume.size_bytes != size {
                return Err(format!("{volume:?} is not of {size} bytes"));
            }
            let known = Known {
                cluster: volume.cluster.clone(),
                size_bytes: size,
                used_bytes: volume.used_bytes,
            };
            self.known.insert(volume.id.clone(), known);
        }
        request(granted)
    }

    /// What is not as it was granted: of clusters that are gone nothing may be left, and of the others all.
    pub fn check(&mut self, clusters: &[Cluster], inventory: &Inventory) -> Vec<String> {
        let lives = |id: &ClusterId| {
            let of = clusters.iter().find(|cluster| cluster.id == *id);
            of.is_some_and(|cluster| cluster.status != ClusterStatus::Deleted)
        };
        self.known.retain(|_, known| lives(&known.cluster));
        let mut found = Vec::new();
        for volume in &inventory.volumes {
            let as_known = self.known.get(&volume.id).is_some_and(|known| {
                let owned = volume.owner.ends_with(known.cluster.as_str());
                owned
                    && (known.size_bytes, known.used_bytes)
                        == (volume.size_bytes, volume.used_bytes)
            });
            if !as_known {
                found.push(format!("nobody was granted {volume:?}"));
            }
        }
        for (id, known) in &self.known {
            if !inventory.volumes.iter().any(|volume| volume.id == *id) {
                found.push(format!("{id} is lost: {known:?}"));
            }
        }
        found
    }
}
