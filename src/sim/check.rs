//! Whether what a scenario expects is true now.

use std::collections::{BTreeMap, BTreeSet};

use http::Method;
use serde_json::{Value, json};

use super::expectation::{
    ActivityIs, AnswerIs, ClusterIs, Expectation, HasHappened, Hold, InvariantsHold,
    KubernetesAnswers, NodeGroupIs, VmsAre,
};
use super::names::{Names, UnknownName};
use super::runner::{Runner, StepError};

/// `Err` says what is not as expected.
type Checked = Result<(), String>;

impl Runner {
    /// The first that is not met, and why.
    pub(super) async fn check_all(
        &mut self,
        expectations: &[Expectation],
    ) -> Result<Checked, StepError> {
        for expectation in expectations {
            let checked = match expectation {
                Expectation::Cluster(wanted) => self.check_cluster(wanted).await?,
                Expectation::NodeGroup(wanted) => self.check_node_group(wanted).await?,
                Expectation::Vms(wanted) => self.check_vms(wanted).await?,
                Expectation::Kubernetes(wanted) => self.check_kubernetes(wanted).await?,
                Expectation::Activity(wanted) => self.check_activity(wanted).await?,
                Expectation::Answer(wanted) => self.check_answer(wanted).await?,
                Expectation::Happened(wanted) => self.check_happened(wanted)?,
                Expectation::Invariants(InvariantsHold {
                    invariants: Hold::Hold,
                }) => self.check_invariants().await?,
            };
            if checked.is_err() {
                return Ok(checked);
            }
        }
        Ok(Ok(()))
    }

    async fn check_cluster(&self, wanted: &ClusterIs) -> Result<Checked, StepError> {
        let path = self.names.cluster(&wanted.cluster)?;
        let answer = self.client.send(&Method::GET, &path, None).await?;
        let found = match answer.status.as_u16() {
            404 => String::from("DELETED"),
            _ => text(&answer.json()["status"]),
        };
        if found == wanted.status {
            return Ok(Ok(()));
        }
        let (cluster, wanted) = (&wanted.cluster, &wanted.status);
        Ok(Err(format!("cluster {cluster} is {found}, not {wanted}")))
    }

    async fn check_node_group(&self, wanted: &NodeGroupIs) -> Result<Checked, StepError> {
        let group = &wanted.node_group;
        let path = self.names.node_group(group)?;
        let answer = self.client.send(&Method::GET, &path, None).await?;
        let found = answer.json();
        let status = match answer.status.as_u16() {
            404 => String::from("DELETED"),
            _ => text(&found["status"]),
        };
        if let Some(wanted) = wanted.status.as_ref().filter(|wanted| **wanted != status) {
            return Ok(Err(format!("node group {group} is {status}, not {wanted}")));
        }
        for (what, wanted) in [
            ("currentNodeCount", wanted.current_node_count),
            ("targetNodeCount", wanted.target_node_count),
        ] {
            let count = found[what].as_u64();
            if let Some(wanted) = wanted.filter(|wanted| count != Some(*wanted)) {
                let count = count.map_or(String::from("no"), |count| count.to_string());
                return Ok(Err(format!(
                    "node group {group} has {count} as {what}, not {wanted}"
                )));
            }
        }
        Ok(Ok(()))
    }

