//! Many leases that nobody keeps alive; each must run out in its time, and take its key along.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cke::etcd::client::{Client, Watch};
use etcd_proto::etcdserverpb::kv_client::KvClient;
use etcd_proto::etcdserverpb::lease_client::LeaseClient;
use etcd_proto::etcdserverpb::{LeaseLeasesRequest, PutRequest};
use etcd_proto::mvccpb::event::EventType;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use super::{Outcome, Tally};
use crate::Failure;
use crate::lease::grant;
use crate::server::{MAX_CONNECTIONS, Peer, Server, connect};

const PER_SECOND: u32 = 1_000;
const SECONDS: u32 = 30;
const LEASES: u32 = PER_SECOND * SECONDS;
/// Time to live, in seconds.
const TTL: u32 = 5;
/// The server counts time in whole milliseconds, and rounds down.
const CLOCK_STEP: Duration = Duration::from_millis(1);
/// How late the last key may be gone.
const GRACE: Duration = Duration::from_secs(15);
const PREFIX: &str = "/scale/";

fn key(number: u32) -> Bytes {
    Bytes::from(format!("{PREFIX}{number:06}"))
}

/// When a lease was asked for, and when the client was told of it: its time began in between.
struct Granted {
    number: u32,
    asked: Instant,
    answered: Instant,
}

/// What is done is a lease that ran out in its time.
pub async fn run() -> Result<Outcome, Failure> {
    let server = Server::start(Peer::Cke).await?;
    let connections = connect(std::slice::from_ref(&server), MAX_CONNECTIONS).await?;
    let client = Client::new(connections[0].clone());
    let watch = client.watch_prefix(PREFIX, 0).await?;
    let lifetime = Duration::from_secs((SECONDS + TTL).into());
    let deadline = tokio::time::Instant::now() + lifetime + GRACE;
    let watching = tokio::spawn(async move {
        let (mut watch, mut gone) = (watch, HashMap::new());
        let received = tokio::time::timeout_at(deadline, receive(&mut watch, &mut gone)).await;
        // What is missing shows when they are compared.
        (received.unwrap_or(Ok(())), gone)
    });
    let mut granting = JoinSet::new();
    let mut timer = tokio::time::interval(Duration::from_secs(1) / PER_SECOND);
    let began = Instant::now();
    for number in 0..LEASES {
        timer.tick().await;
        let channel = connections[number as usize % connections.len()].clone();
        granting.spawn(async move { grant_with_key(channel, number).await });
    }
    let mut tally = Tally::default();
    let mut all_granted = Vec::new();
    while let Some(granted) = granting.join_next().await {
        match granted? {
            Ok(granted) => all_granted.push(granted),
            Err(failure) => tally.error(failure),
        }
    }
    let granting_took = began.elapsed();
    let (received, gone) = watching.await?;
    if let Err(failure) = received {
        tally.error(failure);
    }
    let latest = judge(&all_granted, &gone, &mut tally);
    let request = LeaseLeasesRequest {};
    let left = LeaseClient::new(connections[0].clone())
        .lease_leases(request)
        .await?
        .into_inner()
        .leases;
    for lease in left {
        tally.error(format!("lease {} is still there", lease.id));
    }
    let note = format!(
        "leases of {TTL} s that ran out; granted in {:.1} s, the latest gone {:.1} s after its time",
        granting_took.as_secs_f64(),
        latest.as_secs_f64()
    );
    Outcome::now(&server, tally, note)
}

async fn grant_with_key(channel: Channel, number: u32) -> Result<Granted, Failure> {
    let asked = Instant::now();
    let lease = grant(&channel, TTL.into()).await?;
    let answered = Instant::now();
    let request = PutRequest {
        key: key(number),
        lease,
        ..PutRequest::default()
    };
    KvClient::new(channel).put(request).await?;
    Ok(Granted {
        number,
        asked,
        answered,
    })
}

/// Receives until as many keys are gone as leases were asked for; notes when each went.
async fn receive(watch: &mut Watch, gone: &mut HashMap<Bytes, Instant>) -> Result<(), Failure> {
    while gone.len() < LEASES as usize {
        let response = watch.next().await?;
        let now = Instant::now();
        let events = response.events.into_iter();
        for event in events.filter(|it| it.r#type == i32::from(EventType::Delete)) {
            gone.insert(event.kv.ok_or("an event without a key")?.key, now);
        }
    }
    Ok(())
}

/// Counts leases that ran out in their time, and the others as errors. Returns how late the latest was.
fn judge(granted: &[Granted], gone: &HashMap<Bytes, Instant>, tally: &mut Tally) -> Duration {
    let ttl = Duration::from_secs(TTL.into());
    let mut latest = Duration::ZERO;
    for lease in granted {
        match gone.get(&key(lease.number)) {
            None => tally.error(format!("the key of lease {} stayed", lease.number)),
            Some(at) if *at + CLOCK_STEP < lease.asked + ttl => {
                let lived = *at - lease.asked;
                tally.error(format!("lease {} lived for {lived:?}", lease.number));
            }
            Some(at) => {
                tally.done += 1;
                latest = latest.max(at.saturating_duration_since(lease.answered + ttl));
            }
        }
    }
    latest
}
