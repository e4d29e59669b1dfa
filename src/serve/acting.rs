//! What acts, and when: the cloud's machinery, the controllers and the kubelets work while this server
//! leads those that share its store; requests are served all the while.
//!
//! All servers of a store have one time line: the leader's. A server that starts reads it from the
//! leader's key and counts on from there with the machine's time; so the machines' clocks must agree, as
//! well as time stamps are to.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, TimeScale, Timestamp};
use crate::etcd::client::{ClientError, SharedKeyspaces};
use crate::infra::Cloud;
use crate::infra::work_queue::Workers;
use crate::kubernetes::cloud_api::Accesses;
use crate::kubernetes::{Kubernetes, controller, kubelet, node_group_operator};
use crate::leader::{Attempt, Election, LEASE_TTL, Term};
use crate::platform::{self, Platform, PlatformError};

/// In the platform's keyspace, beside its records.
const LEADER: &str = "/leader";

#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error(transparent)]
    Store(#[from] ClientError),
    #[error(transparent)]
    Platform(#[from] PlatformError),
    #[error(
        "another server on this store runs at --time-scale {theirs}, this one at {ours}: they must be the same"
    )]
    AnotherScale { theirs: String, ours: String },
    #[error(
        "another server runs on this store, and a manual clock cannot be shared: stop it, or choose a factor as --time-scale"
    )]
    ManualClock,
}

/// The leader's clock as of an instant of the machine's.
#[derive(Debug, Serialize, Deserialize)]
struct Timeline {
    /// As `--time-scale` spells it.
    scale: String,
    simulated: Timestamp,
    at: Timestamp,
}

impl Timeline {
    fn of(clock: &Clock) -> Bytes {
        let line = Timeline {
            scale: clock.scale().to_string(),
            simulated: clock.now(),
            at: Clock::system_time(),
        };
        // A struct of plain fields has nothing that cannot be written.
        serde_json::to_vec(&line).unwrap_or_default().into()
    }

    /// What the leader's clock reads now.
    fn now(&self, factor: f64) -> Timestamp {
        let since = self.at.until(Clock::system_time());
        self.simulated.saturating_add(since.mul_f64(factor))
    }
}

/// The election among the servers of a store.
pub fn election(keyspaces: &SharedKeyspaces) -> Election {
    Election::new(keyspaces.client(platform::KEYSPACE), Clock::real(), LEADER)
}

/// Becomes the leader, or adopts the leader's time line. `origin` is what the clock reads on a fresh store.
pub async fn join(
    keyspaces: &SharedKeyspaces,
    election: &Election,
    scale: TimeScale,
    origin: Timestamp,
) -> Result<(Clock, Option<Term>), JoinError> {
    let started = std::time::Instant::now();
    loop {
        let kept = platform::last_instant(keyspaces).await?;
        let clock = Clock::new(scale, kept.unwrap_or(origin));
        let leader = match election.try_win(Timeline::of(&clock)).await? {
            Attempt::Won(term) => return Ok((clock, Some(term))),
            Attempt::Lost(leader) => leader,
        };
        if let Ok(line) = serde_json::from_slice::<Timeline>(&leader.value) {
            match scale {
                TimeScale::Factor(factor) if line.scale == scale.to_string() => {
                    let now = line.now(factor).max(kept.unwrap_or(origin));
                    return Ok((Clock::new(scale, now), None));
                }
                // A leader that was killed a moment ago is still there until its lease ends.
                _ if started.elapsed() < Duration::from_secs(LEASE_TTL.unsigned_abs() + 2) => {}
                TimeScale::Factor(_) => {
                    return Err(JoinError::AnotherScale {
                        theirs: line.scale,
                        ours: scale.to_string(),
                    });
                }
                TimeScale::Manual => return Err(JoinError::ManualClock),
            }
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// What can act, and the right to.
pub struct Actors {
    pub platform: Platform,
    pub cloud: Cloud,
    pub kubernetes: Kubernetes,
    /// How the clusters' components reach the REST API.
    pub accesses: Accesses,
    pub clock: Clock,
    /// `None` on a store that only one process can open.
    pub election: Option<Election>,
}

/// Everything that acts, during one term.
pub struct Acting {
    term: Term,
    kubelets: Workers,
    node_group_operators: Workers,
    cluster_controllers: Workers,
    controllers: Workers,
    machinery: Workers,
}

impl Actors {
    pub async fn act(&self, term: Term) -> Acting {
        if self.election.is_some() {
            tracing::info!("this server leads those on its store");
        }
        let (kubernetes, cloud) = (self.kubernetes.clone(), self.cloud.clone());
        kubernetes.dismiss_components();
        let (accesses, clock) = (self.accesses.clone(), self.clock.clone());
        let cluster_controllers =
            controller::start(kubernetes.clone(), accesses.clone(), clock.clone(), &term).await;
        Acting {
            node_group_operators: node_group_operator::start(
                kubernetes.clone(),
                accesses,
                clock,
                &term,
            )
            .await,
            machinery: self.cloud.act(&term),
            controllers: self.platform.act(&term),
            kubelets: kubelet::start(kubernetes, cloud, self.clock.clone(), &term).await,
            cluster_controllers,
            term,
        }
    }

    /// Acts in every term that this server wins, until `shutdown`: then what is under way is finished.
    pub async fn run(self, mut acting: Option<Acting>, shutdown: CancellationToken) {
        loop {
            let now = match (acting.take(), &self.election) {
                (Some(acting), _) => acting,
                (None, None) => return,
                (None, Some(election)) => {
                    let term = tokio::select! {
                        term = election.campaign(|| Timeline::of(&self.clock)) => term,
                        () = shutdown.cancelled() => return,
                    };
                    self.act(term).await
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return now.finish().await,
                () = now.term.over() => now.abort().await,
            }
        }
    }
}

impl Acting {
    /// From the top down: each ends while what it uses still acts.
    async fn finish(self) {
        self.node_group_operators.finish().await;
        self.kubelets.finish().await;
        self.cluster_controllers.finish().await;
        self.controllers.finish().await;
        self.machinery.finish().await;
        self.term.resign().await;
    }

    async fn abort(self) {
        tokio::join!(
            self.node_group_operators.abort(),
            self.kubelets.abort(),
            self.cluster_controllers.abort(),
            self.controllers.abort(),
            self.machinery.abort(),
        );
    }
}
