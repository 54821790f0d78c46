//! What a panic costs: the statement that ran, or the process; never more, and never nothing.
//!
//! A panic is a bug in this program. Its price depends on what the panic may have left half done:
//!
//! | where the panic happens | what ends |
//! |---|---|
//! | while a client's statement is parsed, planned or run | the statement, with SQLSTATE XX000 |
//! | below that, in something that statements share: locks, log, state ([`fatal`]) | the process |
//! | in any other task or thread, a library's own among them | the process |
//!
//! Example: a session evaluates `date_trunc` and the calendar overflows. The evaluator panics inside
//! [`contained`]. Nothing that other sessions see was touched, and the client gets an error. Had the lock
//! table panicked on behalf of the same session, inside [`fatal`], half a grant could be left in it: the
//! process ends, its supervisor starts a fresh one, and the log tells what was committed.
//!
//! Each thread knows the price of a panic at this moment ([`Price`]). The wrappers here set the price for
//! each poll of their future, because a task moves between threads from one poll to the next. The panic
//! hook that [`install`] sets asks for the price. Without the hook (tests, the simulator) a panic inside
//! [`fatal`] halts the [`Env`] instead, and the owner of the process ends it.
//!
//! A simulator rehearses all that ([`crate::rehearsal`]), and its own hook asks [`costs_the_process`].
//!
//! Absent: nothing here logs to a file, and nothing is retried.

use crate::Env;
use crate::rehearsal::rehearsal;
use futures::FutureExt;
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};

/// Panics whose backtrace is written: making one costs a tenth of a second.
const N_BACKTRACES_MAX: u64 = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Price {
    Process,
    Statement,
}

thread_local! {
    static PRICE: Cell<Price> = const { Cell::new(Price::Process) };
}

/// Panics that have cost a statement since the process began.
static N_CONTAINED: AtomicU64 = AtomicU64::new(0);

/// What the caller gets of work that panicked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Panicked {
    pub message: String,
}

/// From now on each panic outside of a statement's work ends the process at once (SIGABRT), with its place, its
/// message and a backtrace on standard error. Call it once, at the start of a process that a supervisor starts again.
pub fn install() {
    std::panic::set_hook(Box::new(|panic| {
        let price = PRICE.with(Cell::get);
        let n_before = match price {
            Price::Statement => N_CONTAINED.fetch_add(1, Ordering::Relaxed),
            Price::Process => 0,
        };
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("without a name");
        eprintln!("atoll: this is a bug: the thread {name:?} {panic}; it costs the {price:?}");
        if n_before < N_BACKTRACES_MAX {
            eprintln!("{}", Backtrace::force_capture());
        }
        if price == Price::Process {
            std::process::abort();
        }
    }));
}

/// Whether a panic on this thread would cost the process at this moment: for who has a hook of its own.
pub fn costs_the_process() -> bool {
    PRICE.get() == Price::Process
}

/// Sets the price for as long as this value lives.
struct Priced(Price);

impl Priced {
    fn at(price: Price) -> Priced {
        Priced(PRICE.replace(price))
    }
}

impl Drop for Priced {
    fn drop(&mut self) {
        PRICE.set(self.0);
    }
}

/// Runs a statement's work: a panic ends the work, and the caller is told.
pub async fn contained<F: Future>(work: F) -> Result<F::Output, Panicked> {
    AssertUnwindSafe(unwinding(work)).catch_unwind().await.map_err(|payload| told(&*payload))
}

/// As [`contained`], for work that is not a future.
pub fn contained_call<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    let _price = Priced::at(Price::Statement);
    std::panic::catch_unwind(AssertUnwindSafe(work)).map_err(|payload| told(&*payload))
}

/// For tasks that a library starts on behalf of a statement: a panic ends the task and unwinds to
/// the task that joins it, which runs inside [`contained`].
pub async fn unwinding<F: Future>(work: F) -> F::Output {
    let mut work = pin!(work);
    poll_fn(|cx| {
        let _price = Priced::at(Price::Statement);
        rehearsal();
        work.as_mut().poll(cx)
    })
    .await
}

/// Runs work on something that outlives a statement: a panic ends the process, even if a statement
/// asked for the work.
pub async fn fatal<F: Future>(env: &Env, name: &'static str, work: F) -> F::Output {
    let mut work = pin!(work);
    poll_fn(|cx| {
        let _price = Priced::at(Price::Process);
        let _bomb = Bomb { env, name };
        rehearsal();
        work.as_mut().poll(cx)
    })
    .await
}

/// The way of a panic where no hook is installed.
struct Bomb<'a> {
    env: &'a Env,
    name: &'static str,
}

impl Drop for Bomb<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.env.halt_by_bug(format!("{} panicked", self.name));
        }
    }
}

fn told(payload: &(dyn std::any::Any + Send)) -> Panicked {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
    Panicked { message: text.unwrap_or_else(|| "a panic without a message".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::MemoryNet;
    use std::sync::Arc;

    fn env() -> Env {
        Env::seeded(1, Arc::new(MemoryNet::default()))
    }

    async fn broken() {
        tokio::task::yield_now().await;
        panic!("on purpose");
    }

    #[tokio::test]
    async fn a_statement_pays_for_its_own_panic() {
        assert_eq!(PRICE.get(), Price::Process);
        let outcome = contained(async {
            assert_eq!(PRICE.get(), Price::Statement);
            broken().await;
        });
        assert_eq!(outcome.await, Err(Panicked { message: "on purpose".into() }));
        assert_eq!(PRICE.get(), Price::Process, "the thread goes on to other work");
        assert_eq!(contained(async { 7 }).await, Ok(7));
    }

    #[tokio::test]
    async fn the_process_pays_for_what_statements_share() {
        let env = env();
        let outcome = contained(fatal(&env, "the lock table", async {
            assert_eq!(PRICE.get(), Price::Process);
            broken().await;
        }));
        assert!(outcome.await.is_err());
        let halt = env.halted().await;
        assert_eq!(halt.cause, crate::env::Cause::Bug);
        assert!(halt.reason.contains("the lock table"), "{halt:?}");
    }

    #[tokio::test]
    async fn a_librarys_task_unwinds_to_the_statement() {
        #[allow(clippy::disallowed_methods)]
        let task = tokio::spawn(unwinding(broken()));
        let outcome = contained(async {
            if let Err(error) = task.await {
                std::panic::resume_unwind(error.into_panic());
            }
        });
        assert_eq!(outcome.await, Err(Panicked { message: "on purpose".into() }));
    }
}
