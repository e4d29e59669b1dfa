//! The clock by hand: nothing moves by itself, and the same requests give the same history.

use k8s_openapi::api::apps::v1::Deployment;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::{Value, json};

use crate::harness::{Cke, FAST, MANUAL, text};

#[test]
fn nothing_moves_until_the_clock_does() {
    let cke = Cke::start(MANUAL);
    let before = cke.request("GET", "/_sim/clock", None).ok();
    assert_eq!(before["scale"], "manual");
    let id = cke.create(&json!({"name": "still"}));
    let path = format!("/clusters/{id}");
    for _ in 0..20 {
        assert_ne!(cke.get(&path)["status"], "ACTIVE");
    }
    assert_eq!(cke.request("GET", "/_sim/clock", None).ok(), before);
    let after = cke.advance(600);
    assert_ne!(after["now"], before["now"]);
    assert_eq!(cke.get(&path)["status"], "ACTIVE");
    cke.finish();
}

/// What an advance said is not taken back, however long nothing happened on the way.
#[test]
fn a_kill_right_after_an_advance_takes_no_time_back() {
    let mut cke = Cke::start(MANUAL);
    let id = cke.create(&json!({"name": "old"}));
    let path = format!("/clusters/{id}");
    cke.advance(300);
    let told = cke.advance(240 * 86_400);
    cke.kill();
    cke.restart();
    let clock = cke.request("GET", "/_sim/clock", None).ok();
    assert_eq!(clock["now"], told["now"]);
    assert_eq!(cke.get(&path)["status"], "ACTIVE");
    cke.finish();
}

#[test]
fn a_running_clock_is_not_advanced_by_hand() {
    let cke = Cke::start(FAST);
    let body = json!({"seconds": 5}).to_string();
    let answer = cke.request("POST", "/_sim/clock/advance", Some(&body));
    assert_eq!(answer.status, 409, "{answer:#?}");
    let cke_by_hand = Cke::start(MANUAL);
    for body in [
        r#"{"seconds":-1}"#,
        r#"{"seconds":"x"}"#,
        "{}",
        r#"{"seconds":1e300}"#,
    ] {
        let answer = cke_by_hand.request("POST", "/_sim/clock/advance", Some(body));
        assert_eq!(answer.status, 400, "{body}: {answer:#?}");
    }
    cke_by_hand.finish();
    cke.finish();
}

/// Byte for byte: a clock by hand starts at the same instant on every fresh data directory.
#[test]
fn the_same_seed_and_requests_give_the_same_history() {
    let history = || {
        let cke = Cke::start(MANUAL);
        let started = cke.request("GET", "/_sim/clock", None).body;
        let id = cke.create(&json!({"name": "a",
            "topologyConfig": {"topology": "DEDICATED_COMPUTE", "flavor": "XS", "replicationFactor": 3},
            "nodeGroups": [{"name": "workers", "flavor": "2XS", "targetNodeCount": 3}]}));
        cke.advance(180);
        let path = format!("/clusters/{id}");
        let state = cke.state();
        assert_eq!(cke.get(&path)["nodeGroups"][0]["status"], "READY");
        cke.kubernetes("DELETE", &path, None).ok();
        cke.advance(180);
        let events = format!("{path}/deployment-events?limit=1000");
        let events = cke.kubernetes("GET", &events, None).body;
        cke.finish();
        format!("{started}\n{state:#}\n{events}")
    };
    assert_eq!(history(), history());
}

/// What there is in a cluster that its components wrote, each in their own time.
const KINDS: [&str; 7] = [
    "/api/v1/nodes",
    "/api/v1/pods",
    "/api/v1/events",
    "/apis/apps/v1/replicasets",
    "/apis/apps/v1/deployments",
    "/apis/coordination.k8s.io/v1/leases",
    "/apis/api.clever-cloud.com/v1/nodegroups",
];

async fn client(kubeconfig: &str) -> Client {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).expect("a kubeconfig");
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
    Client::try_from(config.expect("a configuration")).expect("a client")
}

