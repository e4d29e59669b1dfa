//! What happens to clusters as clients are told it: the steps that `clever k8s activity` shows, the unified
//! stream of newer clients, and the states of operations that fail, are resumed, and are deleted midway.

use serde_json::{Value, json};

use crate::clever::Clever;
use crate::harness::{Cke, MANUAL, text};

/// Newest first.
fn events(cke: &Cke, id: &str, limit: u32) -> Vec<Value> {
    let events = cke.get(&format!("/clusters/{id}/events?limit={limit}"));
    events.as_array().expect("events").clone()
}

#[test]
fn a_cluster_is_told_of_from_its_first_item_to_its_last() {
    let cke = Cke::start(MANUAL);
    let clever = Clever::new(&cke);
    let organisation = cke.organisation();
    let id = cke.create(&json!({"name": "told",
        "topologyConfig": {"topology": "DEDICATED_COMPUTE", "flavor": "XS", "replicationFactor": 2},
        "features": {"csi": true},
        "nodeGroups": [{"name": "workers", "flavor": "2XS", "targetNodeCount": 1}]}));
    let path = format!("/clusters/{id}");
    cke.wait_for(&path, "ACTIVE");
    cke.advance(120);

    // The steps of the creation, as the CLI shows them.
    let activity = clever.json(&[
        "k8s",
        "activity",
        "told",
        "--limit",
        "1000",
        "--org",
        organisation,
    ]);
    let completed =
        |event: &&Value| event["operation"] == "CREATE" && event["status"] == "COMPLETED";
    let mut steps: Vec<&str> = activity
        .as_array()
        .expect("events")
        .iter()
        .filter(completed)
        .filter_map(|event| event["stepName"].as_str())
        .collect();
    steps.reverse();
    assert_eq!(
        steps,
        [
            "NETWORK_GROUP",
            "LOADBALANCER_NETWORK",
            "MATERIA_LOGICALDB",
            "OTEL_CONFIG",
            "CONTROL_PLANE_BUNDLE",
            "STORAGE",
            "LOAD_BALANCER",
            "PLUGIN"
        ]
    );

    let told = events(&cke, &id, 1000);
    for pair in told.windows(2) {
        assert!(
            text(&pair[0]["date"]) >= text(&pair[1]["date"]),
            "{pair:#?}"
        );
    }
    let of = |told: &[Value], event: &str, key: &str| -> Vec<String> {
        let of_kind = told.iter().filter(|it| it["event"] == event);
        of_kind.rev().map(|it| text(&it[key])).collect()
    };
    assert_eq!(
        of(&told, "CLUSTER_STATUS", "status"),
        ["TO_DEPLOY", "DEPLOYING", "ACTIVE"]
    );
    assert_eq!(
        of(&told, "NODE_LIFECYCLE", "status"),
        ["DEPLOYING", "DEPLOYED", "READY"]
    );
    let items = |told: &[Value], status: &str| -> Vec<String> {
        let items = told
            .iter()
            .filter(|it| it["event"] == "CLUSTER_ITEM" && it["status"] == status);
        let mut items: Vec<String> = items.map(|it| text(&it["itemType"])).collect();
        items.sort();
        items
    };
    let active = items(&told, "ACTIVE");
    let count = |kind: &str| active.iter().filter(|it| *it == kind).count();
    for kind in [
        "NETWORK_GROUP",
        "LOADBALANCER_NETWORK",
        "MATERIA_LOGICALDB",
        "OTEL_CONFIG",
        "STORAGE",
        "LOAD_BALANCER",
        "NODE_GROUP",
    ] {
        assert_eq!(count(kind), 1, "{kind}: {active:?}");
    }
    assert_eq!(count("COMPONENT_BUNDLE"), 2);
    let catalog = cke
        .request("GET", "/v4/kubernetes/plugins/catalog", None)
        .ok();
    let of_version = |base: &&Value| base["k8sVersion"] == "1.36";
    let plugins = catalog["bases"].as_array().expect("bases");
    assert_eq!(count("PLUGIN"), plugins.iter().filter(of_version).count());
    let load_balancer = told.iter().find(|it| it["itemType"] == "LOAD_BALANCER");
    let data = &load_balancer.expect("an item")["data"];
    assert_eq!(data["type"], "PublicLoadBalancerData");
    assert_eq!(
        data["domainName"],
        cke.get(&path)["loadBalancers"][0]["domainName"]
    );
    // The limit counts events, from the newest.
    assert_eq!(events(&cke, &id, 3), told[..3]);
    assert_eq!(events(&cke, &id, 0), told[..1]);

    clever.ok(&["k8s", "delete", "told", "-y", "--org", organisation]);
    cke.wait_gone(&path);
    let told = events(&cke, &id, 1000);
    assert_eq!(items(&told, "DELETED"), active, "every item goes");
    let statuses = of(&told, "CLUSTER_STATUS", "status");
    assert_eq!(statuses[3..], ["TO_DELETE", "DELETING", "DELETED"]);
    let last = of(&told, "NODE_LIFECYCLE", "status");
    assert_eq!(last[3..], ["DRAINING", "DELETED"]);
    let foreign = cke.request(
        "GET",
        "/v4/kubernetes/organisations/orga_11111111-2222-4333-8444-555555555555/clusters/x/events",
        None,
    );
    assert!([403, 404].contains(&foreign.status), "{foreign:#?}");
    cke.finish();
}

