//! The front door: the closest zone that is well, and no dependency that can take you down.
//!
//! From the decision outwards:
//!
//! * [`balance`]: which server a request goes to: zones by closeness, servers by two choices
//! * [`isolate`]: what a slow or broken service may cost: breaker, bulkhead, budget, hedges
//! * [`service`]: both together for one service: admit, pick, report
//! * [`call`]: runs a request at a service: attempts, retries, hedges, in time
//! * [`config`], [`route`], [`path`]: what the file says, and which service a request is for
//! * [`fields`], [`trace`]: a message's fields, and the trace that it belongs to
//! * [`rate`]: how many requests of one kind of asker are let in
//! * [`http`]: HTTP on both sides: messages, bodies, connections to servers
//! * [`front`]: clients' connections, and what becomes of a request
//! * [`gateway`], [`backend`]: what all connections share, and a service with its connections
//! * [`entry`], [`record`], [`access_log`], [`traces`], [`counts`]: what is told of a request when it has ended
//! * [`upkeep`]: looks at servers and names beside the requests
//! * [`admin`]: the live page, metrics, the API
//! * [`layer`]: the core as a client library
//! * [`process`], [`lanes`]: `atoll gateway`: threads, listeners, signals, reload, restart
//!
//! The first three and the routes decide and do nothing else: no clock, no I/O, no tasks; callers
//! pass `now`.

pub mod access_log;
pub mod admin;
pub mod backend;
pub mod balance;
pub mod call;
pub mod config;
pub mod counts;
pub mod entry;
pub mod fields;
pub mod front;
pub mod gateway;
pub mod http;
pub mod isolate;
pub mod lanes;
pub mod layer;
pub mod path;
pub mod process;
pub mod rate;
pub mod record;
pub mod route;
pub mod service;
pub mod stale;
pub mod tls;
pub mod trace;
pub mod traces;
pub mod upkeep;
