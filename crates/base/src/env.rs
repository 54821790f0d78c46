//! The one door to the world outside: time, randomness, tasks and the network.
//!
//! Everything that differs between a real node and a simulated one passes through an [`Env`],
//! which is handed to each part as it is made. Time is tokio's, so that under a paused runtime
//! it is virtual; randomness comes from one generator that a seed makes repeatable; the network
//! is behind [`Net`], which TCP and the in-memory network implement.
//!
//! Wall time ([`Env::wall`]) is for people and log lines. Nothing correct may depend on it.

mod faulty;
mod net;
mod runtime;

pub use faulty::{FaultyHost, FaultyNet};
pub use net::{Duplex, Listener, MemoryNet, Net, Pending, Stream, TcpNet};
pub use runtime::{Runtime, Runtimes};

use crate::rehearsal::rehearsal;
use crate::{Budget, Limits};
use futures::FutureExt;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

pub use tokio::task::JoinHandle;
pub use tokio::time::Instant;

/// Handle to the world outside. Cheap to clone.
#[derive(Clone)]
pub struct Env {
    inner: Arc<Inner>,
    /// Where [`Env::spawn`] starts tasks.
    runtime: Runtime,
    means: Arc<Means>,
}

/// What this node may use up.
struct Means {
    limits: Limits,
    memory: Budget,
}

struct Inner {
    rng: Mutex<SmallRng>,
    net: Arc<dyn Net>,
    halted: watch::Sender<Option<Halt>>,
    /// None: all tasks run where they are started.
    runtimes: Option<Runtimes>,
}

/// Why a process ends itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Halt {
    pub cause: Cause,
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its data can no longer be trusted, or no longer be written: a fresh start would not help.
    Data,
    /// A bug: a fresh start on the same data goes on.
    Bug,
}

impl Means {
    fn of(limits: Limits) -> Arc<Means> {
        Arc::new(Means { limits, memory: Budget::new(limits.memory_bytes) })
    }
}

impl Env {
    /// The real world: TCP, and a seed from the operating system.
    pub fn real() -> Env {
        Env::new(SmallRng::from_os_rng(), Arc::new(TcpNet), None)
    }

    /// The real world, with runtimes of their own for each kind of work.
    pub fn real_on(runtimes: Runtimes) -> Env {
        Env::new(SmallRng::from_os_rng(), Arc::new(TcpNet), Some(runtimes))
    }

    /// A repeatable world on the given network.
    pub fn seeded(seed: u64, net: Arc<dyn Net>) -> Env {
        Env::new(SmallRng::seed_from_u64(seed), net, None)
    }

    fn new(rng: SmallRng, net: Arc<dyn Net>, runtimes: Option<Runtimes>) -> Env {
        let halted = watch::Sender::new(None);
        let inner = Inner { rng: Mutex::new(rng), net, halted, runtimes };
        let means = Means::of(Limits::default());
        Env { inner: Arc::new(inner), runtime: Runtime::Core, means }
    }

    /// The same world with other limits, and with a budget of memory of its own.
    pub fn limited(self, limits: Limits) -> Env {
        Env { means: Means::of(limits), ..self }
    }

    pub fn limits(&self) -> &Limits {
        &self.means.limits
    }

    /// What clients may make this node keep in memory.
    pub fn memory(&self) -> &Budget {
        &self.means.memory
    }

    /// The same world for work of another kind: its tasks start on that runtime.
    pub fn on(&self, runtime: Runtime) -> Env {
        Env { runtime, ..self.clone() }
    }

    /// A clock that never goes back. Comparable within this process only.
    #[allow(clippy::disallowed_methods)]
    pub fn now(&self) -> Instant {
        Instant::now()
    }

    /// Wall time, for people. It may jump; no decision may rest on it.
    #[allow(clippy::disallowed_methods)]
    pub fn wall(&self) -> SystemTime {
        SystemTime::now()
    }

    /// Microseconds since 1970 by this machine's wall clock, for people.
    pub fn wall_us(&self) -> i64 {
        let since = self.wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
    }

