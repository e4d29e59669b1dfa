//! Certificates: one authority for the listener, one for each cluster's clients.
//!
//! The listener serves every cluster under one name, so its certificate comes from one authority,
//! which every kubeconfig names. Clients are told apart per cluster: each has an authority of its
//! own, and a certificate of another cluster's proves nothing. Validity is in the machine's time,
//! not the simulated one: real clients check it against their own clocks.

use std::net::IpAddr;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

const AUTHORITY_LIFE: Duration = Duration::days(3650);
const CERTIFICATE_LIFE: Duration = Duration::days(365);
/// Clients' clocks may be behind by so much.
const CLOCK_SKEW: Duration = Duration::minutes(5);

#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("cannot issue a certificate: {0}")]
    Issue(#[from] rcgen::Error),
    #[error("a certificate is not PEM: {0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    #[error("a certificate is not valid: {0}")]
    Certificate(#[from] rustls::Error),
    #[error("no verifier: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    #[error("a certificate cannot be read: {0}")]
    Parse(String),
}

/// A certificate with its private key, both PEM.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

/// Who a client certificate says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The subject's common name.
    pub user: String,
    /// The subject's organisations.
    pub groups: Vec<String>,
}

/// An authority of its own, self-signed.
pub fn new_authority(name: &str) -> Result<Pair, PkiError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name(name, None);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    valid_for(&mut params, AUTHORITY_LIFE);
    Ok(Pair {
        certificate: params.self_signed(&key)?.pem(),
        key: key.serialize_pem(),
    })
}

/// A client certificate: `user` as common name, `group` as organisation.
pub fn issue_client(authority: &Pair, user: &str, group: &str) -> Result<Pair, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name(user, Some(group));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    valid_for(&mut params, CERTIFICATE_LIFE);
    issue(authority, params)
}

/// A serving certificate for host names and addresses; one that has `expired` did a minute ago.
pub fn issue_server(authority: &Pair, hosts: &[String], expired: bool) -> Result<Pair, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name("kube-apiserver", None);
    for host in hosts {
        params.subject_alt_names.push(match host.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(host.as_str().try_into()?),
        });
    }
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    valid_for(&mut params, CERTIFICATE_LIFE);
    if expired {
        params.not_before -= CERTIFICATE_LIFE;
        params.not_after -= CERTIFICATE_LIFE + Duration::minutes(1);
    }
    issue(authority, params)
}

fn issue(authority: &Pair, params: CertificateParams) -> Result<Pair, PkiError> {
    let issuer =
        Issuer::from_ca_cert_pem(&authority.certificate, KeyPair::from_pem(&authority.key)?)?;
    let key = KeyPair::generate()?;
    Ok(Pair {
        certificate: params.signed_by(&key, &issuer)?.pem(),
        key: key.serialize_pem(),
    })
}

fn distinguished_name(name: &str, organisation: Option<&str>) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    if let Some(organisation) = organisation {
        distinguished.push(DnType::OrganizationName, organisation);
    }
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn valid_for(params: &mut CertificateParams, life: Duration) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + life;
}

/// The identity that `chain` proves to the authority: signature, validity and purpose are checked.
pub fn verify_client(authority: &str, chain: &[CertificateDer<'_>]) -> Result<Identity, PkiError> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.as_bytes())?)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        Arc::new(rustls::crypto::ring::default_provider()),
    )
    .build()?;
    let (end_entity, intermediates) = chain
        .split_first()
        .ok_or_else(|| PkiError::Parse(String::from("the chain is empty")))?;
    verifier.verify_client_cert(end_entity, intermediates, UnixTime::now())?;
    identity(end_entity)
}

fn identity(certificate: &CertificateDer<'_>) -> Result<Identity, PkiError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| PkiError::Parse(error.to_string()))?;
    let subject = parsed.subject();
    let texts =
        |attributes: &mut dyn Iterator<Item = &x509_parser::x509::AttributeTypeAndValue<'_>>| {
            attributes
                .filter_map(|attribute| attribute.as_str().ok().map(str::to_owned))
                .collect::<Vec<String>>()
        };
    let user = texts(&mut subject.iter_common_name())
        .pop()
        .ok_or_else(|| PkiError::Parse(String::from("the subject has no common name")))?;
    Ok(Identity {
        user,
        groups: texts(&mut subject.iter_organization()),
    })
}

/// The pair as rustls takes it.
pub fn to_rustls(
    pair: &Pair,
) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), PkiError> {
    Ok((
        CertificateDer::from_pem_slice(pair.certificate.as_bytes())?,
        PrivateKeyDer::from_pem_slice(pair.key.as_bytes())?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_who_its_own_clusters_authority_says() {
        let (ours, theirs) = (
            new_authority("ours").expect("an authority"),
            new_authority("theirs").expect("an authority"),
        );
        let admin = Identity {
            user: String::from("admin"),
            groups: vec![String::from("system:masters")],
        };
        let pair = issue_client(&ours, "admin", "system:masters").expect("a certificate");
        let (certificate, _) = to_rustls(&pair).expect("PEM");
        let chain = [certificate];
        assert_eq!(verify_client(&ours.certificate, &chain).ok(), Some(admin));
        assert!(verify_client(&theirs.certificate, &chain).is_err());
        assert!(verify_client(&ours.certificate, &[]).is_err());
        let server =
            issue_server(&ours, &[String::from("127.0.0.1")], false).expect("a certificate");
        let (certificate, _) = to_rustls(&server).expect("PEM");
        assert!(verify_client(&ours.certificate, &[certificate]).is_err());
    }
}
