//! kill -9 in the middle of things: what was acknowledged reaches its end, and nothing is left over.

use serde_json::{Value, json};

use crate::harness::{Cke, text};

/// Slow enough to be met in the middle: a creation takes about three seconds.
const SLOW: &str = "20";

#[test]
fn in_the_middle_of_a_creation() {
    for step in [
        None,
        Some("NETWORK_GROUP"),
        Some("MATERIA_LOGICALDB"),
        Some("CONTROL_PLANE_BUNDLE"),
        Some("LOAD_BALANCER"),
        Some("PLUGIN"),
    ] {
        let mut cke = Cke::start(SLOW);
        let id = cke.create(&json!({"name": "demo",
            "topologyConfig": {"topology": "DEDICATED_COMPUTE", "flavor": "XS", "replicationFactor": 3},
            "nodeGroups": [{"name": "workers", "flavor": "2XS", "targetNodeCount": 2}]}));
        let path = format!("/clusters/{id}");
        if let Some(step) = step {
            cke.wait_until(&format!("{path}/deployment-events?limit=1000"), |events| {
                let mut events = events.as_array().expect("a list").iter();
                events.any(|event| event["stepName"] == step)
            });
        }
        cke.kill();
        cke.restart();
        let cluster = cke.wait_until(&path, settled);
        assert_eq!(cluster["nodeGroups"][0]["currentNodeCount"], 2, "{step:?}");
        assert_usage(&cke, 3 * 6 + 2 * 4, 3 * 8 + 2 * 4);
        cke.finish();
    }
}

#[test]
fn in_the_middle_of_a_resize() {
    for (target, seen) in [
        (4, "TO_RESIZE"),
        (4, "RESIZING"),
        (1, "TO_RESIZE"),
        (1, "RESIZING"),
    ] {
        let (mut cke, path) = cluster_with_workers();
        let group = text(&cke.get(&format!("{path}/node-groups"))[0]["id"]);
        let group = format!("{path}/node-groups/{group}");
        let body = json!({"name": "workers", "targetNodeCount": target});
        cke.kubernetes("PATCH", &group, Some(&body)).ok();
        cke.wait_until(&group, |group| {
            group["status"] == seen || group["status"] == "RESIZING"
        });
        cke.kill();
        cke.restart();
        let group = cke.wait_for(&group, "READY");
        assert_eq!(group["currentNodeCount"], target);
        assert_usage(&cke, 6 + target * 4, 8 + target * 4);
        cke.finish();
    }
}

#[test]
fn in_the_middle_of_a_deletion() {
    for seen in ["TO_DELETE", "DELETING"] {
        let (mut cke, path) = cluster_with_workers();
        cke.kubernetes("DELETE", &path, None).ok();
        cke.wait_until(&path, |cluster| {
            cluster["status"] == seen || cluster["status"] == "DELETING"
        });
        cke.kill();
        cke.restart();
        cke.wait_gone(&path);
        assert_eq!(cke.get("/usage"), json!([]));
        assert_eq!(cke.get("/clusters"), json!([]));
        cke.finish();
    }
}

/// Not once but again and again, without a chance to settle.
#[test]
fn over_and_over() {
    let mut cke = Cke::start(SLOW);
    let id = cke.create(&json!({"name": "demo",
        "nodeGroups": [{"name": "workers", "flavor": "2XS", "targetNodeCount": 2}]}));
    let path = format!("/clusters/{id}");
    for _ in 0..8 {
        cke.restart();
    }
    cke.wait_until(&path, settled);
    assert_usage(&cke, 6 + 2 * 4, 8 + 2 * 4);
    cke.finish();
}

/// What was said to be done is still done after a crash right behind the answer.
#[test]
fn right_after_the_answer() {
    let mut cke = Cke::start(SLOW);
    let mut expect = Vec::new();
    for count in 0..4 {
        let name = format!("demo-{count}");
        expect.push((cke.create(&json!({ "name": name })), name));
        cke.restart();
    }
    let clusters = cke.get("/clusters");
    let found: Vec<(String, String)> = clusters
        .as_array()
        .expect("a list")
        .iter()
        .map(|cluster| (text(&cluster["id"]), text(&cluster["name"])))
        .collect();
    assert_eq!(found, expect);
    for (id, _) in &expect {
        cke.wait_for(&format!("/clusters/{id}"), "ACTIVE");
    }
    cke.finish();
}

fn cluster_with_workers() -> (Cke, String) {
    let cke = Cke::start(SLOW);
    let id = cke.create(&json!({"name": "demo",
        "nodeGroups": [{"name": "workers", "flavor": "2XS", "targetNodeCount": 2}]}));
    let path = format!("/clusters/{id}");
    cke.wait_until(&path, settled);
    (cke, path)
}

pub fn settled(cluster: &Value) -> bool {
    assert_ne!(cluster["status"], "FAILED", "{cluster:#}");
    cluster["status"] == "ACTIVE" && cluster["nodeGroups"][0]["status"] == "READY"
}

#[track_caller]
fn assert_usage(cke: &Cke, vcpus: u64, gigabytes: u64) {
    let items = cke.get("/usage");
    let sum = |field: &str| -> u64 {
        let items = items.as_array().expect("the usage is a list").iter();
        items
            .map(|item| item[field].as_u64().expect("a number"))
            .sum()
    };
    assert_eq!(
        (sum("cpuMillicores"), sum("ramBytes")),
        (vcpus * 1_000, gigabytes << 30),
        "{items:#}"
    );
}
