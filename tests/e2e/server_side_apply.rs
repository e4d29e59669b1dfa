//! `kubectl apply --server-side`.

use serde_json::Value;

use crate::harness::{Cke, FAST};
use crate::kubectl::Kubectl;

const DEPLOYMENT: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  labels: {app: web, team: a}
spec:
  replicas: 2
  selector:
    matchLabels: {app: web}
  template:
    metadata:
      labels: {app: web}
    spec:
      containers:
        - name: nginx
          image: nginx:1.30.0
          ports: [{containerPort: 80}]
";

fn apply(kubectl: &Kubectl, manifest: &str, more: &[&str]) -> crate::command::Said {
    let arguments = [&["apply", "--server-side", "-f", "-"], more].concat();
    kubectl.run_with_input(&arguments, manifest)
}

#[test]
fn fields_have_managers() {
    let cke = Cke::start(FAST);
    let id = cke.create_active("demo");
    let kubeconfig = cke.kubernetes("GET", &format!("/clusters/{id}/kubeconfig.yaml"), None);
    let kubectl = Kubectl::new(&kubeconfig.body);
    let applied = "deployment.apps/web serverside-applied\n";
    assert_eq!(apply(&kubectl, DEPLOYMENT, &[]).ok(), applied);
    let version = |found: &Value| found["metadata"]["resourceVersion"].clone();
    let spec = |found: &Value| found["spec"].clone();
    let first = kubectl.json(&["get", "deployment", "web"]);
    assert_eq!(apply(&kubectl, DEPLOYMENT, &[]).ok(), applied);
    assert_eq!(
        spec(&kubectl.json(&["get", "deployment", "web"])),
        spec(&first)
    );

    // What somebody else has changed meanwhile is not overwritten silently.
    kubectl.ok(&["scale", "deployment", "web", "--replicas=3"]);
    let said = apply(&kubectl, DEPLOYMENT, &[]).failed();
    assert!(
        said.contains(
            "Apply failed with 1 conflict: conflict with \"kubectl\" with subresource \"scale\" using \
             apps/v1: .spec.replicas"
        ),
        "{said}"
    );
    let found = kubectl.json(&["get", "deployment", "web"]);
    assert_eq!(found["spec"]["replicas"], 3);
    // What is not named stays with whom it is.
    let unnamed = DEPLOYMENT.replace("  replicas: 2\n", "");
    assert_eq!(apply(&kubectl, &unnamed, &[]).ok(), applied);
    let found = kubectl.json(&["get", "deployment", "web"]);
    assert_eq!(found["spec"]["replicas"], 3);
    assert_eq!(
        apply(&kubectl, DEPLOYMENT, &["--force-conflicts"]).ok(),
        applied
    );
    let found = kubectl.json(&["get", "deployment", "web"]);
    assert_eq!(found["spec"]["replicas"], 2);

    // What only the applier managed goes when it is no longer named.
    let fewer = DEPLOYMENT.replace(", team: a", "");
    apply(&kubectl, &fewer, &[]).ok();
    let found = kubectl.json(&["get", "deployment", "web"]);
    assert_eq!(
        found["metadata"]["labels"],
        serde_json::json!({"app": "web"})
    );
    let said = kubectl.ok(&[
        "get",
        "deployment",
        "web",
        "-o",
        "yaml",
        "--show-managed-fields",
    ]);
    for part in [
        "manager: kubectl",
        "operation: Apply",
        "k:{\"name\":\"nginx\"}:",
    ] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }

    // From one side to the other, and a dry run changes nothing.
    let other = DEPLOYMENT.replace("name: web\n", "name: api\n");
    kubectl.apply(&other);
    let before = kubectl.json(&["get", "deployment", "api"]);
    let changed = other.replace("nginx:1.30.0", "nginx:1.31.0");
    let said = apply(&kubectl, &changed, &["--dry-run=server"]).ok();
    assert_eq!(
        said,
        "deployment.apps/api serverside-applied (server dry run)\n"
    );
    let after = kubectl.json(&["get", "deployment", "api"]);
    assert_eq!(spec(&before), spec(&after));
    assert_ne!(version(&first), Value::Null);
    apply(&kubectl, &changed, &[]).ok();
    let after = kubectl.json(&["get", "deployment", "api"]);
    let image = &after["spec"]["template"]["spec"]["containers"][0]["image"];
    assert_eq!(image, "nginx:1.31.0");

    let wrong = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: A}\n";
    let said = apply(&kubectl, wrong, &[]).failed();
    assert!(said.contains("is invalid: metadata.name"), "{said}");
    cke.finish();
}