    async fn check_vms(&self, wanted: &VmsAre) -> Result<Checked, StepError> {
        let path = format!("/_sim/vms?cluster={}", self.names.get(&wanted.vms)?);
        let vms = self.client.json(&Method::GET, &path, None).await?;
        let node_group = match wanted.node_group.as_deref() {
            None => None,
            Some("none") => Some(Value::Null),
            Some(name) => Some(Value::from(self.names.get(name)?)),
        };
        let datacenter = wanted.datacenter.as_ref();
        let datacenter = datacenter.map(|name| self.names.fill(name)).transpose()?;
        let is_meant = |vm: &&Value| {
            node_group
                .as_ref()
                .is_none_or(|group| vm["nodeGroup"] == *group)
                && wanted
                    .named
                    .as_ref()
                    .is_none_or(|name| matches(name, &text(&vm["name"])))
                && datacenter
                    .as_ref()
                    .is_none_or(|wanted| vm["datacenter"] == wanted.as_str())
                && wanted
                    .status
                    .as_ref()
                    .is_none_or(|status| vm["status"] == status.as_str())
                && wanted.healthy.is_none_or(|it| vm["healthy"] == it)
                && wanted.reachable.is_none_or(|it| vm["reachable"] == it)
        };
        let meant: Vec<&Value> = vms
            .as_array()
            .into_iter()
            .flatten()
            .filter(is_meant)
            .collect();
        let sites: BTreeSet<String> = meant.iter().map(|vm| text(&vm["datacenter"])).collect();
        let names: Vec<String> = meant
            .iter()
            .map(|vm| format!("{} in {}", text(&vm["name"]), text(&vm["datacenter"])))
            .collect();
        let counted = in_bounds(meant.len(), wanted.count, wanted.at_least, wanted.at_most)
            .and_then(|()| in_bounds(sites.len(), wanted.datacenters, None, None));
        Ok(counted.map_err(|reason| {
            format!(
                "VMs of {}: {reason}: {}",
                wanted.vms,
                match names.is_empty() {
                    true => String::from("there are none"),
                    false => names.join(", "),
                }
            )
        }))
    }

    async fn check_kubernetes(&mut self, wanted: &KubernetesAnswers) -> Result<Checked, StepError> {
        let path = self.names.fill(&wanted.path)?;
        let cluster = self.names.cluster(&wanted.kubernetes)?;
        let (clusters, get) = (&mut self.clusters, Method::GET);
        let asked = clusters.send(&self.client, &cluster, &get, &path, None);
        let answer = asked.await?;
        let status = answer.status.as_u16();
        let name = &wanted.kubernetes;
        if status != wanted.status.unwrap_or(200) {
            let said = answer.text();
            return Ok(Err(format!("{path} of {name} answers {status}: {said}")));
        }
        let body = answer.json();
        if let Err(reason) = has_values(&body, &wanted.values, &self.names)? {
            return Ok(Err(format!("{path} of {name}: {reason}")));
        }
        for (pointer, least) in &wanted.least {
            let found = body.pointer(pointer).and_then(Value::as_u64);
            let found = found.unwrap_or(0);
            if found < *least {
                let reason = format!("{found} at {pointer}, not at least {least}");
                return Ok(Err(format!("{path} of {name}: {reason}")));
            }
        }
        let Some(count) = wanted.items else {
            return Ok(Ok(()));
        };
        let mut found = 0;
        for item in body["items"].as_array().into_iter().flatten() {
            found += usize::from(has_values(item, &wanted.each, &self.names)?.is_ok());
        }
        let counted = in_bounds(found, Some(count), None, None);
        Ok(counted.map_err(|reason| format!("items of {path} of {name}: {reason}: {body}")))
    }

    async fn check_activity(&self, wanted: &ActivityIs) -> Result<Checked, StepError> {
        let cluster = self.names.cluster(&wanted.activity)?;
        let path = format!("{cluster}/deployment-events?limit=1000");
        let events = self.client.json(&Method::GET, &path, None).await?;
        let is = |found: &Value, wanted: &Option<String>| match wanted.as_deref() {
            None => true,
            Some("none") => found.is_null(),
            Some(wanted) => found == wanted,
        };
        let is_meant = |event: &&Value| {
            is(&event["operation"], &wanted.operation)
                && is(&event["stepName"], &wanted.step)
                && is(&event["status"], &wanted.status)
                && wanted
                    .detail
                    .as_ref()
                    .is_none_or(|part| text(&event["detail"]).contains(part))
        };
        let all = events.as_array().into_iter().flatten();
        let found = all.filter(is_meant).count();
        let counted = in_bounds(found, None, Some(wanted.times), wanted.at_most);
        Ok(counted.map_err(|reason| {
            let part = |part: &Option<String>| part.clone().unwrap_or_default();
            format!(
                "events of {}, {} {} {} {}: {reason}",
                wanted.activity,
                part(&wanted.operation),
                part(&wanted.step),
                part(&wanted.status),
                part(&wanted.detail),
            )
        }))
    }

