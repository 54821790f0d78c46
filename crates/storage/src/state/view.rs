//! Views: what one read sees, from its first key to its last.
//!
//! Every batch gets the next number of one sequence that all trees share. After its last key is in,
//! the number is published, and the batch is visible. A view is a published number: the trees skip
//! keys with larger numbers. The numbers of live views are kept, because a tree may forget how it
//! looked before the oldest live view ([`Views::watermark`]).
//!
//! The trees draw from the sequence too, for versions of themselves, so published numbers have gaps.
//! The trees never publish.

use super::State;
use super::segments::Segments;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Default)]
pub(crate) struct Views {
    published: AtomicU64,
    live: Mutex<BTreeMap<u64, usize>>,
}

impl Views {
    /// From now on every batch with a number below `next` is visible.
    pub fn publish(&self, next: u64) {
        self.published.store(next, Ordering::Release);
    }

    /// Every live or future view sees all batches with a number below this.
    pub fn watermark(&self) -> u64 {
        let live = self.live.lock();
        let oldest = live.first_key_value().map(|(number, _)| *number);
        oldest.unwrap_or_else(|| self.published.load(Ordering::Acquire))
    }

    fn enter(&self) -> u64 {
        let mut live = self.live.lock();
        let number = self.published.load(Ordering::Acquire);
        *live.entry(number).or_default() += 1;
        number
    }

    fn leave(&self, number: u64) {
        let mut live = self.live.lock();
        if let Some(count) = live.get_mut(&number) {
            *count -= 1;
            if *count == 0 {
                live.remove(&number);
            }
        }
    }
}

/// One view, with the segments it may need. They stay on disk until the view is dropped.
pub(crate) struct View {
    pub number: u64,
    pub segments: Arc<Segments>,
    views: Arc<Views>,
}

impl View {
    pub fn of(state: &State) -> View {
        // The number first. Every batch published before it went into a segment that is listed by now;
        // a batch published after it may go into a segment that opens later, and is not needed here.
        let number = state.views.enter();
        let segments = state.segments.read().clone();
        View { number, segments, views: state.views.clone() }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.views.leave(self.number);
    }
}
