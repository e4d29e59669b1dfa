//! A running `cke`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::http::{self, Auth, Response};

pub const SEED_USER: &str = "user_5a5a5a5a-1b1b-4c4c-8d8d-9e9e9e9e9e9e";
pub const SEED_API_TOKEN: &str = "cke-seed-api-token";

/// A second user, alone in a second organisation.
pub const STRANGER_API_TOKEN: &str = "stranger-api-token";
pub const STRANGER_ORGANISATION: &str = "orga_11111111-2222-4333-8444-555555555555";

const STRANGER: &str = r#"
[[users]]
name = "Stranger"
email = "stranger@example.test"
id = "user_11111111-2222-4333-8444-666666666666"
token = "stranger-token"
secret = "stranger-secret"
api-token = "stranger-api-token"

[[organisations]]
name = "elsewhere"
id = "orga_11111111-2222-4333-8444-555555555555"
members = ["stranger@example.test"]
"#;

/// Start-up, debug build, two busy cores.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// How long any state may be waited for. At the suite's time scales everything takes seconds.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(90);

pub const FAST: &str = "200";
pub const MANUAL: &str = "manual";

/// A `cke serve`. Killed when dropped.
pub struct Cke {
    process: Process,
    directory: tempfile::TempDir,
    /// Flags that say where its data is, if not in its directory.
    store: Vec<String>,
    time_scale: String,
    /// What the `export` lines say.
    pub exports: BTreeMap<String, String>,
}

impl Cke {
    pub fn start(time_scale: &str) -> Cke {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let store = store(directory.path());
        Cke::start_on(directory, store, time_scale)
    }

    /// Another server on the same store, which several can share.
    pub fn start_beside(&self) -> Cke {
        assert!(on_foundationdb());
        let directory = tempfile::tempdir().expect("a temporary directory");
        Cke::start_on(directory, self.store.clone(), &self.time_scale)
    }

    /// The flags that say where its data is.
    pub fn store(&self) -> &[String] {
        &self.store
    }

    fn start_on(directory: tempfile::TempDir, store: Vec<String>, time_scale: &str) -> Cke {
        std::fs::write(directory.path().join("cke.toml"), STRANGER).expect("the configuration");
        let (process, exports) = serve(directory.path(), &store, time_scale, [0, 0, 0]);
        Cke {
            process,
            directory,
            store,
            time_scale: time_scale.to_owned(),
            exports,
        }
    }

    pub fn api(&self) -> &str {
        &self.exports["API_HOST"]
    }

