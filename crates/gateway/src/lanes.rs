//! The threads that serve, each with its own connections to clients and to servers. A connection
//! goes to the lane with the fewest, and stays there unless another one has much less to do.
//!
//! Clients reuse the connection that was used last: a lane that is a little quicker for a while
//! gets all requests, then too many, while others stand idle beside it. So whoever has answered a
//! request looks at another lane; where that has less than half as much under way, the connection
//! moves there before its next request. TLS and HTTP/2 connections stay where they are.

use base::env::{Draws, Env, Instant};
use bytes::Bytes;
use std::net::{SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::mpsc::{self, OwnedPermit};

/// Connections that may wait for a lane.
const N_WAITING_MAX: usize = 1024;
/// Requests under way that a lane has more than another by chance.
const BY_CHANCE: u32 = 8;
/// A lane gives away no more than one connection in this time: what is uneven for a moment, as
/// threads are that share a core, is even again before that.
const MOVE_EVERY: Duration = Duration::from_millis(2);

/// A connection for a lane.
pub enum Arrival {
    New { stream: TcpStream, from: SocketAddr, at: SocketAddr },
    Moved(Moved),
}

/// A connection between two requests.
pub struct Moved {
    pub stream: TcpStream,
    pub from: SocketAddr,
    /// What was read ahead of the next request.
    pub rest: Bytes,
    /// What counts it as open, until it is dropped.
    pub open: Box<dyn Send>,
}

pub struct Lanes {
    lanes: Vec<Lane>,
    origin: Instant,
    pub n_moved: AtomicU64,
}

/// On cache lines of its own: its thread writes here with every request.
#[repr(align(128))]
struct Lane {
    draws: Draws,
    /// Set when its thread runs; in tests there is none.
    sender: OnceLock<mpsc::Sender<Arrival>>,
    n_open: AtomicUsize,
    n_under_way: AtomicU32,
    /// When it may give away the next one, in microseconds since the origin.
    moves_at_us: AtomicU64,
}

impl Lanes {
    pub fn new(env: &Env, n: usize) -> Lanes {
        let lane = |_| Lane {
            draws: env.draws(),
            sender: OnceLock::new(),
            n_open: AtomicUsize::new(0),
            n_under_way: AtomicU32::new(0),
            moves_at_us: AtomicU64::new(0),
        };
        let lanes = (0..n.max(1)).map(lane).collect();
        Lanes { lanes, origin: env.now(), n_moved: AtomicU64::new(0) }
    }

    pub fn random<const N: usize>(&self, lane: usize) -> [u64; N] {
        self.lanes[lane].draws.random()
    }

    pub fn n(&self) -> usize {
        self.lanes.len()
    }

    /// Where the lane's thread gets its connections from; once for each.
    pub fn open(&self, lane: usize) -> mpsc::Receiver<Arrival> {
        let (sender, arrivals) = mpsc::channel(N_WAITING_MAX);
        if self.lanes[lane].sender.set(sender).is_err() {
            tracing::error!(lane, "a lane was opened twice");
        }
        arrivals
    }

    /// Gives a connection to the lane with the fewest; false if that has too many that wait.
    pub fn place(&self, arrival: Arrival) -> bool {
        let fewest = self.lanes.iter().min_by_key(|lane| lane.n_open.load(Relaxed));
        let Some((lane, sender)) = fewest.and_then(|lane| Some((lane, lane.sender.get()?))) else {
            return false;
        };
        lane.n_open.fetch_add(1, Relaxed);
        let is_placed = sender.try_send(arrival).is_ok();
        if !is_placed {
            lane.n_open.fetch_sub(1, Relaxed);
        }
        is_placed
    }

    /// Room for a connection in this lane, if it has any.
    pub fn room(&self, lane: usize) -> Option<OwnedPermit<Arrival>> {
        self.lanes[lane].sender.get()?.clone().try_reserve_owned().ok()
    }

    pub fn take_over(&self, lane: usize, room: OwnedPermit<Arrival>, moved: Moved) {
        self.lanes[lane].n_open.fetch_add(1, Relaxed);
        self.n_moved.fetch_add(1, Relaxed);
        room.send(Arrival::Moved(moved));
    }

    /// Connections of all lanes, those that wait among them.
    pub fn n_open(&self) -> usize {
        self.lanes.iter().map(|lane| lane.n_open.load(Relaxed)).sum()
    }

    /// A connection is no longer this lane's.
    pub fn left(&self, lane: usize) {
        self.lanes[lane].n_open.fetch_sub(1, Relaxed);
    }

    pub fn begin(&self, lane: usize) {
        self.lanes[lane].n_under_way.fetch_add(1, Relaxed);
    }

    /// A request has ended; the lane that has much less to do, if one is seen and its connection
    /// can move.
    pub fn end(&self, now: Instant, lane: usize, can_move: bool) -> Option<usize> {
        let mine = self.lanes[lane].n_under_way.fetch_sub(1, Relaxed);
        let n_others = self.lanes.len() - 1;
        if mine <= BY_CHANCE || n_others == 0 || !can_move {
            return None;
        }
        // Another one each time, as good as drawn.
        let other = (lane + 1 + mine as usize % n_others) % self.lanes.len();
        let theirs = self.lanes[other].n_under_way.load(Relaxed);
        let gone = now.saturating_duration_since(self.origin);
        let moves_at = Duration::from_micros(self.lanes[lane].moves_at_us.load(Relaxed));
        if mine <= 2 * theirs + BY_CHANCE || gone < moves_at {
            return None;
        }
        let next = (gone + MOVE_EVERY).as_micros() as u64;
        self.lanes[lane].moves_at_us.store(next, Relaxed);
        Some(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_moves_to_a_lane_with_less_than_half() {
        let env = Env::real();
        let lanes = Lanes::new(&env, 2);
        let now = env.now();
        for _ in 0..20 {
            lanes.begin(0);
        }
        assert_eq!(lanes.end(now, 0, true), Some(1), "20 against none");
        assert_eq!(lanes.end(now, 0, true), None, "one at a time");
        let later = now + MOVE_EVERY;
        assert_eq!(lanes.end(later, 0, true), Some(1), "18 against none");
        let later = later + MOVE_EVERY;
        for _ in 0..5 {
            lanes.begin(1);
        }
        assert_eq!(lanes.end(later, 0, true), None, "17 against 5 may be chance");
        assert_eq!(lanes.end(later, 1, true), None);
        let alone = Lanes::new(&env, 1);
        for _ in 0..100 {
            alone.begin(0);
        }
        assert_eq!(alone.end(now, 0, true), None);
    }
}
