//! A world: everything between the listeners and the disk. It begins on what the store holds, and can end
//! while the process goes on: a reset or a restored snapshot is another world, on the same ports.
//!
//! The end of a world is the end of a process in small, and its beginning a start: what holds for those
//! (whatever is recorded is gone on with) holds for them.

use std::io::Seek as _;
use std::net::TcpListener;
use std::sync::Arc;

use axum::Router;
use serde_json::Value;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::clever::account::{Accounts, Seed};
use crate::clever::cluster_token::ClusterTokens;
use crate::clever::{
    self, CleverConfig, History, NextWorld, SimulationConfig, Storage, Worlds, WriteSnapshot,
};
use crate::clock::{Clock, TimeScale, Timestamp};
use crate::config::ServeConfig;
use crate::etcd::client::SharedKeyspaces;
use crate::etcd::{EtcdConfig, Metrics, Server};
use crate::infra::{Cloud, CloudConfig};
use crate::kubernetes::cloud_api::{Accesses, CloudAccess};
use crate::kubernetes::{Kubernetes, KubernetesConfig};
use crate::leader::Term;
use crate::platform::{self, Platform, PlatformConfig};

use super::acting::{self, Actors};
use super::snapshot::{Content, Header, WorldError};
use super::{Addresses, DRAIN, Outcome, ServeError, snapshot, start};

/// Where a manual clock begins on a fresh store, so that every run of a scenario is the same:
/// 2026-01-01T00:00:00Z.
const MANUAL_ORIGIN: Timestamp = Timestamp(1_767_225_600_000);
/// What a world's sleepers wake up by when it ends: a day in a second.
const HURRY: TimeScale = TimeScale::Factor(86_400.0);

/// What every world stands on.
pub struct Ground {
    pub config: ServeConfig,
    pub addresses: Addresses,
    pub database: fdb::Database,
    pub metrics: Arc<Metrics>,
    pub kubernetes: TcpListener,
    pub etcd: TcpListener,
    /// What happens in all of them.
    pub history: History,
    /// How one is asked to end.
    pub worlds: Worlds,
    /// Ends with the process.
    pub shutdown: CancellationToken,
}

pub struct World {
    pub router: Router,
    /// Who the clients are told that they are.
    pub identity: Seed,
    /// Of etcd and of Kubernetes.
    pub listeners: JoinSet<Outcome>,
    pub clock: Clock,
    pub seed: u64,
    etcd: Server,
    cloud: Cloud,
    platform: Platform,
    acting: Option<JoinHandle<()>>,
    /// Ends what acts.
    rest: CancellationToken,
    /// Ends the listeners.
    shutdown: CancellationToken,
}

impl World {
    /// `scale` is how its clock runs; `api_faults` is what a snapshot says of the faults of the REST API.
    pub async fn begin(
        ground: &Ground,
        scale: TimeScale,
        api_faults: &Value,
    ) -> Result<World, ServeError> {
        let Ground {
            config,
            addresses,
            database,
            ..
        } = ground;
        let kept = snapshot::kept_seed(database).await;
        let seed = kept.map_err(start("the store"))?.unwrap_or(config.seed);
        let shutdown = ground.shutdown.child_token();
        let etcd = Server::open(
            database.clone(),
            Clock::real(),
            EtcdConfig {
                advertise_client_urls: vec![addresses.etcd_url()],
                shared_store: database.is_shared(),
                metrics: Arc::clone(&ground.metrics),
                ..EtcdConfig::default()
            },
        )
        .await
        .map_err(start("etcd"))?;
        let keyspaces: SharedKeyspaces = Arc::new(etcd.clone());

        // The simulated time line goes on where the last run left it, or where another server has it.
        let origin = first_instant(scale);
        let (election, clock, term) = if database.is_shared() {
            let election = acting::election(&keyspaces);
            let (clock, term) = acting::join(&keyspaces, &election, scale, origin)
                .await
                .map_err(start("the clock"))?;
            (Some(election), clock, term)
        } else {
            let kept = platform::last_instant(&keyspaces).await;
            let kept = kept.map_err(start("the clock"))?;
            let clock = Clock::new(scale, kept.unwrap_or(origin));
            (None, clock, Some(Term::for_ever()))
        };
        let cloud = Cloud::start(CloudConfig::new(
            Arc::clone(&keyspaces),
            clock.clone(),
            seed,
        ))
        .await
        .map_err(start("the simulated cloud"))?;
        let kubernetes = Kubernetes::start(KubernetesConfig {
            keyspaces: Arc::clone(&keyspaces),
            clock: clock.clone(),
            seed,
            instance: election.as_ref().map_or(0, |_| rand::random()),
            public_host: config.public_host.clone(),
            public_port: addresses.kubernetes,
        })
        .await
        .map_err(start("Kubernetes"))?;
        let platform = Platform::start(PlatformConfig {
            keyspaces: Arc::clone(&keyspaces),
            clock: clock.clone(),
            cloud: cloud.clone(),
            kubernetes: Arc::new(kubernetes.clone()),
            seed,
            auto_upgrade: config.auto_upgrade,
        })
        .await
        .map_err(start("the platform"))?;
        let accounts = Accounts::new(config.accounts.clone()).map_err(start("accounts"))?;
        let identity = accounts.seed();
        let cluster_tokens = ClusterTokens::load(&keyspaces).await;
        let cluster_tokens = cluster_tokens.map_err(start("the REST API"))?;
        let router = clever::router(CleverConfig {
            platform: platform.clone(),
            clock: clock.clone(),
            accounts,
            cluster_tokens: cluster_tokens.clone(),
            public_url: addresses.http_url(),
            keyspaces,
            simulation: SimulationConfig {
                cloud: cloud.clone(),
                seed,
                shared_store: database.is_shared(),
                public_host: config.public_host.clone(),
                history: ground.history.clone(),
                worlds: ground.worlds.clone(),
                api_faults: api_faults.clone(),
                shutdown: ground.shutdown.clone(),
            },
        });
        let actors = Actors {
            platform: platform.clone(),
            cloud: cloud.clone(),
            kubernetes: kubernetes.clone(),
            accesses: accesses(platform.clone(), cluster_tokens, addresses.http_url()),
            clock: clock.clone(),
            election,
        };
        let first = match term {
            Some(term) => Some(actors.act(term).await),
            None => None,
        };
        let rest = CancellationToken::new();
        let acting = Some(tokio::spawn(actors.run(first, rest.clone())));
        let listeners = listen(ground, &etcd, &kubernetes, &shutdown)?;
        Ok(World {
            router,
            identity,
            listeners,
            clock,
            seed,
            etcd,
            cloud,
            platform,
            acting,
            rest,
            shutdown,
        })
    }

