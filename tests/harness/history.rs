//! What happened, as the clients saw it: the input of every check.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use etcd_proto::mvccpb::KeyValue;
use parking_lot::Mutex;

use crate::request::{Keys, KvAnswer, KvRequest, Op, OpAnswer};

/// Nanoseconds since the round began, on the monotonic clock.
pub type Nanos = u64;

#[derive(Clone, Debug)]
pub enum Request {
    Kv(KvRequest),
    /// Clients choose the ids, so that a grant whose outcome is unknown can be recognised.
    Grant {
        id: i64,
        ttl: i64,
    },
    Revoke {
        id: i64,
    },
    KeepAlive {
        id: i64,
    },
    Compact {
        revision: i64,
    },
}

#[derive(Clone, Debug)]
pub enum Answer {
    Kv(KvAnswer),
    /// Seconds.
    Granted {
        ttl: i64,
    },
    Revoked {
        revision: i64,
    },
    /// Seconds; 0 if there is no such lease.
    KeptAlive {
        ttl: i64,
    },
    Compacted,
}

#[derive(Clone, Debug)]
pub enum Outcome {
    Answered(Answer),
    /// It has not been done, for this reason.
    Refused(String),
    /// It has been done, or not, or will be.
    Unknown(String),
}

#[derive(Clone, Debug)]
pub struct Call {
    pub client: usize,
    pub called: Nanos,
    pub returned: Nanos,
    pub request: Request,
    pub outcome: Outcome,
}

impl Call {
    /// The request and the answer, if it is one of the key-value store.
    pub fn as_kv(&self) -> Option<(&KvRequest, &KvAnswer)> {
        match (&self.request, &self.outcome) {
            (Request::Kv(request), Outcome::Answered(Answer::Kv(answer))) => {
                Some((request, answer))
            }
            _ => None,
        }
    }
}

/// What one key became at one revision.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub key: Bytes,
    pub revision: i64,
    /// `None` for a deletion.
    pub kv: Option<KeyValue>,
}

#[derive(Clone, Debug)]
pub struct WatchEvent {
    pub change: Change,
    pub previous: Option<KeyValue>,
}

#[derive(Clone, Debug)]
pub struct Asked {
    pub keys: Keys,
    /// 0 for what comes from now on.
    pub start_revision: i64,
    pub prev_kv: bool,
    pub no_put: bool,
    pub no_delete: bool,
    pub fragment: bool,
    pub progress_notify: bool,
}

#[derive(Clone, Debug)]
pub enum Said {
    Created,
    Events {
        events: Vec<WatchEvent>,
        /// More of the same revision follows.
        fragment: bool,
    },
    /// To this watch, or to all of its stream.
    Progress,
    Canceled {
        compact_revision: i64,
        reason: String,
    },
}

#[derive(Clone, Debug)]
pub struct Heard {
    pub at: Nanos,
    /// The header's.
    pub revision: i64,
    pub said: Said,
}

/// One watch on one stream, until the stream broke or the watch was cancelled.
#[derive(Clone, Debug)]
pub struct WatchRecord {
    pub watcher: usize,
    pub asked: Asked,
    /// When it was asked for.
    pub at: Nanos,
    pub heard: Vec<Heard>,
    /// Everything up to this revision must have been heard when the round ended.
    pub complete_to: Option<i64>,
}

/// Everything of one round.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub calls: Vec<Call>,
    pub watches: Vec<WatchRecord>,
    /// Every event that the scribe's watches were sent, in the order of arrival.
    pub scribe: Vec<Change>,
    /// What the harness did to the server, and when.
    pub incidents: Vec<(Nanos, String)>,
    /// What was waited for in vain.
    pub missed: Vec<String>,
}

/// Where all clients of a round write what they see.
#[derive(Clone)]
pub struct Recorder {
    began: Instant,
    history: Arc<Mutex<History>>,
}

impl Recorder {
    pub fn new() -> Recorder {
        Recorder {
            began: Instant::now(),
            history: Arc::default(),
        }
    }

    pub fn now(&self) -> Nanos {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(Nanos::MAX)
    }

    pub fn call(&self, call: Call) {
        self.history.lock().calls.push(call);
    }

    pub fn incident(&self, what: impl Into<String>) {
        let at = self.now();
        self.history.lock().incidents.push((at, what.into()));
    }

    pub fn missed(&self, what: impl Into<String>) {
        self.history.lock().missed.push(what.into());
    }

    pub fn scribe(&self, changes: impl IntoIterator<Item = Change>) {
        self.history.lock().scribe.extend(changes);
    }

    pub fn watches(&self, watches: Vec<WatchRecord>) {
        self.history.lock().watches.extend(watches);
    }

    pub fn take(&self) -> History {
        std::mem::take(&mut self.history.lock())
    }
}

/// A value, cut short: its beginning names it.
struct Short<'a>(&'a [u8]);

impl fmt::Display for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 16;
        let shown = &self.0[..self.0.len().min(SHOWN)];
        write!(f, "{}", shown.escape_ascii())?;
        if self.0.len() > SHOWN {
            write!(f, "…{}", self.0.len())?;
        }
        Ok(())
    }
}

