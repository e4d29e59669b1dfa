//! etcd's configuration file: YAML with the flags' names.
//!
//! As with etcd, a file is instead of flags and environment variables, not beside them. Names that only etcd knows are
//! named in the log. The sections `client-transport-security` and `peer-transport-security` hold the flags for TLS.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args as _, FromArgMatches as _};
use serde_json::{Map, Value};

use super::EtcdOptions;

#[derive(Debug, thiserror::Error)]
pub enum ConfigFileError {
    #[error("cannot read the configuration file {path}: {source}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the configuration file {path} is not valid: {reason}")]
    Invalid { path: PathBuf, reason: String },
}

/// Flags that are durations. etcd's file has them in nanoseconds.
const DURATIONS: &[&str] = &[
    "grpc-keepalive-interval",
    "grpc-keepalive-min-time",
    "grpc-keepalive-timeout",
    "keyspace-idle-timeout",
    "experimental-watch-progress-notify-interval",
    "watch-progress-notify-interval",
];

/// Sections, and what the flags' names have before the section's.
const SECTIONS: &[(&str, &str)] = &[
    ("client-transport-security", ""),
    ("peer-transport-security", "peer-"),
];

/// A setting as a flag has it; `None` if it says nothing.
fn text(name: &str, value: &Value) -> Result<Option<String>, String> {
    Ok(Some(match value {
        Value::Null => return Ok(None),
        Value::String(text) => text.clone(),
        Value::Bool(value) => value.to_string(),
        Value::Number(nanos) if DURATIONS.contains(&name) => {
            let nanos = nanos.as_u64();
            let nanos = nanos.ok_or_else(|| format!("{name}: expected a duration"))?;
            humantime::format_duration(Duration::from_nanos(nanos)).to_string()
        }
        Value::Number(number) => number.to_string(),
        Value::Array(values) => {
            let texts = values.iter().map(|value| text(name, value));
            let texts: Result<Vec<_>, _> = texts.collect();
            texts?.into_iter().flatten().collect::<Vec<_>>().join(",")
        }
        Value::Object(_) => return Err(format!("{name}: unexpected section")),
    }))
}

/// Every setting with its flag's name.
fn settings(file: Map<String, Value>) -> Result<Vec<(String, String)>, String> {
    let mut all = Vec::new();
    for (name, value) in file {
        let section = SECTIONS.iter().find(|(section, _)| *section == name);
        match (section, value) {
            (Some((_, before)), Value::Object(settings)) => {
                for (name, value) in settings {
                    let name = format!("{before}{name}");
                    let text = text(&name, &value)?;
                    all.extend(text.map(|text| (name, text)));
                }
            }
            (Some(_), Value::Null) => {}
            (_, value) => {
                let text = text(&name, &value)?;
                all.extend(text.map(|text| (name, text)));
            }
        }
    }
    Ok(all)
}

