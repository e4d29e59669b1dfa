//! Auth: users, roles, permissions, and tokens that stand for users.

use bytes::Bytes;
use etcd_proto::authpb::{Permission, UserAddOptions};
use etcd_proto::etcdserverpb::auth_server::Auth;
use etcd_proto::etcdserverpb::{
    AuthDisableRequest, AuthDisableResponse, AuthEnableRequest, AuthEnableResponse,
    AuthRoleAddRequest, AuthRoleAddResponse, AuthRoleDeleteRequest, AuthRoleDeleteResponse,
    AuthRoleGetRequest, AuthRoleGetResponse, AuthRoleGrantPermissionRequest,
    AuthRoleGrantPermissionResponse, AuthRoleListRequest, AuthRoleListResponse,
    AuthRoleRevokePermissionRequest, AuthRoleRevokePermissionResponse, AuthStatusRequest,
    AuthStatusResponse, AuthUserAddRequest, AuthUserAddResponse, AuthUserChangePasswordRequest,
    AuthUserChangePasswordResponse, AuthUserDeleteRequest, AuthUserDeleteResponse,
    AuthUserGetRequest, AuthUserGetResponse, AuthUserGrantRoleRequest, AuthUserGrantRoleResponse,
    AuthUserListRequest, AuthUserListResponse, AuthUserRevokeRoleRequest,
    AuthUserRevokeRoleResponse, AuthenticateRequest, AuthenticateResponse, ResponseHeader,
};
use std::sync::Arc;
use tonic::{Request, Response, Status, async_trait};

use super::{Api, Backend};
use crate::etcd::auth::{AuthState, Change, Credentials, ROOT, ViaGateway, password};
use crate::etcd::batch::Command;
use crate::etcd::error::Error;
use crate::etcd::keyspace::Keyspace;
use crate::etcd::keyspace_choice::{Chosen, KeyspaceByUser};

impl Backend {
    /// Makes a change that only root may make, while authentication is on.
    async fn change(
        &self,
        credentials: &Credentials,
        change: Change,
    ) -> Result<Option<ResponseHeader>, Status> {
        let keyspace = self.current_keyspace().await?;
        let caller = credentials.caller(&keyspace)?;
        caller.check_root()?;
        let forget = match &change {
            Change::DeleteUser(name) | Change::ChangePassword { name, .. } => Some(name.clone()),
            _ => None,
        };
        let off = matches!(change, Change::Disable);
        keyspace
            .submit_as(Command::Auth(change), caller.proof())
            .await?;
        if let Some(name) = forget {
            keyspace.tokens.forget_user(&name);
        }
        if off {
            keyspace.tokens.forget_all();
        }
        Ok(self.header(&keyspace))
    }

    /// Who answers for the user, if users choose the connection's keyspace, and which keyspace it is if the user is
    /// named with one.
    fn of_user(&self, request: &Request<AuthenticateRequest>) -> (Backend, Option<Arc<str>>) {
        let Some(chosen) = request.extensions().get::<Chosen>() else {
            return (self.clone(), None);
        };
        let config = &self.server.config;
        let keyspace = config.keyspace_by_user.keyspace(&request.get_ref().name);
        let slot = self
            .server
            .slot(keyspace.map_or(&*config.default_keyspace, |it| it));
        let backend = Backend {
            slot,
            ..self.clone()
        };
        // Requests as JSON share connections: they bring their tokens along.
        if request.extensions().get::<ViaGateway>().is_none() {
            let api = |name: &Arc<str>| (Arc::clone(name), Api::new(backend.clone()));
            chosen.choose(keyspace.map(api));
        }
        (backend, keyspace.cloned())
    }

    fn header(&self, keyspace: &Keyspace) -> Option<ResponseHeader> {
        Some(self.headers().at(keyspace.revision()))
    }

    /// Hashes the password for somebody who may change users. It takes long, so nobody else has it done.
    async fn hash_password(
        &self,
        credentials: &Credentials,
        password: String,
    ) -> Result<Bytes, Status> {
        let keyspace = self.current_keyspace().await?;
        credentials.caller(&keyspace)?.check_root()?;
        self.server.passwords.hash(password).await
    }

    /// Whether the password is the user's.
    async fn check_password(
        &self,
        auth: &AuthState,
        name: &str,
        password: String,
    ) -> Result<(), Status> {
        if !auth.enabled {
            return Err(Error::AuthNotEnabled.into());
        }
        let user = auth.user(name).ok_or(Error::AuthFailed)?;
        if user.options.is_some_and(|options| options.no_password) {
            return Err(Error::NoPasswordUser.into());
        }
        let hash = user.password.clone();
        if self.server.passwords.matches(password, hash).await? {
            Ok(())
        } else {
            Err(Error::AuthFailed.into())
        }
    }
}

