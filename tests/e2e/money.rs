//! Prices and quotas through the doors.

use std::sync::Mutex;

use serde_json::json;

use crate::harness::{Cke, MANUAL, text};
use crate::http::{self, Auth};

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

#[test]
fn what_was_used_is_consumed_by_the_hour_and_invoiced_by_the_month() {
    let mut cke = Cke::start(MANUAL);
    let started = text(&cke.request("GET", "/_sim/clock", None).ok()["now"]);
    let id = cke.create(&json!({"name": "billed", "topologyConfig":
        {"topology": "DEDICATED_COMPUTE", "flavor": "XS", "replicationFactor": 1},
        "nodeGroups": [{"name": "workers", "flavor": "2XS", "targetNodeCount": 2}]}));
    cke.advance(3600);
    let organisation = cke.organisation().to_owned();
    let machine = "Basic Y2tlLWJpbGxpbmc6Y2tlLWJpbGxpbmctc2VjcmV0";
    let ask = |cke: &Cke, auth, path: &str| {
        let target = format!("/v4/kubernetes/organisations/{organisation}/kubernetes/{path}");
        http::send(cke.api(), "GET", &target, auth, None)
    };
    let invoice = |cke: &Cke| {
        let path = format!(
            "/_sim/organisations/{organisation}/invoices/{}",
            &started[..7]
        );
        cke.request("GET", &path, None).ok()
    };
    let before = invoice(&cke);
    cke.advance(3 * 3600);
    let after = invoice(&cke);
    // Three hours of 66 + 2 × 24 euro a month.
    let vcpu_ms = |invoice: &serde_json::Value, line: usize| {
        invoice["lines"][line]["vcpuMs"].as_u64().unwrap()
    };
    for (line, vcpus) in [(0, 6), (1, 8)] {
        let used = vcpu_ms(&after, line) - vcpu_ms(&before, line);
        assert_eq!(used, vcpus * 3 * 3_600_000);
    }
    assert_eq!(after["lines"][0]["nodeGroupId"], json!(null));
    assert_eq!(after["lines"][0]["clusterName"], "billed");
    assert_eq!(after["currency"], "EUR");

    let day = &started[..10];
    let range = format!("since={day}T00:00:00Z&until={day}T23:59:59Z");
    let machine = Auth::Header(machine);
    let found = ask(
        &cke,
        machine,
        &format!("consumptions?{range}&resourceId={id}"),
    )
    .ok();
    let items = found[0]["consumptions"].as_array().unwrap();
    let references: Vec<_> = items.iter().map(|it| text(&it["reference"])).collect();
    assert_eq!(
        references,
        [
            "kubernetes.control-plane.dedicated-compute.vcpu",
            "kubernetes.control-plane.dedicated-compute.ram",
            "kubernetes.node.vcpu",
            "kubernetes.node.ram"
        ]
    );
    for item in items {
        let hours = item["details"]["quantities"].as_array().unwrap();
        assert_eq!(hours.len(), 24);
    }
    assert_eq!(items[2]["details"]["quantities"][2].to_string(), "8");
    assert_eq!(
        items[3]["details"]["quantities"][2].to_string(),
        "8000000000"
    );
    assert_eq!(found[0]["regionId"], "eu-fr-1");

    let name = ask(&cke, machine, &format!("resources/{id}"));
    assert_eq!(name.ok(), json!({"name": "billed"}));
    let other = "kubernetes_01KTREHTR6E4JEY46EPYBKY8XG";
    for (path, status) in [
        ("consumptions", 400),
        ("consumptions?until=yesterday", 400),
        ("consumptions?until=2026-01-01T00:00:00Z&resourceId=x", 400),
        ("resources/x", 400),
        (&*format!("resources/{other}"), 404),
    ] {
        assert_eq!(ask(&cke, machine, path).status, status, "{path}");
    }
    let order = "consumptions?since=2026-02-01T00:00:00Z&until=2026-01-01T00:00:00Z";
    let refused = ask(&cke, machine, order);
    assert_eq!(refused.status, 400);
    assert_eq!(
        refused.json()["error"],
        "Since date must be before until date."
    );
    for auth in [
        Auth::None,
        Auth::Header("Basic eDp5"),
        Auth::Bearer("cke-seed-api-token"),
    ] {
        assert_eq!(
            ask(&cke, auth, &format!("consumptions?{range}")).status,
            401
        );
        assert_eq!(ask(&cke, auth, &format!("resources/{id}")).status, 401);
    }

    // A kill loses none of it, and neither does the end of the cluster.
    cke.restart();
    assert_eq!(invoice(&cke)["lines"], after["lines"]);
    cke.kubernetes("DELETE", &format!("/clusters/{id}"), None)
        .ok();
    cke.advance(600);
    let last = invoice(&cke);
    cke.advance(3600);
    assert_eq!(invoice(&cke)["lines"], last["lines"], "still to be paid");
    cke.finish();
}
