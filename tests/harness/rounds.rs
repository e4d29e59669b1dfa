//! The rounds that run, and for how long.

use std::time::Duration;

use fdb::Faults;

use crate::check::Rule;
use crate::instance::Kind;
use crate::plant::Bug;
use crate::round::Round;

/// A round is no longer than this; longer runs are more rounds.
const ROUND: Duration = Duration::from_secs(10);
/// Seed of a run that is given none.
const SEED: u64 = 20_260_601;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{name} must be a number, not `{text}`")))
}

/// Runs rounds of the kind for `CKE_HARNESS_SECONDS`, or the given time, from `CKE_HARNESS_SEED` on.
async fn run(test: &str, normally: Duration, servers: usize, kind: impl Fn(u64) -> Kind) {
    let mut left = number("CKE_HARNESS_SECONDS").map_or(normally, Duration::from_secs);
    let mut seed = number("CKE_HARNESS_SEED").unwrap_or(SEED);
    while !left.is_zero() {
        let length = left.min(ROUND);
        let round = Round {
            kind: kind(seed),
            servers,
            seed,
            length,
            bug: None,
        };
        let verdict = round.run().await;
        println!(
            "seed {seed}: {} calls, {} revisions, {} watches, {} incidents",
            verdict.history.calls.len(),
            verdict
                .history
                .scribe
                .last()
                .map_or(0, |change| change.revision),
            verdict.history.watches.len(),
            verdict.history.incidents.len()
        );
        verdict.must_be_right(&round, test);
        left -= length;
        seed += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_and_paused_keeps_its_promises() {
    let normally = Duration::from_secs(40);
    run("a_server_that_is_killed", normally, 1, |_| Kind::Program).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_on_a_misbehaving_store_keeps_its_promises() {
    let kind = |seed| Kind::Embedded {
        faults: faults(seed),
        slow_writes: 0.05,
    };
    let normally = Duration::from_secs(10);
    run("a_server_on_a_misbehaving_store", normally, 1, kind).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_share_a_misbehaving_store_keep_their_promises() {
    let kind = |seed| Kind::Sharing {
        faults: faults(seed),
    };
    let normally = Duration::from_secs(20);
    run("servers_that_share_a_misbehaving_store", normally, 2, kind).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_on_foundationdb_keep_their_promises() {
    if !crate::cluster::Cluster::is_there() {
        eprintln!("not run: neither CKE_TEST_FDBSERVER nor CKE_TEST_FDB_CLUSTER_FILE is set");
        return;
    }
    let normally = Duration::from_secs(40);
    run("servers_on_foundationdb", normally, 2, |_| {
        Kind::FoundationDb
    })
    .await;
}

fn faults(seed: u64) -> Faults {
    Faults {
        seed,
        not_committed: 0.05,
        commit_unknown_result: 0.05,
        transaction_too_old: 0.02,
        future_version: 0.02,
        max_delay: Duration::from_micros(500),
    }
}

/// The planted bug must be found, by these rules among others.
async fn plant(bug: Bug, seed: u64, expected: &[Rule]) {
    let round = Round {
        kind: Kind::Program,
        servers: 1,
        seed,
        length: Duration::from_secs(4),
        bug: Some(bug),
    };
    let violations = round.run().await.violations;
    let rules: Vec<Rule> = violations.iter().map(|violation| violation.rule).collect();
    for violation in &violations {
        println!("{violation}");
    }
    for rule in expected {
        assert!(
            rules.contains(rule),
            "{bug:?} with seed {seed}: no {rule:?} in {rules:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_write_is_found() {
    plant(Bug::LostWrite, 1, &[Rule::RealTime, Rule::Register]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_duplicated_event_is_found() {
    plant(Bug::DuplicatedEvent, 2, &[Rule::WatchEvents]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_read_is_found() {
    plant(Bug::StaleRead, 3, &[Rule::RealTime, Rule::Register]).await;
}
