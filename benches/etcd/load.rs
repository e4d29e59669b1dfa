//! The closed loop: clients that each send the next request once the last one is answered.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::Failure;
use crate::figures::Figures;
use crate::server::{Server, cpu};

/// One client, ready to work.
pub trait Worker: Send + 'static {
    /// Does one operation, and checks its answer.
    fn work(&mut self) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// Lets all of them work for `duration`. One failure fails the run.
pub async fn closed_loop<W: Worker>(
    servers: &[Server],
    workers: Vec<W>,
    duration: Duration,
) -> Result<Figures, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let before = cpu(servers)?;
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for mut worker in workers {
        let stop = Arc::clone(&stop);
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let begun = Instant::now();
                worker.work().await?;
                latencies.push(begun.elapsed());
            }
            Ok::<_, Failure>(latencies)
        });
    }
    tokio::time::sleep(duration).await;
    stop.store(true, Ordering::Relaxed);
    let mut latencies = Vec::new();
    while let Some(done) = tasks.join_next().await {
        latencies.extend(done??);
    }
    Figures::of(latencies, started.elapsed(), cpu(servers)? - before)
}
