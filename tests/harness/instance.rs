//! A server under test, and what can be done to it.
//!
//! Either the real program, which can be killed, stopped and continued, run on a full disk, and
//! given an old disk; or the same server within the test, on a store in fault mode with a disk
//! that is slow and fails. And either kind several times, on one store.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use cke::clock::Clock;
use cke::etcd::{EtcdConfig, Server};
use fdb::{Database, EmbeddedOptions, Faults, WriteHook, WriteStage};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;

/// Start-up, debug build, two busy cores.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// Short, so that idle watches hear of progress in a round.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(300);

/// The binary under test: the one that cargo built, or the one that `TEST_CKE` names.
fn binary() -> PathBuf {
    let built = env!("CARGO_BIN_EXE_cke").into();
    std::env::var_os("TEST_CKE").unwrap_or(built).into()
}

/// What kind of server.
#[derive(Clone, Debug)]
pub enum Kind {
    Program,
    /// Faults of the store, and how often a write takes up to [`SLOWEST_WRITE`] longer.
    Embedded {
        faults: Faults,
        slow_writes: f64,
    },
    /// Within the test as well, but on a store that other servers write to, too.
    Sharing {
        faults: Faults,
    },
    /// The real program, on a FoundationDB cluster.
    FoundationDb,
}

/// What the servers of a group share.
#[derive(Clone)]
enum Shared {
    Nothing,
    Database(Database),
    /// The flag `--store`.
    Store(String),
}

const SLOWEST_WRITE: Duration = Duration::from_millis(60);

/// Where clients find the server; `None` while it is down on purpose.
pub type Endpoint = watch::Receiver<Option<String>>;

pub struct Instance {
    kind: Kind,
    shared: Shared,
    directory: tempfile::TempDir,
    running: Option<Running>,
    endpoint: watch::Sender<Option<String>>,
    /// Starts so far: each gets a seed of its own.
    starts: u64,
}

enum Running {
    Program(Child),
    Embedded(Box<Embedded>),
}

struct Embedded {
    /// The server's own, if it shares none.
    database: Option<Database>,
    server: Server,
    disk: Arc<Disk>,
    shutdown: CancellationToken,
    serving: JoinHandle<()>,
}

/// The disk under the embedded store.
struct Disk {
    state: AtomicU8,
    slow_writes: f64,
    random: Mutex<ChaCha8Rng>,
}

const SOUND: u8 = 0;
/// The next write finds no space, before or after it has reached the disk.
const FULL: u8 = 1;
/// Nothing reaches it any more.
const GONE: u8 = 2;

impl Disk {
    fn write(&self, stage: WriteStage) -> std::io::Result<()> {
        match self.state.load(Ordering::SeqCst) {
            GONE if stage == WriteStage::Before => return Err(std::io::Error::other("crashed")),
            FULL if self.random.lock().random() => {
                return Err(std::io::ErrorKind::StorageFull.into());
            }
            _ => {}
        }
        if stage == WriteStage::Before {
            let mut random = self.random.lock();
            let slow = random.random::<f64>() < self.slow_writes;
            let share = random.random::<f64>();
            drop(random);
            if slow {
                // The committer's own thread: this is what a slow fsync does to it.
                std::thread::sleep(SLOWEST_WRITE.mul_f64(share));
            }
        }
        Ok(())
    }
}

/// Servers on one store.
pub struct Group {
    pub instances: Vec<Instance>,
    /// The database under them, if it can be killed.
    pub cluster: Option<Cluster>,
    _store: Option<tempfile::TempDir>,
}

impl Group {
    pub async fn new(kind: Kind, servers: usize) -> Group {
        let mut group = Group {
            instances: Vec::new(),
            cluster: None,
            _store: None,
        };
        let shared = match &kind {
            Kind::Program | Kind::Embedded { .. } => {
                assert_eq!(servers, 1, "a store of one's own");
                Shared::Nothing
            }
            Kind::Sharing { faults } => {
                let directory = tempfile::tempdir().expect("a temporary directory");
                let options = EmbeddedOptions {
                    fsync: false,
                    faults: Some(faults.clone()),
                    ..EmbeddedOptions::default()
                };
                let opened = Database::open_embedded(directory.path(), options).await;
                group._store = Some(directory);
                Shared::Database(opened.expect("the store opens"))
            }
            Kind::FoundationDb => {
                let cluster = Cluster::start().await;
                let store = cluster.store();
                group.cluster = Some(cluster);
                Shared::Store(store)
            }
        };
        let instance = || Instance::on(kind.clone(), shared.clone());
        group.instances = std::iter::repeat_with(instance).take(servers).collect();
        group
    }

