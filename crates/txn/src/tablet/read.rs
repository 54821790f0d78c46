//! Reads: they never wait for a lock.

use super::Tablet;
use crate::Row;
use crate::command::SchemaUse;
use crate::message::{Fault, ReadAt, Request, Response, ScanRequest, Scanned};
use base::{Key, KeyRange};
use std::sync::atomic::Ordering;
use storage::{At, View};

fn at(at: ReadAt) -> At {
    match at {
        ReadAt::Newest => At::Newest,
        ReadAt::Snapshot(scn) => At::Scn(scn),
    }
}

impl Tablet {
    pub(super) async fn read(
        &self,
        read_at: ReadAt,
        keys: &[Key],
        uses: &[SchemaUse],
    ) -> Result<Response, Fault> {
        self.check_keys(keys.iter())?;
        let (vouch, view) = self
            .clear(read_at, uses, |lead| keys.iter().any(|key| lead.marks.blocks_key(key, read_at)))
            .await?;
        self.check_schema(uses, read_at.scn())?;
        let mut rows = Vec::with_capacity(keys.len());
        let mut n_bytes = 0;
        for key in keys {
            let row = view.get(key, at(read_at))?;
            n_bytes += row.as_ref().map_or(0, |(_, value)| value.len());
            rows.push(row.map(|(scn, value)| Row { scn, value }));
            // The asker asks again for the other rows; at a snapshot that makes no difference.
            if n_bytes >= self.env.limits().scan_bytes && read_at != ReadAt::Newest {
                break;
            }
        }
        self.vouch_read(vouch, read_at).await?;
        Ok(Response::Rows(rows))
    }

    pub(super) async fn scan(&self, request: ScanRequest) -> Result<Response, Fault> {
        let ScanRequest { at: read_at, range, reverse, n_rows_max, uses } = request;
        // The asker may know older borders: only the part within this tablet is scanned.
        let Some(own) = self.range() else { return Err(self.not_leader()) };
        let from_here = match (reverse, &range.end) {
            (false, _) => own.contains(&range.start),
            (true, None) => own.end.is_none(),
            (true, Some(end)) => own.start < *end && own.end.as_ref().is_none_or(|own| end <= own),
        };
        if !from_here {
            return Err(Fault::WrongTablet);
        }
        let range = own.intersect(&range);
        let blocked = |lead: &super::Lead| lead.marks.blocks_range(&range, read_at);
        let (vouch, _) = self.clear(read_at, &uses, blocked).await?;
        self.check_schema(&uses, read_at.scn())?;
        let mut rows: Vec<(Key, Row)> = Vec::new();
        let mut n_bytes = 0;
        let mut covered = range.clone();
        for row in self.store.scan(&range, at(read_at), reverse) {
            let (key, scn, value) = row?;
            n_bytes += key.len() + value.len();
            rows.push((key, Row { scn, value }));
            if rows.len() >= n_rows_max.max(1) || n_bytes >= self.env.limits().scan_bytes {
                if let Some((last, _)) = rows.last() {
                    covered = match reverse {
                        false => KeyRange::new(range.start.clone(), base::key::successor(last)),
                        true => KeyRange { start: last.clone(), end: range.end.clone() },
                    };
                }
                break;
            }
        }
        self.vouch_read(vouch, read_at).await?;
        Ok(Response::Scanned(Scanned { rows, covered }))
    }

    /// Waits until no commit under way can belong to the rows that are read. Returns the term to vouch for
    /// afterwards (none if the snapshot is closed here, so that this replica's state is enough), and a view
    /// of that moment: several keys that are read one after the other must be of one state.
    async fn clear(
        &self,
        read_at: ReadAt,
        uses: &[SchemaUse],
        blocked: impl Fn(&super::Lead) -> bool,
    ) -> Result<(Option<u64>, View), Fault> {
        let blocked = |lead: &super::Lead| {
            lead.cutting || blocked(lead) || lead.marks.blocks_uses(uses, read_at)
        };
        let mut changes = None;
        loop {
            match &*self.lead.lock() {
                Some(lead) if !blocked(lead) => {
                    return Ok((Some(lead.epoch.term), self.store.view()));
                }
                Some(_) => {}
                None if self.is_closed(read_at) => return Ok((None, self.store.view())),
                None => return Err(self.not_leader()),
            }
            // Subscribe, look again, and only then wait: a change in between is not missed.
            match &mut changes {
                None => changes = Some(self.changed.subscribe()),
                Some(changes) => {
                    if changes.changed().await.is_err() {
                        return Err(self.not_leader());
                    }
                }
            }
        }
    }

