//! The control API, as a tool and as a web page see it.

use serde_json::{Value, json};

use crate::harness::{Cke, FAST, MANUAL};
use crate::http;
use crate::kubectl::Kubectl;

fn post(cke: &Cke, path: &str, body: &Value) -> http::Response {
    cke.request("POST", path, Some(&body.to_string()))
}

/// Everything that has happened, as the stream says it.
fn history(cke: &Cke) -> String {
    let answer = cke.request("GET", "/_sim/events?since=0&follow=false", None);
    assert_eq!(answer.status, 200, "{answer:#?}");
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    answer.body
}

fn changes(stream: &str) -> Vec<Value> {
    let data = stream
        .lines()
        .filter_map(|line| line.strip_prefix("data: "));
    data.map(|data| serde_json::from_str(data).expect("JSON"))
        .collect()
}

#[test]
fn a_running_clock_can_be_stopped_advanced_and_let_go() {
    let cke = Cke::start(FAST);
    let stopped = cke.request("POST", "/_sim/clock/pause", None).ok();
    assert_eq!(stopped["scale"], "manual");
    assert_eq!(stopped["resumesAt"], FAST);
    let id = cke.create(&json!({"name": "stopped"}));
    let path = format!("/clusters/{id}");
    assert_eq!(
        cke.request("GET", "/_sim/clock", None).ok()["now"],
        stopped["now"]
    );
    assert_ne!(cke.get(&path)["status"], "ACTIVE");
    cke.advance(600);
    assert_eq!(cke.get(&path)["status"], "ACTIVE");
    let resumed = cke.request("POST", "/_sim/clock/resume", None).ok();
    assert_eq!(resumed["scale"], FAST);
    assert!(resumed["resumesAt"].is_null());
    cke.create_active("running");
    let faster = cke.request("PUT", "/_sim/clock", Some(r#"{"scale": 400}"#));
    assert_eq!(faster.ok()["scale"], "400");
    for scale in ["0", "-1", "\"fast\"", "1e9"] {
        let body = format!(r#"{{"scale": {scale}}}"#);
        let answer = cke.request("PUT", "/_sim/clock", Some(&body));
        assert_eq!(answer.status, 400, "{body}: {answer:#?}");
    }
    cke.finish();
    // A clock that never ran has nothing to go back to.
    let cke = Cke::start(MANUAL);
    let answer = cke.request("POST", "/_sim/clock/resume", None);
    assert_eq!(answer.status, 409, "{answer:#?}");
    cke.finish();
}

#[test]
fn the_clock_jumps_to_what_happens_next() {
    let cke = Cke::start(MANUAL);
    cke.create(&json!({"name": "a"}));
    cke.advance(0);
    let last = |cke: &Cke| changes(&history(cke)).pop().expect("a change");
    let before = last(&cke);
    let jump = json!({"toNextEvent": true});
    let clock = post(&cke, "/_sim/clock/advance", &jump).ok();
    let after = last(&cke);
    assert!(after["sequence"].as_u64() > before["sequence"].as_u64());
    assert_eq!(after["at"], clock["now"]);
    cke.advance(3_600);
    // Nothing happens any more: it stops at the limit.
    let before = cke.request("GET", "/_sim/clock", None).ok();
    let jump = json!({"toNextEvent": true, "limitSeconds": 3_600});
    let clock = post(&cke, "/_sim/clock/advance", &jump).ok();
    let hour = |clock: &Value| clock["now"].as_str().expect("a date")[11..13].parse::<u32>();
    assert_eq!(
        hour(&clock).expect("an hour"),
        (hour(&before).expect("an hour") + 1) % 24
    );
    for body in [json!({}), json!({"seconds": 1, "toNextEvent": true})] {
        let answer = post(&cke, "/_sim/clock/advance", &body);
        assert_eq!(answer.status, 400, "{body}: {answer:#?}");
    }
    cke.finish();
}

#[test]
fn the_event_stream_tells_everything_once_in_order_and_alike_in_every_run() {
    let run = || {
        let cke = Cke::start(MANUAL);
        let id = cke.create(&json!({"name": "a",
            "topologyConfig": {"topology": "DEDICATED_COMPUTE", "flavor": "XS", "replicationFactor": 3},
            "nodeGroups": [{"name": "workers", "flavor": "2XS", "targetNodeCount": 3}]}));
        cke.advance(300);
        assert_eq!(cke.get(&format!("/clusters/{id}"))["status"], "ACTIVE");
        cke.kubernetes("DELETE", &format!("/clusters/{id}"), None)
            .ok();
        cke.advance(300);
        let history = history(&cke);
        let since = "/_sim/events?since=7&follow=false";
        let later = changes(&cke.request("GET", since, None).body);
        assert_eq!(
            later.first().map(|it| it["sequence"].clone()),
            Some(json!(8))
        );
        cke.finish();
        history
    };
    let first = run();
    let told = changes(&first);
    for (index, change) in told.iter().enumerate() {
        assert_eq!(change["sequence"], json!(index + 1));
    }
    for pair in told.windows(2) {
        assert!(
            pair[0]["at"].as_str() <= pair[1]["at"].as_str(),
            "{pair:#?}"
        );
    }
    let of_kind = |kind: &str| told.iter().filter(|change| change["kind"] == kind).count();
    assert!(of_kind("vm") >= 6 * 3, "{}", of_kind("vm"));
    assert!(of_kind("events") >= 8, "{}", of_kind("events"));
    assert!(of_kind("clusters") > 0);
    let runs = std::env::var("CKE_DETERMINISM_RUNS").ok();
    let runs: u32 = runs.and_then(|runs| runs.parse().ok()).unwrap_or(2);
    for _ in 1..runs {
        assert!(first == run(), "two runs have different histories");
    }
}

#[test]
fn routes_of_the_api_fail_as_often_as_they_are_told_to() {
    let cke = Cke::start(MANUAL);
    let fault = json!({"method": "POST", "path": "/v4/kubernetes/organisations/*/clusters",
        "times": 2, "status": 503, "code": "clever.core.unavailable", "message": "Come back later"});
    let set = post(&cke, "/_sim/faults/api", &fault).ok();
    assert_eq!(
        cke.request("GET", "/_sim/faults/api", None).ok()[0]["id"],
        set["id"]
    );
    let create = json!({"name": "a"});
    let before = cke.state();
    for _ in 0..2 {
        let answer = cke.kubernetes("POST", "/clusters", Some(&create));
        assert_eq!(answer.status, 503);
        let body = answer.json();
        assert_eq!(body["code"], "clever.core.unavailable");
        assert_eq!(body["error"], "Come back later");
        assert!(body["apiRequestId"].is_string());
    }
    assert_eq!(cke.state(), before);
    cke.kubernetes("POST", "/clusters", Some(&create)).ok();
    assert_eq!(cke.request("GET", "/_sim/faults/api", None).ok(), json!([]));
    let forever = json!({"path": "/v4/**", "status": 500});
    let id = post(&cke, "/_sim/faults/api", &forever).ok()["id"].clone();
    assert_eq!(cke.kubernetes("GET", "/clusters", None).status, 500);
    let one = format!("/_sim/faults/api/{}", id.as_str().expect("an id"));
    cke.request("DELETE", &one, None).ok();
    assert_eq!(cke.request("DELETE", &one, None).status, 404);
    assert_eq!(cke.kubernetes("GET", "/clusters", None).status, 200);
    let senseless = post(&cke, "/_sim/faults/api", &json!({"path": "/v4/**"}));
    assert_eq!(senseless.status, 400, "{senseless:#?}");
    cke.finish();
}

#[test]
fn a_request_that_is_held_up_waits_for_the_clock() {
    let cke = Cke::start(MANUAL);
    let slow = json!({"path": "/v4/**", "times": 1, "latencySeconds": 30});
    post(&cke, "/_sim/faults/api", &slow).ok();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| cke.kubernetes("GET", "/clusters", None).status);
        while cke.request("GET", "/_sim/faults/api", None).ok() != json!([]) {
            std::thread::yield_now();
        }
        cke.advance(29);
        assert!(!waiting.is_finished());
        // The fault is over once it is met, which is before the request's timer is set.
        while !waiting.is_finished() {
            cke.advance(30);
        }
        assert_eq!(waiting.join().expect("the request"), 200);
    });
    cke.finish();
}

