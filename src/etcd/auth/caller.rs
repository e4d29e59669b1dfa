//! What a caller may do.

use std::sync::Arc;

use bytes::Bytes;
use etcd_proto::etcdserverpb::request_op::Request as Operation;
use etcd_proto::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use parking_lot::Mutex;

use super::state::AuthState;
use crate::etcd::error::Error;
use crate::etcd::lease::LeaseBook;

#[derive(Clone, Debug)]
pub enum Caller {
    /// This process itself.
    Trusted,
    /// Authentication is off.
    Unasked,
    /// Somebody without credentials, although they are asked for.
    Nobody,
    User {
        auth: Arc<AuthState>,
        user: Arc<str>,
        /// Revision of users, roles and permissions that the credentials are for.
        revision: u64,
    },
}

/// What a check was made against; it must still hold when the request is evaluated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    Trusted,
    /// Nobody was asked for: authentication was off.
    Unasked,
    User {
        user: Arc<str>,
        /// The revision of users, roles and permissions.
        revision: u64,
    },
}

impl Proof {
    /// What was checked of keys holds in this state too.
    ///
    /// # Errors
    /// Authentication was turned on meanwhile, or something about users, roles or permissions has changed.
    pub fn check(&self, auth: &AuthState) -> Result<(), Error> {
        match self {
            // Off, there is nothing to hold.
            _ if !auth.enabled => Ok(()),
            Proof::Trusted => Ok(()),
            Proof::Unasked => Err(Error::UserEmpty),
            Proof::User { revision, .. } if *revision == auth.revision => Ok(()),
            Proof::User { .. } => Err(Error::AuthOldRevision),
        }
    }

    /// Whoever it is may still do everything: as in etcd, at whatever revision that was checked before.
    pub fn check_root(&self, auth: &AuthState) -> Result<(), Error> {
        match self {
            _ if !auth.enabled => Ok(()),
            Proof::Trusted => Ok(()),
            Proof::Unasked => Err(Error::UserEmpty),
            Proof::User { user, .. } if auth.user(user).is_none() => Err(Error::UserNotFound),
            Proof::User { user, .. } if auth.is_root(user) => Ok(()),
            Proof::User { .. } => Err(Error::PermissionDenied),
        }
    }

    /// Who may not write just any key, if that is so.
    pub fn limited<'a>(&'a self, auth: &AuthState) -> Option<&'a str> {
        match self {
            Proof::User { user, .. } if auth.enabled && !auth.is_root(user) => Some(user),
            _ => None,
        }
    }
}

impl Caller {
    pub fn proof(&self) -> Proof {
        match self {
            Caller::Trusted => Proof::Trusted,
            Caller::Unasked | Caller::Nobody => Proof::Unasked,
            Caller::User { user, revision, .. } => Proof::User {
                user: Arc::clone(user),
                revision: *revision,
            },
        }
    }

    /// Its name, if it has one.
    pub fn name(&self) -> Option<&str> {
        match self {
            Caller::User { user, .. } => Some(user),
            _ => None,
        }
    }

    /// `allows` decides for a user that exists.
    fn check(&self, allows: impl FnOnce(&AuthState, &str) -> bool) -> Result<(), Error> {
        match self {
            Caller::Trusted | Caller::Unasked => Ok(()),
            Caller::Nobody => Err(Error::UserEmpty),
            Caller::User { auth, revision, .. } if *revision != auth.revision => {
                Err(Error::AuthOldRevision)
            }
            Caller::User { auth, user, .. } if auth.user(user).is_some() && allows(auth, user) => {
                Ok(())
            }
            Caller::User { .. } => Err(Error::PermissionDenied),
        }
    }

    /// It is somebody.
    pub fn check_known(&self) -> Result<(), Error> {
        match self {
            Caller::Nobody => Err(Error::UserEmpty),
            _ => Ok(()),
        }
    }

    pub fn check_root(&self) -> Result<(), Error> {
        match self {
            Caller::Nobody => Err(Error::UserEmpty),
            Caller::User { auth, .. } => self.proof().check_root(auth),
            Caller::Trusted | Caller::Unasked => Ok(()),
        }
    }

    pub fn check_read(&self, key: &[u8], range_end: &[u8]) -> Result<(), Error> {
        self.check(|auth, user| auth.may_read(user, key, range_end))
    }

    pub fn check_write(&self, key: &[u8], range_end: &[u8]) -> Result<(), Error> {
        self.check(|auth, user| auth.may_write(user, key, range_end))
    }

