//! `atoll`: one fault-tolerant computer out of many.
//!
//! * [`cli`]: what people type
//! * [`supervisor`]: the small process that starts, watches and reports the worker
//! * [`worker`]: the process that does the work; puts all rooms of the house together
//! * [`membership`]: the nodes as rows, newcomers, replicas that must move
//! * [`views`]: the state behind the schema `atoll`
//! * [`config`], [`identity`]: what a node is told, and who it is

mod cli;
mod config;
mod identity;
mod membership;
mod supervisor;
mod views;
mod worker;

use clap::Parser;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match cli::Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("atoll: {error}");
            ExitCode::FAILURE
        }
    }
}
