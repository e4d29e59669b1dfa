//! `cke sim`: the control API on the command line, and scenarios.
//!
//! A client like any other: it knows the REST and control APIs of a server, and nothing inside one.

mod check;
pub(crate) mod client;
mod clusters;
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
use std::time::Duration;

use clap::{Args, Subcommand};
use futures::stream::{self, StreamExt as _};
use http::Method;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use crate::clever::account::{SEED_API_TOKEN, SEED_ORGANISATION_ID};

use client::{Client, ClientError};
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

#[derive(Clone, Debug, Subcommand)]
enum SimCommand {
    /// Say what the clock reads; or change how it runs
    Clock {
        /// `pause`, `resume`, `manual`, or simulated seconds per real second
        #[arg(value_name = "pause|resume|manual|FACTOR")]
        change: Option<String>,
    },
    /// Advance a clock that stands still
    Advance {
        /// How far, such as 90s or 1h; or `next`: until something happens
        #[arg(value_name = "DURATION|next", value_parser = advance)]
        by: Advance,
    },
    /// Show what happens, a line of JSON each
    Events {
        /// Only what has a greater number; only what is new, unless given
        #[arg(long, value_name = "N")]
        since: Option<u64>,
        /// End after what there is
        #[arg(long)]
        no_follow: bool,
    },
    /// List VMs, and what was done to them
    Vms {
        /// Only those of this cluster, by id
        #[arg(long, value_name = "ID")]
        cluster: Option<String>,
    },
    /// Do something to a VM
    Vm {
        /// Its id, or its name
        vm: String,
        /// The id of its cluster, where several VMs have the name
        #[arg(long, value_name = "ID")]
        cluster: Option<String>,
        #[command(subcommand)]
        deed: VmCommand,
    },
    /// List datacenters; or change what happens to one
    Datacenters {
        /// par-1, par-2 or par-3
        datacenter: Option<String>,
        #[arg(
            long,
            value_name = "up|lost|partitioned|degraded",
            requires = "datacenter"
        )]
        state: Option<String>,
        /// How much of its capacity new VMs can have
        #[arg(long, value_name = "PERCENT", requires = "datacenter")]
        capacity: Option<u32>,
        /// How long boots take: 100 is as usual
        #[arg(long, value_name = "PERCENT", requires = "datacenter")]
        boot_time: Option<u32>,
        /// So many of a thousand boots fail
        #[arg(long, value_name = "N", requires = "datacenter")]
        boot_failures: Option<u32>,
    },
    /// Change an organisation's quota
    Quota {
        /// The seed organisation unless given
        #[arg(long, value_name = "ORGANISATION", default_value = SEED_ORGANISATION_ID)]
        organisation: String,
        /// What is not given stays
        #[arg(long, value_name = "N")]
        vcpus: Option<u64>,
        #[arg(long, value_name = "GB")]
        ram: Option<u64>,
        /// Public addresses
        #[arg(long, value_name = "N")]
        ips: Option<u32>,
    },
    /// List the supported versions of Kubernetes; or let one come out
    Versions {
        /// This one, and all before it, are out from now on, such as 1.37
        #[arg(long, value_name = "VERSION")]
        newest: Option<String>,
        /// Whether clusters whose version is no longer supported are updated
        #[arg(long, value_name = "BOOL")]
        auto_upgrade: Option<bool>,
    },
    /// List the faults that are set; set or clear them
    Faults {
        #[command(subcommand)]
        change: Option<FaultCommand>,
    },
    /// Say whether the certificate of the clusters' APIs has expired; let it, or make it anew
    Certificates {
        #[arg(value_name = "expire|renew", value_parser = ["expire", "renew"])]
        change: Option<String>,
    },
    /// Say which world this is; or change it
    World {
        #[command(subcommand)]
        change: Option<WorldCommand>,
    },
    /// Say what is wrong with the platform's state
    Invariants,
    /// Run scenarios, each on a server of its own: the exit code is 0 if all of them passed
    Run {
        #[arg(value_name = "FILE", required = true)]
        scenarios: Vec<PathBuf>,
        /// On this server, whose clock stands still, instead
        #[arg(long, value_name = "URL")]
        server: Option<String>,
        /// How many at once, at most; as many as there are processors, unless given
        #[arg(long, value_name = "N", conflicts_with = "server")]
        jobs: Option<NonZeroUsize>,
        /// Write how each step went as JUnit XML
        #[arg(long, value_name = "FILE")]
        junit: Option<PathBuf>,
        /// Write everything that happened, a line of JSON each
        #[arg(long, value_name = "FILE")]
        history: Option<PathBuf>,
    },
}