    pub async fn kill(&mut self) {
        for instance in &mut self.instances {
            instance.kill().await;
        }
    }
}

impl Instance {
    pub fn new(kind: Kind) -> Instance {
        Instance::on(kind, Shared::Nothing)
    }

    fn on(kind: Kind, shared: Shared) -> Instance {
        Instance {
            kind,
            shared,
            directory: tempfile::tempdir().expect("a temporary directory"),
            running: None,
            endpoint: watch::Sender::new(None),
            starts: 0,
        }
    }

    pub fn endpoint(&self) -> Endpoint {
        self.endpoint.subscribe()
    }

    pub fn is_program(&self) -> bool {
        matches!(self.kind, Kind::Program | Kind::FoundationDb)
    }

    /// Whether it has a disk of its own, which can be full.
    pub fn has_disk(&self) -> bool {
        matches!(self.kind, Kind::Program | Kind::Embedded { .. })
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("stderr.log")
    }

    /// The end of what the program logged.
    pub fn logged(&self) -> String {
        const LAST: usize = 4_000;
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        let from = log.len().saturating_sub(LAST);
        log.get(from..).unwrap_or(&log).to_owned()
    }

    /// Starts the server and tells the clients of it when it is ready.
    pub async fn start(&mut self) {
        let endpoint = match self.kind.clone() {
            Kind::Program | Kind::FoundationDb => {
                let child = self.spawn(None);
                self.until_ready(child)
                    .await
                    .unwrap_or_else(|| panic!("the server does not start: {}", self.logged()))
            }
            Kind::Embedded {
                faults,
                slow_writes,
            } => self.open(faults, slow_writes).await,
            Kind::Sharing { .. } => self.join().await,
        };
        self.endpoint.send_replace(Some(endpoint));
    }

    /// Starts the program on a disk with little space left. False if it needs more to start.
    pub async fn start_on_full_disk(&mut self, left_bytes: u64) -> bool {
        let limit = largest_file(&self.data()) + left_bytes;
        let child = self.spawn(Some(limit));
        let endpoint = self.until_ready(child).await;
        let started = endpoint.is_some();
        if started {
            self.endpoint.send_replace(endpoint);
        }
        started
    }

