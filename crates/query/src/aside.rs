//! A query's work, on threads that nobody else waits for.
//!
//! Planning and running a wide query may take seconds of a processor without a pause. It is a task of
//! the [`Query`](Runtime::Query) runtime; the session waits for its answers and for nothing else. So a
//! cancel request, a time-out or a lost client ends the *wait* at once, whatever the query is doing:
//!
//! ```text
//! session  ask ──────────► waits ──── cancelled: 57014 at once
//! query            plans, joins, … ───┴─► sees the stop at its next look, and ends
//! ```
//!
//! What is left behind ends soon by itself: a task ends where it next waits, and the conditions of joins, which
//! may be computed for long between two waits, look at the [`Stop`] each time. Until then it keeps its place among the
//! queries that may compute at once (`queries` in [`base::Limits`]), so that whoever asks and cancels in a loop gets no
//! more of the machine than whoever waits.
//!
//! A query gives its place back while its client reads: a portal that nobody fetches from holds up
//! no other query. At SERIALIZABLE a query needs no place, because it may wait for a lock whose holder waits for a place.
//!
//! A panic in a query is the query's: its session is told XX000, and everybody else goes on.

use base::env::Runtime;
use base::{Env, panics};
use datafusion_common_runtime::JoinSetTracer;
use datafusion_common_runtime::set_join_set_tracer;
use futures::StreamExt;
use futures::future::BoxFuture;
use sql::error::{Error, Result};
use sql::session::RowStream;
use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, oneshot};

/// Batches of rows made ahead of the client.
const N_BATCHES_AHEAD: usize = 2;

/// The places of one node's queries.
pub struct Places(Semaphore);

impl Places {
    pub fn new(n_queries_max: usize) -> Places {
        LazyLock::force(&TRACED);
        Places(Semaphore::new(n_queries_max))
    }

    /// A place among the queries that compute; none is needed where `locks` may be waited for.
    async fn take(&self, locks: bool) -> Option<SemaphorePermit<'_>> {
        if locks {
            return None;
        }
        // The semaphore is never closed.
        self.0.acquire().await.ok()
    }
}

/// Where a query's work is done, and for whom.
#[derive(Clone)]
pub struct Aside {
    pub env: Env,
    pub places: Arc<Places>,
    /// It may wait for locks.
    pub locks: bool,
    pub stop: Stop,
}

/// Whether somebody still wants the query's answer. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Sets the stop when the one who wants the answer goes away without it.
struct Wanted(Option<Stop>);

impl Wanted {
    /// The answer is there: the query's other questions go on.
    fn answered(mut self) {
        self.0 = None;
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        if let Some(stop) = &self.0 {
            stop.0.store(true, Ordering::Relaxed);
        }
    }
}

impl Aside {
    /// Runs the work of one question aside, and waits for its answer.
    pub async fn ask<T, W>(&self, work: W) -> Result<T>
    where
        T: Send + 'static,
        W: Future<Output = Result<T>> + Send + 'static,
    {
        let wanted = Wanted(Some(self.stop.clone()));
        let (mut sender, answer) = oneshot::channel();
        let Aside { env, places, locks, .. } = self.clone();
        env.on(Runtime::Query).spawn("query", async move {
            let answer = async {
                let _place = places.take(locks).await;
                panics::contained(work).await.unwrap_or_else(|panicked| Err(bug(&panicked)))
            };
            let answer = tokio::select! {
                biased;
                answer = answer => answer,
                () = sender.closed() => return,
            };
            // Whoever asked may be gone.
            drop(sender.send(answer));
        });
        let answer = answer.await.unwrap_or_else(|_| Err(Error::internal("a query was given up")));
        wanted.answered();
        answer
    }

    /// Makes a query's rows aside, some batches ahead of whoever reads them.
    pub fn rows(self, mut rows: RowStream) -> RowStream {
        let (sender, batches) = mpsc::channel(N_BATCHES_AHEAD);
        let Aside { env, places, locks, stop } = self;
        env.on(Runtime::Query).spawn("rows of a query", async move {
            let work = async {
                loop {
                    let next = {
                        let _place = places.take(locks).await;
                        panics::contained(rows.next()).await
                    };
                    let batch = match next {
                        Ok(None) => return,
                        Ok(Some(batch)) => batch,
                        Err(panicked) => Err(bug(&panicked)),
                    };
                    let is_last = batch.is_err();
                    if sender.send(batch).await.is_err() || is_last {
                        return;
                    }
                }
            };
            tokio::select! {
                biased;
                () = sender.closed() => {}
                () = work => {}
            }
        });
        let state = (batches, Wanted(Some(stop)));
        Box::pin(futures::stream::unfold(state, |(mut batches, wanted)| async move {
            let batch = batches.recv().await?;
            Some((batch, (batches, wanted)))
        }))
    }
}

fn bug(panicked: &panics::Panicked) -> Error {
    Error::internal(format!("the query met a bug: {}", panicked.message))
        .hint("Nothing else is affected. The server's log has the place.")
}

/// DataFusion starts tasks of its own; a panic in one of them is the query's too.
static TRACED: LazyLock<()> = LazyLock::new(|| {
    // It was set before, by nobody else than us.
    drop(set_join_set_tracer(&Unwinding));
});

struct Unwinding;

type AnyBox = Box<dyn Any + Send>;

impl JoinSetTracer for Unwinding {
    fn trace_future(&self, work: BoxFuture<'static, AnyBox>) -> BoxFuture<'static, AnyBox> {
        Box::pin(panics::unwinding(work))
    }

    fn trace_block(
        &self,
        work: Box<dyn FnOnce() -> AnyBox + Send>,
    ) -> Box<dyn FnOnce() -> AnyBox + Send> {
        Box::new(move || match panics::contained_call(work) {
            Ok(done) => done,
            Err(panicked) => std::panic::resume_unwind(Box::new(panicked.message)),
        })
    }
}
