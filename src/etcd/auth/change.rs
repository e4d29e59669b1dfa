//! Changes of users, roles and permissions.

use bytes::Bytes;
use etcd_proto::authpb::{Permission, Role, User, UserAddOptions};

use super::state::{AuthState, name_of};
use super::{ROOT, permission};
use crate::etcd::error::Error;

/// A change; passwords are hashed already.
#[derive(Clone, Debug)]
pub enum Change {
    Enable,
    Disable,
    AddUser {
        name: String,
        password: Bytes,
        options: UserAddOptions,
    },
    DeleteUser(String),
    ChangePassword {
        name: String,
        password: Bytes,
    },
    GrantRole {
        user: String,
        role: String,
    },
    RevokeRole {
        user: String,
        role: String,
    },
    AddRole(String),
    DeleteRole(String),
    GrantPermission {
        role: String,
        permission: Option<Permission>,
    },
    RevokePermission {
        role: String,
        key: Bytes,
        range_end: Bytes,
    },
}

/// What a change has changed, besides the revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    User(String),
    Role(String),
}

impl AuthState {
    /// Makes the change, or says why not and changes nothing. Nothing touched and the same revision: there was nothing
    /// to change.
    pub fn apply(&mut self, change: &Change) -> Result<Vec<Touched>, Error> {
        let before = self.revision;
        let touched = self.change(change)?;
        if self.revision != before {
            self.refresh();
        }
        Ok(touched)
    }

    fn change(&mut self, change: &Change) -> Result<Vec<Touched>, Error> {
        match change {
            Change::Enable => {
                if self.enabled {
                    return Ok(Vec::new());
                }
                if self.user(ROOT).is_none() {
                    return Err(Error::RootUserMissing);
                }
                if !self.is_root(ROOT) {
                    return Err(Error::RootRoleMissing);
                }
                self.enabled = true;
                return Ok(Vec::new());
            }
            Change::Disable => {
                if self.enabled {
                    self.enabled = false;
                    self.revision += 1;
                }
                return Ok(Vec::new());
            }
            _ => {}
        }
        let touched = match change {
            Change::AddUser {
                name,
                password,
                options,
            } => self.add_user(name, password, *options)?,
            Change::DeleteUser(name) => {
                if self.enabled && name == ROOT {
                    return Err(Error::InvalidAuthManagement);
                }
                self.users.remove(name).ok_or(Error::UserNotFound)?;
                vec![Touched::User(name.clone())]
            }
            Change::ChangePassword { name, password } => {
                let user = self.users.get_mut(name).ok_or(Error::UserNotFound)?;
                user.password = if has_no_password(user) {
                    Bytes::new()
                } else {
                    password.clone()
                };
                vec![Touched::User(name.clone())]
            }
            Change::GrantRole { user, role } => {
                let exists = role == ROOT || self.roles.contains_key(role);
                let found = self.users.get_mut(user).ok_or(Error::UserNotFound)?;
                if !exists {
                    return Err(Error::RoleNotFound);
                }
                match found.roles.binary_search(role) {
                    Ok(_) => return Ok(Vec::new()),
                    Err(at) => found.roles.insert(at, role.clone()),
                }
                vec![Touched::User(user.clone())]
            }
            Change::RevokeRole { user, role } => {
                if self.enabled && user == ROOT && role == ROOT {
                    return Err(Error::InvalidAuthManagement);
                }
                let found = self.users.get_mut(user).ok_or(Error::UserNotFound)?;
                let at = found.roles.iter().position(|of| of == role);
                found.roles.remove(at.ok_or(Error::RoleNotGranted)?);
                vec![Touched::User(user.clone())]
            }
            Change::AddRole(name) => {
                if name.is_empty() {
                    return Err(Error::RoleEmpty);
                }
                if self.roles.contains_key(name) {
                    return Err(Error::RoleExists);
                }
                let role = Role {
                    name: Bytes::copy_from_slice(name.as_bytes()),
                    key_permission: Vec::new(),
                };
                self.roles.insert(name.clone(), role);
                vec![Touched::Role(name.clone())]
            }
            Change::DeleteRole(name) => self.delete_role(name)?,
            Change::GrantPermission { role, permission } => {
                self.grant_permission(role, permission.as_ref())?
            }
            Change::RevokePermission {
                role,
                key,
                range_end,
            } => {
                let found = self.roles.get_mut(role).ok_or(Error::RoleNotFound)?;
                let before = found.key_permission.len();
                found
                    .key_permission
                    .retain(|it| it.key != *key || it.range_end != *range_end);
                if found.key_permission.len() == before {
                    return Err(Error::PermissionNotGranted);
                }
                vec![Touched::Role(role.clone())]
            }
            Change::Enable | Change::Disable => Vec::new(),
        };
        self.revision += 1;
        Ok(touched)
    }

