//! Correctness harness.
mod check;
mod client;
mod history;
mod instance;
mod nemesis;
mod plant;
mod request;
mod round;
mod rounds;
mod traffic;
mod watcher;
