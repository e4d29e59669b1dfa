//! Requests about block volumes.

use crate::etcd::client::{delete, mod_revision_is};
use crate::infra::record::{self, Record};
use crate::infra::volume::Volume;

use super::{ATTEMPTS, Cloud, CloudError, Result, encode, metering};

impl Cloud {
    /// Requests a volume. Idempotent by id; another owner or size is a [`CloudError::VolumeConflict`].
    pub async fn create_volume(&self, id: &str, owner: &str, size_bytes: u64) -> Result<Volume> {
        if size_bytes == 0 {
            return Err(CloudError::OutOfRange {
                what: "the size of a volume",
                least: 1,
                most: u64::MAX,
                given: size_bytes,
            });
        }
        let key = key(id);
        self.inner.records.catch_up().await?;
        for _ in 0..ATTEMPTS {
            if let Some(existing) = self.volume(id) {
                return if existing.owner == owner && existing.size_bytes == size_bytes {
                    Ok(existing)
                } else {
                    Err(CloudError::VolumeConflict(id.to_owned()))
                };
            }
            let now = self.inner.clock.now();
            let volume = Volume {
                id: id.to_owned(),
                owner: owner.to_owned(),
                size_bytes,
                used_bytes: 0,
                created_at: now,
                metered_since: Some(now),
            };
            let compare = vec![mod_revision_is(key.clone(), 0)];
            if self.commit(compare, vec![encode(&key, &volume)?]).await? {
                return Ok(volume);
            }
        }
        Err(CloudError::Contention(key))
    }

    /// Makes a volume larger. What is written is not lost, so it cannot become smaller.
    pub async fn resize_volume(&self, id: &str, size_bytes: u64) -> Result<()> {
        self.change_volume(id, |volume| {
            volume.size_bytes = in_bytes(size_bytes, volume.size_bytes, u64::MAX)?;
            Ok(())
        })
        .await
    }

    /// Says how much of a volume is written: at most all of it.
    pub async fn set_volume_usage(&self, id: &str, used_bytes: u64) -> Result<()> {
        self.change_volume(id, |volume| {
            volume.used_bytes = in_bytes(used_bytes, 0, volume.size_bytes)?;
            Ok(())
        })
        .await
    }

    async fn change_volume(
        &self,
        id: &str,
        change: impl Fn(&mut Volume) -> Result<()>,
    ) -> Result<()> {
        let key = key(id);
        self.inner.records.catch_up().await?;
        for _ in 0..ATTEMPTS {
            let stored = self.inner.records.get(&key);
            let Some((Record::Volume(volume), revision)) = stored
                .as_ref()
                .map(|stored| (stored.record.as_ref(), stored.mod_revision))
            else {
                return Err(CloudError::VolumeNotFound(id.to_owned()));
            };
            let mut next = volume.clone();
            change(&mut next)?;
            if next == *volume {
                return Ok(());
            }
            let mut changes = Vec::new();
            if next.size_bytes != volume.size_bytes
                && let Some(stored) = &stored
            {
                let now = self.inner.clock.now();
                changes.extend(metering::close(&stored.record, now)?);
                next.metered_since = Some(now);
            }
            changes.push(encode(&key, &next)?);
            let compare = vec![mod_revision_is(key.clone(), revision)];
            if self.commit(compare, changes).await? {
                return Ok(());
            }
        }
        Err(CloudError::Contention(key))
    }

    /// Removes a volume with what is on it. Idempotent.
    pub async fn delete_volume(&self, id: &str) -> Result<()> {
        let key = key(id);
        self.inner.records.catch_up().await?;
        for _ in 0..ATTEMPTS {
            let Some(stored) = self.inner.records.get(&key) else {
                return Ok(());
            };
            let now = self.inner.clock.now();
            let mut changes = vec![delete(key.clone())];
            changes.extend(metering::close(&stored.record, now)?);
            let compare = vec![mod_revision_is(key.clone(), stored.mod_revision)];
            if self.commit(compare, changes).await? {
                return Ok(());
            }
        }
        Err(CloudError::Contention(key))
    }

    pub fn volume(&self, id: &str) -> Option<Volume> {
        match self.inner.records.get(&key(id))?.record.as_ref() {
            Record::Volume(volume) => Some(volume.clone()),
            _ => None,
        }
    }

    /// All that there are as of now, in the order of their ids.
    pub async fn volumes(&self) -> Result<Vec<Volume>> {
        self.inner.records.catch_up().await?;
        let listed = self.inner.records.list(record::VOLUME);
        let volumes = listed
            .iter()
            .filter_map(|(_, stored)| match stored.record.as_ref() {
                Record::Volume(volume) => Some(volume.clone()),
                _ => None,
            });
        Ok(volumes.collect())
    }

    /// In the order of their ids.
    pub fn volumes_of(&self, owner: &str) -> Vec<Volume> {
        let listed = self.inner.records.list(record::VOLUME);
        listed
            .iter()
            .filter_map(|(_, stored)| match stored.record.as_ref() {
                Record::Volume(volume) if volume.owner == owner => Some(volume.clone()),
                _ => None,
            })
            .collect()
    }
}

fn in_bytes(given: u64, least: u64, most: u64) -> Result<u64> {
    if (least..=most).contains(&given) {
        return Ok(given);
    }
    Err(CloudError::OutOfRange {
        what: "a number of bytes of the volume",
        least,
        most,
        given,
    })
}

fn key(id: &str) -> String {
    format!("{}{id}", record::VOLUME)
}