    /// Lets what acts come to its end, while everybody that it asks still answers.
    pub async fn stop_acting(&mut self) {
        self.rest.cancel();
        if let Some(acting) = self.acting.take()
            && let Err(panic) = acting.await
        {
            tracing::error!(%panic, "what acts had died");
        }
    }

    /// From the top down: each layer ends while those below it still answer.
    pub async fn end(mut self) {
        self.stop_acting().await;
        self.shutdown.cancel();
        let drained = async { while self.listeners.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::warn!("requests were still under way after {DRAIN:?}");
        }
        if let Err(error) = self.cloud.save_reading().await {
            tracing::warn!(%error, "cannot keep the clock's reading");
        }
        self.platform.close();
        self.cloud.close();
        self.etcd.close().await;
        // Whoever sleeps by this clock would for ever; an advance under way ends when it does.
        let clock = self.clock;
        tokio::spawn(async move { clock.set_scale(HURRY).await });
    }
}

/// Makes the store's content that of another world. Returns what is known of the faults of its REST API.
pub async fn make(ground: &Ground, next: NextWorld) -> Result<Value, WorldError> {
    match next {
        NextWorld::New { seed } => {
            snapshot::clear(&ground.database, seed).await?;
            Ok(Value::Null)
        }
        NextWorld::Restored(mut file) => {
            file.rewind()?;
            let header = snapshot::load(&ground.database, file).await?;
            Ok(header.api_faults)
        }
    }
}

impl Storage for fdb::Database {
    fn content(&self) -> Result<Option<WriteSnapshot>, String> {
        let content = Content::of(self).map_err(|error| error.to_string())?;
        let Some(content) = content else {
            return Ok(None);
        };
        Ok(Some(Box::new(move |clock, seed, api_faults, to| {
            let header = Header {
                clock,
                seed,
                api_faults,
            };
            let written = content.write(&header, to);
            written.map_err(|error| error.to_string())
        })))
    }

    fn check(&self, file: &mut std::fs::File) -> Result<(), String> {
        let rewound = file.rewind().map_err(|error| error.to_string());
        rewound?;
        let checked = snapshot::check(file);
        checked.map(drop).map_err(|error| error.to_string())
    }
}

fn listen(
    ground: &Ground,
    etcd: &Server,
    kubernetes: &Kubernetes,
    shutdown: &CancellationToken,
) -> Result<JoinSet<Outcome>, ServeError> {
    // The socket is the process'; a world has another descriptor of it.
    let another = |listener: &TcpListener| {
        let listener = listener.try_clone()?;
        tokio::net::TcpListener::from_std(listener)
    };
    let mut listeners: JoinSet<Outcome> = JoinSet::new();
    let listener = another(&ground.etcd).map_err(start("etcd"))?;
    listeners.spawn({
        let (etcd, shutdown) = (etcd.clone(), shutdown.clone());
        async move {
            let served = etcd.serve(listener, shutdown).await;
            ("etcd", served.map_err(Into::into))
        }
    });
    let listener = another(&ground.kubernetes).map_err(start("Kubernetes"))?;
    listeners.spawn({
        let (kubernetes, shutdown) = (kubernetes.clone(), shutdown.clone());
        async move {
            let served = kubernetes.serve(listener, shutdown).await;
            ("Kubernetes", served.map_err(Into::into))
        }
    });
    Ok(listeners)
}

/// How the clusters' components reach the REST API: the only thing that they know of it.
fn accesses(platform: Platform, tokens: ClusterTokens, base_url: String) -> Accesses {
    Arc::new(move |cluster| {
        let cluster = cluster.parse().ok()?;
        let owner = platform.owner_of(&cluster)?;
        Some(CloudAccess {
            base_url: base_url.clone(),
            token: tokens.issue(&owner, &cluster),
            organisation: owner.to_string(),
        })
    })
}

fn first_instant(scale: TimeScale) -> Timestamp {
    match scale {
        TimeScale::Manual => MANUAL_ORIGIN,
        TimeScale::Factor(_) => Clock::system_time(),
    }
}
