//! One Kubernetes API per cluster, on one TLS listener, under `/clusters/<id>`.
//!
//! May use `infra`, `leader`, `etcd::client` and `clock`. Must never know of organisations, quotas or prices:
//! whoever is above says which clusters there are ([`Kubernetes::provision_cluster`]) and
//! their API is up ([`Kubernetes::set_available`]).
//!
//! A cluster's record and authority are in the keyspace `kubernetes`; its objects are in the
//! keyspace of its own that bears its id, under kube-apiserver's keys.

mod api;
pub mod api_client;
mod body;
pub mod cloud_api;
pub mod cloud_controller_manager;
mod cluster;
pub mod component;
pub mod control_plane;
pub mod controller;
pub mod controller_manager;
pub mod csi;
mod discovery;
pub mod drain;
pub mod event;
mod eviction;
mod kubeconfig;
pub mod kubelet;
pub mod manifest;
mod namespace;
pub mod node_group_operator;
mod openapi;
mod pki;
mod protobuf;
mod refusal;
pub mod registry;
mod request;
pub mod scheduler;
mod server;
mod status;

use std::collections::HashMap;
use std::sync::Arc;

use etcd_proto::etcdserverpb::{TxnRequest, WatchCreateRequest};
use etcd_proto::mvccpb::event::EventType as WatchEventType;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use self::cluster::{Cluster, ClusterRecord};
pub use self::control_plane::ControlPlane;
pub use self::drain::Drain;
pub use self::event::{EventSubject, EventType};
use self::namespace::NamespaceQueue;
use self::pki::{Pair, PkiError};
use self::registry::draws::Draws;
use self::registry::list::ListOptions;
use self::registry::resource::{Kind, Resource};
use self::registry::{Place, Registry};
use self::status::ApiError;
use crate::clock::Clock;
use crate::etcd::client::{self, Client, ClientError, SharedKeyspaces};

/// Name of the keyspace that holds this layer's own records.
pub const KEYSPACE: &str = "kubernetes";
const SERVING_AUTHORITY: &str = "/serving-authority";
const CLUSTERS: &str = "/clusters/";
const FIRST_NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
/// Tries of a change that somebody else's came before.
const ATTEMPTS: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    #[error(transparent)]
    Store(#[from] ClientError),
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error("the record at {key} is not valid: {source}")]
    Record {
        key: String,
        source: serde_json::Error,
    },
    #[error("no cluster {0}")]
    ClusterNotFound(String),
    #[error("cannot make the first objects of cluster {cluster}: {message}")]
    Bootstrap { cluster: String, message: String },
    #[error("too many changes at once to cluster {0}")]
    Contention(String),
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("the API of cluster {0} does not answer: no apiserver works")]
    Unavailable(String),
    #[error("the API of cluster {cluster} refuses: {message}")]
    Refused { cluster: String, message: String },
}

type Result<T> = std::result::Result<T, KubernetesError>;

#[derive(Clone)]
pub struct KubernetesConfig {
    pub keyspaces: SharedKeyspaces,
    pub clock: Clock,
    pub seed: u64,
    /// Of its own for each of the servers that share a store, so that they never draw the same; 0 for one alone.
    pub instance: u64,
    /// Host that clients reach the listener by, in kubeconfigs and certificates.
    pub public_host: String,
    pub public_port: u16,
}

/// Clusters in use, each as of its record. Bounded by the clusters that there are.
#[derive(Default)]
struct InUse {
    by_id: HashMap<String, Arc<Cluster>>,
    /// Counts deletions: what was read before one may be of a cluster that is gone.
    deletions: u64,
}

impl InUse {
    fn forget(&mut self, id: &str) {
        self.deletions += 1;
        if let Some(cluster) = self.by_id.remove(id) {
            cluster.ended.cancel();
        }
    }
}

/// The Kubernetes APIs of all clusters. Cheap to clone.
#[derive(Clone)]
pub struct Kubernetes {
    inner: Arc<Inner>,
}

struct Inner {
    keyspaces: SharedKeyspaces,
    client: Client,
    clock: Clock,
    seed: u64,
    instance: u64,
    server_address: String,
    serving_authority: Pair,
    tls: Arc<rustls::ServerConfig>,
    /// What the listener proves itself with.
    serving: Arc<server::Serving>,
    clusters: Mutex<InUse>,
    /// The components, told of what concerns them; nobody until they run.
    listeners: Arc<component::Listeners>,
}