    /// After the rows were read: confirms that they were the newest, or (without a term to vouch for) that
    /// no snapshot replaced the replica's state meanwhile.
    async fn vouch_read(&self, term: Option<u64>, read_at: ReadAt) -> Result<(), Fault> {
        match term {
            Some(term) => self.vouch(term).await,
            None if self.is_closed(read_at) => Ok(()),
            None => Err(self.not_leader()),
        }
    }

    /// Whether this replica can answer the request without the leader.
    pub(crate) fn has_past(&self, request: &Request) -> bool {
        match request {
            Request::Read { at, .. } => self.is_closed(*at),
            Request::Scan(scan) => self.is_closed(scan.at),
            _ => false,
        }
    }

    fn is_closed(&self, read_at: ReadAt) -> bool {
        let ReadAt::Snapshot(scn) = read_at else { return false };
        let closed = *self.closed.lock();
        scn <= closed.scn && self.applied_index.load(Ordering::Acquire) >= closed.index
    }

    /// As leader: closes an SCN, and returns SCN and index for the followers. `current` is the newest SCN
    /// handed out, asked for before this call. Example: `current` is 50, and one mark has floor 40: 40 is
    /// closed.
    pub(crate) fn close(&self, current: base::Scn) -> Option<(base::Scn, u64)> {
        let group = self.group.get()?;
        let mut closing = self.closing.lock();
        let term = {
            let mut guard = self.lead.lock();
            let lead = guard.as_mut().filter(|lead| !lead.cutting)?;
            let term = lead.epoch.term;
            if closing.as_ref().is_none_or(|closing| closing.term != term) {
                let scn = lead.marks.lowest_floor().map_or(current, |floor| floor.min(current));
                lead.floor = lead.floor.max(current);
                let index = self.applied_index.load(Ordering::Acquire);
                let closed = super::Closed { scn, index };
                *closing = Some(super::Closing { closed, term, since: self.env.now() });
            }
            term
        };
        let super::Closing { closed: next, since, .. } = (*closing)?;
        // A lease would not do: where the clock has stood still, a successor may have committed below `scn`.
        group.led_after(term, since).then_some(())?;
        *closing = None;
        let mut closed = self.closed.lock();
        if closed.scn >= next.scn {
            return None;
        }
        *closed = next;
        Some((next.scn, next.index))
    }

    /// As follower: the leader has closed `scn`, with all commits in the entries up to `index`.
    pub(crate) fn learn_closed(&self, scn: base::Scn, index: u64) {
        let mut closed = self.closed.lock();
        if scn > closed.scn {
            *closed = super::Closed { scn, index };
        }
    }
}

#[cfg(test)]
// The test stands outside of what is simulated.
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;
    use base::{Scn, TabletId};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_past_is_whole_once_its_entries_are_applied() {
        let dir = tempfile::tempdir().unwrap();
        let solo = crate::testing::solo(dir.path()).await.unwrap();
        let tablet = solo.node.tablet(TabletId::FIRST_DATA).unwrap();
        let far = Scn(1 << 60);
        let index = tablet.applied_index.load(Ordering::Acquire) + 1;
        tablet.learn_closed(far, index);
        assert!(!tablet.is_closed(ReadAt::Snapshot(far)), "the entry is not here yet");
        tablet.applied_index.store(index, Ordering::Release);
        assert!(tablet.is_closed(ReadAt::Snapshot(far)));
        assert!(!tablet.is_closed(ReadAt::Snapshot(Scn(far.0 + 1))));
        assert!(!tablet.is_closed(ReadAt::Newest));
    }
}
