//! Several servers on one store: each answers every request, one acts, and another takes over from it.

use serde_json::{Value, json};

use crate::command;
use crate::crash::settled;
use crate::harness::{Cke, cke, on_foundationdb, text};

/// Slow enough to be met in the middle: a creation takes about three seconds.
const SLOW: &str = "20";

fn can_share() -> bool {
    if !on_foundationdb() {
        println!("not run: an embedded store belongs to one server, and there is no FoundationDB");
    }
    on_foundationdb()
}

fn demo(name: &str) -> Value {
    json!({"name": name,
        "topologyConfig": {"topology": "DEDICATED_COMPUTE", "flavor": "XS", "replicationFactor": 1},
        "nodeGroups": [{"name": "workers", "flavor": "2XS", "targetNodeCount": 2}]})
}

#[test]
fn the_one_that_acts_is_killed_in_the_middle_of_a_creation() {
    if !can_share() {
        return;
    }
    let mut first = Cke::start(SLOW);
    let second = first.start_beside();
    let path = format!("/clusters/{}", second.create(&demo("one")));
    first.wait_until(&format!("{path}/deployment-events?limit=1000"), |events| {
        let mut events = events.as_array().expect("a list").iter();
        events.any(|event| event["stepName"] == "MATERIA_LOGICALDB")
    });
    first.kill();
    let cluster = second.wait_until(&path, settled);
    assert_eq!(cluster["status"], "ACTIVE");
    assert_eq!(cluster["nodeGroups"][0]["currentNodeCount"], 2);

    // The one that was killed comes back beside the one that acts now, and follows it when that is ended.
    first.restart();
    let path = format!("/clusters/{}", first.create(&demo("two")));
    assert_eq!(first.wait_until(&path, settled)["status"], "ACTIVE");
    second.finish();
    let path = format!("/clusters/{}", first.create(&demo("three")));
    assert_eq!(first.wait_until(&path, settled)["status"], "ACTIVE");
    first.finish();
}

#[test]
fn servers_of_one_store_have_one_time_line() {
    if !can_share() {
        return;
    }
    let first = Cke::start(SLOW);
    for (scale, reason) in [
        ("21", "runs at --time-scale 20, this one at 21"),
        ("manual", "a manual clock cannot be shared"),
    ] {
        let free = "127.0.0.1:0";
        let mut command = cke();
        command
            .args(["serve", "--listen-http", free, "--listen-kubernetes", free])
            .args(["--listen-etcd", free, "--time-scale", scale])
            .args(first.store());
        let said = command::run(&mut command);
        assert_ne!(said.code, Some(0), "{said:#?}");
        assert!(said.stderr.contains(reason), "{said:#?}");
    }
    let second = first.start_beside();
    let now = |cke: &Cke| {
        let clock = cke.request("GET", "/_sim/clock", None).ok();
        let format = &time::format_description::well_known::Rfc3339;
        time::OffsetDateTime::parse(&text(&clock["now"]), format).expect("a time")
    };
    // 20 simulated seconds a real one: read one after the other, they differ by what lies between.
    let (earlier, between, later) = (now(&first), now(&second), now(&first));
    let tolerance = time::Duration::milliseconds(200);
    assert!(
        earlier - tolerance <= between && between <= later + tolerance,
        "{earlier} {between} {later}"
    );
    second.finish();
    first.finish();
}
