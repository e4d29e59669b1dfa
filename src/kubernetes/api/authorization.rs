//! Who may do what in a cluster.

use super::Caller;
use crate::kubernetes::request::Objects;
use crate::kubernetes::status::ApiError;

pub(super) fn authorize_information(caller: &Caller, path: &str) -> Result<(), ApiError> {
    let open = ["/version", "/healthz", "/livez", "/readyz"];
    if caller.is_some() || open.iter().any(|open| path.starts_with(open)) {
        return Ok(());
    }
    Err(ApiError::forbidden(format!(
        "forbidden: User \"system:anonymous\" cannot get path \"{path}\""
    )))
}

/// `system:masters` may do everything; nodes what nodes do. Roles for others are not implemented:
/// they may nothing.
pub(super) fn authorize(caller: &Caller, verb: &str, objects: &Objects) -> Result<(), ApiError> {
    let member = |group: &str| {
        caller
            .as_ref()
            .is_some_and(|identity| identity.groups.iter().any(|of| of == group))
    };
    let of_nodes = ["nodes", "leases", "events", "pods"].contains(&objects.resource.plural);
    if member("system:masters") || (member("system:nodes") && of_nodes) {
        return Ok(());
    }
    let user = caller
        .as_ref()
        .map_or("system:anonymous", |identity| identity.user.as_str());
    let resource = objects.resource;
    let scope = match &objects.namespace {
        Some(namespace) => format!("in the namespace \"{namespace}\""),
        None => String::from("at the cluster scope"),
    };
    let named = match &objects.name {
        Some(name) => format!(" \"{name}\""),
        None => String::new(),
    };
    Err(ApiError::forbidden(format!(
        "{}{named} is forbidden: User \"{user}\" cannot {verb} resource \"{}\" in API group \"{}\" {scope}",
        resource.qualified(),
        resource.plural,
        resource.group
    )))
}
