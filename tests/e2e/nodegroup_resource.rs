//! The NodeGroup resource with kubectl: the specification's passages, and agreement with the REST API.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Cke, FAST, text};
use crate::kubectl::Kubectl;

/// As the specification has it.
const EXAMPLE: &str = "\
apiVersion: api.clever-cloud.com/v1
kind: NodeGroup
metadata:
  name: example-nodegroup
spec:
  flavor: M
  nodeCount: 2
";

/// A small cluster, whose control plane leaves room for the example at 2 and not at 4.
fn cluster(cke: &Cke) -> (String, Kubectl) {
    let id = cke.create(&json!({"name": "demo",
        "topologyConfig": {"topology": "DEDICATED_COMPUTE", "flavor": "XS", "replicationFactor": 1}}));
    let path = format!("/clusters/{id}");
    cke.wait_for(&path, "ACTIVE");
    let kubeconfig = cke.kubernetes("GET", &format!("{path}/kubeconfig.yaml"), None);
    assert_eq!(kubeconfig.status, 200, "{kubeconfig:#?}");
    (path, Kubectl::new(&kubeconfig.body))
}

/// Waits until the NodeGroups are as they should be.
#[track_caller]
fn wait(kubectl: &Kubectl, satisfied: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let started = Instant::now();
    loop {
        let found = kubectl.json(&["get", "nodegroups"]);
        let items = found["items"].as_array().expect("items").clone();
        if satisfied(&items) {
            return items;
        }
        assert!(
            started.elapsed() < Duration::from_secs(90),
            "still {found:#}"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn is_synced(group: &Value, count: u64) -> bool {
    let status = &group["status"];
    group["spec"]["nodeCount"] == count
        && status["nodeCount"] == count
        && status["targetNodeCount"] == count
        && status["phase"] == "Synced"
        && condition(group, "Ready")["status"] == "True"
}

fn condition<'a>(group: &'a Value, kind: &str) -> &'a Value {
    let conditions = group["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    conditions
        .find(|condition| condition["type"] == kind)
        .unwrap_or(&Value::Null)
}

#[test]
fn the_example_of_the_specification() {
    let cke = Cke::start(FAST);
    let (path, kubectl) = cluster(&cke);
    let said = kubectl.run_with_input(&["create", "-f", "-"], EXAMPLE).ok();
    assert_eq!(
        said,
        "nodegroup.api.clever-cloud.com/example-nodegroup created\n"
    );
    let items = wait(&kubectl, |items| is_synced(&items[0], 2));

    let table = kubectl.ok(&["get", "nodegroups"]);
    let mut lines = table.lines();
    let columns: Vec<&str> = lines.next().unwrap_or("").split_whitespace().collect();
    assert_eq!(
        columns,
        [
            "NAME",
            "DESIREDNODECOUNT",
            "CURRENTNODECOUNT",
            "FLAVOR",
            "STATUS",
            "AGE"
        ]
    );
    let row: Vec<&str> = lines.next().unwrap_or("").split_whitespace().collect();
    assert_eq!(
        &row[..5],
        ["example-nodegroup", "2", "2", "M", "Synced"],
        "{table}"
    );
    let nodes = kubectl.ok(&["get", "nodes", "-o", "name"]);
    assert_eq!(
        nodes,
        "node/example-nodegroup-node0\nnode/example-nodegroup-node1\n"
    );
    let groups = cke.get(&format!("{path}/node-groups"));
    assert_eq!(groups[0]["name"], "example-nodegroup");
    assert_eq!(groups[0]["id"], items[0]["status"]["upstreamId"]);

    // Four of them are more memory than an organisation has.
    let scale = |count: &str| {
        let replicas = format!("--replicas={count}");
        kubectl.ok(&["scale", "nodegroup", "example-nodegroup", &replicas])
    };
    assert_eq!(
        scale("4"),
        "nodegroup.api.clever-cloud.com/example-nodegroup scaled\n"
    );
    let items = wait(&kubectl, |items| {
        items[0]["status"]["phase"] == "QuotaExceeded"
    });
    let failed = condition(&items[0], "ReconcileFailed");
    assert_eq!(failed["status"], "True");
    assert_eq!(failed["reason"], "QuotaExceeded");
    assert_eq!(
        failed["message"],
        "Quota exceeded: RAM max: limit = 40.0 GB | actual = 72.0 GB"
    );
    assert_eq!(
        cke.get(&format!("{path}/node-groups"))[0]["targetNodeCount"],
        2
    );
    scale("1");
    wait(&kubectl, |items| is_synced(&items[0], 1));
    assert_eq!(
        cke.get(&format!("{path}/node-groups"))[0]["targetNodeCount"],
        1
    );

    kubectl.ok(&["delete", "nodegroup", "example-nodegroup"]);
    assert_eq!(cke.get(&format!("{path}/node-groups")), json!([]));
    assert_eq!(kubectl.ok(&["get", "nodes", "-o", "name"]), "");
    cke.finish();
}

#[test]
fn what_is_done_over_the_rest_api_is_seen_inside() {
    let cke = Cke::start(FAST);
    let (path, kubectl) = cluster(&cke);
    let groups = format!("{path}/node-groups");
    let order = json!({"name": "workers", "flavor": "2XS", "targetNodeCount": 1,
        "minNodeCount": 1, "maxNodeCount": 3,
        "labels": {"tier": "back"}, "taints": [{"key": "k", "value": null, "effect": "NoSchedule"}]});
    let made = cke.kubernetes("POST", &groups, Some(&order)).ok();
    let group = format!("{groups}/{}", text(&made["id"]));
    let items = wait(&kubectl, |items| {
        items.first().is_some_and(|it| is_synced(it, 1))
    });
    assert_eq!(items[0]["metadata"]["name"], "workers");
    assert_eq!(items[0]["status"]["upstreamId"], made["id"]);
    assert_eq!(items[0]["spec"]["labels"], json!({"tier": "back"}));
    assert_eq!(
        items[0]["spec"]["taints"],
        json!([{"key": "k", "effect": "NoSchedule"}])
    );

    let body = json!({"name": "workers", "targetNodeCount": 2});
    cke.kubernetes("PATCH", &group, Some(&body)).ok();
    wait(&kubectl, |items| is_synced(&items[0], 2));
    kubectl.ok(&["scale", "nodegroup", "workers", "--replicas=3"]);
    cke.wait_until(&group, |it| {
        it["targetNodeCount"] == 3 && it["status"] == "READY"
    });
    wait(&kubectl, |items| is_synced(&items[0], 3));

    cke.kubernetes("DELETE", &group, None).ok();
    wait(&kubectl, <[Value]>::is_empty);
    assert_eq!(cke.get(&groups), json!([]));
    cke.finish();
}

/// What was asked for while nobody could act on it is made good, and nothing is made twice.
#[test]
fn a_crash_in_between_is_made_good() {
    let mut cke = Cke::start(FAST);
    let (path, kubectl) = cluster(&cke);
    kubectl.apply(&EXAMPLE.replace("flavor: M", "flavor: 2XS"));
    cke.restart();
    wait(&kubectl, |items| is_synced(&items[0], 2));
    kubectl.ok(&["delete", "nodegroup", "example-nodegroup", "--wait=false"]);
    cke.restart();
    wait(&kubectl, <[Value]>::is_empty);
    assert_eq!(cke.get(&format!("{path}/node-groups")), json!([]));
    cke.finish();
}
