//! The organisation in a path where nobody of it asks: of the control API, and of the billing engine's.

use crate::clever::Clever;
use crate::clever::error::ApiError;
use crate::platform::model::OwnerId;

pub fn known(clever: &Clever, organisation: &str) -> Result<OwnerId, ApiError> {
    let id: Option<OwnerId> = organisation.parse().ok();
    id.filter(|id| clever.accounts.is_known(id))
        .ok_or_else(|| ApiError::resource_not_found("Organisation", organisation))
}
