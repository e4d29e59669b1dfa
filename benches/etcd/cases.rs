//! The cases of the comparison.

use std::time::Duration;

use cke::etcd::client::Client;
use futures::future::try_join_all;

use crate::Failure;
use crate::figures::Figures;
use crate::keys::{self, KEYS};
use crate::kv::{self, Operation};
use crate::lease::{Granter, KeepAlive};
use crate::load::closed_loop;
use crate::server::{Server, connect};
use crate::watch::{self, IdleWatchers, Pace};

#[derive(Clone, Copy)]
enum Work {
    Kv(Operation),
    Watch { watchers: usize, pace: Pace },
    GrantLeases,
    KeepLeasesAlive,
}

#[derive(Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    work: Work,
    /// Clients at once. They share up to 16 connections.
    clients: usize,
    value_bytes: usize,
    /// Watchers of other prefixes meanwhile.
    idle_watchers: usize,
}

const GET: Work = Work::Kv(Operation::Get {
    serializable: false,
});
const GET_SERIALIZABLE: Work = Work::Kv(Operation::Get { serializable: true });
const WATCH_100: Work = Work::Watch {
    watchers: 100,
    pace: Pace::ClosedLoop,
};
const WATCH_1000: Work = Work::Watch {
    watchers: 1_000,
    pace: Pace::PerSecond(100),
};

pub const CASES: &[Case] = &[
    case("put-1", Work::Kv(Operation::Put), 1, 256),
    case("put-64", Work::Kv(Operation::Put), 64, 256),
    case("put-256", Work::Kv(Operation::Put), 256, 256),
    Case {
        idle_watchers: 10_000,
        ..case("put-64-idle", Work::Kv(Operation::Put), 64, 256)
    },
    case("update-64", Work::Kv(Operation::Update), 64, 1024),
    case("get-64", GET, 64, 256),
    case("get-256", GET, 256, 256),
    case("get-serializable-64", GET_SERIALIZABLE, 64, 256),
    case("list-4", Work::Kv(Operation::List), 4, 1024),
    case("watch-100", WATCH_100, 1, 256),
    case("watch-1000", WATCH_1000, 1, 256),
    case("lease-grant-64", Work::GrantLeases, 64, 256),
    case("lease-keepalive-64", Work::KeepLeasesAlive, 64, 256),
];

const fn case(name: &'static str, work: Work, clients: usize, value_bytes: usize) -> Case {
    Case {
        name,
        work,
        clients,
        value_bytes,
        idle_watchers: 0,
    }
}

impl Case {
    /// The same without idle watchers, if it has some.
    pub fn undisturbed(&self) -> Option<Case> {
        let without = Case {
            idle_watchers: 0,
            ..*self
        };
        (self.idle_watchers > 0).then_some(without)
    }

    /// Runs it once on a fresh server, or on several that serve the same keyspace.
    pub async fn run(&self, servers: &[Server], duration: Duration) -> Result<Figures, Failure> {
        let connections = connect(servers, self.clients).await?;
        keys::fill(&connections[..1], KEYS, self.value_bytes).await?;
        let idle = IdleWatchers::open(servers, self.idle_watchers).await?;
        let checker = Client::new(connections[0].clone());
        let figures = match self.work {
            Work::Kv(operation) => {
                let clients = kv::clients(connections, operation, self.value_bytes);
                closed_loop(servers, clients, duration).await?
            }
            Work::Watch { watchers, pace } => {
                watch::run(servers, watchers, pace, self.value_bytes, duration).await?
            }
            Work::GrantLeases => {
                let clients = connections.into_iter().map(Granter).collect();
                closed_loop(servers, clients, duration).await?
            }
            Work::KeepLeasesAlive => {
                let clients = try_join_all(connections.into_iter().map(KeepAlive::open)).await?;
                closed_loop(servers, clients, duration).await?
            }
        };
        idle.check(&checker).await?;
        Ok(figures)
    }
}
