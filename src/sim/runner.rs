//! Runs a scenario against a server, step by step. The first step that fails is the last.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use serde_json::{Map, Value, json};

use super::client::{Answer, Client, ClientError};
use super::clusters::{ClusterError, Clusters};
use super::expectation::Expectation;
use super::names::{Names, UnknownName};
use super::scenario::{Call, CreateNodeGroup, KubernetesCall, Scenario, SetLoad, Step};

/// Happenings shown when a step fails; the newest.
const SHOWN: usize = 40;

#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Name(#[from] UnknownName),
    #[error("{0}")]
    Unmet(String),
    #[error(
        "the clock of this server runs by itself: start it with --time-scale manual, or pause it"
    )]
    ClockRuns,
}

/// How a step went.
pub struct StepReport {
    pub title: String,
    /// `None` if it was not come to.
    pub outcome: Option<Result<(), String>>,
    pub took: Duration,
}

/// How a scenario went.
pub struct Report {
    pub name: String,
    pub description: String,
    pub steps: Vec<StepReport>,
    /// Everything that happened, a line of JSON each.
    pub history: Vec<String>,
}

impl Report {
    pub fn passed(&self) -> bool {
        self.steps
            .iter()
            .all(|step| matches!(step.outcome, Some(Ok(()))))
    }
}

pub struct Runner {
    pub(super) client: Client,
    pub(super) clusters: Clusters,
    pub(super) names: Names,
    pub(super) history: Vec<String>,
    /// How much of the history was there when the last step that expects ended.
    pub(super) judged: usize,
    next: u64,
}

impl Runner {
    pub fn new(client: Client, organisation: &str) -> Runner {
        let mut names = Names::default();
        names.save("org", organisation);
        Runner {
            client,
            clusters: Clusters::default(),
            names,
            history: Vec::new(),
            judged: 0,
            next: 0,
        }
    }

    pub async fn run(mut self, scenario: &Scenario) -> Report {
        let mut steps = Vec::new();
        let mut failed = false;
        for step in &scenario.steps {
            let started = std::time::Instant::now();
            let shown_from = self.history.len();
            let outcome = if failed {
                None
            } else {
                let outcome = self.step(step).await;
                Some(outcome.map_err(|error| self.explain(&error, shown_from)))
            };
            failed |= matches!(outcome, Some(Err(_)));
            steps.push(StepReport {
                title: step.title(),
                outcome,
                took: started.elapsed(),
            });
        }
        Report {
            name: scenario.name.clone(),
            description: scenario.description.clone(),
            steps,
            history: self.history,
        }
    }

    async fn step(&mut self, step: &Step) -> Result<(), StepError> {
        if let Some(body) = &step.create_cluster {
            self.create_cluster(body).await?;
        } else if let Some(group) = &step.create_node_group {
            self.create_node_group(group).await?;
        } else if let Some(call) = &step.call {
            self.call(call).await?;
        } else if let Some(call) = &step.kubernetes {
            self.call_kubernetes(call).await?;
        } else if let Some(load) = &step.load {
            self.load(load).await?;
        } else if let Some(duration) = step.advance {
            self.advance(duration, &step.throughout).await?;
        } else if let Some(expectations) = &step.expect {
            self.expect(expectations, step.within.unwrap_or_default())
                .await?;
            self.judged = self.history.len();
        }
        self.follow().await
    }

    /// What a failure means to a reader: the reason, and what happened during the step.
    fn explain(&self, error: &StepError, shown_from: usize) -> String {
        let happened = &self.history[shown_from.min(self.history.len())..];
        let skipped = happened.len().saturating_sub(SHOWN);
        let mut text = error.to_string();
        if skipped > 0 {
            text.push_str(&format!("\n  ({skipped} happenings not shown)"));
        }
        for line in &happened[skipped..] {
            text.push_str("\n  ");
            text.push_str(&brief(line));
        }
        text
    }

    async fn create_cluster(&mut self, body: &Map<String, Value>) -> Result<(), StepError> {
        let name = name_in(body);
        let path = String::from("/v4/kubernetes/organisations/${org}/clusters");
        let cluster = self.call(&creation(path, name, body)).await?;
        for group in cluster["nodeGroups"].as_array().into_iter().flatten() {
            if let (Some(group), Some(id)) = (group["name"].as_str(), group["id"].as_str()) {
                self.names.save(&format!("{name}.{group}"), id);
            }
        }
        Ok(())
    }

