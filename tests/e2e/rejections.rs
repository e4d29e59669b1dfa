//! What is refused, by whom, with which words; and that a refusal changes nothing.

use serde_json::{Value, json};

use crate::clever::Clever;
use crate::harness::{Cke, FAST};

const QUOTA_EXCEEDED: &str = "clever.core.quota-exceeded";
const BAD_REQUEST: &str = "clever.core.bad-request";
const NOT_FOUND: &str = "clever.core.not-found";
const PRECONDITION_FAILED: &str = "clever.core.precondition-failed";

/// Refused by the CLI itself, by what it read from the product description.
#[test]
fn what_the_cli_refuses() {
    let cke = Cke::start(FAST);
    let clever = Clever::new(&cke);
    let organisation = cke.organisation();
    let before = cke.state();
    let check = |arguments: &[&str], expect: &str| {
        let arguments: Vec<&str> = ["k8s"]
            .into_iter()
            .chain(arguments.iter().copied())
            .chain(["--org", organisation])
            .collect();
        let said = clever.run(&arguments).code_is(1);
        let text = format!("{}{}", said.stdout, said.stderr);
        assert!(text.contains(expect), "{arguments:?}: {text}");
    };
    check(
        &["create", "x", "--cluster-version", "0.99"],
        "Version \"0.99\" is not available. Supported: 1.34, 1.35, 1.36",
    );
    check(
        &["create", "x", "--topology", "foo"],
        "Unknown topology \"FOO\". Supported: ALL_IN_ONE, DEDICATED_COMPUTE, DISTRIBUTED",
    );
    check(
        &["create", "x", "--flavor", "XS"],
        "Flavor \"XS\" is not available for ALL_IN_ONE. Supported: S, M, L, XL",
    );
    check(
        &["create", "x", "--replication-factor", "6"],
        "must be between 1 and 5",
    );
    check(
        &["create", "x", "--nodegroup", "9XL:1"],
        "Flavor \"9XL\" is not a valid node group flavor. Supported: 2XS, XS, S, M, L, XL",
    );
    check(
        &["get", "nobody"],
        "No Kubernetes cluster found with the name nobody",
    );
    check(
        &["delete", "nobody", "-y"],
        "No Kubernetes cluster found with the name nobody",
    );
    assert_eq!(cke.state(), before);
    cke.finish();
}

/// Refused by the server, seen through the CLI.
#[test]
fn what_the_server_refuses_through_the_cli() {
    let cke = Cke::start(FAST);
    let clever = Clever::new(&cke);
    let organisation = cke.organisation();
    let id = cke.create_active("home");
    let before = cke.state();
    let check = |arguments: &[&str], expect: &str| {
        let arguments: Vec<&str> = ["k8s"]
            .into_iter()
            .chain(arguments.iter().copied())
            .chain(["--org", organisation])
            .collect();
        let stderr = clever.failed(&arguments);
        assert!(stderr.contains(expect), "{arguments:?}: {stderr}");
        assert_eq!(cke.state(), before, "{arguments:?}");
    };
    let long = "n".repeat(300);
    check(&["create", ""], "name");
    check(&["create", &long], "name");
    check(
        &[
            "create",
            "x",
            "--topology",
            "DEDICATED_COMPUTE",
            "--nodegroup",
            "XS:0",
        ],
        "targetNodeCount",
    );
    check(
        &[
            "create",
            "x",
            "--topology",
            "DEDICATED_COMPUTE",
            "--nodegroup",
            "XS:9999",
        ],
        "targetNodeCount",
    );
    check(
        &[
            "create",
            "x",
            "--topology",
            "DEDICATED_COMPUTE",
            "--nodegroup",
            "XL:2",
        ],
        "Failed to create Kubernetes cluster: your quota exceeded, contact support to increase your quota",
    );
    check(
        &["nodegroups", "create", "home", "big", "XS:9999"],
        "targetNodeCount",
    );
    check(
        &["nodegroups", "create", "home", "big", "S:4"],
        "Quota exceeded: RAM max: limit = 40.0 GB | actual = 56.0 GB",
    );
    check(
        &["get", "kubernetes_01KTREHTR6E4JEY46EPYBKY8XG"],
        "kubernetes_01KTREHTR6E4JEY46EPYBKY8XG",
    );
    let _ = id;
    cke.finish();
}

