//! The session's transaction: opening, ending, savepoints, and the settings that live with it.

use super::{Notice, Session, Settings, View};
use crate::authority::Identity;
use crate::catalog::Overlay;
use crate::error::{Error, Result, state};
use crate::parse::Modes;
use base::Scn;
use std::sync::Arc;
use txn::{Isolation, Txn};

/// An open transaction.
pub struct Open {
    pub txn: Txn,
    /// Begun by BEGIN; else it ends with the statement, or the statements sent together.
    pub block: bool,
    pub failed: bool,
    /// Failed beyond what a savepoint could revive.
    doomed: bool,
    pub read_only: bool,
    pub overlay: Overlay,
    /// Statements that ran in it.
    pub n_statements: u32,
    pub view: Arc<View>,
    savepoints: Vec<Mark>,
    /// What a rollback goes back to, and what SET LOCAL leaves alone.
    before: Arc<Settings>,
    kept: Arc<Settings>,
}

struct Mark {
    name: String,
    savepoint: txn::Savepoint,
    overlay: Overlay,
    settings: Arc<Settings>,
    kept: Arc<Settings>,
}

impl Session {
    /// The open transaction; an implicit one is begun if there is none.
    pub(super) fn open(&mut self) -> &mut Open {
        let open = match self.open.take() {
            Some(open) => open,
            None => self.begin_open(self.settings.isolation, self.settings.read_only, false),
        };
        self.open.insert(open)
    }

    fn begin_open(&self, isolation: Isolation, read_only: bool, block: bool) -> Open {
        let txn = self.engine.client().begin(isolation);
        let view = Arc::new(self.make_view(txn.id().0, self.engine.env().wall_us()));
        Open {
            txn,
            block,
            failed: false,
            doomed: false,
            read_only,
            overlay: Overlay::default(),
            n_statements: 0,
            view,
            savepoints: Vec::new(),
            before: self.settings.clone(),
            kept: self.settings.clone(),
        }
    }

    pub(super) fn begin_block(&mut self, modes: &Modes) -> Result<()> {
        match &mut self.open {
            Some(open) if open.block => {
                self.warn_as(
                    state::ACTIVE_TRANSACTION,
                    "there is already a transaction in progress",
                );
                return Ok(());
            }
            // Statements sent together with BEGIN become part of its block.
            Some(open) => open.block = true,
            None => {
                let isolation = modes.isolation.unwrap_or(self.settings.isolation);
                let read_only = modes.read_only.unwrap_or(self.settings.read_only);
                self.open = Some(self.begin_open(isolation, read_only, true));
                return Ok(());
            }
        }
        self.set_modes(modes)
    }

    /// SET TRANSACTION.
    pub(super) fn set_modes(&mut self, modes: &Modes) -> Result<()> {
        let engine = self.engine.clone();
        let Some(open) = self.open.as_mut().filter(|open| open.block) else {
            self.warn_as(
                state::NO_ACTIVE_TRANSACTION,
                "SET TRANSACTION can only be used in transaction blocks",
            );
            return Ok(());
        };
        if let Some(isolation) = modes.isolation
            && isolation != open.txn.isolation()
        {
            if open.n_statements > 0 {
                return Err(Error::new(
                    state::ACTIVE_TRANSACTION,
                    "SET TRANSACTION ISOLATION LEVEL must be called before any query",
                ));
            }
            open.txn = engine.client().begin(isolation);
            let mut view = (*open.view).clone();
            view.txn_id = open.txn.id().0;
            open.view = Arc::new(view);
        }
        if let Some(read_only) = modes.read_only {
            if !read_only && open.read_only && open.n_statements > 0 {
                return Err(Error::new(
                    state::ACTIVE_TRANSACTION,
                    "transaction read-write mode must be set before any query",
                ));
            }
            open.read_only = read_only;
        }
        Ok(())
    }