#[test]
fn a_web_page_of_another_origin_is_refused() {
    let cke = Cke::start(MANUAL);
    let address = cke.api().strip_prefix("http://").expect("a URL").to_owned();
    let check = |host: &str, header: &str, status: u16| {
        let request = format!(
            "POST /_sim/clock/advance HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{header}\
             Content-Type: text/plain\r\nContent-Length: 13\r\n\r\n{{\"seconds\":1}}"
        );
        let answer = http::parse(&http::exchange(&address, request.as_bytes()));
        assert_eq!(answer.status, status, "{host} {header}: {answer:#?}");
    };
    check(&address, "", 200);
    check(&address, &format!("Origin: http://{address}\r\n"), 200);
    let before = cke.request("GET", "/_sim/clock", None).ok();
    check(&address, "Origin: http://evil.test\r\n", 403);
    check(&address, "Origin: null\r\n", 403);
    check(&address, "Sec-Fetch-Site: cross-site\r\n", 403);
    check("evil.test:8080", "", 403);
    check("evil.test:8080", "Origin: http://evil.test:8080\r\n", 403);
    assert_eq!(cke.request("GET", "/_sim/clock", None).ok(), before);
    cke.finish();
}

#[test]
fn the_document_of_the_control_api_is_served() {
    let cke = Cke::start(MANUAL);
    let document = cke.request("GET", "/_sim/openapi.json", None).ok();
    assert_eq!(document["openapi"], "3.0.3");
    for path in [
        "/_sim/clock",
        "/_sim/clock/advance",
        "/_sim/events",
        "/_sim/faults/api",
        "/_sim/certificates",
        "/_sim/versions",
        "/_sim/world",
        "/_sim/world/reset",
        "/_sim/world/snapshot",
        "/_sim/world/restore",
    ] {
        assert!(document["paths"][path].is_object(), "{path}");
    }
    cke.finish();
}

