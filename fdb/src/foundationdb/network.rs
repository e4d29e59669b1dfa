//! FoundationDB's network thread: one for the process, from the first open to the end.

use foundationdb::api::{FdbApiBuilder, NetworkAutoStop};
use parking_lot::Mutex;
use std::sync::Once;

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
    stop_at_exit()?;
    // SAFETY: the thread must be stopped before the process exits. `stop` does; a process that does not call it has it
    // called at exit (see `settled` for when). An abort or a signal ends the thread with the process, which is sound.
    #[expect(unsafe_code, reason = "the client library's contract")]
    let running = unsafe { builder.boot() };
    *network = Network::Running(running.map_err(|error| error.to_string())?);
    Ok(())
}

/// To be called when the library has done its work once.
///
/// At exit, handlers run in the reverse order of their registration, and the library registers the destructors of some
/// variables when it first uses them. What the running thread still uses must be torn down after `stop`, so that is
/// registered once more, behind those.
pub(super) fn settled() {
    static SETTLED: Once = Once::new();
    SETTLED.call_once(|| {
        // There is room for one more: `start` has found some.
        let _ = stop_at_exit();
    });
}

fn stop_at_exit() -> Result<(), String> {
    extern "C" fn at_exit() {
        stop();
    }
    // SAFETY: the handler may be called at any time: it takes a lock that nobody holds for long, and does not unwind.
    #[expect(unsafe_code, reason = "a C function")]
    let registered = unsafe { libc::atexit(at_exit) } == 0;
    if registered {
        Ok(())
    } else {
        Err("no handler can be registered for the process' exit".to_owned())
    }
}

/// Stops the network thread for good, if it runs.
pub(crate) fn stop() {
    let Network::Running(running) = std::mem::replace(&mut *NETWORK.lock(), Network::Over) else {
        return;
    };
    // On a thread of its own: one that exits has lost its thread-local variables already, and the library uses some.
    let stopped = std::thread::Builder::new()
        .name("fdb-stop".to_owned())
        .spawn(move || drop(running))
        .map(std::thread::JoinHandle::join);
    if !matches!(stopped, Ok(Ok(()))) {
        // To exit with the thread running is undefined behaviour.
        std::process::abort();
    }
}