/// Refused by the server, whatever the client: status, code, and the field or text.
#[test]
fn what_the_server_refuses() {
    let cke = Cke::start(FAST);
    let id = cke.create_active("home");
    let group = cke
        .kubernetes(
            "POST",
            &format!("/clusters/{id}/node-groups"),
            Some(&json!({"name": "workers", "flavor": "2XS", "targetNodeCount": 1})),
        )
        .ok();
    let group_path = format!(
        "/clusters/{id}/node-groups/{}",
        group["id"].as_str().expect("an id")
    );
    cke.wait_for(&group_path, "READY");
    let before = cke.state();
    let check = |method: &str, path: &str, body: Value, status: u16, code: &str, expect: &str| {
        let answer = cke.kubernetes(method, path, Some(&body));
        assert_eq!(answer.status, status, "{method} {path} {body}: {answer:#?}");
        let error = answer.json();
        let keys: Vec<&String> = error.as_object().expect("an object").keys().collect();
        assert_eq!(keys, ["apiRequestId", "code", "context", "error"]);
        assert_eq!(error["code"], code, "{method} {path} {body}: {error}");
        assert_eq!(
            error["apiRequestId"].as_str(),
            answer.header("sozu-id"),
            "{error}"
        );
        assert!(
            error["context"]["type"].is_string(),
            "{method} {path} {body}: {error}"
        );
        assert!(
            error.to_string().contains(expect),
            "{method} {path} {body}: {error}"
        );
        assert_eq!(cke.state(), before, "{method} {path} {body}");
    };
    let topology = |flavor: &str, replicas: i64| {
        json!({"name": "x", "topologyConfig":
            {"topology": "ALL_IN_ONE", "flavor": flavor, "replicationFactor": replicas}})
    };
    let bad = |body: Value, expect: &str| {
        check("POST", "/clusters", body, 400, BAD_REQUEST, expect);
    };
    bad(json!({}), "name");
    bad(json!([]), "body");
    bad(json!({"name": ""}), "name");
    bad(json!({"name": "n".repeat(129)}), "name");
    bad(json!({"name": 7}), "body");
    bad(
        json!({"name": "x", "description": "d".repeat(4097)}),
        "description",
    );
    bad(json!({"name": "x", "version": "0.99"}), "version");
    bad(json!({"name": "x", "version": "1.33"}), "version");
    bad(json!({"name": "x", "locationId": "mars"}), "location");
    bad(topology("XS", 1), "lavor");
    bad(topology("9XL", 1), "9XL");
    bad(topology("S", 0), "eplication");
    bad(topology("S", 6), "eplication");
    bad(topology("S", -1), "topologyConfig");
    bad(
        json!({"name": "x", "topologyConfig": {"topology": "FOO"}}),
        "FOO",
    );
    let with_group = |group: Value| json!({"name": "x", "nodeGroups": [group]});
    bad(
        with_group(json!({"name": "UPPER", "flavor": "S", "targetNodeCount": 1})),
        "name",
    );
    bad(
        with_group(json!({"name": "a", "flavor": "S", "targetNodeCount": -1})),
        "body",
    );
    bad(
        with_group(json!({"name": "a", "flavor": "S", "targetNodeCount": 9999})),
        "targetNodeCount",
    );
    check(
        "POST",
        "/clusters",
        topology("XL", 2),
        402,
        QUOTA_EXCEEDED,
        // The cluster `home` and its group hold 10 vCPU and 12 GB.
        "Quota exceeded: ",
    );

    let groups = format!("/clusters/{id}/node-groups");
    let bad = |body: Value, expect: &str| {
        check("POST", &groups, body, 400, BAD_REQUEST, expect);
    };
    let new = |more: Value| {
        let mut body = json!({"name": "more", "flavor": "2XS", "targetNodeCount": 1});
        for (name, value) in more.as_object().expect("an object") {
            body[name] = value.clone();
        }
        body
    };
    bad(json!({"name": "more"}), "flavor");
    bad(new(json!({"name": ""})), "name");
    bad(new(json!({"name": "a".repeat(64)})), "name");
    bad(new(json!({"name": "-a"})), "name");
    bad(new(json!({"flavor": "9XL"})), "9XL");
    bad(new(json!({"targetNodeCount": 257})), "targetNodeCount");
    bad(
        new(json!({"minNodeCount": 3, "maxNodeCount": 2})),
        "inNodeCount",
    );
    bad(new(json!({"description": "d".repeat(4097)})), "description");
    bad(new(json!({"tag": "t".repeat(1025)})), "tag");
    bad(
        new(json!({"labels": {"kubernetes.io/x": "y"}})),
        "kubernetes.io/x",
    );
    bad(new(json!({"labels": {"a": "not a value"}})), "labels");
    bad(
        new(json!({"taints": [{"key": "a", "effect": "Never"}]})),
        "Never",
    );
    check(
        "POST",
        &groups,
        new(json!({"flavor": "XL", "targetNodeCount": 2})),
        402,
        QUOTA_EXCEEDED,
        "Quota exceeded: ",
    );

    let patch = |body: Value, status: u16, code: &str, expect: &str| {
        check("PATCH", &group_path, body, status, code, expect);
    };
    patch(json!({"targetNodeCount": 1}), 400, BAD_REQUEST, "name");
    patch(
        json!({"name": "workers"}),
        400,
        BAD_REQUEST,
        "targetNodeCount",
    );
    patch(
        json!({"name": "workers", "targetNodeCount": 9999}),
        400,
        BAD_REQUEST,
        "targetNodeCount",
    );
    patch(
        json!({"name": "workers", "targetNodeCount": 100}),
        402,
        QUOTA_EXCEEDED,
        "Quota exceeded: ",
    );
    let cluster = format!("/clusters/{id}");
    check(
        "PATCH",
        &cluster,
        json!({"name": ""}),
        400,
        BAD_REQUEST,
        "name",
    );
    check(
        "POST",
        &format!("{cluster}/version/update"),
        json!({"targetVersion": "0.99"}),
        400,
        BAD_REQUEST,
        "ersion",
    );
    check(
        "POST",
        &format!("{cluster}/resume"),
        json!({}),
        412,
        PRECONDITION_FAILED,
        "ACTIVE",
    );

    let unknown = "/clusters/kubernetes_01KTREHTR6E4JEY46EPYBKY8XG";
    for (method, path, body) in [
        ("GET", unknown.to_owned(), json!(null)),
        ("GET", "/clusters/home".to_owned(), json!(null)),
        ("PATCH", unknown.to_owned(), json!({"name": "y"})),
        ("DELETE", unknown.to_owned(), json!(null)),
        ("GET", format!("{unknown}/kubeconfig.yaml"), json!(null)),
        ("GET", format!("{unknown}/deployment-events"), json!(null)),
        ("GET", format!("{unknown}/version/check"), json!(null)),
        ("GET", format!("{unknown}/node-groups"), json!(null)),
        (
            "POST",
            format!("{unknown}/node-groups"),
            json!({"name": "a", "flavor": "S", "targetNodeCount": 1}),
        ),
        ("POST", format!("{unknown}/csi/ceph"), json!(null)),
        (
            "GET",
            format!("{cluster}/node-groups/node_group_01KTREHTR6E4JEY46EPYBKY8XG"),
            json!(null),
        ),
        (
            "DELETE",
            format!("{cluster}/node-groups/nothing"),
            json!(null),
        ),
    ] {
        check(method, &path, body, 404, NOT_FOUND, "not found");
    }
    cke.finish();
}

