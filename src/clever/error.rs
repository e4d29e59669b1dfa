//! Errors as the API words them.
//!
//! A handler returns an [`ApiError`]; only [`crate::clever::transport`] turns it into bytes, because
//! only there are the request's id and its API version known: `/v2` and `/v4` have different shapes.
//!
//! Statuses are those of `contracts/cke-models.md` 1.5. Two are our choice, for nothing public
//! settles them: a refused quota is 402 (its `code` is what clients look at; 403 and 507 already mean
//! a foreign owner and a load balancer over the quota of addresses, and a 5xx would be retried by the Go
//! client), and a malformed identifier in a path is a 404 like any other unknown one.

use std::borrow::Cow;
use std::collections::BTreeMap;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::platform::error::PlatformError;

/// What went wrong, for the caller.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{status} {code}: {message}")]
pub struct ApiError {
    pub status: StatusCode,
    /// `clever.core.…`; for the authentication bridge a bare word.
    pub code: Cow<'static, str>,
    pub context: ErrorContext,
    pub message: String,
}

/// The part of the request that an error is about.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type")]
pub enum ErrorContext {
    #[serde(rename = "EmptyContext")]
    Empty,
    #[serde(rename = "resource", rename_all = "camelCase")]
    Resource {
        resource_type: &'static str,
        resource_name: String,
    },
    #[serde(rename = "resource.operation", rename_all = "camelCase")]
    Operation {
        operation: &'static str,
        resource_type: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        resource_name: Option<String>,
    },
    #[serde(rename = "field", rename_all = "camelCase")]
    Field {
        field_name: String,
        field_value: String,
    },
}

/// Names of resources in an [`ErrorContext`].
pub const CLUSTER: &str = "KubernetesCluster";
pub const NODE_GROUP: &str = "KubernetesNodeGroup";
pub const NODE: &str = "KubernetesNode";
pub const QUOTA: &str = "KubernetesQuotaReservation";
pub const LOAD_BALANCER: &str = "LoadBalancer";
pub const STORAGE: &str = "Storage";

pub const QUOTA_EXCEEDED: &str = "clever.core.quota-exceeded";

impl ApiError {
    pub fn new(
        status: StatusCode,
        code: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) -> ApiError {
        ApiError {
            status,
            code: code.into(),
            context: ErrorContext::Empty,
            message: message.into(),
        }
    }

    pub fn about(self, context: ErrorContext) -> ApiError {
        ApiError { context, ..self }
    }

    pub fn bad_request(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "clever.core.bad-request", message)
    }

    pub fn invalid_field(
        field: impl Into<String>,
        value: impl Into<String>,
        reason: impl Into<String>,
    ) -> ApiError {
        ApiError::bad_request(reason).about(ErrorContext::Field {
            field_name: field.into(),
            field_value: bounded(value.into()),
        })
    }

    pub fn unauthorized() -> ApiError {
        ApiError::new(
            StatusCode::UNAUTHORIZED,
            "clever.core.unauthorized",
            "Not connected: the credentials are missing or wrong",
        )
    }

    pub fn forbidden(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::FORBIDDEN, "clever.core.forbidden", message)
    }

    pub fn not_found(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, "clever.core.not-found", message)
    }

    pub fn resource_not_found(resource_type: &'static str, name: &str) -> ApiError {
        let name = bounded(name.to_owned());
        ApiError::not_found(format!("{resource_type} {name} not found")).about(
            ErrorContext::Resource {
                resource_type,
                resource_name: name,
            },
        )
    }

    pub fn conflict(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::CONFLICT, "clever.core.conflict", message)
    }

    pub fn unavailable(message: impl Into<String>) -> ApiError {
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "clever.core.unavailable",
            message,
        )
    }
}

impl From<PlatformError> for ApiError {
    fn from(error: PlatformError) -> Self {
        let message = error.to_string();
        match error {
            PlatformError::Invalid { field, value, .. } => {
                ApiError::invalid_field(field, value, message)
            }
            PlatformError::ClusterNotFound(id) => {
                ApiError::not_found(message).about(ErrorContext::Resource {
                    resource_type: CLUSTER,
                    resource_name: id.to_string(),
                })
            }
            PlatformError::NodeGroupNotFound(id) => {
                ApiError::not_found(message).about(ErrorContext::Resource {
                    resource_type: NODE_GROUP,
                    resource_name: id.to_string(),
                })
            }
            PlatformError::NodeNotFound(id) => {
                ApiError::not_found(message).about(ErrorContext::Resource {
                    resource_type: NODE,
                    resource_name: id.to_string(),
                })
            }
            PlatformError::QuotaExceeded { .. } => {
                ApiError::new(StatusCode::PAYMENT_REQUIRED, QUOTA_EXCEEDED, message).about(
                    ErrorContext::Operation {
                        operation: "reserve",
                        resource_type: QUOTA,
                        resource_name: None,
                    },
                )
            }
            PlatformError::IpQuotaExceeded { .. } => {
                ApiError::new(StatusCode::INSUFFICIENT_STORAGE, QUOTA_EXCEEDED, message).about(
                    ErrorContext::Operation {
                        operation: "reserve",
                        resource_type: LOAD_BALANCER,
                        resource_name: None,
                    },
                )
            }
            PlatformError::LoadBalancerNotFound(id) => {
                ApiError::not_found(message).about(ErrorContext::Resource {
                    resource_type: LOAD_BALANCER,
                    resource_name: bounded(id),
                })
            }
            PlatformError::VolumeNotFound(id) => {
                ApiError::not_found(message).about(ErrorContext::Resource {
                    resource_type: STORAGE,
                    resource_name: bounded(id),
                })
            }
            PlatformError::WrongState { .. } => ApiError::new(
                StatusCode::PRECONDITION_FAILED,
                "clever.core.precondition-failed",
                message,
            ),
            PlatformError::Conflict { .. } => ApiError::conflict(message),
            PlatformError::Unavailable(_) => ApiError::unavailable(message),
        }
    }
}

