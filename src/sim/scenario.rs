//! Scenario files: what is asked of a cloud, what befalls it, and what must then be true.
//!
//! ```yaml
//! name: a control plane of three
//! seed: 1
//! steps:
//!   - createCluster:
//!       name: demo
//!       topologyConfig: {topology: DEDICATED_COMPUTE, flavor: XS, replicationFactor: 3}
//!   - within: 5m
//!     expect:
//!       - {cluster: demo, status: ACTIVE}
//!   - call: {method: POST, path: /_sim/faults/api, body: {path: "/v4/**", status: 503, times: 1}}
//!   - call: {path: "/v4/kubernetes/organisations/${org}/clusters/${demo}", status: 503}
//!   - advance: 1h
//!     throughout:
//!       - {cluster: demo, status: ACTIVE}
//!   - expect:
//!       - invariants: hold
//! ```
//!
//! `${org}` is the seed organisation; a cluster's name stands for its id, and `<cluster>.<group>` for a
//! node group's. What can be expected is in [`super::expectation`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::expectation::Expectation;

#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    #[error("cannot read the scenario {path}: {source}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the scenario {path} is not valid: {reason}")]
    Invalid { path: PathBuf, reason: String },
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Scenario {
    pub name: String,
    /// For readers.
    #[serde(default)]
    pub description: String,
    /// Of the server that is started for it.
    #[serde(default)]
    pub seed: u64,
    pub steps: Vec<Step>,
}

/// One of `createCluster`, `createNodeGroup`, `call`, `kubernetes`, `load`, `advance` and `expect`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Step {
    /// What reports call it; else what it does.
    pub title: Option<String>,
    /// The body of the request, as any client sends it.
    pub create_cluster: Option<Map<String, Value>>,
    pub create_node_group: Option<CreateNodeGroup>,
    pub call: Option<Call>,
    /// A request to a cluster's Kubernetes API, as its admin.
    pub kubernetes: Option<KubernetesCall>,
    pub load: Option<SetLoad>,
    /// How far the clock goes.
    #[serde(deserialize_with = "duration")]
    pub advance: Option<Duration>,
    /// With `advance`: true at its begin, at its end, and whenever something happens between.
    pub throughout: Vec<Expectation>,
    pub expect: Option<Vec<Expectation>>,
    /// With `expect`: how long the clock may go on until all of it is true; not at all unless given.
    #[serde(deserialize_with = "duration")]
    pub within: Option<Duration>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateNodeGroup {
    /// Name of the cluster.
    pub cluster: String,
    /// The rest is the body of the request.
    #[serde(flatten)]
    pub body: Map<String, Value>,
}

/// A request, to the REST API or to the control API.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Call {
    #[serde(default = "get")]
    pub method: String,
    pub path: String,
    #[serde(default)]
    pub body: Option<Value>,
    /// What the answer must be; a success unless given.
    #[serde(default)]
    pub status: Option<u16>,
    /// Names for values in the answer, by JSON pointer.
    #[serde(default)]
    pub save: BTreeMap<String, String>,
}

/// A request to a cluster's Kubernetes API.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KubernetesCall {
    /// Name of the cluster.
    pub cluster: String,
    #[serde(default = "get")]
    pub method: String,
    /// Such as `/api/v1/namespaces`.
    pub path: String,
    #[serde(default)]
    pub body: Option<Value>,
    /// What the answer must be; a success unless given.
    #[serde(default)]
    pub status: Option<u16>,
    /// Names for values in the answer, by JSON pointer.
    #[serde(default)]
    pub save: BTreeMap<String, String>,
}

/// What users do to a node group: a load, spread evenly over the VMs of it that answer.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SetLoad {
    /// `<cluster>.<group>`.
    pub node_group: String,
    /// Of all together, in thousandths of a vCPU.
    #[serde(default)]
    pub cpu_millis: u64,
    #[serde(default)]
    pub memory_kib: u64,
}

fn get() -> String {
    String::from("GET")
}

fn duration<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else {
        return Ok(None);
    };
    humantime::parse_duration(&text)
        .map(Some)
        .map_err(|error| serde::de::Error::custom(format!("`{text}`: {error}")))
}

impl Scenario {
    pub fn read(path: &Path) -> Result<Scenario, ScenarioError> {
        let text = std::fs::read_to_string(path).map_err(|source| ScenarioError::Read {
            path: path.to_owned(),
            source,
        })?;
        Scenario::parse(&text).map_err(|reason| ScenarioError::Invalid {
            path: path.to_owned(),
            reason,
        })
    }