    pub fn organisation(&self) -> &str {
        &self.exports["CKE_ORG"]
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts again what was killed: the same data, the same ports.
    pub fn restart(&mut self) {
        self.process.kill();
        let port = |name: &str| -> u16 {
            let url = &self.exports[name];
            let port = url.rsplit(':').next().and_then(|port| port.parse().ok());
            port.unwrap_or_else(|| panic!("{name} has no port: {url}"))
        };
        let ports = [port("API_HOST"), port("CKE_KUBERNETES"), port("CKE_ETCD")];
        let (process, exports) = serve(self.directory.path(), &self.store, &self.time_scale, ports);
        assert_eq!(exports, self.exports);
        self.process = process;
    }

    pub fn request(&self, method: &str, target: &str, body: Option<&str>) -> Response {
        let auth = Auth::Bearer(SEED_API_TOKEN);
        http::send(self.api(), method, target, auth, body)
    }

    /// A request under the seed organisation.
    pub fn kubernetes(&self, method: &str, path: &str, body: Option<&Value>) -> Response {
        let target = format!("/v4/kubernetes/organisations/{}{path}", self.organisation());
        let body = body.map(Value::to_string);
        self.request(method, &target, body.as_deref())
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        self.kubernetes("GET", path, None).ok()
    }

    /// Creates a cluster and returns its id.
    #[track_caller]
    pub fn create(&self, request: &Value) -> String {
        let cluster = self.kubernetes("POST", "/clusters", Some(request)).ok();
        text(&cluster["id"])
    }

    /// Creates a cluster of one worker-less control plane VM and waits until it is ACTIVE.
    #[track_caller]
    pub fn create_active(&self, name: &str) -> String {
        let id = self.create(&json!({"name": name}));
        self.wait_for(&format!("/clusters/{id}"), "ACTIVE");
        id
    }

    /// Waits until the resource has the status. A cluster or node group that fails is no longer
    /// waited for.
    #[track_caller]
    pub fn wait_for(&self, path: &str, status: &str) -> Value {
        self.wait_until(path, |body| match body["status"].as_str() {
            Some("FAILED") if status != "FAILED" => panic!("{path} failed: {body:#}"),
            found => found == Some(status),
        })
    }

    /// Waits until the answer to GET satisfies the predicate. Time by hand is advanced meanwhile.
    #[track_caller]
    pub fn wait_until(&self, path: &str, mut satisfied: impl FnMut(&Value) -> bool) -> Value {
        let started = Instant::now();
        loop {
            let body = self.get(path);
            if satisfied(&body) {
                return body;
            }
            assert!(
                started.elapsed() < SETTLE_TIMEOUT,
                "{path} is still {body:#}\n{}",
                self.activity(path)
            );
            self.pass_time(5);
        }
    }

    /// Waits until the resource is gone: 404, or DELETED.
    #[track_caller]
    pub fn wait_gone(&self, path: &str) {
        let started = Instant::now();
        loop {
            let answer = self.kubernetes("GET", path, None);
            if answer.status == 404 || answer.json()["status"] == "DELETED" {
                return;
            }
            assert!(
                started.elapsed() < SETTLE_TIMEOUT,
                "{path} is still there: {answer:#?}"
            );
            self.pass_time(5);
        }
    }

    fn pass_time(&self, seconds: u64) {
        if self.time_scale == MANUAL {
            self.advance(seconds);
        } else {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn advance(&self, seconds: u64) -> Value {
        let body = json!({ "seconds": seconds }).to_string();
        self.request("POST", "/_sim/clock/advance", Some(&body))
            .ok()
    }

    /// What happened to the cluster in the path, for a failure's message.
    fn activity(&self, path: &str) -> String {
        let mut parts = path.split('/').skip(2);
        match parts.next() {
            Some(id) => {
                let events = format!("/clusters/{id}/deployment-events?limit=1000");
                self.kubernetes("GET", &events, None).body
            }
            None => String::new(),
        }
    }

    /// Everything about the organisation that a refused request must leave alone.
    pub fn state(&self) -> Value {
        let all = "/clusters?status=TO_DEPLOY&status=DEPLOYING&status=ACTIVE&status=TO_REDEPLOY\
                   &status=REDEPLOYING&status=TO_UPGRADE&status=UPDATING&status=TO_DELETE\
                   &status=DELETING&status=DELETED&status=FAILED&status=TO_RECONCILE&status=RECONCILING";
        let clusters = self.get(all);
        let details: Vec<Value> = clusters
            .as_array()
            .expect("clusters are a list")
            .iter()
            .filter(|cluster| cluster["status"] != "DELETED")
            .map(|cluster| {
                let id = text(&cluster["id"]);
                json!({
                    "nodeGroups": self.get(&format!("/clusters/{id}/node-groups")),
                    "events": self.get(&format!("/clusters/{id}/deployment-events?limit=1000")),
                })
            })
            .collect();
        json!({"clusters": clusters, "details": details, "usage": self.get("/usage"), "quota": self.get("/quota")})
    }

    /// Nothing is broken. What is between two steps may look broken for an instant.
    #[track_caller]
    pub fn check_invariants(&self) {
        let started = Instant::now();
        loop {
            let broken = self.request("GET", "/_sim/invariants", None).ok();
            if broken == json!([]) {
                return;
            }
            assert!(
                started.elapsed() < Duration::from_secs(10),
                "broken invariants: {broken:#}"
            );
            self.pass_time(1);
        }
    }

    /// Every test ends with this: nothing is broken, and the server ends when asked to.
    #[track_caller]
    pub fn finish(mut self) {
        self.check_invariants();
        let status = self.process.terminate();
        assert!(status.success(), "{status}: {}", self.process.log());
    }
}

#[track_caller]
pub fn text(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("not a string: {value}"))
        .to_owned()
}

fn serve(
    directory: &Path,
    store: &[String],
    time_scale: &str,
    ports: [u16; 3],
) -> (Process, BTreeMap<String, String>) {
    let [http, kubernetes, etcd] = ports.map(|port| format!("127.0.0.1:{port}"));
    let mut command = cke();
    command
        .arg("serve")
        .arg("--data-dir")
        .arg(directory.join("data"))
        .arg("--config")
        .arg(directory.join("cke.toml"))
        .args(["--listen-http", &http])
        .args(["--listen-kubernetes", &kubernetes])
        .args(["--listen-etcd", &etcd])
        .args(["--time-scale", time_scale, "--seed", "1"])
        .args(store);
    let (process, said) = Process::start(command, directory);
    let exports = said
        .iter()
        .filter_map(|line| line.strip_prefix("export ")?.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    (process, exports)
}

/// Whether the servers of these tests keep their data in FoundationDB.
pub fn on_foundationdb() -> bool {
    std::env::var_os("CKE_TEST_FDB_CLUSTER_FILE").is_some()
}

/// The flags for the store: none, or a part of the FoundationDB cluster that `CKE_TEST_FDB_CLUSTER_FILE` names, named as
/// the directory.
fn store(directory: &Path) -> Vec<String> {
    let Some(cluster_file) = std::env::var_os("CKE_TEST_FDB_CLUSTER_FILE") else {
        return Vec::new();
    };
    let prefix = directory.file_name().expect("a name").to_string_lossy();
    let cluster_file = cluster_file.to_string_lossy();
    vec![
        String::from("--store"),
        format!("fdb://{cluster_file}?prefix={prefix}"),
    ]
}

/// The binary under test, in an environment that sets none of its options: the one that cargo built,
/// or the one that `TEST_CKE` names, such as an installed one.
pub fn cke() -> Command {
    let built = env!("CARGO_BIN_EXE_cke").into();
    let mut command = Command::new(std::env::var_os("TEST_CKE").unwrap_or(built));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CKE_") || text.starts_with("ETCD_") {
            command.env_remove(&name);
        }
    }
    command
}

/// A `cke etcd`. Killed when dropped.
pub struct CkeEtcd {
    process: Process,
    directory: tempfile::TempDir,
    scheme: &'static str,
    arguments: Vec<String>,
    port: u16,
    /// What it said before it was ready.
    pub said: Vec<String>,
}

impl CkeEtcd {
    pub fn start() -> CkeEtcd {
        CkeEtcd::start_with("http", &[])
    }

