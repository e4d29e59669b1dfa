//! `cke sim`: the control API on the command line, and scenarios.
//!
//! A client like any other: it knows the REST and control APIs of a server, and nothing inside one.

mod ask;
mod check;
pub(crate) mod client;
mod clusters;
mod command;
mod expectation;
mod junit;
mod names;
mod runner;
mod scenario;
mod server;
mod world;

use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;
use futures::stream::{self, StreamExt as _};
use http::Method;
use http_body_util::BodyExt as _;

use crate::clever::account::{SEED_API_TOKEN, SEED_ORGANISATION_ID};

use ask::Ask;
use client::{Client, ClientError};
use command::{SimCommand, WorldCommand};
use runner::{Report, Runner};
use scenario::{Scenario, ScenarioError};
use server::{Server, ServerError};

#[derive(Debug, thiserror::Error)]
pub enum SimError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Scenario(#[from] ScenarioError),
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error("cannot write {path}: {source}")]
    Write {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("cannot read {path}: {source}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("cannot write JUnit XML: {0}")]
    Junit(#[from] quick_junit::SerializeError),
    #[error("cannot start the runtime: {0}")]
    Runtime(#[source] std::io::Error),
    #[error("{failed} of {count} scenarios failed")]
    Failed { failed: usize, count: usize },
}

/// Options of `cke sim`.
#[derive(Args, Clone, Debug)]
pub struct SimOptions {
    /// The server to control
    #[arg(
        long,
        env = "API_HOST",
        value_name = "URL",
        default_value = "http://127.0.0.1:8080",
        global = true
    )]
    url: String,
    #[command(subcommand)]
    command: SimCommand,
}

impl SimOptions {
    /// # Errors
    /// The server cannot be reached or refuses, or a scenario fails.
    pub fn run(self) -> Result<(), SimError> {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(SimError::Runtime)?
            .block_on(self.perform())
    }

    async fn perform(self) -> Result<(), SimError> {
        let client = Client::new(&self.url, SEED_API_TOKEN)?;
        let ask = self.command.ask();
        match (self.command, ask) {
            (
                SimCommand::Run {
                    scenarios,
                    server,
                    jobs,
                    junit,
                    history,
                },
                _,
            ) => run(&scenarios, server.as_deref(), jobs, junit, history).await,
            (_, None) => Ok(()),
            (SimCommand::Events { .. }, Some(ask)) => events(&client, &ask.path).await,
            (SimCommand::World { change }, Some(ask)) => match change {
                Some(WorldCommand::Snapshot { file }) => {
                    world::snapshot(&client, &ask.path, &file).await
                }
                Some(WorldCommand::Restore { file }) => {
                    world::restore(&client, &ask.path, &file).await
                }
                None | Some(WorldCommand::Reset { .. }) => send(&client, &ask).await,
            },
            (SimCommand::Invoices { html: true, .. }, Some(ask)) => {
                say(&client.text(&ask.method, &ask.path).await?);
                Ok(())
            }
            (_, Some(ask)) => send(&client, &ask).await,
        }
    }
}

async fn send(client: &Client, ask: &Ask) -> Result<(), SimError> {
    let answer = client
        .json(&ask.method, &ask.path, ask.body.as_ref())
        .await?;
    say(&format!("{answer:#}\n"));
    Ok(())
}

async fn events(client: &Client, path: &str) -> Result<(), SimError> {
    let mut body = client.open(&Method::GET, path, None).await?.into_body();
    let mut rest = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else {
            continue;
        };
        rest.extend_from_slice(&data);
        // Lines are told whole; what is after the last end of a line waits for more.
        let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') else {
            continue;
        };
        let lines: Vec<u8> = rest.drain(..=end).collect();
        for line in String::from_utf8_lossy(&lines).lines() {
            if let Some(data) = line.strip_prefix("data: ") {
                say(&format!("{data}\n"));
            }
        }
    }
    Ok(())
}

async fn run(
    paths: &[PathBuf],
    server: Option<&str>,
    jobs: Option<NonZeroUsize>,
    junit: Option<PathBuf>,
    history: Option<PathBuf>,
) -> Result<(), SimError> {
    // All are read before one is run.
    let scenarios = paths.iter().map(|path| Scenario::read(path));
    let scenarios: Vec<Scenario> = scenarios.collect::<Result<_, _>>()?;
    let jobs = match server {
        // Scenarios would see one another there.
        Some(_) => 1,
        None => jobs
            .or_else(|| std::thread::available_parallelism().ok())
            .map_or(1, NonZeroUsize::get),
    };
    let runs = scenarios.iter().map(|scenario| run_one(scenario, server));
    let mut runs = stream::iter(runs).buffered(jobs);
    let mut reports = Vec::new();
    while let Some(report) = runs.next().await {
        let report = report?;
        tell(&report);
        reports.push(report);
    }
    if let Some(path) = junit {
        write(path, &junit::write(&reports)?)?;
    }
    if let Some(path) = history {
        let lines = reports.iter().flat_map(|report| &report.history);
        let text: String = lines.map(|line| format!("{line}\n")).collect();
        write(path, &text)?;
    }
    let failed = reports.iter().filter(|report| !report.passed()).count();
    if failed > 0 {
        let count = reports.len();
        return Err(SimError::Failed { failed, count });
    }
    Ok(())
}

async fn run_one(scenario: &Scenario, server: Option<&str>) -> Result<Report, SimError> {
    let own = match server {
        Some(_) => None,
        None => Some(Server::start(scenario.seed).await?),
    };
    let url = own
        .as_ref()
        .map_or(server.unwrap_or_default(), |own| &own.url);
    let runner = Runner::new(Client::new(url, SEED_API_TOKEN)?, SEED_ORGANISATION_ID);
    Ok(runner.run(scenario).await)
}

fn tell(report: &Report) {
    let verdict = if report.passed() { "passed" } else { "FAILED" };
    say(&format!("{verdict}: {}\n", report.name));
    if !report.passed() && !report.description.is_empty() {
        say(&format!("  {}\n", report.description));
    }
    for step in &report.steps {
        if let Some(Err(reason)) = &step.outcome {
            say(&format!("  {}: {reason}\n", step.title));
        }
    }
}

fn write(path: PathBuf, text: &str) -> Result<(), SimError> {
    std::fs::write(&path, text).map_err(|source| SimError::Write { path, source })
}

/// Standard output may be a closed pipe: then nobody wants to know.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}
