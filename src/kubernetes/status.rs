//! Errors as kube-apiserver answers them: a `Status` object, by HTTP code and reason.

use bytes::Bytes;
use http::{Response, StatusCode, header};
use serde_json::{Value, json};

use super::body::{Body, full};
use super::registry::apply::{self, Conflict};
use super::registry::resource::Resource;
use crate::etcd::client::ClientError;

/// A failed request. Texts are kube-apiserver's: clients and people match on them.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    pub code: StatusCode,
    pub reason: &'static str,
    pub message: String,
    pub details: Option<Value>,
}

impl ApiError {
    pub fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> ApiError {
        ApiError {
            code,
            reason,
            message: message.into(),
            details: None,
        }
    }

    pub fn bad_request(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    pub fn unauthorized() -> ApiError {
        ApiError::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
    }

    pub fn forbidden(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::FORBIDDEN, "Forbidden", message)
    }

    /// No such path.
    pub fn no_such_path() -> ApiError {
        ApiError::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            "the server could not find the requested resource",
        )
    }

    pub fn method_not_allowed() -> ApiError {
        ApiError::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    pub fn not_found(resource: &Resource, name: &str) -> ApiError {
        let message = format!("{} \"{name}\" not found", resource.qualified());
        ApiError {
            details: Some(details(resource, name)),
            ..ApiError::new(StatusCode::NOT_FOUND, "NotFound", message)
        }
    }

    pub fn already_exists(resource: &Resource, name: &str) -> ApiError {
        let message = format!("{} \"{name}\" already exists", resource.qualified());
        ApiError {
            details: Some(details(resource, name)),
            ..ApiError::new(StatusCode::CONFLICT, "AlreadyExists", message)
        }
    }

    pub fn conflict(resource: &Resource, name: &str, why: &str) -> ApiError {
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": {why}",
            resource.qualified()
        );
        ApiError {
            details: Some(details(resource, name)),
            ..ApiError::new(StatusCode::CONFLICT, "Conflict", message)
        }
    }

    /// Somebody changed the object since the caller read it.
    pub fn modified(resource: &Resource, name: &str) -> ApiError {
        let why = "the object has been modified; please apply your changes to the latest version \
                   and try again";
        ApiError::conflict(resource, name, why)
    }

    /// `causes` are (field, message).
    pub fn invalid(resource: &Resource, name: &str, causes: &[(String, String)]) -> ApiError {
        let texts: Vec<String> = causes
            .iter()
            .map(|(field, message)| format!("{field}: {message}"))
            .collect();
        let list = match &texts[..] {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let kind = if resource.group.is_empty() {
            resource.kind.to_owned()
        } else {
            format!("{}.{}", resource.kind, resource.group)
        };
        let causes: Vec<Value> = causes
            .iter()
            .map(|(field, message)| {
                json!({"reason": "FieldValueInvalid", "message": message, "field": field})
            })
            .collect();
        ApiError {
            details: Some(json!({
                "name": name, "group": resource.group, "kind": resource.kind, "causes": causes
            })),
            ..ApiError::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "Invalid",
                format!("{kind} \"{name}\" is invalid: {list}"),
            )
        }
    }

    /// Others manage fields that an applied configuration changes.
    pub fn apply_conflict(conflicts: &[Conflict]) -> ApiError {
        let causes: Vec<Value> = conflicts
            .iter()
            .map(|conflict| {
                json!({
                    "reason": "FieldManagerConflict", "field": conflict.field,
                    "message": format!("conflict with {}", conflict.manager),
                })
            })
            .collect();
        ApiError {
            details: Some(json!({"causes": causes})),
            ..ApiError::new(StatusCode::CONFLICT, "Conflict", apply::told(conflicts))
        }
    }

    /// What was asked for is compacted: list again.
    pub fn expired(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::GONE, "Expired", message)
    }

    pub fn unavailable(message: impl Into<String>) -> ApiError {
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "ServiceUnavailable",
            message,
        )
    }

    pub fn internal(error: impl std::fmt::Display) -> ApiError {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalError",
            format!("Internal error occurred: {error}"),
        )
    }

    pub fn to_value(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code.as_u16(),
        });
        if let Some(details) = &self.details {
            status["details"] = details.clone();
        }
        status
    }

    pub fn to_response(&self) -> Response<Body> {
        let mut response = Response::new(full(Bytes::from(self.to_value().to_string())));
        *response.status_mut() = self.code;
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            header::HeaderValue::from_static("application/json"),
        );
        response
    }
}

fn details(resource: &Resource, name: &str) -> Value {
    let mut details = json!({"name": name, "kind": resource.plural});
    if !resource.group.is_empty() {
        details["group"] = json!(resource.group);
    }
    details
}

impl From<ClientError> for ApiError {
    fn from(error: ClientError) -> Self {
        if error.is_compacted() {
            return ApiError::expired("The provided resource version is too old.");
        }
        ApiError::unavailable(format!("etcd: {error}"))
    }
}
