//! The shipped scenarios, as CI of a user runs them; and what `cke sim` does when one fails.

use std::path::Path;
use std::process::Output;

use crate::harness::{Cke, MANUAL, cke};

fn sim(arguments: &[&str]) -> Output {
    let mut command = cke();
    let output = command.arg("sim").args(arguments).output();
    output.expect("cke runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn every_shipped_scenario_passes() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/scenarios");
    let entries = std::fs::read_dir(directory).expect("the scenarios");
    let mut files: Vec<String> = entries
        .map(|entry| entry.expect("a file").path().display().to_string())
        .collect();
    files.sort();
    assert!(!files.is_empty());
    let arguments: Vec<&str> = [vec!["run"], files.iter().map(String::as_str).collect()].concat();
    let output = sim(&arguments);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    assert_eq!(said.matches("passed: ").count(), files.len(), "{said}");
}

#[test]
fn a_scenario_that_fails_says_where_and_what_happened() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str| directory.path().join(name).display().to_string();
    let scenario = "name: too soon\nseed: 3\nsteps:\n  - createCluster: {name: demo}\n  \
        - {within: 1s, expect: [{cluster: demo, status: ACTIVE}]}\n  - advance: 1h\n";
    std::fs::write(file("s.yaml"), scenario).expect("the scenario");
    let run = || {
        let (junit, history) = (file("junit.xml"), file("history"));
        sim(&[
            "run",
            &file("s.yaml"),
            "--junit",
            &junit,
            "--history",
            &history,
        ])
    };
    let output = run();
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stdout);
    assert!(said.contains("FAILED: too soon"), "{said}");
    assert!(
        said.contains("expect within 1s: cluster demo is DEPLOYING, not ACTIVE"),
        "{said}"
    );
    assert!(said.contains("clusters"), "{said}");
    let junit = std::fs::read_to_string(file("junit.xml")).expect("the report");
    for part in [
        "tests=\"3\"",
        "failures=\"1\"",
        "<skipped",
        "cluster demo is DEPLOYING",
    ] {
        assert!(junit.contains(part), "{part}: {junit}");
    }
    let history = std::fs::read_to_string(file("history")).expect("the history");
    assert!(history.lines().count() > 3, "{history}");
    run();
    let again = std::fs::read_to_string(file("history")).expect("the history");
    assert!(history == again, "two runs have different histories");
}

#[test]
fn a_scenario_that_is_not_valid_is_refused_before_anything_runs() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("s.yaml").display().to_string();
    std::fs::write(&file, "name: x\nsteps:\n  - {advance: 1h, expect: []}\n").expect("the file");
    let output = sim(&["run", &file]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("step 1: a step is one of"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_running_server_is_controlled_from_the_command_line() {
    let cke = Cke::start(MANUAL);
    let run = |arguments: &[&str]| {
        let output = sim(&[&["--url", cke.api()], arguments].concat());
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            text(&output.stderr)
        );
        text(&output.stdout)
    };
    assert!(run(&["clock"]).contains("\"scale\": \"manual\""));
    cke.create(&serde_json::json!({"name": "a"}));
    assert!(run(&["advance", "next"]).contains("\"now\""));
    assert!(run(&["advance", "10m"]).contains("\"now\""));
    assert_eq!(run(&["invariants"]).trim(), "[]");
    assert!(
        run(&["events", "--since", "0", "--no-follow"])
            .lines()
            .count()
            > 10
    );
    let path = "/v4/**";
    let set = run(&["faults", "set", path, "--status", "503", "--times", "9"]);
    assert!(set.contains("fault_1"), "{set}");
    assert!(run(&["faults"]).contains("\"times\": 9"));
    assert!(run(&["faults", "clear"]).contains("\"api\": []"));
    assert!(run(&["vms"]).contains("\"name\": \"control-plane-0\""));
    assert!(run(&["vm", "control-plane-0", "wedge"]).contains("\"wedged\": true"));
    assert!(run(&["vm", "control-plane-0", "load", "--cpu", "250"]).contains("\"cpuMillis\": 250"));
    let lost = run(&[
        "datacenters",
        "par-1",
        "--state",
        "partitioned",
        "--capacity",
        "50",
    ]);
    assert!(lost.contains("\"partitioned\"") && lost.contains("\"capacityPercent\": 50"));
    let quota = run(&["quota", "--vcpus", "80"]);
    assert!(quota.contains("80000"), "{quota}");
    let planned = run(&[
        "rates",
        "plan",
        "--control-plane",
        "6:12",
        "--beta",
        "false",
    ]);
    assert!(planned.contains("\"beta\": false"), "{planned}");
    assert!(run(&["rates"]).contains("\"ramGb\": \"12\""));
    // One XS control plane, at twice the catalog's rates.
    let price = run(&["price", "DEDICATED_COMPUTE:XS:1"]);
    assert!(price.contains("\"monthly\": \"132.00\""), "{price}");
    let several = run(&["price", "DEDICATED_COMPUTE:XS:1", "ALL_IN_ONE:S:1"]);
    assert!(several.contains("\"differences\""), "{several}");
    let cheapest = run(&[
        "price",
        "cheapest",
        "--vcpus",
        "8",
        "--topology",
        "ALL_IN_ONE",
    ]);
    assert!(cheapest.contains("ALL_IN_ONE:S:1"), "{cheapest}");
    let given = run(&["credits", "give", "a welcome", "25.50", "--reason", "beta"]);
    assert!(given.contains("\"name\": \"a welcome\""), "{given}");
    assert!(run(&["credits"]).contains("\"25.50\""));
    let invoices = run(&["invoices"]);
    assert!(invoices.contains("\"month\": \"2026-01\""), "{invoices}");
    assert!(run(&["invoices", "2026-01"]).contains("\"lines\""));
    assert!(run(&["invoices", "2026-01", "--html"]).contains("<html lang"));
    assert_eq!(run(&["volumes"]).trim(), "[]");
    assert!(run(&["vm", "control-plane-0"]).contains("\"cpuMillis\": 250"));
    assert_eq!(run(&["faults", "api"]).trim(), "[]");
    assert!(run(&["openapi"]).contains("\"/_sim/rates\""));
    assert!(run(&["clock", "50"]).contains("\"scale\": \"50\""));
    assert!(run(&["clock", "pause"]).contains("\"resumesAt\": \"50\""));
    assert!(run(&["clock", "manual"]).contains("\"scale\": \"manual\""));
    let refused = sim(&["--url", cke.api(), "clock", "backwards"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused.stderr).contains("400"),
        "{}",
        text(&refused.stderr)
    );
    cke.finish();
}
