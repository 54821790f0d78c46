//! Whose turn it is.
//!
//! One thread holds the baton and runs; all others have left their registers behind ([`context`]).
//! The holder hands on where it would wait, so between two waits a thread is alone in the world,
//! and everything here may be touched without a lock by whoever holds the baton.

use super::clock::{self, Clock};
use super::context::{self, Context};
use super::disk::Disk;
use super::raw;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::cell::{Cell, UnsafeCell};
use std::ffi::c_void;
use std::sync::OnceLock;

/// A host: clocks and a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Host(pub usize);

/// One life of a program on a host; process 0 is the world's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process(usize);

impl Process {
    pub const WORLD: Process = Process(0);
}

/// Turns that may be taken while the clock stands still. Beyond, somebody spins.
const TURNS_MAX: u64 = 20_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    /// Waits for a wake at an address, and in any case until the deadline (true time).
    Futex {
        address: usize,
        deadline_ns: u64,
    },
    Until(u64),
    Joins(usize),
    Over,
}

struct Thread {
    process: Process,
    state: State,
    timed_out: bool,
    context: Box<Context>,
    /// As the C library knows it, which on x86-64 is where its thread-local values are.
    handle: libc::pthread_t,
    fs: usize,
    rng: SmallRng,
}

struct ProcessState {
    host: Option<Host>,
    is_dead: bool,
    is_paused: bool,
    mishap: Option<Mishap>,
}

impl ProcessState {
    fn new(host: Option<Host>) -> ProcessState {
        ProcessState { host, is_dead: false, is_paused: false, mishap: None }
    }
}

/// A bug that is to happen in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mishap {
    /// In the task that is polled next after so many other polls.
    AtPoll(u64),
    /// In the thread that waits next after so many other waits, a library's own among them.
    AtWait(u64),
}

impl Mishap {
    fn at_poll(&mut self) -> Option<&mut u64> {
        match self {
            Mishap::AtPoll(left) => Some(left),
            Mishap::AtWait(_) => None,
        }
    }

    fn at_wait(&mut self) -> Option<&mut u64> {
        match self {
            Mishap::AtWait(left) => Some(left),
            Mishap::AtPoll(_) => None,
        }
    }
}

pub(super) struct HostState {
    pub clock: Clock,
    pub disk: Disk,
    /// True time at which its threads stopped.
    frozen_since_ns: Option<u64>,
    /// What each turn of a thread takes, on the host's one processor; 0 on one that is well.
    turn_ns: u64,
    /// The processor is taken until then.
    busy_until_ns: u64,
}

struct Machine {
    seed: u64,
    rng: SmallRng,
    threads: Vec<Thread>,
    /// Threads that may still get a turn, by number.
    live: Vec<usize>,
    current: usize,
    /// Is over, and ends for real once nobody stands on its stack.
    leaving: Option<usize>,
    processes: Vec<ProcessState>,
    hosts: Vec<HostState>,
    trace: Trace,
    turns_since_jump: u64,
    busy: bool,
}

/// What happened so far, in one number; and every event, for those who look for a difference.
#[derive(Default)]
struct Trace {
    hash: u64,
    n_events: u64,
    file: Option<i32>,
}

struct Baton(UnsafeCell<Option<Box<Machine>>>);

// SAFETY: only the holder of the baton touches what is inside, on one and the same real thread.
unsafe impl Sync for Baton {}

static MACHINE: Baton = Baton(UnsafeCell::new(None));

const NOBODY: usize = usize::MAX;

thread_local! {
    /// This thread's number, if it takes turns.
    static ME: Cell<usize> = const { Cell::new(NOBODY) };
}

/// Whether the calling thread takes turns. All others live in real time, untouched.
pub(super) fn takes_turns() -> bool {
    ME.get() != NOBODY
}

/// Runs `work` on what the baton protects. Nothing in it may wait or come through the door.
fn with<T>(work: impl FnOnce(&mut Machine) -> T) -> T {
    // SAFETY: this thread takes turns and runs, so it holds the baton; `busy` shows that no
    // other borrow is alive.
    let machine = unsafe { &mut *MACHINE.0.get() };
    let Some(machine) = machine else { stop("the machine is not there") };
    if machine.busy {
        stop("the machine came through its own door");
    }
    machine.busy = true;
    let result = work(machine);
    machine.busy = false;
    result
}

