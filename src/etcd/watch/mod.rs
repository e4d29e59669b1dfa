//! Watches: every watcher sees every event of its range exactly once, in revision order.
//!
//! - [`interval`]: which of many ranges contain a key.
//! - [`hub`]: hands each revision's events to the streams that watch them, and remembers the
//!   newest revisions.
//! - [`queue`]: what waits for one stream; [`pace`]: how often a stream is woken.
//! - [`stream`]: one gRPC stream with its watchers: replay, hand-over to the hub, progress.
//! - [`frame`]: the answers on the wire.
//!
//! A watcher is either *synced*, registered at the hub, or *lagging*: it replays history from the
//! hub's memory or the log, in its stream's own task and time, until nothing is left, and is then registered
//! under the hub's lock, so that no revision falls between. A stream whose client is slow fills its bounded queue;
//! then its watchers lag, and the queue costs nobody anything any more.

pub mod frame;
pub mod hub;
pub mod interval;
pub mod pace;
pub mod queue;
pub mod stream;
