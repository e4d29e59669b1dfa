//! Disruption budgets: how many pods may go now.
//!
//! An eviction takes one of those that may go before it deletes the pod, and says so in `disruptedPods`: a pod that is
//! named there counts as gone, although it may still be seen, or the next eviction would be granted in its place. One
//! that is not deleted within two minutes never was, and counts again.

use serde_json::{Map, Value, json};

use super::{Outcome, Tools, count, is_ready, parse, scaled};
use crate::clock::Timestamp;
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
    let mut wake: Outcome = None;
    for budget in &budgets {
        let (disrupted, again) = disrupted(budget, &pods, tools.now);
        wake = wake.into_iter().chain(again).min();
        let status = status(budget, &pods, &sets, disrupted, &tools.time());
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
    Ok(wake)
}

/// How long an evicted pod may take to be deleted, in milliseconds; as in Kubernetes.
const DELETION_LIMIT_MS: i64 = 2 * 60 * 1000;

/// Pods whose eviction was granted and that are not seen to go yet, with when it was; and when to look at them again.
fn disrupted(budget: &Value, pods: &[Value], now: i64) -> (Map<String, Value>, Outcome) {
    let mut kept = Map::new();
    let mut again = None;
    let granted = budget["status"]["disruptedPods"].as_object();
    for (name, since) in granted.into_iter().flatten() {
        let stands = pods.iter().any(|pod| {
            pod["metadata"]["name"] == name.as_str()
                && pod["metadata"]["namespace"] == budget["metadata"]["namespace"]
                && pod["metadata"]["deletionTimestamp"].is_null()
        });
        let until = parse(since)
            .unwrap_or(now)
            .saturating_add(DELETION_LIMIT_MS);
        if stands && now < until {
            kept.insert(name.clone(), since.clone());
            again = again.into_iter().chain([Timestamp(until)]).min();
        }
    }
    (kept, again)
}

fn status(
    budget: &Value,
    pods: &[Value],
    sets: &[Value],
    disrupted: Map<String, Value>,
    now: &str,
) -> Value {
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
        .filter(|pod| {
            let name = pod["metadata"]["name"].as_str();
            !name.is_some_and(|name| disrupted.contains_key(name))
        })
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
    let mut status = json!({
        "observedGeneration": budget["metadata"]["generation"],
        "disruptionsAllowed": allowed, "currentHealthy": healthy,
        "desiredHealthy": desired, "expectedPods": expected,
        "conditions": [{
            "type": "DisruptionAllowed", "status": condition.0, "reason": condition.1, "message": "",
            "observedGeneration": budget["metadata"]["generation"], "lastTransitionTime": since,
        }],
    });
    if !disrupted.is_empty() {
        status["disruptedPods"] = Value::Object(disrupted);
    }
    status
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
            let status = status(&budget, &pods, &sets, Map::new(), "now");
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

    /// Between a grant and the deletion that follows it nothing else is granted.
    #[test]
    fn a_pod_whose_eviction_was_granted_counts_as_gone() {
        let pod = |name: &str, ends: Value| {
            json!({
                "metadata": {"namespace": "a", "name": name, "labels": {"app": "web"}, "deletionTimestamp": ends},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
            })
        };
        let granted = "2026-01-01T00:00:10Z";
        let budget = json!({
            "metadata": {"namespace": "a"},
            "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "web"}}},
            "status": {"disruptedPods": {"x": granted}},
        });
        let at = |seconds: i64| parse(&json!(granted)).unwrap() + seconds * 1000;
        let check = |pods: &[Value], now: i64, expect: (i64, bool, Option<i64>)| {
            let (gone, again) = disrupted(&budget, pods, now);
            let status = status(&budget, pods, &[], gone, "now");
            let named = !status["disruptedPods"]["x"].is_null();
            let found = (
                count(&status["disruptionsAllowed"]),
                named,
                again.map(|at| at.0),
            );
            assert_eq!(found, expect, "{pods:?}");
        };
        let others = || [pod("y", Value::Null), pod("z", Value::Null)];
        let seen = [&others()[..], &[pod("x", Value::Null)]].concat();
        check(&seen, at(1), (0, true, Some(at(120))));
        check(&seen, at(120), (1, false, None));
        let going = [&others()[..], &[pod("x", json!(granted))]].concat();
        check(&going, at(1), (0, false, None));
        check(&others(), at(1), (0, false, None));
    }
}
