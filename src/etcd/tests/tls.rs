//! Handshakes: who gets in, and as whom.

use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio_rustls::TlsConnector;

use crate::etcd::auth::peer::PeerName;
use crate::etcd::tls::{Tls, TlsConfig, TlsVersion, TlsVersions};

const BOTH: TlsVersions = TlsVersions {
    min: TlsVersion::Tls12,
    max: TlsVersion::Tls13,
};
const TLS12: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];
const TLS13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// An authority, and a server of it whose files are in a directory.
struct Pki {
    directory: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
    authority: CertificateDer<'static>,
}

struct Client {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

fn named(names: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    for name in names {
        params.distinguished_name.push(DnType::CommonName, *name);
    }
    params
}

impl Pki {
    fn new() -> Pki {
        let mut params = named(&["authority"]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let pki = Pki {
            directory: tempfile::tempdir().expect("a directory"),
            authority: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        };
        std::fs::write(pki.path("ca.pem"), certificate.pem()).expect("a file");
        pki.write_server();
        pki
    }

    fn path(&self, file: &str) -> std::path::PathBuf {
        Path::new(self.directory.path()).join(file)
    }

    fn write_server(&self) {
        let mut params = named(&["server"]);
        params.subject_alt_names = vec![SanType::DnsName("server".try_into().expect("a name"))];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        std::fs::write(self.path("cert.pem"), certificate.pem()).expect("a file");
        std::fs::write(self.path("key.pem"), key.serialize_pem()).expect("a file");
    }

    fn client(&self, names: &[&str]) -> Client {
        let mut params = named(names);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let pem = key.serialize_pem();
        Client {
            certificate: certificate.der().clone(),
            key: PrivateKeyDer::from_pem_slice(pem.as_bytes()).expect("PEM"),
        }
    }

    fn config(&self) -> TlsConfig {
        TlsConfig {
            cert_file: self.path("cert.pem"),
            key_file: self.path("key.pem"),
            trusted_ca_file: None,
            client_crl_file: None,
            versions: BOTH,
            cipher_suites: Vec::new(),
        }
    }

    fn mutual(&self) -> TlsConfig {
        TlsConfig {
            trusted_ca_file: Some(self.path("ca.pem")),
            ..self.config()
        }
    }
}

/// What the server made of the client, and the certificate and protocol that the client was shown.
type Met = (Option<PeerName>, CertificateDer<'static>, Option<Vec<u8>>);

async fn meet(
    tls: &Tls,
    trusted: &Pki,
    versions: &[&'static SupportedProtocolVersion],
    client: Option<Client>,
) -> Result<Met, String> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.authority.clone()).expect("an authority");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(roots);
    let mut config = match client {
        None => builder.with_no_client_auth(),
        Some(Client { certificate, key }) => builder
            .with_client_auth_cert(vec![certificate], key)
            .expect("a pair"),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let name = ServerName::try_from("server").expect("a name");
    let connector = TlsConnector::from(Arc::new(config));
    let (server, client) = tokio::join!(tls.accept(ours), connector.connect(name, theirs));
    let (_, peer) = server.map_err(|error| error.to_string())?;
    let client = client.map_err(|error| error.to_string())?;
    let (_, session) = client.get_ref();
    let certificates = session.peer_certificates().unwrap_or_default();
    Ok((
        peer,
        certificates.first().expect("a certificate").clone(),
        session.alpn_protocol().map(<[u8]>::to_vec),
    ))
}

#[tokio::test]
async fn a_client_is_who_its_certificate_says() {
    let (ours, foreign) = (Pki::new(), Pki::new());
    let tls = Tls::new(ours.mutual()).expect("TLS");
    for versions in [TLS12, TLS13] {
        let who = async |client| {
            let met = meet(&tls, &ours, versions, client).await;
            met.map(|(peer, ..)| peer.map(|PeerName(name)| name.to_string()))
        };
        let alice = Some(ours.client(&["alice"]));
        assert_eq!(who(alice).await, Ok(Some(String::from("alice"))));
        assert_eq!(who(Some(ours.client(&[]))).await, Ok(None));
        assert!(who(None).await.is_err());
        assert!(who(Some(foreign.client(&["alice"]))).await.is_err());
    }
    let open = Tls::new(ours.config()).expect("TLS");
    let (peer, _, protocol) = meet(&open, &ours, TLS13, None).await.expect("a handshake");
    assert_eq!(peer, None);
    assert_eq!(protocol.as_deref(), Some(&b"h2"[..]));
}

#[tokio::test]
async fn versions_and_cipher_suites_are_kept_to() {
    let pki = Pki::new();
    let only = |version| TlsVersions {
        min: version,
        max: version,
    };
    for (versions, client, met) in [
        (BOTH, TLS12, true),
        (BOTH, TLS13, true),
        (only(TlsVersion::Tls12), TLS13, false),
        (only(TlsVersion::Tls13), TLS12, false),
        (only(TlsVersion::Tls13), TLS13, true),
    ] {
        let config = TlsConfig {
            versions,
            ..pki.config()
        };
        let tls = Tls::new(config).expect("TLS");
        let outcome = meet(&tls, &pki, client, None).await;
        assert_eq!(outcome.is_ok(), met, "{versions:?}, {client:?}");
    }
    // The certificate's key is of an elliptic curve: a suite for RSA keys is of no use with it.
    for (suite, met) in [
        ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", true),
        ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", false),
    ] {
        let config = TlsConfig {
            cipher_suites: vec![suite.to_owned()],
            ..pki.config()
        };
        let tls = Tls::new(config).expect("TLS");
        let outcome = meet(&tls, &pki, TLS12, None).await;
        assert_eq!(outcome.is_ok(), met, "{suite}");
        assert!(meet(&tls, &pki, TLS13, None).await.is_ok(), "{suite}");
    }
}

#[tokio::test]
async fn a_new_connection_gets_the_files_of_now() {
    let pki = Pki::new();
    let tls = Tls::new(pki.config()).expect("TLS");
    let shown = async || {
        let met = meet(&tls, &pki, TLS13, None).await;
        met.expect("a handshake").1
    };
    let first = shown().await;
    assert_eq!(shown().await, first);
    pki.write_server();
    let second = shown().await;
    assert_ne!(second, first);
    std::fs::write(pki.path("key.pem"), "half a file").expect("a file");
    assert_eq!(shown().await, second);
    pki.write_server();
    assert_ne!(shown().await, second);
}
