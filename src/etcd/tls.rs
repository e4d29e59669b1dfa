//! TLS for clients: certificates from files, read again when they change, and the name that a
//! client's certificate proves.
//!
//! Like etcd, a new connection gets what the files hold now, so a certificate is renewed by
//! replacing the files. Files are looked at (four `stat`s) for every connection and read only when
//! one of them is another file than before. What cannot be used, such as a certificate whose key
//! is not written yet, is logged once and the last good configuration stays.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::auth::peer::PeerName;

/// Where TLS begins: what the flags say.
#[derive(Clone, Debug)]
pub struct TlsConfig {
    /// PEM: the server's certificate, then those between it and its authority.
    pub cert_file: PathBuf,
    /// PEM: its private key.
    pub key_file: PathBuf,
    /// PEM: authorities of clients. If given, every client must have a certificate of one.
    pub trusted_ca_file: Option<PathBuf>,
    /// PEM or DER: revoked certificates of clients.
    pub client_crl_file: Option<PathBuf>,
    pub versions: TlsVersions,
    /// IANA's names; empty is all that are secure. TLS 1.3's are always on.
    pub cipher_suites: Vec<String>,
}

/// The versions that are spoken, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsVersions {
    pub min: TlsVersion,
    pub max: TlsVersion,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    Tls12,
    Tls13,
}

impl TlsVersions {
    fn supported(self) -> Vec<&'static SupportedProtocolVersion> {
        let all = [
            (TlsVersion::Tls12, &rustls::version::TLS12),
            (TlsVersion::Tls13, &rustls::version::TLS13),
        ];
        let inside = all
            .into_iter()
            .filter(|(version, _)| (self.min..=self.max).contains(version));
        inside.map(|(_, supported)| supported).collect()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("{path} is not the PEM that is expected: {source}")]
    Pem { path: PathBuf, source: pem::Error },
    #[error("{path} has no certificate in it")]
    NoCertificate { path: PathBuf },
    #[error("{path} has a certificate that cannot be an authority: {source}")]
    Authority {
        path: PathBuf,
        source: rustls::Error,
    },
    #[error("certificate {cert} and key {key} cannot be used: {source}")]
    Pair {
        cert: PathBuf,
        key: PathBuf,
        source: rustls::Error,
    },
    #[error("clients cannot be verified: {0}")]
    Verifier(#[from] VerifierBuilderError),
    #[error("unexpected TLS cipher suite \"{0}\"")]
    UnknownCipherSuite(String),
    #[error("cipher suites cannot be configured when only TLS1.3 is enabled")]
    CipherSuitesOfTls13,
    #[error("min version ({min:?}) is greater than max version ({max:?})")]
    Versions { min: TlsVersion, max: TlsVersion },
    #[error("cannot make a self-signed certificate: {0}")]
    SelfSigned(#[from] rcgen::Error),
}

/// What tells one state of a file from another.
type Stamp = (u64, u64, u64, (i64, i64), (i64, i64));

fn stamp(path: &Path) -> Option<Stamp> {
    let found = fs::metadata(path).ok()?;
    Some((
        found.dev(),
        found.ino(),
        found.len(),
        (found.mtime(), found.mtime_nsec()),
        (found.ctime(), found.ctime_nsec()),
    ))
}

/// TLS of a listener.
pub struct Tls {
    config: TlsConfig,
    provider: Arc<CryptoProvider>,
    loaded: Mutex<Loaded>,
}

struct Loaded {
    /// The files as they were when they were read last, whether they were of use or not.
    stamps: Vec<Option<Stamp>>,
    server: Arc<ServerConfig>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// Something is missing or of no use: see [`TlsError`].
    pub fn new(config: TlsConfig) -> Result<Tls, TlsError> {
        let TlsVersions { min, max } = config.versions;
        if min > max {
            return Err(TlsError::Versions { min, max });
        }
        if min == TlsVersion::Tls13 && !config.cipher_suites.is_empty() {
            return Err(TlsError::CipherSuitesOfTls13);
        }
        let provider = Arc::new(provider(&config.cipher_suites)?);
        let stamps = config.stamps();
        let server = config.read(&provider)?;
        Ok(Tls {
            loaded: Mutex::new(Loaded { stamps, server }),
            config,
            provider,
        })
    }

    /// What a connection that comes now gets.
    fn current(&self) -> Arc<ServerConfig> {
        // Before the files are read: what is written meanwhile is seen by the next connection.
        let stamps = self.config.stamps();
        let mut loaded = self.loaded.lock();
        if loaded.stamps != stamps {
            loaded.stamps = stamps;
            match self.config.read(&self.provider) {
                Ok(server) => {
                    tracing::info!(certificate = %self.config.cert_file.display(), "TLS files were read again");
                    loaded.server = server;
                }
                Err(error) => {
                    tracing::warn!(%error, "the changed TLS files are of no use: the old ones stay");
                }
            }
        }
        Arc::clone(&loaded.server)
    }

    /// Shakes hands, and tells who the client has proven to be, if it has a certificate with a
    /// common name.
    ///
    /// # Errors
    /// The client does not speak TLS, or is refused.
    pub async fn accept<S>(&self, stream: S) -> io::Result<(TlsStream<S>, Option<PeerName>)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let stream = TlsAcceptor::from(self.current()).accept(stream).await?;
        let certificates = stream.get_ref().1.peer_certificates();
        let peer = certificates.and_then(<[_]>::first).and_then(common_name);
        Ok((stream, peer))
    }
}

