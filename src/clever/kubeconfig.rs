//! Kubeconfigs: `…/clusters/{cluster}/kubeconfig.yaml`, and addresses that need no credentials.

use axum::Router;
use axum::extract::{FromRequestParts, RawPathParams, State};
use axum::http::header;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use hmac::{Hmac, Mac};
use serde::Serialize;
use sha2::Sha256;

use crate::clever::Clever;
use crate::clever::account::User;
use crate::clever::authentication::{Session, same_secret};
use crate::clever::cluster::OwnedCluster;
use crate::clever::error::ApiError;
use crate::clever::transport::{Json, Parameters};
use crate::clock::Timestamp;
use crate::platform::model::{ClusterId, KubeconfigType, OwnerId};

/// How long a presigned address is good.
const PRESIGNED_LIFETIME_MILLIS: i64 = 3_600_000;

pub fn routes() -> Router<Clever> {
    Router::new()
        .route(
            "/v4/kubernetes/organisations/{owner}/clusters/{cluster}/kubeconfig.yaml",
            get(get_kubeconfig),
        )
        .route(
            "/v4/kubernetes/organisations/{owner}/clusters/{cluster}/kubeconfig/presigned-url",
            get(get_presigned_url),
        )
}

/// The cluster, for a member of the owner or for the bearer of a presigned address.
struct ReadableCluster(OwnedCluster);

impl FromRequestParts<Clever> for ReadableCluster {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, clever: &Clever) -> Result<Self, ApiError> {
        let parameters = Parameters::parse(parts.uri.query().unwrap_or_default());
        let Some(authorization) = parameters.get("authorization") else {
            let owned = OwnedCluster::from_request_parts(parts, clever).await?;
            return Ok(ReadableCluster(owned));
        };
        let path = RawPathParams::from_request_parts(parts, &())
            .await
            .map_err(|error| ApiError::bad_request(error.to_string()))?;
        let parameter = |name| {
            let mut all = path.iter();
            all.find(|(known, _)| *known == name)
                .map_or("", |(_, value)| value)
        };
        let invalid = || ApiError::forbidden("This address is not valid, or not any more");
        let owned = OwnedCluster {
            owner: parameter("owner").parse().map_err(|_| invalid())?,
            cluster: parameter("cluster").parse().map_err(|_| invalid())?,
        };
        Presigned::parse(authorization)
            .filter(|presigned| presigned.allows(clever, &owned))
            .ok_or_else(invalid)?;
        Ok(ReadableCluster(owned))
    }
}

/// Leave to read one cluster's kubeconfig until a certain time, sealed with the secret of the user
/// who asked for it: `<user>.<milliseconds>.<seal>`. Nothing is stored.
#[derive(Debug, PartialEq)]
struct Presigned {
    user: OwnerId,
    until: Timestamp,
    seal: String,
}

impl Presigned {
    fn new(user: &User, owner: &OwnerId, cluster: &ClusterId, until: Timestamp) -> Presigned {
        Presigned {
            user: user.id.clone(),
            until,
            seal: seal(user, owner, cluster, until),
        }
    }

    fn parse(text: &str) -> Option<Presigned> {
        let mut parts = text.splitn(3, '.');
        Some(Presigned {
            user: parts.next()?.parse().ok()?,
            until: Timestamp(parts.next()?.parse().ok()?),
            seal: parts.next()?.to_owned(),
        })
    }

    fn allows(&self, clever: &Clever, cluster: &OwnedCluster) -> bool {
        clever.accounts.user(&self.user).is_some_and(|user| {
            clever.clock.now() < self.until
                && clever.accounts.may_act_for(user, &cluster.owner)
                && same_secret(
                    &self.seal,
                    &seal(user, &cluster.owner, &cluster.cluster, self.until),
                )
        })
    }
}

impl std::fmt::Display for Presigned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.user, self.until.0, self.seal)
    }
}

fn seal(user: &User, owner: &OwnerId, cluster: &ClusterId, until: Timestamp) -> String {
    let message = format!("kubeconfig {owner} {cluster} {}", until.0);
    match <Hmac<Sha256> as Mac>::new_from_slice(user.secret.as_bytes()) {
        Ok(mut mac) => {
            mac.update(message.as_bytes());
            BASE64.encode(mac.finalize().into_bytes())
        }
        // HMAC takes keys of every length.
        Err(error) => unreachable!("{error}"),
    }
}

/// YAML whatever the client says that it accepts; never as JSON, which the CLI would parse.
async fn get_kubeconfig(
    State(clever): State<Clever>,
    ReadableCluster(OwnedCluster { owner, cluster }): ReadableCluster,
    parameters: Parameters,
) -> Result<Response, ApiError> {
    let kinds: Vec<KubeconfigType> = parameters.parse_all("type")?;
    let kind = kinds
        .first()
        .copied()
        .unwrap_or(KubeconfigType::LoadBalancer);
    let yaml = clever.platform.kubeconfig(&owner, &cluster, kind).await?;
    let headers = [
        (header::CONTENT_TYPE, "application/yaml"),
        (
            header::CONTENT_DISPOSITION,
            "attachment; filename=\"kubeconfig.yaml\"",
        ),
        (header::CACHE_CONTROL, "no-store"),
    ];
    Ok((headers, yaml).into_response())
}

#[derive(Debug, Serialize)]
pub struct PresignedUrl {
    pub url: String,
}

async fn get_presigned_url(
    State(clever): State<Clever>,
    session: Session,
    OwnedCluster { owner, cluster }: OwnedCluster,
) -> Result<Json<PresignedUrl>, ApiError> {
    clever.platform.get_cluster(&owner, &cluster).await?;
    let until = Timestamp(
        clever
            .clock
            .now()
            .0
            .saturating_add(PRESIGNED_LIFETIME_MILLIS),
    );
    let presigned = Presigned::new(&session.user, &owner, &cluster, until);
    Ok(Json(PresignedUrl {
        url: format!(
            "{}/v4/kubernetes/organisations/{owner}/clusters/{cluster}/kubeconfig.yaml?authorization={presigned}",
            clever.public_url
        ),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clever::account::{Accounts, AccountsConfig, SEED_ORGANISATION_ID};

    #[test]
    fn a_presigned_address_covers_owner_cluster_and_time() {
        let accounts = Accounts::new(AccountsConfig::default()).unwrap();
        let user = accounts.seed_user();
        let owner: OwnerId = SEED_ORGANISATION_ID.parse().unwrap();
        let cluster: ClusterId = "kubernetes_01KTREHTR6E4JEY46EPYBKY8XG".parse().unwrap();
        let other: ClusterId = "kubernetes_01KTREHTR6E4JEY46EPYBKY8XH".parse().unwrap();
        let presigned = Presigned::new(user, &owner, &cluster, Timestamp(5));
        assert_eq!(
            Presigned::parse(&presigned.to_string()).as_ref(),
            Some(&presigned)
        );
        for different in [
            seal(user, &owner, &other, Timestamp(5)),
            seal(user, &user.id, &cluster, Timestamp(5)),
            seal(user, &owner, &cluster, Timestamp(6)),
        ] {
            assert_ne!(different, presigned.seal);
        }
        for garbage in ["", ".", "..", "user_1.2.3", "x"] {
            assert_eq!(Presigned::parse(garbage), None, "{garbage}");
        }
    }
}
