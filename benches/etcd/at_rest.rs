//! Memory at rest, and the time to restart.

use std::time::{Duration, Instant};

use crate::figures::median;
use crate::keys::{fill, key};
use crate::server::{Memory, Peer, Server, connect, etcd_program};
use crate::{Failure, Words};

/// Before memory is looked at.
const QUIET: Duration = Duration::from_secs(20);
/// How long a restart may take.
const RESTART_TIMEOUT: Duration = Duration::from_secs(300);
const RESTARTS: usize = 3;
/// Connections that load, each with one transaction at a time.
const LOADERS: usize = 8;

/// What one restart showed.
struct Restart {
    /// From the process's start to the answer of a linearizable read, in milliseconds.
    until_read_ms: f64,
    /// After it had been quiet for [`QUIET`].
    memory: Memory,
}

pub async fn run(words: &Words) -> Result<(), Failure> {
    // Before anything is measured.
    etcd_program()?;
    println!("{:<44} {:>10} {:>10} {:>6}", "", "cke", "etcd", "ratio");
    if words.choose("memory") {
        memory(100_000, 1024).await?;
    }
    if words.choose("restart") {
        restart(1_000_000, 256).await?;
    }
    Ok(())
}

async fn memory(keys: usize, value_bytes: usize) -> Result<(), Failure> {
    println!("{keys} keys of {value_bytes} bytes, {QUIET:?} after the last one was put");
    let mut found = Vec::new();
    for peer in Peer::BOTH {
        let server = loaded(peer, keys, value_bytes).await?;
        tokio::time::sleep(QUIET).await;
        found.push(server.memory()?);
    }
    print_memory(found[0], found[1]);
    Ok(())
}

async fn restart(keys: usize, value_bytes: usize) -> Result<(), Failure> {
    println!(
        "{keys} keys of {value_bytes} bytes, medians of {RESTARTS} restarts; memory {QUIET:?} after the read"
    );
    let mut servers = Vec::new();
    for peer in Peer::BOTH {
        let mut server = loaded(peer, keys, value_bytes).await?;
        // While one is measured, the other is not there.
        server.stop().await?;
        servers.push((server, Vec::new()));
    }
    for _ in 0..RESTARTS {
        for (server, restarts) in &mut servers {
            restarts.push(restart_once(server, keys, value_bytes).await?);
        }
    }
    let column = |index: usize| {
        let restarts: &[Restart] = &servers[index].1;
        let memory = Memory {
            resident_mib: median(restarts, |it| it.memory.resident_mib),
            anonymous_mib: median(restarts, |it| it.memory.anonymous_mib),
        };
        (median(restarts, |it| it.until_read_ms), memory)
    };
    let ((ours_ms, ours), (theirs_ms, theirs)) = (column(0), column(1));
    print_line("start to linearizable read, ms", ours_ms, theirs_ms);
    print_memory(ours, theirs);
    Ok(())
}

async fn restart_once(
    server: &mut Server,
    keys: usize,
    value_bytes: usize,
) -> Result<Restart, Failure> {
    let started = Instant::now();
    server.start_again()?;
    let value = server.until_answers(key(keys - 1), RESTART_TIMEOUT).await?;
    let until_read = started.elapsed();
    if value.map(|value| value.len()) != Some(value_bytes) {
        return Err("a key did not survive the restart".into());
    }
    tokio::time::sleep(QUIET).await;
    let memory = server.memory()?;
    server.stop().await?;
    Ok(Restart {
        until_read_ms: until_read.as_secs_f64() * 1e3,
        memory,
    })
}

async fn loaded(peer: Peer, keys: usize, value_bytes: usize) -> Result<Server, Failure> {
    let server = Server::start(peer).await?;
    let loading = async {
        fill(
            &connect(std::slice::from_ref(&server), LOADERS).await?,
            keys,
            value_bytes,
        )
        .await
    };
    let failed = |failure| format!("loading {}: {failure}", peer.name());
    loading.await.map_err(failed)?;
    Ok(server)
}

fn print_memory(cke: Memory, etcd: Memory) {
    print_line("RSS, MiB", cke.resident_mib, etcd.resident_mib);
    let (ours, theirs) = (cke.anonymous_mib, etcd.anonymous_mib);
    print_line("  of it not pages of files, MiB", ours, theirs);
}

fn print_line(what: &str, cke: f64, etcd: f64) {
    println!("  {what:<42} {cke:>10.1} {etcd:>10.1} {:>6.2}", cke / etcd);
}