impl Kubernetes {
    /// Reads or makes the listener's authority, and is then ready to serve.
    pub async fn start(config: KubernetesConfig) -> Result<Kubernetes> {
        let client = config.keyspaces.client(KEYSPACE);
        let serving_authority = serving_authority(&client).await?;
        let mut hosts = vec![
            String::from("localhost"),
            String::from("127.0.0.1"),
            String::from("::1"),
        ];
        if !hosts.contains(&config.public_host) {
            hosts.push(config.public_host.clone());
        }
        let serving = Arc::new(server::Serving::issue(&serving_authority, hosts)?);
        Ok(Kubernetes {
            inner: Arc::new(Inner {
                keyspaces: config.keyspaces,
                client,
                clock: config.clock,
                seed: config.seed,
                server_address: format!("{}:{}", config.public_host, config.public_port),
                tls: server::tls_config(Arc::clone(&serving))?,
                serving,
                serving_authority,
                clusters: Mutex::default(),
                listeners: Arc::default(),
                instance: config.instance,
            }),
        })
    }

    /// Makes a cluster's authority and first objects. Repeating it changes nothing.
    pub async fn provision_cluster(&self, id: &str, version: &str) -> Result<()> {
        let key = cluster_key(id);
        if self.inner.client.get(key.clone()).await?.value.is_none() {
            let record = ClusterRecord {
                id: id.to_owned(),
                version: version.to_owned(),
                control_plane: ControlPlane::default(),
                storage: false,
                certificates_rotated_at: None,
                authority: pki::new_authority(&format!("kubernetes-ca-{id}"))?,
            };
            // If somebody else was faster, theirs stands.
            self.write(&key, 0, &record).await?;
        }
        let cluster = self.load(id).await?;
        bootstrap(&cluster)
            .await
            .map_err(|error| KubernetesError::Bootstrap {
                cluster: id.to_owned(),
                message: error.message,
            })
    }

    /// Says which instances of the control plane work. While there is no apiserver among them, the
    /// cluster's API answers 503.
    pub async fn set_control_plane(&self, id: &str, control_plane: ControlPlane) -> Result<()> {
        self.change(id, |record| {
            record.control_plane.clone_from(&control_plane);
        })
        .await
    }

    /// Says that the node takes no new pods, or takes them again. A node that is not there is left so.
    pub async fn cordon_node(&self, id: &str, node: &str, cordoned: bool) -> Result<()> {
        let cluster = self.answering(id).await?;
        let outcome = drain::cordon(&cluster.registry, node, cordoned).await;
        outcome.map_err(|error| refused(id, &error))
    }

    /// One round of cordon and eviction: budgets are honoured. Called again until drained. With
    /// `force` the deadline is over: pods are deleted, and a node that is not there, or in a cluster
    /// whose API does not answer, counts as drained.
    pub async fn drain_node(&self, id: &str, node: &str, force: bool) -> Result<Drain> {
        let cluster = match self.answering(id).await {
            Err(KubernetesError::Unavailable(_) | KubernetesError::ClusterNotFound(_)) if force => {
                return Ok(Drain::Drained);
            }
            outcome => outcome?,
        };
        let outcome = drain::round(&cluster.registry, node, force).await;
        outcome.map_err(|error| refused(id, &error))
    }

    /// Tells the cluster's users of something by an event in its namespace `default`.
    pub async fn record_event(
        &self,
        id: &str,
        about: &EventSubject,
        kind: EventType,
        reason: &str,
        message: &str,
    ) -> Result<()> {
        let cluster = self.answering(id).await?;
        let outcome = event::record(&cluster.registry, about, kind, reason, message).await;
        outcome.map_err(|error| refused(id, &error))
    }

    /// Makes anew what the control plane proves itself with. The authorities stay, and so connections
    /// and kubeconfigs do. The listener is every cluster's: all see its new certificate.
    pub async fn rotate_certificates(&self, id: &str) -> Result<()> {
        self.inner.serving.renew(&self.inner.serving_authority)?;
        let now = self.inner.clock.now();
        self.change(id, |record| record.certificates_rotated_at = Some(now))
            .await
    }

