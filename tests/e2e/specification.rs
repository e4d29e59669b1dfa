//! What the specification prints, to the letter, with the real clever CLI and the real kubectl: its passages
//! "Manage node groups" and "Pull images from authenticated registries".
//!
//! Others are in `nodegroup_resource`, `load_balancer_services`, `persistent_storage` and `topologies`.

use serde_json::{Value, json};

use crate::clever::Clever;
use crate::harness::{Cke, MANUAL};
use crate::kubectl::Kubectl;

const EXAMPLE: &str = "\
apiVersion: api.clever-cloud.com/v1
kind: NodeGroup
metadata:
  name: example-nodegroup
spec:
  flavor: M
  nodeCount: 2
";

const NODE_GROUPS: &str = "\
NAME                DESIREDNODECOUNT   CURRENTNODECOUNT   FLAVOR   STATUS   AGE
example-nodegroup   2                  2                  M        Synced   2m
";

const NODES: &str = "\
NAME                      STATUS   ROLES    AGE     VERSION
example-nodegroup-node0   Ready    <none>   6d17h   v1.36.0
example-nodegroup-node1   Ready    <none>   3d18h   v1.36.0
";

const PRIVATE: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: my-app
spec:
  replicas: 2
  selector:
    matchLabels:
      app: my-app
  template:
    metadata:
      labels:
        app: my-app
    spec:
      imagePullSecrets:
        - name: dockerhub-creds
      containers:
        - name: my-app
          image: myorg/my-private-image:1.0
";

const HOUR: u64 = 3600;

#[test]
fn the_tables_of_node_groups_and_nodes() {
    let cke = Cke::start(MANUAL);
    let clever = Clever::new(&cke);
    let organisation = cke.organisation();
    let dedicated =
        json!({"topology": "DEDICATED_COMPUTE", "flavor": "XS", "replicationFactor": 1});
    let id = cke.create(&json!({"name": "myCluster", "topologyConfig": dedicated}));
    cke.wait_for(&format!("/clusters/{id}"), "ACTIVE");
    let get = ["k8s", "get-kubeconfig", "myCluster", "--org", organisation];
    let kubectl = Kubectl::new(&clever.ok(&get));
    assert_eq!(
        kubectl.ok(&["get", "nodes"]),
        "",
        "none until there is a group"
    );

    let file = ["create", "-f", "-"];
    let said = kubectl.run_with_input(&file, EXAMPLE).ok();
    assert_eq!(
        said,
        "nodegroup.api.clever-cloud.com/example-nodegroup created\n"
    );
    // What was asked for at this instant is done, and none of it has had its time.
    cke.advance(0);
    let group = kubectl.json(&["get", "nodegroup", "example-nodegroup"]);
    assert_eq!(group["spec"]["nodeCount"], 2);
    assert_eq!(group["status"]["nodeCount"], 0, "it starts at 0: {group:#}");
    cke.advance(120);
    assert_eq!(kubectl.ok(&["get", "nodegroups"]), NODE_GROUPS);

    // The second node is taken away and comes back some days later.
    let scale = |count: u32| {
        let count = count.to_string();
        let update = [
            "k8s",
            "nodegroups",
            "update",
            "myCluster",
            "example-nodegroup",
        ];
        let options = ["--count", &count, "--org", organisation];
        let said = clever.ok(&[&update[..], &options].concat());
        assert_eq!(said, "\u{2713} Node group example-nodegroup updated\n");
        cke.advance(600);
    };
    scale(1);
    cke.advance((2 * 24 + 22) * HOUR + 3000);
    scale(2);
    cke.advance((3 * 24 + 18) * HOUR);
    assert_eq!(kubectl.ok(&["get", "nodes"]), NODES);
    cke.finish();
}

#[test]
fn credentials_for_registries() {
    let cke = Cke::start(MANUAL);
    let bundle = json!({"topology": "ALL_IN_ONE", "flavor": "S", "replicationFactor": 1});
    let id = cke.create(&json!({"name": "demo", "topologyConfig": bundle}));
    let path = format!("/clusters/{id}");
    cke.wait_for(&path, "ACTIVE");
    let kubeconfig = cke.kubernetes("GET", &format!("{path}/kubeconfig.yaml"), None);
    let kubectl = Kubectl::new(&kubeconfig.body);
    let said = kubectl.ok(&[
        "create",
        "secret",
        "docker-registry",
        "dockerhub-creds",
        "--docker-server=https://index.docker.io/v1/",
        "--docker-username=me",
        "--docker-password=secret",
        "--docker-email=me@example.com",
    ]);
    assert_eq!(said, "secret/dockerhub-creds created\n");
    let table = kubectl.ok(&["get", "secret", "dockerhub-creds"]);
    let kind = "kubernetes.io/dockerconfigjson   1";
    assert!(table.contains(kind), "{table}");
    assert_eq!(kubectl.apply(PRIVATE), "deployment.apps/my-app created\n");
    let patch = r#"{"imagePullSecrets":[{"name":"dockerhub-creds"}]}"#;
    let said = kubectl.ok(&["patch", "serviceaccount", "default", "-p", patch]);
    assert_eq!(said, "serviceaccount/default patched\n");
    // So every pod inherits them, whoever makes it.
    let said = kubectl.ok(&["run", "heir", "--image=myorg/other"]);
    assert_eq!(said, "pod/heir created\n");
    cke.advance(30);
    let pods = kubectl.json(&["get", "pods"]);
    let pods = pods["items"].as_array().expect("pods");
    assert_eq!(pods.len(), 3, "{pods:#?}");
    for pod in pods {
        let secrets: &Value = &pod["spec"]["imagePullSecrets"];
        assert_eq!(*secrets, json!([{"name": "dockerhub-creds"}]), "{pod:#}");
        assert_eq!(pod["status"]["phase"], "Running");
    }
    cke.finish();
}