    pub async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    pub async fn sleep_until(&self, at: Instant) {
        tokio::time::sleep_until(at).await;
    }

    /// None when `duration` passes before `future` is ready.
    pub fn timeout<F: Future>(
        &self,
        duration: Duration,
        future: F,
    ) -> impl Future<Output = Option<F::Output>> + use<F> {
        // Not an async function: that would hold `future` twice.
        tokio::time::timeout(duration, future).map(Result::ok)
    }

    /// None when it is `at` before `future` is ready.
    pub fn timeout_at<F: Future>(
        &self,
        at: Instant,
        future: F,
    ) -> impl Future<Output = Option<F::Output>> + use<F> {
        tokio::time::timeout_at(at, future).map(Result::ok)
    }

    pub fn random(&self) -> u64 {
        self.inner.rng.lock().random()
    }

    /// A number in `0..below`; 0 when `below` is 0.
    pub fn random_below(&self, below: u64) -> u64 {
        if below == 0 { 0 } else { self.inner.rng.lock().random_range(0..below) }
    }

    /// A source of random numbers for one caller that draws often.
    pub fn draws(&self) -> Draws {
        Draws(Mutex::new(SmallRng::seed_from_u64(self.random())))
    }

    pub fn net(&self) -> &dyn Net {
        &*self.inner.net
    }

    /// Starts a task. A panic in it is a bug in this process, whose memory cannot be trusted after
    /// it: the process halts and its supervisor starts a fresh one.
    #[allow(clippy::disallowed_methods)]
    pub fn spawn<F>(&self, name: &'static str, future: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let guard = PanicHalts::new(self, "task", name);
        // Boxed at once: it would be moved several times on its way, and is often large.
        let mut future = Box::pin(future);
        let task = async move {
            let guard = guard;
            poll_fn(|cx| {
                rehearsal();
                future.as_mut().poll(cx)
            })
            .await;
            drop(guard);
        };
        match &self.inner.runtimes {
            Some(runtimes) => runtimes.of(self.runtime).spawn(task),
            None => tokio::spawn(task),
        }
    }

    /// Runs `work` on this handle's runtime, whatever runtime the caller is on. None when the work
    /// panicked, or when the runtime is ending.
    pub async fn run<F>(&self, name: &'static str, work: F) -> Option<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let (sender, output) = tokio::sync::oneshot::channel();
        self.spawn(name, async move {
            // The caller may be gone.
            drop(sender.send(work.await));
        });
        output.await.ok()
    }

    /// Declares that this process can no longer be trusted with its data. The first reason wins;
    /// the owner of the process waits in [`Env::halted`] and ends the process. The call returns, so
    /// the caller must do nothing after it that must not follow a halt: above all, acknowledge.
    pub fn halt(&self, reason: impl Into<String>) {
        self.halt_for(Cause::Data, reason.into());
    }

    /// The same for a bug: the data is sound, this process is not.
    pub fn halt_by_bug(&self, reason: impl Into<String>) {
        self.halt_for(Cause::Bug, reason.into());
    }

    fn halt_for(&self, cause: Cause, reason: String) {
        self.inner.halted.send_if_modified(|slot| {
            let first = slot.is_none();
            if first {
                *slot = Some(Halt { cause, reason });
            }
            first
        });
    }