    fn parse(text: &str) -> Result<Scenario, String> {
        let scenario: Scenario = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        for (index, step) in scenario.steps.iter().enumerate() {
            step.check()
                .map_err(|reason| format!("step {}: {reason}", index + 1))?;
        }
        Ok(scenario)
    }
}

impl Step {
    fn check(&self) -> Result<(), &'static str> {
        let acts = [
            self.create_cluster.is_some(),
            self.create_node_group.is_some(),
            self.call.is_some(),
            self.kubernetes.is_some(),
            self.load.is_some(),
            self.advance.is_some(),
            self.expect.is_some(),
        ];
        if acts.into_iter().filter(|is_given| *is_given).count() != 1 {
            return Err(
                "a step is one of createCluster, createNodeGroup, call, kubernetes, load, advance and expect",
            );
        }
        if self.within.is_some() && self.expect.is_none() {
            return Err("`within` goes with `expect`");
        }
        if !self.throughout.is_empty() && self.advance.is_none() {
            return Err("`throughout` goes with `advance`");
        }
        if let Some(body) = &self.create_cluster
            && !body.get("name").is_some_and(Value::is_string)
        {
            return Err("a cluster needs a name");
        }
        if let Some(group) = &self.create_node_group
            && !group.body.get("name").is_some_and(Value::is_string)
        {
            return Err("a node group needs a name");
        }
        Ok(())
    }

    /// What reports call it.
    pub fn title(&self) -> String {
        if let Some(title) = &self.title {
            return title.clone();
        }
        let name =
            |body: &Map<String, Value>| body.get("name").and_then(Value::as_str).map(str::to_owned);
        if let Some(body) = &self.create_cluster {
            return format!("create cluster {}", name(body).unwrap_or_default());
        }
        if let Some(group) = &self.create_node_group {
            let name = name(&group.body).unwrap_or_default();
            return format!("create node group {}.{name}", group.cluster);
        }
        if let Some(call) = &self.call {
            return format!("{} {}", call.method, call.path);
        }
        if let Some(call) = &self.kubernetes {
            return format!("{} {} in {}", call.method, call.path, call.cluster);
        }
        if let Some(load) = &self.load {
            return format!(
                "{} millis and {} KiB of load on {}",
                load.cpu_millis, load.memory_kib, load.node_group
            );
        }
        if let Some(duration) = self.advance {
            return format!("advance {}", humantime::format_duration(duration));
        }
        match self.within {
            Some(within) => format!("expect within {}", humantime::format_duration(within)),
            None => String::from("expect"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_does_one_thing() {
        let check = |step: &str, expect: Result<&str, &str>| {
            let found = Scenario::parse(&format!("name: x\nsteps:\n  - {step}\n"));
            match (found, expect) {
                (Ok(found), Ok(expect)) => assert_eq!(found.steps[0].title(), expect),
                (Err(found), Err(expect)) => assert!(found.contains(expect), "{step}: {found}"),
                (found, _) => panic!("{step}: {found:?}"),
            }
        };
        check("advance: 90s", Ok("advance 1m 30s"));
        check("{title: wait, advance: 90s}", Ok("wait"));
        check("createCluster: {name: demo}", Ok("create cluster demo"));
        check(
            "createNodeGroup: {cluster: demo, name: w, flavor: XS}",
            Ok("create node group demo.w"),
        );
        check("call: {path: /_sim/clock}", Ok("GET /_sim/clock"));
        check(
            "{within: 1m, expect: [{invariants: hold}]}",
            Ok("expect within 1m"),
        );
        check(
            "expect: [{nodeGroup: demo.w, currentNodeCount: 3}]",
            Ok("expect"),
        );
        check("advance: soon", Err("soon"));
        check("title: nothing", Err("a step is one of"));
        check("{advance: 1s, expect: []}", Err("a step is one of"));
        check("{advance: 1s, within: 1s}", Err("`within`"));
        check(
            "{expect: [], throughout: [{invariants: hold}]}",
            Err("`throughout`"),
        );
        check("createCluster: {flavor: XS}", Err("needs a name"));
        check(
            "kubernetes: {cluster: demo, path: /version}",
            Ok("GET /version in demo"),
        );
        check(
            "load: {nodeGroup: demo.w, cpuMillis: 2500}",
            Ok("2500 millis and 0 KiB of load on demo.w"),
        );
        check("expect: [{cluster: demo}]", Err("missing field `status`"));
        check("destroy: all", Err("destroy"));
    }
}
