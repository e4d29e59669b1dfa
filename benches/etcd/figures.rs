//! What a run showed, and the table.

use std::time::Duration;

use crate::Failure;

/// What one run of one case showed.
#[derive(Clone, Copy)]
pub struct Figures {
    /// Operations a second.
    pub per_second: f64,
    /// Median latency of an operation, in microseconds.
    pub p50_us: f64,
    /// The latency that 99 of 100 operations do not exceed, in microseconds.
    pub p99_us: f64,
    /// The server's processor time for an operation, in microseconds.
    pub cpu_us: f64,
}

impl Figures {
    /// One latency for each operation; `cpu` is the server's time for all of them.
    pub fn of(
        mut latencies: Vec<Duration>,
        elapsed: Duration,
        cpu: Duration,
    ) -> Result<Figures, Failure> {
        if latencies.is_empty() {
            return Err("nothing was done in the time given".into());
        }
        latencies.sort_unstable();
        let at = |share: f64| {
            let index = ((latencies.len() - 1) as f64 * share) as usize;
            latencies[index].as_secs_f64() * 1e6
        };
        let count = latencies.len() as f64;
        Ok(Figures {
            per_second: count / elapsed.as_secs_f64(),
            p50_us: at(0.5),
            p99_us: at(0.99),
            cpu_us: cpu.as_secs_f64() * 1e6 / count,
        })
    }
}

/// The median of what `field` says of each; the upper one of an even number. There must be some.
pub fn median<T>(runs: &[T], field: impl Fn(&T) -> f64) -> f64 {
    let mut values: Vec<f64> = runs.iter().map(field).collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

pub fn print_header() {
    println!(
        "{:<20} {:>11} {:>11} {:>6}  {:>9} {:>9} {:>6}  {:>9} {:>9} {:>6}  {:>8} {:>8} {:>6}",
        "case",
        "cke op/s",
        "etcd op/s",
        "ratio",
        "p50 us",
        "etcd",
        "ratio",
        "p99 us",
        "etcd",
        "ratio",
        "CPU us",
        "etcd",
        "ratio"
    );
}

/// Medians of both servers' runs, and the ratios.
pub fn print_row(name: &str, cke: &[Figures], etcd: &[Figures]) {
    let column = |field: fn(&Figures) -> f64| {
        let (ours, theirs) = (median(cke, field), median(etcd, field));
        (ours, theirs, ours / theirs)
    };
    let (rate, rate_etcd, rate_ratio) = column(|figures| figures.per_second);
    let (p50, p50_etcd, p50_ratio) = column(|figures| figures.p50_us);
    let (p99, p99_etcd, p99_ratio) = column(|figures| figures.p99_us);
    let (cpu, cpu_etcd, cpu_ratio) = column(|figures| figures.cpu_us);
    println!(
        "{name:<20} {rate:>11.0} {rate_etcd:>11.0} {rate_ratio:>6.2}  {p50:>9.0} {p50_etcd:>9.0} \
         {p50_ratio:>6.2}  {p99:>9.0} {p99_etcd:>9.0} {p99_ratio:>6.2}  {cpu:>8.1} \
         {cpu_etcd:>8.1} {cpu_ratio:>6.2}"
    );
}
