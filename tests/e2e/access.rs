//! Who may see and do what.

use serde_json::json;

use crate::clever::Clever;
use crate::harness::{
    Cke, FAST, SEED_API_TOKEN, SEED_USER, STRANGER_API_TOKEN, STRANGER_ORGANISATION,
};
use crate::http::{self, Auth};

#[test]
fn credentials_are_verified() {
    let cke = Cke::start(FAST);
    let oauth = |token: &str, signature: &str| {
        format!(
            "OAuth oauth_consumer_key=\"K\", oauth_token=\"{token}\", oauth_signature=\"{signature}\""
        )
    };
    let check = |header: &str, expect: u16| {
        for target in [
            "/v2/self",
            "/v2/summary",
            "/v2/self/tokens/current",
            "/api-tokens",
        ] {
            let answer = http::send(cke.api(), "GET", target, Auth::Header(header), None);
            assert_eq!(answer.status, expect, "{header}: {answer:#?}");
        }
        let clusters = format!(
            "/v4/kubernetes/organisations/{}/clusters",
            cke.organisation()
        );
        let answer = http::send(cke.api(), "GET", &clusters, Auth::Header(header), None);
        assert_eq!(answer.status, expect, "{header}: {answer:#?}");
    };
    check(&oauth("cke-seed-token", "CS%26cke-seed-secret"), 200);
    check(&oauth("cke-seed-token", "CS%26stranger-secret"), 401);
    check(&oauth("cke-seed-token", "CS%26"), 401);
    check(&oauth("undefined", "CS%26undefined"), 401);
    check(&oauth("", "CS%26"), 401);
    check("Bearer cke-seed-api-token", 200);
    check("Bearer wrong", 401);
    check("Bearer ", 401);
    check("Basic Y2tlLXNlZWQtdG9rZW46Y2tlLXNlZWQtc2VjcmV0", 401);
    check("", 401);

    // Public: the product and the prices.
    for target in [
        "/v4/kubernetes-product",
        "/v4/billing/price-system?zone_id=par",
    ] {
        let answer = http::send(cke.api(), "GET", target, Auth::None, None);
        assert_eq!(answer.status, 200, "{target}: {answer:#?}");
    }
    cke.finish();
}

#[test]
fn the_cli_says_that_nobody_is_logged_in() {
    let cke = Cke::start(FAST);
    let check = |clever: Clever| {
        let stderr = clever.failed(&["k8s", "list"]);
        assert!(stderr.contains("You're not logged in"), "{stderr}");
    };
    check(
        Clever::new(&cke)
            .without("CLEVER_TOKEN")
            .without("CLEVER_SECRET"),
    );
    check(Clever::new(&cke).with("CLEVER_SECRET", "wrong"));
    check(Clever::new(&cke).with("CLEVER_TOKEN", "wrong"));
    check(
        Clever::new(&cke)
            .with("CLEVER_TOKEN", "")
            .with("CLEVER_SECRET", ""),
    );
    cke.finish();
}

/// Another owner's cluster is never data: 403 under an owner that the caller is no member of, 404
/// under one's own.
#[test]
fn owners_do_not_see_one_anothers_clusters() {
    let cke = Cke::start(FAST);
    let id = cke.create_active("secret");
    let before = cke.state();
    let requests = |owner: &str| -> Vec<(&str, String, Option<String>)> {
        let clusters = format!("/v4/kubernetes/organisations/{owner}/clusters");
        let cluster = format!("{clusters}/{id}");
        vec![
            ("GET", cluster.clone(), None),
            (
                "PATCH",
                cluster.clone(),
                Some(json!({"name": "mine"}).to_string()),
            ),
            ("DELETE", cluster.clone(), None),
            ("GET", format!("{cluster}/kubeconfig.yaml"), None),
            ("GET", format!("{cluster}/kubeconfig/presigned-url"), None),
            ("GET", format!("{cluster}/deployment-events"), None),
            ("GET", format!("{cluster}/version/check"), None),
            ("GET", format!("{cluster}/node-groups"), None),
            ("POST", format!("{cluster}/csi/ceph"), None),
            (
                "POST",
                format!("{cluster}/node-groups"),
                Some(json!({"name": "a", "flavor": "S", "targetNodeCount": 1}).to_string()),
            ),
        ]
    };
    let check = |token: &str, owner: &str, status: u16| {
        for (method, target, body) in requests(owner) {
            let auth = Auth::Bearer(token);
            let answer = http::send(cke.api(), method, &target, auth, body.as_deref());
            assert_eq!(answer.status, status, "{method} {target}: {answer:#?}");
            assert!(
                !answer.body.contains("secret"),
                "{method} {target}: {answer:#?}"
            );
        }
    };
    check(STRANGER_API_TOKEN, cke.organisation(), 403);
    check(STRANGER_API_TOKEN, SEED_USER, 403);
    check(STRANGER_API_TOKEN, STRANGER_ORGANISATION, 404);
    check(SEED_API_TOKEN, STRANGER_ORGANISATION, 403);
    check(SEED_API_TOKEN, SEED_USER, 404);
    check(
        SEED_API_TOKEN,
        "orga_00000000-0000-4000-8000-000000000000",
        403,
    );
    check(SEED_API_TOKEN, "nobody", 403);
    assert_eq!(cke.state(), before);

    // Through the CLI.
    let clever = Clever::new(&cke)
        .with("CLEVER_TOKEN", "stranger-token")
        .with("CLEVER_SECRET", "stranger-secret");
    let stderr = clever.failed(&["k8s", "list", "--org", cke.organisation()]);
    assert!(stderr.contains("not allowed"), "{stderr}");
    let stderr = clever.failed(&["k8s", "list", "--org", "acme"]);
    assert!(stderr.contains("Organisation not found"), "{stderr}");
    let stderr = clever.failed(&["k8s", "get", &id, "--org", "elsewhere"]);
    assert!(stderr.contains("not found"), "{stderr}");
    cke.finish();
}

#[test]
fn a_kubeconfig_by_a_presigned_address() {
    let cke = Cke::start(FAST);
    let id = cke.create_active("shared");
    let answer = cke.get(&format!("/clusters/{id}/kubeconfig/presigned-url"));
    let url = answer["url"].as_str().expect("a URL");
    let target = url.strip_prefix(cke.api()).expect("a URL of this server");
    let answer = http::send(cke.api(), "GET", target, Auth::None, None);
    assert_eq!(answer.status, 200, "{answer:#?}");
    assert_eq!(answer.header("content-type"), Some("application/yaml"));
    assert!(
        answer.body.contains("client-certificate-data"),
        "{answer:#?}"
    );
    let other = target.replace(&id, "kubernetes_01KTREHTR6E4JEY46EPYBKY8XG");
    let forged = format!("{target}x");
    for target in [other, forged] {
        let answer = http::send(cke.api(), "GET", &target, Auth::None, None);
        assert_eq!(answer.status, 403, "{answer:#?}");
    }
    cke.finish();
}
