//! Tasks of the world itself: clients, faults, supervisors. A node's own are started by its `Env`.

use tokio::task::JoinHandle;

#[allow(clippy::disallowed_methods)]
pub fn spawn(future: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    tokio::spawn(future)
}