    /// Lets the serving certificate, which is that of every cluster's API, expire; or makes it anew. So does
    /// the next rotation of a cluster's certificates.
    pub fn expire_certificates(&self, expired: bool) -> Result<()> {
        let authority = &self.inner.serving_authority;
        match expired {
            true => self.inner.serving.expire(authority),
            false => self.inner.serving.renew(authority),
        }
    }

    pub fn certificates_are_expired(&self) -> bool {
        self.inner.serving.is_expired()
    }

    /// Says whether the cluster has persistent storage.
    pub async fn set_storage(&self, id: &str, enabled: bool) -> Result<()> {
        self.change(id, |record| record.storage = enabled).await
    }

    /// `version` is such as `1.36`.
    pub async fn set_version(&self, id: &str, version: &str) -> Result<()> {
        self.change(id, |record| version.clone_into(&mut record.version))
            .await
    }

    /// Removes the cluster, its authority and all its objects. Repeating it changes nothing.
    pub async fn delete_cluster(&self, id: &str) -> Result<()> {
        self.inner.clusters.lock().forget(id);
        self.inner.keyspaces.remove(id).await?;
        self.inner
            .client
            .txn(TxnRequest {
                success: vec![client::delete(cluster_key(id))],
                ..TxnRequest::default()
            })
            .await?;
        // Somebody may have asked for it meanwhile.
        self.inner.clusters.lock().forget(id);
        Ok(())
    }

    /// A kubeconfig with a fresh client certificate of `admin` in `system:masters`. `name` names
    /// the context.
    pub async fn kubeconfig(&self, id: &str, name: &str) -> Result<String> {
        self.kubeconfig_of(id, name, "admin", "system:masters")
            .await
    }

    async fn kubeconfig_of(&self, id: &str, name: &str, user: &str, group: &str) -> Result<String> {
        let cluster = self.load(id).await?;
        let client = pki::issue_client(&cluster.record.authority, user, group)?;
        Ok(kubeconfig::render(
            name,
            &self.server_url(id),
            &self.inner.serving_authority.certificate,
            &client,
        ))
    }

    /// The cluster, if its API answers.
    async fn answering(&self, id: &str) -> Result<Arc<Cluster>> {
        let cluster = self.load(id).await?;
        if cluster.record.control_plane.serves() {
            return Ok(cluster);
        }
        Err(KubernetesError::Unavailable(id.to_owned()))
    }

    /// Every object of a kind, if the cluster's API answers. What cannot be had is for a request to say why.
    async fn objects(&self, id: &str, resource: &'static Resource) -> Option<Vec<Value>> {
        let cluster = self.answering(id).await.ok()?;
        let registry = &cluster.registry;
        if registry.has_none(resource).await.unwrap_or(false) {
            return Some(Vec::new());
        }
        let place = Place {
            resource,
            namespace: None,
        };
        let listed = registry.list(place, &ListOptions::default()).await;
        listed.ok().map(|list| list.items)
    }

    /// Where the cluster's API is.
    pub fn server_url(&self, id: &str) -> String {
        format!("https://{}/clusters/{id}", self.inner.server_address)
    }

    /// Ids of the clusters that there are.
    async fn cluster_ids(&self) -> Result<Vec<String>> {
        let records = self.inner.client.list(CLUSTERS).await?.value;
        Ok(records
            .into_iter()
            .filter_map(|kv| {
                let key = String::from_utf8(kv.key.to_vec()).ok()?;
                key.strip_prefix(CLUSTERS).map(str::to_owned)
            })
            .collect())
    }

    /// The cluster as of now.
    async fn load(&self, id: &str) -> Result<Arc<Cluster>> {
        // Where nobody else writes, what is known is what there is.
        if self.inner.instance == 0
            && let Some(known) = self.inner.clusters.lock().by_id.get(id)
        {
            return Ok(Arc::clone(known));
        }
        self.read(id).await
    }

    /// The cluster as its record says: another server may have changed it.
    async fn read(&self, id: &str) -> Result<Arc<Cluster>> {
        loop {
            let deletions = self.inner.clusters.lock().deletions;
            let key = cluster_key(id);
            let Some(kv) = self.inner.client.get(key.clone()).await?.value else {
                // Another server may have deleted it.
                let mut clusters = self.inner.clusters.lock();
                if clusters.by_id.contains_key(id) {
                    clusters.forget(id);
                }
                return Err(KubernetesError::ClusterNotFound(id.to_owned()));
            };
            let record: ClusterRecord = serde_json::from_slice(&kv.value)
                .map_err(|source| KubernetesError::Record { key, source })?;
            if let Some(cluster) = self.take(record, kv.mod_revision, deletions) {
                return Ok(cluster);
            }
        }
    }

