//! What a cluster's token opens, and what it does not.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::*;
use crate::clever::account::{Accounts, AccountsConfig, SEED_API_TOKEN, SEED_ORGANISATION_ID};
use crate::clever::{
    CleverConfig, History, SimulationConfig, Storage, Worlds, WriteSnapshot, router,
};
use crate::clock::{Clock, TimeScale, Timestamp};
use crate::infra::testing::MemoryKeyspaces;
use crate::infra::{Cloud, CloudConfig};
use crate::kubernetes::{Kubernetes, KubernetesConfig};
use crate::platform::{Platform, PlatformConfig};

const OWNER: &str = "orga_3547a882-e464-4c34-8168-add4b3e0c135";
const CLUSTER: &str = "kubernetes_01KTREHTR6E4JEY46EPYBKY8XG";

#[tokio::test]
async fn a_token_proves_its_owner_and_cluster_and_nothing_else() {
    let keyspaces: SharedKeyspaces = Arc::new(MemoryKeyspaces::default());
    let tokens = ClusterTokens::load(&keyspaces).await.unwrap();
    let identity = ClusterIdentity {
        owner: OWNER.parse().unwrap(),
        cluster: CLUSTER.parse().unwrap(),
    };
    let token = tokens.issue(&identity.owner, &identity.cluster);
    // The same at the next start.
    let again = ClusterTokens::load(&keyspaces).await.unwrap();
    assert_eq!(again.verify(&token), Some(identity.clone()));
    assert_eq!(again.issue(&identity.owner, &identity.cluster), token);
    let foreign: SharedKeyspaces = Arc::new(MemoryKeyspaces::default());
    let foreign = ClusterTokens::load(&foreign).await.unwrap();
    assert_eq!(foreign.verify(&token), None);
    let mac = &token[token.len() - 64..];
    for forged in [
        String::new(),
        "cluster".to_owned(),
        token[..token.len() - 1].to_owned(),
        format!("{token}0"),
        token.replace("8XG", "8XH"),
        token.replace("c135", "c136"),
        token.replacen("cluster", "klaster", 1),
        format!("cluster.{OWNER}.{CLUSTER}."),
        format!("cluster.{OWNER}.{CLUSTER}.x.{mac}"),
    ] {
        assert_eq!(tokens.verify(&forged), None, "{forged}");
    }
}

struct Api {
    router: axum::Router,
    tokens: ClusterTokens,
}

/// Nobody here asks for another world.
struct NoStorage;

impl Storage for NoStorage {
    fn content(&self) -> Result<Option<WriteSnapshot>, String> {
        Ok(None)
    }

    fn check(&self, _file: &mut std::fs::File) -> Result<(), String> {
        Err(String::from("there is no store"))
    }
}

impl Api {
    async fn start() -> Api {
        let keyspaces: SharedKeyspaces = Arc::new(MemoryKeyspaces::default());
        let clock = Clock::new(TimeScale::Manual, Timestamp(1_767_225_600_000));
        let config = CloudConfig::new(keyspaces.clone(), clock.clone(), 1);
        let cloud = Cloud::start(config).await.unwrap();
        let kubernetes = Kubernetes::start(KubernetesConfig {
            keyspaces: keyspaces.clone(),
            clock: clock.clone(),
            seed: 1,
            instance: 0,
            public_host: String::from("127.0.0.1"),
            public_port: 6443,
        })
        .await
        .unwrap();
        let platform = Platform::start(PlatformConfig {
            keyspaces: keyspaces.clone(),
            clock: clock.clone(),
            cloud: cloud.clone(),
            kubernetes: Arc::new(kubernetes),
            seed: 1,
            auto_upgrade: false,
        })
        .await
        .unwrap();
        let tokens = ClusterTokens::load(&keyspaces).await.unwrap();
        let router = router(CleverConfig {
            platform,
            clock,
            accounts: Accounts::new(AccountsConfig::default()).unwrap(),
            cluster_tokens: tokens.clone(),
            public_url: String::from("http://127.0.0.1"),
            keyspaces,
            simulation: SimulationConfig {
                cloud,
                seed: 1,
                shared_store: false,
                public_host: String::from("127.0.0.1"),
                history: History::new(),
                worlds: Worlds::new(Arc::new(NoStorage)).0,
                api_faults: Value::Null,
                shutdown: CancellationToken::new(),
            },
        });
        Api { router, tokens }
    }

