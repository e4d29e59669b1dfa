//! Block volumes of clusters with persistent storage: what their CSI driver asks for, makes larger and gives
//! back. They are the cloud's, and kept there; here is who may have them.

use super::error::PlatformError;
use super::identity;
use super::model::{Cluster, ClusterId, OwnerId};
use super::store::CloudOwner;
use super::{Platform, Result};
use crate::clock::Timestamp;
use crate::infra::CloudError;
use crate::infra::volume::Volume;

/// 16 TiB: the largest file system of its kind (ext4 with blocks of 4 KiB).
pub const SIZE_LIMIT_BYTES: u64 = 1 << 44;
const NAME_LIMIT_BYTES: usize = 128;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageVolume {
    /// `storage_<uuid>`, which follows from cluster and name.
    pub id: String,
    pub owner: OwnerId,
    pub cluster: ClusterId,
    pub size_bytes: u64,
    /// At most `size_bytes`.
    pub used_bytes: u64,
    pub created_at: Timestamp,
}

/// None if it is not a cluster's of the platform's.
fn seen(volume: Volume) -> Option<StorageVolume> {
    let owner = CloudOwner::parse(&volume.owner)?;
    Some(StorageVolume {
        id: volume.id,
        owner: owner.owner,
        cluster: owner.cluster,
        size_bytes: volume.size_bytes,
        used_bytes: volume.used_bytes,
        created_at: volume.created_at,
    })
}

impl Platform {
    /// Makes a volume of the cluster's. Asked for again by the same name, it is the same; of another size, it
    /// is a conflict.
    pub async fn create_volume(
        &self,
        owner: &OwnerId,
        cluster: &ClusterId,
        name: &str,
        size_bytes: u64,
    ) -> Result<StorageVolume> {
        let found = self.store().cluster(owner, cluster).await?.value;
        check_size(size_bytes)?;
        if name.is_empty() || name.len() > NAME_LIMIT_BYTES {
            let reason = format!("must have 1 to {NAME_LIMIT_BYTES} bytes");
            return Err(PlatformError::invalid("name", name, reason));
        }
        may_have_volumes(&found)?;
        let uuid = identity::uuid_of(&format!("{cluster}/volume/{name}"));
        let id = format!("storage_{uuid}");
        let of = CloudOwner::of_cluster(&found).to_string();
        let cloud = &self.inner.context.cloud;
        let made = match cloud.create_volume(&id, &of, size_bytes).await {
            Err(CloudError::VolumeConflict(_)) => {
                let reason = format!("Storage {name} exists with another size");
                return Err(PlatformError::conflict(reason));
            }
            outcome => outcome?,
        };
        // A cluster that began to go meanwhile may have looked for its volumes before.
        let now = self.store().cluster(owner, cluster).await?.value;
        if let Err(refusal) = may_have_volumes(&now) {
            cloud.delete_volume(&id).await?;
            return Err(refusal);
        }
        seen(made).ok_or(PlatformError::VolumeNotFound(id))
    }

    /// Of all clusters of the owner, in the order of creation.
    pub async fn list_volumes(&self, owner: &OwnerId) -> Result<Vec<StorageVolume>> {
        let cloud = &self.inner.context.cloud;
        let volumes = cloud.volumes().await?.into_iter();
        let mut found: Vec<StorageVolume> = volumes
            .filter_map(seen)
            .filter(|volume| volume.owner == *owner)
            .collect();
        found.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        Ok(found)
    }

    pub async fn get_volume(&self, owner: &OwnerId, id: &str) -> Result<StorageVolume> {
        let found = self.list_volumes(owner).await?;
        let found = found.into_iter().find(|volume| volume.id == id);
        found.ok_or_else(|| PlatformError::VolumeNotFound(id.to_owned()))
    }

    /// Makes it larger. Smaller is refused: what is written would be lost.
    pub async fn resize_volume(
        &self,
        owner: &OwnerId,
        id: &str,
        size_bytes: u64,
    ) -> Result<StorageVolume> {
        let before = self.get_volume(owner, id).await?;
        check_size(size_bytes)?;
        if size_bytes < before.size_bytes {
            let reason = format!("must be at least {}", before.size_bytes);
            return Err(PlatformError::invalid("sizeBytes", size_bytes, reason));
        }
        match self.inner.context.cloud.resize_volume(id, size_bytes).await {
            // It went with its cluster a moment ago.
            Err(CloudError::VolumeNotFound(id)) => return Err(PlatformError::VolumeNotFound(id)),
            outcome => outcome?,
        }
        self.get_volume(owner, id).await
    }

    /// Removes the volume and what is on it. Returns what it was.
    pub async fn delete_volume(&self, owner: &OwnerId, id: &str) -> Result<StorageVolume> {
        let found = self.get_volume(owner, id).await?;
        self.inner.context.cloud.delete_volume(id).await?;
        Ok(found)
    }

    /// Bytes written to the cluster's volumes; none without persistent storage.
    pub(super) async fn storage_usage(&self, cluster: &Cluster) -> Result<Option<u64>> {
        if cluster.storage_usage_bytes.is_none() {
            return Ok(None);
        }
        let of = CloudOwner::of_cluster(cluster).to_string();
        let volumes = self.inner.context.cloud.volumes().await?;
        let own = volumes.iter().filter(|volume| volume.owner == of);
        let used = own.fold(0u64, |sum, volume| sum.saturating_add(volume.used_bytes));
        Ok(Some(used))
    }
}

fn check_size(size_bytes: u64) -> Result<()> {
    if (1..=SIZE_LIMIT_BYTES).contains(&size_bytes) {
        return Ok(());
    }
    let reason = format!("must be between 1 and {SIZE_LIMIT_BYTES}");
    Err(PlatformError::invalid("sizeBytes", size_bytes, reason))
}

fn may_have_volumes(cluster: &Cluster) -> Result<()> {
    if cluster.is_going() {
        return Err(PlatformError::wrong_state(format!(
            "Cannot create storage for cluster {}: status is {}",
            cluster.id, cluster.status
        )));
    }
    if !cluster.features.csi {
        return Err(PlatformError::wrong_state(format!(
            "Persistent storage is not activated on cluster {}",
            cluster.id
        )));
    }
    Ok(())
}
