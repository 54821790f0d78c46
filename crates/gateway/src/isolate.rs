//! What one service may cost its callers, whatever happens to it.
//!
//! * [`breaker`]: after many failures, a fast refusal instead of a slow one
//! * [`bulkhead`]: how many requests may be under way at once, adapted to the latency
//! * [`classes`]: requests that are alike, and how long each kind usually takes
//! * [`budget`]: how many more requests retries and hedges may make
//! * [`latency`]: the service's recent latencies, for hedges
//! * [`window`]: counts over the last seconds

pub mod breaker;
pub mod budget;
pub mod bulkhead;
pub mod classes;
pub mod latency;
pub mod window;
