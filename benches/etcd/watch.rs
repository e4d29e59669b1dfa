//! Watchers that are told of every put, and watchers that nobody disturbs.

use std::time::{Duration, Instant};

use bytes::Bytes;
use cke::etcd::client::{self, Client, Watch};
use etcd_proto::etcdserverpb::TxnRequest;
use etcd_proto::mvccpb::Event;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::Failure;
use crate::figures::Figures;
use crate::keys::{KEYS, PREFIX, TXN_PUTS, key};
use crate::server::{MAX_CONNECTIONS, Server, connect, cpu};

/// How long events may be under way after the last put; what comes later is missing.
const GRACE: Duration = Duration::from_secs(30);
/// Sending time of the put that ends a run. It is not measured.
const LAST: u64 = u64::MAX;

/// Opens `count` watches, each on a stream of its own: one prefix for each, by its number.
pub async fn open(
    connections: &[Channel],
    count: usize,
    prefix: impl Fn(usize) -> String + Copy,
) -> Result<Vec<Watch>, Failure> {
    let opening = (0..count).map(|number| {
        let client = Client::new(connections[number % connections.len()].clone());
        async move { client.watch_prefix(prefix(number), 0).await }
    });
    let opened = stream::iter(opening).buffered(MAX_CONNECTIONS);
    Ok(opened.try_collect().await?)
}

/// A value that tells when it was sent: nanoseconds since the run's epoch.
fn stamped(value_bytes: usize, sent: u64) -> Bytes {
    let mut value = vec![0; value_bytes];
    value[..8].copy_from_slice(&sent.to_be_bytes());
    Bytes::from(value)
}

fn since(epoch: Instant) -> Result<u64, Failure> {
    Ok(u64::try_from(epoch.elapsed().as_nanos())?)
}

fn stamp(event: Event) -> Result<(u64, i64), Failure> {
    let kv = event.kv.ok_or("an event without a key")?;
    let sent = kv.value.first_chunk().ok_or("an event that is no put")?;
    Ok((u64::from_be_bytes(*sent), kv.mod_revision))
}

/// What one watcher was told.
struct Watcher {
    watch: Watch,
    epoch: Instant,
    /// Each put is a revision of its own, so the next event's is known.
    next_revision: i64,
    /// From a put's sending to its event's arrival.
    latencies: Vec<Duration>,
    /// Events that did not follow the one before.
    misplaced: usize,
}

impl Watcher {
    /// Receives until the last put's event, which all others must come before.
    async fn receive(&mut self) -> Result<(), Failure> {
        loop {
            let response = self.watch.next().await?;
            let now = self.epoch.elapsed();
            for event in response.events {
                let (sent, revision) = stamp(event)?;
                if revision != self.next_revision {
                    self.misplaced += 1;
                }
                self.next_revision = revision + 1;
                if sent == LAST {
                    return Ok(());
                }
                let sent = Duration::from_nanos(sent);
                self.latencies.push(now.saturating_sub(sent));
            }
        }
    }
}

/// How the puts come that are watched.
#[derive(Clone, Copy)]
pub enum Pace {
    /// One writer, as fast as it can be.
    ClosedLoop,
    /// So many a second, by a timer: a slow put does not hold up the next one.
    PerSecond(u32),
}

