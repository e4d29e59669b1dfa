//! Each rule finds what breaks it.

use super::super::model::{CreateNodeGroup, Flavor, NodeGroupStatus};
use super::super::quota::Account;
use super::super::store::Record;
use super::super::testing::{BUNDLE, World, owner, request};
use super::*;

/// A snapshot of a world at rest, with a cluster and a group.
async fn at_rest() -> Snapshot {
    let world = World::new().await;
    let mut order = request("demo", BUNDLE);
    order.features.csi = true;
    order.node_groups = vec![CreateNodeGroup::new("default", Flavor::Xxs, 2)];
    let view = world
        .platform
        .create_cluster(&owner(), order)
        .await
        .unwrap();
    world.advance(90).await;
    let (cluster, group) = (&view.cluster.id, &view.node_groups[0].id);
    world
        .wait_for_group(cluster, group, NodeGroupStatus::Ready)
        .await;
    let owner = owner();
    let platform = &world.platform;
    let view = platform.get_cluster(&owner, cluster).await.unwrap();
    let mut account = Account::new(Ledger::new(owner), []);
    let holdings = [
        super::super::creation::cluster_holding(&view.cluster),
        super::super::creation::node_group_holding(&view.node_groups[0], 2),
    ];
    account.reserve(holdings.clone()).unwrap();
    let [of_cluster, of_group] = holdings;
    let of = super::super::store::CloudOwner::of_cluster(&view.cluster).to_string();
    let made = world.cloud.create_volume("volume", &of, 1 << 30).await;
    made.unwrap();
    let records = [
        Record::Cluster(view.cluster),
        Record::NodeGroup(view.node_groups[0].clone()),
        Record::Ledger(account.ledger),
        Record::Holding(of_cluster),
        Record::Holding(of_group),
    ];
    Snapshot::new(records.iter(), world.cloud.inventory().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_rule_finds_what_breaks_it() {
    let sound = at_rest().await;
    let check = |spoil: fn(&mut Snapshot), expect: &[&str]| {
        let mut snapshot = sound.clone();
        spoil(&mut snapshot);
        let found = check(&snapshot);
        let rules: BTreeSet<&str> = found.iter().map(|violation| violation.rule).collect();
        assert_eq!(rules.into_iter().collect::<Vec<_>>(), expect, "{found:#?}");
    };
    check(|_| {}, &[]);
    check(
        |s| {
            s.node_groups.clear();
        },
        &["ledger-leak", "vm-leak"],
    );
    check(|s| s.ledgers.clear(), &["ledger-missing"]);
    check(|s| s.holdings.clear(), &["ledger-missing", "ledger-sum"]);
    check(|s| s.ledgers[0].held.vcpus += 1, &["ledger-sum"]);
    check(|s| s.ledgers[0].limits.ram_gb = 16, &["quota"]);
    check(
        |s| s.node_groups[0].target_node_count = 3,
        &["ledger-amount", "ready-size"],
    );
    check(|s| s.node_groups[0].current_node_count = 1, &["node-count"]);
    check(
        |s| {
            let name = s.node_groups[0].nodes[0].name.clone();
            s.node_groups[0].nodes[1].name = name;
        },
        &["node-name"],
    );
    check(
        |s| {
            let twin = s.node_groups[0].nodes[0].id.clone();
            s.node_groups[0].nodes[1].id = twin;
        },
        &["vm-doubly-named", "vm-leak"],
    );
    check(
        |s| {
            s.inventory.vms.pop();
        },
        &["active-vm", "address-leak", "placement-leak"],
    );
    check(
        |s| {
            s.inventory.vms.remove(0);
        },
        &["address-leak", "placement-leak", "ready-node"],
    );
    check(
        |s| {
            s.inventory.addresses.pop_first();
        },
        &["address-missing"],
    );
    check(
        |s| s.inventory.vms[0].address = s.inventory.vms[1].address,
        &["address-leak", "address-twice"],
    );
    check(|s| s.inventory.hypervisors.clear(), &["placement-missing"]);
    check(
        |s| {
            for hypervisor in &mut s.inventory.hypervisors {
                hypervisor.capacity.vcpus = 1;
            }
        },
        &["hypervisor-capacity"],
    );
    check(
        |s| s.clusters[0].load_balancer = None,
        &["active-load-balancer"],
    );
    check(
        |s| s.clusters[0].features.csi = false,
        &["volume-without-storage"],
    );
    check(
        |s| s.inventory.volumes[0].used_bytes = (1 << 30) + 1,
        &["volume-usage"],
    );
    check(|s| s.inventory.volumes[0].metered_since = None, &["meter"]);
    check(|s| s.inventory.vms[0].metered_since = None, &["meter"]);
    check(
        |s| s.inventory.load_balancers[0].metered_since = Some(Timestamp(0)),
        &["meter"],
    );
    check(
        |s| s.clusters[0].status = ClusterStatus::Deleted,
        &[
            "deleted-cluster",
            "ledger-leak",
            "load-balancer-leak",
            "network-leak",
            "node-group-without-cluster",
            "volume-leak",
        ],
    );
}