fn common_name(certificate: &CertificateDer<'_>) -> Option<PeerName> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    // Several common names: the last, as Go reads them.
    let name = parsed.subject().iter_common_name().last()?;
    let name = name.as_str().ok().filter(|name| !name.is_empty())?;
    Some(PeerName(Arc::from(name)))
}

fn provider(names: &[String]) -> Result<CryptoProvider, TlsError> {
    let mut provider = rustls::crypto::ring::default_provider();
    if names.is_empty() {
        return Ok(provider);
    }
    let known = |suite: &rustls::SupportedCipherSuite| format!("{:?}", suite.suite());
    let same = |name: &str, suite: &rustls::SupportedCipherSuite| {
        // Go calls ChaCha's suites so, too, without the hash.
        let suite = known(suite);
        suite == name || (name.ends_with("CHACHA20_POLY1305") && suite == format!("{name}_SHA256"))
    };
    for name in names {
        if !provider.cipher_suites.iter().any(|suite| same(name, suite)) {
            return Err(TlsError::UnknownCipherSuite(name.clone()));
        }
    }
    provider.cipher_suites.retain(|suite| {
        suite.version() == &rustls::version::TLS13 || names.iter().any(|name| same(name, suite))
    });
    Ok(provider)
}

impl TlsConfig {
    fn stamps(&self) -> Vec<Option<Stamp>> {
        let files = [Some(&self.cert_file), Some(&self.key_file)].into_iter();
        let optional = [self.trusted_ca_file.as_ref(), self.client_crl_file.as_ref()];
        let files = files.chain(optional).flatten();
        files.map(|path| stamp(path)).collect()
    }

