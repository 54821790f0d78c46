//! What the load generator and the test backend stand on: one clock, epoll, and a table of
//! connections. One thread each, no runtime: on two cores that the proxy shares, what these cost
//! is what the proxy does not get, and a runtime's timers (1 ms) are coarser than the latencies.

use anyhow::{Context, Result};
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::time::{ClockId, Timespec, clock_gettime};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};

pub const SECOND: u64 = 1_000_000_000;
pub const MILLISECOND: u64 = 1_000_000;
pub const MICROSECOND: u64 = 1_000;

/// CLOCK_MONOTONIC: the bench and its children read the same one.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * SECOND + now.tv_nsec.unsigned_abs()
}

pub fn sleep_until(due_ns: u64) {
    std::thread::sleep(std::time::Duration::from_nanos(due_ns.saturating_sub(now_ns())));
}

pub struct Poller {
    epoll: OwnedFd,
    events: Vec<Event>,
}

impl Poller {
    pub fn new() -> Result<Poller> {
        // The kernel wakes a thread up to 50 µs late unless told otherwise.
        rustix::thread::set_current_timer_slack(NonZeroU64::new(1)).context("timer slack")?;
        let epoll = epoll::create(CreateFlags::CLOEXEC).context("epoll")?;
        Ok(Poller { epoll, events: Vec::with_capacity(256) })
    }

    pub fn add(&self, socket: impl AsFd, token: u64, what: EventFlags) -> Result<()> {
        epoll::add(&self.epoll, socket, EventData::new_u64(token), what).context("epoll add")
    }

    pub fn modify(&self, socket: impl AsFd, token: u64, what: EventFlags) -> Result<()> {
        epoll::modify(&self.epoll, socket, EventData::new_u64(token), what).context("epoll modify")
    }

    /// What is ready, into `ready`; waits until `until_ns` at most.
    pub fn wait(
        &mut self,
        until_ns: Option<u64>,
        ready: &mut Vec<(u64, EventFlags)>,
    ) -> Result<()> {
        ready.clear();
        self.events.clear();
        let timeout = until_ns.map(|until| {
            let left = until.saturating_sub(now_ns());
            Timespec {
                tv_sec: (left / SECOND).cast_signed(),
                tv_nsec: (left % SECOND).cast_signed(),
            }
        });
        let space = rustix::buffer::spare_capacity(&mut self.events);
        match epoll::wait(&self.epoll, space, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(error).context("epoll wait"),
        }
        ready.extend(self.events.iter().map(|event| (event.data.u64(), event.flags)));
        Ok(())
    }
}

/// A listener on a loopback port, with room for as many newcomers as the kernel allows.
pub fn listen(port: u16) -> Result<TcpListener> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .with_context(|| format!("cannot listen on 127.0.0.1:{port}"))?;
    // The standard library's backlog of 128 is less than a proxy opens at once.
    rustix::net::listen(&listener, 4096)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// A connection under way; `Ok(None)` if it was refused at once. An error is this process's own
/// (no more descriptors).
pub fn connect(port: u16) -> Result<Option<TcpStream>> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)
        .context("no socket: is the limit of open files (ulimit -n) too low?")?;
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
        Err(_) => return Ok(None),
    }
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    Ok(Some(stream))
}

/// Values under tokens. A token is never given twice, so that what is said of a closed connection
/// cannot reach the next one in its place.
pub struct Slab<T> {
    slots: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

/// Tokens from here on are not the slab's.
pub const SPECIAL: u64 = 1 << 63;

impl<T> Slab<T> {
    pub fn new() -> Slab<T> {
        Slab { slots: Vec::new(), free: Vec::new() }
    }

    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn insert(&mut self, value: T) -> u64 {
        let idx = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            u32::try_from(self.slots.len() - 1).expect("fewer connections than descriptors")
        });
        let (life, slot) = &mut self.slots[idx as usize];
        *slot = Some(value);
        u64::from(*life) << 32 | u64::from(idx)
    }

    pub fn get_mut(&mut self, token: u64) -> Option<&mut T> {
        let (life, slot) = self.slots.get_mut((token & u64::from(u32::MAX)) as usize)?;
        if u64::from(*life) == token >> 32 { slot.as_mut() } else { None }
    }

    pub fn remove(&mut self, token: u64) -> Option<T> {
        self.get_mut(token)?;
        let idx = (token & u64::from(u32::MAX)) as u32;
        let (life, slot) = &mut self.slots[idx as usize];
        // Below SPECIAL.
        *life = (*life + 1) & (u32::MAX >> 1);
        self.free.push(idx);
        slot.take()
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, seeded, good enough to draw arrivals from.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Exponentially distributed around `mean`.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        // 53 bits, in (0, 1].
        let uniform = ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64;
        -mean * uniform.ln()
    }
}