    /// Takes the cluster into use as its record was at `revision`, unless something was deleted since there were
    /// so many `deletions`. What is known of a later revision stands.
    fn take(&self, record: ClusterRecord, revision: i64, deletions: u64) -> Option<Arc<Cluster>> {
        let id = record.id.clone();
        let mut clusters = self.inner.clusters.lock();
        if clusters.deletions != deletions {
            return None;
        }
        let before = clusters.by_id.get(&id).cloned();
        if let Some(before) = &before
            && before.revision >= revision
        {
            return Some(Arc::clone(before));
        }
        let serves = record.control_plane.serves();
        let continues = before
            .as_ref()
            .filter(|before| serves && before.record.control_plane.serves());
        let server_address = self.inner.server_address.clone();
        let (cluster, announced) = match continues {
            Some(before) => {
                let cluster = Cluster {
                    registry: Arc::clone(&before.registry),
                    namespaces: Arc::clone(&before.namespaces),
                    ended: before.ended.clone(),
                    record,
                    revision,
                    server_address,
                };
                (Arc::new(cluster), None)
            }
            None => {
                let (namespaces, announced) = NamespaceQueue::new(self.inner.clock.clone());
                let registry = match &before {
                    Some(before) => Arc::clone(&before.registry),
                    None => Arc::new(Registry::new(
                        self.inner.keyspaces.client(&id),
                        self.inner.clock.clone(),
                        self.draws(&id),
                        self.on_write(&id),
                        self.inner.instance == 0,
                    )),
                };
                if let Some(before) = &before {
                    before.ended.cancel();
                }
                let cluster = Cluster {
                    registry,
                    namespaces: Arc::new(namespaces),
                    ended: CancellationToken::new(),
                    record,
                    revision,
                    server_address,
                };
                (Arc::new(cluster), serves.then_some(announced))
            }
        };
        clusters.by_id.insert(id, Arc::clone(&cluster));
        drop(clusters);
        if let Some(announced) = announced {
            tokio::spawn(namespace::run(Arc::clone(&cluster), announced));
            if self.inner.instance != 0 {
                // Other servers write to the cluster, too.
                tokio::spawn(self.clone().follow(Arc::clone(&cluster)));
            }
        }
        Some(cluster)
    }

    /// Says that something of the cluster's changed at the provider's, for its components to read there.
    pub fn notify(&self, id: &str, notice: component::Notice) {
        self.inner.listeners.notify(id, notice);
    }

    /// Forgets the components of the last term.
    pub fn dismiss_components(&self) {
        self.inner.listeners.clear();
    }

    /// Announces what the cluster's registry writes to whoever works on it.
    fn on_write(&self, id: &str) -> registry::OnWrite {
        let (listeners, id) = (Arc::clone(&self.inner.listeners), id.to_owned());
        Box::new(move |key, object| listeners.written(&id, key, object))
    }

