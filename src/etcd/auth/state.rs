//! Users, roles and whether anybody is asked.

use std::collections::{BTreeMap, HashMap};

use etcd_proto::authpb::{Role, User};

use super::ROOT;
use super::permission::Permissions;

/// Revision before the first change, as in etcd.
const FIRST_REVISION: u64 = 1;

#[derive(Clone, Debug)]
pub struct AuthState {
    pub enabled: bool,
    /// Raised by every change.
    pub revision: u64,
    pub(super) users: BTreeMap<String, User>,
    pub(super) roles: BTreeMap<String, Role>,
    /// What each user's roles allow together.
    permissions: HashMap<String, Permissions>,
}

impl Default for AuthState {
    fn default() -> Self {
        AuthState::new(false, FIRST_REVISION, Vec::new(), Vec::new())
    }
}

pub(super) fn name_of(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

impl AuthState {
    pub fn new(enabled: bool, revision: u64, users: Vec<User>, roles: Vec<Role>) -> AuthState {
        let mut state = AuthState {
            enabled,
            revision,
            users: users
                .into_iter()
                .map(|user| (name_of(&user.name), user))
                .collect(),
            roles: roles
                .into_iter()
                .map(|role| (name_of(&role.name), role))
                .collect(),
            permissions: HashMap::new(),
        };
        state.refresh();
        state
    }

    /// Makes the permissions again, after a change.
    pub(super) fn refresh(&mut self) {
        let merged = |user: &User| {
            let roles = user.roles.iter().filter_map(|role| self.roles.get(role));
            Permissions::new(roles.flat_map(|role| &role.key_permission))
        };
        let users = self.users.iter();
        self.permissions = users
            .map(|(name, user)| (name.clone(), merged(user)))
            .collect();
    }

    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.get(name)
    }

    pub fn role(&self, name: &str) -> Option<&Role> {
        self.roles.get(name)
    }

    pub fn users(&self) -> impl Iterator<Item = (&String, &User)> {
        self.users.iter()
    }

    pub fn roles(&self) -> impl Iterator<Item = (&String, &Role)> {
        self.roles.iter()
    }

    pub fn has_role(&self, user: &str, role: &str) -> bool {
        let user = self.users.get(user);
        user.is_some_and(|user| user.roles.iter().any(|of| of == role))
    }

    pub fn is_root(&self, user: &str) -> bool {
        self.has_role(user, ROOT)
    }

    pub fn may_read(&self, user: &str, key: &[u8], range_end: &[u8]) -> bool {
        let found = self.permissions.get(user);
        self.is_root(user) || found.is_some_and(|found| found.read.covers(key, range_end))
    }

    pub fn may_write(&self, user: &str, key: &[u8], range_end: &[u8]) -> bool {
        let found = self.permissions.get(user);
        self.is_root(user) || found.is_some_and(|found| found.write.covers(key, range_end))
    }
}
