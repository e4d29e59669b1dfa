//! Many watchers of many prefixes; each must be told of each put, in order.

use std::time::Duration;

use cke::etcd::client::{Client, Watch};
use tokio::task::JoinSet;

use super::{Outcome, Tally};
use crate::Failure;
use crate::server::{MAX_CONNECTIONS, Peer, Server, connect};
use crate::watch::open;

const WATCHERS: usize = 10_000;
const PREFIXES: usize = 100;
/// To each prefix, one after the other; the prefixes at the same time.
const PUTS: usize = 10;
/// From the first put until the last event must be there.
const DEADLINE: Duration = Duration::from_secs(60);

fn prefix(number: usize) -> String {
    format!("/scale/{:03}/", number % PREFIXES)
}

/// What is done is an event delivered.
pub async fn run() -> Result<Outcome, Failure> {
    let server = Server::start(Peer::Cke).await?;
    let connections = connect(std::slice::from_ref(&server), MAX_CONNECTIONS).await?;
    let watches = open(&connections, WATCHERS, prefix).await?;
    let deadline = tokio::time::Instant::now() + DEADLINE;
    let mut watching = JoinSet::new();
    for (number, mut watch) in watches.into_iter().enumerate() {
        watching.spawn(async move {
            let mut tally = Tally::default();
            let received = receive(&mut watch, number, &mut tally);
            match tokio::time::timeout_at(deadline, received).await {
                Ok(Ok(())) => {}
                Ok(Err(failure)) => tally.error(failure),
                Err(_late) => tally.error(format!("watcher {number} lacks events")),
            }
            // The watch stays open until memory was looked at.
            (tally, watch)
        });
    }
    let mut putting = JoinSet::new();
    for number in 0..PREFIXES {
        let client = Client::new(connections[number % connections.len()].clone());
        putting.spawn(async move {
            let mut tally = Tally::default();
            for put in 0..PUTS {
                let key = format!("{}key", prefix(number));
                if let Err(failure) = client.put(key, put.to_string()).await {
                    tally.error(failure);
                }
            }
            tally
        });
    }
    let mut tally = Tally::default();
    while let Some(put) = putting.join_next().await {
        tally.add(put?);
    }
    let mut watches = Vec::new();
    while let Some(watched) = watching.join_next().await {
        let (of_one, watch) = watched?;
        tally.add(of_one);
        watches.push(watch);
    }
    let note = format!("events; {WATCHERS} watchers on {PREFIXES} prefixes");
    Outcome::now(&server, tally, note)
}

/// Receives the events of its prefix, and counts those that are as they must be.
async fn receive(watch: &mut Watch, number: usize, tally: &mut Tally) -> Result<(), Failure> {
    let mut next = 0;
    while next < PUTS {
        for event in watch.next().await?.events {
            let kv = event.kv.ok_or("an event without a key")?;
            let expected = kv.key.starts_with(prefix(number).as_bytes())
                && kv.value == next.to_string().as_bytes();
            if expected {
                tally.done += 1;
            } else {
                tally.error(format!("watcher {number} was told of {kv:?} at {next}"));
            }
            next += 1;
        }
    }
    Ok(())
}
