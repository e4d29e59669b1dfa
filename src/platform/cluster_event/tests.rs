//! What records' changes are told as.

use super::super::creation;
use super::super::model::{CreateCluster, CreateNodeGroup, OwnerId, Topology};
use super::super::quota::Ledger;
use super::super::validation;
use super::*;

const NOW: Timestamp = Timestamp(1_000_000);

fn owner() -> OwnerId {
    "orga_3547a882-e464-4c34-8168-add4b3e0c135".parse().unwrap()
}

fn cluster() -> Cluster {
    let order = validation::cluster_order(
        CreateCluster {
            topology: Some(Topology::AllInOne {
                flavor: Flavor::S,
                replication_factor: 1,
            }),
            name: String::from("demo"),
            ..CreateCluster::default()
        },
        &super::super::Catalog::default(),
    );
    creation::cluster(&order.unwrap(), &mut Ledger::new(owner()), 0, NOW)
}

fn group() -> NodeGroup {
    let order = validation::node_group_order(CreateNodeGroup::new("w", Flavor::Xxs, 1));
    let cluster = cluster().id;
    let ledger = &mut Ledger::new(owner());
    creation::node_group(&order.unwrap(), &cluster, false, ledger, 0, NOW)
}

/// The events in short.
fn brief(events: &[ClusterEvent]) -> Vec<String> {
    let brief = |event: &ClusterEvent| match event {
        ClusterEvent::Status { status, failure } => {
            let failure = failure.as_ref().map(|it| it.message.as_str());
            format!("{status} {}", failure.unwrap_or_default())
        }
        ClusterEvent::Item {
            item_type, status, ..
        } => format!("{item_type} {status}"),
        ClusterEvent::Node { name, status, .. } => format!("{name} {status}"),
    };
    let texts = events.iter().map(brief);
    texts.map(|text| text.trim_end().to_owned()).collect()
}

#[test]
fn each_step_brings_its_items_and_the_end_takes_all_of_them() {
    let created = cluster();
    assert_eq!(brief(&of_cluster(None, &created, &[])), ["TO_DEPLOY"]);
    assert!(of_cluster(Some(&created), &created, &[]).is_empty());
    let mut networked = created.clone();
    networked.status = ClusterStatus::Deploying;
    networked.deployed_step = Some(Step::LoadBalancerNetwork);
    let told = of_cluster(Some(&created), &networked, &[]);
    let expect = [
        "NETWORK_GROUP ACTIVE",
        "LOADBALANCER_NETWORK ACTIVE",
        "DEPLOYING",
    ];
    assert_eq!(brief(&told), expect);
    let mut whole = networked.clone();
    whole.deployed_step = Some(Step::Plugin);
    whole.control_plane[0].life.served = true;
    whole.features.csi = true;
    let told = brief(&of_cluster(Some(&networked), &whole, &[]));
    let count = |what: &str| told.iter().filter(|it| it.starts_with(what)).count();
    assert_eq!(count("PLUGIN ACTIVE"), Plugin::ALL.len());
    for item in [
        "MATERIA_LOGICALDB",
        "OTEL_CONFIG",
        "COMPONENT_BUNDLE",
        "STORAGE",
    ] {
        assert_eq!(count(item), 1, "{item}: {told:?}");
    }
    let mut deleted = whole.clone();
    deleted.status = ClusterStatus::Deleted;
    deleted.control_plane.clear();
    let told = brief(&of_cluster(Some(&whole), &deleted, &[]));
    assert_eq!(told.last().map(String::as_str), Some("DELETED"));
    assert_eq!(told.len(), items(&whole).len() + 1);
    assert!(
        told[..told.len() - 1]
            .iter()
            .all(|it| it.ends_with("DELETED"))
    );
}

#[test]
fn a_bundle_is_one_while_it_serves_and_says_what_it_hosts() {
    let mut before = cluster();
    let mut after = before.clone();
    after.control_plane[0].life.served = true;
    let told = of_cluster(Some(&before), &after, &[]);
    let [
        ClusterEvent::Item {
            data: Some(data), ..
        },
    ] = told.as_slice()
    else {
        panic!("{told:?}");
    };
    let data = serde_json::to_value(data).unwrap();
    assert_eq!(data["type"], "PublicControlPlaneBundleData");
    assert_eq!(data["topologyType"], "ALL_IN_ONE");
    assert_eq!(data["vmData"]["resourcesSpec"]["cpuMillicores"], 8000);
    assert_eq!(data["components"][0]["type"], "PublicApiServer");
    assert_eq!(data["components"][0]["componentType"], "APISERVER");
    assert_eq!(data["components"][5]["name"], "control-plane-node0");
    before = after.clone();
    after.control_plane.clear();
    let told = of_cluster(Some(&before), &after, &[]);
    assert_eq!(brief(&told), ["COMPONENT_BUNDLE DELETED"]);
}

#[test]
fn a_failure_says_what_failed_and_why() {
    let before = cluster();
    let mut after = before.clone();
    after.status = ClusterStatus::Failed;
    let failed = |step| {
        let kind = OperationKind::Create;
        DeploymentEvent::new(NOW, kind, step, EventStatus::Failed).because("it took too long")
    };
    let told = [failed(Some(Step::ControlPlaneBundle)), failed(None)];
    let told = of_cluster(Some(&before), &after, &told);
    assert_eq!(brief(&told), ["FAILED it took too long"]);
}

#[test]
fn nodes_are_told_of_from_the_first_to_the_last() {
    let empty = group();
    assert_eq!(
        brief(&of_node_group(None, Some(&empty))),
        ["NODE_GROUP ACTIVE"]
    );
    let mut one = empty.clone();
    let node: Node = serde_json::from_value(serde_json::json!({
        "id": "node_01KTREJ0000000000000000000", "name": "w-node0", "number": 0, "status": "DEPLOYING",
        "datacenter": "par-1", "createdAt": 0, "version": "1.36", "life": {},
    }))
    .unwrap();
    one.nodes.push(node);
    let told = of_node_group(Some(&empty), Some(&one));
    assert_eq!(brief(&told), ["w-node0 DEPLOYING"]);
    let mut failed = one.clone();
    failed.nodes[0].status = NodeStatus::Failed;
    let told = of_node_group(Some(&one), Some(&failed));
    let [
        ClusterEvent::Node {
            failure: Some(failure),
            ..
        },
    ] = told.as_slice()
    else {
        panic!("{told:?}");
    };
    assert_eq!(failure.operation, OperationKind::NodeGroupCreate);
    assert_eq!(failure.message, "the VM did not start");
    let told = of_node_group(Some(&failed), None);
    assert_eq!(brief(&told), ["w-node0 DELETED", "NODE_GROUP DELETED"]);
}