    /// With more flags, and a client URL of the scheme.
    pub fn start_with(scheme: &'static str, arguments: &[&str]) -> CkeEtcd {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let arguments: Vec<_> = arguments.iter().map(|&it| it.to_owned()).collect();
        let (process, said) = CkeEtcd::spawn(directory.path(), scheme, &arguments, 0);
        let ready = said.last().expect("it said that it is ready");
        let port = ready
            .rsplit(':')
            .next()
            .and_then(|port| port.trim_matches(['/', ' ']).parse().ok())
            .unwrap_or_else(|| panic!("no port in {ready:?}"));
        CkeEtcd {
            process,
            directory,
            scheme,
            arguments,
            port,
            said,
        }
    }

    fn spawn(
        directory: &Path,
        scheme: &str,
        arguments: &[String],
        port: u16,
    ) -> (Process, Vec<String>) {
        let url = format!("{scheme}://127.0.0.1:{port}");
        let mut command = cke();
        command
            .arg("etcd")
            .args(["--listen-client-urls", &url])
            .arg("--data-dir")
            .arg(directory.join("data"))
            .args(store(directory))
            .args(arguments);
        Process::start(command, directory)
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn endpoint(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    /// kill -9, and a new start on the same data.
    pub fn crash(&mut self) {
        self.process.kill();
        let (directory, port) = (self.directory.path(), self.port);
        self.process = CkeEtcd::spawn(directory, self.scheme, &self.arguments, port).0;
    }

    #[track_caller]
    pub fn finish(mut self) {
        let status = self.process.terminate();
        assert!(status.success(), "{status}: {}", self.process.log());
    }
}

struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts the command and waits for the line that starts with `ready`. Returns all lines up to
    /// that one.
    fn start(mut command: Command, directory: &Path) -> (Process, Vec<String>) {
        let log = directory.join("stderr.log");
        let stderr = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .expect("the log can be written");
        let mut child = command
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .expect("cke starts");
        let stdout = child.stdout.take().expect("stdout is piped");
        let process = Process { child, log };
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // Whoever waited may be gone; the pipe is read on, so that the server never blocks.
                let _ = sender.send(line);
            }
        });
        let mut said = Vec::new();
        let started = Instant::now();
        loop {
            let left = READY_TIMEOUT.saturating_sub(started.elapsed());
            match lines.recv_timeout(left) {
                Ok(line) => {
                    let ready = line.starts_with("ready");
                    said.push(line);
                    if ready {
                        return (process, said);
                    }
                }
                Err(error) => panic!("not ready: {error}; it said {said:?}\n{}", process.log()),
            }
        }
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and the end that follows.
    fn terminate(&mut self) -> ExitStatus {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(sent.is_ok_and(|sent| sent.success()), "cannot signal {pid}");
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("the child can be waited for") {
                return status;
            }
            assert!(
                started.elapsed() < Duration::from_secs(30),
                "it does not end on SIGTERM: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The end of what it logged.
    fn log(&self) -> String {
        const LAST_CHARS: usize = 8_000;
        let mut bytes = Vec::new();
        if let Ok(mut file) = std::fs::File::open(&self.log) {
            let _ = file.read_to_end(&mut bytes);
        }
        let text = String::from_utf8_lossy(&bytes);
        let skip = text.chars().count().saturating_sub(LAST_CHARS);
        text.chars().skip(skip).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- end of the server's log ---\n{}", self.log());
        }
    }
}
