//! Prices, rates, invoices and quotas through the doors.

use std::collections::BTreeMap;
use std::sync::Mutex;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

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
    assert_eq!(quote["shape"], "ALL_IN_ONE:S:1+web=XS:7");
    assert_eq!(
        quote["total"],
        json!({"hourly": "0.5167", "monthly": "372.00"})
    );
    assert_eq!(price("{}").ok()["total"]["monthly"], "66.00");
    let several = price(
        r#"{"shapes":[{},{"topologyConfig":{"topology":"DISTRIBUTED","components":{
            "apiserver":{"flavor":"S","replicationFactor":3},
            "controllerManager":{"flavor":"2XS","replicationFactor":1},
            "scheduler":{"flavor":"2XS","replicationFactor":1},
            "nodeGroupOperator":{"flavor":"2XS","replicationFactor":1},
            "cloudControllerManager":{"flavor":"2XS","replicationFactor":1}}}}]}"#,
    );
    let several = several.ok();
    let monthly = |index: usize| several["quotes"][index]["total"]["monthly"].clone();
    assert_eq!((monthly(0), monthly(1)), (json!("66.00"), json!("432.00")));
    assert_eq!(
        several["differences"][0]["total"],
        json!({"hourly": "+0.5083", "monthly": "+366.00"})
    );
    for body in [
        r#"{"topologyConfig":{"topology":"ALL_IN_ONE","flavor":"2XS","replicationFactor":1}}"#,
        r#"{"nodeGroups":[{"flavor":"S","targetNodeCount":257}]}"#,
        r#"{"nodeGroups":[{"flavor":"S"}]}"#,
        r#"{"shapes":[]}"#,
        r#"{"shapes":[{},{"nodeGroups":[{"flavor":"S","targetNodeCount":257}]}]}"#,
        r#"{"at":"yesterday"}"#,
        "",
    ] {
        assert_eq!(price(body).status, 400, "{body}");
    }

    let cheapest = |body: &str| cke.request("POST", "/_sim/price/cheapest", Some(body));
    let shape = |body: &str| cheapest(body).ok()["cheapest"]["shape"].clone();
    assert_eq!(shape("{}"), "ALL_IN_ONE:S:1");
    let survives = format!(
        r#"{{"vcpus":4,"ramGb":4,"survivesADatacenter":true,"organisation":"{}"}}"#,
        cke.organisation()
    );
    assert_eq!(shape(&survives), "DEDICATED_COMPUTE:XS:3+2XS:2");
    // What is left of the quota is not enough any more.
    cke.create(&json!({"name": "holds", "topologyConfig":
        {"topology": "DEDICATED_COMPUTE", "flavor": "S", "replicationFactor": 2}}));
    assert_eq!(shape(&survives), json!(null));
    for (body, status) in [
        (r#"{"vcpus":4097}"#, 400),
        (r#"{"cpus":1}"#, 400),
        (r#"{"organisation":"nobody"}"#, 404),
        (
            r#"{"quota":{"vcpus":1,"ramGb":1},"organisation":"nobody"}"#,
            400,
        ),
    ] {
        assert_eq!(cheapest(body).status, status, "{body}");
    }
    cke.finish();
}

/// A change of rates is in effect from its instant on, at every door; and nothing that is past changes.
#[test]
fn rates_change_at_an_instant() {
    let cke = Cke::start(MANUAL);
    let rates = |body: &str| cke.request("PUT", "/_sim/rates", Some(body));
    let known = cke.request("GET", "/_sim/rates", None).ok();
    assert_eq!(known["now"]["compute"], json!({"vcpu": "2", "ramGb": "4"}));
    assert_eq!(known["now"]["beta"], true);
    cke.create(&json!({"name": "billed"}));
    cke.advance(3600);
    let now = text(&cke.request("GET", "/_sim/clock", None).ok()["now"]);
    let hour = |hour: u32| format!("{}T{hour:02}:30:00.000Z", &now[..10]);
    let (second, third) = (hour(2), hour(3));
    let planned = rates(&format!(
        r#"{{"changes":[{{"from":"{second}","rates":{{"controlPlane":{{"vcpu":"6","ramGb":"12"}}}}}},
            {{"from":"{third}","rates":{{"beta":false,"loadBalancer":"10"}}}}]}}"#
    ));
    assert_eq!(planned.ok()["periods"][1]["from"], second);
    let price_of = |at: &str| {
        let body = json!({ "at": at }).to_string();
        let quote = cke.request("POST", "/_sim/price", Some(&body)).ok();
        text(&quote["total"]["monthly"])
    };
    assert_eq!(
        (price_of(&now), price_of(&second)),
        ("66.00".into(), "132.00".into())
    );
    let public = || {
        let path = "/v4/billing/price-system?zone_id=par";
        let body = cke.request("GET", path, None).body;
        body.contains("0.01666666666")
    };
    assert!(!public());
    cke.advance(4 * 3600);
    assert!(public());
    let month = &now[..7];
    let invoice = |cke: &Cke| {
        let path = format!(
            "/_sim/organisations/{}/invoices/{month}",
            cke.organisation()
        );
        cke.request("GET", &path, None).ok()
    };
    let before = invoice(&cke);
    let lines = before["lines"].as_array().unwrap();
    let rate = |line: &Value| text(&line["charges"][0]["monthlyRate"]);
    assert_eq!(lines.iter().map(rate).collect::<Vec<_>>(), ["3", "6", "6"]);
    assert_eq!(lines[0]["until"], second);
    assert_eq!(
        lines[1]["charges"][0]["unitHours"], "6.0000",
        "an hour of 6 vCPU"
    );
    // What is past stays as it was; what is to come is another matter.
    let past = rates(&format!(
        r#"{{"changes":[{{"from":"{third}","rates":{{}}}}]}}"#
    ));
    assert_eq!(past.status, 409);
    for body in [
        r#"{"changes":[{"from":"soon","rates":{}}]}"#,
        r#"{"changes":[{"rates":{"compute":{"vcpu":"-1","ramGb":"4"}}}]}"#,
        r#"{"changes":[{"rates":{"compute":{"vcpu":2.5,"ramGb":"4"}}}]}"#,
        r#"{"changes":[{"rates":{"gpu":"1"}}]}"#,
    ] {
        assert_eq!(rates(body).status, 400, "{body}");
    }
    rates(r#"{"changes":[{"rates":{"controlPlane":{"vcpu":"1","ramGb":"1"}}}]}"#).ok();
    let after = invoice(&cke);
    assert_eq!(after["total"], before["total"]);
    for line in 0..3 {
        assert_eq!(
            after["lines"][line]["charges"],
            before["lines"][line]["charges"]
        );
    }
    assert_eq!(price_of(&third), "132.00");
    cke.finish();
}

