//! Access lists: who may do what with an object, as PostgreSQL's `aclitem[]` says it.
//!
//! An object without a list has the list of its kind ([`Class::default_acl`]). A list grows by GRANT and shrinks by
//! REVOKE; its first change writes the default entries down. The text form is PostgreSQL's:
//!
//! ```text
//!   ada=arw/atoll        atoll gave ada INSERT, SELECT and UPDATE
//!   =r/atoll             and everybody SELECT
//!   bob=r*/atoll         bob may give SELECT on
//! ```
//!
//! Pure. The rules, and the letters, are those of PostgreSQL 15's `GRANT` page and of its `aclchk.c`.

use super::roles::{RoleId, Roles};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A set of privileges, a bit each.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Privileges(pub u16);

impl Privileges {
    pub const NONE: Privileges = Privileges(0);
    pub const INSERT: Privileges = Privileges(1);
    pub const SELECT: Privileges = Privileges(1 << 1);
    pub const UPDATE: Privileges = Privileges(1 << 2);
    pub const DELETE: Privileges = Privileges(1 << 3);
    pub const TRUNCATE: Privileges = Privileges(1 << 4);
    pub const REFERENCES: Privileges = Privileges(1 << 5);
    pub const TRIGGER: Privileges = Privileges(1 << 6);
    pub const USAGE: Privileges = Privileges(1 << 7);
    pub const CREATE: Privileges = Privileges(1 << 8);
    pub const TEMPORARY: Privileges = Privileges(1 << 9);
    pub const CONNECT: Privileges = Privileges(1 << 10);
    pub const EXECUTE: Privileges = Privileges(1 << 11);

    /// Each with its letter and its name, in the order in which PostgreSQL prints them.
    pub const ALL: [(Privileges, char, &'static str); 12] = [
        (Privileges::INSERT, 'a', "INSERT"),
        (Privileges::SELECT, 'r', "SELECT"),
        (Privileges::UPDATE, 'w', "UPDATE"),
        (Privileges::DELETE, 'd', "DELETE"),
        (Privileges::TRUNCATE, 'D', "TRUNCATE"),
        (Privileges::REFERENCES, 'x', "REFERENCES"),
        (Privileges::TRIGGER, 't', "TRIGGER"),
        (Privileges::EXECUTE, 'X', "EXECUTE"),
        (Privileges::USAGE, 'U', "USAGE"),
        (Privileges::CREATE, 'C', "CREATE"),
        (Privileges::TEMPORARY, 'T', "TEMPORARY"),
        (Privileges::CONNECT, 'c', "CONNECT"),
    ];

    /// A privilege by its name, whatever the case.
    pub fn named(name: &str) -> Option<Privileges> {
        if name.eq_ignore_ascii_case("temp") {
            return Some(Privileges::TEMPORARY);
        }
        let found = Privileges::ALL.iter().find(|(_, _, known)| known.eq_ignore_ascii_case(name));
        found.map(|(privilege, _, _)| *privilege)
    }

    pub const fn union(self, other: Privileges) -> Privileges {
        Privileges(self.0 | other.0)
    }

    pub const fn without(self, other: Privileges) -> Privileges {
        Privileges(self.0 & !other.0)
    }

    pub const fn common(self, other: Privileges) -> Privileges {
        Privileges(self.0 & other.0)
    }

    pub const fn contains(self, other: Privileges) -> bool {
        self.0 & other.0 == other.0
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The names of its privileges.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let own = Privileges::ALL.into_iter().filter(move |(one, _, _)| self.contains(*one));
        own.map(|(_, _, name)| name)
    }
}

/// What can be granted on. The numbers are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Class {
    Table = 1,
    Sequence = 2,
    Schema = 3,
    Database = 4,
    /// One column of a table.
    Column = 5,
}

impl Class {
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The oid of the catalogue that lists such objects.
    pub fn catalog_oid(self) -> u32 {
        match self {
            Class::Table | Class::Sequence | Class::Column => 1259,
            Class::Schema => 2615,
            Class::Database => 1262,
        }
    }

    /// As messages name it.
    pub fn word(self) -> &'static str {
        match self {
            Class::Table => "table",
            Class::Sequence => "sequence",
            Class::Schema => "schema",
            Class::Database => "database",
            Class::Column => "column",
        }
    }

    /// What GRANT ALL gives.
    pub const fn privileges(self) -> Privileges {
        use Privileges as P;
        match self {
            Class::Table => P::INSERT
                .union(P::SELECT)
                .union(P::UPDATE)
                .union(P::DELETE)
                .union(P::TRUNCATE)
                .union(P::REFERENCES)
                .union(P::TRIGGER),
            Class::Column => P::INSERT.union(P::SELECT).union(P::UPDATE).union(P::REFERENCES),
            Class::Sequence => P::USAGE.union(P::SELECT).union(P::UPDATE),
            Class::Schema => P::USAGE.union(P::CREATE),
            Class::Database => P::CREATE.union(P::TEMPORARY).union(P::CONNECT),
        }
    }

    /// What everybody may do with an object that has no list.
    pub const fn of_public(self) -> Privileges {
        match self {
            Class::Database => Privileges::TEMPORARY.union(Privileges::CONNECT),
            _ => Privileges::NONE,
        }
    }

    pub fn default_acl(self, owner: RoleId) -> Acl {
        if self == Class::Column {
            return Acl::default();
        }
        let mut acl = Acl::default();
        if !self.of_public().is_empty() {
            acl.entry(RoleId::PUBLIC, owner).privileges = self.of_public();
        }
        acl.entry(owner, owner).privileges = self.privileges();
        acl
    }
}

