//! What an owner may hold, and what it holds.
//!
//! Each owner has one ledger, a record with the limits and the sum of what is held; what each control plane and
//! node group reserves is a [`Holding`], a record of its own. Whatever creates, grows or removes one rewrites
//! the ledger in the same transaction, compared on its revision: so the sum can never be exceeded by requests
//! that race, and releasing twice is releasing once, as the entry is gone. An owner of thousands of clusters
//! pays for a change as much as one of two.
//!
//! What counts is what is asked for: a control plane's replicas and a group's target. While a VM is being
//! replaced, both it and its successor run; the successor does not count, so that an owner who is at the
//! limit is healed and updated like any other.
//!
//! Worked example (40 GB): a bundle S holds 12 GB. Two requests for a group of two S workers (24 GB) come
//! at once; both read the ledger at revision 9 and find that 36 GB would fit. The first commits and the
//! ledger is at revision 10; the second fails its comparison, reads again, and is refused with 60 GB.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

use super::error::PlatformError;
use super::identity;
use super::model::{ClusterId, Flavor, OwnerId, Quota, Topology, UsageItem, UsageItemType};

/// vCPU and memory, of one VM or of many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    pub vcpus: u64,
    /// Units of 1024³ bytes.
    pub ram_gb: u64,
}

impl Resources {
    pub fn of(flavor: Flavor, count: u32) -> Resources {
        let size = flavor.size();
        Resources {
            vcpus: u64::from(size.vcpus) * u64::from(count),
            ram_gb: u64::from(size.ram_gb) * u64::from(count),
        }
    }

    /// The lesser of each.
    pub fn at_most(self, bound: Resources) -> Resources {
        Resources {
            vcpus: self.vcpus.min(bound.vcpus),
            ram_gb: self.ram_gb.min(bound.ram_gb),
        }
    }

    /// What is left of it; nothing, where `other` is more.
    pub fn less(self, other: Resources) -> Resources {
        Resources {
            vcpus: self.vcpus.saturating_sub(other.vcpus),
            ram_gb: self.ram_gb.saturating_sub(other.ram_gb),
        }
    }

    /// Of all VMs of a control plane.
    pub fn of_control_plane(topology: &Topology) -> Resources {
        match topology {
            Topology::AllInOne {
                flavor,
                replication_factor,
            }
            | Topology::DedicatedCompute {
                flavor,
                replication_factor,
            } => Resources::of(*flavor, u32::from(*replication_factor)),
            Topology::Distributed { components } => super::model::Component::ALL
                .into_iter()
                .map(|component| components.get(component))
                .map(|config| Resources::of(config.flavor, u32::from(config.replication_factor)))
                .sum(),
        }
    }
}

impl std::iter::Sum for Resources {
    fn sum<I: Iterator<Item = Resources>>(parts: I) -> Resources {
        parts.fold(Resources::default(), |sum, part| Resources {
            vcpus: sum.vcpus.saturating_add(part.vcpus),
            ram_gb: sum.ram_gb.saturating_add(part.ram_gb),
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    pub vcpus: u64,
    pub ram_gb: u64,
    /// Public addresses for services; two make one load balancer.
    pub ips: u32,
}

/// Of every owner that has not asked for more (spec, "Quotas and limits").
pub const DEFAULT_LIMITS: Limits = Limits {
    vcpus: 40,
    ram_gb: 40,
    ips: 2,
};

/// What a control plane or a node group reserves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Holding {
    pub owner: OwnerId,
    /// Id of the cluster (its control plane) or node group.
    pub item: String,
    pub cluster: ClusterId,
    pub item_type: UsageItemType,
    pub resources: Resources,
    pub created_at: Timestamp,
}

impl Holding {
    pub fn usage(&self) -> UsageItem {
        UsageItem {
            id: format!("usage_{}", identity::uuid_of(&self.item)),
            cluster_id: self.cluster.clone(),
            owner: self.owner.clone(),
            item_type: self.item_type,
            cpu_millicores: self.resources.vcpus.saturating_mul(1000),
            ram_bytes: self.resources.ram_gb.saturating_mul(1 << 30),
            created_at: self.created_at,
            deactivated_at: None,
        }
    }
}

/// How much an owner may hold, and holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ledger {
    pub owner: OwnerId,
    pub limits: Limits,
    /// How many identifiers were minted for the owner: see [`identity::mint`].
    pub minted: u64,
    /// The sum of all holdings.
    pub held: Resources,
    /// Public addresses, by the id of the load balancer that has them: few, as each costs two of the quota.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub holdings_ips: BTreeMap<String, u32>,
    /// What was held when the limits were lowered, as far as it is still held: it may be over them, and
    /// may not grow.
    #[serde(default)]
    pub tolerated: Resources,
}

impl Ledger {
    pub fn new(owner: OwnerId) -> Ledger {
        Ledger {
            owner,
            limits: DEFAULT_LIMITS,
            minted: 0,
            held: Resources::default(),
            holdings_ips: BTreeMap::new(),
            tolerated: Resources::default(),
        }
    }

