//! Services' endpoints, StatefulSets and DaemonSets, with kubectl.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Cke, FAST, text};
use crate::kubectl::Kubectl;

fn cluster() -> (Cke, String, Kubectl) {
    let cke = Cke::start(FAST);
    let id = cke.create(&json!({"name": "demo", "features": {"csi": true},
        "nodeGroups": [{"name": "workers", "flavor": "XS", "targetNodeCount": 2}]}));
    let path = format!("/clusters/{id}");
    cke.wait_until(&path, |cluster| {
        cluster["status"] == "ACTIVE" && cluster["nodeGroups"][0]["status"] == "READY"
    });
    let kubeconfig = cke.kubernetes("GET", &format!("{path}/kubeconfig.yaml"), None);
    (cke, path, Kubectl::new(&kubeconfig.body))
}

/// The objects, once they are as expected.
#[track_caller]
fn wait(kubectl: &Kubectl, what: &[&str], satisfied: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let started = Instant::now();
    let arguments = [&["get"], what].concat();
    loop {
        let found = kubectl.json(&arguments);
        let items = found["items"].as_array().expect("items").clone();
        if satisfied(&items) {
            return items;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{items:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn names(items: &[Value]) -> Vec<String> {
    items
        .iter()
        .map(|item| text(&item["metadata"]["name"]))
        .collect()
}

const DATABASE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: db}
spec:
  clusterIP: None
  selector: {app: db}
  ports: [{port: 5432}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector:
    matchLabels: {app: db}
  template:
    metadata:
      labels: {app: db}
    spec:
      containers:
        - name: postgres
          image: postgres:17
          volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
    - metadata: {name: data}
      spec:
        accessModes: [ReadWriteOnce]
        resources: {requests: {storage: 1Gi}}
";

const AGENT: &str = "\
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector:
    matchLabels: {app: agent}
  template:
    metadata:
      labels: {app: agent}
    spec:
      containers: [{name: agent, image: 'agent:1.0'}]
";

#[test]
fn sets_and_endpoints_follow_their_pods() {
    let (cke, path, kubectl) = cluster();

    // A Service's endpoints are its ready pods.
    kubectl.ok(&[
        "create",
        "deployment",
        "web",
        "--image=nginx:alpine",
        "--replicas=2",
    ]);
    kubectl.ok(&[
        "expose",
        "deployment/web",
        "--port=80",
        "--target-port=8080",
    ]);
    let slices = ["endpointslices", "-l", "kubernetes.io/service-name=web"];
    let ready = |count: usize| {
        move |slices: &[Value]| {
            let endpoints = slices
                .iter()
                .flat_map(|it| it["endpoints"].as_array().into_iter().flatten());
            slices.len() == 1
                && endpoints
                    .filter(|it| it["conditions"]["ready"] == true)
                    .count()
                    == count
        }
    };
    let found = wait(&kubectl, &slices, ready(2));
    assert_eq!(
        found[0]["ports"],
        json!([{"name": "", "port": 8080, "protocol": "TCP"}])
    );
    let pods = kubectl.json(&["get", "pods", "-l", "app=web"]);
    let address = text(&pods["items"][0]["status"]["podIP"]);
    let said = kubectl.ok(&["describe", "service", "web"]);
    assert!(said.contains(&format!("{address}:8080")), "{said}");
    let table = kubectl.ok(&["get", "endpoints", "web"]);
    assert!(table.contains(&format!("{address}:8080")), "{table}");
    kubectl.ok(&["scale", "deployment", "web", "--replicas=0"]);
    wait(&kubectl, &slices, ready(0));
    kubectl.ok(&["delete", "service", "web"]);
    wait(&kubectl, &slices, <[Value]>::is_empty);

    // A StatefulSet's pods come in order, and keep their claims.
    kubectl.apply(DATABASE);
    let said = kubectl.ok(&["rollout", "status", "statefulset/db", "--timeout=60s"]);
    assert!(
        said.contains("partitioned roll out complete") || said.contains("rolling update complete"),
        "{said}"
    );
    let of_db = ["pods", "-l", "app=db"];
    let pods = wait(&kubectl, &of_db, |pods| pods.len() == 2);
    assert_eq!(names(&pods), ["db-0", "db-1"]);
    let claims = wait(&kubectl, &["pvc"], |claims| claims.len() == 2);
    assert_eq!(names(&claims), ["data-db-0", "data-db-1"]);
    let table = kubectl.ok(&["get", "statefulset", "db"]);
    assert!(table.contains("2/2"), "{table}");
    let headless = ["endpointslices", "-l", "kubernetes.io/service-name=db"];
    let slices = wait(&kubectl, &headless, ready(2));
    assert_eq!(slices[0]["endpoints"][0]["hostname"], "db-0");

    kubectl.ok(&["set", "image", "statefulset/db", "postgres=postgres:18"]);
    kubectl.ok(&["rollout", "status", "statefulset/db", "--timeout=60s"]);
    let renewed = |pods: &[Value]| {
        pods.len() == 2
            && pods
                .iter()
                .all(|pod| pod["spec"]["containers"][0]["image"] == "postgres:18")
    };
    wait(&kubectl, &of_db, renewed);
    kubectl.ok(&["scale", "statefulset", "db", "--replicas=1"]);
    let pods = wait(&kubectl, &of_db, |pods| pods.len() == 1);
    assert_eq!(names(&pods), ["db-0"]);
    assert_eq!(
        kubectl.json(&["get", "pvc"])["items"]
            .as_array()
            .map(Vec::len),
        Some(2)
    );
    let patch = r#"{"spec": {"serviceName": "other"}}"#;
    let said = kubectl
        .run(&["patch", "statefulset", "db", "--type=merge", "-p", patch])
        .failed();
    assert!(
        said.contains("updates to statefulset spec for fields other than"),
        "{said}"
    );
    kubectl.ok(&["delete", "statefulset", "db"]);
    wait(&kubectl, &of_db, <[Value]>::is_empty);

    // A DaemonSet is on every node, on new ones and on cordoned ones, too.
    kubectl.apply(AGENT);
    let of_agent = ["pods", "-l", "app=agent"];
    let on = |count: usize| {
        move |pods: &[Value]| {
            let mut nodes: Vec<&Value> = pods.iter().map(|pod| &pod["spec"]["nodeName"]).collect();
            nodes.sort_by_key(|node| node.to_string());
            nodes.dedup();
            nodes.len() == count
                && pods.len() == count
                && pods.iter().all(|pod| pod["status"]["phase"] == "Running")
        }
    };
    wait(&kubectl, &of_agent, on(2));
    kubectl.ok(&["rollout", "status", "daemonset/agent", "--timeout=60s"]);
    kubectl.ok(&[
        "drain",
        "workers-node0",
        "--ignore-daemonsets",
        "--timeout=60s",
    ]);
    wait(&kubectl, &of_agent, on(2));
    let group = text(&cke.get(&path)["nodeGroups"][0]["id"]);
    let body = json!({"name": "workers", "targetNodeCount": 3});
    cke.kubernetes("PATCH", &format!("{path}/node-groups/{group}"), Some(&body))
        .ok();
    wait(&kubectl, &of_agent, on(3));
    kubectl.ok(&["set", "image", "daemonset/agent", "agent=agent:2.0"]);
    kubectl.ok(&["rollout", "status", "daemonset/agent", "--timeout=60s"]);
    let pods = wait(&kubectl, &of_agent, on(3));
    for pod in &pods {
        assert_eq!(pod["spec"]["containers"][0]["image"], "agent:2.0");
    }
    let table = kubectl.ok(&["get", "daemonset", "agent"]);
    let words: Vec<&str> = table
        .lines()
        .nth(1)
        .unwrap_or("")
        .split_whitespace()
        .collect();
    assert_eq!(&words[..6], ["agent", "3", "3", "3", "3", "3"], "{table}");
    kubectl.ok(&["delete", "daemonset", "agent"]);
    wait(&kubectl, &of_agent, <[Value]>::is_empty);
    cke.finish();
}
