//! A cluster's own API, with the crate `kube`.

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::api::{
    DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::json;

use crate::harness::{Cke, FAST};

async fn client(kubeconfig: &str) -> Client {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).expect("a kubeconfig");
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .expect("a configuration");
    Client::try_from(config).expect("a client")
}

#[test]
fn lists_watches_and_conflicts() {
    let cke = Cke::start(FAST);
    let id = cke.create(&json!({"name": "demo",
        "nodeGroups": [{"name": "workers", "flavor": "2XS", "targetNodeCount": 1}]}));
    let path = format!("/clusters/{id}");
    cke.wait_until(&path, |cluster| {
        cluster["status"] == "ACTIVE" && cluster["nodeGroups"][0]["status"] == "READY"
    });
    let kubeconfig = cke
        .kubernetes("GET", &format!("{path}/kubeconfig.yaml"), None)
        .body;
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let limit = std::time::Duration::from_secs(60);
    runtime
        .block_on(async { tokio::time::timeout(limit, drive(&kubeconfig)).await })
        .expect("it ends");
    cke.finish();
}

async fn drive(kubeconfig: &str) {
    let client = client(kubeconfig).await;
    let version = client.apiserver_version().await.expect("a version");
    assert_eq!(
        (version.major.as_str(), version.minor.as_str()),
        ("1", "36")
    );
    let nodes: Api<Node> = Api::all(client.clone());
    let names: Vec<String> = nodes
        .list(&ListParams::default())
        .await
        .expect("nodes")
        .items
        .into_iter()
        .filter_map(|node| node.metadata.name)
        .collect();
    assert_eq!(names, ["workers-node0"]);

    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    let listed = maps.list(&ListParams::default()).await.expect("a list");
    let revision = listed.metadata.resource_version.expect("a revision");
    let mut events = maps
        .watch(&WatchParams::default(), &revision)
        .await
        .expect("a watch")
        .boxed();

    let new: ConfigMap = serde_json::from_value(json!({
        "metadata": {"name": "one"}, "data": {"a": "1"}}))
    .expect("a config map");
    let created = maps
        .create(&PostParams::default(), &new)
        .await
        .expect("created");
    let again = maps.create(&PostParams::default(), &new).await;
    assert!(is_status(&again, 409, "AlreadyExists"), "{again:?}");

    let mut changed = created.clone();
    changed.data = Some([(String::from("a"), String::from("2"))].into());
    let replaced = maps
        .replace("one", &PostParams::default(), &changed)
        .await
        .expect("replaced");
    // What was read before the change is stale now.
    let stale = maps.replace("one", &PostParams::default(), &changed).await;
    assert!(is_status(&stale, 409, "Conflict"), "{stale:?}");
    assert_ne!(
        created.metadata.resource_version,
        replaced.metadata.resource_version
    );
    assert_eq!(created.metadata.uid, replaced.metadata.uid);

    let patch = Patch::Merge(json!({"data": {"a": null, "b": "3"}}));
    let patched = maps
        .patch("one", &PatchParams::default(), &patch)
        .await
        .expect("patched");
    assert_eq!(
        patched.data,
        Some([(String::from("b"), String::from("3"))].into())
    );
    maps.delete("one", &DeleteParams::default())
        .await
        .expect("deleted");
    let gone = maps.get("one").await;
    assert!(is_status(&gone, 404, "NotFound"), "{gone:?}");

    let mut seen = Vec::new();
    while seen.len() < 4 {
        let event = events
            .try_next()
            .await
            .expect("an event")
            .expect("the watch is open");
        let (kind, map) = match event {
            WatchEvent::Added(map) => ("ADDED", map),
            WatchEvent::Modified(map) => ("MODIFIED", map),
            WatchEvent::Deleted(map) => ("DELETED", map),
            WatchEvent::Bookmark(_) => continue,
            WatchEvent::Error(error) => panic!("{error:?}"),
        };
        if map.metadata.name.as_deref() == Some("one") {
            seen.push((
                kind,
                map.data.unwrap_or_default().into_iter().collect::<Vec<_>>(),
            ));
        }
    }
    let data = |key: &str, value: &str| vec![(key.to_owned(), value.to_owned())];
    assert_eq!(
        seen,
        [
            ("ADDED", data("a", "1")),
            ("MODIFIED", data("a", "2")),
            ("MODIFIED", data("b", "3")),
            ("DELETED", data("b", "3")),
        ]
    );
}

fn is_status<T>(result: &kube::Result<T>, code: u16, reason: &str) -> bool {
    match result {
        Err(kube::Error::Api(status)) => status.code == code && status.reason == reason,
        _ => false,
    }
}