    fn add_user(
        &mut self,
        name: &str,
        password: &Bytes,
        options: UserAddOptions,
    ) -> Result<Vec<Touched>, Error> {
        if name.is_empty() {
            return Err(Error::UserEmpty);
        }
        if self.users.contains_key(name) {
            return Err(Error::UserExists);
        }
        let user = User {
            name: Bytes::copy_from_slice(name.as_bytes()),
            password: password.clone(),
            roles: Vec::new(),
            options: Some(options),
        };
        self.users.insert(name.to_owned(), user);
        Ok(vec![Touched::User(name.to_owned())])
    }

    fn delete_role(&mut self, name: &str) -> Result<Vec<Touched>, Error> {
        if self.enabled && name == ROOT {
            return Err(Error::InvalidAuthManagement);
        }
        self.roles.remove(name).ok_or(Error::RoleNotFound)?;
        let mut touched = vec![Touched::Role(name.to_owned())];
        for user in self.users.values_mut() {
            let before = user.roles.len();
            user.roles.retain(|of| of != name);
            if user.roles.len() != before {
                touched.push(Touched::User(name_of(&user.name)));
            }
        }
        Ok(touched)
    }

    fn grant_permission(
        &mut self,
        role: &str,
        permission: Option<&Permission>,
    ) -> Result<Vec<Touched>, Error> {
        let permission = permission.ok_or(Error::PermissionNotGiven)?;
        if !permission::is_valid(&permission.key, &permission.range_end) {
            return Err(Error::InvalidAuthManagement);
        }
        let found = self.roles.get_mut(role).ok_or(Error::RoleNotFound)?;
        let same =
            |it: &&mut Permission| it.key == permission.key && it.range_end == permission.range_end;
        match found.key_permission.iter_mut().find(same) {
            Some(present) => present.perm_type = permission.perm_type,
            None => {
                found.key_permission.push(permission.clone());
                found.key_permission.sort_by(|a, b| a.key.cmp(&b.key));
            }
        }
        Ok(vec![Touched::Role(role.to_owned())])
    }
}

pub fn has_no_password(user: &User) -> bool {
    user.options.is_some_and(|options| options.no_password)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add_user(name: &str) -> Change {
        Change::AddUser {
            name: name.to_owned(),
            password: Bytes::new(),
            options: UserAddOptions::default(),
        }
    }

    fn grant_role(user: &str, role: &str) -> Change {
        Change::GrantRole {
            user: user.to_owned(),
            role: role.to_owned(),
        }
    }

    #[test]
    fn changes_raise_the_revision_and_refusals_do_not() {
        let mut state = AuthState::default();
        let mut check = |change: Change, expect: Result<u64, Error>| {
            let done = state.apply(&change);
            assert_eq!(done.map(|_| state.revision), expect, "{change:?}");
        };
        check(Change::Enable, Err(Error::RootUserMissing));
        check(add_user(""), Err(Error::UserEmpty));
        check(add_user(ROOT), Ok(2));
        check(add_user(ROOT), Err(Error::UserExists));
        check(Change::Enable, Err(Error::RootRoleMissing));
        check(grant_role(ROOT, "none"), Err(Error::RoleNotFound));
        check(grant_role(ROOT, ROOT), Ok(3));
        check(grant_role(ROOT, ROOT), Ok(3));
        check(Change::Enable, Ok(3));
        check(
            Change::DeleteUser(ROOT.to_owned()),
            Err(Error::InvalidAuthManagement),
        );
        let revoke = Change::RevokeRole {
            user: ROOT.to_owned(),
            role: ROOT.to_owned(),
        };
        check(revoke, Err(Error::InvalidAuthManagement));
        check(Change::AddRole(String::new()), Err(Error::RoleEmpty));
        check(Change::AddRole("r".to_owned()), Ok(4));
        check(Change::AddRole("r".to_owned()), Err(Error::RoleExists));
        let grant = |key: &'static str, end: &'static str| Change::GrantPermission {
            role: "r".to_owned(),
            permission: Some(Permission {
                key: key.into(),
                range_end: end.into(),
                ..Permission::default()
            }),
        };
        check(grant("b", "a"), Err(Error::InvalidAuthManagement));
        check(grant("a", "b"), Ok(5));
        check(add_user("u"), Ok(6));
        check(grant_role("u", "r"), Ok(7));
        check(Change::DeleteRole("r".to_owned()), Ok(8));
        check(Change::DeleteRole("r".to_owned()), Err(Error::RoleNotFound));
        check(Change::Disable, Ok(9));
        check(Change::Disable, Ok(9));
        assert!(state.user("u").expect("there").roles.is_empty());
    }
}
