//! All topologies and replication factors: what fits the quota of 40 vCPU and 40 GB is deployed as
//! asked, what does not is refused.

use serde_json::{Value, json};

use crate::clever::Clever;
use crate::harness::{Cke, FAST, text};

/// vCPU and GB of a flavor, and how many VMs of it a control plane has.
fn size(flavor: &str) -> (u64, u64) {
    match flavor {
        "2XS" => (4, 4),
        "XS" => (6, 8),
        "S" => (8, 12),
        "M" => (10, 16),
        "L" => (12, 24),
        "XL" => (16, 32),
        other => panic!("no flavor {other}"),
    }
}

#[test]
fn every_topology_and_replication_factor() {
    let cke = Cke::start(FAST);
    let clever = Clever::new(&cke);
    let organisation = cke.organisation().to_owned();
    for (topology, flavor, vms_per_replica) in [
        ("ALL_IN_ONE", "S", 1),
        ("DEDICATED_COMPUTE", "XS", 1),
        ("DISTRIBUTED", "2XS", 5),
    ] {
        for replicas in 1..=5 {
            let name = format!("{}-{replicas}", topology.to_lowercase().replace('_', "-"));
            let said = clever.run(&[
                "k8s",
                "create",
                &name,
                "--org",
                &organisation,
                "--topology",
                topology,
                "--flavor",
                flavor,
                "--replication-factor",
                &replicas.to_string(),
            ]);
            let vms = replicas * vms_per_replica;
            let (vcpus, gigabytes) = size(flavor);
            let (vcpus, gigabytes) = (vms * vcpus, vms * gigabytes);
            if vcpus > 40 || gigabytes > 40 {
                let stderr = said.failed();
                assert!(
                    stderr.contains("Failed to create Kubernetes cluster: your quota exceeded"),
                    "{name}: {stderr}"
                );
                assert_eq!(cke.get("/usage"), json!([]), "{name}");
                continue;
            }
            said.ok();
            let clusters = cke.get("/clusters");
            let id = text(&clusters[0]["id"]);
            let path = format!("/clusters/{id}");
            let cluster = cke.wait_for(&path, "ACTIVE");
            let part = json!({"flavor": flavor, "replicationFactor": replicas});
            let expect = match topology {
                "DISTRIBUTED" => json!({"topology": topology, "components": {
                    "apiserver": part, "controllerManager": part, "scheduler": part,
                    "nodeGroupOperator": part, "cloudControllerManager": part}}),
                _ => json!({"topology": topology, "flavor": flavor, "replicationFactor": replicas}),
            };
            assert_eq!(cluster["topologyConfig"], expect, "{name}");
            assert_eq!(usage(&cke), (vcpus * 1_000, gigabytes << 30), "{name}");
            cke.check_invariants();
            clever.ok(&["k8s", "delete", &id, "--org", &organisation, "-y"]);
            cke.wait_gone(&path);
            assert_eq!(usage(&cke), (0, 0), "{name}");
        }
    }
    cke.finish();
}

fn usage(cke: &Cke) -> (u64, u64) {
    let items = cke.get("/usage");
    let sum = |field: &str| {
        let items = items.as_array().expect("the usage is a list").iter();
        items
            .map(|item| item[field].as_u64().expect("a number"))
            .sum()
    };
    (sum("cpuMillicores"), sum("ramBytes"))
}

/// Clients other than the CLI give each component its own size.
#[test]
fn components_have_their_own_sizes() {
    let cke = Cke::start(FAST);
    let part =
        |flavor: &str, replicas: u64| json!({"flavor": flavor, "replicationFactor": replicas});
    let components = json!({
        "apiserver": part("2XS", 3), "controllerManager": part("2XS", 1), "scheduler": part("XS", 1),
        "nodeGroupOperator": part("2XS", 1), "cloudControllerManager": part("2XS", 2)});
    let topology = json!({"topology": "DISTRIBUTED", "components": components});
    let id = cke.create(&json!({"name": "mixed", "topologyConfig": topology}));
    let cluster = cke.wait_for(&format!("/clusters/{id}"), "ACTIVE");
    assert_eq!(cluster["topologyConfig"], topology);
    assert_eq!(usage(&cke), ((7 * 4 + 6) * 1_000, (7 * 4 + 8) << 30));
    let clever = Clever::new(&cke);
    let said = clever.ok(&["k8s", "get", "mixed", "--org", cke.organisation()]);
    assert!(said.contains("Control plane components"), "{said}");
    cke.finish();
}

/// The options of `create` that shape more than the control plane.
#[test]
fn options_of_create() {
    let cke = Cke::start(FAST);
    let clever = Clever::new(&cke);
    let organisation = cke.organisation();
    clever.ok(&[
        "k8s",
        "create",
        "full",
        "--org",
        organisation,
        "--topology",
        "dedicated_compute",
        "--flavor",
        "xs",
        "--replication-factor",
        "1",
        "--cluster-version",
        "1.35",
        "--description",
        "Prod",
        "--tag",
        "env:prod,team:x",
        "--autoscaling",
        "--persistent-storage",
        "--nodegroup",
        "s:2",
    ]);
    let id = text(&cke.get("/clusters")[0]["id"]);
    let cluster = cke.wait_until(&format!("/clusters/{id}"), |cluster: &Value| {
        cluster["status"] == "ACTIVE" && cluster["nodeGroups"][0]["status"] == "READY"
    });
    assert_eq!(cluster["name"], "full");
    assert_eq!(cluster["tenantId"], organisation);
    assert_eq!(cluster["description"], "Prod");
    assert_eq!(cluster["tags"], json!(["env:prod", "team:x"]));
    assert_eq!(cluster["version"], "1.35");
    assert_eq!(cluster["locationId"], "par");
    assert_eq!(
        cluster["features"],
        json!({"csi": true, "registries": null, "autoscalingEnabled": true})
    );
    let group = &cluster["nodeGroups"][0];
    assert_eq!(group["name"], "default");
    assert_eq!(group["flavor"], "S");
    assert_eq!(group["currentNodeCount"], 2);
    let nodes: Vec<&str> = group["nodes"]
        .as_array()
        .expect("nodes are a list")
        .iter()
        .map(|node| node["name"].as_str().expect("a name"))
        .collect();
    assert_eq!(nodes, ["default-node0", "default-node1"]);
    assert_eq!(group["nodes"][0]["vCpus"], 8);
    assert_eq!(group["nodes"][0]["ramBytes"], 12_u64 << 30);
    assert_eq!(group["nodes"][0]["status"], "READY");
    cke.finish();
}

/// A client that sends nothing but a name gets the server's default.
#[test]
fn the_default_topology_of_the_server() {
    let cke = Cke::start(FAST);
    let id = cke.create_active("bare");
    let cluster = cke.get(&format!("/clusters/{id}"));
    assert_eq!(
        cluster["topologyConfig"],
        json!({"topology": "DEDICATED_COMPUTE", "flavor": "XS", "replicationFactor": 1})
    );
    assert_eq!(cluster["version"], "1.36");
    assert_eq!(cluster["description"], json!(null));
    assert_eq!(cluster["storageUsageBytes"], json!(null));
    assert_eq!(cluster["nodeGroups"], json!([]));
    assert_eq!(cluster["standaloneNodeGroups"], json!([]));
    assert_eq!(cluster["loadBalancers"].as_array().map(Vec::len), Some(1));
    cke.finish();
}
