//! `cke etcd` alone, with more of everything than one cluster has. Nothing may be lost.

mod certificates;
mod keyspaces;
mod leases;
mod watchers;

use std::time::{Duration, Instant};

use crate::server::{Memory, Server};
use crate::{Failure, Words};

/// What was done, and what went wrong.
#[derive(Default)]
struct Tally {
    done: usize,
    errors: usize,
    first_error: Option<String>,
}

impl Tally {
    fn error(&mut self, what: impl ToString) {
        self.errors += 1;
        self.first_error.get_or_insert_with(|| what.to_string());
    }

    fn add(&mut self, other: Tally) {
        self.done += other.done;
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
    }
}

/// What a part showed, and what the server had used at its end, watches and connections still open.
struct Outcome {
    tally: Tally,
    /// More about it, for the reader.
    note: String,
    memory: Memory,
    cpu: Duration,
}

impl Outcome {
    fn now(server: &Server, tally: Tally, note: String) -> Result<Outcome, Failure> {
        Ok(Outcome {
            tally,
            note,
            memory: server.memory()?,
            cpu: server.cpu()?,
        })
    }
}

/// Runs every part on a server of its own, and fails if there was an error in one.
pub async fn run(words: &Words) -> Result<(), Failure> {
    let files = cke::etcd::limits::connections()?;
    println!(
        "{:<12} {:>10} {:>8} {:>9} {:>9} {:>9}",
        "cke alone", "done", "errors", "s", "RSS MiB", "CPU s"
    );
    let mut errors = 0;
    if words.choose("watchers") {
        errors += report("watchers", watchers::run()).await?;
    }
    if words.choose("leases") {
        errors += report("leases", leases::run()).await?;
    }
    if words.choose("keyspaces") {
        if files < keyspaces::KEYSPACES {
            return Err("too few open files for all connections: raise ulimit -n".into());
        }
        errors += report("keyspaces", keyspaces::run()).await?;
    }
    if errors > 0 {
        return Err(format!("{errors} errors").into());
    }
    Ok(())
}

/// Returns the number of errors.
async fn report(
    name: &str,
    part: impl Future<Output = Result<Outcome, Failure>>,
) -> Result<usize, Failure> {
    let started = Instant::now();
    let outcome = part.await.map_err(|failure| format!("{name}: {failure}"))?;
    let Tally { done, errors, .. } = outcome.tally;
    println!(
        "{name:<12} {done:>10} {errors:>8} {:>9.1} {:>9.1} {:>9.1}  {}",
        started.elapsed().as_secs_f64(),
        outcome.memory.resident_mib,
        outcome.cpu.as_secs_f64(),
        outcome.note
    );
    if let Some(first) = outcome.tally.first_error {
        println!("{:<12} first error: {first}", "");
    }
    Ok(errors)
}