    /// SET TRANSACTION SNAPSHOT: an SCN as `pg_export_snapshot()` gives it.
    pub(super) async fn set_snapshot(&mut self, text: &str) -> Result<()> {
        let Some(open) = self.open.as_mut().filter(|open| open.block) else {
            self.warn_as(
                state::NO_ACTIVE_TRANSACTION,
                "SET TRANSACTION can only be used in transaction blocks",
            );
            return Ok(());
        };
        if open.n_statements > 0 {
            return Err(Error::new(
                state::ACTIVE_TRANSACTION,
                "SET TRANSACTION SNAPSHOT must be called before any query",
            ));
        }
        if open.txn.isolation() != Isolation::RepeatableRead {
            return Err(Error::new(
                state::INVALID_PARAMETER,
                "a transaction that goes to a snapshot must have isolation level REPEATABLE READ",
            ));
        }
        let scn = text.trim().parse().map(Scn).map_err(|_| {
            Error::new(state::INVALID_PARAMETER, format!("invalid snapshot identifier: \"{text}\""))
                .hint("A snapshot is an SCN, as pg_export_snapshot() returns it.")
        })?;
        open.txn.read_as_of(scn).await?;
        Ok(())
    }

    /// SET SESSION CHARACTERISTICS.
    pub(super) fn set_characteristics(&mut self, modes: &Modes) -> Result<()> {
        if let Some(isolation) = modes.isolation {
            let name = super::settings::isolation_name(isolation);
            self.set("default_transaction_isolation", Some(name), false)?;
        }
        if let Some(read_only) = modes.read_only {
            let value = if read_only { "on" } else { "off" };
            self.set("default_transaction_read_only", Some(value), false)?;
        }
        Ok(())
    }

    /// Ends the implicit transaction, if there is one: commits it, or rolls it back on `error`.
    pub async fn finish(&mut self, error: bool) -> Result<()> {
        match &self.open {
            Some(open) if !open.block => {
                let failed = open.failed;
                if error || failed {
                    self.roll_back().await;
                    Ok(())
                } else {
                    self.commit_open().await
                }
            }
            _ => Ok(()),
        }
    }

    /// A stream of rows broke with an error, or anything else made the transaction useless.
    pub fn failed(&mut self) {
        // A transaction that is dropped rolls back in the background.
        drop(self.fail(false));
    }

    /// The same after an error of a statement; its locks are free when this returns.
    pub(super) async fn fail_with(&mut self, error: &Error) {
        let doomed = matches!(error.state(), state::SERIALIZATION_FAILURE | state::DEADLOCK);
        if let Some(txn) = self.fail(doomed) {
            txn.rollback().await;
        }
    }

    /// After a panic in a statement: what it left half done is not to be gone back to.
    pub(crate) async fn failed_by_bug(&mut self) {
        self.cancel.set_committing(None);
        if let Some(txn) = self.fail(true) {
            txn.rollback().await;
        }
    }

    /// The transaction has failed. Where no savepoint can revive it its locks are given up at once:
    /// others must not wait for a client to send ROLLBACK. The victim of a deadlock gives them up in
    /// any case (`doomed`), or the deadlock would stay.
    fn fail(&mut self, doomed: bool) -> Option<Txn> {
        let engine = self.engine.clone();
        let open = self.open.as_mut()?;
        open.failed = true;
        if open.doomed || !(doomed || open.savepoints.is_empty()) {
            return None;
        }
        open.doomed = true;
        open.overlay = Overlay::default();
        let fresh = engine.client().begin(open.txn.isolation());
        Some(std::mem::replace(&mut open.txn, fresh))
    }

