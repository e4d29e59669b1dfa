//! What an owner has used, and what that costs.

use std::collections::BTreeMap;

use crate::clock::Timestamp;
use crate::infra::metering::Usage;

use super::billing::{self, Invoice, Item};
use super::model::{Cluster, OwnerId};
use super::{Platform, Result};

/// A cluster and the use of its control plane and node groups, by hour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumption {
    pub cluster: Cluster,
    pub items: Vec<(Item, BTreeMap<Timestamp, Usage>)>,
}

impl Platform {
    /// What the owner used from `from` until `until`, both full hours, as far as it is past.
    pub async fn invoice(
        &self,
        owner: &OwnerId,
        from: Timestamp,
        until: Timestamp,
    ) -> Result<Invoice> {
        let metered = self
            .inner
            .context
            .cloud
            .metered(&format!("{owner}/"))
            .await?;
        let clusters = self.store().clusters(owner).await?;
        let usage = billing::totals(&metered, from, until);
        Ok(billing::invoice(&usage, &clusters))
    }

    /// Every cluster that used something in that time, in the order of creation.
    pub async fn consumptions(
        &self,
        owner: &OwnerId,
        from: Timestamp,
        until: Timestamp,
    ) -> Result<Vec<Consumption>> {
        let metered = self
            .inner
            .context
            .cloud
            .metered(&format!("{owner}/"))
            .await?;
        let mut by_item = billing::hourly(&metered, from, until);
        let mut consumptions = Vec::new();
        for cluster in self.store().clusters(owner).await? {
            let others = by_item.split_off(&Item {
                cluster: cluster.id.clone(),
                node_group: None,
            });
            let (own, rest): (Vec<_>, Vec<_>) = others
                .into_iter()
                .partition(|(item, _)| item.cluster == cluster.id);
            by_item.extend(rest);
            if !own.is_empty() {
                consumptions.push(Consumption {
                    cluster,
                    items: own,
                });
            }
        }
        Ok(consumptions)
    }
}
