//! The server that is measured.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::http::parse;

/// An API token that every fresh server knows.
const TOKEN: &str = "cke-seed-api-token";

/// A `cke serve` on a clock by hand. Killed when dropped.
pub struct Server {
    process: Child,
    /// `http://HOST:PORT`.
    api: String,
    etcd: String,
    pub organisation: String,
    _directory: tempfile::TempDir,
}

/// What the process has taken so far.
pub struct Figures {
    pub cpu: Duration,
    pub resident_mib: u64,
    pub peak_mib: u64,
    /// Writes of the store's journal that it waited for.
    pub fsyncs: u64,
}

impl Server {
    pub fn start() -> Server {
        let binary = std::env::var_os("CKE_SCALE_BINARY")
            .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_cke")), PathBuf::from);
        let directory = match std::env::var_os("CKE_SCALE_DIRECTORY") {
            Some(parent) => tempfile::tempdir_in(parent),
            None => tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")),
        };
        let directory = directory.expect("a temporary directory");
        let mut command = Command::new(binary);
        command.args(["serve", "--time-scale", "manual", "--data-dir"]);
        command.arg(directory.path().join("data"));
        for listener in ["--listen-http", "--listen-kubernetes", "--listen-etcd"] {
            command.args([listener, "127.0.0.1:0"]);
        }
        command.stdout(Stdio::piped());
        let mut process = command.spawn().expect("the server starts");
        let lines = BufReader::new(process.stdout.take().expect("its standard output"));
        let (mut api, mut etcd, mut organisation) = (None, None, None);
        for line in lines.lines().map_while(Result::ok) {
            let exported = line.trim().strip_prefix("export ");
            match exported.and_then(|line| line.split_once('=')) {
                Some(("API_HOST", url)) => api = Some(url.to_owned()),
                Some(("CKE_ETCD", url)) => etcd = Some(url.to_owned()),
                Some(("CKE_ORG", id)) => organisation = Some(id.to_owned()),
                _ => {}
            }
            if line.contains("ready") {
                break;
            }
        }
        Server {
            process,
            api: api.expect("the server says where its API is"),
            etcd: etcd.expect("the server says where its etcd is"),
            organisation: organisation.expect("the server says whose clusters it has"),
            _directory: directory,
        }
    }

    pub fn base(&self) -> String {
        format!("/v4/kubernetes/organisations/{}", self.organisation)
    }

    /// The body of a success. However long it takes.
    pub fn ask(&self, method: &str, target: &str, body: &Value) -> Value {
        let body = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        let answer = parse(&exchange(&self.api, method, target, &body));
        assert!((200..300).contains(&answer.status), "{answer:#?}");
        match answer.body.as_str() {
            "" => Value::Null,
            _ => answer.json(),
        }
    }

    pub fn advance(&self, seconds: u64) {
        self.ask(
            "POST",
            "/_sim/clock/advance",
            &json!({ "seconds": seconds }),
        );
    }

    pub fn figures(&self) -> Figures {
        /// Of the kernel's clock in `/proc`, which Linux fixes for every machine.
        const TICKS_PER_SECOND: u64 = 100;
        let of = |file: &str| {
            let path = format!("/proc/{}/{file}", self.process.id());
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
        };
        let stat = of("stat");
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks: u64 = after_name
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(|ticks| ticks.parse::<u64>().expect("a number"))
            .sum();
        let status = of("status");
        let mib = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
            kib.unwrap_or(0) / 1024
        };
        Figures {
            cpu: Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND),
            resident_mib: mib("VmRSS:"),
            peak_mib: mib("VmHWM:"),
            fsyncs: self.fsyncs(),
        }
    }

    fn fsyncs(&self) -> u64 {
        const COUNTED: &str = "etcd_disk_wal_fsync_duration_seconds_count ";
        let metrics = exchange(&self.etcd, "GET", "/metrics", "");
        let counted = metrics.lines().find_map(|line| line.strip_prefix(COUNTED));
        counted
            .and_then(|count| count.trim().parse().ok())
            .expect("the server counts its fsyncs")
    }

    /// Ends it as an operator would.
    pub fn stop(mut self, patience: Duration) {
        let pid = self.process.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(sent.is_ok_and(|status| status.success()));
        let started = Instant::now();
        while started.elapsed() < patience {
            if let Ok(Some(status)) = self.process.try_wait() {
                assert!(status.success(), "{status}");
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the server does not end");
    }
}

/// One request, and the whole answer to it.
fn exchange(url: &str, method: &str, target: &str, body: &str) -> String {
    use std::io::{Read as _, Write as _};
    let address = url.strip_prefix("http://").expect("an http URL");
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Authorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = std::net::TcpStream::connect(address).expect("the server listens");
    stream.write_all(request.as_bytes()).expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