/// What one role gave another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    pub grantee: RoleId,
    pub grantor: RoleId,
    pub privileges: Privileges,
    /// Those of them that the grantee may give on.
    pub grantable: Privileges,
}

/// An access list. Its grants name different pairs of grantee and grantor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acl(pub Vec<Grant>);

impl Acl {
    fn entry(&mut self, grantee: RoleId, grantor: RoleId) -> &mut Grant {
        let same = |grant: &Grant| grant.grantee == grantee && grant.grantor == grantor;
        let at = self.0.iter().position(same).unwrap_or_else(|| {
            let (privileges, grantable) = (Privileges::NONE, Privileges::NONE);
            self.0.push(Grant { grantee, grantor, privileges, grantable });
            self.0.len() - 1
        });
        &mut self.0[at]
    }

    pub fn grant(
        &mut self,
        grantee: RoleId,
        grantor: RoleId,
        privileges: Privileges,
        with_option: bool,
    ) {
        let entry = self.entry(grantee, grantor);
        entry.privileges = entry.privileges.union(privileges);
        if with_option {
            entry.grantable = entry.grantable.union(privileges);
        }
    }

    /// Takes back what `grantor` gave. `only_option`: the right to give on, and not the privilege. Err: others have
    /// these privileges from the grantee, and `cascade` does not say to take them too.
    pub fn revoke(
        &mut self,
        grantee: RoleId,
        grantor: RoleId,
        privileges: Privileges,
        only_option: bool,
        cascade: bool,
    ) -> Result<(), Privileges> {
        let mut next = self.clone();
        next.take(grantee, grantor, privileges, only_option);
        // What the grantee can no longer give falls with it.
        loop {
            let orphan = next.0.iter().find_map(|grant| {
                let giver = grant.grantor;
                if giver == grant.grantee || giver != grantee && !cascade {
                    return None;
                }
                let lost = grant.privileges.common(privileges);
                let lost = lost.without(next.grantable_to(giver)).without(self.rooted(giver));
                (!lost.is_empty()).then_some((grant.grantee, giver, lost))
            });
            let Some((holder, giver, lost)) = orphan else { break };
            if !cascade {
                return Err(lost);
            }
            next.take(holder, giver, lost, false);
        }
        *self = next;
        Ok(())
    }

    fn take(&mut self, grantee: RoleId, grantor: RoleId, what: Privileges, only_option: bool) {
        for grant in &mut self.0 {
            if grant.grantee == grantee && grant.grantor == grantor {
                grant.grantable = grant.grantable.without(what);
                if !only_option {
                    grant.privileges = grant.privileges.without(what);
                }
            }
        }
        self.0.retain(|grant| !grant.privileges.is_empty());
    }

    fn grantable_to(&self, role: RoleId) -> Privileges {
        let own = self.0.iter().filter(|grant| grant.grantee == role);
        own.fold(Privileges::NONE, |all, grant| all.union(grant.grantable))
    }

    /// The owner gives by right and not by an option: whoever gave to himself.
    fn rooted(&self, role: RoleId) -> Privileges {
        let is_owner = self.0.iter().any(|grant| grant.grantor == role && grant.grantee == role);
        if is_owner { Privileges(u16::MAX) } else { Privileges::NONE }
    }

    /// What the list gives to any of these roles.
    pub fn of(&self, is_held: impl Fn(RoleId) -> bool) -> Privileges {
        let own = self.0.iter().filter(|grant| is_held(grant.grantee));
        own.fold(Privileges::NONE, |all, grant| all.union(grant.privileges))
    }

    /// What any of these roles may give on.
    pub fn grantable_of(&self, is_held: impl Fn(RoleId) -> bool) -> Privileges {
        let own = self.0.iter().filter(|grant| is_held(grant.grantee));
        own.fold(Privileges::NONE, |all, grant| all.union(grant.grantable))
    }

    /// The new owner takes the place of the old one.
    pub fn change_owner(&mut self, old: RoleId, new: RoleId) {
        let before = std::mem::take(&mut self.0);
        let other = |role: RoleId| if role == old { new } else { role };
        for grant in before {
            let entry = self.entry(other(grant.grantee), other(grant.grantor));
            entry.privileges = entry.privileges.union(grant.privileges);
            entry.grantable = entry.grantable.union(grant.grantable);
        }
    }

    pub fn names(&self, role: RoleId) -> bool {
        self.0.iter().any(|grant| grant.grantee == role || grant.grantor == role)
    }

