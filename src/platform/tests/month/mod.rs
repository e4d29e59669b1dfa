//! Months of random requests and random bad days: whatever happens, the rules hold at every instant, and
//! once nothing is at fault any more, what is observed is what was asked for.
//!
//! A month is a list of steps that a seed gives. One that goes wrong is printed with its seed, shrunk to
//! the steps that it takes. `CKE_MONTHS` says how many seeds, `CKE_MONTH` which one is the first:
//!
//! ```sh
//! CKE_MONTHS=1000 cargo test -p cke --lib platform::tests::month -- --nocapture
//! CKE_MONTH=17 CKE_MONTHS=1 cargo test -p cke --lib platform::tests::month
//! ```

mod drive;
mod rules;
mod settled;
mod step;
mod volumes;

use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};

use drive::Account;
use step::Timed;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}: {text}")))
}

/// On one thread or on two: the order of work must not matter.
fn live(steps: &[Timed], threads: usize) -> Result<Account, String> {
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if threads > 1 {
        builder.worker_threads(threads);
    }
    let runtime = builder.enable_all().build().expect("a runtime");
    runtime.block_on(drive::live(steps))
}

#[test]
fn whatever_happens_in_a_month_the_rules_hold_and_all_is_well_in_the_end() {
    /// In CI: some tens of seconds.
    const MONTHS: u64 = 2;
    let first = number("CKE_MONTH").unwrap_or(0);
    let count = number("CKE_MONTHS").unwrap_or(MONTHS);
    // Seconds of real time that may be spent on shrinking.
    let shrinking = number("CKE_MONTH_SHRINK").unwrap_or(120).max(1);
    for seed in first..first + count {
        let threads = 1 + usize::try_from(seed % 2).unwrap_or(0);
        let mut runner = TestRunner::new(Config {
            cases: 1,
            rng_seed: RngSeed::Fixed(seed),
            failure_persistence: None,
            max_shrink_iters: 1000,
            max_shrink_time: u32::try_from(shrinking * 1000).unwrap_or(u32::MAX),
            ..Config::default()
        });
        let started = std::time::Instant::now();
        let outcome = runner.run(&step::month(), |steps| {
            let account = live(&steps, threads).map_err(|why| {
                println!("month {seed}, {} steps: {why}", steps.len());
                TestCaseError::fail(why)
            })?;
            println!(
                "month {seed}: {} steps, {} granted, {} refused, {} replacements, {} moves, {} instants, {:?}",
                steps.len(),
                account.granted,
                account.refused,
                account.replacements,
                account.moves,
                account.instants,
                started.elapsed(),
            );
            Ok(())
        });
        match outcome {
            Ok(()) => {}
            Err(TestError::Fail(why, steps)) => {
                panic!(
                    "month {seed} goes wrong: {why}\n{} steps are enough: {steps:#?}",
                    steps.len()
                )
            }
            Err(TestError::Abort(why)) => panic!("month {seed}: {why}"),
        }
    }
}

/// Instant by instant, all records are the same. Where a kill meets the work of an instant is a matter of
/// threads, so there is none. `CKE_DETERMINISM_RUNS` says how many runs there are.
#[test]
fn a_month_is_the_same_in_every_run_on_one_thread_or_on_two() {
    use proptest::strategy::{Strategy as _, ValueTree as _};
    let runs = number("CKE_DETERMINISM_RUNS").unwrap_or(2);
    let mut runner = TestRunner::new(Config {
        rng_seed: RngSeed::Fixed(number("CKE_MONTH").unwrap_or(1)),
        ..Config::default()
    });
    let drawn = step::month().new_tree(&mut runner);
    let mut steps: Vec<Timed> = drawn.expect("a month").current();
    steps.retain(|timed| !matches!(timed.step, step::Step::Crash { .. }));
    let digest = |threads| live(&steps, threads).map(|account| account.digest);
    let first = digest(1);
    assert!(first.is_ok(), "{first:?}");
    for run in 1..runs {
        let threads = 1 + usize::try_from(run % 2).unwrap_or(0);
        assert_eq!(digest(threads), first, "run {run}, on {threads} threads");
    }
}
