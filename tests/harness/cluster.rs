//! The FoundationDB cluster under several programs.
//!
//! `CKE_TEST_FDB_CLUSTER_FILE` names a cluster that is there already; nothing is done to it. `CKE_TEST_FDBSERVER` names a
//! program `fdbserver`, with `fdbcli` beside it: then each round has a cluster of one process to itself, which is killed
//! and stopped like everything else.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};

const CLUSTER_FILE: &str = "CKE_TEST_FDB_CLUSTER_FILE";
const FDBSERVER: &str = "CKE_TEST_FDBSERVER";

/// A new cluster takes orders within this time.
const CONFIGURED: Duration = Duration::from_secs(60);

/// A part of a cluster, and the cluster itself if it is the test's own.
pub struct Cluster {
    cluster_file: PathBuf,
    prefix: String,
    own: Option<Own>,
}

struct Own {
    program: PathBuf,
    directory: tempfile::TempDir,
    address: String,
    running: Child,
}

fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

impl Cluster {
    /// Whether there is one to test with.
    pub fn is_there() -> bool {
        variable(CLUSTER_FILE).is_some() || variable(FDBSERVER).is_some()
    }

    pub async fn start() -> Cluster {
        let nanos = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .expect("after 1970")
            .as_nanos();
        let prefix = format!("harness-{}-{nanos}", std::process::id());
        let own = match variable(FDBSERVER) {
            Some(program) => Some(Own::start(program.into()).await),
            None => None,
        };
        let cluster_file = match &own {
            Some(own) => own.cluster_file(),
            None => variable(CLUSTER_FILE).expect("a cluster is there").into(),
        };
        Cluster {
            cluster_file,
            prefix,
            own,
        }
    }

    /// What `--store` takes.
    pub fn store(&self) -> String {
        let path = self.cluster_file.display();
        format!("fdb://{path}?prefix={}", self.prefix)
    }

    pub fn can_be_killed(&self) -> bool {
        self.own.is_some()
    }

    /// kill -9, and a new start after `pause`.
    pub async fn kill(&mut self, pause: Duration) {
        if let Some(own) = &mut self.own {
            own.running.kill().await.expect("it can be killed");
            tokio::time::sleep(pause).await;
            own.running = own.spawn();
        }
    }

    pub async fn signal(&self, signal: &str) {
        if let Some(pid) = self.own.as_ref().and_then(|own| own.running.id()) {
            let mut kill = Command::new("kill");
            let sent = kill.args([signal, &pid.to_string()]).status().await;
            assert!(sent.is_ok_and(|sent| sent.success()), "cannot signal {pid}");
        }
    }
}

impl Own {
    async fn start(program: PathBuf) -> Own {
        let directory = tempfile::tempdir().expect("a temporary directory");
        // Free now; nobody else on this machine takes it within the next moments.
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = free.local_addr().expect("it is bound").to_string();
        drop(free);
        let line = format!("harness:harness@{address}\n");
        std::fs::write(directory.path().join("fdb.cluster"), line).expect("a file");
        let running = spawn(&program, directory.path(), &address);
        let own = Own {
            program,
            directory,
            address,
            running,
        };
        own.configure().await;
        own
    }

    fn cluster_file(&self) -> PathBuf {
        self.directory.path().join("fdb.cluster")
    }

    fn spawn(&self) -> Child {
        spawn(&self.program, self.directory.path(), &self.address)
    }

    async fn configure(&self) {
        let configured = Command::new(self.program.with_file_name("fdbcli"))
            .arg("-C")
            .arg(self.cluster_file())
            .args(["--timeout", &CONFIGURED.as_secs().to_string()])
            .args(["--exec", "configure new single ssd"])
            .stdin(Stdio::null())
            .output()
            .await
            .expect("fdbcli is beside fdbserver");
        let said = String::from_utf8_lossy(&configured.stdout);
        assert!(said.contains("Database created"), "{said}");
    }
}

fn spawn(program: &Path, directory: &Path, address: &str) -> Child {
    Command::new(program)
        .args(["-p", address, "-C"])
        .arg(directory.join("fdb.cluster"))
        .arg("-d")
        .arg(directory.join("data"))
        .arg("-L")
        .arg(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("fdbserver can be started")
}