    /// Waits until someone calls [`Env::halt`] and returns why.
    pub async fn halted(&self) -> Halt {
        let mut halted = self.inner.halted.subscribe();
        loop {
            if let Some(halt) = halted.borrow_and_update().clone() {
                return halt;
            }
            if halted.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Why the process halts, if it does.
    pub fn halt_reason(&self) -> Option<Halt> {
        self.inner.halted.borrow().clone()
    }
}

/// A timer for many waits, one after the other, most of which end early. The timer that the first
/// wait sets stays set for the later ones. It is set anew only when it goes off, or when a wait ends
/// at an earlier time. Setting a timer and taking it back would cost more than many a wait.
#[derive(Default)]
pub struct Alarm {
    sleep: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Alarm {
    /// None when it is `at` before `future` is ready.
    pub fn timeout_at<'a, F: Future>(
        &'a mut self,
        at: Instant,
        mut future: Pin<&'a mut F>,
    ) -> impl Future<Output = Option<F::Output>> + use<'a, F> {
        poll_fn(move |cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Some(output));
            }
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
            if sleep.deadline() > at {
                sleep.as_mut().reset(at);
            }
            loop {
                // Even if the future has got on in this turn: a future that is always busy ends too.
                ready!(pin!(tokio::task::unconstrained(sleep.as_mut())).poll(cx));
                if sleep.deadline() >= at {
                    self.sleep = None;
                    return Poll::Ready(None);
                }
                sleep.as_mut().reset(at);
            }
        })
    }
}

/// Random numbers for one of several threads. Threads that draw from one source wait for each
/// other's caches.
pub struct Draws(Mutex<SmallRng>);

impl Draws {
    pub fn random<const N: usize>(&self) -> [u64; N] {
        let mut rng = self.0.lock();
        std::array::from_fn(|_| rng.random())
    }
}

/// Halts the process if the task or thread that owns this value panics: that is a bug, and the owner's work stops.
pub struct PanicHalts {
    env: Env,
    kind: &'static str,
    name: &'static str,
}

impl PanicHalts {
    /// For a task or a thread (`kind`) of this name.
    pub fn new(env: &Env, kind: &'static str, name: &'static str) -> PanicHalts {
        PanicHalts { env: env.clone(), kind, name }
    }
}

impl Drop for PanicHalts {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.env.halt_by_bug(format!("the {} {:?} panicked", self.kind, self.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panicking_task_halts_the_process() {
        let env = Env::seeded(1, Arc::new(MemoryNet::default()));
        env.spawn("doomed", async { panic!("on purpose") });
        let halt = env.halted().await;
        assert!(halt.reason.contains("doomed") && halt.cause == Cause::Bug, "{halt:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_alarm_goes_off_at_each_of_its_times() {
        let env = Env::seeded(1, Arc::new(MemoryNet::default()));
        let (mut alarm, start) = (Alarm::default(), env.now());
        let ms = Duration::from_millis;
        let at = |n| start + ms(n);
        // A future that is ready in time is not late, though the timer is set for another time.
        for (deadline, takes, is_late) in [
            (100, 10, false),
            (110, 20, false),
            // It is still set for 100.
            (200, 120, false),
            (150, 160, true),
            (165, 170, true),
            (300, 400, true),
            (900, 500, false),
            // Earlier than it is set for.
            (600, 700, true),
        ] {
            let ended = alarm.timeout_at(at(deadline), pin!(env.sleep_until(at(takes)))).await;
            assert_eq!(ended.is_none(), is_late, "{deadline} {takes}");
            let now = (env.now() - start).as_millis() as u64;
            assert_eq!(now, if is_late { deadline } else { takes }, "{deadline} {takes}");
            env.sleep_until(at(takes)).await;
        }
    }

    #[tokio::test]
    async fn an_alarm_ends_what_is_always_busy() {
        let env = Env::seeded(1, Arc::new(MemoryNet::default()));
        let at = env.now() + Duration::from_millis(10);
        let busy = env.spawn("busy", async move {
            let busy = pin!(async {
                loop {
                    tokio::task::consume_budget().await;
                }
            });
            assert_eq!(Alarm::default().timeout_at(at, busy).await, None::<()>);
        });
        assert!(env.timeout(Duration::from_secs(10), busy).await.is_some());
    }

    #[tokio::test]
    async fn the_first_reason_to_halt_wins() {
        let env = Env::seeded(1, Arc::new(MemoryNet::default()));
        env.halt("disk");
        env.halt("consequence");
        assert_eq!(env.halted().await, Halt { cause: Cause::Data, reason: "disk".into() });
    }
}