#[derive(Clone, Debug, Subcommand)]
enum VmCommand {
    /// Power it off, for good
    Kill,
    /// Let it run and answer nothing
    Wedge,
    /// Let a wedged or flapping VM work again
    Recover,
    /// Let it come and go
    Flap {
        /// Such as 30s
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        down: Duration,
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        up: Duration,
    },
    /// Set what it uses on top of what runs in it; nothing, unless given
    Load {
        /// Thousandths of a vCPU
        #[arg(long, value_name = "MILLIS", default_value_t = 0)]
        cpu: u64,
        #[arg(long, value_name = "KIB", default_value_t = 0)]
        memory: u64,
    },
}

#[derive(Clone, Debug, Subcommand)]
enum FaultCommand {
    /// Let answers of the REST API fail, or come late
    Set {
        /// Such as /v4/kubernetes/organisations/*/clusters; `**` at the end is any number of segments
        path: String,
        /// Only requests with this method
        #[arg(long)]
        method: Option<String>,
        /// Answer with this status
        #[arg(long, value_name = "STATUS")]
        status: Option<u16>,
        /// The error's code
        #[arg(long)]
        code: Option<String>,
        /// The error's text
        #[arg(long)]
        message: Option<String>,
        /// How many requests it meets before it is over
        #[arg(long, value_name = "N")]
        times: Option<u64>,
        /// So many of a thousand requests are met
        #[arg(long, value_name = "N")]
        per_mille: Option<u32>,
        /// Hold requests up, such as 30s
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        latency: Option<Duration>,
        /// By the machine's clock, not by the simulated one
        #[arg(long, requires = "latency")]
        real: bool,
    },
    /// Clear one of the REST API, or all that can be cleared: killed VMs stay killed
    Clear { id: Option<String> },
}

#[derive(Clone, Debug, Subcommand)]
enum WorldCommand {
    /// Begin a new world, as on an empty store
    Reset {
        /// Of everything random in it; the present one, unless given
        #[arg(long, value_name = "N")]
        seed: Option<u64>,
    },
    /// Write the whole world to a file
    Snapshot { file: PathBuf },
    /// Put back the world of a file
    Restore { file: PathBuf },
}

#[derive(Clone, Debug)]
enum Advance {
    By(Duration),
    ToNextEvent,
}