    pub fn total(&self) -> Resources {
        self.held
    }

    /// Whether `total` may be held. What does not grow always may.
    fn allow(&self, total: Resources) -> Result<(), PlatformError> {
        let exceeded = |item: &str, limit: u64, actual: u64, unit: &str| {
            Err(PlatformError::QuotaExceeded {
                item: item.to_owned(),
                limit: format!("{limit}.0 {unit}"),
                actual: format!("{actual}.0 {unit}"),
            })
        };
        if total.ram_gb > self.limits.ram_gb && total.ram_gb > self.held.ram_gb {
            return exceeded("RAM max", self.limits.ram_gb, total.ram_gb, "GB");
        }
        if total.vcpus > self.limits.vcpus && total.vcpus > self.held.vcpus {
            return exceeded("vCPU max", self.limits.vcpus, total.vcpus, "vCPU");
        }
        Ok(())
    }

    /// From now on these limits. What is held over them stays.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
        self.tolerated = self.total();
    }

    /// Whether what is held is within the limits, or was held when they were lowered.
    pub fn is_within_limits(&self) -> bool {
        let total = self.total();
        total.vcpus <= self.limits.vcpus.max(self.tolerated.vcpus)
            && total.ram_gb <= self.limits.ram_gb.max(self.tolerated.ram_gb)
    }

    pub fn total_ips(&self) -> u32 {
        let held = self.holdings_ips.values();
        held.fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Takes `count` public addresses for `id`, instead of those that it has. On an error nothing is changed.
    pub fn reserve_ips(&mut self, id: &str, count: u32) -> Result<(), PlatformError> {
        let before = self.holdings_ips.get(id).copied().unwrap_or(0);
        let total = self
            .total_ips()
            .saturating_sub(before)
            .saturating_add(count);
        if total > self.limits.ips && count > before {
            return Err(PlatformError::IpQuotaExceeded {
                limit: self.limits.ips,
                actual: total,
            });
        }
        self.holdings_ips.insert(id.to_owned(), count);
        Ok(())
    }

    /// Gives the addresses of `id` back. Nothing, the second time.
    pub fn release_ips(&mut self, id: &str) {
        self.holdings_ips.remove(id);
    }

    pub fn quota(&self) -> Quota {
        Quota {
            id: format!("quota_{}", identity::uuid_of(self.owner.as_str())),
            owner: self.owner.clone(),
            vcpu_millis_max: self.limits.vcpus.saturating_mul(1000),
            ram_gb_max: self.limits.ram_gb,
            ip_max: self.limits.ips,
        }
    }
}

/// An owner's ledger, with those of its holdings that are about to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub ledger: Ledger,
    /// By the id of the item, as they are to be.
    holdings: BTreeMap<String, Holding>,
    /// Items whose holding is another than was read, or gone.
    changed: BTreeSet<String>,
}

impl Account {
    /// `holdings` are all that there are of the items that will be asked for.
    pub fn new(ledger: Ledger, holdings: impl IntoIterator<Item = Holding>) -> Account {
        let by_item = |holding: Holding| (holding.item.clone(), holding);
        Account {
            ledger,
            holdings: holdings.into_iter().map(by_item).collect(),
            changed: BTreeSet::new(),
        }
    }

    pub fn holding(&self, item: &str) -> Option<&Holding> {
        self.holdings.get(item)
    }

    /// Takes `holdings` in, instead of those of the same items, if the limits allow all of them.
    /// What does not grow is always allowed. On an error nothing is changed.
    pub fn reserve(
        &mut self,
        holdings: impl IntoIterator<Item = Holding>,
    ) -> Result<(), PlatformError> {
        let mut after = self.clone();
        for holding in holdings {
            after.hold(holding);
        }
        self.ledger.allow(after.ledger.held)?;
        *self = after;
        Ok(())
    }

    /// As [`Account::reserve`], whatever the limits are.
    pub fn hold(&mut self, holding: Holding) {
        let (item, resources) = (holding.item.clone(), holding.resources);
        let before = self.holdings.insert(item.clone(), holding);
        self.count(before, resources);
        self.changed.insert(item);
    }

    /// Gives back what `item` holds. Nothing, the second time.
    pub fn release(&mut self, item: &str) {
        if let Some(before) = self.holdings.remove(item) {
            self.count(Some(before), Resources::default());
            self.changed.insert(item.to_owned());
        }
    }

    fn count(&mut self, before: Option<Holding>, after: Resources) {
        let ledger = &mut self.ledger;
        let before = before.map(|it| it.resources).unwrap_or_default();
        ledger.held = [ledger.held.less(before), after].into_iter().sum();
        ledger.tolerated = ledger.tolerated.at_most(ledger.held);
    }

