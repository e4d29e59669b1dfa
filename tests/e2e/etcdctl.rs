//! etcdctl 3.5, against one endpoint.

use std::process::{Child, Command, Stdio};

use crate::command::{self, Said};

pub struct Etcdctl {
    endpoint: String,
    flags: Vec<String>,
}

impl Etcdctl {
    pub fn new(endpoint: &str) -> Etcdctl {
        Etcdctl::with(endpoint, Vec::new())
    }

    /// With more flags for every command, such as certificates.
    pub fn with(endpoint: &str, flags: Vec<String>) -> Etcdctl {
        Etcdctl {
            endpoint: endpoint.to_owned(),
            flags,
        }
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command::client("etcdctl");
        command
            .args(&self.flags)
            .args(arguments)
            .env("ETCDCTL_API", "3")
            .env("ETCDCTL_ENDPOINTS", &self.endpoint);
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Said {
        command::run(&mut self.command(arguments))
    }

    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> String {
        self.run(arguments).ok()
    }

    /// Runs with text on standard input, as `txn` takes it.
    #[track_caller]
    pub fn ok_with_input(&self, arguments: &[&str], input: &str) -> String {
        command::run_with_input(&mut self.command(arguments), input).ok()
    }

    /// Starts a command that goes on until it is killed.
    pub fn start(&self, arguments: &[&str]) -> Running {
        let child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcdctl starts");
        Running::new(child)
    }
}

/// A client that keeps talking. Killed when dropped.
pub struct Running {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Running {
    pub fn new(mut child: Child) -> Running {
        use std::io::BufRead;
        let stdout = child.stdout.take().expect("stdout is piped");
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let reader = std::io::BufReader::new(stdout);
            for line in reader.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Running { child, lines }
    }

    /// The next line that it prints.
    #[track_caller]
    pub fn line(&self) -> String {
        let timeout = std::time::Duration::from_secs(30);
        self.lines
            .recv_timeout(timeout)
            .unwrap_or_else(|error| panic!("no line: {error}"))
    }

    /// Whether it has printed a line that was not taken yet. Takes it.
    pub fn has_line(&self) -> bool {
        self.lines.try_recv().is_ok()
    }

    #[track_caller]
    pub fn lines(&self, count: usize) -> Vec<String> {
        (0..count).map(|_| self.line()).collect()
    }

    /// Types into its standard input.
    pub fn type_line(&mut self, text: &str) {
        use std::io::Write;
        let stdin = self.child.stdin.as_mut().expect("stdin is piped");
        writeln!(stdin, "{text}").expect("it reads its input");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
