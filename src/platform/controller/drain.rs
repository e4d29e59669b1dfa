//! Rounds of evictions from the nodes that are on their way out.

use std::collections::BTreeMap;

use crate::kubernetes::Drain;
use crate::platform::model::Cluster;
use crate::platform::replacement::{Replica, must_force};
use crate::platform::vm_state::VmState;

use super::Context;

/// One round for each replica that leaves and is not drained yet, by the name of its node. A node whose API
/// cannot be asked still has its pods, unless nobody waits for them any more: as in a cluster that goes, whose
/// API does not answer.
pub(super) async fn round<'a, R: Replica + 'a>(
    context: &Context,
    cluster: &Cluster,
    nodes: impl Iterator<Item = (&'a R, &'a str)>,
    vms: &BTreeMap<String, VmState>,
) -> BTreeMap<String, Drain> {
    let now = context.store.clock.now();
    let mut drains = BTreeMap::new();
    for (replica, node) in nodes {
        let Some(leaving) = &replica.life().leaving else {
            continue;
        };
        let state = vms.get(replica.id()).copied().unwrap_or(VmState::Absent);
        if leaving.drained || !state.is_running() {
            continue;
        }
        let force = cluster.is_going() || must_force(leaving, state, now);
        let id = cluster.id.as_str();
        let drain = match context.kubernetes.drain_node(id, node, force).await {
            Ok(drain) => drain,
            Err(_) if force => Drain::Drained,
            Err(error) => {
                tracing::debug!(%error, cluster = id, node, "a node cannot be drained now");
                Drain::Remaining {
                    pods: 0,
                    blocked_by_budget: 0,
                }
            }
        };
        drains.insert(replica.id().to_owned(), drain);
    }
    drains
}