    pub fn check_range(&self, request: &RangeRequest) -> Result<(), Error> {
        self.check_read(&request.key, &request.range_end)
    }

    pub fn check_delete(&self, request: &DeleteRangeRequest) -> Result<(), Error> {
        self.check_write(&request.key, &request.range_end)?;
        if request.prev_kv {
            self.check_read(&request.key, &request.range_end)?;
        }
        Ok(())
    }

    pub fn check_put(&self, request: &PutRequest, leases: &Mutex<LeaseBook>) -> Result<(), Error> {
        self.check_write(&request.key, &[])?;
        self.check_lease(request.lease, leases)?;
        if request.prev_kv {
            self.check_read(&request.key, &[])?;
        }
        Ok(())
    }

    /// It may write every key of the lease: who may end a lease deletes them.
    pub fn check_lease(&self, lease: i64, leases: &Mutex<LeaseBook>) -> Result<(), Error> {
        self.check_known()?;
        if lease == 0 || self.check_root().is_ok() {
            return Ok(());
        }
        let keys = leases.lock().keys(lease);
        keys.iter().try_for_each(|key| self.check_write(key, &[]))
    }

    /// It may read each of these keys.
    pub fn check_keys<'a>(&self, keys: impl IntoIterator<Item = &'a Bytes>) -> Result<(), Error> {
        self.check_known()?;
        if self.check_root().is_ok() {
            return Ok(());
        }
        let mut keys = keys.into_iter();
        keys.try_for_each(|key| self.check_read(key, &[]))
    }

    pub fn check_txn(&self, request: &TxnRequest, leases: &Mutex<LeaseBook>) -> Result<(), Error> {
        for compare in &request.compare {
            self.check_read(&compare.key, &compare.range_end)?;
        }
        let operations = request.success.iter().chain(&request.failure);
        let check = |operation: &RequestOp| match &operation.request {
            Some(Operation::RequestRange(range)) => self.check_range(range),
            Some(Operation::RequestPut(put)) => self.check_put(put, leases),
            Some(Operation::RequestDeleteRange(delete)) => self.check_delete(delete),
            Some(Operation::RequestTxn(txn)) => self.check_txn(txn, leases),
            None => Ok(()),
        };
        operations.into_iter().try_for_each(check)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::auth::{Change, ROOT};

    fn state(changes: &[Change]) -> AuthState {
        let mut state = AuthState::default();
        for change in changes {
            state.apply(change).expect("a change");
        }
        state
    }

    fn add_user(name: &str) -> Change {
        Change::AddUser {
            name: name.to_owned(),
            password: Bytes::new(),
            options: Default::default(),
        }
    }

    #[test]
    fn what_was_checked_must_still_hold() {
        let make_root = Change::GrantRole {
            user: ROOT.to_owned(),
            role: ROOT.to_owned(),
        };
        let changes = [add_user(ROOT), make_root, add_user("ada"), Change::Enable];
        let on = state(&changes);
        let off = state(&changes[..3]);
        let user = |name: &str, revision| Proof::User {
            user: Arc::from(name),
            revision,
        };
        let check = |proof: Proof, keys: Result<(), Error>, root: Result<(), Error>| {
            assert_eq!(proof.check(&on), keys, "{proof:?}");
            assert_eq!(proof.check_root(&on), root, "{proof:?}");
            assert_eq!(proof.check(&off), Ok(()), "{proof:?}");
            assert_eq!(proof.check_root(&off), Ok(()), "{proof:?}");
        };
        let (now, old) = (on.revision, on.revision - 1);
        check(Proof::Trusted, Ok(()), Ok(()));
        check(Proof::Unasked, Err(Error::UserEmpty), Err(Error::UserEmpty));
        check(user(ROOT, now), Ok(()), Ok(()));
        check(user(ROOT, old), Err(Error::AuthOldRevision), Ok(()));
        check(user("ada", now), Ok(()), Err(Error::PermissionDenied));
        check(
            user("bob", old),
            Err(Error::AuthOldRevision),
            Err(Error::UserNotFound),
        );
        assert_eq!(user("ada", now).limited(&on), Some("ada"));
        assert_eq!(user("ada", now).limited(&off), None);
        assert_eq!(user(ROOT, now).limited(&on), None);
        assert_eq!(Proof::Trusted.limited(&on), None);
    }
}