    async fn send(
        &self,
        token: &str,
        method: &str,
        target: &str,
        body: Value,
    ) -> (StatusCode, Value) {
        let body = if body.is_null() {
            Body::empty()
        } else {
            Body::from(body.to_string())
        };
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header("authorization", format!("Bearer {token}"))
            .body(body)
            .unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20)
            .await
            .unwrap();
        (
            status,
            serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        )
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_opens_its_own_clusters_groups_and_load_balancers_and_nothing_else() {
    let api = Api::start().await;
    let base = format!("/v4/kubernetes/organisations/{SEED_ORGANISATION_ID}");
    let mut ids = Vec::new();
    for name in ["own", "other"] {
        let target = format!("{base}/clusters");
        let order = json!({"name": name,
            "nodeGroups": [{"name": "workers", "flavor": "2XS", "targetNodeCount": 1}]});
        let (status, cluster) = api.send(SEED_API_TOKEN, "POST", &target, order).await;
        assert_eq!(status, StatusCode::CREATED, "{cluster}");
        ids.push(cluster["id"].as_str().unwrap().to_owned());
    }
    let (own, other) = (&ids[0], &ids[1]);
    let owner: OwnerId = SEED_ORGANISATION_ID.parse().unwrap();
    let token = api.tokens.issue(&owner, &own.parse().unwrap());
    let check = async |method: &str, target: String, body: Value, expect: u16| {
        let (status, answer) = api.send(&token, method, &target, body).await;
        assert_eq!(status.as_u16(), expect, "{method} {target}: {answer}");
        answer
    };

    let groups = check(
        "GET",
        format!("{base}/clusters/{own}/node-groups"),
        Value::Null,
        200,
    )
    .await;
    assert_eq!(groups[0]["name"], "workers");
    let group = json!({"name": "more", "flavor": "2XS", "targetNodeCount": 1});
    let target = format!("{base}/clusters/{own}/node-groups");
    check("POST", target, group.clone(), 201).await;
    let balancers = format!("/v4/loadbalancers/organisations/{SEED_ORGANISATION_ID}");
    let region = format!("{balancers}/regions/par/loadbalancers");
    let order = |cluster: &str| json!({"loadbalancerParentResourceId": cluster, "tags": ["a"]});

    // Another cluster of the same owner is not there.
    for (method, path) in [("GET", ""), ("POST", "")] {
        let target = format!("{base}/clusters/{other}/node-groups{path}");
        check(method, target, group.clone(), 404).await;
    }
    check("POST", region.clone(), order(other), 404).await;
    let (status, theirs) = api
        .send(SEED_API_TOKEN, "POST", &region, order(other))
        .await;
    assert_eq!(status, StatusCode::CREATED, "{theirs}");
    let id = theirs["id"].as_str().unwrap();
    for (method, path) in [("GET", ""), ("DELETE", ""), ("GET", "/configuration")] {
        check(method, format!("{region}/{id}{path}"), Value::Null, 404).await;
    }
    let configuration = format!("{region}/{id}/configuration");
    check("PUT", configuration, json!({"listeners": []}), 404).await;
    for list in [
        format!("{balancers}/loadbalancers"),
        format!("{balancers}/parents/{other}"),
        region.clone(),
    ] {
        assert_eq!(check("GET", list, Value::Null, 200).await, json!([]));
    }
    // The owner's quota is the token's.
    check("POST", region.clone(), order(own), 507).await;

    // Another owner's is forbidden.
    let theirs = format!("/v4/kubernetes/organisations/{OWNER}/clusters/{own}/node-groups");
    check("GET", theirs, Value::Null, 403).await;
    let theirs = format!("/v4/loadbalancers/organisations/{OWNER}/loadbalancers");
    check("GET", theirs, Value::Null, 403).await;

    // Nothing else is a component's.
    for (method, target) in [
        ("GET", format!("{base}/clusters")),
        ("POST", format!("{base}/clusters")),
        ("GET", format!("{base}/clusters/{own}")),
        ("PATCH", format!("{base}/clusters/{own}")),
        ("DELETE", format!("{base}/clusters/{own}")),
        ("POST", format!("{base}/clusters/{own}/csi/ceph")),
        ("POST", format!("{base}/clusters/{own}/redeploy")),
        ("GET", format!("{base}/clusters/{own}/kubeconfig.yaml")),
        ("GET", format!("{base}/clusters/{own}/deployment-events")),
        ("GET", format!("{base}/clusters/{own}/version/check")),
        ("POST", format!("{base}/clusters/{own}/version/update")),
        ("GET", format!("{base}/quota")),
        ("GET", format!("{base}/usage")),
        ("GET", String::from("/v2/self")),
        ("GET", String::from("/v2/summary")),
        ("GET", String::from("/api-tokens")),
    ] {
        check(method, target, Value::Null, 403).await;
    }
    // A forged one is nobody's.
    let forged = token.replace("cluster.", "klaster.");
    let target = format!("{base}/clusters/{own}/node-groups");
    let (status, _) = api.send(&forged, "GET", &target, Value::Null).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}
