//! The cloud controller manager: Services of type LoadBalancer get load balancers of the provider's.
//!
//! What is to be done is [`service`]'s to say; here it is done, over the cluster's API and the provider's
//! REST API, and told in events as the service controller of Kubernetes tells it. What the provider
//! refuses, over the quota with 507, leaves the Service pending: it is asked for again after a pause that grows,
//! or when the Service changes, or when the provider says that there may be room.

pub mod service;

use std::collections::BTreeSet;

use http::Method;
use parking_lot::Mutex;
use serde_json::{Value, json};

use self::service::{Act, Configuration, FINALIZER, Upstream};
use super::api_client::{ApiClientError, At};
use super::cloud_api::{Accesses, CloudAccess, CloudApi, CloudApiError};
use super::controller::ControllerError;
use super::controller_manager::{Outcome, Tools};
use super::refusal::Refusals;
use super::registry::resource::{Kind, Resource};
use crate::clock::Timestamp;

/// Who tells, in events.
const NAME: &str = "service-controller";
const FLAVOR: &str = "XS-duo";
const REGION: &str = "par";

pub struct CloudControllerManager {
    accesses: Accesses,
    cloud: CloudApi,
    refusals: Refusals,
    /// Clusters without a load balancer, as last seen: saves looking. Bounded by the clusters.
    without: Mutex<BTreeSet<String>>,
}

impl CloudControllerManager {
    pub fn new(accesses: Accesses) -> CloudControllerManager {
        CloudControllerManager {
            accesses,
            cloud: CloudApi::new(),
            refusals: Refusals::default(),
            without: Mutex::default(),
        }
    }

    /// The component does not work for the cluster now, or the cluster is gone.
    pub fn forget(&self, cluster: &str) {
        self.refusals.forget(cluster);
        self.without.lock().remove(cluster);
    }

    /// Whether the cluster had nothing to balance when it was last looked at; a Service that comes is looked at.
    pub fn has_none(&self, cluster: &str) -> bool {
        self.without.lock().contains(cluster)
    }

    /// There may be room for what was refused. Whether anything was.
    pub fn make_room(&self, cluster: &str) -> bool {
        self.refusals.make_room(cluster)
    }

    pub async fn services(&self, cluster: &str, tools: &Tools) -> Result<Outcome, ControllerError> {
        let services = tools.api.list(Resource::of_kind(Kind::Service)).await?;
        let concerned = |it: &&Value| service::is_wanted(it) || service::is_held(it);
        let concerned: Vec<&Value> = services.iter().filter(concerned).collect();
        if concerned.is_empty() && self.without.lock().contains(cluster) {
            return Ok(None);
        }
        let Some(access) = (self.accesses)(cluster) else {
            return Ok(None);
        };
        let upstreams = match self.upstreams(&access, cluster).await {
            // The provider has let the cluster go.
            Err(error) if error.is_not_found() => return Ok(None),
            outcome => outcome?,
        };
        if concerned.is_empty() && upstreams.is_empty() {
            self.without.lock().insert(cluster.to_owned());
            self.refusals.forget(cluster);
            return Ok(None);
        }
        self.without.lock().remove(cluster);
        let hosts = if concerned.is_empty() {
            Vec::new()
        } else {
            service::hosts(&tools.api.list(Resource::of_kind(Kind::Node)).await?)
        };
        for service in &concerned {
            let tag = service::uid_tag(uid(service));
            let upstream = upstreams.iter().find(|one| one.tags.contains(&tag));
            let act = service::decide(service, upstream, &hosts);
            match self.act(cluster, &access, tools, service, act).await {
                // Its change brings it back here.
                Err(ControllerError::Api(error)) if error.is_stale() => {}
                outcome => outcome?,
            }
        }
        let tags: BTreeSet<String> = concerned
            .iter()
            .map(|it| service::uid_tag(uid(it)))
            .collect();
        for upstream in &upstreams {
            // Its Service went without waiting for it.
            if !upstream.frozen && !upstream.tags.iter().any(|tag| tags.contains(tag)) {
                self.delete(&access, &upstream.id).await?;
            }
        }
        let wanted: BTreeSet<&str> = concerned
            .iter()
            .filter(|it| service::is_wanted(it))
            .map(|it| uid(it))
            .collect();
        self.refusals.retain(cluster, |uid| wanted.contains(uid));
        Ok(self.refusals.wake(cluster))
    }

    async fn upstreams(
        &self,
        access: &CloudAccess,
        cluster: &str,
    ) -> Result<Vec<Upstream>, CloudApiError> {
        let path = format!("{}/parents/{cluster}", base(access));
        self.cloud.send(access, Method::GET, &path, None).await
    }

