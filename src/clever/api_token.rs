//! API tokens (`/api-tokens`): bearer tokens that a user makes for other tools.
//!
//! The CLI asks the authentication bridge for them (`AUTH_BRIDGE_HOST`), which is this same server.
//! Tokens live in etcd, keyspace `clever`, under their digest: who reads the store cannot use them.

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{delete, get};
use etcd_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use etcd_proto::etcdserverpb::request_op::Request as OpRequest;
use etcd_proto::etcdserverpb::{Compare, PutRequest, RequestOp, TxnRequest};
use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use ulid::Ulid;

use crate::clever::Clever;
use crate::clever::account::User;
use crate::clever::authentication::{Session, same_secret};
use crate::clever::error::ApiError;
use crate::clever::transport::{Json, JsonBody};
use crate::clock::Timestamp;
use crate::etcd::client::{At, ClientError};
use crate::platform::model::OwnerId;

/// The keyspace of this layer.
pub const KEYSPACE: &str = "clever";
const PREFIX: &str = "/clever/api-tokens/";

/// A user's limit; more is a refusal.
const TOKENS_PER_USER: usize = 100;
const NAME_LIMIT_BYTES: usize = 256;

/// How often a creation starts again because another one came between.
const CREATION_ATTEMPTS: usize = 16;

pub fn routes() -> Router<Clever> {
    Router::new()
        .route("/api-tokens", get(list).post(create))
        .route("/api-tokens/{id}", delete(revoke))
}

