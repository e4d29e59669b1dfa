//! A cluster's own API, with kubectl.

use serde_json::json;

use crate::harness::{Cke, FAST, text};
use crate::kubectl::Kubectl;

fn cluster() -> (Cke, String, Kubectl) {
    let cke = Cke::start(FAST);
    let id = cke.create(&json!({"name": "demo",
        "nodeGroups": [{"name": "workers", "flavor": "XS", "targetNodeCount": 2}]}));
    let path = format!("/clusters/{id}");
    cke.wait_until(&path, |cluster| {
        cluster["status"] == "ACTIVE" && cluster["nodeGroups"][0]["status"] == "READY"
    });
    let kubeconfig = cke.kubernetes("GET", &format!("{path}/kubeconfig.yaml"), None);
    assert_eq!(kubeconfig.status, 200, "{kubeconfig:#?}");
    let kubectl = Kubectl::new(&kubeconfig.body);
    (cke, path, kubectl)
}

#[test]
fn nodes_are_the_workers() {
    let (cke, path, kubectl) = cluster();
    let nodes = kubectl.json(&["get", "nodes"]);
    let nodes = nodes["items"].as_array().expect("items");
    let names: Vec<String> = nodes
        .iter()
        .map(|it| text(&it["metadata"]["name"]))
        .collect();
    assert_eq!(names, ["workers-node0", "workers-node1"]);
    for node in nodes {
        let labels = &node["metadata"]["labels"];
        assert_eq!(labels["clever-cloud.com/nodegroup"], "workers");
        assert_eq!(labels["clever-cloud.com/flavor"], "XS");
        assert_eq!(labels["clever-cloud.com/cluster-node-role"], "worker");
        assert_eq!(node["status"]["capacity"]["cpu"], "6");
        assert_eq!(node["status"]["capacity"]["memory"], "7937580Ki");
        assert_eq!(node["status"]["nodeInfo"]["kubeletVersion"], "v1.36.0");
        assert!(node["spec"].get("providerID").is_none(), "{node:#}");
        let conditions = node["status"]["conditions"].as_array().expect("conditions");
        let ready = conditions.iter().find(|it| it["type"] == "Ready");
        assert_eq!(
            ready.map(|it| &it["status"]),
            Some(&json!("True")),
            "{node:#}"
        );
    }
    let version = kubectl.json(&["version"]);
    assert_eq!(version["serverVersion"]["minor"], "36");

    // A node goes with its VM.
    let group = text(&cke.get(&format!("{path}/node-groups"))[0]["id"]);
    let group = format!("{path}/node-groups/{group}");
    let body = json!({"name": "workers", "targetNodeCount": 1});
    cke.kubernetes("PATCH", &group, Some(&body)).ok();
    cke.wait_for(&group, "READY");
    let nodes = kubectl.json(&["get", "nodes"]);
    assert_eq!(
        nodes["items"].as_array().map(Vec::len),
        Some(1),
        "{nodes:#}"
    );
    cke.finish();
}

#[test]
fn the_first_objects_are_there() {
    let (cke, _, kubectl) = cluster();
    let namespaces = kubectl.ok(&["get", "namespaces", "-o", "name"]);
    for name in ["default", "kube-node-lease", "kube-public", "kube-system"] {
        assert!(
            namespaces.contains(&format!("namespace/{name}\n")),
            "{namespaces}"
        );
    }
    let service = kubectl.ok(&["get", "service", "kubernetes", "-o", "name"]);
    assert_eq!(service, "service/kubernetes\n");
    let account = kubectl.ok(&["get", "serviceaccount", "default", "-o", "name"]);
    assert_eq!(account, "serviceaccount/default\n");
    let resources = kubectl.ok(&["api-resources"]);
    for name in [
        "configmaps",
        "secrets",
        "pods",
        "nodes",
        "services",
        "leases",
        "nodegroups",
    ] {
        assert!(resources.contains(name), "{name}: {resources}");
    }
    cke.finish();
}

