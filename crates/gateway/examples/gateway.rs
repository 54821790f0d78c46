//! The gateway alone, as `atoll gateway --config FILE` runs it, without building the rest of
//! Atoll.
//!
//!     cargo run -p gateway --example gateway -- gateway --config FILE

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let file = match words[..] {
        ["gateway", "--config", file] | ["--config", file] => PathBuf::from(file),
        _ => {
            eprintln!("usage: gateway --config FILE");
            return ExitCode::from(2);
        }
    };
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    match gateway::process::run(&file) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
