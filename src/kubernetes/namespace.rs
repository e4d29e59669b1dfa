//! Empties namespaces that are being deleted, and lets them go.
//!
//! Level-triggered: a namespace is worked on when its deletion is asked for, and every one that is
//! found terminating when its cluster is loaded, so that a crash midway is made good.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::mpsc;

use super::cluster::Cluster;
use super::registry::list::ListOptions;
use super::registry::resource::{Kind, RESOURCES, Resource};
use super::registry::{Place, Preconditions, name_of};
use super::status::ApiError;
use crate::clock::{Activity, Clock};

/// Namespaces waiting to be emptied: far more than anybody deletes at once. What does not fit is
/// found when the cluster is loaded next.
const QUEUE_LIMIT: usize = 1024;

/// Where deletions are announced.
pub struct NamespaceQueue {
    sender: mpsc::Sender<(String, Activity)>,
    clock: Clock,
}

/// The other end, for [`run`].
pub type Announced = mpsc::Receiver<(String, Activity)>;

impl NamespaceQueue {
    pub fn new(clock: Clock) -> (NamespaceQueue, Announced) {
        let (sender, receiver) = mpsc::channel(QUEUE_LIMIT);
        (NamespaceQueue { sender, clock }, receiver)
    }

    pub fn push(&self, name: &str) {
        let announced = (name.to_owned(), self.clock.activity());
        if self.sender.try_send(announced).is_err() {
            tracing::warn!(name, "too many namespaces are being deleted at once");
        }
    }
}

/// Works until the cluster ends.
pub async fn run(cluster: Arc<Cluster>, mut announced: Announced) {
    let work = async {
        if let Err(error) = announce_terminating(&cluster).await {
            tracing::warn!(
                ?error,
                cluster = cluster.record.id,
                "cannot list namespaces"
            );
        }
        while let Some((name, _activity)) = announced.recv().await {
            match empty(&cluster, &name).await {
                Ok(None) => {}
                Ok(Some(wait)) => {
                    let (cluster, clock) = (Arc::clone(&cluster), cluster.registry.clock().clone());
                    let due = clock.now().saturating_add(wait);
                    let mut sleep = Box::pin(async move { clock.sleep_until(due).await });
                    // The first poll arms the timer while this round still holds its activity.
                    if sleep.as_mut().now_or_never().is_some() {
                        cluster.namespaces.push(&name);
                        continue;
                    }
                    tokio::spawn(async move {
                        let _activity = tokio::select! {
                            activity = sleep => activity,
                            () = cluster.ended.cancelled() => return,
                        };
                        cluster.namespaces.push(&name);
                    });
                }
                Err(error) => tracing::warn!(
                    ?error,
                    cluster = cluster.record.id,
                    name,
                    "cannot empty a namespace"
                ),
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = cluster.ended.cancelled() => {}
    }
}

/// Announces every namespace that is being deleted: what it waits for may be gone.
pub(super) async fn announce_terminating(cluster: &Cluster) -> Result<(), ApiError> {
    let place = Place {
        resource: Resource::of_kind(Kind::Namespace),
        namespace: None,
    };
    let namespaces = cluster
        .registry
        .list(place, &ListOptions::default())
        .await?;
    for namespace in namespaces.items {
        if !namespace["metadata"]["deletionTimestamp"].is_null() {
            cluster.namespaces.push(&name_of(&namespace));
        }
    }
    Ok(())
}

/// How long after a pod's end a namespace looks whether it is gone.
const AFTER_END: Duration = Duration::from_secs(1);

/// Deletes what is in the namespace, and the namespace once it is empty. Returns when to come again if pods
/// take their time.
async fn empty(cluster: &Cluster, name: &str) -> Result<Option<Duration>, ApiError> {
    let mut left = false;
    let mut wait = None;
    for resource in RESOURCES.iter().filter(|resource| resource.namespaced) {
        let place = Place {
            resource,
            namespace: Some(name),
        };
        let objects = cluster
            .registry
            .list(place, &ListOptions::default())
            .await?;
        for object in objects.items {
            let object = name_of(&object);
            let deleted = cluster
                .registry
                .delete(place, &object, &Preconditions::default(), false)
                .await;
            match deleted {
                Ok(super::registry::Deleted::Now(_)) => {}
                Ok(super::registry::Deleted::Later(object)) => {
                    left = true;
                    let grace = object["metadata"]["deletionGracePeriodSeconds"].as_u64();
                    if let Some(grace) = grace.filter(|grace| *grace > 0) {
                        let end = Duration::from_secs(grace) + AFTER_END;
                        wait = wait.max(Some(end));
                    }
                }
                Err(error) if error.reason == "NotFound" => {}
                Err(error) => return Err(error),
            }
        }
    }
    if left {
        // Objects with finalizers of somebody's, or pods that are ending: the namespace waits for them.
        return Ok(wait);
    }
    cluster.registry.finish_namespace(name).await?;
    Ok(None)
}
