//! Cutting a tablet in two.
//!
//! The leader lets commits under way end and makes new ones wait. Then it proposes the cut, and after
//! the cut it starts a new lock table. Transactions that held locks abort ("lost locks abort"), also in
//! the half that stays, because a lock may have covered keys of both halves.

use super::{Tablet, unexpected};
use crate::Error;
use crate::command::{Applied, Command, Reject};
use crate::message::{Epoch, Fault, Response};
use base::{Key, TabletId, TxnId};
use std::time::Duration;

/// How long a split waits for commits under way.
const PATIENCE: Duration = Duration::from_secs(5);

impl Tablet {
    pub(super) async fn split(&self, at: Key, child: TabletId) -> Result<Response, Fault> {
        let epoch = self.leading()?;
        let Some(range) = self.range() else { return Err(self.not_leader()) };
        if range.start == at {
            return Ok(Response::Done);
        }
        if !range.contains(&at) {
            return Err(Fault::WrongTablet);
        }
        self.with_lead(epoch, |lead| match std::mem::replace(&mut lead.splitting, true) {
            true => Err(Error::unavailable("another split of this tablet is under way").into()),
            false => Ok(()),
        })?;
        let answer = match self.env.timeout(PATIENCE, self.quiet(epoch)).await {
            Some(Ok(())) => {
                // From here on the upper half may be led elsewhere before this leader knows of it.
                self.with_lead(epoch, |lead| {
                    lead.cutting = true;
                    Ok(())
                })?;
                let command = Command::Split { term: epoch.term, at, child };
                match self.propose(epoch.term, &command).await {
                    // If the cut was made, there is a new lock table, and `certain` ends with an error.
                    Err(Fault::Lost) => {
                        let applied = self.certain(epoch, TxnId(0)).await;
                        applied.and(Err(Fault::Lost))
                    }
                    proposed => proposed,
                }
            }
            Some(Err(fault)) => Err(fault),
            None => {
                Err(Error::unavailable("transactions in this tablet do not come to an end").into())
            }
        };
        if let Some(lead) = &mut *self.lead.lock()
            && lead.epoch == epoch
        {
            (lead.splitting, lead.cutting) = (false, false);
        }
        self.bump();
        match answer? {
            Applied::Done => Ok(Response::Done),
            Applied::Rejected(Reject::Range) => Err(Fault::WrongTablet),
            Applied::Rejected(_) => Err(Error::unavailable("the tablet changed meanwhile").into()),
            other => Err(unexpected(&other)),
        }
    }

    /// Waits until no commit is under way.
    async fn quiet(&self, epoch: Epoch) -> Result<(), Fault> {
        let mut changes = self.changed.subscribe();
        loop {
            changes.borrow_and_update();
            if self.with_lead(epoch, |lead| Ok(lead.marks.is_empty()))? {
                return Ok(());
            }
            if changes.changed().await.is_err() {
                return Err(self.not_leader());
            }
        }
    }

    /// The cut is in the store: a new lock table.
    pub(super) fn after_split(&self) {
        let mut guard = self.lead.lock();
        if let Some(lead) = &mut *guard {
            let epoch = self.new_epoch(lead.epoch.term);
            match super::Lead::take_over(
                &self.store,
                self.id,
                epoch,
                self.env.now(),
                self.set_limits(),
            ) {
                Ok(fresh) => *lead = fresh,
                Err(error) => self.env.halt(format!("tablet {} cannot be led: {error}", self.id)),
            }
        }
        drop(guard);
        self.bump();
        if let Some(home) = self.home.upgrade() {
            home.routes_changed(self);
        }
    }
}