/// Credits are used up before anything is to be paid; the page and the command say what the JSON says.
#[test]
fn an_invoice_is_the_same_at_every_door() {
    let cke = Cke::start(MANUAL);
    let organisation = cke.organisation().to_owned();
    let id = cke.create(&json!({"name": "<b>shop</b>", "topologyConfig":
        {"topology": "ALL_IN_ONE", "flavor": "S", "replicationFactor": 1},
        "nodeGroups": [{"name": "workers", "flavor": "XS", "targetNodeCount": 1}]}));
    cke.advance(300);
    let path = format!("/clusters/{id}/node-groups");
    let group = text(&cke.get(&path)[0]["id"]);
    cke.advance(5 * 3600);
    cke.kubernetes("DELETE", &format!("{path}/{group}"), None)
        .ok();
    cke.advance(600);
    let now = text(&cke.request("GET", "/_sim/clock", None).ok()["now"]);
    let (month, base) = (&now[..7], format!("/_sim/organisations/{organisation}"));
    let credit = |name: &str, body: &str| {
        let path = format!("{base}/credits/{name}");
        cke.request("PUT", &path, Some(body))
    };
    let invoice = || {
        cke.request("GET", &format!("{base}/invoices/{month}"), None)
            .ok()
    };
    let before = invoice();
    let names: Vec<_> = before["lines"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| (text(&line["kind"]), line["nodeGroupName"].clone()))
        .collect();
    let expect = [
        ("controlPlane".into(), json!(null)),
        ("nodeGroup".into(), json!("workers")),
    ];
    assert_eq!(names, expect, "the group is gone, and has its name");
    assert_eq!(before["due"], before["total"]);
    credit("welcome", r#"{"amount":"0.10","reason":"beta"}"#).ok();
    credit("welcome", r#"{"amount":"0.1","reason":"beta"}"#).ok();
    let after = invoice();
    let cents = |value: &Value| -> u64 { text(value).replace('.', "").parse().unwrap() };
    assert_eq!(cents(&after["due"]), cents(&before["due"]) - 10);
    assert_eq!(after["total"], before["total"]);
    for (name, body, status) in [
        ("welcome", r#"{"amount":"0.20"}"#, 409),
        ("other", r#"{"amount":"0.001"}"#, 400),
        ("other", r#"{"amount":1}"#, 400),
        ("other", r#"{"amount":"0"}"#, 400),
    ] {
        assert_eq!(credit(name, body).status, status, "{body}");
    }

    let page = cke.request("GET", &format!("{base}/invoices/{month}?format=html"), None);
    assert_eq!(
        page.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    assert!(page.body.contains("&lt;b&gt;shop&lt;/b&gt;") && !page.body.contains("<b>shop"));
    assert!(page.body.contains(&text(&after["due"])));
    let command = |arguments: &[&str]| {
        let mut command = crate::harness::cke();
        command
            .arg("invoice")
            .args(arguments)
            .args(["--url", cke.api()]);
        let output = command
            .args(["--organisation", &organisation])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(command(&[month, "--format", "html"]), page.body);
    let json: Value = serde_json::from_str(&command(&[month, "--format", "json"])).unwrap();
    assert_eq!(json, after);
    let table = command(&[month]);
    for value in [&after["total"], &after["due"], &json!("node group workers")] {
        assert!(table.contains(&text(value)), "{table}");
    }
    let months = cke.request("GET", &format!("{base}/invoices"), None).ok();
    assert_eq!(months[0]["month"], month);
    assert_eq!(months[0]["due"], after["due"]);
    assert!(command(&[]).contains(month));
    for (path, status) in [
        (format!("{base}/invoices/2026-13"), 400),
        (format!("{base}/invoices/{month}?format=pdf"), 400),
        ("/_sim/organisations/nobody/invoices/2026-01".into(), 404),
        ("/_sim/organisations/nobody/credits".into(), 404),
    ] {
        assert_eq!(cke.request("GET", &path, None).status, status, "{path}");
    }
    let ahead = cke
        .request("GET", &format!("{base}/invoices/2999-01"), None)
        .ok();
    assert_eq!(
        (&ahead["total"], &ahead["lines"]),
        (&json!("0.00"), &json!([]))
    );
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
    let vcpu_ms = |invoice: &Value, line: usize| -> u64 {
        let charge = &invoice["lines"][line]["charges"][0];
        text(&charge["unitMs"]).parse().unwrap()
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

fn ms(date: &Value) -> i64 {
    let at = OffsetDateTime::parse(&text(date), &Rfc3339).unwrap();
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap()
}

/// vCPU times milliseconds of each owner's VMs, from the stream of everything that happened: a VM counts from
/// when it runs, while it is wanted and its probes are good.
fn vcpu_ms(events: &str, now: i64) -> BTreeMap<String, i64> {
    let mut used: BTreeMap<String, i64> = BTreeMap::new();
    let mut counting: BTreeMap<String, i64> = BTreeMap::new();
    let mut vms: BTreeMap<String, Value> = BTreeMap::new();
    let mut add = |vm: &Value, from: i64, until: i64| {
        let vcpus = vm["spec"]["vcpus"].as_i64().unwrap();
        *used.entry(text(&vm["spec"]["owner"])).or_default() += vcpus * (until - from);
    };
    let since = |vm: &Value| vm["observed"]["running"]["since"].as_i64();
    for line in events
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
    {
        let event: Value = serde_json::from_str(line).unwrap();
        if event["kind"] != "vm" {
            continue;
        }
        let (key, at, vm) = (text(&event["key"]), ms(&event["at"]), &event["record"]);
        let wanted = event["change"] != "deleted" && vm["requested"] == "running";
        let counts = wanted && since(vm).is_some() && vm["health"] == "healthy";
        match (counting.get(&key).copied(), counts) {
            (None, true) => {
                let ran = vms.get(&key).and_then(since);
                let from = if ran.is_some() {
                    at
                } else {
                    since(vm).unwrap()
                };
                counting.insert(key.clone(), from);
            }
            (Some(from), false) => {
                counting.remove(&key);
                let failed = vm["health"]["unhealthy"]["since"].as_i64();
                add(vm, from, failed.filter(|_| wanted).unwrap_or(at));
            }
            _ => {}
        }
        vms.insert(key, vm.clone());
    }
    for (key, from) in counting {
        add(&vms[&key], from, now);
    }
    used
}

#[test]
fn the_invoice_is_what_the_stream_of_events_comes_to() {
    let cke = Cke::start(MANUAL);
    let id = cke.create(
        &json!({"name": "watched", "version": "1.35", "topologyConfig":
        {"topology": "DEDICATED_COMPUTE", "flavor": "XS", "replicationFactor": 1},
        "nodeGroups": [{"name": "workers", "flavor": "2XS", "targetNodeCount": 2}]}),
    );
    cke.advance(600);
    let path = format!("/clusters/{id}");
    cke.request(
        "POST",
        &format!("/_sim/vms/workers-node1/kill?cluster={id}"),
        None,
    )
    .ok();
    cke.advance(600);
    let update = json!({"targetVersion": "1.36"});
    cke.kubernetes("POST", &format!("{path}/version/update"), Some(&update))
        .ok();
    cke.advance(1800);
    assert_eq!(cke.get(&path)["status"], "ACTIVE");
    let vms = cke
        .request("GET", &format!("/_sim/vms?cluster={id}"), None)
        .ok();
    let vms = vms.as_array().unwrap().iter();
    let names = vms.map(|vm| text(&vm["name"]));
    let name = names
        .filter(|name| name.starts_with("control-plane"))
        .last()
        .unwrap();
    let wedge = format!("/_sim/vms/{name}/wedge?cluster={id}");
    cke.request("POST", &wedge, None).ok();
    cke.advance(300);
    let now = cke.request("GET", "/_sim/clock", None).ok()["now"].clone();
    let month = &text(&now)[..7];
    let events = cke.request("GET", "/_sim/events?since=0&follow=false", None);
    let expect = vcpu_ms(&events.body, ms(&now));
    let invoice = format!(
        "/_sim/organisations/{}/invoices/{month}",
        cke.organisation()
    );
    let invoice = cke.request("GET", &invoice, None).ok();
    let mut billed = BTreeMap::new();
    for line in invoice["lines"].as_array().unwrap() {
        let group = line["nodeGroupId"].as_str().map(|id| format!("/{id}"));
        let owner = format!("{}/{id}{}", cke.organisation(), group.unwrap_or_default());
        let paid: i64 = text(&line["charges"][0]["unitMs"]).parse().unwrap();
        billed.insert(owner, paid);
    }
    assert_eq!(billed, expect);
    assert_eq!(billed.len(), 2);
    cke.finish();
}