#[test]
fn an_open_stream_does_not_hold_up_the_end() {
    use std::io::{Read, Write};
    let cke = Cke::start(MANUAL);
    let address = cke.api().strip_prefix("http://").expect("a URL").to_owned();
    let mut stream = std::net::TcpStream::connect(&address).expect("it listens");
    let request = format!("GET /_sim/events?since=0 HTTP/1.1\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it is sent");
    let mut first = [0; 12];
    stream.read_exact(&mut first).expect("an answer");
    assert_eq!(&first, b"HTTP/1.1 200");
    let started = std::time::Instant::now();
    cke.finish();
    assert!(started.elapsed() < std::time::Duration::from_secs(4));
}

#[test]
fn vms_are_killed_wedged_made_to_flap_and_loaded() {
    let cke = Cke::start(MANUAL);
    let id = cke.create(&json!({"name": "a",
        "topologyConfig": {"topology": "DEDICATED_COMPUTE", "flavor": "XS", "replicationFactor": 3}}));
    let other = cke.create_active("b");
    let vms = |cluster: &str| {
        let vms = cke.request("GET", &format!("/_sim/vms?cluster={cluster}"), None);
        vms.ok().as_array().expect("VMs").clone()
    };
    let of_a = vms(&id);
    assert_eq!(of_a.len(), 3, "{of_a:#?}");
    assert_eq!(vms(&other).len(), 1);
    assert!(
        of_a.iter()
            .all(|vm| vm["status"] == "running" && vm["healthy"] == true)
    );
    // A name that two clusters use says too little; with the cluster, or as an id, it is enough.
    let name = vms(&other)[0]["name"].as_str().expect("a name").to_owned();
    let act = |method: &str, path: &str, body: Option<&str>| cke.request(method, path, body);
    let ambiguous = act("POST", &format!("/_sim/vms/{name}/kill"), None);
    assert_eq!(ambiguous.status, 409, "{ambiguous:#?}");
    let killed = act(
        "POST",
        &format!("/_sim/vms/{name}/kill?cluster={other}"),
        None,
    )
    .ok();
    assert_eq!(
        (&killed["killed"], &killed["reachable"]),
        (&json!(true), &json!(false))
    );
    let gone = act(
        "POST",
        &format!("/_sim/vms/{name}/recover?cluster={other}"),
        None,
    );
    assert_eq!(gone.status, 409, "{gone:#?}");
    let vm = of_a[1]["id"].as_str().expect("an id");
    let wedged = act("POST", &format!("/_sim/vms/{vm}/wedge"), None).ok();
    assert_eq!(
        (&wedged["wedged"], &wedged["healthy"]),
        (&json!(true), &json!(true))
    );
    let flapping = r#"{"downSeconds": 5, "upSeconds": 25}"#;
    let third = of_a[2]["id"].as_str().expect("an id");
    act(
        "PUT",
        &format!("/_sim/vms/{third}/flapping"),
        Some(flapping),
    )
    .ok();
    let load = r#"{"cpuMillis": 1500, "memoryKib": 4096}"#;
    let loaded = act("PUT", &format!("/_sim/vms/{third}/load"), Some(load)).ok();
    assert_eq!(
        loaded["userLoad"],
        json!({"cpuMillis": 1500, "memoryKib": 4096})
    );
    let faults = act("GET", "/_sim/faults", None).ok();
    assert_eq!(
        faults["vms"].as_array().expect("VMs").len(),
        3,
        "{faults:#}"
    );
    let senseless = r#"{"downSeconds": 0, "upSeconds": 1}"#;
    for (path, body, status) in [
        (format!("/_sim/vms/{third}/flapping"), senseless, 400),
        (String::from("/_sim/vms/nobody/load"), load, 404),
    ] {
        let answer = act("PUT", &path, Some(body));
        assert_eq!(answer.status, status, "{path}: {answer:#?}");
    }
    let left = act("DELETE", "/_sim/faults", None).ok();
    assert!(
        left["vms"]
            .as_array()
            .expect("VMs")
            .iter()
            .all(|vm| vm["killed"] == true)
    );
    assert_eq!(
        act("GET", &format!("/_sim/vms/{vm}"), None).ok()["wedged"],
        false
    );
}

