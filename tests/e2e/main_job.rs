//! The README's transcript, line by line, with the real clever CLI and the real kubectl.

use serde_json::json;

use crate::clever::Clever;
use crate::harness::{Cke, FAST, text};
use crate::kubectl::Kubectl;

#[track_caller]
fn check_contains(said: &str, expect: &[&str]) {
    for part in expect {
        assert!(said.contains(part), "no {part:?} in:\n{said}");
    }
}

#[test]
fn the_readme_transcript() {
    let cke = Cke::start(FAST);
    let clever = Clever::fresh(&cke);

    // Without the feature the commands do not exist.
    clever
        .run(&["k8s", "list", "--org", cke.organisation()])
        .code_is(1);
    clever.ok(&["features", "enable", "k8s"]);
    check_contains(&clever.ok(&["k8s", "list"]), &["No cluster found"]);

    let said = clever.ok(&["k8s", "create", "demo"]);
    check_contains(
        &said,
        &["🚀 Cluster demo (kubernetes_", "is being deployed"],
    );
    check_contains(
        &clever.ok(&["k8s", "list"]),
        &["Found 1 cluster", "demo (kubernetes_"],
    );
    let cluster = wait(&clever, &["k8s", "get", "demo"], "ACTIVE");
    assert_eq!(
        cluster["topologyConfig"],
        json!({"topology": "ALL_IN_ONE", "flavor": "S", "replicationFactor": 1})
    );
    let said = clever.ok(&["k8s", "get", "demo"]);
    check_contains(&said, &["demo", "ACTIVE", "1.36", "ALL_IN_ONE", "S, rf=1"]);

    let said = clever.ok(&["k8s", "nodegroups", "create", "demo", "workers", "XS:2"]);
    check_contains(
        &said,
        &["🚀 Node group workers (node_group_", "is being deployed"],
    );
    let group = ["k8s", "nodegroups", "get", "demo", "workers"];
    wait(&clever, &group, "READY");
    let said = clever.ok(&["k8s", "nodegroups", "list", "demo"]);
    check_contains(&said, &["workers", "READY", "XS", "2/2", "disabled"]);
    check_contains(&clever.ok(&group), &["workers", "READY", "XS"]);

    let said = clever.ok(&[
        "k8s",
        "nodegroups",
        "update",
        "demo",
        "workers",
        "--count",
        "1",
    ]);
    check_contains(&said, &["Node group workers updated"]);
    let resized = wait(&clever, &group, "READY");
    assert_eq!(resized["targetNodeCount"], 1);
    assert_eq!(resized["currentNodeCount"], 1);

    let said = clever.ok(&["k8s", "quota"]);
    check_contains(&said, &["Max CPU", "Max RAM", "40"]);
    // One S bundle and one XS worker.
    let quota = clever.json(&["k8s", "quota"]);
    assert_eq!(quota["quota"]["vCPUMax"]["maximum"], 40_000);
    assert_eq!(quota["quota"]["ramMax"]["maximum"], 40);
    assert_eq!(quota["usage"]["cpuMillicores"], 8_000 + 6_000);
    assert_eq!(quota["usage"]["ramBytes"], (12_u64 + 8) << 30);

    let said = clever.ok(&["k8s", "activity", "demo"]);
    check_contains(
        &said,
        &[
            "CREATE",
            "NETWORK_GROUP",
            "MATERIA_LOGICALDB",
            "CONTROL_PLANE_BUNDLE",
            "LOAD_BALANCER",
            "PLUGIN",
            "COMPLETED",
            "NODEGROUP_CREATE",
            "NODEGROUP_SCALE",
        ],
    );

    let said = clever.ok(&["k8s", "version", "check", "demo"]);
    check_contains(&said, &["✓ demo is up-to-date (1.36)"]);
    let check = clever.json(&["k8s", "version", "check", "demo"]);
    assert_eq!(
        check,
        json!({"installed": "1.36", "latest": "1.36", "available": ["1.36"], "needUpdate": false}),
    );

    let said = clever.ok(&[
        "k8s",
        "update",
        "demo",
        "--description",
        "The first one",
        "--tag",
        "env:test,team:a",
    ]);
    check_contains(&said, &["Cluster demo updated"]);
    let cluster = clever.json(&["k8s", "get", "demo"]);
    assert_eq!(cluster["description"], "The first one");
    assert_eq!(cluster["tags"], json!(["env:test", "team:a"]));
    assert_eq!(cluster["features"]["csi"], json!(null));

    let said = clever.ok(&["k8s", "add-persistent-storage", "demo"]);
    check_contains(&said, &["Persistent storage successfully activated"]);
    let id = text(&cluster["id"]);
    let own = format!("/v4/kubernetes/organisations/{}", crate::harness::SEED_USER);
    wait(&clever, &["k8s", "get", "demo"], "ACTIVE");
    let cluster = clever.json(&["k8s", "get", "demo"]);
    assert_eq!(cluster["features"]["csi"], true);
    assert_eq!(cluster["storageUsageBytes"], 0);

    let kubeconfig = clever.ok(&["k8s", "get-kubeconfig", "demo"]);
    let kubectl = Kubectl::new(&kubeconfig);
    let nodes = kubectl.ok(&["get", "nodes"]);
    let lines: Vec<&str> = nodes.lines().collect();
    assert_eq!(lines.len(), 1 + 2, "{nodes}");
    assert!(lines[0].starts_with("NAME"), "{nodes}");
    for line in &lines[1..] {
        let columns: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(columns[1], "Ready", "{nodes}");
        assert_eq!(columns[2], "<none>", "{nodes}");
        assert_eq!(columns[4], "v1.36.0", "{nodes}");
    }
    assert!(nodes.contains("workers-node"), "{nodes}");

    let said = clever.ok(&["k8s", "nodegroups", "delete", "demo", "workers", "-y"]);
    check_contains(&said, &["Node group workers successfully deleted"]);
    let path = format!("{own}/clusters/{id}/node-groups");
    wait_http(&cke, &path, |groups| *groups == json!([]));

    let said = clever.ok(&["k8s", "delete", "demo", "-y"]);
    check_contains(&said, &["Kubernetes cluster demo successfully deleted"]);
    wait_http(&cke, &format!("{own}/clusters"), |clusters| {
        *clusters == json!([])
    });
    check_contains(&clever.ok(&["k8s", "list"]), &["No cluster found"]);
    let quota = clever.json(&["k8s", "quota"]);
    assert_eq!(quota["usage"], json!({"cpuMillicores": 0, "ramBytes": 0}));
    cke.finish();
}

/// Asks the CLI until the status is the one expected, as scripts do.
#[track_caller]
fn wait(clever: &Clever, command: &[&str], status: &str) -> serde_json::Value {
    for _ in 0..120 {
        let found = clever.json(command);
        if found["status"] == status {
            return found;
        }
        assert_ne!(found["status"], "FAILED", "{found:#}");
    }
    panic!("{command:?} never has the status {status}");
}

#[track_caller]
fn wait_http(cke: &Cke, target: &str, satisfied: impl Fn(&serde_json::Value) -> bool) {
    for _ in 0..2_000 {
        if satisfied(&cke.request("GET", target, None).ok()) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!(
        "{target} is still {}",
        cke.request("GET", target, None).body
    );
}

/// The one command that cannot be hurried: it plays a logo for 48 s.
#[test]
fn create_and_watch() {
    let cke = Cke::start(FAST);
    let clever = Clever::new(&cke);
    let organisation = cke.organisation();
    let said = clever.ok(&["k8s", "create", "watched", "--org", organisation, "--watch"]);
    check_contains(
        &said,
        &["✓ Cluster watched (kubernetes_", "deployed successfully"],
    );
    cke.finish();
}