    /// Items whose holding is another than was read; `None`: it is gone.
    pub fn changes(&self) -> impl Iterator<Item = (&str, Option<&Holding>)> {
        let items = self.changed.iter();
        items.map(|item| (item.as_str(), self.holdings.get(item)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    fn holding(item: &str, flavor: Flavor, count: u32) -> Holding {
        Holding {
            owner: ledger().owner,
            item: item.to_owned(),
            cluster: ClusterId::new(ulid::Ulid(1)),
            item_type: UsageItemType::NodeGroup,
            resources: Resources::of(flavor, count),
            created_at: Timestamp(0),
        }
    }

    fn ledger() -> Ledger {
        Ledger::new("orga_3547a882-e464-4c34-8168-add4b3e0c135".parse().unwrap())
    }

    fn account() -> Account {
        Account::new(ledger(), [])
    }

    #[test]
    fn a_request_over_the_limit_is_told_limit_and_actual() {
        let check = |flavor, count, expect: Option<&str>| {
            let mut account = account();
            let before = account.clone();
            let outcome = account.reserve([holding("a", flavor, count)]);
            let text = outcome.err().map(|error| error.to_string());
            assert_eq!(text.as_deref(), expect);
            assert_eq!(account == before, expect.is_some());
        };
        check(Flavor::Xs, 5, None);
        check(Flavor::Xxs, 10, None);
        check(
            Flavor::S,
            4,
            Some("Quota exceeded: RAM max: limit = 40.0 GB | actual = 48.0 GB"),
        );
        check(
            Flavor::Xxs,
            11,
            Some("Quota exceeded: RAM max: limit = 40.0 GB | actual = 44.0 GB"),
        );
    }

    #[test]
    fn two_addresses_make_one_load_balancer() {
        let mut ledger = ledger();
        let mut check = |id: &str, expect: Option<&str>| {
            let refused = ledger.reserve_ips(id, 2).err();
            assert_eq!(refused.map(|error| error.to_string()).as_deref(), expect);
        };
        check("a", None);
        check("a", None);
        check("b", Some("Quota exceeded: IP max: limit = 2 | actual = 4"));
        ledger.release_ips("a");
        ledger.release_ips("a");
        assert_eq!(ledger.total_ips(), 0);
        assert!(ledger.reserve_ips("b", 2).is_ok());
        // A record from before there were addresses in it.
        let mut old = serde_json::to_value(&ledger).unwrap();
        old.as_object_mut().unwrap().remove("holdings_ips");
        old.as_object_mut().unwrap().remove("holdingsIps");
        let read: Ledger = serde_json::from_value(old).unwrap();
        assert_eq!(read.total_ips(), 0);
    }

    #[test]
    fn a_holding_is_replaced_not_added() {
        let mut account = account();
        let mut check = |count, fits| {
            let outcome = account.reserve([holding("a", Flavor::Xs, count)]);
            assert_eq!(outcome.is_ok(), fits, "{count}");
        };
        check(4, true);
        check(5, true);
        check(6, false);
        check(1, true);
        account.release("a");
        account.release("a");
        assert_eq!(account.ledger.total(), Resources::default());
        assert_eq!(account.changes().collect::<Vec<_>>(), [("a", None)]);
    }

    #[test]
    fn what_is_held_over_lowered_limits_stays_and_cannot_grow() {
        let mut account = account();
        account.reserve([holding("a", Flavor::Xs, 4)]).unwrap();
        account.ledger.set_limits(Limits {
            vcpus: 8,
            ram_gb: 8,
            ips: 0,
        });
        assert!(account.ledger.is_within_limits());
        assert!(account.reserve([holding("b", Flavor::Xxs, 1)]).is_err());
        account.reserve([holding("a", Flavor::Xs, 2)]).unwrap();
        assert_eq!(account.ledger.tolerated, Resources::of(Flavor::Xs, 2));
        assert!(account.reserve([holding("a", Flavor::Xs, 3)]).is_err());
        assert!(account.ledger.is_within_limits());
        account.hold(holding("a", Flavor::Xs, 3));
        assert!(!account.ledger.is_within_limits());
    }

    proptest! {
        #[test]
        fn the_limits_hold_whatever_is_asked(
            requests in proptest::collection::vec((0u8..6, 0usize..6, 0u32..12, any::<bool>()), 0..40),
        ) {
            // As the store keeps them: each change reads the item's own holding alone.
            let (mut ledger, mut kept) = (ledger(), BTreeMap::new());
            for (id, flavor, count, release) in requests {
                let id = id.to_string();
                let mut account = Account::new(ledger.clone(), kept.get(&id).cloned());
                if release {
                    account.release(&id);
                } else {
                    let before = account.clone();
                    if account.reserve([holding(&id, Flavor::ALL[flavor], count)]).is_err() {
                        prop_assert_eq!(&account, &before);
                    }
                }
                for (item, holding) in account.changes() {
                    match holding {
                        Some(holding) => kept.insert(item.to_owned(), holding.clone()),
                        None => kept.remove(item),
                    };
                }
                ledger = account.ledger;
                let total = ledger.total();
                prop_assert!(total.vcpus <= 40 && total.ram_gb <= 40);
                prop_assert_eq!(total, kept.values().map(|it: &Holding| it.resources).sum());
            }
        }
    }
}
