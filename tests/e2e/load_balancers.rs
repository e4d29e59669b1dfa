//! Load balancers of Services over the REST API: two public addresses each, within the owner's quota.

use serde_json::{Value, json};

use crate::harness::{Cke, FAST, STRANGER_API_TOKEN, STRANGER_ORGANISATION, text};
use crate::http::{self, Auth};

const BASE: &str = "/v4/loadbalancers/organisations";

fn wanted(cluster: &str, tag: &str) -> String {
    json!({
        "flavor": "XS-duo",
        "loadbalancerParentResourceId": cluster,
        "tags": [tag],
        "configuration": {
            "listeners": [{"id": "http", "port": 80, "transport": "TCP"}],
            "clusters": [{"id": "http",
                "backends": {"servers": ["10.1.0.10:30080"], "transport": "TCP"}}],
        },
    })
    .to_string()
}

/// Waits until the only load balancer is as it should be.
fn wait(cke: &Cke, target: &str, satisfied: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    for _ in 0..500 {
        let found = cke.request("GET", target, None).ok();
        let found = found.as_array().expect("a list").clone();
        if satisfied(&found) {
            return found;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("{:#}", cke.request("GET", target, None).ok());
}

#[test]
fn the_second_answers_507() {
    let cke = Cke::start(FAST);
    let cluster = cke.create_active("demo");
    let owner = format!("{BASE}/{}", cke.organisation());
    let region = format!("{owner}/regions/par/loadbalancers");
    let created = cke.request("POST", &region, Some(&wanted(&cluster, "web")));
    assert_eq!(created.status, 201, "{created:#?}");
    let created = created.json();
    assert_eq!(created["loadbalancerParentResourceId"], json!(cluster));
    assert_eq!(created["flavor"], "XS-duo");
    let id = text(&created["id"]);

    let refused = cke.request("POST", &region, Some(&wanted(&cluster, "other")));
    assert_eq!(refused.status, 507, "{refused:#?}");
    let body = refused.json();
    assert_eq!(body["code"], "clever.core.quota-exceeded");
    assert_eq!(
        body["error"],
        "Quota exceeded: IP max: limit = 2 | actual = 4"
    );
    let mut keys: Vec<&String> = body.as_object().expect("an object").keys().collect();
    keys.sort();
    assert_eq!(keys, ["apiRequestId", "code", "context", "error"]);

    let all = format!("{owner}/loadbalancers");
    let served = wait(&cke, &all, |found| {
        found[0]["ips"].as_array().is_some_and(|ips| ips.len() == 2)
    });
    assert_eq!(served.len(), 1);
    assert_eq!(served[0]["listeners"][0]["port"], 80);
    let backends = &served[0]["clusters"][0]["backends"];
    assert_eq!(backends["servers"], json!(["10.1.0.10:30080"]));
    let of_cluster = cke.request("GET", &format!("{owner}/parents/{cluster}"), None);
    assert_eq!(of_cluster.ok(), json!(served));
    let elsewhere = format!("{owner}/regions/rbx/loadbalancers");
    assert_eq!(cke.request("GET", &elsewhere, None).ok(), json!([]));

    let one = format!("{region}/{id}");
    let configuration = format!("{one}/configuration");
    let body = json!({"listeners": [{"id": "dns", "port": 53, "transport": "UDP"}]}).to_string();
    let configured = cke.request("PUT", &configuration, Some(&body)).ok();
    assert_eq!(configured["version"], 2);
    let read = cke.request("GET", &one, None).ok();
    assert_eq!(
        read["listeners"],
        json!([{"id": "dns", "port": 53, "transport": "UDP"}])
    );
    assert_eq!(read["appliedConfigVersion"], 2);

    assert_eq!(cke.request("DELETE", &one, None).ok()["frozen"], true);
    wait(&cke, &all, <[Value]>::is_empty);
    let gone = cke.request("DELETE", &one, None);
    assert_eq!(gone.status, 404, "{gone:#?}");
    let again = cke.request("POST", &region, Some(&wanted(&cluster, "other")));
    assert_eq!(again.status, 201, "{again:#?}");

    // The cluster takes what is left with it.
    let path = format!("/clusters/{cluster}");
    cke.kubernetes("DELETE", &path, None).ok();
    cke.wait_gone(&path);
    assert_eq!(cke.request("GET", &all, None).ok(), json!([]));
    cke.finish();
}

#[test]
fn what_is_wrong_is_refused_and_changes_nothing() {
    let cke = Cke::start(FAST);
    let cluster = cke.create_active("demo");
    let owner = format!("{BASE}/{}", cke.organisation());
    let region = format!("{owner}/regions/par/loadbalancers");
    let unknown = "kubernetes_01KTREHTR6E4JEY46EPYBKY8XG";
    let check = |target: &str, body: &str, status: u16| {
        let answer = cke.request("POST", target, Some(body));
        assert_eq!(answer.status, status, "{body}: {answer:#?}");
    };
    check(&region, "{}", 400);
    check(&region, "[", 400);
    check(&region, &wanted("nonsense", "a"), 404);
    check(&region, &wanted(unknown, "a"), 404);
    let elsewhere = format!("{owner}/regions/rbx/loadbalancers");
    check(&elsewhere, &wanted(&cluster, "a"), 400);
    for (from, to) in [
        ("XS-duo", "XXL"),
        ("\"port\":80", "\"port\":0"),
        ("\"port\":80", "\"port\":65536"),
        ("10.1.0.10:30080", "somewhere"),
        ("TCP", "SCTP"),
    ] {
        let body = wanted(&cluster, "a").replacen(from, to, 1);
        assert_ne!(body, wanted(&cluster, "a"));
        check(&region, &body, 400);
    }
    // Somebody else's cluster is not there, and somebody else's organisation is not theirs.
    let stranger = Auth::Bearer(STRANGER_API_TOKEN);
    let theirs = format!("{BASE}/{STRANGER_ORGANISATION}/regions/par/loadbalancers");
    let body = wanted(&cluster, "a");
    let answer = http::send(cke.api(), "POST", &theirs, stranger, Some(&body));
    assert_eq!(answer.status, 404, "{answer:#?}");
    let answer = http::send(cke.api(), "POST", &region, stranger, Some(&body));
    assert_eq!(answer.status, 403, "{answer:#?}");
    let all = format!("{owner}/loadbalancers");
    assert_eq!(cke.request("GET", &all, None).ok(), json!([]));
    cke.finish();
}