    async fn create_node_group(&mut self, group: &CreateNodeGroup) -> Result<(), StepError> {
        let path = format!("{}/node-groups", self.names.cluster(&group.cluster)?);
        let name = format!("{}.{}", group.cluster, name_in(&group.body));
        self.call(&creation(path, &name, &group.body))
            .await
            .map(drop)
    }

    /// Returns the answer.
    async fn call(&mut self, call: &Call) -> Result<Value, StepError> {
        let path = self.names.fill(&call.path)?;
        let body = call.body.as_ref();
        let body = body.map(|body| self.names.fill_all(body)).transpose()?;
        let method = method(&call.method)?;
        let answer = self.client.send(&method, &path, body.as_ref()).await?;
        self.take(&call.method, &path, &answer, call.status, &call.save)
    }

    async fn call_kubernetes(&mut self, call: &KubernetesCall) -> Result<Value, StepError> {
        let path = self.names.fill(&call.path)?;
        let body = call.body.as_ref();
        let body = body.map(|body| self.names.fill_all(body)).transpose()?;
        let cluster = self.names.cluster(&call.cluster)?;
        let (clusters, method) = (&mut self.clusters, method(&call.method)?);
        let asked = clusters.send(&self.client, &cluster, &method, &path, body.as_ref());
        let answer = asked.await?;
        self.take(&call.method, &path, &answer, call.status, &call.save)
    }

    /// Judges an answer, and keeps what is to be kept of it.
    fn take(
        &mut self,
        method: &str,
        path: &str,
        answer: &Answer,
        wanted: Option<u16>,
        save: &BTreeMap<String, String>,
    ) -> Result<Value, StepError> {
        let status = answer.status.as_u16();
        let as_wanted = wanted.map_or(answer.status.is_success(), |wanted| status == wanted);
        if !as_wanted {
            let wanted = wanted.map_or(String::from("a success"), |it| it.to_string());
            return Err(StepError::Unmet(format!(
                "{method} {path} answers {status}, not {wanted}: {}",
                answer.text()
            )));
        }
        let answer = answer.json();
        for (name, pointer) in save {
            let value = answer.pointer(pointer).ok_or_else(|| {
                StepError::Unmet(format!(
                    "nothing at {pointer} in the answer of {path}: {answer}"
                ))
            })?;
            let text = value.as_str().map(str::to_owned);
            self.names
                .save(name, &text.unwrap_or_else(|| value.to_string()));
        }
        Ok(answer)
    }

    /// Spreads a load over the VMs of a group that answer; takes it from the others.
    async fn load(&mut self, load: &SetLoad) -> Result<(), StepError> {
        let group = self.names.get(&load.node_group)?;
        let vms = self.client.json(&Method::GET, "/_sim/vms", None).await?;
        let (mut bearing, mut idle) = (Vec::new(), Vec::new());
        for vm in vms.as_array().into_iter().flatten() {
            let id = vm["id"].as_str().unwrap_or_default();
            if vm["nodeGroup"] != group.as_str() {
                continue;
            }
            let list = match vm["reachable"].as_bool() {
                Some(true) => &mut bearing,
                _ => &mut idle,
            };
            list.push(id);
        }
        if bearing.is_empty() {
            let reason = format!("no VM of {} answers", load.node_group);
            return Err(StepError::Unmet(reason));
        }
        let count = bearing.len() as u64;
        let share =
            |total: u64, index: usize| total / count + u64::from((index as u64) < total % count);
        let shares = bearing.iter().enumerate().map(|(index, id)| {
            let cpu = share(load.cpu_millis, index);
            let memory = share(load.memory_kib, index);
            (*id, json!({"cpuMillis": cpu, "memoryKib": memory}))
        });
        let nothing = || json!({"cpuMillis": 0, "memoryKib": 0});
        let all: Vec<_> = shares
            .chain(idle.iter().map(|id| (*id, nothing())))
            .collect();
        for (id, body) in all {
            let path = format!("/_sim/vms/{id}/load");
            self.client.json(&Method::PUT, &path, Some(&body)).await?;
        }
        Ok(())
    }

    /// Takes in what has happened.
    async fn follow(&mut self) -> Result<(), StepError> {
        for line in self.client.history(self.next).await? {
            let happening: Value = serde_json::from_str(&line).unwrap_or_default();
            if let Some(sequence) = happening["sequence"].as_u64() {
                self.next = sequence;
            }
            self.history.push(line);
        }
        Ok(())
    }

