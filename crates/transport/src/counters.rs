//! Counts of frames, connections and above all of harmless faults.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        #[derive(Default)]
        pub struct Counters { $(pub(crate) $name: AtomicU64),* }

        /// The counters at one moment.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Snapshot { $($(#[$doc])* pub $name: u64),* }

        impl Counters {
            pub fn snapshot(&self) -> Snapshot {
                Snapshot { $($name: self.$name.load(Ordering::Relaxed)),* }
            }
        }
    };
}

counters! {
    n_frames_sent,
    n_frames_received,
    n_bytes_sent,
    n_bytes_received,
    /// A wrong checksum, an impossible length or an unknown shape: the connection was closed.
    n_frames_corrupt,
    /// A sequence number seen before: the frame was dropped.
    n_frames_repeated,
    /// A sequence number from the future: the connection was closed.
    n_frames_out_of_order,
    n_connections_opened,
    n_connections_accepted,
    /// Refused at the greeting: wrong cluster, wrong node, or garbage.
    n_connections_refused,
    n_deadlines_passed,
    /// Nothing came back over it, not even after a deadline.
    n_connections_given_up,
}

pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}
