//! A cluster's state machine.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

use super::deployment_event::{OperationKind, Step};

/// What is going on with a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    pub kind: OperationKind,
    /// The step under way; `None` before the first.
    pub step: Option<Step>,
    /// When the step began: it fails if it takes too long.
    pub started_at: Timestamp,
    /// The step is not over before this.
    pub due: Timestamp,
}
