//! Runs a client and takes down what it says.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// No client may take longer: a hanging one fails its test, not the suite.
const TIMEOUT: Duration = Duration::from_secs(120);

#[derive(Debug)]
pub struct Said {
    /// For the message of a failure.
    command: String,
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Said {
    #[track_caller]
    pub fn code_is(self, code: i32) -> Said {
        assert_eq!(self.code, Some(code), "{} said {self:#?}", self.command);
        self
    }

    /// Standard output of a command that succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        self.code_is(0).stdout
    }

    /// Standard error of a command that failed as clients do.
    #[track_caller]
    pub fn failed(self) -> String {
        self.code_is(1).stderr
    }
}

/// Where `tests/install-clients` puts them.
pub fn clients() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".cache/clients/bin")
}

/// A client that `tests/install-clients` installs.
pub fn client(name: &str) -> Command {
    let path = clients().join(name);
    assert!(
        path.exists(),
        "{name} is not installed: run tests/install-clients"
    );
    Command::new(path)
}

/// Runs the command to its end, with nothing on standard input.
pub fn run(command: &mut Command) -> Said {
    run_with_input(command, "")
}

pub fn run_with_input(command: &mut Command, input: &str) -> Said {
    use std::io::Write;
    let words: Vec<_> = command
        .get_args()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let text = format!("{:?} {}", command.get_program(), words.join(" "));
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {text}: {error}"));
    // A client that does not read its input has it closed.
    let _ = child
        .stdin
        .take()
        .expect("stdin is piped")
        .write_all(input.as_bytes());
    let stdout = reader(child.stdout.take().expect("stdout is piped"));
    let stderr = reader(child.stderr.take().expect("stderr is piped"));
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("the child can be waited for") {
            break Some(status);
        }
        if started.elapsed() > TIMEOUT {
            let _ = child.kill();
            let _ = child.wait();
            break None;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let said = Said {
        code: status.and_then(|status| status.code()),
        stdout: stdout.join().expect("stdout is read"),
        stderr: stderr.join().expect("stderr is read"),
        command: text,
    };
    assert!(status.is_some(), "no end within {TIMEOUT:?}: {said:#?}");
    said
}

fn reader(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
