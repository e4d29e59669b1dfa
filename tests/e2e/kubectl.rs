//! kubectl, with one cluster's kubeconfig.

use serde_json::Value;

use crate::command::{self, Said};

pub struct Kubectl {
    home: tempfile::TempDir,
}

impl Kubectl {
    pub fn new(kubeconfig: &str) -> Kubectl {
        let home = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(home.path().join("config"), kubeconfig).expect("the kubeconfig");
        Kubectl { home }
    }

    pub fn run(&self, arguments: &[&str]) -> Said {
        self.run_with_input(arguments, "")
    }

    pub fn run_with_input(&self, arguments: &[&str], input: &str) -> Said {
        let mut command = command::client("kubectl");
        command
            .args(arguments)
            .env("HOME", self.home.path())
            .env("KUBECONFIG", self.home.path().join("config"))
            .current_dir(self.home.path());
        command::run_with_input(&mut command, input)
    }

    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> String {
        self.run(arguments).ok()
    }

    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["-o", "json"]).collect();
        let stdout = self.ok(&arguments);
        serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}"))
    }

    /// `kubectl apply -f -`.
    #[track_caller]
    pub fn apply(&self, manifest: &str) -> String {
        self.run_with_input(&["apply", "-f", "-"], manifest).ok()
    }
}
