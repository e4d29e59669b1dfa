//! The correctness harness: the real `cke etcd` under many clients while it is killed, stopped and starved, and a
//! verdict on all that the clients saw.
//!
//! ```text
//!   traffic ─ client ─┐                          ┌─ check/order      strict serializability, by revisions
//!   watcher, scribe ──┼─ plant ─ instance        ├─ check/registers  the same, by Wing and Gong's search
//!                     │   (proxy)   ▲            ├─ check/watches    every watch guarantee
//!                     ▼             │            └─ check/leases     no lease ends early
//!                  history ─────────┼──────────────────▲
//!                               nemesis: SIGKILL, SIGSTOP, full disk, slow disk, 1007, 1009, 1020, 1021
//! ```
//!
//! A *round* ([`round`]) is one server with its clients for ten seconds, all drawn from one seed: what is asked, and
//! what is done to the server. What the threads of the machine make of it is not the seed's: a failing seed fails
//! again soon, and its history, which is written to `target/tmp/harness-<test>-<seed>.history`, is the record.
//!
//! `cargo test --test harness` takes about a minute, with fixed seeds. For hours, or to replay:
//!
//! ```text
//! CKE_HARNESS_SECONDS=7200 CKE_HARNESS_SEED=1 cargo test --test harness a_server_that_is_killed -- --nocapture
//! TEST_CKE=/usr/bin/cke cargo test --test harness a_server_that_is_killed     # another binary
//! ```
//!
//! # Planted bugs
//!
//! A check that has never failed proves nothing. [`plant`] puts three bugs between the server and the recorder, and
//! [`rounds`] sees to it that they are found, in four seconds each:
//!
//! | bug | seed | found by |
//! |---|---|---|
//! | a crash loses acknowledged writes (the disk is put back to an earlier state) | 1 | `RealTime`: revisions go back; `Register`: Wing and Gong find no order; and most others |
//! | a watch answer comes twice | 2 | `WatchEvents` |
//! | a linearizable read is answered from the past | 3 | `RealTime`, `Register` |
//!
//! The same three, built into the server itself by hand and run as `TEST_CKE`, were found by the first round
//! (seed 20260601): answers sent before their commit (`RealTime`, `Register`), a watch that catches up from one
//! revision too early at every seventh revision (`WatchEvents`), and reads from the last snapshot but one at every
//! twentieth (`RealTime`, `Register`).
//!
//! `check/tests.rs` plants some forty more in a small history by hand, one for each way to break each rule.

mod check;
mod client;
mod cluster;
mod history;
mod instance;
mod nemesis;
mod past_bugs;
mod plant;
mod request;
mod round;
mod rounds;
mod torn_tail;
mod traffic;
mod watcher;
