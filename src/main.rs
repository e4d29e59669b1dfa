//! The `cke` command.

use std::path::PathBuf;
use std::process::ExitCode;

use cke::config::{EtcdOptions, ServeOptions};
use cke::health::HealthOptions;
use cke::invoice::InvoiceOptions;
use cke::price::PriceOptions;
use cke::serve;
use cke::sim::SimOptions;
use clap::{Parser, Subcommand};

/// A put allocates about thirty times, most of it in the HTTP/2 stack, and frees on other threads: that takes a tenth
/// of the server's time with the C library's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Clever Kubernetes Engine on your machine: the real APIs, with time and failures under your control.
#[derive(Parser)]
#[command(name = "cke", version, disable_version_flag = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the whole platform: Clever Cloud's REST API, the clusters' Kubernetes APIs, Materia etcd
    Serve {
        /// TOML file with any of these options, and with users and organisations
        #[arg(long, env = "CKE_CONFIG", value_name = "FILE")]
        config: Option<PathBuf>,
        #[command(flatten)]
        options: Box<ServeOptions>,
    },
    /// Run Materia etcd alone: an etcd v3 server
    Etcd(Box<EtcdOptions>),
    /// Say what clusters of some shapes cost, or which is the cheapest that will do
    Price(PriceOptions),
    /// Ask a server what an organisation is to pay
    Invoice(InvoiceOptions),
    /// Ask a server whether it is well: the exit code is 0 if it is. For the health checks of containers
    Health(HealthOptions),
    /// Control a running simulation: its clock, its faults; or run scenarios
    Sim(Box<SimOptions>),
    /// Print the version
    Version,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Serve { config, options } => run_serve(config, *options),
        Command::Etcd(options) => run_etcd(*options),
        Command::Price(options) => options.run().map_err(|error| error.to_string()),
        Command::Invoice(options) => options.run().map_err(|error| error.to_string()),
        Command::Health(options) => options.run().map_err(|error| error.to_string()),
        Command::Sim(options) => options.run().map_err(|error| error.to_string()),
        Command::Version => {
            println!("cke {}", env!("CARGO_PKG_VERSION"));
            println!("etcd API {}", cke::etcd::VERSION);
            println!(
                "Kubernetes {}",
                cke::platform::Catalog::default().versions().join(", ")
            );
            Ok(())
        }
    };
    fdb::stop_network();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("cke: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run_etcd(options: EtcdOptions) -> Result<(), String> {
    let options = match &options.config_file {
        Some(path) => EtcdOptions::from_file(path).map_err(|error| error.to_string())?,
        None => options,
    };
    serve::etcd(options).map_err(|error| error.to_string())
}

fn run_serve(config: Option<PathBuf>, options: ServeOptions) -> Result<(), String> {
    let file = match config {
        Some(path) => ServeOptions::from_file(&path).map_err(|error| error.to_string())?,
        None => ServeOptions::default(),
    };
    serve::platform(options.resolve(file)).map_err(|error| error.to_string())
}
