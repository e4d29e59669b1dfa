//! The table: every case on one server, then on the other, in alternation.

use std::collections::HashMap;
use std::time::Duration;

use crate::cases::{CASES, Case};
use crate::figures::{Figures, median, print_header, print_row};
use crate::server::{Peer, Server, etcd_program};
use crate::{Failure, Words};

/// Runs of one case by server.
type Runs = HashMap<Peer, Vec<Figures>>;

/// Prints the medians of `CKE_BENCH_ROUNDS` rounds of `CKE_BENCH_SECONDS` seconds.
pub async fn run(words: &Words) -> Result<(), Failure> {
    // Before anything is measured.
    etcd_program()?;
    let duration = Duration::from_secs(setting("CKE_BENCH_SECONDS", 3)?);
    let rounds = setting("CKE_BENCH_ROUNDS", 3)?;
    println!("{rounds} rounds of {duration:?} a case and server; medians; ratio = cke / etcd");
    print_header();
    for case in CASES.iter().filter(|case| words.choose(case.name)) {
        compare(case, rounds, duration).await?;
    }
    Ok(())
}

/// A case that is disturbed by something runs without that too, on a server of its own.
async fn compare(case: &Case, rounds: u64, duration: Duration) -> Result<(), Failure> {
    let (mut runs, mut undisturbed) = (Runs::new(), Runs::new());
    for _ in 0..rounds {
        for peer in Peer::BOTH {
            if let Some(case) = case.undisturbed() {
                let figures = once(peer, &case, duration).await?;
                undisturbed.entry(peer).or_default().push(figures);
            }
            let figures = once(peer, case, duration).await?;
            runs.entry(peer).or_default().push(figures);
        }
    }
    print_row(case.name, &runs[&Peer::Cke], &runs[&Peer::Etcd]);
    if case.undisturbed().is_some() {
        print_row(
            "  undisturbed",
            &undisturbed[&Peer::Cke],
            &undisturbed[&Peer::Etcd],
        );
        let kept = |peer: Peer| {
            let rate = |runs: &Runs| median(&runs[&peer], |figures| figures.per_second);
            rate(&runs) / rate(&undisturbed)
        };
        println!(
            "  op/s beside undisturbed: cke {:.2}, etcd {:.2}",
            kept(Peer::Cke),
            kept(Peer::Etcd)
        );
    }
    Ok(())
}

async fn once(peer: Peer, case: &Case, duration: Duration) -> Result<Figures, Failure> {
    let server = Server::start(peer).await?;
    let figures = case.run(std::slice::from_ref(&server), duration).await;
    figures.map_err(|failure| format!("{} on {}: {failure}", case.name, peer.name()).into())
}

/// A number in the environment, above 0.
pub fn setting(name: &str, default: u64) -> Result<u64, Failure> {
    let Ok(text) = std::env::var(name) else {
        return Ok(default);
    };
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("{name}={text}: expected a number above 0").into()),
    }
}