/// A failure of the simulation itself: nothing can be trusted any more.
pub(super) fn stop(reason: &str) -> ! {
    let line = format!("sim: {reason}\n");
    // SAFETY: writes a buffer that lives on.
    unsafe { raw::call(libc::SYS_write, [2, line.as_ptr() as usize, line.len(), 0, 0, 0]) };
    raw::exit(70)
}

impl Machine {
    fn may_run(&self, thread: usize) -> bool {
        let process = &self.processes[self.threads[thread].process.0];
        let stands = |host: Host| self.hosts[host.0].frozen_since_ns.is_some();
        !process.is_paused && !process.is_dead && !process.host.is_some_and(stands)
    }

    /// Until when the turn that begins now takes on a slow host.
    fn toll(&mut self, thread: usize) -> Option<u64> {
        let host = self.processes[self.threads[thread].process.0].host?;
        let host = &mut self.hosts[host.0];
        if host.turn_ns == 0 {
            return None;
        }
        host.busy_until_ns = host.busy_until_ns.max(clock::now_ns()) + host.turn_ns;
        Some(host.busy_until_ns)
    }

    /// Counts one chance for a mishap of the kind that `left` tells; whether it is its turn.
    fn mishap(&mut self, left: fn(&mut Mishap) -> Option<&mut u64>) -> bool {
        let process = self.threads[self.current].process.0;
        let due = &mut self.processes[process].mishap;
        match due.as_mut().and_then(left) {
            Some(0) => {
                *due = None;
                true
            }
            Some(n) => {
                *n -= 1;
                false
            }
            None => false,
        }
    }

    /// The next thread to run. Advances the clock if nobody can.
    fn choose(&mut self) -> usize {
        loop {
            let ready =
                |m: &Machine, id: usize| m.threads[id].state == State::Ready && m.may_run(id);
            let n_ready = self.live.iter().filter(|id| ready(self, **id)).count();
            if n_ready > 0 {
                let turn = if n_ready == 1 { 0 } else { self.rng.random_range(0..n_ready) };
                let chosen = self.live.iter().filter(|id| ready(self, **id)).nth(turn);
                if let Some(&chosen) = chosen {
                    self.turns_since_jump += 1;
                    if self.turns_since_jump > TURNS_MAX {
                        stop("the clock stands still: some thread waits in a loop");
                    }
                    return chosen;
                }
            }
            self.jump();
        }
    }

    /// Moves the clock to the earliest deadline and wakes those who wait for it.
    fn jump(&mut self) {
        let deadline = |m: &Machine, id: usize| match m.threads[id].state {
            State::Futex { deadline_ns, .. } | State::Until(deadline_ns) if m.may_run(id) => {
                deadline_ns
            }
            _ => u64::MAX,
        };
        let next = self.live.iter().map(|id| deadline(self, *id)).min().unwrap_or(u64::MAX);
        if next == u64::MAX {
            stop("the world stands still: every thread waits for another");
        }
        clock::advance_to(next);
        self.turns_since_jump = 0;
        for at in 0..self.live.len() {
            let id = self.live[at];
            if deadline(self, id) <= clock::now_ns() {
                self.threads[id].timed_out = true;
                self.threads[id].state = State::Ready;
            }
        }
    }

    fn note(&mut self, kind: u8, what: u64) {
        let trace = &mut self.trace;
        let words = [clock::now_ns(), self.current as u64, u64::from(kind), what];
        for word in words {
            trace.hash = (trace.hash ^ word).wrapping_mul(0x100_0000_01b3).rotate_left(23);
        }
        trace.n_events += 1;
        if let Some(file) = trace.file {
            let mut line = [0; 32];
            for (at, word) in words.iter().enumerate() {
                line[at * 8..at * 8 + 8].copy_from_slice(&word.to_le_bytes());
            }
            // SAFETY: writes a buffer that lives on.
            unsafe {
                raw::call(libc::SYS_write, [file as usize, line.as_ptr() as usize, 32, 0, 0, 0])
            };
        }
    }

