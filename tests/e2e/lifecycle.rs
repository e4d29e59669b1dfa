//! What a cluster and a node group go through after they were created.

use serde_json::{Value, json};

use crate::clever::Clever;
use crate::harness::{Cke, FAST, MANUAL, text};

#[test]
fn an_update_of_the_version() {
    let cke = Cke::start(FAST);
    let clever = Clever::new(&cke);
    let organisation = cke.organisation();
    let id = cke.create(&json!({"name": "old", "version": "1.34"}));
    let path = format!("/clusters/{id}");
    cke.wait_for(&path, "ACTIVE");
    let check = clever.json(&["k8s", "version", "check", "old", "--org", organisation]);
    assert_eq!(
        check,
        json!({"installed": "1.34", "latest": "1.36",
            "available": ["1.34", "1.35", "1.36"], "needUpdate": true})
    );
    let refused = |target: &str, expect: &str| {
        let said = clever.run(&[
            "k8s",
            "version",
            "update",
            "old",
            "--target",
            target,
            "--org",
            organisation,
        ]);
        let text = format!("{}{}", said.stdout, said.stderr);
        assert!(text.contains(expect), "{target}: {text}");
    };
    refused("0.99", "Version 0.99 is not available");
    let said = clever.ok(&[
        "k8s",
        "version",
        "update",
        "old",
        "--target",
        "1.35",
        "--org",
        organisation,
    ]);
    assert!(said.contains("old is upgrading to 1.35"), "{said}");
    let cluster = cke.wait_for(&path, "ACTIVE");
    assert_eq!(cluster["version"], "1.35");
    // Down is not a way.
    let answer = cke.kubernetes(
        "POST",
        &format!("{path}/version/update"),
        Some(&json!({"targetVersion": "1.34"})),
    );
    assert_eq!(answer.status, 400, "{answer:#?}");
    assert_eq!(cke.get(&path)["version"], "1.35");
    cke.finish();
}

#[test]
fn statuses_are_those_of_the_contract_in_their_order() {
    let cke = Cke::start(MANUAL);
    let created = cke
        .kubernetes("POST", "/clusters", Some(&json!({"name": "slow"})))
        .ok();
    assert_eq!(created["status"], "TO_DEPLOY");
    let path = format!("/clusters/{}", text(&created["id"]));
    let seen = statuses(&cke, &path, "ACTIVE");
    check_order(&seen, &["TO_DEPLOY", "DEPLOYING", "ACTIVE"]);

    let group = cke
        .kubernetes(
            "POST",
            &format!("{path}/node-groups"),
            Some(&json!({"name": "workers", "flavor": "XS", "targetNodeCount": 2})),
        )
        .ok();
    assert_eq!(group["currentNodeCount"], 0);
    let group_path = format!("{path}/node-groups/{}", text(&group["id"]));
    let seen = statuses(&cke, &group_path, "READY");
    check_order(
        &seen,
        &["PENDING", "CREATED", "DEPLOYING", "DEPLOYED", "READY"],
    );
    assert_eq!(cke.get(&group_path)["currentNodeCount"], 2);

    let resize = json!({"name": "workers", "targetNodeCount": 1});
    let resized = cke.kubernetes("PATCH", &group_path, Some(&resize)).ok();
    assert_eq!(resized["status"], "TO_RESIZE");
    // A second resize while one runs is refused.
    let again = json!({"name": "workers", "targetNodeCount": 3});
    let refused = cke.kubernetes("PATCH", &group_path, Some(&again));
    assert_eq!(refused.status, 412, "{refused:#?}");
    let seen = statuses(&cke, &group_path, "READY");
    check_order(&seen, &["TO_RESIZE", "RESIZING", "READY"]);
    assert_eq!(cke.get(&group_path)["currentNodeCount"], 1);

    let deleted = cke.kubernetes("DELETE", &group_path, None).ok();
    assert_eq!(deleted["status"], "TO_TERMINATE");
    cke.wait_gone(&group_path);
    let deleted = cke.kubernetes("DELETE", &path, None).ok();
    assert_eq!(deleted["status"], "TO_DELETE");
    // Asking twice changes nothing.
    let again = cke.kubernetes("DELETE", &path, None).ok();
    assert_eq!(again["status"], "TO_DELETE");
    cke.wait_gone(&path);
    assert_eq!(cke.get("/usage"), json!([]));
    cke.finish();
}

/// The statuses met until `last`, second by second, without repetitions.
fn statuses(cke: &Cke, path: &str, last: &str) -> Vec<String> {
    let mut seen: Vec<String> = Vec::new();
    for _ in 0..600 {
        let status = text(&cke.get(path)["status"]);
        if seen.last() != Some(&status) {
            seen.push(status.clone());
        }
        if status == last {
            return seen;
        }
        cke.advance(1);
    }
    panic!("{path} is never {last}: {seen:?}");
}

