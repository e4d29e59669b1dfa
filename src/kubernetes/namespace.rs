//! Empties namespaces that are being deleted, and lets them go.
//!
//! Level-triggered: a namespace is worked on when its deletion is asked for, and every one that is
//! found terminating when its cluster is loaded, so that a crash midway is made good.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::cluster::Cluster;
use super::registry::list::ListOptions;
use super::registry::resource::{Kind, RESOURCES, Resource};
use super::registry::{Place, Preconditions, name_of};
use super::status::ApiError;

/// Namespaces waiting to be emptied: far more than anybody deletes at once. What does not fit is
/// found when the cluster is loaded next.
const QUEUE_LIMIT: usize = 1024;

/// Where deletions are announced.
pub struct NamespaceQueue {
    sender: mpsc::Sender<String>,
}

/// The other end, for [`run`].
pub type Announced = mpsc::Receiver<String>;

impl NamespaceQueue {
    pub fn new() -> (NamespaceQueue, Announced) {
        let (sender, receiver) = mpsc::channel(QUEUE_LIMIT);
        (NamespaceQueue { sender }, receiver)
    }

    pub fn push(&self, name: &str) {
        if self.sender.try_send(name.to_owned()).is_err() {
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
        while let Some(name) = announced.recv().await {
            let _activity = cluster.registry.clock().activity();
            if let Err(error) = empty(&cluster, &name).await {
                tracing::warn!(
                    ?error,
                    cluster = cluster.record.id,
                    name,
                    "cannot empty a namespace"
                );
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = cluster.ended.cancelled() => {}
    }
}

async fn announce_terminating(cluster: &Cluster) -> Result<(), ApiError> {
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

async fn empty(cluster: &Cluster, name: &str) -> Result<(), ApiError> {
    let mut left = false;
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
                Ok(super::registry::Deleted::Later(_)) => left = true,
                Err(error) if error.reason == "NotFound" => {}
                Err(error) => return Err(error),
            }
        }
    }
    if left {
        // Objects with finalizers of somebody's: the namespace waits for them.
        return Ok(());
    }
    cluster.registry.finish_namespace(name).await
}
