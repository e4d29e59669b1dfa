//! FoundationDB's network thread: one for the process, from the first open to the end.

use foundationdb::api::{FdbApiBuilder, NetworkAutoStop};
use parking_lot::Mutex;

enum Network {
    Idle,
    Running(NetworkAutoStop),
    /// It cannot be started a second time.
    Over,
}

static NETWORK: Mutex<Network> = Mutex::new(Network::Idle);

/// Starts the network thread unless it runs.
///
/// # Errors
/// What the client library says: it is older than the API version 7.3, or the thread was stopped.
pub(super) fn start() -> Result<(), String> {
    let mut network = NETWORK.lock();
    match &*network {
        Network::Running(_) => return Ok(()),
        Network::Over => return Err("FoundationDB's network thread has ended".to_owned()),
        Network::Idle => {}
    }
    *network = Network::Over;
    let builder = FdbApiBuilder::default()
        .build()
        .map_err(|error| error.to_string())?;
    // SAFETY: the thread must be stopped before the process exits, and `stop` is registered to be called at exit, before
    // anything else is torn down: handlers run in the reverse order of registration, and the library's own destructors
    // were registered when it was loaded. An abort or a signal ends the thread with the process, which is sound.
    #[expect(unsafe_code, reason = "the client library's contract")]
    let running = unsafe {
        if libc::atexit(stop) != 0 {
            return Err("no handler can be registered for the process' exit".to_owned());
        }
        builder.boot()
    };
    *network = Network::Running(running.map_err(|error| error.to_string())?);
    Ok(())
}

extern "C" fn stop() {
    if let Network::Running(running) = std::mem::replace(&mut *NETWORK.lock(), Network::Over) {
        drop(running);
    }
}