#[test]
fn what_failed_is_resumed_and_what_is_redeployed_serves_throughout() {
    let cke = Cke::start(MANUAL);
    let clever = Clever::new(&cke);
    let organisation = cke.organisation();
    let boots = |per_mille: u32| {
        for site in ["par-1", "par-2", "par-3"] {
            let body = json!({"bootFailuresPerMille": per_mille}).to_string();
            cke.request("PUT", &format!("/_sim/datacenters/{site}"), Some(&body))
                .ok();
        }
    };
    boots(1000);
    let id = cke.create(&json!({"name": "ill",
        "topologyConfig": {"topology": "DEDICATED_COMPUTE", "flavor": "XS", "replicationFactor": 2}}));
    let path = format!("/clusters/{id}");
    let post =
        |what: &str, body: Option<&Value>| cke.kubernetes("POST", &format!("{path}/{what}"), body);
    let refused = post("resume", None);
    assert_eq!(refused.status, 412, "{refused:#?}");
    cke.wait_for(&path, "FAILED");
    let shown = clever.json(&["k8s", "get", "ill", "--org", organisation]);
    assert_eq!(shown["status"], "FAILED");
    let failed = events(&cke, &id, 1000)
        .into_iter()
        .find(|it| it["event"] == "CLUSTER_STATUS" && it["status"] == "FAILED")
        .expect("the failure");
    assert_eq!(failed["failure"]["operation"], "CLUSTER_CREATE");
    assert_eq!(failed["failure"]["step"], "CONTROL_PLANE_BUNDLE");
    assert_eq!(failed["failure"]["occurredAt"], failed["date"]);
    // What needs an ACTIVE cluster is refused, and changes nothing.
    for (what, body) in [
        ("redeploy", None),
        ("version/update", Some(json!({"targetVersion": "1.36"}))),
        ("csi/ceph", None),
    ] {
        let refused = post(what, body.as_ref());
        assert_eq!(refused.status, 412, "{what}: {refused:#?}");
    }
    boots(0);
    assert_eq!(post("resume", None).ok()["status"], "DEPLOYING");
    cke.wait_for(&path, "ACTIVE");
    cke.advance(300);

    assert_eq!(post("redeploy", None).ok()["status"], "TO_REDEPLOY");
    assert_eq!(post("redeploy", None).status, 412);
    let vms = |cke: &Cke| -> Vec<String> {
        let vms = cke
            .request("GET", &format!("/_sim/vms?cluster={id}"), None)
            .ok();
        let serving = vms.as_array().expect("VMs").iter();
        let serving = serving.filter(|vm| vm["reachable"] == true);
        serving.map(|vm| text(&vm["id"])).collect()
    };
    let before = vms(&cke);
    let mut seen = Vec::new();
    while cke.get(&path)["status"] != "ACTIVE" {
        seen.push(text(&cke.get(&path)["status"]));
        assert!(
            vms(&cke).len() >= 2,
            "one is missing while it is redeployed"
        );
        cke.advance(5);
        assert!(seen.len() < 1000, "it is never ACTIVE again");
    }
    seen.dedup();
    assert_eq!(seen, ["TO_REDEPLOY", "REDEPLOYING"]);
    cke.advance(120);
    let after = vms(&cke);
    assert_eq!(after.len(), 2);
    assert!(after.iter().all(|id| !before.contains(id)), "{after:?}");

    // A group whose nodes never start fails, is tried on, and can be deleted meanwhile.
    boots(1000);
    let group = json!({"name": "workers", "flavor": "2XS", "targetNodeCount": 1});
    let group = cke
        .kubernetes("POST", &format!("{path}/node-groups"), Some(&group))
        .ok();
    let group_path = format!("{path}/node-groups/{}", text(&group["id"]));
    cke.wait_for(&group_path, "FAILED");
    let resume = cke.kubernetes("POST", &format!("{group_path}/resume"), None);
    assert_eq!(resume.status, 412, "{resume:#?}");
    assert!(resume.body.contains("expected DEPLOYING"), "{resume:#?}");
    boots(0);
    cke.wait_until(&group_path, |group| group["status"] == "READY");
    clever.ok(&[
        "k8s",
        "nodegroups",
        "delete",
        "ill",
        "workers",
        "-y",
        "--org",
        organisation,
    ]);
    cke.wait_gone(&group_path);
    cke.finish();
}