impl fmt::Display for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Short(&self.start))?;
        if !self.end.is_empty() {
            write!(f, "..{}", Short(&self.end))?;
        }
        Ok(())
    }
}

/// `key=value@mod(created,version,lease)`.
pub fn show_kv(kv: &KeyValue) -> String {
    format!(
        "{}={}@{}({},{},{:x})",
        Short(&kv.key),
        Short(&kv.value),
        kv.mod_revision,
        kv.create_revision,
        kv.version,
        kv.lease
    )
}

fn show_kvs(kvs: &[KeyValue]) -> String {
    let shown: Vec<String> = kvs.iter().map(show_kv).collect();
    format!("[{}]", shown.join(" "))
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kv {
            Some(kv) => write!(f, "put {}", show_kv(kv)),
            None => write!(f, "delete {}@{}", Short(&self.key), self.revision),
        }
    }
}

pub fn show_changes(changes: &[Change]) -> String {
    let shown: Vec<String> = changes.iter().map(Change::to_string).collect();
    format!("[{}]", shown.join(", "))
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Range {
                keys,
                revision,
                limit,
            } => {
                write!(f, "range {keys}")?;
                if *revision != 0 {
                    write!(f, " at {revision}")?;
                }
                if *limit != 0 {
                    write!(f, " limit {limit}")?;
                }
                Ok(())
            }
            Op::Put { key, value, lease } => {
                write!(f, "put {}={} lease {lease:x}", Short(key), Short(value))
            }
            Op::Delete { keys } => write!(f, "delete {keys}"),
        }
    }
}

fn show_ops(ops: &[Op]) -> String {
    let shown: Vec<String> = ops.iter().map(Op::to_string).collect();
    shown.join("; ")
}

impl fmt::Display for KvRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(op) = self.as_single() {
            let stale = if self.serializable {
                " serializable"
            } else {
                ""
            };
            return write!(f, "{op}{stale}");
        }
        write!(f, "if")?;
        for (key, revision) in &self.compares {
            write!(f, " {}@{revision}", Short(key))?;
        }
        let (success, failure) = (show_ops(&self.success), show_ops(&self.failure));
        write!(f, " then {{{success}}} else {{{failure}}}")
    }
}

impl fmt::Display for KvAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {} {}:", self.revision, self.succeeded)?;
        for answer in &self.answers {
            match answer {
                OpAnswer::Range { kvs, count, more } => {
                    write!(f, " {} of {count} {more}", show_kvs(kvs))?;
                }
                OpAnswer::Put { previous } => {
                    write!(f, " was {}", show_kvs(previous.as_slice()))?;
                }
                OpAnswer::Delete { deleted, previous } => {
                    write!(f, " {deleted} gone {}", show_kvs(previous))?;
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Call {
            client,
            called,
            returned,
            ..
        } = self;
        write!(f, "{called:>12} {returned:>12} client {client:>2}: ")?;
        match &self.request {
            Request::Kv(request) => write!(f, "{request}")?,
            other => write!(f, "{other:x?}")?,
        }
        match &self.outcome {
            Outcome::Answered(Answer::Kv(answer)) => write!(f, " => {answer}"),
            Outcome::Answered(other) => write!(f, " => {other:?}"),
            Outcome::Refused(why) => write!(f, " => refused: {why}"),
            Outcome::Unknown(why) => write!(f, " => unknown: {why}"),
        }
    }
}

impl fmt::Display for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>12} at {}: ", self.at, self.revision)?;
        match &self.said {
            Said::Events { events, fragment } => {
                let more = if *fragment { " and more" } else { "" };
                for event in events {
                    let previous = show_kvs(event.previous.as_slice());
                    write!(f, "{} was {previous}; ", event.change)?;
                }
                write!(f, "{more}")
            }
            other => write!(f, "{other:?}"),
        }
    }
}

impl fmt::Display for WatchRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Asked {
            keys,
            start_revision,
            prev_kv,
            no_put,
            no_delete,
            fragment,
            progress_notify,
        } = &self.asked;
        write!(
            f,
            "watcher {} at {}: {keys} from {start_revision} prev_kv {prev_kv} no_put {no_put} \
             no_delete {no_delete} fragment {fragment} progress {progress_notify}",
            self.watcher, self.at
        )
    }
}

impl History {
    /// Writes it for a reader: times in nanoseconds, calls in the order of their answers.
    pub fn write(&self, path: &Path, violations: &[String]) -> io::Result<()> {
        let mut file = io::BufWriter::new(std::fs::File::create(path)?);
        writeln!(file, "# violations")?;
        for violation in violations {
            writeln!(file, "{violation}")?;
        }
        writeln!(file, "\n# incidents")?;
        for (at, what) in &self.incidents {
            writeln!(file, "{at:>12} {what}")?;
        }
        writeln!(file, "\n# calls: called, returned")?;
        for call in &self.calls {
            writeln!(file, "{call}")?;
        }
        writeln!(file, "\n# log, as the scribe was told")?;
        for change in &self.scribe {
            writeln!(file, "{change}")?;
        }
        writeln!(file, "\n# watches")?;
        for watch in &self.watches {
            writeln!(file, "{watch}")?;
            for heard in &watch.heard {
                writeln!(file, "    {heard}")?;
            }
        }
        file.flush()
    }
}
