//! A thousand clusters and ten thousand VMs under a clock by hand; then a datacenter is lost, and healed.
//!
//! The server is a process of its own, started afresh with default settings and fsync on; what is asked of
//! it is asked over its REST API, as any client would. CPU and memory are the server process's own, from
//! `/proc`; fsyncs are counted by its metrics. Whatever is not ACTIVE or READY in the end, or breaks a rule of
//! `/_sim/invariants`, ends the run.
//!
//! ```text
//! cargo bench --bench scale
//! CKE_SCALE_CLUSTERS=100 CKE_SCALE_NODES=9 cargo bench --bench scale
//! ```
//!
//! `CKE_SCALE_BINARY` names another `cke`, `CKE_SCALE_DIRECTORY` where its data lies (the build's directory by
//! default): on a disk changes wait for it, in `/dev/shm` none does. docs/SCALE.md has the figures.

#[path = "../../tests/e2e/http.rs"]
#[allow(dead_code)]
mod http;
mod server;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use server::{Figures, Server};

/// What is given, or the default.
fn number(name: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(name) else {
        return default;
    };
    text.parse().unwrap_or_else(|_| panic!("{name}: {text}"))
}

/// A line of the table: what was done, in which time, and what it took.
fn phase<T>(server: &Server, name: &str, work: impl FnOnce() -> T) -> T {
    let (started, before) = (Instant::now(), server.figures());
    let outcome = work();
    let wall = started.elapsed().as_secs_f64();
    let Figures {
        cpu,
        resident_mib,
        peak_mib,
        fsyncs,
    } = server.figures();
    let cpu = cpu.saturating_sub(before.cpu).as_secs_f64();
    let fsyncs = fsyncs.saturating_sub(before.fsyncs);
    println!(
        "| {name} | {wall:.1} s | {cpu:.1} s | {fsyncs} | {resident_mib} MiB | {peak_mib} MiB |"
    );
    outcome
}

/// Lets time pass until all is well, at most half a day. Returns how many minutes that took.
fn heal(server: &Server, clusters: u64, nodes: u64) -> u64 {
    /// Between two looks, in seconds.
    const STEP: u64 = 300;
    for step in 1..=144 {
        server.advance(STEP);
        let vms = server.ask("GET", "/_sim/vms", &Value::Null);
        let vms = vms.as_array().expect("a list");
        let elsewhere = |vm: &&Value| vm["datacenter"] != "par-2";
        let enough = vms.iter().filter(elsewhere).count() as u64 == clusters * (nodes + 1);
        if enough && ill(server, clusters, nodes).is_none() {
            return step * STEP / 60;
        }
    }
    panic!("{:#}", ill(server, clusters, nodes).unwrap_or_default());
}

/// What an idle machine would not have.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: Vec<&str> = load.split_whitespace().take(3).collect();
    format!("{cores} cores, load average {}", load.join(" "))
}

fn main() {
    let clusters = number("CKE_SCALE_CLUSTERS", 1000);
    let nodes = number("CKE_SCALE_NODES", 9);
    // `cargo bench` passes `--bench`, and `cargo test` runs this to see that it builds.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let server = Server::start();
    server.ask(
        "PUT",
        &format!("/_sim/organisations/{}/quota", server.organisation),
        &json!({"vcpus": 1_000_000, "ramGb": 1_000_000}),
    );
    println!(
        "{clusters} clusters of one control plane VM and {nodes} workers; {}\n",
        machine()
    );
    println!(
        "| what | wall time | CPU | fsyncs | memory | most memory |\n|---|---|---|---|---|---|"
    );
    let started = Instant::now();
    phase(&server, "ask for the clusters", || {
        for number in 0..clusters {
            let group = json!({"name": "w", "flavor": "2XS", "targetNodeCount": nodes});
            server.ask(
                "POST",
                &format!("{}/clusters", server.base()),
                &json!({
                    "name": format!("cluster-{number}"),
                    "topologyConfig": {
                        "topology": "DEDICATED_COMPUTE", "flavor": "XS", "replicationFactor": 1,
                    },
                    "nodeGroups": [group],
                }),
            );
        }
    });
    phase(&server, "10 minutes: all become ACTIVE", || {
        server.advance(600);
    });
    phase(&server, "list the clusters", || {
        assert_eq!(ill(&server, clusters, nodes), None);
    });
    phase(&server, "a day in which nothing happens", || {
        server.advance(86_400);
    });
    let minutes = phase(&server, "par-2 is lost, and all are healed", || {
        server.ask("PUT", "/_sim/datacenters/par-2", &json!({"state": "lost"}));
        heal(&server, clusters, nodes)
    });
    phase(&server, "par-2 is back, 20 minutes", || {
        server.ask("PUT", "/_sim/datacenters/par-2", &json!({"state": "up"}));
        server.advance(1200);
        assert_eq!(ill(&server, clusters, nodes), None);
    });
    phase(&server, "check every rule", || {
        let broken = server.ask("GET", "/_sim/invariants", &Value::Null);
        assert_eq!(broken, json!([]));
    });
    let Figures {
        cpu,
        peak_mib,
        fsyncs,
        ..
    } = server.figures();
    println!(
        "| **in all** | **{:.1} s** | **{:.1} s** | **{fsyncs}** | | **{peak_mib} MiB** |\n\n\
         The healing took {minutes} minutes of the simulated time.",
        started.elapsed().as_secs_f64(),
        cpu.as_secs_f64()
    );
    server.stop(Duration::from_secs(30));
}

/// A cluster that is not ACTIVE and READY with as many nodes as it should have, if there is one.
fn ill(server: &Server, clusters: u64, nodes: u64) -> Option<Value> {
    let listed = server.ask("GET", &format!("{}/clusters", server.base()), &Value::Null);
    let listed = listed.as_array().expect("a list");
    assert_eq!(listed.len() as u64, clusters);
    let well = |cluster: &&Value| {
        let group = &cluster["nodeGroups"][0];
        cluster["status"] == "ACTIVE"
            && group["status"] == "READY"
            && group["currentNodeCount"] == nodes
    };
    listed.iter().find(|cluster| !well(cluster)).cloned()
}
