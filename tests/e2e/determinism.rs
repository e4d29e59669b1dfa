//! The clock by hand: nothing moves by itself, and the same requests give the same history.

use serde_json::json;

use crate::harness::{Cke, FAST, MANUAL};

#[test]
fn nothing_moves_until_the_clock_does() {
    let cke = Cke::start(MANUAL);
    let before = cke.request("GET", "/_sim/clock", None).ok();
    assert_eq!(before["scale"], "manual");
    let id = cke.create(&json!({"name": "still"}));
    let path = format!("/clusters/{id}");
    for _ in 0..20 {
        assert_ne!(cke.get(&path)["status"], "ACTIVE");
    }
    assert_eq!(cke.request("GET", "/_sim/clock", None).ok(), before);
    let after = cke.advance(600);
    assert_ne!(after["now"], before["now"]);
    assert_eq!(cke.get(&path)["status"], "ACTIVE");
    cke.finish();
}

/// What an advance said is not taken back, however long nothing happened on the way.
#[test]
fn a_kill_right_after_an_advance_takes_no_time_back() {
    let mut cke = Cke::start(MANUAL);
    let id = cke.create(&json!({"name": "old"}));
    let path = format!("/clusters/{id}");
    cke.advance(300);
    let told = cke.advance(240 * 86_400);
    cke.kill();
    cke.restart();
    let clock = cke.request("GET", "/_sim/clock", None).ok();
    assert_eq!(clock["now"], told["now"]);
    assert_eq!(cke.get(&path)["status"], "ACTIVE");
    cke.finish();
}

#[test]
fn a_running_clock_is_not_advanced_by_hand() {
    let cke = Cke::start(FAST);
    let body = json!({"seconds": 5}).to_string();
    let answer = cke.request("POST", "/_sim/clock/advance", Some(&body));
    assert_eq!(answer.status, 409, "{answer:#?}");
    let cke_by_hand = Cke::start(MANUAL);
    for body in [
        r#"{"seconds":-1}"#,
        r#"{"seconds":"x"}"#,
        "{}",
        r#"{"seconds":1e300}"#,
    ] {
        let answer = cke_by_hand.request("POST", "/_sim/clock/advance", Some(body));
        assert_eq!(answer.status, 400, "{body}: {answer:#?}");
    }
    cke_by_hand.finish();
    cke.finish();
}

/// Byte for byte: a clock by hand starts at the same instant on every fresh data directory.
#[test]
fn the_same_seed_and_requests_give_the_same_history() {
    let history = || {
        let cke = Cke::start(MANUAL);
        let started = cke.request("GET", "/_sim/clock", None).body;
        let id = cke.create(&json!({"name": "a",
            "topologyConfig": {"topology": "DEDICATED_COMPUTE", "flavor": "XS", "replicationFactor": 3},
            "nodeGroups": [{"name": "workers", "flavor": "2XS", "targetNodeCount": 3}]}));
        cke.advance(180);
        let path = format!("/clusters/{id}");
        let state = cke.state();
        assert_eq!(cke.get(&path)["nodeGroups"][0]["status"], "READY");
        cke.kubernetes("DELETE", &path, None).ok();
        cke.advance(180);
        let events = format!("{path}/deployment-events?limit=1000");
        let events = cke.kubernetes("GET", &events, None).body;
        cke.finish();
        format!("{started}\n{state:#}\n{events}")
    };
    assert_eq!(history(), history());
}