    /// Announces what is written to the cluster, by whichever server, while its API answers.
    async fn follow(self, cluster: Arc<Cluster>) {
        /// Real time: an etcd that is away does not wait for the simulation.
        const PAUSE: std::time::Duration = std::time::Duration::from_secs(1);
        let id = &cluster.record.id;
        let follow = async {
            loop {
                let key = bytes::Bytes::from_static(b"/registry/");
                let watch = cluster.registry.client().watch(WatchCreateRequest {
                    range_end: client::prefix_end(&key),
                    key,
                    ..WatchCreateRequest::default()
                });
                if let Ok(mut watch) = watch.await {
                    // What was written before the watch began.
                    self.inner.listeners.cluster_changed(id);
                    while let Ok(response) = watch.next().await {
                        for event in &response.events {
                            let Some(kv) = &event.kv else { continue };
                            let put = event.r#type() == WatchEventType::Put;
                            let object = put.then(|| registry::decode(kv).ok()).flatten();
                            let key = String::from_utf8_lossy(&kv.key);
                            self.inner.listeners.written(id, &key, object.as_ref());
                        }
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        tokio::select! {
            () = follow => {}
            () = cluster.ended.cancelled() => {}
        }
    }

    /// Of its own for each cluster and start, so that no uid comes twice.
    fn draws(&self, id: &str) -> Draws {
        use sha2::{Digest, Sha256};
        let mut hash = Sha256::new();
        hash.update(self.inner.seed.to_be_bytes());
        hash.update(self.inner.instance.to_be_bytes());
        hash.update(id.as_bytes());
        hash.update(self.inner.clock.now().0.to_be_bytes());
        Draws::new(hash.finalize().into())
    }

    async fn change(&self, id: &str, change: impl Fn(&mut ClusterRecord)) -> Result<()> {
        let key = cluster_key(id);
        for _ in 0..ATTEMPTS {
            let Some(kv) = self.inner.client.get(key.clone()).await?.value else {
                return Err(KubernetesError::ClusterNotFound(id.to_owned()));
            };
            let mut record: ClusterRecord =
                serde_json::from_slice(&kv.value).map_err(|source| KubernetesError::Record {
                    key: key.clone(),
                    source,
                })?;
            change(&mut record);
            if self.write(&key, kv.mod_revision, &record).await? {
                self.read(id).await?;
                self.inner.listeners.cluster_changed(id);
                return Ok(());
            }
        }
        Err(KubernetesError::Contention(id.to_owned()))
    }

    async fn write(&self, key: &str, expected: i64, record: &ClusterRecord) -> Result<bool> {
        let value = serde_json::to_vec(record).map_err(|source| KubernetesError::Record {
            key: key.to_owned(),
            source,
        })?;
        let response = self
            .inner
            .client
            .txn(TxnRequest {
                compare: vec![client::mod_revision_is(key.to_owned(), expected)],
                success: vec![client::put(key.to_owned(), value)],
                failure: vec![],
            })
            .await?;
        Ok(response.succeeded)
    }
}

fn refused(cluster: &str, error: &ApiError) -> KubernetesError {
    KubernetesError::Refused {
        cluster: cluster.to_owned(),
        message: error.message.clone(),
    }
}

fn cluster_key(id: &str) -> String {
    format!("{CLUSTERS}{id}")
}

/// The listener's authority: made once, kept for ever, since every kubeconfig trusts it.
async fn serving_authority(client: &Client) -> Result<Pair> {
    let fresh = pki::new_authority("cke")?;
    let invalid = |source| KubernetesError::Record {
        key: SERVING_AUTHORITY.to_owned(),
        source,
    };
    let value = serde_json::to_vec(&fresh).map_err(invalid)?;
    client
        .txn(TxnRequest {
            compare: vec![client::mod_revision_is(SERVING_AUTHORITY, 0)],
            success: vec![client::put(SERVING_AUTHORITY, value)],
            failure: vec![],
        })
        .await?;
    match client.get(SERVING_AUTHORITY).await?.value {
        Some(kv) => serde_json::from_slice(&kv.value).map_err(invalid),
        None => Ok(fresh),
    }
}

/// What every cluster starts with.
async fn bootstrap(cluster: &Cluster) -> std::result::Result<(), ApiError> {
    let registry = &cluster.registry;
    let tolerate = |outcome: std::result::Result<serde_json::Value, ApiError>| match outcome {
        Err(error) if error.reason != "AlreadyExists" => Err(error),
        _ => Ok(()),
    };
    let place = Place {
        resource: Resource::of_kind(Kind::Namespace),
        namespace: None,
    };
    let namespace = |name: &str| json!({"metadata": {"name": name}});
    let first = FIRST_NAMESPACES.iter().flat_map(|name| {
        let account = registry::first_account(name);
        [(place, namespace(name)), account]
    });
    if !registry.create_all(first.collect()).await? {
        // A kill may have come in between, when they were made one by one.
        for name in FIRST_NAMESPACES {
            tolerate(registry.create(place, namespace(name), false).await)?;
            registry.populate_namespace(name).await?;
        }
    }
    let place = Place {
        resource: Resource::of_kind(Kind::Service),
        namespace: Some("default"),
    };
    let service = json!({
        "metadata": {
            "name": "kubernetes",
            "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": {
            "clusterIP": "10.3.0.1", "clusterIPs": ["10.3.0.1"],
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": 6443}],
        },
    });
    tolerate(registry.create(place, service, false).await)
}