/// What was seen comes in the order of the contract, and begins and ends as it does.
#[track_caller]
fn check_order(seen: &[String], contract: &[&str]) {
    let mut rest = contract.iter();
    for status in seen {
        assert!(
            rest.any(|known| known == status),
            "{seen:?} against {contract:?}"
        );
    }
    assert!(seen.len() >= 2, "{seen:?}");
    assert_eq!(seen.last().map(String::as_str), contract.last().copied());
}

#[test]
fn names_may_repeat_and_then_need_the_id() {
    let cke = Cke::start(FAST);
    let clever = Clever::new(&cke);
    let organisation = cke.organisation();
    let first = cke.create_active("twin");
    let second = cke.create_active("twin");
    let stderr = clever.failed(&["k8s", "get", "twin", "--org", organisation]);
    assert!(
        stderr.contains("Multiple Kubernetes clusters found with the name twin"),
        "{stderr}"
    );
    let found = clever.json(&["k8s", "get", &first.to_lowercase(), "--org", organisation]);
    assert_eq!(found["id"], first.as_str());
    clever.ok(&[
        "k8s",
        "update",
        &second,
        "--name",
        "other",
        "--org",
        organisation,
    ]);
    let found = clever.json(&["k8s", "get", "twin", "--org", "acme"]);
    assert_eq!(found["id"], first.as_str());
    cke.finish();
}

#[test]
fn a_patch_changes_what_it_names() {
    let cke = Cke::start(FAST);
    let id = cke.create(&json!({"name": "a", "description": "d", "tags": ["x"]}));
    let path = format!("/clusters/{id}");
    cke.wait_for(&path, "ACTIVE");
    let patch = |body: Value| {
        cke.kubernetes("PATCH", &path, Some(&body)).ok();
        let cluster = cke.wait_for(&path, "ACTIVE");
        json!([
            cluster["name"],
            cluster["description"],
            cluster["tags"],
            cluster["features"]
        ])
    };
    let features = |csi: Value, autoscaling: bool| json!({"csi": csi, "registries": null, "autoscalingEnabled": autoscaling});
    let off = features(json!(null), false);
    assert_eq!(patch(json!({})), json!(["a", "d", ["x"], off]));
    assert_eq!(patch(json!({"name": "b"})), json!(["b", "d", ["x"], off]));
    assert_eq!(
        patch(json!({"description": null, "tags": []})),
        json!(["b", null, [], off])
    );
    assert_eq!(
        patch(json!({"features": {"autoscalingEnabled": true}})),
        json!(["b", null, [], features(json!(null), true)])
    );
    assert_eq!(
        patch(json!({"features": {"csi": true}})),
        json!(["b", null, [], features(json!(true), true)])
    );
    // Storage is there for good.
    for off in [json!({"csi": false}), json!({"csi": null})] {
        let answer = cke.kubernetes("PATCH", &path, Some(&json!({"features": off})));
        assert!(answer.status == 400 || answer.status == 412, "{answer:#?}");
    }
    assert_eq!(cke.get(&path)["features"], features(json!(true), true));
    cke.finish();
}

#[test]
fn autoscaling_bounds_of_a_node_group() {
    let cke = Cke::start(FAST);
    let clever = Clever::new(&cke);
    let organisation = cke.organisation();
    cke.create_active("home");
    clever.ok(&[
        "k8s",
        "nodegroups",
        "create",
        "home",
        "auto",
        "2XS:2",
        "--min",
        "1",
        "--max",
        "4",
        "--description",
        "d",
        "--tag",
        "t1",
        "--org",
        organisation,
    ]);
    let id = text(&cke.get("/clusters")[0]["id"]);
    let groups = cke.wait_until(&format!("/clusters/{id}/node-groups"), |groups| {
        groups[0]["status"] == "READY"
    });
    let group = &groups[0];
    assert_eq!(group["autoscalingEnabled"], true);
    assert_eq!(group["minNodeCount"], 1);
    assert_eq!(group["maxNodeCount"], 4);
    assert_eq!(group["tag"], "t1");
    assert_eq!(group["labels"], json!({}));
    assert_eq!(group["taints"], json!([]));
    let said = clever.ok(&["k8s", "nodegroups", "list", "home", "--org", organisation]);
    assert!(said.contains("1-4"), "{said}");
    clever.ok(&[
        "k8s",
        "nodegroups",
        "update",
        "home",
        "auto",
        "--disable-autoscaling",
        "--max",
        "3",
        "--org",
        organisation,
    ]);
    let group = clever.json(&[
        "k8s",
        "nodegroups",
        "get",
        "home",
        "auto",
        "--org",
        organisation,
    ]);
    assert_eq!(group["autoscalingEnabled"], false);
    assert_eq!(group["maxNodeCount"], 3);
    assert_eq!(group["description"], "d");
    cke.finish();
}