    /// COMMIT; the tag.
    pub(super) async fn commit(&mut self, chain: bool) -> Result<&'static str> {
        let modes = self.modes();
        let tag = match &self.open {
            Some(open) if open.block && open.failed => {
                self.roll_back().await;
                "ROLLBACK"
            }
            Some(open) if open.block => {
                self.commit_open().await?;
                "COMMIT"
            }
            _ => {
                self.warn_as(state::NO_ACTIVE_TRANSACTION, "there is no transaction in progress");
                // What was sent together with this COMMIT is committed by it.
                if self.open.is_some() {
                    self.commit_open().await?;
                }
                "COMMIT"
            }
        };
        if chain {
            self.begin_block(&modes)?;
        }
        Ok(tag)
    }

    pub(super) async fn rollback(&mut self, chain: bool) -> Result<()> {
        let modes = self.modes();
        if !self.open.as_ref().is_some_and(|open| open.block) {
            self.warn_as(state::NO_ACTIVE_TRANSACTION, "there is no transaction in progress");
        }
        self.roll_back().await;
        if chain {
            self.begin_block(&modes)?;
        }
        Ok(())
    }

    fn modes(&self) -> Modes {
        match &self.open {
            Some(open) => {
                Modes { isolation: Some(open.txn.isolation()), read_only: Some(open.read_only) }
            }
            None => Modes::default(),
        }
    }

    async fn commit_open(&mut self) -> Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let Open { txn, overlay, before, kept, .. } = open;
        self.cancel.set_committing(txn.has_writes().then(|| txn.id()));
        let outcome = txn.commit().await;
        // Also when the outcome is unknown: forgetting too much costs a look-up.
        if !overlay.is_empty() {
            self.engine.redefined(&overlay.changed()).await;
        }
        self.cancel.set_committing(None);
        match outcome {
            Ok(_) => {
                self.go_back_to(kept);
                Ok(())
            }
            Err(error) => {
                self.go_back_to(before);
                Err(error.into())
            }
        }
    }

    async fn roll_back(&mut self) {
        if let Some(open) = self.open.take() {
            let before = open.before.clone();
            open.txn.rollback().await;
            self.go_back_to(before);
        }
    }

    fn go_back_to(&mut self, settings: Arc<Settings>) {
        if Arc::ptr_eq(&self.settings, &settings) {
            return;
        }
        for name in ["TimeZone", "application_name", "default_transaction_read_only"] {
            if let (Some(old), Some(new)) = (self.settings.get(name), settings.get(name))
                && old != new
            {
                self.notices.push(Notice::Setting { name: name.to_owned(), value: new });
            }
        }
        self.settings = settings;
    }

    // ---- savepoints

    fn in_block(&mut self, what: &str) -> Result<&mut Open> {
        match &mut self.open {
            Some(open) if open.block => Ok(open),
            _ => Err(Error::new(
                state::NO_ACTIVE_TRANSACTION,
                format!("{what} can only be used in transaction blocks"),
            )),
        }
    }

    pub(super) fn savepoint(&mut self, name: String) -> Result<()> {
        let settings = self.settings.clone();
        let open = self.in_block("SAVEPOINT")?;
        let mark = Mark {
            name,
            savepoint: open.txn.savepoint(),
            overlay: open.overlay.clone(),
            settings,
            kept: open.kept.clone(),
        };
        open.savepoints.push(mark);
        Ok(())
    }

    pub(super) fn release(&mut self, name: &str) -> Result<()> {
        let open = self.in_block("RELEASE SAVEPOINT")?;
        let at = mark_of(open, name)?;
        for mark in open.savepoints.drain(at..) {
            open.txn.release(mark.savepoint);
        }
        Ok(())
    }

    pub(super) fn rollback_to(&mut self, name: &str) -> Result<()> {
        let open = self.in_block("ROLLBACK TO SAVEPOINT")?;
        let at = mark_of(open, name)?;
        if open.doomed {
            return Err(Error::new(
                state::SERIALIZATION_FAILURE,
                "the transaction has lost its locks and cannot go back to a savepoint",
            )
            .hint("Roll it back as a whole and run it again."));
        }
        let mark = &open.savepoints[at];
        open.txn.rollback_to(mark.savepoint);
        open.overlay = mark.overlay.clone();
        open.kept = mark.kept.clone();
        open.failed = false;
        let settings = mark.settings.clone();
        open.savepoints.truncate(at + 1);
        self.go_back_to(settings);
        self.renew_view();
        Ok(())
    }

    // ---- settings

    pub(super) fn set(&mut self, name: &str, value: Option<&str>, local: bool) -> Result<()> {
        let is_own = name.eq_ignore_ascii_case("transaction_isolation")
            || name.eq_ignore_ascii_case("transaction_read_only");
        if is_own && self.open.as_ref().is_some_and(|open| open.block) {
            let text = value.unwrap_or_default();
            let sql = match name.to_ascii_lowercase().as_str() {
                "transaction_isolation" => format!("SET TRANSACTION ISOLATION LEVEL {text}"),
                _ if matches!(text, "on" | "true" | "1") => "SET TRANSACTION READ ONLY".to_owned(),
                _ => "SET TRANSACTION READ WRITE".to_owned(),
            };
            return match crate::parse::parse(&sql)? {
                crate::parse::Statement::SetTransaction(modes) => self.set_modes(&modes),
                _ => Err(Error::new(
                    state::INVALID_PARAMETER,
                    format!("invalid value for parameter \"{name}\": \"{text}\""),
                )),
            };
        }
        if local && !self.open.as_ref().is_some_and(|open| open.block) {
            self.warn_as(
                state::NO_ACTIVE_TRANSACTION,
                "SET LOCAL can only be used in transaction blocks",
            );
            return Ok(());
        }
        let mut settings = (*self.settings).clone();
        let reported = settings.set(name, value)?;
        self.settings = Arc::new(settings);
        if let (Some(open), false) = (&mut self.open, local) {
            let mut kept = (*open.kept).clone();
            kept.set(name, value)?;
            open.kept = Arc::new(kept);
        }
        if let Some((name, value)) = reported {
            self.notices.push(Notice::Setting { name, value });
        }
        self.renew_view();
        Ok(())
    }

    /// SET ROLE and SET SESSION AUTHORIZATION; `name` none: back to who logged in.
    pub(super) fn set_role(
        &mut self,
        name: Option<&str>,
        is_session: bool,
        local: bool,
    ) -> Result<()> {
        if local && !self.open.as_ref().is_some_and(|open| open.block) {
            let what = if is_session { "SESSION AUTHORIZATION" } else { "ROLE" };
            self.warn_as(
                state::NO_ACTIVE_TRANSACTION,
                format!("SET LOCAL {what} can only be used in transaction blocks"),
            );
            return Ok(());
        }
        let roles = &self.identity.authority.roles;
        let wanted = match name {
            None => None,
            Some(name) => {
                let role = roles.named(name).ok_or_else(|| {
                    let message = format!("role \"{name}\" does not exist");
                    // As a setting's value it is an invalid one.
                    Error::new(state::INVALID_PARAMETER, message)
                })?;
                let session = self.settings.session_role.unwrap_or(self.login);
                let is_super = |id| roles.get(id).is_some_and(|role| role.superuser);
                let may = match is_session {
                    true => role.id == self.login || is_super(self.login),
                    false => is_super(session) || roles.is_member(session, role.id),
                };
                if !may {
                    let what = if is_session { "session authorization" } else { "role" };
                    return Err(Error::new(
                        state::INSUFFICIENT_PRIVILEGE,
                        format!("permission denied to set {what} \"{name}\""),
                    ));
                }
                Some(role.id)
            }
        };
        let apply = |settings: &Settings| {
            let mut next = settings.clone();
            if is_session {
                (next.session_role, next.role) = (wanted, None);
            } else {
                next.role = wanted;
            }
            Arc::new(next)
        };
        self.settings = apply(&self.settings);
        if let (Some(open), false) = (&mut self.open, local) {
            open.kept = apply(&open.kept);
        }
        let before = self.identity.is_superuser;
        let role = self.settings.role.or(self.settings.session_role).unwrap_or(self.login);
        self.identity =
            Arc::new(Identity::new(self.identity.authority.clone(), role, self.identity.database));
        self.usable_path = self.identity.usable_path(&self.path_of).into();
        if self.identity.is_superuser != before {
            let value = if self.identity.is_superuser { "on" } else { "off" }.to_owned();
            self.notices.push(Notice::Setting { name: "is_superuser".into(), value });
        }
        if is_session {
            let value = self.session_user().to_string();
            self.notices.push(Notice::Setting { name: "session_authorization".into(), value });
        }
        self.renew_view();
        Ok(())
    }

    pub(super) fn reset_all(&mut self) {
        let mut settings = (*self.settings).clone();
        for (name, value) in settings.reset_all() {
            self.notices.push(Notice::Setting { name, value });
        }
        self.settings = Arc::new(settings);
        if let Some(open) = &mut self.open {
            open.kept = self.settings.clone();
        }
        self.renew_view();
    }

    pub(super) fn renew_view(&mut self) {
        if let Some(open) = &self.open {
            let (txn_id, now_us) = (open.view.txn_id, open.view.now_us);
            let view = Arc::new(self.make_view(txn_id, now_us));
            if let Some(open) = &mut self.open {
                open.view = view;
            }
        }
    }
}

fn mark_of(open: &Open, name: &str) -> Result<usize> {
    open.savepoints.iter().rposition(|mark| mark.name == name).ok_or_else(|| {
        Error::new(state::NO_SUCH_SAVEPOINT, format!("savepoint \"{name}\" does not exist"))
    })
}
