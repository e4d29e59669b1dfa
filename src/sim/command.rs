//! What can be said on the command line of `cke sim`.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::clever::account::SEED_ORGANISATION_ID;
use crate::platform::shape::Shape;

#[derive(Clone, Debug, Subcommand)]
pub enum SimCommand {
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
    /// Show a VM, or do something to it
    Vm {
        /// Its id, or its name
        vm: String,
        /// The id of its cluster, where several VMs have the name
        #[arg(long, value_name = "ID")]
        cluster: Option<String>,
        #[command(subcommand)]
        deed: Option<VmCommand>,
    },
    /// List volumes; or say how much of one is written
    Volumes {
        /// Its id
        #[arg(requires = "used")]
        volume: Option<String>,
        #[arg(long, value_name = "BYTES", requires = "volume")]
        used: Option<u64>,
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
    /// Say what a unit of each resource costs, and from when on; or change it
    Rates {
        #[command(subcommand)]
        change: Option<RatesCommand>,
    },
    /// Say what clusters of some shapes cost at the server's rates; or which is the cheapest
    Price(PriceOptions),
    /// List what an organisation was given; or give it a credit
    Credits {
        /// The seed organisation unless given
        #[arg(long, value_name = "ORGANISATION", default_value = SEED_ORGANISATION_ID)]
        organisation: String,
        #[command(subcommand)]
        change: Option<CreditCommand>,
    },
    /// List what an organisation's months come to; or show the invoice of one, line by line
    Invoices {
        /// Such as 2026-01
        month: Option<String>,
        /// The seed organisation unless given
        #[arg(long, value_name = "ORGANISATION", default_value = SEED_ORGANISATION_ID)]
        organisation: String,
        /// As a page to be printed
        #[arg(long, requires = "month")]
        html: bool,
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
    /// Show the description of the control API, as an OpenAPI document
    Openapi,
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
pub enum VmCommand {
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
pub enum FaultCommand {
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
    /// List those of the REST API alone
    Api,
    /// Clear one of the REST API, or all that can be cleared: killed VMs stay killed
    Clear {
        id: Option<String>,
        /// All of the REST API, and no others
        #[arg(long, conflicts_with = "id")]
        api: bool,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub enum RatesCommand {
    /// Plan a change of rates instead of those that were planned before; none at all, unless it says what is
    /// to change
    Plan(RatesPlan),
}

/// Euro a month. What is not given stays as it is before.
#[derive(Args, Clone, Debug)]
pub struct RatesPlan {
    /// When it takes effect, such as 2026-03-01T00:00:00Z; now, unless given
    #[arg(long, value_name = "TIME")]
    pub from: Option<String>,
    /// Of workers and bundles, such as 2:4
    #[arg(long, value_name = "VCPU:GB", value_parser = vm_rates)]
    pub compute: Option<VmRates>,
    /// Of the VMs of control planes, such as 3:6
    #[arg(long, value_name = "VCPU:GB", value_parser = vm_rates)]
    pub control_plane: Option<VmRates>,
    /// Of a Service
    #[arg(long, value_name = "EURO")]
    pub load_balancer: Option<String>,
    /// Of a GB of a volume
    #[arg(long, value_name = "EURO")]
    pub storage_gb: Option<String>,
    /// Whether load balancers and storage cost nothing
    #[arg(long, value_name = "BOOL")]
    pub beta: Option<bool>,
}

/// As they are sent: what is an amount is the server's to say.
#[derive(Clone, Debug)]
pub struct VmRates {
    pub vcpu: String,
    pub ram_gb: String,
}

fn vm_rates(text: &str) -> Result<VmRates, &'static str> {
    let (vcpu, ram_gb) = text.split_once(':').ok_or("two amounts, such as 2:4")?;
    Ok(VmRates {
        vcpu: vcpu.to_owned(),
        ram_gb: ram_gb.to_owned(),
    })
}

#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct PriceOptions {
    /// Such as DEDICATED_COMPUTE:XS:3+web=M:3; several are compared
    #[arg(value_name = "SHAPE", required = true)]
    pub shapes: Vec<Shape>,
    /// At the rates of this instant instead of the present ones
    #[arg(long, value_name = "TIME")]
    pub at: Option<String>,
    #[command(subcommand)]
    pub command: Option<PriceCommand>,
}

#[derive(Clone, Debug, Subcommand)]
pub enum PriceCommand {
    /// The cheapest shape that has what is asked for, within what is left of an organisation's quota
    Cheapest {
        /// vCPU that the nodes have together, at least
        #[arg(long, value_name = "N", default_value_t = 0)]
        vcpus: u64,
        /// Memory that the nodes have together, at least
        #[arg(long, value_name = "GB", default_value_t = 0)]
        ram: u64,
        /// The control plane, and nodes with so much, are to be there with any one datacenter lost
        #[arg(long)]
        survive_datacenter: bool,
        /// Only of these topologies. May be repeated
        #[arg(long = "topology", value_name = "TOPOLOGY")]
        topologies: Vec<String>,
        /// Whatever the quota is, unless given
        #[arg(long, value_name = "ORGANISATION")]
        organisation: Option<String>,
        /// At the rates of this instant instead of the present ones
        #[arg(long, value_name = "TIME")]
        at: Option<String>,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub enum CreditCommand {
    /// Give a credit, once under each name
    Give {
        name: String,
        /// Euro, such as 25.50
        amount: String,
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub enum WorldCommand {
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
pub enum Advance {
    By(Duration),
    ToNextEvent,
}

fn advance(text: &str) -> Result<Advance, humantime::DurationError> {
    match text {
        "next" => Ok(Advance::ToNextEvent),
        text => humantime::parse_duration(text).map(Advance::By),
    }
}
