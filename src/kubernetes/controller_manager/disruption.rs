//! Disruption budgets: how many pods may go now.

use serde_json::{Value, json};

use super::{Outcome, Tools, count, is_ready, scaled};
use crate::kubernetes::api_client::{ApiClientError, At};
use crate::kubernetes::registry::resource::{Kind, Resource};
use crate::kubernetes::registry::selector::matches_selector;

pub async fn reconcile(tools: &Tools) -> Result<Outcome, ApiClientError> {
    let resource = Resource::of_kind(Kind::PodDisruptionBudget);
    let budgets = tools.api.list(resource).await?;
    if budgets.is_empty() {
        return Ok(None);
    }
    let pods = tools.api.list(Resource::of_kind(Kind::Pod)).await?;
    let sets = tools.api.list(Resource::of_kind(Kind::ReplicaSet)).await?;
    for budget in &budgets {
        let status = status(budget, &pods, &sets, &tools.time());
        if status != budget["status"] {
            let mut next = budget.clone();
            next["status"] = status;
            match tools
                .api
                .replace_status(At::of(resource, budget), &next)
                .await
            {
                Err(error) if error.is_stale() => {}
                outcome => drop(outcome?),
            }
        }
    }
    Ok(None)
}

fn status(budget: &Value, pods: &[Value], sets: &[Value], now: &str) -> Value {
    let spec = &budget["spec"];
    let guarded: Vec<&Value> = pods
        .iter()
        .filter(|pod| {
            pod["metadata"]["namespace"] == budget["metadata"]["namespace"]
                && !["Succeeded", "Failed"].contains(&pod["status"]["phase"].as_str().unwrap_or(""))
                && matches_selector(&spec["selector"], &pod["metadata"]["labels"])
        })
        .collect();
    let present = i64::try_from(guarded.len()).unwrap_or(i64::MAX);
    let healthy = guarded
        .iter()
        .filter(|pod| is_ready(pod) && pod["metadata"]["deletionTimestamp"].is_null())
        .count();
    let healthy = i64::try_from(healthy).unwrap_or(i64::MAX);
    // Percentages, and what may be missing, are of what the pods' controllers want.
    let wanted = || {
        let wanted: i64 = sets
            .iter()
            .filter(|set| guarded.iter().any(|pod| super::controlled_by(pod, set)))
            .map(|set| count(&set["spec"]["replicas"]))
            .sum();
        wanted
    };
    let (expected, desired) = match (&spec["minAvailable"], &spec["maxUnavailable"]) {
        (Value::Null, Value::Null) => (present, 0),
        (Value::Null, unavailable) => {
            let expected = wanted();
            (
                expected,
                (expected - scaled(unavailable, expected, true)).max(0),
            )
        }
        (minimum @ Value::String(_), _) => {
            let expected = wanted();
            (expected, scaled(minimum, expected, true))
        }
        (minimum, _) => (present, count(minimum)),
    };
    let allowed = if expected > 0 {
        (healthy - desired).max(0)
    } else {
        0
    };
    let condition = if allowed > 0 {
        ("True", "SufficientPods")
    } else {
        ("False", "InsufficientPods")
    };
    let before = budget["status"]["conditions"][0].clone();
    let since = if before["status"] == condition.0 {
        before["lastTransitionTime"].clone()
    } else {
        json!(now)
    };
    json!({
        "observedGeneration": budget["metadata"]["generation"],
        "disruptionsAllowed": allowed, "currentHealthy": healthy,
        "desiredHealthy": desired, "expectedPods": expected,
        "conditions": [{
            "type": "DisruptionAllowed", "status": condition.0, "reason": condition.1, "message": "",
            "observedGeneration": budget["metadata"]["generation"], "lastTransitionTime": since,
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_allow_what_is_left_over() {
        let pod = |ready: &str| {
            json!({
                "metadata": {"namespace": "a", "labels": {"app": "web"},
                    "ownerReferences": [{"controller": true, "uid": "s"}]},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]},
            })
        };
        let sets = [json!({"metadata": {"uid": "s"}, "spec": {"replicas": 4}})];
        let pods = [pod("True"), pod("True"), pod("True"), pod("False")];
        let check = |spec: Value, expect: [i64; 3]| {
            let mut budget = json!({"metadata": {"namespace": "a"}, "spec": spec});
            budget["spec"]["selector"] = json!({"matchLabels": {"app": "web"}});
            let status = status(&budget, &pods, &sets, "now");
            let found = ["disruptionsAllowed", "desiredHealthy", "expectedPods"]
                .map(|field| count(&status[field]));
            assert_eq!(found, expect, "{spec}");
        };
        check(json!({"minAvailable": 2}), [1, 2, 4]);
        check(json!({"minAvailable": "50%"}), [1, 2, 4]);
        check(json!({"minAvailable": 4}), [0, 4, 4]);
        check(json!({"maxUnavailable": 1}), [0, 3, 4]);
        check(json!({"maxUnavailable": "50%"}), [1, 2, 4]);
    }
}
