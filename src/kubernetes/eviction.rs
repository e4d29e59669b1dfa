//! Evictions (policy/v1): a pod is asked to leave its node, if its disruption budget allows it.

use http::StatusCode;
use serde_json::{Value, json};

use super::registry::list::ListOptions;
use super::registry::resource::{Kind, Resource};
use super::registry::selector::{Selector, matches_selector};
use super::registry::{
    DeleteOptions, Deleted, Part, Place, Registry, WriteOptions, name_of, seconds,
};
use super::status::ApiError;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evicted {
    Gone,
    /// It has been told to end, and takes its time.
    Ending,
}

/// Takes one disruption from the pod's budget, if it has one, and deletes the pod.
pub async fn evict(
    registry: &Registry,
    place: Place<'_>,
    name: &str,
    options: &DeleteOptions,
) -> Result<Evicted, ApiError> {
    let write = WriteOptions {
        dry_run: options.dry_run,
        ..WriteOptions::by("kube-apiserver")
    };
    let pod = registry.get(place, name).await?;
    if is_running(&pod) {
        let budgets = Place {
            resource: Resource::of_kind(Kind::PodDisruptionBudget),
            namespace: place.namespace,
        };
        let everything = ListOptions {
            selector: Selector::default(),
            ..ListOptions::default()
        };
        let mut guarding = registry.list(budgets, &everything).await?.items;
        guarding.retain(|budget| {
            matches_selector(&budget["spec"]["selector"], &pod["metadata"]["labels"])
        });
        match guarding.as_slice() {
            [] => {}
            [budget] if needs_no_disruption(&pod, budget) => {}
            [budget] => {
                let budget = name_of(budget);
                let now = seconds(registry.now());
                registry
                    .modify(budgets, &budget, Part::Status, write, |current| {
                        spend(current, name, &now)
                    })
                    .await?;
            }
            _ => {
                return Err(ApiError::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "InternalError",
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
                ));
            }
        }
    }
    let mut options = options.clone();
    // Another pod of the same name is not the one that was looked at.
    if options.preconditions.uid.is_none() {
        options.preconditions.uid = pod["metadata"]["uid"].as_str().map(str::to_owned);
    }
    Ok(match registry.delete_with(place, name, &options).await? {
        Deleted::Now(_) => Evicted::Gone,
        Deleted::Later(_) => Evicted::Ending,
    })
}

/// Whether its going disturbs anybody: a pod that has ended, has not begun, or is going already does not.
fn is_running(pod: &Value) -> bool {
    let phase = pod["status"]["phase"].as_str().unwrap_or("");
    !["Succeeded", "Failed", "Pending"].contains(&phase)
        && pod["metadata"]["deletionTimestamp"].is_null()
}

/// A pod that is not ready counts as none: it may go while enough others are, or always if the budget says so.
fn needs_no_disruption(pod: &Value, budget: &Value) -> bool {
    let ready = pod["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
    if ready {
        return false;
    }
    let status = &budget["status"];
    let desired = status["desiredHealthy"].as_i64().unwrap_or(0);
    budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
        || (desired > 0 && status["currentHealthy"].as_i64().unwrap_or(0) >= desired)
}

/// The budget with one disruption less, or the refusal.
fn spend(budget: &Value, pod: &str, now: &str) -> Result<Value, ApiError> {
    let status = &budget["status"];
    let name = name_of(budget);
    let observed = status["observedGeneration"].as_i64().unwrap_or(0);
    if observed < budget["metadata"]["generation"].as_i64().unwrap_or(0) {
        return Err(refused(&format!(
            "The disruption budget {name} is still being processed by the server."
        )));
    }
    let allowed = status["disruptionsAllowed"].as_i64().unwrap_or(0);
    if allowed <= 0 {
        return Err(refused(&format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            status["desiredHealthy"].as_i64().unwrap_or(0),
            status["currentHealthy"].as_i64().unwrap_or(0)
        )));
    }
    let mut next = budget.clone();
    next["status"]["disruptionsAllowed"] = json!(allowed - 1);
    next["status"]["disruptedPods"][pod] = json!(now);
    Ok(next)
}

fn refused(cause: &str) -> ApiError {
    ApiError {
        details: Some(json!({
            "causes": [{"reason": "DisruptionBudget", "message": cause}],
        })),
        ..ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            "TooManyRequests",
            "Cannot evict pod as it would violate the pod's disruption budget.",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_gives_what_it_has() {
        let check = |generation: i64, allowed: i64, expect: Result<i64, &str>| {
            let budget = json!({
                "metadata": {"name": "web", "generation": generation},
                "status": {
                    "observedGeneration": 1, "disruptionsAllowed": allowed,
                    "desiredHealthy": 2, "currentHealthy": 2,
                },
            });
            let spent = spend(&budget, "a", "2026-01-01T00:00:00Z");
            let spent = spent
                .map(|next| next["status"]["disruptionsAllowed"].as_i64().unwrap_or(-1))
                .map_err(|error| {
                    assert_eq!(error.code, StatusCode::TOO_MANY_REQUESTS);
                    let details = error.details.unwrap_or_default();
                    details["causes"][0]["message"]
                        .as_str()
                        .unwrap_or("")
                        .to_owned()
                });
            assert_eq!(spent, expect.map_err(str::to_owned));
        };
        check(1, 2, Ok(1));
        check(
            1,
            0,
            Err("The disruption budget web needs 2 healthy pods and has 2 currently"),
        );
        check(
            2,
            2,
            Err("The disruption budget web is still being processed by the server."),
        );
    }
}