/// Watchers of the prefix of all keys, at all of the servers, and puts to the first; one operation is one event
/// delivered.
pub async fn run(
    servers: &[Server],
    watchers: usize,
    pace: Pace,
    value_bytes: usize,
    duration: Duration,
) -> Result<Figures, Failure> {
    let writer = Client::new(connect(&servers[..1], 1).await?.remove(0));
    let connections = connect(servers, MAX_CONNECTIONS).await?;
    let watches = open(&connections, watchers, |_| PREFIX.to_owned()).await?;
    let revision = writer.get(key(0)).await?.revision;
    let epoch = Instant::now();
    let deadline = tokio::time::Instant::now() + duration + GRACE;
    let mut tasks = JoinSet::new();
    for watch in watches {
        let mut watcher = Watcher {
            watch,
            epoch,
            next_revision: revision + 1,
            latencies: Vec::new(),
            misplaced: 0,
        };
        tasks.spawn(async move {
            match tokio::time::timeout_at(deadline, watcher.receive()).await {
                Ok(received) => received?,
                // What is missing shows in the count.
                Err(_late) => {}
            }
            Ok::<_, Failure>((watcher.latencies, watcher.misplaced))
        });
    }
    let before = cpu(servers)?;
    let started = Instant::now();
    let puts = match pace {
        Pace::ClosedLoop => put_in_turn(&writer, epoch, value_bytes, duration).await?,
        Pace::PerSecond(rate) => put_by_timer(&writer, epoch, value_bytes, duration, rate).await?,
    };
    writer.put(key(0), stamped(value_bytes, LAST)).await?;
    let (mut latencies, mut misplaced) = (Vec::new(), 0);
    while let Some(done) = tasks.join_next().await {
        let (of_one, misplaced_of_one) = done??;
        latencies.extend(of_one);
        misplaced += misplaced_of_one;
    }
    let (delivered, expected) = (latencies.len(), puts * watchers);
    if delivered != expected || misplaced > 0 {
        return Err(format!(
            "{delivered} of {expected} events were delivered within {GRACE:?}, {misplaced} of them not in their place"
        )
        .into());
    }
    Figures::of(latencies, started.elapsed(), cpu(servers)? - before)
}

async fn put_in_turn(
    writer: &Client,
    epoch: Instant,
    value_bytes: usize,
    duration: Duration,
) -> Result<usize, Failure> {
    let started = Instant::now();
    let mut puts = 0;
    while started.elapsed() < duration {
        let value = stamped(value_bytes, since(epoch)?);
        writer.put(key(puts % KEYS), value).await?;
        puts += 1;
    }
    Ok(puts)
}

async fn put_by_timer(
    writer: &Client,
    epoch: Instant,
    value_bytes: usize,
    duration: Duration,
    rate: u32,
) -> Result<usize, Failure> {
    let puts = (duration.as_secs_f64() * f64::from(rate)) as usize;
    // Ticks that were missed are made up for, so the number of puts is as said.
    let mut timer = tokio::time::interval(Duration::from_secs(1) / rate);
    let mut tasks = JoinSet::new();
    for number in 0..puts {
        timer.tick().await;
        let writer = writer.clone();
        tasks.spawn(async move {
            let value = stamped(value_bytes, since(epoch)?);
            writer.put(key(number % KEYS), value).await?;
            Ok::<_, Failure>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(puts)
}

/// Watchers, each of a prefix of its own that nobody writes to.
pub struct IdleWatchers(Vec<Watch>);

impl IdleWatchers {
    pub async fn open(servers: &[Server], count: usize) -> Result<IdleWatchers, Failure> {
        let connections = connect(servers, MAX_CONNECTIONS).await?;
        let watches = open(&connections, count, |number| format!("/idle/{number:06}/")).await?;
        Ok(IdleWatchers(watches))
    }

    /// Writes to each prefix once: every watcher must be told of that, and of nothing else so far.
    pub async fn check(mut self, writer: &Client) -> Result<(), Failure> {
        let keys: Vec<String> = (0..self.0.len())
            .map(|number| format!("/idle/{number:06}/key"))
            .collect();
        for chunk in keys.chunks(TXN_PUTS) {
            let puts = chunk.iter().map(|key| client::put(key.clone(), "value"));
            let request = TxnRequest {
                success: puts.collect(),
                ..TxnRequest::default()
            };
            writer.txn(request).await?;
        }
        let receive = async {
            for (watch, expected) in self.0.iter_mut().zip(&keys) {
                let events = watch.next().await?.events;
                let told: Vec<_> = events.iter().filter_map(|it| it.kv.as_ref()).collect();
                if told.len() != 1 || told[0].key != expected.as_bytes() {
                    return Err(format!("the watcher of {expected} was told of {told:?}").into());
                }
            }
            Ok::<_, Failure>(())
        };
        let late = |_| "idle watchers were not told of a put";
        tokio::time::timeout(GRACE, receive).await.map_err(late)?
    }
}