    /// The program, not ready yet. No file of it may grow beyond the limit.
    pub fn spawn(&mut self, largest_file_bytes: Option<u64>) -> Child {
        self.starts += 1;
        let stderr = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log())
            .expect("the log can be written");
        let mut command = match largest_file_bytes {
            None => Command::new(binary()),
            Some(limit) => {
                // In blocks of 512 bytes.
                let limit = limit / 512;
                let script = format!("trap '' XFSZ; ulimit -f {limit}; exec \"$0\" \"$@\"");
                let mut shell = Command::new("sh");
                shell.args(["-c", &script]).arg(binary());
                shell
            }
        };
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CKE_") || text.starts_with("ETCD_") {
                command.env_remove(&name);
            }
        }
        let interval = format!("{}ms", PROGRESS_INTERVAL.as_millis());
        command
            .args(["etcd", "--listen-client-urls", "http://127.0.0.1:0"])
            .args(["--watch-progress-notify-interval", &interval])
            .arg("--data-dir")
            .arg(self.data())
            .args(match &self.shared {
                Shared::Store(store) => vec!["--store", store],
                Shared::Nothing | Shared::Database(_) => Vec::new(),
            })
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(if largest_file_bytes.is_some() {
                // The log is a file as well.
                Stdio::null()
            } else {
                stderr.into()
            })
            .kill_on_drop(true)
            .spawn()
            .expect("the program can be started")
    }

    /// Waits for the program's URL; `None` if it ends instead.
    async fn until_ready(&mut self, mut child: Child) -> Option<String> {
        let stdout = child.stdout.take().expect("it is piped");
        let mut lines = BufReader::new(stdout).lines();
        let ready = async {
            while let Ok(Some(line)) = lines.next_line().await {
                if line.starts_with("ready") {
                    let from = line.find("http")?;
                    return Some(line[from..].trim().to_owned());
                }
            }
            None
        };
        let url = tokio::time::timeout(READY_TIMEOUT, ready).await.ok()??;
        // It must never wait for a reader of what else it says.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        self.running = Some(Running::Program(child));
        Some(url)
    }

    async fn open(&mut self, faults: Faults, slow_writes: f64) -> String {
        self.starts += 1;
        let disk = Arc::new(Disk {
            state: AtomicU8::new(SOUND),
            slow_writes,
            random: Mutex::new(ChaCha8Rng::seed_from_u64(faults.seed ^ self.starts)),
        });
        let under = Arc::clone(&disk);
        let hook: WriteHook = Arc::new(move |stage| under.write(stage));
        let options = EmbeddedOptions {
            faults: Some(Faults {
                seed: faults.seed.wrapping_add(self.starts),
                ..faults
            }),
            write_hook: Some(hook),
            ..EmbeddedOptions::default()
        };
        let database = Database::open_embedded(&self.data(), options)
            .await
            .expect("the store opens");
        self.serve(database.clone(), Some(database), disk).await
    }

    /// A server on the store that the group shares.
    async fn join(&mut self) -> String {
        let Shared::Database(database) = self.shared.clone() else {
            panic!("there is no store to share");
        };
        let disk = Arc::new(Disk {
            state: AtomicU8::new(SOUND),
            slow_writes: 0.0,
            random: Mutex::new(ChaCha8Rng::seed_from_u64(0)),
        });
        self.serve(database, None, disk).await
    }

    async fn serve(&mut self, store: Database, own: Option<Database>, disk: Arc<Disk>) -> String {
        let config = EtcdConfig {
            watch_progress_notify_interval: PROGRESS_INTERVAL,
            shared_store: own.is_none(),
            ..EtcdConfig::default()
        };
        let server = Server::open(store, Clock::real(), config)
            .await
            .expect("the server opens");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn({
            let (server, shutdown) = (server.clone(), shutdown.clone());
            async move {
                server.serve(listener, shutdown).await.expect("it serves");
            }
        });
        self.running = Some(Running::Embedded(Box::new(Embedded {
            database: own,
            server,
            disk,
            shutdown,
            serving,
        })));
        format!("http://{address}")
    }

    /// The clients are told that it is down, and it dies at once, whatever it does.
    pub async fn kill(&mut self) {
        self.endpoint.send_replace(None);
        match self.running.take() {
            Some(Running::Program(mut child)) => {
                child.kill().await.expect("it can be killed");
            }
            Some(Running::Embedded(embedded)) => embedded.crash().await,
            None => {}
        }
    }

    /// From now on the embedded store's disk is full.
    pub fn fill_disk(&self) {
        if let Some(Running::Embedded(embedded)) = &self.running {
            embedded.disk.state.store(FULL, Ordering::SeqCst);
        }
    }

    pub async fn signal(&self, signal: &str) {
        if let Some(Running::Program(child)) = &self.running
            && let Some(pid) = child.id()
        {
            let mut kill = Command::new("kill");
            let sent = kill.args([signal, &pid.to_string()]).status().await;
            assert!(sent.is_ok_and(|sent| sent.success()), "cannot signal {pid}");
        }
    }

    /// What the disk holds at this instant. The program must be stopped.
    pub fn save_disk(&self, to: &Path) {
        copy(&self.data(), to);
    }

    /// Puts back what the disk once held. The program must be dead.
    pub fn restore_disk(&self, from: &Path) {
        std::fs::remove_dir_all(self.data()).expect("the data can be removed");
        copy(from, &self.data());
    }
}

impl Embedded {
    async fn crash(self) {
        self.disk.state.store(GONE, Ordering::SeqCst);
        self.serving.abort();
        // Aborted, or it had ended: both are fine.
        let _ = self.serving.await;
        self.shutdown.cancel();
        self.server.close().await;
        drop(self.server);
        if let Some(database) = self.database {
            database.close().await;
        }
    }
}

fn entries(directory: &Path) -> Vec<std::fs::DirEntry> {
    let entries = std::fs::read_dir(directory).expect("a directory");
    entries.map(|entry| entry.expect("readable")).collect()
}

fn largest_file(directory: &Path) -> u64 {
    let sizes = entries(directory).into_iter().map(|entry| {
        let metadata = entry.metadata().expect("readable");
        if metadata.is_dir() {
            largest_file(&entry.path())
        } else {
            metadata.len()
        }
    });
    sizes.max().unwrap_or(0)
}

/// Copies a directory, journals without the zeros that they end with.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in entries(from) {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy(&path, &target);
            continue;
        }
        let mut bytes = std::fs::read(&path).expect("readable");
        if path.extension().is_some_and(|extension| extension == "jnl") {
            let used = bytes.iter().rposition(|byte| *byte != 0);
            bytes.truncate(used.map_or(0, |last| last + 1));
        }
        std::fs::write(target, bytes).expect("writable");
    }
}