#[test]
fn objects_are_created_changed_and_deleted() {
    let (cke, _, kubectl) = cluster();
    let manifest = |value: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: settings\n  labels: {{app: demo}}\ndata:\n  key: {value}\n"
        )
    };
    let said = kubectl.apply(&manifest("one"));
    assert_eq!(said, "configmap/settings created\n");
    let said = kubectl.apply(&manifest("one"));
    assert_eq!(said, "configmap/settings unchanged\n");
    let said = kubectl.apply(&manifest("two"));
    assert_eq!(said, "configmap/settings configured\n");
    let value = kubectl.ok(&["get", "configmap", "settings", "-o", "jsonpath={.data.key}"]);
    assert_eq!(value, "two");
    let table = kubectl.ok(&["get", "configmaps", "-l", "app=demo"]);
    let columns: Vec<&str> = table
        .lines()
        .flat_map(|line| line.split_whitespace())
        .collect();
    assert_eq!(
        &columns[..5],
        ["NAME", "DATA", "AGE", "settings", "1"],
        "{table}"
    );
    kubectl.ok(&["label", "configmap", "settings", "tier=back"]);
    kubectl.ok(&[
        "patch",
        "configmap",
        "settings",
        "--type",
        "json",
        "-p",
        r#"[{"op":"replace","path":"/data/key","value":"three"}]"#,
    ]);
    let found = kubectl.json(&["get", "configmap", "settings"]);
    assert_eq!(found["data"]["key"], "three");
    assert_eq!(
        found["metadata"]["labels"],
        json!({"app": "demo", "tier": "back"})
    );

    kubectl.ok(&["create", "namespace", "team"]);
    kubectl.ok(&[
        "create",
        "secret",
        "generic",
        "token",
        "-n",
        "team",
        "--from-literal=a=b",
    ]);
    let all = kubectl.ok(&["get", "secrets", "-A", "-o", "name"]);
    assert!(all.contains("secret/token"), "{all}");
    let other = kubectl.ok(&["get", "secrets", "-o", "name"]);
    assert!(!other.contains("secret/token"), "{other}");

    kubectl.ok(&["delete", "configmap", "settings"]);
    let stderr = kubectl.run(&["get", "configmap", "settings"]).failed();
    assert_eq!(
        stderr,
        "Error from server (NotFound): configmaps \"settings\" not found\n"
    );
    cke.finish();
}

/// A kubeconfig opens one cluster, until that is deleted.
/// kubectl's own generators send protobuf.
#[test]
fn typed_clients_send_protobuf() {
    let (cke, _, kubectl) = cluster();
    let said = kubectl.ok(&[
        "run",
        "web",
        "--image=nginx:1",
        "--port=80",
        "--labels=app=web",
    ]);
    assert_eq!(said, "pod/web created\n");
    kubectl.ok(&["wait", "--for=condition=Ready", "pod/web", "--timeout=30s"]);
    let pod = kubectl.json(&["get", "pod", "web"]);
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(pod["status"]["qosClass"], "BestEffort");
    assert_eq!(
        pod["spec"]["containers"][0]["ports"],
        json!([{"containerPort": 80, "protocol": "TCP"}])
    );
    kubectl.ok(&["create", "service", "clusterip", "web", "--tcp=80:8080"]);
    let service = kubectl.json(&["get", "service", "web"]);
    assert_eq!(service["spec"]["ports"][0]["targetPort"], 8080);
    assert_eq!(service["spec"]["selector"], json!({"app": "web"}));
    kubectl.ok(&["create", "serviceaccount", "robot"]);
    let stderr = kubectl.run(&["create", "serviceaccount", "robot"]).failed();
    assert_eq!(
        stderr,
        "error: failed to create serviceaccount: serviceaccounts \"robot\" already exists\n"
    );
    kubectl.ok(&["delete", "pod", "web"]);
    kubectl.ok(&["wait", "--for=delete", "pod/web", "--timeout=10s"]);
    cke.finish();
}

#[test]
fn clusters_are_apart() {
    let (cke, path, kubectl) = cluster();
    let other = cke.create_active("other");
    let kubeconfig = cke.kubernetes("GET", &format!("/clusters/{other}/kubeconfig.yaml"), None);
    let other_kubectl = Kubectl::new(&kubeconfig.body);
    kubectl.ok(&["create", "configmap", "mine"]);
    let found = other_kubectl.ok(&["get", "configmaps", "-o", "name"]);
    assert!(!found.contains("mine"), "{found}");
    // One cluster's certificate is worth nothing at another's address.
    let id = path.strip_prefix("/clusters/").expect("a path");
    let mixed = kubeconfig.body.replace(&other, id);
    assert_ne!(mixed, kubeconfig.body);
    let said = Kubectl::new(&mixed).run(&["get", "configmaps", "--insecure-skip-tls-verify=false"]);
    assert_ne!(said.code, Some(0), "{said:#?}");

    cke.kubernetes("DELETE", &path, None).ok();
    cke.wait_gone(&path);
    let said = kubectl.run(&["get", "configmaps"]);
    assert_ne!(said.code, Some(0), "{said:#?}");
    other_kubectl.ok(&["get", "nodes"]);
    cke.finish();
}

/// Data survives kill -9, and so does an issued kubeconfig.
#[test]
fn objects_survive_a_crash() {
    let (mut cke, _, kubectl) = cluster();
    kubectl.ok(&["create", "configmap", "kept", "--from-literal=a=b"]);
    cke.restart();
    let value = kubectl.ok(&["get", "configmap", "kept", "-o", "jsonpath={.data.a}"]);
    assert_eq!(value, "b");
    let nodes = kubectl.json(&["get", "nodes"]);
    assert_eq!(
        nodes["items"].as_array().map(Vec::len),
        Some(2),
        "{nodes:#}"
    );
    cke.finish();
}
