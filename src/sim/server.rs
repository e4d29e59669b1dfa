//! A server of a scenario's own: this program again, with a manual clock and the scenario's seed, on free
//! ports and in a temporary directory. A process of its own, so that no state is shared with a run before.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

const READY_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("cannot start a server: {0}")]
    Start(#[from] std::io::Error),
    #[error("the server did not become ready; it said: {0}")]
    NotReady(String),
}

/// Ends when dropped.
pub struct Server {
    /// `http://127.0.0.1:PORT`.
    pub url: String,
    _child: Child,
    _directory: tempfile::TempDir,
}

impl Server {
    pub async fn start(seed: u64) -> Result<Server, ServerError> {
        let directory = tempfile::tempdir()?;
        let free = "127.0.0.1:0";
        let mut child = Command::new(std::env::current_exe()?)
            .arg("serve")
            .args(["--time-scale", "manual", "--seed", &seed.to_string()])
            .args([
                "--listen-http",
                free,
                "--listen-kubernetes",
                free,
                "--listen-etcd",
                free,
            ])
            .args(["--public-host", "127.0.0.1"])
            .arg("--data-dir")
            .arg(directory.path())
            .env_remove("CKE_STORE")
            .env_remove("CKE_CONFIG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut said = String::new();
        let mut url = None;
        if let Some(stdout) = child.stdout.take() {
            let mut lines = BufReader::new(stdout).lines();
            let reading = async {
                while let Ok(Some(line)) = lines.next_line().await {
                    if let Some(found) = line.strip_prefix("export API_HOST=") {
                        url = Some(found.to_owned());
                    }
                    if line.starts_with("ready") {
                        return true;
                    }
                    said.push_str(&line);
                    said.push('\n');
                }
                false
            };
            let ready = tokio::time::timeout(READY_TIMEOUT, reading).await;
            if !ready.unwrap_or(false) {
                url = None;
            }
        }
        match url {
            Some(url) => Ok(Server {
                url,
                _child: child,
                _directory: directory,
            }),
            None => Err(ServerError::NotReady(said)),
        }
    }
}
