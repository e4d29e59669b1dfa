//! Who a request comes from, and what they may do.
//!
//! Users, roles and permissions are a part of the keyspace's state, changed by the sequencer like keys are; so a
//! change is ordered with writes, and durable before it is answered. A request is checked against the state that it is
//! evaluated on, or against an earlier one whose revision the sequencer then compares.

pub mod caller;
mod change;
pub mod credentials;
pub mod jwt;
pub mod password;
pub mod peer;
mod permission;
pub mod state;
pub mod token;

pub use caller::{Caller, Proof};
pub use change::{Change, Touched};
pub use credentials::{Credentials, InvalidToken, Trusted, ViaGateway};
pub use state::AuthState;
pub use token::{TokenKind, Tokens};

/// The user and the role that may do everything.
pub const ROOT: &str = "root";
