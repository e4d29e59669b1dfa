//! Services of type LoadBalancer with kubectl: the specification's passages "Deployment with a load balancer
//! service" and "Quotas and limits", and what the provider has meanwhile.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::clever::Clever;
use crate::harness::{Cke, FAST, text};
use crate::kubectl::Kubectl;

/// As the specification has it.
const DEPLOYMENT_DEMO: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: nginx-deployment
spec:
  selector:
    matchLabels:
      app: nginx
  replicas: 2 # tells deployment to run 2 pods matching the template
  template:
    metadata:
      labels:
        app: nginx
    spec:
      containers:
        - name: nginx
          image: nginx:1.30.0
          ports:
            - containerPort: 80
---
apiVersion: v1
kind: Service
metadata:
  name: nginx-service
  labels:
    app: nginx
spec:
  type: LoadBalancer
  selector:
    app: nginx
  ports:
    - protocol: TCP
      port: 80        # Port accessible from outside the cluster
      targetPort: 80  # Port on which the container is listening
";

/// The service, once it is as expected.
#[track_caller]
fn wait(kubectl: &Kubectl, name: &str, satisfied: impl Fn(&Value) -> bool) -> Value {
    let started = Instant::now();
    loop {
        let found = kubectl.json(&["get", "service", name]);
        if satisfied(&found) {
            return found;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{found:#}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn addresses(service: &Value) -> Vec<String> {
    let ingress = service["status"]["loadBalancer"]["ingress"].as_array();
    let ingress = ingress.into_iter().flatten();
    ingress.map(|one| text(&one["ip"])).collect()
}

/// The provider's load balancers, once they are as expected.
#[track_caller]
fn wait_upstream(cke: &Cke, satisfied: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let organisation = cke.organisation();
    let path = format!("/v4/loadbalancers/organisations/{organisation}/loadbalancers");
    let started = Instant::now();
    loop {
        let found = cke.request("GET", &path, None).ok();
        let found = found.as_array().expect("a list").clone();
        if satisfied(&found) {
            return found;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{found:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn servers(upstream: &Value) -> Vec<String> {
    let servers = upstream["clusters"][0]["backends"]["servers"].as_array();
    servers.into_iter().flatten().map(text).collect()
}

#[test]
fn the_passage_of_the_specification() {
    let cke = Cke::start(FAST);
    let clever = Clever::fresh(&cke);
    clever.ok(&["features", "enable", "k8s"]);
    let organisation = cke.organisation();
    let k8s = |arguments: &[&str]| {
        let whole = [&["k8s"], arguments, &["--org", organisation]].concat();
        clever.ok(&whole)
    };
    k8s(&["create", "demo"]);
    let started = Instant::now();
    while clever.json(&["k8s", "get", "demo", "--org", organisation])["status"] != "ACTIVE" {
        assert!(started.elapsed() < Duration::from_secs(60));
    }
    let kubectl = Kubectl::new(&k8s(&["get-kubeconfig", "demo"]));

    let create = [
        "create",
        "deployment",
        "nginx",
        "--image=nginx:alpine",
        "--replicas=2",
    ];
    assert_eq!(kubectl.ok(&create), "deployment.apps/nginx created\n");
    let expose = [
        "expose",
        "deployment/nginx",
        "--type=LoadBalancer",
        "--port",
        "80",
    ];
    assert_eq!(kubectl.ok(&expose), "service/nginx exposed\n");
    let first = wait(&kubectl, "nginx", |it| addresses(it).len() == 2);
    let ips = addresses(&first);
    let hostname = text(&first["status"]["loadBalancer"]["ingress"][0]["hostname"]);
    assert!(hostname.ends_with(".lb.par.kubernetes.test"), "{hostname}");
    let node_port = first["spec"]["ports"][0]["nodePort"]
        .as_i64()
        .expect("a port");
    assert!((30_000..=32_767).contains(&node_port), "{node_port}");
    let table = kubectl.ok(&["get", "service", "nginx"]);
    assert!(table.contains(&ips.join(",")), "{table}");
    assert!(table.contains(&format!("80:{node_port}/TCP")), "{table}");
    let said = kubectl.ok(&["describe", "service", "nginx"]);
    for part in [
        &format!("LoadBalancer Ingress:     {}", ips[0]) as &str,
        "Ensuring load balancer",
        "Ensured load balancer",
    ] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    // What the provider has is what the service says, and the nodes get the connections.
    let nodes =
        |count: usize| move |found: &[Value]| found.len() == 1 && servers(&found[0]).len() == count;
    let upstream = wait_upstream(&cke, nodes(1));
    assert_eq!(upstream[0]["ips"], json!(ips));
    assert_eq!(upstream[0]["domainName"], json!(hostname));
    assert_eq!(
        upstream[0]["listeners"],
        json!([{"id": "tcp-80", "port": 80, "transport": "TCP"}])
    );
    for server in servers(&upstream[0]) {
        assert!(server.ends_with(&format!(":{node_port}")), "{server}");
    }

    // The second one is over the quota: accepted, and pending until the quota is lifted.
    let said = kubectl.apply(DEPLOYMENT_DEMO);
    assert_eq!(
        said,
        "deployment.apps/nginx-deployment created\nservice/nginx-service created\n"
    );
    let started = Instant::now();
    loop {
        let said = kubectl.ok(&["describe", "svc", "nginx-service"]);
        if said.contains("507 Insufficient Storage: Quota exceeded: IP max: limit = 2 | actual = 4")
        {
            assert!(said.contains("SyncLoadBalancerFailed"), "{said}");
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(30), "{said}");
    }
    let table = kubectl.ok(&["get", "svc", "nginx-service"]);
    assert!(table.contains("<pending>"), "{table}");
    let path = format!("/_sim/organisations/{}/quota", cke.organisation());
    let lifted = cke.request("PUT", &path, Some(r#"{"ips": 4}"#));
    assert_eq!(lifted.status, 200, "{lifted:#?}");
    let second = wait(&kubectl, "nginx-service", |it| addresses(it).len() == 2);
    for ip in addresses(&second) {
        assert!(!ips.contains(&ip), "{ip}");
    }
    wait_upstream(&cke, |found| found.len() == 2);

    // Deletion waits for the addresses to be given back.
    let said = kubectl.ok(&["delete", "service", "nginx-service"]);
    assert!(
        said.starts_with("service \"nginx-service\" deleted"),
        "{said}"
    );
    wait_upstream(&cke, |found| found.len() == 1);

    // The load balancer follows the ports and the nodes.
    k8s(&["nodegroups", "create", "demo", "workers", "XS:1"]);
    wait_upstream(&cke, nodes(2));
    let ports = r#"{"spec": {"ports": [{"name": "https", "port": 443}, {"name": "dns", "port": 53, "protocol": "UDP"}]}}"#;
    kubectl.ok(&["patch", "service", "nginx", "--type=merge", "-p", ports]);
    let upstream = wait_upstream(&cke, |found| found[0]["listeners"][0]["port"] == 443);
    assert_eq!(upstream[0]["listeners"][1]["transport"], "UDP");
    assert_eq!(upstream[0]["ips"], json!(ips));

    // Of another type, it gives the load balancer back and stays.
    let plain = r#"{"spec": {"type": "ClusterIP"}}"#;
    kubectl.ok(&["patch", "service", "nginx", "--type=merge", "-p", plain]);
    wait_upstream(&cke, <[Value]>::is_empty);
    let bare = wait(&kubectl, "nginx", |it| {
        it["metadata"]["finalizers"].is_null()
    });
    assert_eq!(bare["status"]["loadBalancer"], json!({}));
    assert_eq!(bare["spec"]["ports"][0]["nodePort"], Value::Null);

    // The cluster takes what is left with it.
    let balanced = r#"{"spec": {"type": "LoadBalancer"}}"#;
    kubectl.ok(&["patch", "service", "nginx", "--type=merge", "-p", balanced]);
    wait_upstream(&cke, |found| found.len() == 1);
    k8s(&["delete", "demo", "--yes"]);
    wait_upstream(&cke, <[Value]>::is_empty);
    cke.finish();
}

#[test]
fn without_its_component_a_service_stays_pending() {
    let cke = Cke::start(FAST);
    let component = json!({"flavor": "2XS", "replicationFactor": 1});
    let names = [
        "apiserver",
        "controllerManager",
        "scheduler",
        "nodeGroupOperator",
        "cloudControllerManager",
    ];
    let components: serde_json::Map<String, Value> = names
        .into_iter()
        .map(|name| (name.to_owned(), component.clone()))
        .collect();
    let id = cke.create(&json!({"name": "demo",
        "topologyConfig": {"topology": "DISTRIBUTED", "components": components}}));
    let path = format!("/clusters/{id}");
    cke.wait_for(&path, "ACTIVE");
    let kubeconfig = cke.kubernetes("GET", &format!("{path}/kubeconfig.yaml"), None);
    let kubectl = Kubectl::new(&kubeconfig.body);
    let vms = cke
        .request("GET", &format!("/_sim/vms?cluster={id}"), None)
        .ok();
    let vm = vms
        .as_array()
        .expect("a list")
        .iter()
        .find(|vm| text(&vm["name"]).contains("cloud-controller-manager"));
    let vm = text(&vm.unwrap_or_else(|| panic!("{vms:#}"))["id"]);
    // It is not to be replaced while we look.
    cke.request("POST", "/_sim/clock/pause", None).ok();
    cke.request("POST", &format!("/_sim/vms/{vm}/wedge"), None)
        .ok();
    kubectl.ok(&["create", "service", "loadbalancer", "web", "--tcp=80"]);
    let said = kubectl.ok(&["describe", "service", "web"]);
    assert!(said.contains("Events:                   <none>"), "{said}");
    // Its VM answers again: what was left is done.
    cke.request("POST", &format!("/_sim/vms/{vm}/recover"), None)
        .ok();
    cke.request("POST", "/_sim/clock/resume", None).ok();
    wait(&kubectl, "web", |it| addresses(it).len() == 2);
    kubectl.ok(&["delete", "service", "web"]);
    wait_upstream(&cke, <[Value]>::is_empty);
    cke.finish();
}
