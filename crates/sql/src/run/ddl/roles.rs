//! Roles and their memberships.
//!
//! As in PostgreSQL 15: superusers are made by superusers only, and so are those who see or replicate everything. Whoever
//! may create roles may change and drop any role that is no superuser, and may let others into it.

use crate::authority::{Identity, Membership, Role, RoleId};
use crate::catalog::roles::is_reserved;
use crate::catalog::{Catalog, rows};
use crate::error::{Error, Result, state};
use crate::parse::{GrantRoles, RoleOptions, RoleSpec};
use crate::run::Exec;
use crate::types::{Datum, Type, text};
use crate::wire::scram::{self, Verifier};

impl Exec<'_> {
    pub fn identity(&self) -> &Identity {
        &self.view.identity
    }

    /// The role that a statement names.
    pub fn role_of(&self, spec: &RoleSpec) -> Result<RoleId> {
        let roles = &self.identity().authority.roles;
        match spec {
            RoleSpec::CurrentUser => Ok(self.identity().role),
            RoleSpec::SessionUser => roles
                .named(&self.view.session_user)
                .map(|role| role.id)
                .ok_or_else(|| no_role(&self.view.session_user)),
            RoleSpec::Public => Err(no_role("public")),
            RoleSpec::Named(name) => {
                roles.named(name).map(|role| role.id).ok_or_else(|| no_role(name))
            }
        }
    }

    /// The same where everybody may be named.
    pub fn grantee_of(&self, spec: &RoleSpec) -> Result<RoleId> {
        match spec {
            RoleSpec::Public => Ok(RoleId::PUBLIC),
            other => self.role_of(other),
        }
    }

    /// A role's row, locked. The predefined ones have none.
    async fn lock_role(&mut self, id: RoleId) -> Result<Role> {
        let name = self.identity().authority.roles.name(id);
        if is_reserved(&name) {
            return Err(Error::new(
                state::RESERVED_NAME,
                format!("role name \"{name}\" is reserved"),
            )
            .detail("Role names starting with \"pg_\" are reserved."));
        }
        Catalog::lock_role(self.txn, &name).await?.ok_or_else(|| no_role(&name))
    }

    fn put_role(&mut self, role: &Role) -> Result<()> {
        self.txn.put(rows::role_key(&role.name), rows::encode(role)?)?;
        Ok(())
    }

    pub async fn create_role(&mut self, name: &str, options: &RoleOptions) -> Result<()> {
        let identity = self.identity();
        if !identity.may_create_roles() {
            return Err(refused("permission denied to create role"));
        }
        let needs_superuser = [
            (options.superuser, "must be superuser to create superusers"),
            (options.replication, "must be superuser to create replication users"),
            (options.bypassrls, "must be superuser to change bypassrls attribute"),
        ];
        for (wanted, message) in needs_superuser {
            if wanted == Some(true) && !identity.is_superuser {
                return Err(refused(message));
            }
        }
        check_name(name)?;
        Catalog::change_authority(self.txn, self.overlay).await?;
        if Catalog::lock_role(self.txn, name).await?.is_some() {
            return Err(exists(name));
        }
        let id = RoleId(self.engine.catalog().allocate(1).await?);
        let mut role = Role::new(id, name);
        self.apply_role(&mut role, options)?;
        let grantor = self.identity().role;
        for group in &options.in_roles {
            let group = self.role_of(group)?;
            self.require_admin(group)?;
            role.member_of.push(Membership { role: group, admin: false, grantor });
        }
        self.put_role(&role)?;
        let members = options.members.iter().map(|member| (member, false));
        let members: Vec<_> = members.chain(options.admins.iter().map(|m| (m, true))).collect();
        for (member, admin) in members {
            let mut member = self.lock_role_of(member).await?;
            member.member_of.push(Membership { role: id, admin, grantor });
            self.put_role(&member)?;
        }
        Ok(())
    }

    async fn lock_role_of(&mut self, spec: &RoleSpec) -> Result<Role> {
        let id = self.role_of(spec)?;
        self.lock_role(id).await
    }

    pub async fn alter_role(&mut self, spec: &RoleSpec, options: &RoleOptions) -> Result<()> {
        let id = self.role_of(spec)?;
        let identity = self.identity();
        let is_self = id == identity.role;
        let target = identity.authority.roles.get(id).cloned();
        let privileged =
            target.as_ref().is_some_and(|role| role.superuser) || options.superuser.is_some();
        if !identity.is_superuser {
            if privileged {
                return Err(refused(
                    "must be superuser to alter superuser roles or change superuser attribute",
                ));
            }
            if options.replication.is_some() || target.as_ref().is_some_and(|role| role.replication)
            {
                return Err(refused(
                    "must be superuser to alter replication roles or change replication attribute",
                ));
            }
            if options.bypassrls.is_some() {
                return Err(refused("must be superuser to change bypassrls attribute"));
            }
            // Whoever may not create roles may still choose his own password.
            let only_password =
                RoleOptions { password: options.password.clone(), ..RoleOptions::default() };
            if !(identity.may_create_roles() || is_self && *options == only_password) {
                return Err(refused("permission denied"));
            }
        }
        Catalog::change_authority(self.txn, self.overlay).await?;
        let mut role = self.lock_role(id).await?;
        self.apply_role(&mut role, options)?;
        if role.id == RoleId::FIRST && !role.superuser {
            return Err(refused("permission denied to alter role")
                .detail("The bootstrap user must have the SUPERUSER attribute."));
        }
        self.put_role(&role)
    }

    fn apply_role(&mut self, role: &mut Role, options: &RoleOptions) -> Result<()> {
        if let Some(password) = &options.password {
            role.verifier = self.verifier(password.as_deref());
        }
        let flags = [
            (&mut role.superuser, options.superuser),
            (&mut role.inherit, options.inherit),
            (&mut role.createrole, options.createrole),
            (&mut role.createdb, options.createdb),
            (&mut role.login, options.login),
            (&mut role.replication, options.replication),
            (&mut role.bypassrls, options.bypassrls),
        ];
        for (flag, wanted) in flags {
            *flag = wanted.unwrap_or(*flag);
        }
        role.connection_limit = options.connection_limit.unwrap_or(role.connection_limit);
        if let Some(until) = &options.valid_until {
            role.valid_until_us = match text::parse(until, &Type::TimestampTz, &self.view.zone)? {
                Datum::TimestampTz(us) => Some(us),
                _ => None,
            };
        }
        Ok(())
    }

    /// What is stored of a password. An empty one would let everybody in.
    fn verifier(&mut self, password: Option<&str>) -> Option<String> {
        let password = password?;
        if !scram::is_empty(password) {
            // As pg_dumpall writes it.
            if Verifier::parse(password).is_some() {
                return Some(password.to_owned());
            }
            let mut salt = [0; 16];
            salt[..8].copy_from_slice(&self.engine.env().random().to_be_bytes());
            salt[8..].copy_from_slice(&self.engine.env().random().to_be_bytes());
            let verifier = Verifier::derive(password, salt);
            // Some characters count for nothing (RFC 4013), so that a text of them is empty too.
            if !verifier.is_of("") {
                return Some(verifier.to_string());
            }
        }
        self.notices.push(scram::EMPTY.into());
        None
    }

    pub async fn rename_role(&mut self, name: &str, to: &str) -> Result<()> {
        let id = self.role_of(&RoleSpec::Named(name.to_owned()))?;
        let identity = self.identity();
        if *name == *self.view.session_user {
            return Err(Error::unsupported("session user cannot be renamed"));
        }
        if id == identity.role {
            return Err(Error::unsupported("current user cannot be renamed"));
        }
        let is_superuser = identity.authority.roles.get(id).is_some_and(|role| role.superuser);
        if is_superuser && !identity.is_superuser {
            return Err(refused("must be superuser to rename superusers"));
        }
        if !identity.may_create_roles() {
            return Err(refused("permission denied to rename role"));
        }
        check_name(to)?;
        Catalog::change_authority(self.txn, self.overlay).await?;
        let mut role = self.lock_role(id).await?;
        if Catalog::lock_role(self.txn, to).await?.is_some() {
            return Err(exists(to));
        }
        self.txn.delete(rows::role_key(name))?;
        role.name = to.to_owned();
        self.put_role(&role)
    }

    /// The notices to send.
    pub async fn drop_roles(&mut self, specs: &[RoleSpec], if_exists: bool) -> Result<Vec<String>> {
        if !self.identity().may_create_roles() {
            return Err(refused("permission denied to drop role"));
        }
        let mut notices = Vec::new();
        let mut dropped = Vec::new();
        for spec in specs {
            let RoleSpec::Named(name) = spec else {
                return Err(Error::new(
                    state::INVALID_PARAMETER,
                    "cannot use special role specifier in DROP ROLE",
                ));
            };
            let identity = self.identity();
            let Some(role) = identity.authority.roles.named(name).cloned() else {
                if if_exists {
                    notices.push(format!("role \"{name}\" does not exist, skipping"));
                    continue;
                }
                return Err(no_role(name));
            };
            if role.id == identity.role {
                return Err(Error::new(state::OBJECT_IN_USE, "current user cannot be dropped"));
            }
            if **name == *self.view.session_user {
                return Err(Error::new(state::OBJECT_IN_USE, "session user cannot be dropped"));
            }
            if role.id == RoleId::FIRST {
                return Err(Error::new(
                    state::DEPENDENT_OBJECTS,
                    format!(
                        "cannot drop role {name} because it is required by the database system"
                    ),
                ));
            }
            if role.superuser && !identity.is_superuser {
                return Err(refused("must be superuser to drop superusers"));
            }
            dropped.push(role);
        }
        if dropped.is_empty() {
            return Ok(notices);
        }
        Catalog::change_authority(self.txn, self.overlay).await?;
        for role in &dropped {
            let role = self.lock_role(role.id).await?;
            let held = self.dependents(role.id).await?;
            if !held.is_empty() {
                return Err(Error::new(
                    state::DEPENDENT_OBJECTS,
                    format!(
                        "role \"{}\" cannot be dropped because some objects depend on it",
                        role.name
                    ),
                )
                .detail(held.join("\n"))
                .hint("REASSIGN OWNED and DROP OWNED, run in each database, take them away."));
            }
            self.txn.delete(rows::role_key(&role.name))?;
        }
        // Nobody stays a member of what is gone.
        let ids: Vec<RoleId> = dropped.iter().map(|role| role.id).collect();
        let authority = self.identity().authority.clone();
        for member in authority.roles.all() {
            let is_member = member.member_of.iter().any(|known| ids.contains(&known.role));
            if !is_member || ids.contains(&member.id) || is_reserved(&member.name) {
                continue;
            }
            let mut member = self.lock_role(member.id).await?;
            member.member_of.retain(|known| !ids.contains(&known.role));
            self.put_role(&member)?;
        }
        Ok(notices)
    }

    // ---- memberships

    fn require_admin(&self, role: RoleId) -> Result<()> {
        let identity = self.identity();
        let known = identity.authority.roles.get(role);
        let is_superuser = known.is_some_and(|role| role.superuser);
        let name = identity.authority.roles.name(role);
        if identity.is_superuser {
            return Ok(());
        }
        if is_superuser {
            return Err(refused("must be superuser to alter superusers"));
        }
        // In PostgreSQL 15 whoever may create roles is an admin of all of them.
        let is_admin =
            identity.may_create_roles() || identity.authority.roles.is_admin(identity.role, role);
        if is_admin {
            return Ok(());
        }
        Err(refused(format!("must have admin option on role \"{name}\"")))
    }

    /// The notices to send.
    pub async fn grant_roles(&mut self, grant: &GrantRoles) -> Result<Vec<String>> {
        let mut notices = Vec::new();
        let mut pairs = Vec::new();
        for name in &grant.roles {
            let role = self.role_of(&RoleSpec::Named(name.clone()))?;
            if role == RoleId::DATABASE_OWNER && grant.is_grant {
                return Err(Error::new(
                    state::INVALID_GRANT_OPERATION,
                    format!("role \"{name}\" cannot have explicit members"),
                ));
            }
            self.require_admin(role)?;
            for member in &grant.members {
                pairs.push((role, name, self.role_of(member)?));
            }
        }
        Catalog::change_authority(self.txn, self.overlay).await?;
        let authority = self.identity().authority.clone();
        let grantor = self.identity().role;
        for (role, name, member) in pairs {
            let member_name = authority.roles.name(member);
            if grant.is_grant && authority.roles.is_member(role, member) {
                let message = format!("role \"{name}\" is a member of role \"{member_name}\"");
                return Err(Error::new(state::INVALID_GRANT_OPERATION, message));
            }
            let mut row = self.lock_role(member).await?;
            let at = row.member_of.iter().position(|known| known.role == role);
            match (grant.is_grant, at) {
                (true, Some(at)) if row.member_of[at].admin || !grant.admin => {
                    notices.push(format!(
                        "role \"{member_name}\" is already a member of role \"{name}\""
                    ));
                }
                (true, Some(at)) => row.member_of[at].admin = true,
                (true, None) => {
                    row.member_of.push(Membership { role, admin: grant.admin, grantor });
                }
                (false, Some(at)) if grant.admin => row.member_of[at].admin = false,
                (false, Some(at)) => {
                    row.member_of.remove(at);
                }
                (false, None) => notices
                    .push(format!("role \"{member_name}\" is not a member of role \"{name}\"")),
            }
            self.put_role(&row)?;
        }
        Ok(notices)
    }
}

fn check_name(name: &str) -> Result<()> {
    if !is_reserved(name) {
        return Ok(());
    }
    let error = Error::new(state::RESERVED_NAME, format!("role name \"{name}\" is reserved"));
    if name.starts_with("pg_") {
        return Err(error.detail("Role names starting with \"pg_\" are reserved."));
    }
    Err(error)
}

pub fn no_role(name: &str) -> Error {
    Error::new(state::UNDEFINED_OBJECT, format!("role \"{name}\" does not exist"))
}

fn exists(name: &str) -> Error {
    Error::new(state::DUPLICATE_OBJECT, format!("role \"{name}\" already exists"))
}

pub fn refused(message: impl Into<String>) -> Error {
    Error::new(state::INSUFFICIENT_PRIVILEGE, message.into())
}