#[test]
fn datacenters_are_lost_filled_and_slowed_down() {
    let cke = Cke::start(MANUAL);
    let change =
        |body: Value| cke.request("PUT", "/_sim/datacenters/par-2", Some(&body.to_string()));
    let lost = change(json!({"state": "lost", "capacityPercent": 0})).ok();
    assert_eq!(
        (&lost["state"], &lost["capacityPercent"]),
        (&json!("lost"), &json!(0))
    );
    // What is not given stays.
    let slow = change(json!({"bootTimePercent": 300, "bootFailuresPerMille": 10})).ok();
    assert_eq!(slow["state"], "lost");
    let all = cke.request("GET", "/_sim/datacenters", None).ok();
    assert_eq!(all.as_array().map(Vec::len), Some(3));
    for body in [
        json!({"state": "away"}),
        json!({"capacityPercent": 101}),
        json!({"state": "up", "bootTimePercent": 0}),
        json!({"bootFailuresPerMille": 1001}),
    ] {
        let answer = change(body.clone());
        assert_eq!(answer.status, 400, "{body}: {answer:#?}");
    }
    let unknown = cke.request("PUT", "/_sim/datacenters/par-9", Some("{}"));
    assert_eq!(unknown.status, 404, "{unknown:#?}");
    let faults = cke.request("GET", "/_sim/faults", None).ok();
    assert_eq!(faults["datacenters"], json!([slow]));
    let cleared = cke.request("DELETE", "/_sim/faults", None).ok();
    assert_eq!(cleared, json!({"api": [], "datacenters": [], "vms": []}));
    cke.finish();
}

#[test]
fn a_certificate_that_has_expired_is_refused_until_it_is_made_anew() {
    let cke = Cke::start(FAST);
    let id = cke.create_active("a");
    let path = format!("/clusters/{id}/kubeconfig.yaml");
    let kubectl = Kubectl::new(&cke.kubernetes("GET", &path, None).body);
    kubectl.ok(&["get", "namespaces"]);
    let change = |expired: bool| {
        let body = json!({"expired": expired}).to_string();
        cke.request("PUT", "/_sim/certificates", Some(&body)).ok()
    };
    assert_eq!(change(true), json!({"expired": true}));
    let said = kubectl.run(&["get", "namespaces"]).failed();
    assert!(said.contains("certificate has expired"), "{said}");
    assert_eq!(change(false), json!({"expired": false}));
    kubectl.ok(&["get", "namespaces"]);
    change(true);
    cke.request("DELETE", "/_sim/faults", None).ok();
    kubectl.ok(&["get", "namespaces"]);
    cke.finish();
}