    async fn act(
        &self,
        cluster: &str,
        access: &CloudAccess,
        tools: &Tools,
        service: &Value,
        act: Act,
    ) -> Result<(), ControllerError> {
        let at = At::of(Resource::of_kind(Kind::Service), service);
        let normal = |reason: &'static str, message: &'static str| {
            tools.event(service, "Normal", reason, message, NAME)
        };
        match act {
            Act::Nothing => {}
            Act::Hold => {
                let mut next = service.clone();
                let mut held = finalizers(service);
                held.push(json!(FINALIZER));
                next["metadata"]["finalizers"] = json!(held);
                tools.api.replace(at, &next).await?;
            }
            Act::Create(configuration) => {
                let asked = json!({
                    "flavor": FLAVOR, "loadbalancerParentResourceId": cluster,
                    "tags": service::tags(service), "configuration": configuration,
                });
                let now = Timestamp(tools.now);
                let text = asked.to_string();
                if self.refusals.hold(cluster, uid(service), &text, now) {
                    return Ok(());
                }
                normal("EnsuringLoadBalancer", "Ensuring load balancer").await?;
                warn_without_hosts(tools, service, &configuration).await?;
                let path = region(access);
                let made: Result<Upstream, _> = self
                    .cloud
                    .send(access, Method::POST, &path, Some(&asked))
                    .await;
                match made {
                    Ok(_) => self.refusals.granted(cluster, uid(service)),
                    Err(error) => {
                        self.tell_refusal(tools, service, &error).await?;
                        self.refusals
                            .refuse(cluster, uid(service), &text, &error, now);
                    }
                }
            }
            Act::Configure {
                upstream,
                configuration,
                only_hosts,
            } => {
                let path = format!("{}/{upstream}/configuration", region(access));
                let body = json!(configuration);
                let done: Result<Value, _> = self
                    .cloud
                    .send(access, Method::PUT, &path, Some(&body))
                    .await;
                match done {
                    Ok(_) if only_hosts => {
                        normal(
                            "UpdatedLoadBalancer",
                            "Updated load balancer with new hosts",
                        )
                        .await?;
                        warn_without_hosts(tools, service, &configuration).await?;
                    }
                    Ok(_) => normal("EnsuredLoadBalancer", "Ensured load balancer").await?,
                    // It has gone meanwhile: it is looked at again.
                    Err(error) if error.is_not_found() => {}
                    Err(error @ CloudApiError::Refused { .. }) => {
                        self.tell_refusal(tools, service, &error).await?;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Act::Tell(ingress) => {
                let mut next = service.clone();
                next["status"]["loadBalancer"] = json!({"ingress": ingress});
                tools.api.replace_status(at, &next).await?;
                normal("EnsuredLoadBalancer", "Ensured load balancer").await?;
            }
            Act::Delete { upstream } => {
                normal("DeletingLoadBalancer", "Deleting load balancer").await?;
                self.delete(access, &upstream).await?;
            }
            Act::LetGo => {
                let mut next = service.clone();
                if !service["status"]["loadBalancer"]["ingress"].is_null() {
                    next["status"]["loadBalancer"] = json!({});
                    next = tools.api.replace_status(at, &next).await?;
                }
                normal("DeletedLoadBalancer", "Deleted load balancer").await?;
                let mut held = finalizers(service);
                held.retain(|held| held != FINALIZER);
                next["metadata"]["finalizers"] = json!(held);
                tools.api.replace(at, &next).await?;
            }
        }
        Ok(())
    }

    async fn delete(&self, access: &CloudAccess, upstream: &str) -> Result<(), CloudApiError> {
        let path = format!("{}/{upstream}", region(access));
        match self
            .cloud
            .send::<Value>(access, Method::DELETE, &path, None)
            .await
        {
            Err(error) if error.is_not_found() => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    async fn tell_refusal(
        &self,
        tools: &Tools,
        service: &Value,
        error: &CloudApiError,
    ) -> Result<(), ApiClientError> {
        let message =
            format!("Error syncing load balancer: failed to ensure load balancer: {error}");
        let reason = "SyncLoadBalancerFailed";
        tools
            .event(service, "Warning", reason, &message, NAME)
            .await
    }
}

async fn warn_without_hosts(
    tools: &Tools,
    service: &Value,
    configuration: &Configuration,
) -> Result<(), ApiClientError> {
    let mut pools = configuration.clusters.iter();
    if pools.any(|pool| !pool.backends.servers.is_empty()) {
        return Ok(());
    }
    let message = "There are no available nodes for LoadBalancer";
    let reason = "UnAvailableLoadBalancer";
    tools.event(service, "Warning", reason, message, NAME).await
}

fn uid(service: &Value) -> &str {
    service["metadata"]["uid"].as_str().unwrap_or("")
}

fn finalizers(service: &Value) -> Vec<Value> {
    let held = service["metadata"]["finalizers"].as_array();
    held.cloned().unwrap_or_default()
}

fn base(access: &CloudAccess) -> String {
    format!("/v4/loadbalancers/organisations/{}", access.organisation)
}

fn region(access: &CloudAccess) -> String {
    format!("{}/regions/{REGION}/loadbalancers", base(access))
}
