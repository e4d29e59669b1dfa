//! The servers under measure, as processes.

use std::ffi::OsString;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cke::etcd::client::Client;
use rustix::process::{Pid, Signal, kill_process};
use tonic::transport::{Channel, Endpoint};

use crate::Failure;

/// How long a fresh server may take until it answers.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a server may take to end once it is asked to.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause between two looks at a process or a port.
const POLL: Duration = Duration::from_millis(2);
/// Connections at most, however many clients share them.
pub const MAX_CONNECTIONS: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    Cke,
    Etcd,
}

impl Peer {
    /// In the order in which they take turns.
    pub const BOTH: [Peer; 2] = [Peer::Cke, Peer::Etcd];

    pub fn name(self) -> &'static str {
        match self {
            Peer::Cke => "cke",
            Peer::Etcd => "etcd",
        }
    }

    /// The program, and the arguments that only it gets.
    fn program(self) -> Result<(PathBuf, Vec<OsString>), Failure> {
        match self {
            Peer::Cke => Ok((env!("CARGO_BIN_EXE_cke").into(), vec!["etcd".into()])),
            Peer::Etcd => {
                let peer_url = format!("http://127.0.0.1:{}", free_port()?);
                let arguments = [
                    "--log-level=error".to_owned(),
                    format!("--listen-peer-urls={peer_url}"),
                    format!("--initial-advertise-peer-urls={peer_url}"),
                    format!("--initial-cluster=default={peer_url}"),
                ];
                Ok((etcd_program()?, arguments.map(OsString::from).to_vec()))
            }
        }
    }
}

/// The etcd to compare with.
pub fn etcd_program() -> Result<PathBuf, Failure> {
    let program = std::env::var_os("CKE_BENCH_ETCD").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/clients/bin/etcd"),
        PathBuf::from,
    );
    if !program.exists() {
        return Err(format!(
            "no etcd at {}: run tests/install-clients, or name one in CKE_BENCH_ETCD",
            program.display()
        )
        .into());
    }
    Ok(program)
}

fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A running server with a directory of its own. Dropping it kills the process and removes the
/// directory.
pub struct Server {
    /// Where clients reach it.
    pub url: String,
    program: PathBuf,
    arguments: Vec<OsString>,
    child: Child,
    _directory: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts a server on an empty directory, and waits until it answers.
    pub async fn start(peer: Peer) -> Result<Server, Failure> {
        let server = Server::launch(peer, "http", &[])?;
        server
            .until_answers(Bytes::from_static(b"ready"), START_TIMEOUT)
            .await?;
        Ok(server)
    }

    /// Starts a server on an empty directory; `scheme` is that of its URL.
    pub fn launch(peer: Peer, scheme: &str, more: &[OsString]) -> Result<Server, Failure> {
        let directory = tempfile::tempdir()?;
        let url = format!("{scheme}://127.0.0.1:{}", free_port()?);
        let (program, mut arguments) = peer.program()?;
        arguments.push("--data-dir".into());
        arguments.push(directory.path().join("data").into());
        for flag in ["--listen-client-urls", "--advertise-client-urls"] {
            arguments.extend([flag.into(), OsString::from(&url)]);
        }
        arguments.extend_from_slice(more);
        Ok(Server {
            child: spawn(&program, &arguments)?,
            url,
            program,
            arguments,
            _directory: directory,
        })
    }

    /// Asks the process to end (SIGTERM), and waits until it has.
    pub async fn stop(&mut self) -> Result<ExitStatus, Failure> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM)?;
        let deadline = Instant::now() + STOP_TIMEOUT;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                return Err(format!("{} does not end", self.program.display()).into());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Starts the process again, on what it has stored, after [`Server::stop`].
    pub fn start_again(&mut self) -> Result<(), Failure> {
        self.child = spawn(&self.program, &self.arguments)?;
        Ok(())
    }

    /// Waits until a linearizable read of `key` is answered. Returns the value, if there is one.
    pub async fn until_answers(
        &self,
        key: Bytes,
        timeout: Duration,
    ) -> Result<Option<Bytes>, Failure> {
        let read = async {
            loop {
                if let Ok(client) = Client::connect(&self.url).await
                    && let Ok(found) = client.get(key.clone()).await
                {
                    return found.value.map(|kv| kv.value);
                }
                tokio::time::sleep(POLL).await;
            }
        };
        let late = |_| format!("{} does not answer", self.url);
        Ok(tokio::time::timeout(timeout, read).await.map_err(late)?)
    }

    /// Processor time that the process has spent, user and system; in steps of 10 ms.
    pub fn cpu(&self) -> Result<Duration, Failure> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let after_name = stat.rsplit(") ").next().unwrap_or_default();
        let fields: Vec<&str> = after_name.split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        Ok(Duration::from_millis(ticks * 10))
    }

    /// What the process has in memory now.
    pub fn memory(&self) -> Result<Memory, Failure> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let mib = |name: &str| {
            let lines = status.lines();
            let text = lines.filter_map(|line| line.strip_prefix(name)).next();
            let kib = text.and_then(|text| text.trim().strip_suffix(" kB"));
            let kib = kib.ok_or_else(|| format!("no {name} in the status of the process"))?;
            Ok::<_, Failure>(kib.parse::<f64>()? / 1024.0)
        };
        Ok(Memory {
            resident_mib: mib("VmRSS:")?,
            anonymous_mib: mib("RssAnon:")?,
        })
    }
}

/// In MiB.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// All that is resident.
    pub resident_mib: f64,
    /// Of that, what is not pages of files, which the system can take back.
    pub anonymous_mib: f64,
}

fn spawn(program: &Path, arguments: &[OsString]) -> std::io::Result<Child> {
    Command::new(program)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

/// A connection for each of so many clients, to the servers in turn; beyond [`MAX_CONNECTIONS`] they share them evenly.
pub async fn connect(servers: &[Server], clients: usize) -> Result<Vec<Channel>, Failure> {
    let mut connections = Vec::new();
    for server in servers.iter().cycle().take(clients.min(MAX_CONNECTIONS)) {
        let endpoint = Endpoint::from_shared(server.url.clone())?.tcp_nodelay(true);
        connections.push(endpoint.connect().await?);
    }
    Ok(connections.iter().cycle().take(clients).cloned().collect())
}

/// Processor time of all of them so far; see [`Server::cpu`].
pub fn cpu(servers: &[Server]) -> Result<Duration, Failure> {
    servers.iter().map(Server::cpu).sum()
}
