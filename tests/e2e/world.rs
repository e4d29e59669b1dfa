//! The world as a whole: begun anew, written to a file and put back, while the server goes on.

use std::io::{Read, Write};
use std::process::Output;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Cke, MANUAL, cke, text};
use crate::kubectl::Kubectl;

fn sim(server: &Cke, arguments: &[&str]) -> Output {
    let mut command = cke();
    let output = command
        .args(["sim", "--url", server.api()])
        .args(arguments)
        .output();
    output.expect("cke runs")
}

#[track_caller]
fn done(server: &Cke, arguments: &[&str]) -> String {
    let output = sim(server, arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Everything that has happened after `since`, without its numbers.
fn history(cke: &Cke, since: u64) -> Vec<Value> {
    let path = format!("/_sim/events?since={since}&follow=false");
    let answer = cke.request("GET", &path, None).body;
    let data = answer
        .lines()
        .filter_map(|line| line.strip_prefix("data: "));
    let changes = data.map(|line| {
        let mut change: Value = serde_json::from_str(line).expect("JSON");
        change.as_object_mut().expect("a change").remove("sequence");
        change
    });
    changes.collect()
}

/// The number of the last that has happened.
fn last(cke: &Cke) -> u64 {
    let answer = cke.request("GET", "/_sim/events?since=0&follow=false", None);
    let mut ids = answer
        .body
        .lines()
        .filter_map(|line| line.strip_prefix("id: "));
    let last = ids.next_back().map(|id| id.trim().parse());
    last.map_or(0, |id| id.expect("a number"))
}

/// A cluster whose control plane loses a replica. Returns its id.
fn live(cke: &Cke) -> String {
    let id = cke.create(&json!({"name": "a",
        "topologyConfig": {"topology": "DEDICATED_COMPUTE", "flavor": "XS", "replicationFactor": 2},
        "nodeGroups": [{"name": "w", "flavor": "2XS", "targetNodeCount": 2}]}));
    cke.advance(300);
    assert_eq!(cke.get(&format!("/clusters/{id}"))["status"], "ACTIVE");
    id
}

fn go_on(cke: &Cke, id: &str) {
    let path = format!("/_sim/vms/control-plane-0/kill?cluster={id}");
    cke.request("POST", &path, None).ok();
    cke.advance(600);
    let resize = json!({"name": "w", "targetNodeCount": 1});
    let group = text(&cke.get(&format!("/clusters/{id}/node-groups"))[0]["id"]);
    let path = format!("/clusters/{id}/node-groups/{group}");
    cke.kubernetes("PATCH", &path, Some(&resize)).ok();
    cke.advance(600);
}

#[test]
fn a_new_world_is_as_on_an_empty_store() {
    let cke = Cke::start(MANUAL);
    let address = cke.api().strip_prefix("http://").expect("a URL").to_owned();
    let mut stream = std::net::TcpStream::connect(&address).expect("it listens");
    let timeout = Some(Duration::from_secs(10));
    stream.set_read_timeout(timeout).expect("a timeout");
    let request = format!("GET /_sim/events?since=0 HTTP/1.1\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it is sent");
    let before = cke.request("GET", "/_sim/world", None).ok();
    let id = live(&cke);
    let first = history(&cke, 0);
    let token = json!({"path": "/v4/**", "status": 503, "method": "PUT"}).to_string();
    cke.request("POST", "/_sim/faults/api", Some(&token)).ok();

    let reset = cke.request("POST", "/_sim/world/reset", None).ok();
    assert_eq!(reset, before);
    assert_eq!(cke.get("/clusters"), json!([]));
    assert_eq!(cke.get("/usage"), json!([]));
    for nothing in ["/_sim/vms", "/_sim/faults/api"] {
        assert_eq!(cke.request("GET", nothing, None).ok(), json!([]));
    }
    assert!(history(&cke, 0).is_empty());
    assert_eq!(
        cke.kubernetes("GET", &format!("/clusters/{id}"), None)
            .status,
        404
    );
    // The same seed and the same requests: the same world.
    assert_eq!(live(&cke), id);
    assert_eq!(history(&cke, 0), first);

    let reset = done(&cke, &["world", "reset", "--seed", "77"]);
    assert!(reset.contains("\"seed\": 77"), "{reset}");
    live(&cke);
    assert_ne!(history(&cke, 0), first, "another seed");
    // A stream goes on from one world to the next, and says so.
    let (mut told, mut buffer) = (String::new(), [0; 4096]);
    let started = Instant::now();
    while !told.contains("event: world") {
        let read = stream.read(&mut buffer).expect("more is told");
        told.push_str(&String::from_utf8_lossy(&buffer[..read]));
        assert!(
            read > 0 && started.elapsed() < Duration::from_secs(20),
            "{told}"
        );
    }
    cke.finish();
}

#[test]
fn what_was_written_comes_back_and_goes_on_alike() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("world.cke").display().to_string();
    let mut cke = Cke::start(MANUAL);
    let id = live(&cke);
    let kubeconfig = cke.kubernetes("GET", &format!("/clusters/{id}/kubeconfig.yaml"), None);
    let kubectl = Kubectl::new(&kubeconfig.body);
    kubectl.ok(&["create", "configmap", "kept", "--from-literal=a=b"]);
    done(
        &cke,
        &["faults", "set", "/v2/**", "--status", "503", "--times", "9"],
    );
    let (clock, state) = (cke.request("GET", "/_sim/clock", None).ok(), cke.state());
    let said = done(&cke, &["world", "snapshot", &file]);
    assert!(said.contains("bytes in"), "{said}");

    let since = last(&cke);
    go_on(&cke, &id);
    let first = history(&cke, since);
    assert!(first.len() > 20, "{first:#?}");
    kubectl.ok(&["delete", "configmap", "kept"]);
    done(&cke, &["faults", "clear"]);
    cke.create(&json!({"name": "later"}));

    done(&cke, &["world", "restore", &file]);
    assert_eq!(cke.request("GET", "/_sim/clock", None).ok(), clock);
    assert_eq!(cke.state(), state);
    let faults = cke.request("GET", "/_sim/faults/api", None).ok();
    assert_eq!(faults[0]["times"], 9);
    // The cluster is the one that the kubeconfig is of.
    let kept = kubectl.json(&["get", "configmap", "kept"]);
    assert_eq!(kept["data"]["a"], "b");
    cke.check_invariants();
    go_on(&cke, &id);
    assert_eq!(history(&cke, 0), first);

    // It is the store's, not the process'.
    let (clock, state) = (cke.request("GET", "/_sim/clock", None).ok(), cke.state());
    cke.kill();
    cke.restart();
    assert_eq!(cke.request("GET", "/_sim/clock", None).ok(), clock);
    assert_eq!(cke.state(), state);

    // What is no snapshot is refused, and changes nothing.
    let mut damaged = std::fs::read(&file).expect("the snapshot");
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(&file, &damaged).expect("a damaged one");
    let refused = sim(&cke, &["world", "restore", &file]);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("no snapshot of a world"), "{said}");
    assert_eq!(cke.state(), state);
    cke.finish();
}
