//! Certificate authorities for tests, and the files that they hand out.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SerialNumber,
};
use time::{Duration, OffsetDateTime};

/// An authority with a directory of its own.
pub struct Authority {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key on disk.
pub struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

fn named(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::days(2);
    params.not_after = now + Duration::days(2);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}

fn write(path: &Path, text: String) -> PathBuf {
    std::fs::write(path, text).expect("a file");
    path.to_owned()
}

impl Authority {
    pub fn new(directory: &Path, name: &str) -> Authority {
        let directory = directory.join(name);
        std::fs::create_dir_all(&directory).expect("a directory");
        let mut params = named(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        write(&directory.join("ca.pem"), certificate.pem());
        Authority {
            directory,
            issuer: Issuer::new(params, key),
        }
    }

    /// The file with the authority's own certificate.
    pub fn file(&self) -> String {
        text(&self.directory.join("ca.pem"))
    }

    fn issue(&self, file: &str, params: &CertificateParams) -> Pair {
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Pair {
            certificate: write(
                &self.directory.join(format!("{file}.pem")),
                certificate.pem(),
            ),
            key: write(
                &self.directory.join(format!("{file}-key.pem")),
                key.serialize_pem(),
            ),
        }
    }

    /// For a server on 127.0.0.1.
    pub fn server(&self) -> Pair {
        let mut params = named("server");
        params.subject_alt_names = vec![rcgen::SanType::IpAddress([127, 0, 0, 1].into())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue("server", &params)
    }

    pub fn client(&self, common_name: &str) -> Pair {
        let mut params = named(common_name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.serial_number = Some(serial(common_name));
        self.issue(common_name, &params)
    }

    /// Valid until yesterday.
    pub fn expired_client(&self, common_name: &str) -> Pair {
        let mut params = named(common_name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_after = OffsetDateTime::now_utc() - Duration::days(1);
        self.issue(common_name, &params)
    }

    /// A list that revokes the clients of these names.
    pub fn revoke(&self, common_names: &[&str]) -> String {
        let now = OffsetDateTime::now_utc();
        let revoked = common_names.iter().map(|name| RevokedCertParams {
            serial_number: serial(name),
            revocation_time: now - Duration::hours(1),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: now - Duration::hours(1),
            next_update: now + Duration::days(1),
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.issuer).expect("a list");
        text(&write(
            &self.directory.join("crl.pem"),
            list.pem().expect("PEM"),
        ))
    }
}

fn serial(common_name: &str) -> SerialNumber {
    SerialNumber::from_slice(common_name.as_bytes())
}

pub fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

impl Pair {
    /// etcdctl's flags for a client that has this certificate and trusts `authority`.
    pub fn client_flags(&self, authority: &Authority) -> Vec<String> {
        let mut flags = trusting(authority);
        flags.push(format!("--cert={}", self.certificate.display()));
        flags.push(format!("--key={}", self.key.display()));
        flags
    }

    /// The server's flags.
    pub fn server_flags(&self) -> Vec<String> {
        vec![
            format!("--cert-file={}", self.certificate.display()),
            format!("--key-file={}", self.key.display()),
        ]
    }
}

/// etcdctl's flags for a client without a certificate. It gives up soon.
pub fn trusting(authority: &Authority) -> Vec<String> {
    vec![
        format!("--cacert={}", authority.file()),
        String::from("--command-timeout=3s"),
        String::from("--dial-timeout=2s"),
    ]
}