    async fn now(&self) -> Result<i64, StepError> {
        let clock = self.client.json(&Method::GET, "/_sim/clock", None).await?;
        Ok(milliseconds(&clock))
    }

    /// Advances to the next event, or by `limit` if nothing happens. Returns what the clock then reads.
    async fn jump(&self, limit: Duration) -> Result<i64, StepError> {
        let body = json!({"toNextEvent": true, "limitSeconds": limit.as_secs_f64()});
        self.move_clock(&body).await
    }

    async fn move_clock(&self, body: &Value) -> Result<i64, StepError> {
        let path = "/_sim/clock/advance";
        let answer = self.client.send(&Method::POST, path, Some(body)).await?;
        match answer.status.as_u16() {
            200 => Ok(milliseconds(&answer.json())),
            409 => Err(StepError::ClockRuns),
            status => Err(StepError::Unmet(format!(
                "{path} answers {status}: {}",
                answer.text()
            ))),
        }
    }

    async fn advance(
        &mut self,
        duration: Duration,
        throughout: &[Expectation],
    ) -> Result<(), StepError> {
        if throughout.is_empty() {
            self.move_clock(&json!({"seconds": duration.as_secs_f64()}))
                .await?;
            return Ok(());
        }
        let mut now = self.now().await?;
        let end = end_of(now, duration);
        loop {
            self.follow().await?;
            if let Err(reason) = self.check_all(throughout).await? {
                let left = duration_until(now, end);
                let left = humantime::format_duration(left);
                return Err(StepError::Unmet(format!("{left} before the end: {reason}")));
            }
            if now >= end {
                return Ok(());
            }
            now = self.jump(duration_until(now, end)).await?;
        }
    }

    async fn expect(
        &mut self,
        expectations: &[Expectation],
        within: Duration,
    ) -> Result<(), StepError> {
        // The work of what was asked for before is done first.
        self.move_clock(&json!({"seconds": 0})).await?;
        let mut now = self.now().await?;
        let end = end_of(now, within);
        loop {
            self.follow().await?;
            let Err(reason) = self.check_all(expectations).await? else {
                return Ok(());
            };
            if now >= end {
                return Err(StepError::Unmet(reason));
            }
            now = self.jump(duration_until(now, end)).await?;
        }
    }
}

fn name_in(body: &Map<String, Value>) -> &str {
    body.get("name").and_then(Value::as_str).unwrap_or_default()
}

/// The request for something whose id is known by `name` from then on.
fn creation(path: String, name: &str, body: &Map<String, Value>) -> Call {
    Call {
        method: String::from("POST"),
        path,
        body: Some(Value::Object(body.clone())),
        status: None,
        save: BTreeMap::from([(name.to_owned(), String::from("/id"))]),
    }
}

fn method(text: &str) -> Result<Method, StepError> {
    Method::from_bytes(text.as_bytes())
        .map_err(|_| StepError::Unmet(format!("`{text}` is not a method")))
}

/// What the clock reads, since the epoch.
fn milliseconds(clock: &Value) -> i64 {
    let text = clock["now"].as_str().unwrap_or_default();
    let format = &time::format_description::well_known::Rfc3339;
    time::OffsetDateTime::parse(text, format)
        .ok()
        .and_then(|at| i64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok())
        .unwrap_or(0)
}

fn end_of(now: i64, duration: Duration) -> i64 {
    now.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX))
}

fn duration_until(now: i64, end: i64) -> Duration {
    Duration::from_millis(u64::try_from(end.saturating_sub(now)).unwrap_or(0))
}

/// One happening in one line, for a reader.
pub fn brief(line: &str) -> String {
    let happening: Value = serde_json::from_str(line).unwrap_or_default();
    let text = |pointer: &str| happening.pointer(pointer).and_then(Value::as_str);
    let state = happening
        .pointer("/record/status")
        .or_else(|| happening.pointer("/record/observed"))
        .or_else(|| happening.pointer("/record/step"))
        .map(|state| {
            state
                .as_str()
                .map_or_else(|| state.to_string(), str::to_owned)
        });
    format!(
        "{} {} {} {} {}",
        text("/at").unwrap_or_default(),
        text("/kind").unwrap_or_default(),
        text("/change").unwrap_or_default(),
        text("/key").unwrap_or_default(),
        state.unwrap_or_default()
    )
    .trim_end()
    .to_owned()
}