    fn read(&self, provider: &Arc<CryptoProvider>) -> Result<Arc<ServerConfig>, TlsError> {
        let builder = ServerConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(&self.versions.supported());
        let unusable = |source| TlsError::Pair {
            cert: self.cert_file.clone(),
            key: self.key_file.clone(),
            source,
        };
        let builder = builder.map_err(unusable)?;
        let builder = match &self.trusted_ca_file {
            None => builder.with_no_client_auth(),
            Some(authorities) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(authorities)? {
                    roots
                        .add(certificate)
                        .map_err(|source| TlsError::Authority {
                            path: authorities.clone(),
                            source,
                        })?;
                }
                let mut verifier = WebPkiClientVerifier::builder_with_provider(
                    Arc::new(roots),
                    Arc::clone(provider),
                );
                if let Some(path) = &self.client_crl_file {
                    // As etcd: what the list does not name is not revoked, and only the client's
                    // own certificate is looked for.
                    verifier = verifier
                        .with_crls(revocation_lists(path)?)
                        .only_check_end_entity_revocation()
                        .allow_unknown_revocation_status();
                }
                builder.with_client_cert_verifier(verifier.build()?)
            }
        };
        let key = PrivateKeyDer::from_pem_slice(&read(&self.key_file)?);
        let key = key.map_err(|source| TlsError::Pem {
            path: self.key_file.clone(),
            source,
        })?;
        let mut server = builder
            .with_single_cert(certificates(&self.cert_file)?, key)
            .map_err(unusable)?;
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        if self.trusted_ca_file.is_some() {
            // A resumed session would not be verified again: not for expiry, nor revocation.
            server.session_storage = Arc::new(NoServerSessionStorage {});
            server.send_tls13_tickets = 0;
        }
        Ok(Arc::new(server))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Read {
        path: path.to_owned(),
        source,
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let all = all.map_err(|source| TlsError::Pem {
        path: path.to_owned(),
        source,
    })?;
    if all.is_empty() {
        return Err(TlsError::NoCertificate {
            path: path.to_owned(),
        });
    }
    Ok(all)
}

fn revocation_lists(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let bytes = read(path)?;
    if !bytes.starts_with(b"-----BEGIN") {
        return Ok(vec![bytes.into()]);
    }
    let all: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&bytes).collect();
    all.map_err(|source| TlsError::Pem {
        path: path.to_owned(),
        source,
    })
}

/// How long a certificate made by [`self_signed`] lasts by default, in years.
pub const SELF_SIGNED_YEARS: u32 = 1;

/// The certificate and key of `--auto-tls`, in `directory`; made if they are not there, or no longer valid.
///
/// # Errors
/// The directory cannot be written.
pub fn self_signed(
    directory: &Path,
    hosts: &[String],
    years: u32,
) -> Result<(PathBuf, PathBuf), TlsError> {
    let (cert_file, key_file) = (directory.join("cert.pem"), directory.join("key.pem"));
    let valid = || {
        let found = certificates(&cert_file).ok()?;
        let (_, parsed) = x509_parser::parse_x509_certificate(found.first()?).ok()?;
        Some(parsed.validity().is_valid() && key_file.exists())
    };
    if valid().unwrap_or(false) {
        return Ok((cert_file, key_file));
    }
    let mut params = rcgen::CertificateParams::new(hosts)?;
    let now = time::OffsetDateTime::now_utc();
    params.not_before = now - time::Duration::minutes(5);
    params.not_after = now + time::Duration::days(365 * i64::from(years));
    let mut name = rcgen::DistinguishedName::new();
    name.push(rcgen::DnType::OrganizationName, "etcd");
    params.distinguished_name = name;
    params.extended_key_usages = vec![
        rcgen::ExtendedKeyUsagePurpose::ServerAuth,
        rcgen::ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.key_usages = vec![
        rcgen::KeyUsagePurpose::DigitalSignature,
        rcgen::KeyUsagePurpose::KeyCertSign,
    ];
    // It is its own authority: clients are told to trust this very file.
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    let write = |path: &Path, text: String, mode| {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(mode);
        let written = options
            .open(path)
            .and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|source| TlsError::Write {
            path: path.to_owned(),
            source,
        })
    };
    fs::create_dir_all(directory).map_err(|source| TlsError::Write {
        path: directory.to_owned(),
        source,
    })?;
    write(&cert_file, certificate.pem(), 0o644)?;
    write(&key_file, key.serialize_pem(), 0o600)?;
    Ok((cert_file, key_file))
}
