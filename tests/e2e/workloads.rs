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

#[test]
fn pods_press_for_more_nodes() {
    let cke = Cke::start(FAST);
    let group = json!({"name": "workers", "flavor": "XS", "targetNodeCount": 1, "minNodeCount": 1,
        "maxNodeCount": 3, "autoscalingEnabled": true});
    let id = cke.create(&json!({"name": "demo", "nodeGroups": [group],
        "features": {"autoscalingEnabled": true}}));
    let path = format!("/clusters/{id}");
    let ready = |count: u64| {
        move |cluster: &Value| {
            let group = &cluster["nodeGroups"][0];
            cluster["status"] == "ACTIVE"
                && group["status"] == "READY"
                && group["currentNodeCount"] == count
        }
    };
    cke.wait_until(&path, ready(1));
    let kubeconfig = cke.kubernetes("GET", &format!("{path}/kubeconfig.yaml"), None);
    let kubectl = Kubectl::new(&kubeconfig.body);
    // Two of them fill a node of 6 vCPU; the third has to wait for another.
    let create = ["create", "deployment", "web", "--image=nginx:alpine"];
    kubectl.ok(&create);
    kubectl.ok(&[
        "set",
        "resources",
        "deployment",
        "web",
        "--requests=cpu=3,memory=1Gi",
    ]);
    kubectl.ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    kubectl.ok(&["scale", "deployment", "web", "--replicas=3"]);
    cke.wait_until(&path, ready(2));
    let running = |pods: &[Value]| {
        pods.len() == 3 && pods.iter().all(|pod| pod["status"]["phase"] == "Running")
    };
    wait_for_pods(&kubectl, running);
    // What they request is what their nodes have to do.
    let loads = || {
        let vms = cke
            .request("GET", &format!("/_sim/vms?cluster={id}"), None)
            .ok();
        let vms = vms.as_array().expect("a list").iter();
        let mut loads: Vec<u64> = vms
            .filter(|vm| vm["nodeGroup"].is_string())
            .map(|vm| vm["load"]["cpuMillis"].as_u64().expect("a load"))
            .collect();
        loads.sort_unstable();
        loads
    };
    let started = Instant::now();
    while loads() != [3_000, 6_000] {
        assert!(started.elapsed() < Duration::from_secs(30), "{:?}", loads());
    }
    cke.finish();
}

#[test]
fn a_node_that_does_not_answer_is_not_ready_until_it_does() {
    let cke = Cke::start("manual");
    let id = cke.create(&json!({"name": "demo",
        "nodeGroups": [{"name": "workers", "flavor": "XS", "targetNodeCount": 1}]}));
    let path = format!("/clusters/{id}");
    for _ in 0..40 {
        cke.advance(10);
        let cluster = cke.get(&path);
        if cluster["status"] == "ACTIVE" && cluster["nodeGroups"][0]["status"] == "READY" {
            break;
        }
    }
    let kubeconfig = cke.kubernetes("GET", &format!("{path}/kubeconfig.yaml"), None);
    let kubectl = Kubectl::new(&kubeconfig.body);
    kubectl.ok(&["create", "deployment", "web", "--image=nginx:alpine"]);
    cke.advance(10);
    let ready = |expect: &str| {
        let pods = kubectl.json(&["get", "pods", "-l", "app=web"]);
        let conditions = pods["items"][0]["status"]["conditions"].as_array().cloned();
        let conditions = conditions.unwrap_or_default();
        let found = conditions.iter().find(|it| it["type"] == "Ready");
        assert_eq!(found.expect("a condition")["status"], expect, "{pods:#}");
    };
    ready("True");
    let node = cke.get(&path)["nodeGroups"][0]["nodes"][0].clone();
    let vm = format!("/_sim/vms/{}", text(&node["id"]));
    cke.request("POST", &format!("{vm}/wedge"), None).ok();
    cke.advance(49);
    let nodes = kubectl.ok(&["get", "nodes"]);
    assert!(!nodes.contains("NotReady"), "{nodes}");
    cke.advance(2);
    let nodes = kubectl.ok(&["get", "nodes"]);
    assert!(nodes.contains("NotReady"), "{nodes}");
    let said = kubectl.ok(&["describe", "node", "workers-node0"]);
    for part in [
        "node.kubernetes.io/unreachable:NoExecute",
        "Kubelet stopped posting node status.",
        "Node workers-node0 status is now: NodeNotReady",
    ] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    ready("False");
    cke.request("POST", &format!("{vm}/recover"), None).ok();
    cke.advance(1);
    let said = kubectl.ok(&["describe", "node", "workers-node0"]);
    assert!(!said.contains("node.kubernetes.io/unreachable"), "{said}");
    assert!(said.contains("kubelet is posting ready status"), "{said}");
    ready("True");
    cke.finish();
}
