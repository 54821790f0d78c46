//! Three runtimes, so that quick work does not stand behind long work.
//!
//! A thread that runs a task can do nothing else until the task waits. A join of two large tables may run
//! for seconds before it waits; a heartbeat that is late by one second costs the cluster an election. So
//! each kind of work has threads of its own, and the operating system decides between the threads: it can
//! take a thread off its processor.
//!
//! | runtime | what runs there | its threads |
//! |---|---|---|
//! | [`Core`](Runtime::Core) | votes, heartbeats, the log and its small entries, the transport, SCNs | as they are |
//! | [`Serve`](Runtime::Serve) | sessions, requests to tablets, large entries of the log | a little less urgent |
//! | [`Query`](Runtime::Query) | wide queries: plans, joins, sorts, large scans | least urgent |
//!
//! Example: on two processors eight sessions join without an equality. Their threads want all the time
//! there is; a heartbeat's thread wakes up, is more urgent, and runs within a millisecond.
//!
//! Absent: nothing here knows what a task does. The caller that starts a task names its runtime
//! ([`super::Env::on`]).

use tokio::runtime::Handle;

/// A kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    Core,
    Serve,
    Query,
}

/// Where each kind of work runs.
#[derive(Clone, Debug)]
pub struct Runtimes {
    pub core: Handle,
    pub serve: Handle,
    pub query: Handle,
}

impl Runtimes {
    pub(super) fn of(&self, runtime: Runtime) -> &Handle {
        match runtime {
            Runtime::Core => &self.core,
            Runtime::Serve => &self.serve,
            Runtime::Query => &self.query,
        }
    }
}