    fn contexts(&mut self, from: usize, to: usize) -> Contexts {
        let mine: *mut Context = &mut *self.threads[from].context;
        (mine, &*self.threads[to].context, self.threads[to].fs)
    }

    fn add_thread(&mut self, process: Process) -> usize {
        let id = self.threads.len();
        let seed = self.seed ^ (id as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.threads.push(Thread {
            process,
            state: State::Ready,
            timed_out: false,
            context: Box::new(Context::new()),
            handle: 0,
            fs: 0,
            rng: SmallRng::seed_from_u64(seed),
        });
        self.live.push(id);
        id
    }
}

/// Makes the calling thread the first to take turns. Once a process.
pub fn begin(seed: u64, trace_file: Option<i32>) {
    let mut machine = Box::new(Machine {
        seed,
        rng: SmallRng::seed_from_u64(seed),
        threads: Vec::new(),
        live: Vec::new(),
        current: 0,
        leaving: None,
        processes: vec![ProcessState::new(None)],
        hosts: Vec::new(),
        trace: Trace { hash: 0xcbf2_9ce4_8422_2325, n_events: 0, file: trace_file },
        turns_since_jump: 0,
        busy: false,
    });
    let me = machine.add_thread(Process::WORLD);
    // SAFETY: asks who one is.
    machine.threads[me].fs = unsafe { libc::pthread_self() } as usize;
    // SAFETY: nobody else takes turns yet.
    unsafe { *MACHINE.0.get() = Some(machine) };
    ME.set(me);
}

/// What happened so far: the same for the same seed.
pub fn trace() -> (u64, u64) {
    with(|m| (m.trace.hash, m.trace.n_events))
}

/// Adds to the trace.
pub fn note(kind: u8, what: u64) {
    with(|m| m.note(kind, what));
}

/// Waits in `state`; says whether the deadline ended it. Where computing takes time, the turn that
/// follows begins late.
fn wait(state: State) -> bool {
    if state != State::Over
        && with(|m| m.mishap(Mishap::at_wait))
        && let Some(ended) = ENDED_BY_BUG.get()
    {
        ended();
    }
    let timed_out = take_turns(state);
    if let Some(until_ns) = with(|m| m.toll(ME.get())) {
        take_turns(State::Until(until_ns));
    }
    timed_out
}

/// What ends the calling process as a panic would that no statement pays for. It does not return.
static ENDED_BY_BUG: OnceLock<Box<dyn Fn() + Send + Sync>> = OnceLock::new();

/// Once, before the first mishap.
pub fn on_bug(end: impl Fn() + Send + Sync + 'static) {
    if ENDED_BY_BUG.set(Box::new(end)).is_err() {
        stop("there are two ways to end by a bug");
    }
}

/// Asked by the product's tasks at each poll: whether this one is to panic.
pub fn is_mishap_due() -> bool {
    takes_turns() && with(|m| m.mishap(Mishap::at_poll))
}

pub fn set_mishap(process: Process, mishap: Option<Mishap>) {
    with(|m| m.processes[process.0].mishap = mishap);
}

fn take_turns(state: State) -> bool {
    let me = ME.get();
    let (next, contexts) = with(|m| {
        m.threads[me].state = state;
        m.threads[me].timed_out = false;
        let next = m.choose();
        m.current = next;
        m.note(1, next as u64);
        (next, m.contexts(me, next))
    });
    if next != me {
        hand_on(contexts);
    }
    with(|m| m.threads[me].timed_out)
}

/// Whose registers are left where, and who goes on.
type Contexts = (*mut Context, *const Context, usize);

/// Another thread goes on; returns with the caller's next turn.
fn hand_on((mine, theirs, fs): Contexts) {
    // SAFETY: threads are never taken off the list and their contexts are boxed; whoever does not
    // have the baton has left its registers.
    unsafe { context::switch(mine, theirs, fs) };
    begin_turn();
}

/// First thing in a turn: who was over lies behind us.
fn begin_turn() {
    let left = with(|m| m.leaving.take().map(|id| -> *const Context { &*m.threads[id].context }));
    if let Some(left) = left {
        // SAFETY: as above.
        context::release(unsafe { &*left });
    }
}

/// Lets others have their turn, and a moment pass, so that who waits in a loop does not stop the
/// clock.
pub(super) fn give_way() {
    wait(State::Until(clock::now_ns() + 1_000));
}

pub fn sleep_until(true_ns: u64) {
    if true_ns > clock::now_ns() {
        wait(State::Until(true_ns));
    } else {
        give_way();
    }
}

/// Waits for [`futex_wake`]; false: the deadline came first.
pub(super) fn futex_wait(address: usize, deadline_ns: u64) -> bool {
    !wait(State::Futex { address, deadline_ns })
}

pub(super) fn futex_wake(address: usize, n_max: usize) -> usize {
    with(|m| {
        let mut n_woken = 0;
        // In the order of their numbers: who waits longer than another is drawn later anyway.
        for at in 0..m.live.len() {
            let id = m.live[at];
            let waits =
                matches!(m.threads[id].state, State::Futex { address: a, .. } if a == address);
            if n_woken < n_max && waits {
                m.threads[id].state = State::Ready;
                n_woken += 1;
            }
        }
        n_woken
    })
}

/// A new thread of the caller's process; its number and its context.
pub(super) fn enter() -> (usize, *mut Context) {
    with(|m| {
        let process = m.threads[m.current].process;
        let id = m.add_thread(process);
        m.note(2, id as u64);
        (id, &mut *m.threads[id].context as *mut Context)
    })
}

/// The real thread behind a number, as the C library knows it, has been made. Returns when it waits
/// for its first turn.
pub(super) fn made(id: usize, handle: libc::pthread_t) {
    let context = with(|m| {
        m.threads[id].handle = handle;
        m.threads[id].fs = handle as usize;
        &*m.threads[id].context as *const Context
    });
    // SAFETY: as in `hand_on`.
    context::await_arrival(unsafe { &*context });
}

/// A thread that could not be made.
pub(super) fn forget(id: usize) {
    with(|m| m.live.retain(|live| *live != id));
}

/// First words of a new thread: waits for its first turn.
///
/// # Safety
/// `context` is what [`enter`] gave for this thread.
pub(super) unsafe fn arrive(id: usize, context: *mut Context) {
    ME.set(id);
    // SAFETY: the caller's promise, and as in `hand_on`.
    unsafe { context::arrive(context) };
    begin_turn();
}

/// Last words of a thread: whoever is next goes on, and this one is alone in real time.
pub(super) fn leave() {
    let me = ME.get();
    let (mine, theirs, fs) = with(|m| {
        m.threads[me].state = State::Over;
        m.live.retain(|live| *live != me);
        for at in 0..m.live.len() {
            let id = m.live[at];
            if m.threads[id].state == State::Joins(me) {
                m.threads[id].state = State::Ready;
            }
        }
        m.note(3, me as u64);
        let next = m.choose();
        m.current = next;
        m.leaving = Some(me);
        m.contexts(me, next)
    });
    ME.set(NOBODY);
    // SAFETY: as in `hand_on`. It is the real thread that comes back from here.
    unsafe { context::switch(mine, theirs, fs) };
}

/// Waits until the thread behind `handle` is over.
pub(super) fn join(handle: *mut c_void) {
    let handle = handle as libc::pthread_t;
    let target = with(|m| {
        let is_it = |id: &usize| m.threads[*id].handle == handle;
        let found = (0..m.threads.len()).rev().find(is_it);
        found.filter(|id| m.threads[*id].state != State::Over)
    });
    if let Some(target) = target {
        wait(State::Joins(target));
    }
    // The C library may give the same handle to a later thread.
    with(|m| m.threads.iter_mut().filter(|t| t.handle == handle).for_each(|t| t.handle = 0));
}

/// Bytes from the calling thread's own generator.
pub(super) fn random(bytes: &mut [u8]) {
    let me = ME.get();
    with(|m| m.threads[me].rng.fill(bytes));
}

/// A number in `0..below` from the machine's generator.
pub(super) fn draw(below: u64) -> u64 {
    with(|m| if below == 0 { 0 } else { m.rng.random_range(0..below) })
}

/// The clock that the calling thread looks at.
pub(super) fn my_clock() -> Clock {
    with(|m| match m.processes[m.threads[m.current].process.0].host {
        Some(host) => m.hosts[host.0].clock,
        None => Clock::RIGHT,
    })
}

/// The disk that the calling thread writes to.
pub fn my_host() -> Option<Host> {
    if !takes_turns() {
        return None;
    }
    with(|m| m.processes[m.threads[m.current].process.0].host)
}

pub(super) fn with_host<T>(host: Host, work: impl FnOnce(&mut HostState) -> T) -> T {
    with(|m| work(&mut m.hosts[host.0]))
}

pub fn add_host(disk: Disk) -> Host {
    with(|m| {
        m.hosts.push(HostState {
            clock: Clock::RIGHT,
            disk,
            frozen_since_ns: None,
            turn_ns: 0,
            busy_until_ns: 0,
        });
        Host(m.hosts.len() - 1)
    })
}

pub fn set_clock(host: Host, change: impl FnOnce(&mut Clock)) {
    with_host(host, |state| change(&mut state.clock));
}

/// Starts `main` in a new process on `host`, in a thread of its own.
pub fn start(
    host: Host,
    name: String,
    stack_bytes: usize,
    main: impl FnOnce() + Send + 'static,
) -> Process {
    let (process, before) = with(|m| {
        m.processes.push(ProcessState::new(Some(host)));
        let process = Process(m.processes.len() - 1);
        // A thread belongs where its maker belongs.
        let current = m.current;
        (process, std::mem::replace(&mut m.threads[current].process, process))
    });
    let started = std::thread::Builder::new().name(name).stack_size(stack_bytes).spawn(main);
    with(|m| {
        let current = m.current;
        m.threads[current].process = before;
    });
    if let Err(error) = started {
        stop(&format!("cannot start a thread: {error}"));
    }
    process
}

/// The threads of the process never run again, wherever they are. Its files stay as they are.
pub fn kill(process: Process) {
    with(|m| {
        m.processes[process.0].is_dead = true;
        let threads = &m.threads;
        m.live.retain(|id| threads[*id].process != process);
        m.note(4, process.0 as u64);
    });
}

/// The calling process ends here and now, as by `_exit`.
pub fn exit() -> ! {
    kill(with(|m| m.threads[m.current].process));
    wait(State::Over);
    stop("a dead thread got a turn")
}

/// The process that the calling thread belongs to; the world's where nobody takes turns.
pub fn my_process() -> Process {
    if !takes_turns() {
        return Process::WORLD;
    }
    with(|m| m.threads[m.current].process)
}

/// Stops a host with all that is on it, clocks included, as a virtual machine is paused; or lets it
/// go on from where it stood. What its threads wait for comes later by as much.
pub fn freeze(host: Host, is_frozen: bool) {
    with(|m| {
        let now_ns = clock::now_ns();
        let since_ns = m.hosts[host.0].frozen_since_ns;
        if since_ns.is_some() == is_frozen {
            return;
        }
        m.hosts[host.0].clock.set_frozen(now_ns, is_frozen);
        m.hosts[host.0].frozen_since_ns = is_frozen.then_some(now_ns);
        if let Some(since_ns) = since_ns {
            for &id in &m.live {
                let thread = &mut m.threads[id];
                if m.processes[thread.process.0].host != Some(host) {
                    continue;
                }
                if let State::Futex { deadline_ns, .. } | State::Until(deadline_ns) =
                    &mut thread.state
                {
                    *deadline_ns = deadline_ns.saturating_add(now_ns - since_ns);
                }
            }
        }
        m.note(8, host.0 as u64);
    });
}

/// From now on each turn of a thread on the host takes so long, one after the other; 0: no time.
pub fn set_turn(host: Host, turn_ns: u64) {
    with(|m| {
        m.hosts[host.0].turn_ns = turn_ns;
        m.note(9, turn_ns);
    });
}

/// SIGSTOP, and SIGCONT.
pub fn pause(process: Process, is_paused: bool) {
    with(|m| {
        m.processes[process.0].is_paused = is_paused;
        m.note(5, process.0 as u64);
    });
}
