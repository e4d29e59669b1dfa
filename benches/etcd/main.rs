//! `cke etcd` and etcd side by side under the same load, in one run.
//!
//! Both servers are started afresh on empty directories of the same disk, with default settings and
//! fsync on. CPU and memory are the server process's own, from `/proc`. A wrong answer, an event that
//! is missing or an error of a server ends the run.
//!
//! ```text
//! tests/install-clients && cargo bench --bench etcd            # every case of the table
//! cargo bench --bench etcd -- put-64 list                      # those whose names contain a word
//! CKE_BENCH_SECONDS=5 CKE_BENCH_ROUNDS=5 cargo bench --bench etcd
//! cargo bench --bench etcd -- at-rest                          # memory, and time to restart
//! cargo bench --bench etcd -- scale                            # `cke etcd` alone, and much of everything
//! cargo bench --bench etcd --features foundationdb -- stores   # FoundationDB and the embedded engine; see `stores`
//! ```
//!
//! Words after `at-rest`, `scale` and `stores` choose among their parts. `CKE_BENCH_ETCD` names another etcd.

mod at_rest;
mod cases;
mod compare;
mod figures;
mod keys;
mod kv;
mod lease;
mod load;
mod scale;
mod server;
mod stores;
mod watch;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Words of the command line: what is chosen has a name that contains one of them.
struct Words(Vec<String>);

impl Words {
    /// Whether `name` was asked for. Without words everything is.
    fn choose(&self, name: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|word| name.contains(word.as_str()))
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Failure> {
    // What is left out are cargo's own flags.
    let mut words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let mode = words.first().cloned().unwrap_or_default();
    if ["at-rest", "scale", "stores"].contains(&mode.as_str()) {
        words.remove(0);
    }
    let words = Words(words);
    match mode.as_str() {
        "at-rest" => at_rest::run(&words).await,
        "scale" => scale::run(&words).await,
        "stores" => stores::run(&words).await,
        _ => compare::run(&words).await,
    }
}
