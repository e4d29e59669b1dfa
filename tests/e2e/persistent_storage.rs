//! Persistent storage with clever and kubectl: the specification's passage "Add persistent storage (CSI)", and
//! claims as pods use them.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::clever::Clever;
use crate::harness::{Cke, FAST, text};
use crate::kubectl::Kubectl;

const GIB: u64 = 1 << 30;

const CLAIM_AND_POD: &str = "\
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: data
spec:
  accessModes: [ReadWriteOnce]
  resources:
    requests:
      storage: 10Gi
---
apiVersion: v1
kind: Pod
metadata:
  name: database
spec:
  containers:
    - name: postgres
      image: postgres:18
      volumeMounts:
        - name: data
          mountPath: /var/lib/postgresql
  volumes:
    - name: data
      persistentVolumeClaim:
        claimName: data
";

/// The object, once it is as expected.
#[track_caller]
fn wait(kubectl: &Kubectl, object: &[&str], satisfied: impl Fn(&Value) -> bool) -> Value {
    let started = Instant::now();
    let arguments = [&["get"], object].concat();
    loop {
        let found = kubectl.json(&arguments);
        if satisfied(&found) {
            return found;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{found:#}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn storages(cke: &Cke) -> Vec<Value> {
    let path = format!("/v4/tenants/{}/storages", cke.organisation());
    let found = cke.request("GET", &path, None).ok();
    found.as_array().expect("a list").clone()
}

#[track_caller]
fn wait_for_storages(cke: &Cke, count: usize) -> Vec<Value> {
    let started = Instant::now();
    loop {
        let found = storages(cke);
        if found.len() == count {
            return found;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{found:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn the_passage_of_the_specification() {
    let cke = Cke::start(FAST);
    let clever = Clever::fresh(&cke);
    let organisation = cke.organisation();
    clever.ok(&["features", "enable", "k8s"]);
    let k8s = |arguments: &[&str]| {
        let whole = [&["k8s"], arguments, &["--org", organisation]].concat();
        clever.ok(&whole)
    };
    k8s(&["create", "demo"]);
    let listed = cke.kubernetes("GET", "/clusters", None).ok();
    let path = format!("/clusters/{}", text(&listed[0]["id"]));
    cke.wait_for(&path, "ACTIVE");
    let kubectl = Kubectl::new(&k8s(&["get-kubeconfig", "demo"]));
    // Without it there is no class, and a claim says so.
    let classes = kubectl.run(&["get", "storageclasses"]);
    assert_eq!(classes.stderr, "No resources found\n", "{classes:#?}");
    kubectl.apply(CLAIM_AND_POD);
    let started = Instant::now();
    loop {
        let said = kubectl.ok(&["describe", "pvc", "data"]);
        if said
            .contains("no persistent volumes available for this claim and no storage class is set")
        {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(30), "{said}");
    }
    let unbound = |pod: &Value| {
        let conditions = pod["status"]["conditions"].as_array();
        conditions.into_iter().flatten().any(|it| {
            it["message"]
                == "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."
        })
    };
    wait(&kubectl, &["pod", "database"], unbound);
    kubectl.ok(&["delete", "pod/database", "pvc/data"]);
    assert_eq!(storages(&cke), Vec::<Value>::new());

    k8s(&["add-persistent-storage", "demo"]);
    let enabled =
        |cluster: &Value| cluster["status"] == "ACTIVE" && cluster["features"]["csi"] == true;
    cke.wait_until(&path, enabled);
    let classes = kubectl.ok(&["get", "storageclasses"]);
    let words: Vec<&str> = classes
        .lines()
        .nth(1)
        .unwrap_or("")
        .split_whitespace()
        .collect();
    assert_eq!(
        &words[..6],
        [
            "csi-rbd-sc",
            "(default)",
            "rbd.csi.ceph.com",
            "Delete",
            "Immediate",
            "true"
        ],
        "{classes}"
    );

    kubectl.apply(CLAIM_AND_POD);
    let claim = wait(&kubectl, &["pvc", "data"], |it| {
        it["status"]["phase"] == "Bound"
    });
    assert_eq!(claim["spec"]["storageClassName"], "csi-rbd-sc");
    assert_eq!(claim["status"]["capacity"]["storage"], "10Gi");
    let name = text(&claim["spec"]["volumeName"]);
    assert_eq!(name, format!("pvc-{}", text(&claim["metadata"]["uid"])));
    let volume = wait(&kubectl, &["pv", &name], |it| {
        it["status"]["phase"] == "Bound"
    });
    assert_eq!(volume["spec"]["capacity"]["storage"], "10Gi");
    assert_eq!(volume["spec"]["claimRef"]["name"], "data");
    wait(&kubectl, &["pod", "database"], |it| {
        it["status"]["phase"] == "Running"
    });
    let said = kubectl.ok(&["describe", "pvc", "data"]);
    for part in [
        "ExternalProvisioning",
        &format!("Successfully provisioned volume {name}"),
    ] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    // What the provider has is what the cluster says.
    let stored = wait_for_storages(&cke, 1);
    assert_eq!(stored[0]["id"], volume["spec"]["csi"]["volumeHandle"]);
    assert_eq!(stored[0]["sizeBytes"], 10 * GIB);
    let id = text(&stored[0]["id"]);
    assert_eq!(cke.get(&path)["storageUsageBytes"], 0);
    let usage = json!({"usedBytes": 3 * GIB}).to_string();
    let target = format!("/_sim/volumes/{id}/usage");
    cke.request("PUT", &target, Some(&usage)).ok();
    assert_eq!(cke.get(&path)["storageUsageBytes"], 3 * GIB);
    let usage = json!({"usedBytes": 11 * GIB}).to_string();
    assert_eq!(cke.request("PUT", &target, Some(&usage)).status, 400);

    // It grows, and does not shrink.
    let ask = |size: &str| {
        let patch = json!({"spec": {"resources": {"requests": {"storage": size}}}}).to_string();
        kubectl.run(&["patch", "pvc", "data", "--type=merge", "-p", &patch])
    };
    ask("20Gi").ok();
    wait(&kubectl, &["pvc", "data"], |it| {
        it["status"]["capacity"]["storage"] == "20Gi"
    });
    assert_eq!(storages(&cke)[0]["sizeBytes"], 20 * GIB);
    let said = ask("5Gi").failed();
    assert_eq!(
        said,
        "The PersistentVolumeClaim \"data\" is invalid: spec.resources.requests.storage: Forbidden: \
         field can not be less than status.capacity\n"
    );

    // A claim that a pod uses stays until the pod is gone; then its volume is given back.
    kubectl.ok(&["delete", "pvc", "data", "--wait=false"]);
    let table = kubectl.ok(&["get", "pvc", "data"]);
    assert!(table.contains("Terminating"), "{table}");
    assert_eq!(storages(&cke).len(), 1);
    kubectl.ok(&["delete", "pod", "database"]);
    wait_for_storages(&cke, 0);
    let left = wait(&kubectl, &["pv,pvc"], |it| it["items"] == json!([]));
    assert_eq!(left["items"], json!([]));
    assert_eq!(cke.get(&path)["storageUsageBytes"], 0);

    // A namespace takes its claims with it, and the cluster takes the rest.
    kubectl.ok(&["create", "namespace", "team"]);
    let claim = CLAIM_AND_POD.split("---").next().unwrap_or("");
    kubectl
        .run_with_input(&["apply", "-n", "team", "-f", "-"], claim)
        .ok();
    wait_for_storages(&cke, 1);
    kubectl.ok(&["delete", "namespace", "team", "--timeout=60s"]);
    wait_for_storages(&cke, 0);
    kubectl.apply(claim);
    wait_for_storages(&cke, 1);
    k8s(&["delete", "demo", "--yes"]);
    wait_for_storages(&cke, 0);
    cke.finish();
}

#[test]
fn a_cluster_may_have_it_from_the_beginning() {
    let cke = Cke::start(FAST);
    let id = cke.create(&json!({"name": "demo", "features": {"csi": true},
        "topologyConfig": {"topology": "ALL_IN_ONE", "flavor": "S", "replicationFactor": 1}}));
    let path = format!("/clusters/{id}");
    cke.wait_for(&path, "ACTIVE");
    let kubeconfig = cke.kubernetes("GET", &format!("{path}/kubeconfig.yaml"), None);
    let kubectl = Kubectl::new(&kubeconfig.body);
    wait(&kubectl, &["storageclass"], |it| {
        it["items"][0]["metadata"]["name"] == "csi-rbd-sc"
    });

    // Bound only once a pod needs it, kept when it is released, and not for everybody.
    kubectl.apply(
        "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: lazy}\nprovisioner: \
         rbd.csi.ceph.com\nreclaimPolicy: Retain\nvolumeBindingMode: WaitForFirstConsumer\n",
    );
    let lazy = CLAIM_AND_POD.replace(
        "spec:\n  accessModes",
        "spec:\n  storageClassName: lazy\n  accessModes",
    );
    let (claim, pod) = lazy.split_once("---\n").expect("two");
    kubectl.apply(claim);
    let started = Instant::now();
    while !kubectl
        .ok(&["describe", "pvc", "data"])
        .contains("waiting for first consumer")
    {
        assert!(started.elapsed() < Duration::from_secs(30));
    }
    assert_eq!(storages(&cke), Vec::<Value>::new());
    kubectl.apply(pod);
    wait(&kubectl, &["pod", "database"], |it| {
        it["status"]["phase"] == "Running"
    });
    let volume = text(&kubectl.json(&["get", "pvc", "data"])["spec"]["volumeName"]);
    let patch = r#"{"spec": {"resources": {"requests": {"storage": "20Gi"}}}}"#;
    let said = kubectl
        .run(&["patch", "pvc", "data", "--type=merge", "-p", patch])
        .failed();
    assert!(
        said.contains("the storageclass that provisions the pvc must support resize"),
        "{said}"
    );
    kubectl.ok(&["delete", "pod/database", "pvc/data"]);
    wait(&kubectl, &["pv", &volume], |it| {
        it["status"]["phase"] == "Released"
    });
    kubectl.ok(&["delete", "pv", &volume]);
    assert_eq!(wait_for_storages(&cke, 1).len(), 1);

    let shared = CLAIM_AND_POD.replace("ReadWriteOnce", "ReadWriteMany");
    kubectl.apply(shared.split("---").next().unwrap_or(""));
    let started = Instant::now();
    let refused = "multi node access modes are only supported on rbd `block` type volumes";
    while !kubectl.ok(&["describe", "pvc", "data"]).contains(refused) {
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    // Through the doors: what a stranger may not, and what is no storage.
    let target = format!("/v4/tenants/{}/storages", cke.organisation());
    let check = |body: Value, status: u16| {
        let answer = cke.request("POST", &target, Some(&body.to_string()));
        assert_eq!(answer.status, status, "{body}: {answer:#?}");
    };
    check(json!({}), 400);
    check(
        json!({"name": "a", "sizeBytes": 0, "kubernetesClusterId": id}),
        400,
    );
    check(
        json!({"name": "", "sizeBytes": 1, "kubernetesClusterId": id}),
        400,
    );
    check(
        json!({"name": "a", "sizeBytes": 1, "kubernetesClusterId": "x"}),
        404,
    );
    check(
        json!({"name": "a", "sizeBytes": 5, "kubernetesClusterId": id}),
        201,
    );
    check(
        json!({"name": "a", "sizeBytes": 5, "kubernetesClusterId": id}),
        201,
    );
    check(
        json!({"name": "a", "sizeBytes": 6, "kubernetesClusterId": id}),
        409,
    );
    let other = cke.create(&json!({"name": "bare"}));
    check(
        json!({"name": "a", "sizeBytes": 5, "kubernetesClusterId": other}),
        412,
    );
    assert_eq!(
        cke.request("GET", &format!("{target}/storage_x"), None)
            .status,
        404
    );
    assert_eq!(storages(&cke).len(), 2);
    cke.finish();
}
