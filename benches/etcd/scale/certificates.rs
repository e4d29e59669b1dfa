//! A certificate authority, a server that trusts it, and clients with names.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::Failure;

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    /// Of the server and of every client: making keys is not what is measured.
    key: KeyPair,
    /// For the server.
    directory: tempfile::TempDir,
}

fn named(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params
}

impl Authority {
    pub fn new() -> Result<Authority, Failure> {
        let mut params = named("authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        let directory = tempfile::tempdir()?;
        std::fs::write(directory.path().join("ca.pem"), certificate.pem())?;
        Ok(Authority {
            certificate: certificate.der().clone(),
            issuer: Issuer::new(params, key),
            key: KeyPair::generate()?,
            directory,
        })
    }

    /// Flags of a server on 127.0.0.1 that asks clients for a certificate of this authority.
    pub fn server_flags(&self) -> Result<Vec<OsString>, Failure> {
        let mut params = named("server");
        params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&self.key, &self.issuer)?;
        let file = |name: &str| self.directory.path().join(name);
        std::fs::write(file("server.pem"), certificate.pem())?;
        std::fs::write(file("server-key.pem"), self.key.serialize_pem())?;
        let flag = |name: &str, path: &Path| [name.into(), path.as_os_str().to_owned()];
        let flags = [
            flag("--trusted-ca-file", &file("ca.pem")),
            flag("--cert-file", &file("server.pem")),
            flag("--key-file", &file("server-key.pem")),
        ];
        Ok(flags.concat())
    }

    /// TLS for a client of this name.
    pub fn client(&self, common_name: &str) -> Result<Arc<ClientConfig>, Failure> {
        let mut params = named(common_name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&self.key, &self.issuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone())?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate.der().clone()], key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}
