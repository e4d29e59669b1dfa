//! Workloads on a cluster, with kubectl, as on any.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Cke, FAST, text};
use crate::kubectl::Kubectl;

fn cluster() -> (Cke, Kubectl) {
    let cke = Cke::start(FAST);
    let id = cke.create(&json!({"name": "demo",
        "nodeGroups": [{"name": "workers", "flavor": "XS", "targetNodeCount": 2}]}));
    let path = format!("/clusters/{id}");
    cke.wait_until(&path, |cluster| {
        cluster["status"] == "ACTIVE" && cluster["nodeGroups"][0]["status"] == "READY"
    });
    let kubeconfig = cke.kubernetes("GET", &format!("{path}/kubeconfig.yaml"), None);
    (cke, Kubectl::new(&kubeconfig.body))
}

/// The pods of the selector, once they are as expected.
#[track_caller]
fn wait_for_pods(kubectl: &Kubectl, satisfied: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let started = Instant::now();
    loop {
        let found = kubectl.json(&["get", "pods", "-l", "app=web"]);
        let pods = found["items"].as_array().expect("items").clone();
        if satisfied(&pods) {
            return pods;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{pods:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_deployment_runs_is_scaled_rolled_and_deleted() {
    let (cke, kubectl) = cluster();
    let said = kubectl.ok(&[
        "create",
        "deployment",
        "web",
        "--image=nginx:alpine",
        "--replicas=2",
    ]);
    assert_eq!(said, "deployment.apps/web created\n");
    let said = kubectl.ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    assert!(
        said.ends_with("deployment \"web\" successfully rolled out\n"),
        "{said}"
    );
    let said = kubectl.ok(&[
        "expose",
        "deployment/web",
        "--type=LoadBalancer",
        "--port",
        "80",
    ]);
    assert_eq!(said, "service/web exposed\n");

    let table = kubectl.ok(&["get", "deployment", "web"]);
    let words: Vec<&str> = table.split_whitespace().collect();
    assert_eq!(
        &words[..9],
        [
            "NAME",
            "READY",
            "UP-TO-DATE",
            "AVAILABLE",
            "AGE",
            "web",
            "2/2",
            "2",
            "2"
        ],
        "{table}"
    );
    // One on each of the nodes, with an address of its own.
    let pods = wait_for_pods(&kubectl, |pods| pods.len() == 2);
    let mut nodes: Vec<String> = pods
        .iter()
        .map(|pod| text(&pod["spec"]["nodeName"]))
        .collect();
    nodes.sort();
    assert_eq!(nodes, ["workers-node0", "workers-node1"]);
    assert_ne!(pods[0]["status"]["podIP"], pods[1]["status"]["podIP"]);
    assert_eq!(pods[0]["status"]["phase"], "Running");

    let said = kubectl.ok(&["scale", "deployment", "web", "--replicas=4"]);
    assert_eq!(said, "deployment.apps/web scaled\n");
    kubectl.ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    wait_for_pods(&kubectl, |pods| pods.len() == 4);

    kubectl.ok(&["set", "image", "deployment/web", "nginx=nginx:1.30.0"]);
    kubectl.ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let pods = wait_for_pods(&kubectl, |pods| pods.len() == 4);
    for pod in &pods {
        assert_eq!(pod["spec"]["containers"][0]["image"], "nginx:1.30.0");
    }
    kubectl.ok(&["rollout", "undo", "deployment/web"]);
    kubectl.ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let said = kubectl.ok(&[
        "get",
        "deployment",
        "web",
        "-o",
        "jsonpath={.spec.template.spec.containers[0].image}",
    ]);
    assert_eq!(said, "nginx:alpine");
    let all = kubectl.ok(&["get", "all", "-o", "name"]);
    for line in [
        "deployment.apps/web\n",
        "service/web\n",
        "replicaset.apps/web-",
        "pod/web-",
    ] {
        assert!(all.contains(line), "{line}: {all}");
    }
    let events = kubectl.ok(&["get", "events"]);
    for reason in ["ScalingReplicaSet", "SuccessfulCreate", "Scheduled"] {
        assert!(events.contains(reason), "{reason}: {events}");
    }

    let said = kubectl.ok(&["delete", "deployment", "web"]);
    assert!(
        said.starts_with("deployment.apps \"web\" deleted"),
        "{said}"
    );
    wait_for_pods(&kubectl, |pods| pods.is_empty());
    let left = kubectl.ok(&["get", "replicasets", "-o", "name"]);
    assert_eq!(left, "");
    cke.finish();
}

#[test]
fn a_drain_waits_for_the_disruption_budget() {
    let (cke, kubectl) = cluster();
    kubectl.ok(&[
        "create",
        "deployment",
        "web",
        "--image=nginx:alpine",
        "--replicas=2",
    ]);
    kubectl.ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    kubectl.ok(&[
        "create",
        "poddisruptionbudget",
        "web",
        "--selector=app=web",
        "--min-available=2",
    ]);
    let started = Instant::now();
    while kubectl.json(&["get", "pdb", "web"])["status"]["currentHealthy"] != 2 {
        assert!(started.elapsed() < Duration::from_secs(30));
    }
    let said = kubectl.run(&["drain", "workers-node0", "--timeout=3s"]);
    assert_eq!(said.code, Some(1), "{said:#?}");
    assert!(
        said.stderr
            .contains("Cannot evict pod as it would violate the pod's disruption budget."),
        "{said:#?}"
    );
    // With one to spare the drain goes on, and the replacement comes up on the other node.
    kubectl.ok(&[
        "patch",
        "pdb",
        "web",
        "--type=merge",
        "-p",
        r#"{"spec":{"minAvailable":1}}"#,
    ]);
    kubectl.ok(&["drain", "workers-node0", "--timeout=60s"]);
    let on_the_other = |pods: &[Value]| {
        pods.len() == 2
            && pods.iter().all(|pod| {
                pod["spec"]["nodeName"] == "workers-node1" && pod["status"]["phase"] == "Running"
            })
    };
    wait_for_pods(&kubectl, on_the_other);
    let nodes = kubectl.ok(&["get", "nodes"]);
    assert!(nodes.contains("Ready,SchedulingDisabled"), "{nodes}");
    kubectl.ok(&["uncordon", "workers-node0"]);

    // What fits nowhere says why.
    kubectl.ok(&["cordon", "workers-node0"]);
    kubectl.ok(&["cordon", "workers-node1"]);
    kubectl.ok(&["scale", "deployment", "web", "--replicas=3"]);
    let pods = wait_for_pods(&kubectl, |pods| {
        pods.iter()
            .any(|pod| pod["status"]["conditions"][0]["reason"] == "Unschedulable")
    });
    let stuck = pods
        .iter()
        .find(|pod| pod["spec"]["nodeName"].is_null())
        .expect("a pending pod");
    assert_eq!(
        stuck["status"]["conditions"][0]["message"],
        "0/2 nodes are available: 2 node(s) were unschedulable."
    );
    cke.finish();
}

#[test]
fn a_bad_deployment_is_refused_with_kube_apiservers_text() {
    let (cke, kubectl) = cluster();
    let manifest = "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: web\nspec:\n  selector:\n    \
                    matchLabels: {app: web}\n  template:\n    metadata:\n      labels: {app: api}\n    spec:\n      \
                    containers: [{name: c, image: nginx}]\n";
    let said = kubectl
        .run_with_input(&["apply", "-f", "-"], manifest)
        .failed();
    assert_eq!(
        said,
        "The Deployment \"web\" is invalid: spec.template.metadata.labels: Invalid value: \
         {\"app\":\"api\"}: `selector` does not match template `labels`\n"
    );
    let good = manifest.replace("app: api", "app: web");
    assert_eq!(kubectl.apply(&good), "deployment.apps/web created\n");
    assert_eq!(kubectl.apply(&good), "deployment.apps/web unchanged\n");
    cke.finish();
}