fn advance(text: &str) -> Result<Advance, humantime::DurationError> {
    match text {
        "next" => Ok(Advance::ToNextEvent),
        text => humantime::parse_duration(text).map(Advance::By),
    }
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
        let send = async |method: Method, path: &str, body: Option<Value>| {
            let answer = client.json(&method, path, body.as_ref()).await?;
            say(&format!("{answer:#}\n"));
            Ok(())
        };
        match self.command {
            SimCommand::Clock { change } => match change.as_deref() {
                None => send(Method::GET, "/_sim/clock", None).await,
                Some(verb @ ("pause" | "resume")) => {
                    send(Method::POST, &format!("/_sim/clock/{verb}"), None).await
                }
                Some(scale) => {
                    send(Method::PUT, "/_sim/clock", Some(json!({"scale": scale}))).await
                }
            },
            SimCommand::Advance { by } => {
                let body = match by {
                    Advance::By(duration) => json!({"seconds": duration.as_secs_f64()}),
                    Advance::ToNextEvent => json!({"toNextEvent": true}),
                };
                send(Method::POST, "/_sim/clock/advance", Some(body)).await
            }
            SimCommand::Events { since, no_follow } => events(&client, since, !no_follow).await,
            SimCommand::Vms { cluster } => {
                send(Method::GET, &format!("/_sim/vms{}", of(cluster)), None).await
            }
            SimCommand::Vm { vm, cluster, deed } => {
                let path = |deed: &str| format!("/_sim/vms/{vm}/{deed}{}", of(cluster));
                match deed {
                    VmCommand::Kill => send(Method::POST, &path("kill"), None).await,
                    VmCommand::Wedge => send(Method::POST, &path("wedge"), None).await,
                    VmCommand::Recover => send(Method::POST, &path("recover"), None).await,
                    VmCommand::Flap { down, up } => {
                        let body =
                            json!({"downSeconds": down.as_secs(), "upSeconds": up.as_secs()});
                        send(Method::PUT, &path("flapping"), Some(body)).await
                    }
                    VmCommand::Load { cpu, memory } => {
                        let body = json!({"cpuMillis": cpu, "memoryKib": memory});
                        send(Method::PUT, &path("load"), Some(body)).await
                    }
                }
            }
            SimCommand::Datacenters {
                datacenter: Some(datacenter),
                state,
                capacity,
                boot_time,
                boot_failures,
            } => {
                let body = json!({
                    "state": state,
                    "capacityPercent": capacity,
                    "bootTimePercent": boot_time,
                    "bootFailuresPerMille": boot_failures,
                });
                let path = format!("/_sim/datacenters/{datacenter}");
                send(Method::PUT, &path, Some(body)).await
            }
            SimCommand::Datacenters { .. } => send(Method::GET, "/_sim/datacenters", None).await,
            SimCommand::Quota {
                organisation,
                vcpus,
                ram,
                ips,
            } => {
                let limits = json!({"vcpus": vcpus, "ramGb": ram, "ips": ips});
                let path = format!("/_sim/organisations/{organisation}/quota");
                send(Method::PUT, &path, Some(limits)).await
            }
            SimCommand::Versions {
                newest: None,
                auto_upgrade: None,
            } => send(Method::GET, "/_sim/versions", None).await,
            SimCommand::Versions {
                newest,
                auto_upgrade,
            } => {
                let body = json!({"newest": newest, "autoUpgrade": auto_upgrade});
                send(Method::PUT, "/_sim/versions", Some(body)).await
            }
            SimCommand::Faults { change } => match change {
                None => send(Method::GET, "/_sim/faults", None).await,
                Some(FaultCommand::Clear { id: None }) => {
                    send(Method::DELETE, "/_sim/faults", None).await
                }
                Some(FaultCommand::Clear { id: Some(id) }) => {
                    send(Method::DELETE, &format!("/_sim/faults/api/{id}"), None).await
                }
                Some(FaultCommand::Set {
                    path,
                    method,
                    status,
                    code,
                    message,
                    times,
                    per_mille,
                    latency,
                    real,
                }) => {
                    let body = json!({
                        "path": path,
                        "method": method,
                        "status": status,
                        "code": code,
                        "message": message,
                        "times": times,
                        "perMille": per_mille,
                        "latencySeconds": latency.map(|latency| latency.as_secs_f64()),
                        "latencyClock": if real { "real" } else { "simulated" },
                    });
                    send(Method::POST, "/_sim/faults/api", Some(body)).await
                }
            },
            SimCommand::Certificates { change } => match change.as_deref() {
                None => send(Method::GET, "/_sim/certificates", None).await,
                Some(change) => {
                    let body = json!({"expired": change == "expire"});
                    send(Method::PUT, "/_sim/certificates", Some(body)).await
                }
            },
            SimCommand::World { change } => match change {
                None => send(Method::GET, "/_sim/world", None).await,
                Some(WorldCommand::Reset { seed }) => {
                    let body = json!({"seed": seed});
                    send(Method::POST, "/_sim/world/reset", Some(body)).await
                }
                Some(WorldCommand::Snapshot { file }) => world::snapshot(&client, &file).await,
                Some(WorldCommand::Restore { file }) => world::restore(&client, &file).await,
            },
            SimCommand::Invariants => send(Method::GET, "/_sim/invariants", None).await,
            SimCommand::Run {
                scenarios,
                server,
                jobs,
                junit,
                history,
            } => run(&scenarios, server.as_deref(), jobs, junit, history).await,
        }
    }
}

/// The query that chooses a cluster.
fn of(cluster: Option<String>) -> String {
    cluster.map_or(String::new(), |cluster| format!("?cluster={cluster}"))
}

async fn events(client: &Client, since: Option<u64>, follow: bool) -> Result<(), SimError> {
    let since = since.map_or(String::new(), |since| format!("since={since}&"));
    let path = format!("/_sim/events?{since}follow={follow}");
    let mut body = client.open(&Method::GET, &path, None).await?.into_body();
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