/// A bad day of two clusters with work in them. Returns everything that is to be seen of it.
fn bad_day() -> String {
    let cke = Cke::start(MANUAL);
    let sim = |method: &str, path: &str, body: Value| {
        let answer = cke.request(method, path, Some(&body.to_string()));
        assert_eq!(answer.status, 200, "{path}: {answer:#?}");
    };
    let quota = format!("/_sim/organisations/{}/quota", cke.organisation());
    sim("PUT", &quota, json!({"vcpus": 200, "ramGb": 300}));
    let large = cke.create(&json!({"name": "large", "version": "1.35",
        "features": {"autoscalingEnabled": true},
        "topologyConfig": {"topology": "DEDICATED_COMPUTE", "flavor": "XS", "replicationFactor": 3},
        "nodeGroups": [
            {"name": "a", "flavor": "2XS", "targetNodeCount": 3, "minNodeCount": 1, "maxNodeCount": 6},
            {"name": "b", "flavor": "2XS", "targetNodeCount": 2}]}));
    let small = cke.create(&json!({"name": "small",
        "topologyConfig": {"topology": "ALL_IN_ONE", "flavor": "S", "replicationFactor": 2}}));
    cke.advance(400);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let of = |id: &str| {
        let kubeconfig = cke.kubernetes("GET", &format!("/clusters/{id}/kubeconfig.yaml"), None);
        runtime.block_on(client(&kubeconfig.body))
    };
    let clients = [of(&large), of(&small)];
    for client in &clients {
        let work: Deployment = serde_json::from_value(json!({
            "metadata": {"name": "work"},
            "spec": {"replicas": 6, "selector": {"matchLabels": {"app": "work"}},
                "template": {"metadata": {"labels": {"app": "work"}}, "spec": {"containers": [
                    {"name": "c", "image": "x", "resources": {"requests": {"cpu": "500m"}}}]}}}}))
        .expect("a deployment");
        let api: Api<Deployment> = Api::default_namespaced(client.clone());
        let created = runtime.block_on(api.create(&PostParams::default(), &work));
        created.expect("the deployment is accepted");
    }
    cke.advance(60);
    sim("PUT", "/_sim/datacenters/par-2", json!({"state": "lost"}));
    cke.advance(45);
    let update = json!({"targetVersion": "1.36"});
    let path = format!("/clusters/{large}/version/update");
    cke.kubernetes("POST", &path, Some(&update)).ok();
    cke.advance(100);
    let vms = cke.request("GET", "/_sim/vms", None).ok();
    for vm in vms.as_array().expect("a list").iter().take(2) {
        let path = format!("/_sim/vms/{}/kill", text(&vm["id"]));
        let killed = cke.request("POST", &path, None);
        assert_eq!(killed.status, 200, "{killed:#?}");
    }
    cke.advance(700);
    sim("PUT", "/_sim/datacenters/par-2", json!({"state": "up"}));
    cke.kubernetes("POST", &format!("/clusters/{small}/redeploy"), None);
    cke.advance(3000);
    let mut seen = vec![
        cke.request("GET", "/_sim/events?since=0&follow=false", None)
            .body,
    ];
    seen.push(format!("{:#}", cke.state()));
    for client in &clients {
        for kind in KINDS {
            let request = http::Request::get(kind)
                .body(Vec::new())
                .expect("a request");
            let answer = runtime.block_on(client.request_text(request));
            seen.push(answer.unwrap_or_else(|error| panic!("{kind}: {error}")));
        }
    }
    cke.finish();
    seen.join("\n")
}

/// As often as `CKE_DETERMINISM_RUNS` says.
#[test]
fn a_bad_day_is_the_same_in_every_run() {
    let runs = std::env::var("CKE_DETERMINISM_RUNS").ok();
    let runs: u32 = runs.and_then(|runs| runs.parse().ok()).unwrap_or(2);
    let first = bad_day();
    for run in 1..runs {
        let again = bad_day();
        let differs = |(a, b): &(&str, &str)| a != b;
        let pair = first.lines().zip(again.lines()).find(differs);
        assert!(pair.is_none(), "run {run} is another: {pair:#?}");
        assert_eq!(first.len(), again.len());
    }
}