/// An error must not be a mirror for a megabyte of input.
fn bounded(mut text: String) -> String {
    const LIMIT_CHARS: usize = 256;
    if let Some((at, _)) = text.char_indices().nth(LIMIT_CHARS) {
        text.truncate(at);
        text.push('…');
    }
    text
}

/// Carries the error to the transport, which writes the body.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Body of an error under `/v4`, exactly these four keys: the Go client refuses any other.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ErrorBody<'a> {
    pub api_request_id: &'a str,
    pub code: &'a str,
    pub context: &'a ErrorContext,
    pub error: &'a str,
}

/// Body of an error under `/v2`.
#[derive(Debug, Serialize)]
pub struct LegacyErrorBody<'a> {
    /// Ten times the status, except 2001 for "not connected". Never 403: clients take that for
    /// "too many requests".
    pub id: u32,
    pub message: &'a str,
    #[serde(rename = "type")]
    pub kind: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<&'a str, &'a str>,
}

impl<'a> LegacyErrorBody<'a> {
    pub fn new(error: &'a ApiError) -> LegacyErrorBody<'a> {
        let fields = match &error.context {
            ErrorContext::Field {
                field_name,
                field_value,
            } => BTreeMap::from([(field_name.as_str(), field_value.as_str())]),
            _ => BTreeMap::new(),
        };
        LegacyErrorBody {
            id: match error.status {
                StatusCode::UNAUTHORIZED => 2001,
                status => u32::from(status.as_u16()) * 10,
            },
            message: &error.message,
            kind: "error",
            fields,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn contexts_are_tagged_by_type() {
        let check = |context: ErrorContext, expect: serde_json::Value| {
            let written = serde_json::to_value(&context).expect("a context is JSON");
            assert_eq!(written, expect);
        };
        check(ErrorContext::Empty, json!({"type": "EmptyContext"}));
        check(
            ErrorContext::Resource {
                resource_type: CLUSTER,
                resource_name: "kubernetes_1".into(),
            },
            json!({"type": "resource", "resourceType": "KubernetesCluster", "resourceName": "kubernetes_1"}),
        );
        check(
            ErrorContext::Operation {
                operation: "resize",
                resource_type: NODE_GROUP,
                resource_name: None,
            },
            json!({"type": "resource.operation", "operation": "resize", "resourceType": "KubernetesNodeGroup"}),
        );
        check(
            ErrorContext::Field {
                field_name: "name".into(),
                field_value: "".into(),
            },
            json!({"type": "field", "fieldName": "name", "fieldValue": ""}),
        );
    }

    #[test]
    fn the_legacy_shape_has_the_text_in_message() {
        let check = |error: ApiError, expect: serde_json::Value| {
            let written =
                serde_json::to_value(LegacyErrorBody::new(&error)).expect("a body is JSON");
            assert_eq!(written, expect);
        };
        check(
            ApiError::not_found("nothing here"),
            json!({"id": 4040, "message": "nothing here", "type": "error"}),
        );
        check(
            ApiError::invalid_field("a", "b", "no"),
            json!({"id": 4000, "message": "no", "type": "error", "fields": {"a": "b"}}),
        );
    }

    #[test]
    fn the_platforms_refusals_have_their_statuses_and_codes() {
        let check = |error: PlatformError, expect: &str| {
            let error = ApiError::from(error);
            assert_eq!(error.to_string(), expect);
        };
        check(
            PlatformError::invalid("name", "", "empty"),
            "400 Bad Request clever.core.bad-request: Invalid name: empty",
        );
        check(
            PlatformError::QuotaExceeded {
                item: "RAM max".into(),
                limit: "40.0 GB".into(),
                actual: "48.0 GB".into(),
            },
            "402 Payment Required clever.core.quota-exceeded: \
             Quota exceeded: RAM max: limit = 40.0 GB | actual = 48.0 GB",
        );
        check(
            PlatformError::IpQuotaExceeded {
                limit: 2,
                actual: 4,
            },
            "507 Insufficient Storage clever.core.quota-exceeded: \
             Quota exceeded: IP max: limit = 2 | actual = 4",
        );
        check(
            PlatformError::wrong_state("not ACTIVE"),
            "412 Precondition Failed clever.core.precondition-failed: not ACTIVE",
        );
        check(
            PlatformError::conflict("changed"),
            "409 Conflict clever.core.conflict: changed",
        );
    }

    #[test]
    fn a_quoted_value_is_bounded() {
        let error = ApiError::resource_not_found(CLUSTER, &"é".repeat(10_000));
        assert!(error.message.len() < 1_000);
    }
}
