//! Roles and who belongs to whom.
//!
//! A role is a user, a group, or both. A member may act as the role (SET ROLE), and has its privileges without asking
//! if the member inherits. Memberships form no circle.
//!
//! ```text
//!   ada (INHERIT)  ─► writers (INHERIT) ─► readers        ada has the privileges of writers and readers
//!   bob (NOINHERIT) ─► writers                            bob has neither, until SET ROLE writers
//! ```
//!
//! Pure. The rules are those of PostgreSQL 15 (its pages "Database Roles" and "Predefined Roles").

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Also its `pg_authid.oid`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct RoleId(pub u32);

impl RoleId {
    /// Everybody, in access lists.
    pub const PUBLIC: RoleId = RoleId(0);
    /// The role that a fresh cluster has.
    pub const FIRST: RoleId = RoleId(10);
    pub const DATABASE_OWNER: RoleId = RoleId(6171);
    pub const READ_ALL_DATA: RoleId = RoleId(6181);
    pub const WRITE_ALL_DATA: RoleId = RoleId(6182);
    pub const MONITOR: RoleId = RoleId(3373);
    pub const READ_ALL_SETTINGS: RoleId = RoleId(3374);
    pub const READ_ALL_STATS: RoleId = RoleId(3375);
    pub const STAT_SCAN_TABLES: RoleId = RoleId(3377);
    pub const SIGNAL_BACKEND: RoleId = RoleId(4200);
}

/// The roles that every cluster has, with PostgreSQL's oids. Those that stand for a server's files and programs are
/// here too, so that scripts which grant them run; there is nothing that they open.
const PREDEFINED: [(RoleId, &str); 12] = [
    (RoleId::DATABASE_OWNER, "pg_database_owner"),
    (RoleId::READ_ALL_DATA, "pg_read_all_data"),
    (RoleId::WRITE_ALL_DATA, "pg_write_all_data"),
    (RoleId::MONITOR, "pg_monitor"),
    (RoleId::READ_ALL_SETTINGS, "pg_read_all_settings"),
    (RoleId::READ_ALL_STATS, "pg_read_all_stats"),
    (RoleId::STAT_SCAN_TABLES, "pg_stat_scan_tables"),
    (RoleId(4569), "pg_read_server_files"),
    (RoleId(4570), "pg_write_server_files"),
    (RoleId(4571), "pg_execute_server_program"),
    (RoleId::SIGNAL_BACKEND, "pg_signal_backend"),
    (RoleId(4544), "pg_checkpoint"),
];

/// What a role is a member of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    pub role: RoleId,
    /// May let others in, and put them out.
    pub admin: bool,
    pub grantor: RoleId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Role {
    pub id: RoleId,
    pub name: String,
    /// `SCRAM-SHA-256$…`, as in `pg_authid.rolpassword`.
    pub verifier: Option<String>,
    pub superuser: bool,
    pub inherit: bool,
    pub createrole: bool,
    pub createdb: bool,
    pub login: bool,
    pub replication: bool,
    pub bypassrls: bool,
    /// Sessions at a time on one node; −1: any number.
    pub connection_limit: i32,
    /// Microseconds since 1970; the password is not valid after it.
    pub valid_until_us: Option<i64>,
    pub member_of: Vec<Membership>,
}

impl Role {
    pub fn new(id: RoleId, name: &str) -> Role {
        Role {
            id,
            name: name.to_owned(),
            verifier: None,
            superuser: false,
            inherit: true,
            createrole: false,
            createdb: false,
            login: false,
            replication: false,
            bypassrls: false,
            connection_limit: -1,
            valid_until_us: None,
            member_of: Vec::new(),
        }
    }

    fn predefined(id: RoleId, name: &str) -> Role {
        let mut role = Role::new(id, name);
        if id == RoleId::MONITOR {
            let all = [RoleId::READ_ALL_SETTINGS, RoleId::READ_ALL_STATS, RoleId::STAT_SCAN_TABLES];
            let join = |role| Membership { role, admin: false, grantor: RoleId::FIRST };
            role.member_of = all.map(join).to_vec();
        }
        role
    }
}

/// Names that no one may give a role.
pub fn is_reserved(name: &str) -> bool {
    name.starts_with("pg_") || matches!(name, "public" | "none")
}

/// All roles of the cluster.
#[derive(Clone, Debug, Default)]
pub struct Roles {
    by_id: BTreeMap<RoleId, Arc<Role>>,
    by_name: HashMap<String, RoleId>,
}

impl Roles {
    /// The stored roles, and the predefined ones.
    pub fn new(stored: Vec<Role>) -> Roles {
        let predefined = PREDEFINED.iter().map(|(id, name)| Role::predefined(*id, name));
        let mut roles = Roles::default();
        for role in predefined.chain(stored) {
            roles.by_name.insert(role.name.clone(), role.id);
            roles.by_id.insert(role.id, Arc::new(role));
        }
        roles
    }

