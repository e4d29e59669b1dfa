//! Correctness harness.
mod check;
mod client;
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