fn parse(written: &str) -> Result<EtcdOptions, String> {
    let file: Value = serde_saphyr::from_str(written).map_err(|error| error.to_string())?;
    let file = match file {
        Value::Null => Map::new(),
        Value::Object(file) => file,
        _ => return Err(String::from("expected names with values")),
    };
    let command = EtcdOptions::augment_args(clap::Command::new("cke etcd"))
        .no_binary_name(true)
        .mut_args(|argument| argument.env(None::<&'static str>));
    let is_flag = |name: &str| {
        let mut flags = command.get_arguments();
        flags.any(|flag| {
            let aliases = flag.get_all_aliases().unwrap_or_default();
            flag.get_long() == Some(name) || aliases.contains(&name)
        })
    };
    let (mut arguments, mut unknown) = (Vec::new(), Vec::new());
    for (name, value) in settings(file)? {
        if name != "config-file" && is_flag(&name) {
            arguments.push(format!("--{name}={value}"));
        } else {
            unknown.push(name);
        }
    }
    let matches = command.try_get_matches_from(arguments);
    let options = matches.and_then(|matches| EtcdOptions::from_arg_matches(&matches));
    let first_line = |error: clap::Error| {
        let text = error.to_string();
        let line = text.lines().next().unwrap_or_default();
        line.trim_start_matches("error: ").to_owned()
    };
    let mut options = options.map_err(first_line)?;
    options.unknown = unknown;
    Ok(options)
}

impl EtcdOptions {
    /// The options of a file; what it does not say is as by default.
    ///
    /// # Errors
    /// The file cannot be read, is not YAML, or has a value that the flag would not take.
    pub fn from_file(path: &Path) -> Result<EtcdOptions, ConfigFileError> {
        let written = std::fs::read_to_string(path).map_err(|source| ConfigFileError::Read {
            path: path.to_owned(),
            source,
        })?;
        parse(&written).map_err(|reason| ConfigFileError::Invalid {
            path: path.to_owned(),
            reason,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_what_flags_do() {
        let options = parse(
            "\
name: blue
data-dir: /var/lib/blue
listen-client-urls: http://127.0.0.1:1,https://127.0.0.1:2
advertise-client-urls: [\"http://a:1\", \"http://b:2\"]
max-request-bytes: 1000
quota-backend-bytes: -1
grpc-keepalive-min-time: 7000000000
grpc-keepalive-timeout: 30s
auto-compaction-retention: \"1\"
heartbeat-interval: 100
force-new-cluster: false
host-whitelist: \"*\"
proxy-something: on
client-transport-security:
  cert-file: server.pem
  client-cert-auth: true
peer-transport-security:
  auto-tls: true
",
        )
        .expect("valid");
        assert_eq!(options.name, "blue");
        assert_eq!(options.data_dir, Some(PathBuf::from("/var/lib/blue")));
        let ports = options.listen_client_urls.iter();
        let ports: Vec<_> = ports.map(|url| (url.https, url.address.port())).collect();
        assert_eq!(ports, [(false, 1), (true, 2)]);
        assert_eq!(options.advertise_client_urls, ["http://a:1", "http://b:2"]);
        assert_eq!(options.max_request_bytes, 1000);
        assert_eq!(options.limits.quota_backend_bytes, -1);
        let keepalive = &options.limits;
        assert_eq!(keepalive.grpc_keepalive_min_time, Duration::from_secs(7));
        assert_eq!(keepalive.grpc_keepalive_timeout, Duration::from_secs(30));
        assert_eq!(options.limits.auto_compaction_retention, "1");
        assert_eq!(options.tls.cert_file, Some(PathBuf::from("server.pem")));
        assert!(options.tls.client_cert_auth);
        assert_eq!(options.unused.heartbeat_interval.as_deref(), Some("100"));
        assert_eq!(options.unused.peer_auto_tls.as_deref(), Some("true"));
        assert!(options.unknown.contains(&String::from("proxy-something")));
    }

    #[test]
    fn nothing_is_all_defaults() {
        for written in ["", "# nothing\n", "client-transport-security:\n"] {
            let options = parse(written).expect("valid");
            assert_eq!(options.name, "default");
            assert_eq!(options.max_txn_ops, 128);
        }
    }

    #[test]
    fn what_a_flag_would_not_take_is_refused() {
        for (written, expected) in [
            ("- a\n", "expected names with values"),
            (
                "max-txn-ops: many\n",
                "invalid value 'many' for '--max-txn-ops <N>'",
            ),
            ("name:\n  a: b\n", "name: unexpected section"),
            ("grpc-keepalive-timeout: -1\n", "expected a duration"),
            (
                "listen-client-urls: ftp://x\n",
                "must start with http:// or https://",
            ),
            ("name: [\n", ""),
        ] {
            let refused = parse(written).expect_err("refused");
            assert!(refused.contains(expected), "{written}: {refused}");
        }
    }
}
