//! The clock by hand: nothing moves by itself, and the same requests give the same history.

use serde_json::{Value, json};

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

#[test]
fn the_same_seed_and_requests_give_the_same_history() {
    let history = || {
        let cke = Cke::start(MANUAL);
        let started = cke.request("GET", "/_sim/clock", None).ok();
        let id = cke.create(&json!({"name": "a",
            "topologyConfig": {"topology": "DEDICATED_COMPUTE", "flavor": "XS", "replicationFactor": 3},
            "nodeGroups": [{"name": "workers", "flavor": "2XS", "targetNodeCount": 3}]}));
        cke.advance(180);
        let path = format!("/clusters/{id}");
        let state = cke.state();
        assert_eq!(cke.get(&path)["nodeGroups"][0]["status"], "READY");
        cke.kubernetes("DELETE", &path, None).ok();
        cke.advance(180);
        let events = cke.kubernetes("GET", &format!("{path}/deployment-events?limit=1000"), None);
        cke.finish();
        (started, state, events.body)
    };
    let one = history();
    let two = history();
    let since = |(started, state, events): &(Value, Value, String)| {
        // Runs start at different instants unless told otherwise: compare what came after.
        relative(
            &json!([state, events]).to_string(),
            started["now"].as_str().expect("a date"),
        )
    };
    assert_eq!(since(&one), since(&two));
}

/// The text with every date as milliseconds since `start`, and every ULID's time part left out: it
/// is the date of its making.
fn relative(text: &str, start: &str) -> String {
    let start = millis(start).expect("a date");
    let mut out = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if let Some(at) = rest.get(..24).and_then(millis) {
            out.push_str(&format!("+{}", at - start));
            rest = &rest[24..];
        } else if let Some(id) = ["kubernetes_", "node_group_", "node_", "quota_", "usage_"]
            .iter()
            .find(|prefix| {
                rest.starts_with(**prefix) && is_ulid(rest.get(prefix.len()..prefix.len() + 26))
            })
        {
            out.push_str(id);
            out.push_str(&rest[id.len() + 10..id.len() + 26]);
            rest = &rest[id.len() + 26..];
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    out
}

fn is_ulid(text: Option<&str>) -> bool {
    text.is_some_and(|text| {
        text.bytes()
            .all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase())
    })
}

/// Milliseconds of `2026-01-01T00:00:00.000Z` since the epoch.
fn millis(text: &str) -> Option<i64> {
    let shape = text.len() == 24 && text.ends_with('Z') && text.as_bytes()[10] == b'T';
    let format = &time::format_description::well_known::Rfc3339;
    let date = shape
        .then(|| time::OffsetDateTime::parse(text, format).ok())
        .flatten()?;
    i64::try_from(date.unix_timestamp_nanos() / 1_000_000).ok()
}