/// What is stored under the token's digest.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredToken {
    id: String,
    user: OwnerId,
    name: String,
    description: Option<String>,
    created_at: Timestamp,
    expires_at: Timestamp,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Creation {
    email: String,
    password: String,
    name: String,
    description: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    expiration_date: time::OffsetDateTime,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ApiTokenState {
    Active,
    Expired,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiToken {
    /// The token itself; only in the answer to its creation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_token: Option<String>,
    pub api_token_id: String,
    pub user_id: OwnerId,
    pub name: String,
    pub description: Option<String>,
    pub creation_date: String,
    pub expiration_date: String,
    pub ip: &'static str,
    pub state: ApiTokenState,
}

impl StoredToken {
    fn view(self, now: Timestamp, api_token: Option<String>) -> ApiToken {
        ApiToken {
            api_token,
            api_token_id: self.id,
            user_id: self.user,
            name: self.name,
            description: self.description,
            creation_date: self.created_at.to_rfc3339(),
            expiration_date: self.expires_at.to_rfc3339(),
            ip: "127.0.0.1",
            state: if self.expires_at > now {
                ApiTokenState::Active
            } else {
                ApiTokenState::Expired
            },
        }
    }
}

/// The user whom a bearer token stands for.
pub(in crate::clever) async fn user_of(clever: &Clever, token: &str) -> Result<User, ApiError> {
    if token.is_empty() {
        return Err(ApiError::unauthorized());
    }
    if let Some(user) = clever.accounts.user_by_api_token(token) {
        return Ok(user.clone());
    }
    let found = clever.store.get(key(token)).await.map_err(unavailable)?;
    let stored = found.value.ok_or_else(ApiError::unauthorized)?;
    let stored = decode(&stored.value)?;
    if stored.expires_at <= clever.clock.now() {
        return Err(ApiError::unauthorized());
    }
    clever
        .accounts
        .user(&stored.user)
        .cloned()
        .ok_or_else(ApiError::unauthorized)
}

/// Proves the user by password, not by the header, as the bridge does.
async fn create(
    State(clever): State<Clever>,
    JsonBody(creation): JsonBody<Creation>,
) -> Result<(StatusCode, Json<ApiToken>), ApiError> {
    let user = clever
        .accounts
        .user_by_email(&creation.email)
        .filter(|user| same_secret(&user.password, &creation.password))
        .ok_or_else(|| {
            ApiError::new(
                StatusCode::UNAUTHORIZED,
                "invalid-credential",
                "The e-mail address or the password is wrong",
            )
        })?;
    if creation.name.len() > NAME_LIMIT_BYTES {
        return Err(ApiError::invalid_field(
            "name",
            creation.name,
            format!("The name is longer than {NAME_LIMIT_BYTES} bytes"),
        ));
    }
    let expires_at = creation.expiration_date.unix_timestamp_nanos() / 1_000_000;
    for _ in 0..CREATION_ATTEMPTS {
        let tokens = tokens_of(&clever, user).await?;
        if tokens.value.len() >= TOKENS_PER_USER {
            return Err(ApiError::conflict(format!(
                "A user can have at most {TOKENS_PER_USER} API tokens"
            )));
        }
        let now = clever.clock.now();
        let millis = u64::try_from(now.0).unwrap_or(0);
        // The revision never comes back, so neither does the id of a revoked token, even though
        // the clock may stand still.
        let revision = u128::try_from(tokens.revision).unwrap_or(0);
        let id = format!("api_token_{}", Ulid::from_parts(millis, revision));
        let stored = StoredToken {
            user: user.id.clone(),
            name: creation.name.clone(),
            description: creation.description.clone(),
            created_at: now,
            expires_at: Timestamp(i64::try_from(expires_at).unwrap_or(i64::MAX)),
            id: id.clone(),
        };
        let token = mint(user, &id)?;
        if put_new(&clever, &token, &stored).await? {
            return Ok((StatusCode::CREATED, Json(stored.view(now, Some(token)))));
        }
    }
    Err(ApiError::conflict(
        "Too many API tokens are being created at once",
    ))
}

async fn list(
    State(clever): State<Clever>,
    session: Session,
) -> Result<Json<Vec<ApiToken>>, ApiError> {
    let now = clever.clock.now();
    let tokens = tokens_of(&clever, &session.user).await?;
    Ok(Json(
        tokens
            .value
            .into_iter()
            .map(|(_, stored)| stored.view(now, None))
            .collect(),
    ))
}

async fn revoke(
    State(clever): State<Clever>,
    session: Session,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let tokens = tokens_of(&clever, &session.user).await?;
    let (key, _) = tokens
        .value
        .into_iter()
        .find(|(_, stored)| stored.id == id)
        .ok_or_else(|| ApiError::not_found("You have no such API token"))?;
    // Keys are of one length: none is another's prefix.
    clever.store.delete_prefix(key).await.map_err(unavailable)?;
    Ok(StatusCode::NO_CONTENT)
}

/// The user's tokens with their keys, oldest first.
async fn tokens_of(
    clever: &Clever,
    user: &User,
) -> Result<At<Vec<(Bytes, StoredToken)>>, ApiError> {
    let all = clever.store.list(PREFIX).await.map_err(unavailable)?;
    let mut tokens = Vec::new();
    for found in all.value {
        let stored = decode(&found.value)?;
        if stored.user == user.id {
            tokens.push((found.key, stored));
        }
    }
    tokens.sort_by(|(_, one), (_, other)| one.id.cmp(&other.id));
    Ok(At {
        value: tokens,
        revision: all.revision,
    })
}

/// `false` if there is such a token already.
async fn put_new(clever: &Clever, token: &str, stored: &StoredToken) -> Result<bool, ApiError> {
    let value = serde_json::to_vec(stored).map_err(|error| {
        tracing::error!(%error, "an API token cannot be written as JSON");
        ApiError::unavailable("The token cannot be stored")
    })?;
    let key = key(token);
    let request = TxnRequest {
        compare: vec![Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Create.into(),
            key: key.clone().into(),
            target_union: Some(TargetUnion::CreateRevision(0)),
            ..Compare::default()
        }],
        success: vec![RequestOp {
            request: Some(OpRequest::RequestPut(PutRequest {
                key: key.into(),
                value: value.into(),
                ..PutRequest::default()
            })),
        }],
        failure: Vec::new(),
    };
    let response = clever.store.txn(request).await.map_err(unavailable)?;
    Ok(response.succeeded)
}

/// A token that only who knows the user's secret can compute, and the same in every seeded run.
fn mint(user: &User, id: &str) -> Result<String, ApiError> {
    let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(user.secret.as_bytes())
        .map_err(|_| ApiError::unavailable("The token cannot be made"))?;
    mac.update(id.as_bytes());
    Ok(hex(&mac.finalize().into_bytes()))
}

fn key(token: &str) -> String {
    format!("{PREFIX}{}", hex(&Sha256::digest(token.as_bytes())))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing into a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn decode(value: &[u8]) -> Result<StoredToken, ApiError> {
    serde_json::from_slice(value).map_err(|error| {
        tracing::error!(%error, "a stored API token cannot be read");
        ApiError::unavailable("A stored API token cannot be read")
    })
}

fn unavailable(error: ClientError) -> ApiError {
    tracing::warn!(%error, "the store of API tokens does not answer");
    ApiError::unavailable("The store does not answer")
}
