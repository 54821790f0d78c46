//! The nodes' own log lines, with virtual time and the host that they come from.

use crate::machine::{clock, threads};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::prelude::*;

/// Prints what passes `filter`; without one, nothing is printed.
pub fn listen(filter: Option<&str>) -> anyhow::Result<()> {
    let Some(filter) = filter else { return Ok(()) };
    let filter: Targets = filter.parse()?;
    tracing_subscriber::registry().with(Lines.with_filter(filter)).init();
    Ok(())
}

struct Lines;

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut words = Words::default();
        event.record(&mut words);
        let ns = clock::now_ns();
        let host = threads::my_host().map_or_else(String::new, |host| format!("n{}", host.0 + 1));
        eprintln!(
            "{:>5}.{:03}   {host:<3} {} {}: {}{}",
            ns / 1_000_000_000,
            ns / 1_000_000 % 1000,
            event.metadata().level(),
            event.metadata().target(),
            words.message,
            words.fields
        );
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