    #[cfg(test)]
    pub fn for_tests(list: &[(u32, &str)]) -> Roles {
        Roles::new(list.iter().map(|(id, name)| Role::new(RoleId(*id), name)).collect())
    }

    pub fn get(&self, id: RoleId) -> Option<&Arc<Role>> {
        self.by_id.get(&id)
    }

    pub fn named(&self, name: &str) -> Option<&Arc<Role>> {
        self.get(*self.by_name.get(name)?)
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<Role>> {
        self.by_id.values()
    }

    /// A role's name; one that is gone is shown by its number, as PostgreSQL does.
    pub fn name(&self, id: RoleId) -> String {
        self.get(id).map_or_else(|| id.0.to_string(), |role| role.name.clone())
    }

    /// `role` and all that it is a member of, over any number of steps. `inherited`: only where the member inherits.
    /// `database_owner` owns the database at hand, and counts as a member of pg_database_owner there.
    pub fn held(
        &self,
        role: RoleId,
        inherited: bool,
        database_owner: Option<RoleId>,
    ) -> BTreeSet<RoleId> {
        let mut held = BTreeSet::from([role]);
        let mut left = vec![role];
        while let Some(id) = left.pop() {
            let Some(role) = self.get(id) else { continue };
            if inherited && !role.inherit {
                continue;
            }
            let owned = (database_owner == Some(id)).then_some(RoleId::DATABASE_OWNER);
            let groups = role.member_of.iter().map(|membership| membership.role).chain(owned);
            left.extend(groups.filter(|group| held.insert(*group)));
        }
        held
    }

    /// Whether `member` may act as `role`, whatever inherits.
    pub fn is_member(&self, member: RoleId, role: RoleId) -> bool {
        self.held(member, false, None).contains(&role)
    }

    /// Whether `member` may let others into `role`: by an admin option of its own or of a role that it belongs to.
    pub fn is_admin(&self, member: RoleId, role: RoleId) -> bool {
        self.held(member, false, None).into_iter().filter_map(|held| self.get(held)).any(|held| {
            held.member_of.iter().any(|membership| membership.role == role && membership.admin)
        })
    }

    /// Who is a direct member of `role`.
    pub fn members(&self, role: RoleId) -> impl Iterator<Item = (&Arc<Role>, &Membership)> {
        self.all().flat_map(move |member| {
            let of_role = member.member_of.iter().filter(move |known| known.role == role);
            of_role.map(move |membership| (member, membership))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(id: u32, name: &str, inherit: bool, groups: &[(u32, bool)]) -> Role {
        let join = |(role, admin): &(u32, bool)| Membership {
            role: RoleId(*role),
            admin: *admin,
            grantor: RoleId::FIRST,
        };
        let member_of = groups.iter().map(join).collect();
        Role { inherit, member_of, ..Role::new(RoleId(id), name) }
    }

    #[test]
    fn privileges_go_on_where_members_inherit() {
        let roles = Roles::new(vec![
            role(1, "ada", true, &[(3, false)]),
            role(2, "bob", false, &[(3, true)]),
            role(3, "writers", true, &[(4, false)]),
            role(4, "readers", true, &[]),
        ]);
        let held = |id, inherited| {
            roles.held(RoleId(id), inherited, None).into_iter().map(|id| id.0).collect::<Vec<_>>()
        };
        assert_eq!(held(1, true), [1, 3, 4]);
        assert_eq!(held(2, true), [2]);
        assert_eq!(held(2, false), [2, 3, 4]);
        assert!(roles.is_member(RoleId(2), RoleId(4)) && !roles.is_member(RoleId(4), RoleId(2)));
        assert!(roles.is_admin(RoleId(2), RoleId(3)) && !roles.is_admin(RoleId(1), RoleId(3)));
        assert_eq!(roles.members(RoleId(3)).count(), 2);
    }

    #[test]
    fn the_owner_of_a_database_is_in_a_role_of_its_own() {
        let roles = Roles::new(vec![role(1, "ada", true, &[]), role(2, "bob", true, &[])]);
        let owner = Some(RoleId(1));
        assert!(roles.held(RoleId(1), true, owner).contains(&RoleId::DATABASE_OWNER));
        assert!(!roles.held(RoleId(2), true, owner).contains(&RoleId::DATABASE_OWNER));
        let monitor = roles.named("pg_monitor").unwrap();
        assert!(roles.is_member(monitor.id, RoleId::READ_ALL_STATS));
        assert_eq!(roles.name(RoleId(77)), "77");
    }
}
