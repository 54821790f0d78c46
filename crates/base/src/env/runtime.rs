//! Three runtimes, so that what must be quick does not stand behind what takes long.
//!
//! A thread that runs a task cannot do anything else until the task waits. A join of two large tables may
//! not wait for seconds; a heartbeat that is late by one second costs the cluster an election. So they
//! run on threads of their own, and the operating system, which can take a processor away from a thread,
//! decides between them:
//!
//! | runtime | what runs there | its threads |
//! |---|---|---|
//! | [`Core`](Runtime::Core) | votes, heartbeats, the log, the transport, the SCN service | as they are |
//! | [`Serve`](Runtime::Serve) | sessions, requests to tablets, applying the log | a little less urgent |
//! | [`Query`](Runtime::Query) | wide queries: plans, joins, sorts, large scans | least urgent |
//!
//! Example: on two processors eight sessions join without an equality. Their threads want all the time
//! there is; a heartbeat's thread wakes up, is more urgent, and runs within a millisecond.
//!
//! Absent: nothing here knows what a task does; who starts it names the runtime ([`super::Env::on`]).

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
