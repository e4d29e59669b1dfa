//! Prices and quotas through the doors.

use std::sync::Mutex;

use serde_json::json;

use crate::harness::{Cke, MANUAL};

#[test]
fn a_hundred_creations_at_once_against_a_quota_for_five_admit_five() {
    let cke = Cke::start(MANUAL);
    let statuses = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for number in 0..100 {
            let (cke, statuses) = (&cke, &statuses);
            scope.spawn(move || {
                // 6 vCPU and 8 GB each.
                let request = json!({"name": format!("racer-{number}"), "topologyConfig":
                    {"topology": "DEDICATED_COMPUTE", "flavor": "XS", "replicationFactor": 1}});
                let answer = cke.kubernetes("POST", "/clusters", Some(&request));
                if answer.status >= 400 {
                    assert_eq!(answer.json()["code"], "clever.core.quota-exceeded");
                }
                statuses.lock().unwrap().push(answer.status < 300);
            });
        }
    });
    let admitted = statuses.lock().unwrap().iter().filter(|it| **it).count();
    assert_eq!(admitted, 5);
    assert_eq!(cke.get("/usage").as_array().map(Vec::len), Some(5));
    cke.advance(300);
    // What goes is released once, and admits others.
    for cluster in cke.get("/clusters").as_array().unwrap() {
        let path = format!("/clusters/{}", cluster["id"].as_str().unwrap());
        cke.kubernetes("DELETE", &path, None).ok();
    }
    cke.advance(300);
    assert_eq!(cke.get("/usage"), json!([]));
    cke.create(&json!({"name": "after"}));
    cke.advance(300);
    cke.finish();
}

#[test]
fn a_quota_is_raised_and_lowered() {
    let cke = Cke::start(MANUAL);
    let set = |organisation: &str, body: &str| {
        let path = format!("/_sim/organisations/{organisation}/quota");
        cke.request("PUT", &path, Some(body))
    };
    let large = json!({"name": "large", "topologyConfig":
        {"topology": "DEDICATED_COMPUTE", "flavor": "XL", "replicationFactor": 3}});
    assert_eq!(
        cke.kubernetes("POST", "/clusters", Some(&large)).status,
        402
    );
    let quota = set(cke.organisation(), r#"{"vcpus":48,"ramGb":96}"#).ok();
    assert_eq!(quota["quotas"][0]["maximum"], 48_000);
    assert_eq!(quota["quotas"][2]["maximum"], 2, "as it was");
    assert_eq!(cke.get("/quota"), quota);
    cke.create(&large);
    cke.advance(300);
    set(cke.organisation(), r#"{"vcpus":8}"#).ok();
    cke.check_invariants();
    let small = json!({"name": "small"});
    assert_eq!(
        cke.kubernetes("POST", "/clusters", Some(&small)).status,
        402
    );
    for (organisation, body, status) in [
        ("orga_99999999-2222-4333-8444-555555555555", "{}", 404),
        ("nobody", "{}", 404),
        (cke.organisation(), r#"{"vcpus":-1}"#, 400),
        (cke.organisation(), r#"{"vcpus":1000001}"#, 400),
        (cke.organisation(), r#"{"cpus":1}"#, 400),
    ] {
        assert_eq!(
            set(organisation, body).status,
            status,
            "{organisation} {body}"
        );
    }
    cke.finish();
}

#[test]
fn any_shape_has_a_price() {
    let cke = Cke::start(MANUAL);
    let price = |body: &str| cke.request("POST", "/_sim/price", Some(body));
    let quote = price(
        r#"{"topologyConfig":{"topology":"ALL_IN_ONE","flavor":"S","replicationFactor":1},
            "nodeGroups":[{"name":"web","flavor":"XS","targetNodeCount":7}]}"#,
    );
    let quote = quote.ok();
    assert_eq!(quote["currency"], "EUR");
    assert_eq!(quote["taxesIncluded"], false);
    assert_eq!(
        quote["total"],
        json!({"hourly": "0.5167", "monthly": "372.00"})
    );
    assert_eq!(price("{}").ok()["total"]["monthly"], "66.00");
    for body in [
        r#"{"topologyConfig":{"topology":"ALL_IN_ONE","flavor":"2XS","replicationFactor":1}}"#,
        r#"{"nodeGroups":[{"flavor":"S","targetNodeCount":257}]}"#,
        r#"{"nodeGroups":[{"flavor":"S"}]}"#,
        "",
    ] {
        assert_eq!(price(body).status, 400, "{body}");
    }
    cke.finish();
}
