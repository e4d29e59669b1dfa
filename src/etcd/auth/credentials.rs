//! What a request brings along to say who it is from.

use std::sync::Arc;

use tonic::Request;

use super::caller::Caller;
use super::peer::PeerName;
use crate::etcd::error::Error;
use crate::etcd::keyspace::Keyspace;

/// Marks requests of this process itself: nobody else's rules hold for them.
#[derive(Clone, Copy, Debug)]
pub struct Trusted;

/// Marks requests that came as JSON: a certificate says nothing about who they are from, as in etcd.
#[derive(Clone, Copy, Debug)]
pub struct ViaGateway;

/// Marks requests whose token is no keyspace's.
#[derive(Clone, Copy, Debug)]
pub struct InvalidToken;

#[derive(Clone, Debug, Default)]
pub struct Credentials {
    trusted: bool,
    /// The token is none, whatever the keyspace says.
    invalid: bool,
    token: Option<String>,
    certificate: Option<Arc<str>>,
}

impl Credentials {
    pub fn of<T>(request: &Request<T>) -> Credentials {
        let metadata = request.metadata();
        let token = metadata
            .get("token")
            .or_else(|| metadata.get("authorization"));
        let token = token.and_then(|token| token.to_str().ok());
        let extensions = request.extensions();
        let certificate = extensions
            .get::<PeerName>()
            .filter(|_| extensions.get::<ViaGateway>().is_none());
        Credentials {
            trusted: extensions.get::<Trusted>().is_some(),
            invalid: extensions.get::<InvalidToken>().is_some(),
            token: token.map(|token| token.strip_prefix("Bearer ").unwrap_or(token).to_owned()),
            certificate: certificate.map(|PeerName(name)| Arc::clone(name)),
        }
    }

    /// Whether it is this process itself.
    pub fn is_trusted(&self) -> bool {
        self.trusted
    }

    /// Who it is, as far as the keyspace asks.
    ///
    /// # Errors
    /// The token is not one of this keyspace's, or is no more.
    pub fn caller(&self, keyspace: &Keyspace) -> Result<Caller, Error> {
        if self.trusted {
            return Ok(Caller::Trusted);
        }
        if self.invalid {
            return Err(Error::InvalidAuthToken);
        }
        let auth = Arc::clone(&keyspace.state.read().auth);
        if !auth.enabled {
            return Ok(Caller::Unasked);
        }
        if let Some(token) = &self.token {
            let bearer = keyspace.tokens.bearer(token, keyspace.clock.now());
            let bearer = bearer.ok_or(Error::InvalidAuthToken)?;
            return Ok(Caller::User {
                revision: bearer.revision.unwrap_or(auth.revision),
                user: bearer.user,
                auth,
            });
        }
        Ok(match &self.certificate {
            Some(name) => Caller::User {
                revision: auth.revision,
                auth,
                user: Arc::clone(name),
            },
            None => Caller::Nobody,
        })
    }
}