#[async_trait]
impl Auth for Backend {
    async fn auth_enable(
        &self,
        request: Request<AuthEnableRequest>,
    ) -> Result<Response<AuthEnableResponse>, Status> {
        let header = self
            .change(&Credentials::of(&request), Change::Enable)
            .await?;
        Ok(Response::new(AuthEnableResponse { header }))
    }

    async fn auth_disable(
        &self,
        request: Request<AuthDisableRequest>,
    ) -> Result<Response<AuthDisableResponse>, Status> {
        let header = self
            .change(&Credentials::of(&request), Change::Disable)
            .await?;
        Ok(Response::new(AuthDisableResponse { header }))
    }

    async fn auth_status(
        &self,
        request: Request<AuthStatusRequest>,
    ) -> Result<Response<AuthStatusResponse>, Status> {
        self.check_root(&request).await?;
        let keyspace = self.current_keyspace().await?;
        let auth = Arc::clone(&keyspace.state.read().auth);
        Ok(Response::new(AuthStatusResponse {
            header: self.header(&keyspace),
            enabled: auth.enabled,
            auth_revision: auth.revision,
        }))
    }

    async fn authenticate(
        &self,
        request: Request<AuthenticateRequest>,
    ) -> Result<Response<AuthenticateResponse>, Status> {
        let (backend, elsewhere) = self.of_user(&request);
        let AuthenticateRequest { name, password } = request.into_inner();
        let keyspace = backend.current_keyspace().await?;
        loop {
            let auth = Arc::clone(&keyspace.state.read().auth);
            self.check_password(&auth, &name, password.clone()).await?;
            let is_current = |revision| {
                let now = &keyspace.state.read().auth;
                now.enabled && now.revision == revision
            };
            let (index, now) = (keyspace.revision(), keyspace.clock.now());
            let tokens = &keyspace.tokens;
            let token = tokens.assign(&name, auth.revision, index, now, is_current)?;
            // A password that may have been changed meanwhile is checked again.
            let Some(token) = token else {
                continue;
            };
            let token = match elsewhere {
                Some(keyspace) => KeyspaceByUser::outer_token(&keyspace, &token),
                None => token,
            };
            return Ok(Response::new(AuthenticateResponse {
                header: self.header(&keyspace),
                token,
            }));
        }
    }

    async fn user_add(
        &self,
        request: Request<AuthUserAddRequest>,
    ) -> Result<Response<AuthUserAddResponse>, Status> {
        let credentials = Credentials::of(&request);
        let AuthUserAddRequest {
            name,
            password,
            options,
            ..
        } = request.into_inner();
        let options: UserAddOptions = options.unwrap_or_default();
        let password = if options.no_password {
            Bytes::new()
        } else {
            self.hash_password(&credentials, password).await?
        };
        let change = Change::AddUser {
            name,
            password,
            options,
        };
        let header = self.change(&credentials, change).await?;
        Ok(Response::new(AuthUserAddResponse { header }))
    }

    async fn user_get(
        &self,
        request: Request<AuthUserGetRequest>,
    ) -> Result<Response<AuthUserGetResponse>, Status> {
        let keyspace = self.current_keyspace().await?;
        let caller = Credentials::of(&request).caller(&keyspace)?;
        let AuthUserGetRequest { name } = request.into_inner();
        if caller.name() != Some(name.as_str()) {
            caller.check_root()?;
        }
        let auth = Arc::clone(&keyspace.state.read().auth);
        let user = auth.user(&name).ok_or(Error::UserNotFound)?;
        Ok(Response::new(AuthUserGetResponse {
            header: self.header(&keyspace),
            roles: user.roles.clone(),
        }))
    }

    async fn user_list(
        &self,
        request: Request<AuthUserListRequest>,
    ) -> Result<Response<AuthUserListResponse>, Status> {
        self.check_root(&request).await?;
        let keyspace = self.current_keyspace().await?;
        let auth = Arc::clone(&keyspace.state.read().auth);
        Ok(Response::new(AuthUserListResponse {
            header: self.header(&keyspace),
            users: auth.users().map(|(name, _)| name.clone()).collect(),
        }))
    }

    async fn user_delete(
        &self,
        request: Request<AuthUserDeleteRequest>,
    ) -> Result<Response<AuthUserDeleteResponse>, Status> {
        let credentials = Credentials::of(&request);
        let change = Change::DeleteUser(request.into_inner().name);
        let header = self.change(&credentials, change).await?;
        Ok(Response::new(AuthUserDeleteResponse { header }))
    }

