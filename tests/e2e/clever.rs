//! The clever CLI, with a configuration directory of its own.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

use crate::command::{self, Said};
use crate::harness::Cke;

pub struct Clever {
    home: tempfile::TempDir,
    environment: Vec<(String, String)>,
}

impl Clever {
    /// As the seed user, with the feature `k8s` on.
    pub fn new(cke: &Cke) -> Clever {
        let clever = Clever::fresh(cke);
        let directory = clever.home.path().join("clever-cloud");
        std::fs::create_dir_all(&directory).expect("a configuration directory");
        std::fs::write(
            directory.join("clever-tools-experimental-features.json"),
            r#"{"k8s":true}"#,
        )
        .expect("the features can be written");
        clever
    }

    /// As the seed user, just installed.
    pub fn fresh(cke: &Cke) -> Clever {
        let names = [
            "API_HOST",
            "AUTH_BRIDGE_HOST",
            "CONSOLE_URL",
            "CLEVER_TOKEN",
            "CLEVER_SECRET",
        ];
        let environment = names
            .iter()
            .map(|name| ((*name).to_owned(), cke.exports[*name].clone()))
            .collect();
        Clever {
            home: tempfile::tempdir().expect("a temporary directory"),
            environment,
        }
    }

    pub fn with(mut self, name: &str, value: &str) -> Clever {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn without(mut self, name: &str) -> Clever {
        self.environment.retain(|(known, _)| known != name);
        self
    }

    /// A line for `sh`, which finds all clients on its path.
    pub fn shell(&self, line: &str, environment: &BTreeMap<String, String>) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        self.surround(&mut command);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let directories = std::iter::once(command::clients()).chain(std::env::split_paths(&path));
        let path = std::env::join_paths(directories).expect("a search path");
        command.envs(environment).env("PATH", path);
        command
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command::client("clever");
        command.args(arguments);
        self.surround(&mut command);
        command
    }

    fn surround(&self, command: &mut Command) {
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.home.path())
            .env("XDG_CONFIG_HOME", self.home.path())
            .env("NO_COLOR", "1")
            .env("NO_UPDATE_NOTIFIER", "1")
            // Nothing may open a browser.
            .env("BROWSER", "true")
            .envs(self.environment.iter().cloned())
            .current_dir(self.home.path());
    }

    pub fn run(&self, arguments: &[&str]) -> Said {
        command::run(&mut self.command(arguments))
    }

    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> String {
        self.run(arguments).ok()
    }

    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["-F", "json"]).collect();
        let stdout = self.ok(&arguments);
        serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}"))
    }

    #[track_caller]
    pub fn failed(&self, arguments: &[&str]) -> String {
        self.run(arguments).failed()
    }
}
