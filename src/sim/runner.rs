//! Runs a scenario against a server, step by step. The first step that fails is the last.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use serde_json::{Map, Value, json};

use super::client::{Client, ClientError};
use super::scenario::{
    AnswerIs, Call, ClusterIs, Expectation, HasHappened, Hold, InvariantsHold, NodeGroupIs,
    Scenario, Step,
};

/// Happenings shown when a step fails; the newest.
const SHOWN: usize = 40;

#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error(transparent)]
    Client(#[from] ClientError),
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
    client: Client,
    /// What `${name}` stands for.
    names: BTreeMap<String, String>,
    history: Vec<String>,
    /// How much of the history was there when the last step that expects ended.
    judged: usize,
    next: u64,
}

impl Runner {
    pub fn new(client: Client, organisation: &str) -> Runner {
        let names = BTreeMap::from([(String::from("org"), organisation.to_owned())]);
        Runner {
            client,
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
            let path = String::from("/v4/kubernetes/organisations/${org}/clusters");
            self.create(path, body, "").await?;
        } else if let Some(group) = &step.create_node_group {
            let cluster = self.name(&group.cluster)?;
            let path =
                format!("/v4/kubernetes/organisations/${{org}}/clusters/{cluster}/node-groups");
            let prefix = format!("{}.", group.cluster);
            self.create(path, &group.body, &prefix).await?;
        } else if let Some(call) = &step.call {
            self.call(call).await?;
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

    async fn create(
        &mut self,
        path: String,
        body: &Map<String, Value>,
        prefix: &str,
    ) -> Result<(), StepError> {
        let name = body.get("name").and_then(Value::as_str).unwrap_or_default();
        let call = Call {
            method: String::from("POST"),
            path,
            body: Some(Value::Object(body.clone())),
            status: None,
            save: BTreeMap::from([(format!("{prefix}{name}"), String::from("/id"))]),
        };
        self.call(&call).await
    }

    async fn call(&mut self, call: &Call) -> Result<(), StepError> {
        let path = self.fill(&call.path)?;
        let body = call
            .body
            .as_ref()
            .map(|body| self.fill_all(body))
            .transpose()?;
        let method = Method::from_bytes(call.method.as_bytes())
            .map_err(|_| StepError::Unmet(format!("`{}` is not a method", call.method)))?;
        let answer = self.client.send(&method, &path, body.as_ref()).await?;
        let status = answer.status.as_u16();
        let as_wanted = match call.status {
            Some(wanted) => status == wanted,
            None => answer.status.is_success(),
        };
        if !as_wanted {
            let wanted = call
                .status
                .map_or(String::from("a success"), |it| it.to_string());
            return Err(StepError::Unmet(format!(
                "{method} {path} answers {status}, not {wanted}: {}",
                answer.text()
            )));
        }
        let answer = answer.json();
        for (name, pointer) in &call.save {
            let value = answer.pointer(pointer).ok_or_else(|| {
                StepError::Unmet(format!(
                    "nothing at {pointer} in the answer of {path}: {answer}"
                ))
            })?;
            let text = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            self.names.insert(name.clone(), text);
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

    /// The first that is not met, and why.
    async fn check_all(
        &self,
        expectations: &[Expectation],
    ) -> Result<Result<(), String>, StepError> {
        for expectation in expectations {
            let checked = match expectation {
                Expectation::Cluster(wanted) => self.check_cluster(wanted).await?,
                Expectation::NodeGroup(wanted) => self.check_node_group(wanted).await?,
                Expectation::Answer(wanted) => self.check_answer(wanted).await?,
                Expectation::Happened(wanted) => self.check_happened(wanted),
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

    async fn check_cluster(&self, wanted: &ClusterIs) -> Result<Result<(), String>, StepError> {
        let id = self.name(&wanted.cluster)?;
        let path = self.fill(&format!(
            "/v4/kubernetes/organisations/${{org}}/clusters/{id}"
        ))?;
        let answer = self.client.send(&Method::GET, &path, None).await?;
        let found = match answer.status.as_u16() {
            404 => String::from("DELETED"),
            _ => answer.json()["status"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
        };
        Ok(if found == wanted.status {
            Ok(())
        } else {
            Err(format!(
                "cluster {} is {found}, not {}",
                wanted.cluster, wanted.status
            ))
        })
    }

    async fn check_node_group(
        &self,
        wanted: &NodeGroupIs,
    ) -> Result<Result<(), String>, StepError> {
        let group = &wanted.node_group;
        let cluster = group.split('.').next().unwrap_or_default();
        let (cluster, id) = (self.name(cluster)?, self.name(group)?);
        let path = self.fill(&format!(
            "/v4/kubernetes/organisations/${{org}}/clusters/{cluster}/node-groups/{id}"
        ))?;
        let answer = self.client.send(&Method::GET, &path, None).await?;
        let found = answer.json();
        let status = match answer.status.as_u16() {
            404 => "DELETED",
            _ => found["status"].as_str().unwrap_or_default(),
        };
        if let Some(wanted) = wanted.status.as_deref().filter(|wanted| *wanted != status) {
            return Ok(Err(format!("node group {group} is {status}, not {wanted}")));
        }
        let count = found["currentNodeCount"].as_u64();
        if wanted.current_node_count.is_some() && count != wanted.current_node_count {
            let wanted = wanted.current_node_count.unwrap_or_default();
            let count = count.map_or(String::from("no"), |count| count.to_string());
            return Ok(Err(format!(
                "node group {group} has {count} nodes, not {wanted}"
            )));
        }
        Ok(Ok(()))
    }

    async fn check_answer(&self, wanted: &AnswerIs) -> Result<Result<(), String>, StepError> {
        let path = self.fill(&wanted.answer)?;
        let answer = self.client.send(&Method::GET, &path, None).await?;
        let status = answer.status.as_u16();
        if status != wanted.status.unwrap_or(200) {
            return Ok(Err(format!("{path} answers {status}: {}", answer.text())));
        }
        let body = answer.json();
        for (pointer, value) in &wanted.values {
            let value = self.fill_all(value)?;
            let found = body.pointer(pointer);
            if found != Some(&value) {
                let found = found.map_or(String::from("nothing"), Value::to_string);
                return Ok(Err(format!("{path} has {found} at {pointer}, not {value}")));
            }
        }
        Ok(Ok(()))
    }

    fn check_happened(&self, wanted: &HasHappened) -> Result<(), String> {
        let since = &self.history[self.judged.min(self.history.len())..];
        let matching = since.iter().filter(|line| {
            let happening: Value = serde_json::from_str(line).unwrap_or_default();
            happening["kind"] == wanted.happened.as_str()
                && wanted
                    .values
                    .iter()
                    .all(|(pointer, value)| happening.pointer(pointer) == Some(value))
        });
        let found = matching.count();
        if found < wanted.times {
            return Err(format!(
                "{} {} with {} happened, not {}",
                found,
                wanted.happened,
                json!(wanted.values),
                wanted.times
            ));
        }
        Ok(())
    }

    async fn check_invariants(&self) -> Result<Result<(), String>, StepError> {
        let broken = self
            .client
            .json(&Method::GET, "/_sim/invariants", None)
            .await?;
        Ok(if broken == json!([]) {
            Ok(())
        } else {
            Err(format!("broken invariants: {broken}"))
        })
    }

    fn name(&self, name: &str) -> Result<String, StepError> {
        let found = self.names.get(name).cloned();
        found.ok_or_else(|| StepError::Unmet(format!("nothing was created or saved as `{name}`")))
    }

    /// Replaces every `${name}`.
    fn fill(&self, text: &str) -> Result<String, StepError> {
        let mut filled = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            filled.push_str(before);
            let Some((name, after)) = after.split_once('}') else {
                return Err(StepError::Unmet(format!(
                    "`${{` without an end in `{text}`"
                )));
            };
            filled.push_str(&self.name(name)?);
            rest = after;
        }
        filled.push_str(rest);
        Ok(filled)
    }

    fn fill_all(&self, value: &Value) -> Result<Value, StepError> {
        Ok(match value {
            Value::String(text) => Value::String(self.fill(text)?),
            Value::Array(items) => items
                .iter()
                .map(|item| self.fill_all(item))
                .collect::<Result<_, _>>()?,
            Value::Object(object) => object
                .iter()
                .map(|(key, item)| Ok((key.clone(), self.fill_all(item)?)))
                .collect::<Result<Map<_, _>, StepError>>()?
                .into(),
            other => other.clone(),
        })
    }
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