    /// As `aclitem[]` prints its elements.
    pub fn texts(&self, roles: &Roles) -> Vec<String> {
        let text = |grant: &Grant| {
            let mut text = match grant.grantee {
                RoleId::PUBLIC => String::new(),
                role => quoted(&roles.name(role)),
            };
            text.push('=');
            for (privilege, letter, _) in Privileges::ALL {
                if grant.privileges.contains(privilege) {
                    text.push(letter);
                    if grant.grantable.contains(privilege) {
                        text.push('*');
                    }
                }
            }
            text.push('/');
            text.push_str(&quoted(&roles.name(grant.grantor)));
            text
        };
        self.0.iter().map(text).collect()
    }
}

/// A role's name in an `aclitem`: in quotes unless it is of plain characters.
fn quoted(name: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || c == '_';
    if !name.is_empty() && name.chars().all(is_plain) {
        return name.to_owned();
    }
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A database: a set of schemas. Roles belong to the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Database {
    /// Also its `pg_database.oid`.
    pub id: u32,
    pub name: String,
    pub owner: RoleId,
    /// Sessions at a time on one node; −1: any number.
    pub connection_limit: i32,
    pub allow_connections: bool,
    pub is_template: bool,
}

/// An object's access list. The object's row holds its owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectAcl {
    pub class: Class,
    pub id: u32,
    /// None: the list of its kind.
    pub acl: Option<Acl>,
    /// By column id.
    pub columns: BTreeMap<u32, Acl>,
}

impl ObjectAcl {
    pub fn new(class: Class, id: u32) -> ObjectAcl {
        ObjectAcl { class, id, acl: None, columns: BTreeMap::new() }
    }

    pub fn is_default(&self) -> bool {
        self.acl.is_none() && self.columns.is_empty()
    }
}

/// What objects get that a role will make: ALTER DEFAULT PRIVILEGES.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefaultAcl {
    pub database: u32,
    pub role: RoleId,
    /// None: in every schema.
    pub schema: Option<u32>,
    /// Tables, sequences or schemas.
    pub class: Class,
    /// For every schema: the whole list. For one schema: what is added.
    pub acl: Acl,
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: RoleId = RoleId(10);
    const ADA: RoleId = RoleId(100);
    const BOB: RoleId = RoleId(101);

    fn of(acl: &Acl, role: RoleId) -> Privileges {
        acl.of(|held| held == role || held == RoleId::PUBLIC)
    }

    #[test]
    fn what_is_granted_can_be_taken_back() {
        let mut acl = Class::Table.default_acl(OWNER);
        assert_eq!(of(&acl, OWNER), Class::Table.privileges());
        assert!(of(&acl, ADA).is_empty());
        acl.grant(ADA, OWNER, Privileges::SELECT.union(Privileges::INSERT), false);
        acl.grant(RoleId::PUBLIC, OWNER, Privileges::DELETE, false);
        assert!(of(&acl, ADA).contains(Privileges::SELECT.union(Privileges::DELETE)));
        acl.revoke(ADA, OWNER, Privileges::SELECT, false, false).unwrap();
        assert_eq!(of(&acl, ADA), Privileges::INSERT.union(Privileges::DELETE));
        acl.revoke(OWNER, OWNER, Privileges::UPDATE, false, false).unwrap();
        assert!(!of(&acl, OWNER).contains(Privileges::UPDATE), "an owner may take from himself");
    }

    #[test]
    fn what_was_given_on_falls_with_it() {
        let mut acl = Class::Table.default_acl(OWNER);
        acl.grant(ADA, OWNER, Privileges::SELECT, true);
        acl.grant(BOB, ADA, Privileges::SELECT, false);
        let refused = acl.revoke(ADA, OWNER, Privileges::SELECT, true, false);
        assert_eq!(refused, Err(Privileges::SELECT));
        assert!(of(&acl, BOB).contains(Privileges::SELECT), "a refused change changes nothing");
        acl.revoke(ADA, OWNER, Privileges::SELECT, true, true).unwrap();
        assert!(of(&acl, ADA).contains(Privileges::SELECT), "the option alone was taken");
        assert!(of(&acl, BOB).is_empty());
    }

    #[test]
    fn texts_are_those_of_aclitem() {
        let roles = Roles::for_tests(&[(10, "atoll"), (100, "ada"), (101, "b b")]);
        let mut acl = Class::Table.default_acl(OWNER);
        acl.grant(ADA, OWNER, Privileges::SELECT, true);
        acl.grant(RoleId::PUBLIC, OWNER, Privileges::INSERT, false);
        acl.grant(BOB, OWNER, Privileges::UPDATE, false);
        let texts = ["atoll=arwdDxt/atoll", "ada=r*/atoll", "=a/atoll", "\"b b\"=w/atoll"];
        assert_eq!(acl.texts(&roles), texts);
        let database = Class::Database.default_acl(OWNER);
        assert_eq!(database.texts(&roles), ["=Tc/atoll", "atoll=CTc/atoll"]);
    }
}