/// A node group of no nodes is a group; it grows later.
#[test]
fn a_count_of_zero_is_accepted() {
    let cke = Cke::start(FAST);
    let clever = Clever::new(&cke);
    let id = cke.create_active("home");
    clever.ok(&[
        "k8s",
        "nodegroups",
        "create",
        "home",
        "idle",
        "XS:0",
        "--org",
        cke.organisation(),
    ]);
    let path = format!("/clusters/{id}/node-groups");
    let groups = cke.wait_until(&path, |groups| groups[0]["status"] == "READY");
    assert_eq!(groups[0]["currentNodeCount"], 0);
    assert_eq!(groups[0]["targetNodeCount"], 0);
    cke.finish();
}

/// What the state forbids: it is said with 412, and nothing changes.
#[test]
fn what_must_wait() {
    let cke = Cke::start("1");
    let id = cke.create(&json!({"name": "slow", "nodeGroups":
        [{"name": "workers", "flavor": "2XS", "targetNodeCount": 1}]}));
    let cluster = format!("/clusters/{id}");
    let check = |method: &str, path: &str, body: Option<Value>| {
        let answer = cke.kubernetes(method, path, body.as_ref());
        assert_eq!(answer.status, 412, "{method} {path}: {answer:#?}");
        assert_eq!(answer.json()["code"], PRECONDITION_FAILED);
    };
    check("GET", &format!("{cluster}/kubeconfig.yaml"), None);
    check(
        "POST",
        &format!("{cluster}/version/update"),
        Some(json!({"targetVersion": "1.36"})),
    );
    check("POST", &format!("{cluster}/csi/ceph"), None);
    check(
        "PATCH",
        &cluster,
        Some(json!({"features": {"autoscalingEnabled": true}})),
    );
    check("POST", &format!("{cluster}/redeploy"), None);
    let group = cke.get(&format!("{cluster}/node-groups"))[0].clone();
    let group_path = format!(
        "{cluster}/node-groups/{}",
        group["id"].as_str().expect("an id")
    );
    check(
        "PATCH",
        &group_path,
        Some(json!({"name": "workers", "targetNodeCount": 2})),
    );
    assert_eq!(cke.get(&group_path)["targetNodeCount"], 1);
    // What changes no more than words goes through in any state.
    let patched = cke
        .kubernetes("PATCH", &cluster, Some(&json!({"description": "soon"})))
        .ok();
    assert_eq!(patched["description"], "soon");
    let patched = cke
        .kubernetes(
            "PATCH",
            &group_path,
            Some(&json!({"name": "workers", "targetNodeCount": 1, "tag": "t"})),
        )
        .ok();
    assert_eq!(patched["tag"], "t");
    cke.finish();
}