    async fn check_answer(&self, wanted: &AnswerIs) -> Result<Checked, StepError> {
        let path = self.names.fill(&wanted.answer)?;
        let answer = self.client.send(&Method::GET, &path, None).await?;
        let status = answer.status.as_u16();
        if status != wanted.status.unwrap_or(200) {
            return Ok(Err(format!("{path} answers {status}: {}", answer.text())));
        }
        let checked = has_values(&answer.json(), &wanted.values, &self.names)?;
        Ok(checked.map_err(|reason| format!("{path}: {reason}")))
    }

    fn check_happened(&self, wanted: &HasHappened) -> Result<Checked, UnknownName> {
        let mut values = BTreeMap::new();
        for (pointer, value) in &wanted.values {
            values.insert(pointer, self.names.fill_all(value)?);
        }
        let since = &self.history[self.judged.min(self.history.len())..];
        let matching = since.iter().filter(|line| {
            let happening: Value = serde_json::from_str(line).unwrap_or_default();
            let mut values = values.iter();
            happening["kind"] == wanted.happened.as_str()
                && values.all(|(pointer, value)| happening.pointer(pointer) == Some(value))
        });
        let counted = in_bounds(matching.count(), None, Some(wanted.times), wanted.at_most);
        Ok(counted.map_err(|reason| {
            let kind = &wanted.happened;
            format!("changes of {kind} with {}: {reason}", json!(values))
        }))
    }

    async fn check_invariants(&self) -> Result<Checked, StepError> {
        let path = "/_sim/invariants";
        let broken = self.client.json(&Method::GET, path, None).await?;
        Ok(match broken == json!([]) {
            true => Ok(()),
            false => Err(format!("broken invariants: {broken}")),
        })
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(begin) => name.starts_with(begin),
        None => name == pattern,
    }
}

fn in_bounds(
    found: usize,
    exactly: Option<usize>,
    at_least: Option<usize>,
    at_most: Option<usize>,
) -> Checked {
    if let Some(wanted) = exactly.filter(|wanted| *wanted != found) {
        return Err(format!("{found}, not {wanted}"));
    }
    if let Some(least) = at_least.filter(|least| *least > found) {
        return Err(format!("{found}, not at least {least}"));
    }
    match at_most.filter(|most| *most < found) {
        Some(most) => Err(format!("{found}, not at most {most}")),
        None => Ok(()),
    }
}

fn has_values(
    body: &Value,
    wanted: &BTreeMap<String, Value>,
    names: &Names,
) -> Result<Checked, UnknownName> {
    for (pointer, value) in wanted {
        let value = names.fill_all(value)?;
        let found = body.pointer(pointer);
        if found != Some(&value) {
            let found = found.map_or(String::from("nothing"), Value::to_string);
            return Ok(Err(format!("{found} at {pointer}, not {value}")));
        }
    }
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_within_bounds() {
        let check = |found, bounds: (Option<usize>, Option<usize>, Option<usize>), expect| {
            let said = in_bounds(found, bounds.0, bounds.1, bounds.2);
            assert_eq!(said.err().as_deref(), expect, "{found} {bounds:?}");
        };
        check(2, (None, None, None), None);
        check(2, (Some(2), Some(2), Some(2)), None);
        check(2, (Some(3), None, None), Some("2, not 3"));
        check(2, (None, Some(3), None), Some("2, not at least 3"));
        check(2, (None, None, Some(1)), Some("2, not at most 1"));
    }

    #[test]
    fn a_name_may_end_in_anything() {
        assert!(matches("w-*", "w-node0"));
        assert!(matches("w-node0", "w-node0"));
        assert!(!matches("w-node", "w-node0"));
        assert!(matches("*", ""));
    }
}