    async fn user_change_password(
        &self,
        request: Request<AuthUserChangePasswordRequest>,
    ) -> Result<Response<AuthUserChangePasswordResponse>, Status> {
        let credentials = Credentials::of(&request);
        let AuthUserChangePasswordRequest {
            name,
            password,
            hashed_password,
        } = request.into_inner();
        let password = if password.is_empty() {
            password::given_hash(&hashed_password)?
        } else {
            self.hash_password(&credentials, password).await?
        };
        let change = Change::ChangePassword { name, password };
        let header = self.change(&credentials, change).await?;
        Ok(Response::new(AuthUserChangePasswordResponse { header }))
    }

    async fn user_grant_role(
        &self,
        request: Request<AuthUserGrantRoleRequest>,
    ) -> Result<Response<AuthUserGrantRoleResponse>, Status> {
        let credentials = Credentials::of(&request);
        let AuthUserGrantRoleRequest { user, role } = request.into_inner();
        let change = Change::GrantRole { user, role };
        let header = self.change(&credentials, change).await?;
        Ok(Response::new(AuthUserGrantRoleResponse { header }))
    }

    async fn user_revoke_role(
        &self,
        request: Request<AuthUserRevokeRoleRequest>,
    ) -> Result<Response<AuthUserRevokeRoleResponse>, Status> {
        let credentials = Credentials::of(&request);
        let AuthUserRevokeRoleRequest { name: user, role } = request.into_inner();
        let change = Change::RevokeRole { user, role };
        let header = self.change(&credentials, change).await?;
        Ok(Response::new(AuthUserRevokeRoleResponse { header }))
    }

    async fn role_add(
        &self,
        request: Request<AuthRoleAddRequest>,
    ) -> Result<Response<AuthRoleAddResponse>, Status> {
        let credentials = Credentials::of(&request);
        let change = Change::AddRole(request.into_inner().name);
        let header = self.change(&credentials, change).await?;
        Ok(Response::new(AuthRoleAddResponse { header }))
    }

    async fn role_get(
        &self,
        request: Request<AuthRoleGetRequest>,
    ) -> Result<Response<AuthRoleGetResponse>, Status> {
        let keyspace = self.current_keyspace().await?;
        let caller = Credentials::of(&request).caller(&keyspace)?;
        let AuthRoleGetRequest { role: name } = request.into_inner();
        let auth = Arc::clone(&keyspace.state.read().auth);
        let own = caller.name().is_some_and(|user| auth.has_role(user, &name));
        if !own {
            caller.check_root()?;
        }
        let role = auth.role(&name).ok_or(Error::RoleNotFound)?;
        let perm = if name == ROOT {
            // Root may do everything, whatever was granted.
            vec![Permission {
                perm_type: etcd_proto::authpb::permission::Type::Readwrite.into(),
                key: Bytes::new(),
                range_end: Bytes::from_static(b"\0"),
            }]
        } else {
            role.key_permission.clone()
        };
        Ok(Response::new(AuthRoleGetResponse {
            header: self.header(&keyspace),
            perm,
        }))
    }

    async fn role_list(
        &self,
        request: Request<AuthRoleListRequest>,
    ) -> Result<Response<AuthRoleListResponse>, Status> {
        self.check_root(&request).await?;
        let keyspace = self.current_keyspace().await?;
        let auth = Arc::clone(&keyspace.state.read().auth);
        Ok(Response::new(AuthRoleListResponse {
            header: self.header(&keyspace),
            roles: auth.roles().map(|(name, _)| name.clone()).collect(),
        }))
    }

    async fn role_delete(
        &self,
        request: Request<AuthRoleDeleteRequest>,
    ) -> Result<Response<AuthRoleDeleteResponse>, Status> {
        let credentials = Credentials::of(&request);
        let change = Change::DeleteRole(request.into_inner().role);
        let header = self.change(&credentials, change).await?;
        Ok(Response::new(AuthRoleDeleteResponse { header }))
    }

    async fn role_grant_permission(
        &self,
        request: Request<AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<AuthRoleGrantPermissionResponse>, Status> {
        let credentials = Credentials::of(&request);
        let AuthRoleGrantPermissionRequest { name: role, perm } = request.into_inner();
        let change = Change::GrantPermission {
            role,
            permission: perm,
        };
        let header = self.change(&credentials, change).await?;
        Ok(Response::new(AuthRoleGrantPermissionResponse { header }))
    }

    async fn role_revoke_permission(
        &self,
        request: Request<AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<AuthRoleRevokePermissionResponse>, Status> {
        let credentials = Credentials::of(&request);
        let AuthRoleRevokePermissionRequest {
            role,
            key,
            range_end,
        } = request.into_inner();
        let change = Change::RevokePermission {
            role,
            key,
            range_end,
        };
        let header = self.change(&credentials, change).await?;
        Ok(Response::new(AuthRoleRevokePermissionResponse { header }))
    }
}
