//! Deletes VMs that no record names, and volumes of clusters that are going.
//!
//! The other controllers record a VM before they ask for it, so there should be none. But a request that
//! was under way when its process was killed may reach the store after the next process has decided
//! otherwise: what nobody owns is found here, whatever made it.

use crate::infra::reflector::Change as Observed;
use crate::infra::{self, Requested, VmId};
use crate::platform::error::PlatformError;
use crate::platform::store::{self, CloudOwner, Record};

use super::{Context, Controller, Round};

pub(super) struct OrphanController {
    context: Context,
}

impl OrphanController {
    pub(super) fn new(context: Context) -> OrphanController {
        OrphanController { context }
    }

    /// Whether a record of the platform names the VM.
    fn is_named(&self, owner: &CloudOwner, vm: &VmId) -> bool {
        let key = match &owner.node_group {
            Some(group) => store::node_group_key(&owner.cluster, group),
            None => store::cluster_key(&owner.owner, &owner.cluster),
        };
        let record = self.context.store.view.get(&key);
        match record.as_ref().map(|stored| stored.record.as_ref()) {
            Some(Record::Cluster(cluster)) => {
                cluster.control_plane.iter().any(|own| own.id == vm.0)
            }
            Some(Record::NodeGroup(group)) => {
                group.nodes.iter().any(|node| node.id.as_str() == vm.0)
            }
            _ => false,
        }
    }
}

/// Keys of volumes begin so; the others are VMs.
const VOLUME: &str = "volume/";

impl OrphanController {
    /// A volume that was asked for while its cluster began to go has nobody to give it back.
    async fn volume(&self, id: &str) -> Result<(), PlatformError> {
        let Some(volume) = self.context.cloud.volume(id) else {
            return Ok(());
        };
        let Some(owner) = CloudOwner::parse(&volume.owner) else {
            return Ok(());
        };
        self.context.store.view.catch_up().await?;
        let key = store::cluster_key(&owner.owner, &owner.cluster);
        let record = self.context.store.view.get(&key);
        let stays = match record.as_ref().map(|stored| stored.record.as_ref()) {
            Some(Record::Cluster(cluster)) => !cluster.is_going(),
            _ => false,
        };
        if !stays {
            self.context.cloud.delete_volume(id).await?;
        }
        Ok(())
    }
}

impl Controller for OrphanController {
    fn name(&self) -> &'static str {
        "orphan"
    }

    fn on_record(&self, _change: &Observed<'_, Record>) -> Vec<String> {
        // Records let go of a VM only when it is gone.
        Vec::new()
    }

    fn on_cloud(
        &self,
        owner: Option<&CloudOwner>,
        change: &Observed<'_, infra::record::Record>,
    ) -> Vec<String> {
        match (owner, change.new.map(AsRef::as_ref)) {
            (Some(_), Some(infra::record::Record::Vm(vm)))
                if vm.requested == Requested::Running =>
            {
                vec![vm.spec.id.0.clone()]
            }
            (Some(_), Some(infra::record::Record::Volume(volume))) => {
                vec![format!("{VOLUME}{}", volume.id)]
            }
            _ => Vec::new(),
        }
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> Round<'a> {
        Box::pin(async move {
            if let Some(volume) = key.strip_prefix(VOLUME) {
                return self.volume(volume).await.map(|()| None);
            }
            let id = VmId::from(key);
            let Some(vm) = self.context.cloud.get_vm(&id) else {
                return Ok(None);
            };
            let Some(owner) = CloudOwner::parse(&vm.spec.owner) else {
                return Ok(None);
            };
            // The record came before the VM: whoever sees the VM must first see the record.
            self.context.store.view.catch_up().await?;
            if vm.requested == Requested::Running && !self.is_named(&owner, &id) {
                tracing::warn!(vm = %id, owner = %owner, "no record names this VM; deleting it");
                self.context.cloud.delete_vm(&id).await?;
            }
            Ok(None)
        })
    }
}
