//! The nodes' own log lines, with virtual time and the host that they come from.

use crate::machine::{clock, threads};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::prelude::*;

/// What is heard of a run by default.
pub const FILTER: &str = "info,consensus::group=debug,openraft=error";

/// Prints what passes `filter`. Lines that nobody asked for are made all the same: they take memory,
/// and whether somebody listens must change nothing in the run.
pub fn listen(filter: &str, is_loud: bool) -> anyhow::Result<()> {
    let filter: Targets = filter.parse()?;
    tracing_subscriber::registry().with(Lines { is_loud }.with_filter(filter)).init();
    Ok(())
}

struct Lines {
    is_loud: bool,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut words = Words::default();
        event.record(&mut words);
        let ns = clock::now_ns();
        let host = threads::my_host().map_or_else(String::new, |host| format!("n{}", host.0 + 1));
        let line = format!(
            "{:>5}.{:03}   {host:<3} {} {}: {}{}",
            ns / 1_000_000_000,
            ns / 1_000_000 % 1000,
            event.metadata().level(),
            event.metadata().target(),
            words.message,
            words.fields
        );
        if self.is_loud {
            eprintln!("{line}");
        }
    }
}

#[derive(Default)]
struct Words {
    message: String,
    fields: String,
}

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else {
            self.fields.push_str(&format!(" {}={value:?}", field.name()));
        }
    }
}
