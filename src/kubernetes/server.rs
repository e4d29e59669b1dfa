//! The TLS listener: takes connections, tells clients by their certificates, and hands requests to
//! the cluster that the path names.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use parking_lot::Mutex;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::api;
use super::body::{self, Body};
use super::pki::{self, Identity, Pair};
use super::request::split_cluster;
use super::status::ApiError;
use super::{Kubernetes, KubernetesError};

/// Connections at once; more wait to be accepted.
const CONNECTIONS_LIMIT: usize = 4096;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The listener's certificate, which can be renewed while it serves: connections that are there keep
/// what they were made with.
pub(super) struct Serving {
    hosts: Vec<String>,
    /// And whether it has expired.
    certified: Mutex<(Arc<CertifiedKey>, bool)>,
}

impl Serving {
    pub(super) fn issue(authority: &Pair, hosts: Vec<String>) -> Result<Serving, KubernetesError> {
        let certified = Mutex::new((certify(authority, &hosts, false)?, false));
        Ok(Serving { hosts, certified })
    }

    pub(super) fn renew(&self, authority: &Pair) -> Result<(), KubernetesError> {
        *self.certified.lock() = (certify(authority, &self.hosts, false)?, false);
        Ok(())
    }

    /// From now on connections are made with a certificate that has expired, until it is renewed.
    pub(super) fn expire(&self, authority: &Pair) -> Result<(), KubernetesError> {
        *self.certified.lock() = (certify(authority, &self.hosts, true)?, true);
        Ok(())
    }

    pub(super) fn is_expired(&self) -> bool {
        self.certified.lock().1
    }
}

fn certify(
    authority: &Pair,
    hosts: &[String],
    expired: bool,
) -> Result<Arc<CertifiedKey>, KubernetesError> {
    let (certificate, key) = pki::to_rustls(&pki::issue_server(authority, hosts, expired)?)?;
    let provider = rustls::crypto::ring::default_provider();
    let certified = CertifiedKey::from_der(vec![certificate], key, &provider)?;
    Ok(Arc::new(certified))
}

impl std::fmt::Debug for Serving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serving").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.certified.lock().0))
    }
}

pub(super) fn tls_config(
    serving: Arc<Serving>,
) -> Result<Arc<rustls::ServerConfig>, KubernetesError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::new(AnyClient { provider }))
        .with_cert_resolver(serving);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

impl Kubernetes {
    /// Serves until `shutdown`, then lets requests under way end, watches aside.
    pub async fn serve(
        &self,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> std::io::Result<()> {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.inner.tls));
        let connections = Arc::new(Semaphore::new(CONNECTIONS_LIMIT));
        let graceful = GracefulShutdown::new();
        let mut server = auto::Builder::new(TokioExecutor::new());
        server.http2().max_concurrent_streams(1024);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.cancelled() => break,
            };
            let (stream, _) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, or the peer gave up: neither ends the listener.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&connections).acquire_owned().await else {
                break;
            };
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "no TCP_NODELAY");
            }
            let (kubernetes, acceptor) = (self.clone(), acceptor.clone());
            let (server, watcher) = (server.clone(), graceful.watcher());
            tokio::spawn(async move {
                let _permit = permit;
                let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream));
                let Ok(Ok(stream)) = handshake.await else {
                    return;
                };
                let certificates = stream.get_ref().1.peer_certificates();
                let client = Arc::new(Connection {
                    chain: certificates
                        .unwrap_or_default()
                        .iter()
                        .map(|c| c.clone().into_owned())
                        .collect(),
                    identities: Mutex::new(HashMap::new()),
                });
                let service = service_fn(move |request| {
                    let (kubernetes, client) = (kubernetes.clone(), Arc::clone(&client));
                    async move {
                        Ok::<_, std::convert::Infallible>(kubernetes.route(&client, request).await)
                    }
                });
                let connection =
                    server.serve_connection_with_upgrades(TokioIo::new(stream), service);
                if let Err(error) = watcher.watch(connection).await {
                    tracing::debug!(%error, "a connection ended");
                }
            });
        }
        // Watches have no end of their own.
        for cluster in self.inner.clusters.lock().by_id.values() {
            cluster.ended.cancel();
        }
        graceful.shutdown().await;
        Ok(())
    }

    async fn route(&self, client: &Connection, request: Request<Incoming>) -> Response<Body> {
        match self.find(client, &request).await {
            Ok((cluster, caller, path)) => {
                let clock = &self.inner.clock;
                let reads = matches!(*request.method(), Method::GET | Method::HEAD);
                let activity = (!reads).then(|| clock.activity());
                let request = request.map(body::incoming);
                let response = api::handle(&cluster, caller, &path, request).await;
                if let Some(activity) = activity {
                    // As on the provider's API: what follows from a request is done before the next one comes.
                    clock.conclude(activity).await;
                }
                response
            }
            Err(error) => error.to_response(),
        }
    }

    async fn find(
        &self,
        client: &Connection,
        request: &Request<Incoming>,
    ) -> Result<(Arc<super::Cluster>, api::Caller, String), ApiError> {
        let (id, path) = split_cluster(request.uri().path()).ok_or_else(ApiError::no_such_path)?;
        let cluster = self.load(id).await.map_err(|error| match error {
            KubernetesError::ClusterNotFound(_) => ApiError::no_such_path(),
            other => ApiError::unavailable(other.to_string()),
        })?;
        let caller = client.identity(id, &cluster.record.authority.certificate)?;
        if request.headers().contains_key(http::header::AUTHORIZATION) && caller.is_none() {
            // Bearer tokens are not issued yet: none is valid.
            return Err(ApiError::unauthorized());
        }
        if !cluster.record.control_plane.serves() {
            return Err(ApiError::unavailable(
                "no apiserver of this cluster is running",
            ));
        }
        Ok((cluster, caller, path.to_owned()))
    }
}

/// What a TLS connection proved.
struct Connection {
    chain: Vec<CertificateDer<'static>>,
    /// By cluster and authority, since checking a signature costs more than a request.
    identities: Mutex<HashMap<(String, String), Identity>>,
}

impl Connection {
    /// Who this is to the cluster; none without a certificate, an error with a foreign one.
    fn identity(&self, cluster: &str, authority: &str) -> Result<api::Caller, ApiError> {
        if self.chain.is_empty() {
            return Ok(None);
        }
        let key = (cluster.to_owned(), authority.to_owned());
        if let Some(identity) = self.identities.lock().get(&key) {
            return Ok(Some(identity.clone()));
        }
        match pki::verify_client(authority, &self.chain) {
            Ok(identity) => {
                self.identities.lock().insert(key, identity.clone());
                Ok(Some(identity))
            }
            Err(error) => {
                tracing::debug!(%error, cluster, "a client certificate is refused");
                Err(ApiError::unauthorized())
            }
        }
    }
}

/// Takes any client certificate whose private key the client has: which authority it must come from
/// is known only with the path, and checked there.
#[derive(Debug)]
struct AnyClient {
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for AnyClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
