//! The client certificate of a connection.

/// Common name of the certificate that the connection's client has proven to hold; an extension of
/// every request that comes over it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerName(pub std::sync::Arc<str>);
