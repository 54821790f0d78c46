//! How often statements ran and how long they took, by their text without literals.
//!
//! Times fall into buckets that grow by a quarter, so a percentile is right to within 12 %.
//! The number of texts is bounded; statements beyond it are counted together.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const TEXTS_MAX: usize = 1_000;
const TEXT_CHARS_MAX: usize = 1_000;
const N_BUCKETS: usize = 96;
const OTHERS: &str = "<other statements>";

/// What `atoll.statements` shows of one text.
#[derive(Clone, Debug, PartialEq)]
pub struct StatementStat {
    pub query: String,
    pub count: u64,
    pub mean_us: f64,
    pub p99_us: u64,
}

/// Counts one text's runs.
pub struct Stopwatch {
    count: AtomicU64,
    total_us: AtomicU64,
    buckets: [AtomicU64; N_BUCKETS],
}

impl Default for Stopwatch {
    fn default() -> Stopwatch {
        Stopwatch {
            count: AtomicU64::new(0),
            total_us: AtomicU64::new(0),
            buckets: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

/// Four buckets to every doubling.
fn bucket_of(us: u64) -> usize {
    let us = us.max(1);
    let power = us.ilog2() as usize;
    let quarter = if power >= 2 { (us >> (power - 2)) as usize & 3 } else { 0 };
    (power * 4 + quarter).min(N_BUCKETS - 1)
}

/// The largest time of a bucket.
fn bucket_end_us(bucket: usize) -> u64 {
    let (power, quarter) = (bucket / 4, bucket as u64 % 4);
    ((4 + quarter + 1) << power) / 4
}

impl Stopwatch {
    pub fn record(&self, us: u64) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.total_us.fetch_add(us, Ordering::Relaxed);
        self.buckets[bucket_of(us)].fetch_add(1, Ordering::Relaxed);
    }

    fn show(&self, query: &str) -> StatementStat {
        let count = self.count.load(Ordering::Relaxed);
        let total_us = self.total_us.load(Ordering::Relaxed);
        let wanted = count - count / 100;
        let mut seen = 0;
        let bucket = self.buckets.iter().position(|bucket| {
            seen += bucket.load(Ordering::Relaxed);
            seen >= wanted
        });
        StatementStat {
            query: query.to_owned(),
            count,
            mean_us: if count == 0 { 0.0 } else { total_us as f64 / count as f64 },
            p99_us: bucket.map_or(0, bucket_end_us),
        }
    }
}

#[derive(Default)]
pub(crate) struct Statistics {
    by_text: Mutex<HashMap<String, Arc<Stopwatch>>>,
}

impl Statistics {
    /// The stopwatch for a statement's text.
    pub fn watch(&self, text: &str) -> Arc<Stopwatch> {
        let text = normalise(text);
        let mut texts = self.by_text.lock();
        if let Some(watch) = texts.get(&text) {
            return watch.clone();
        }
        let text = if texts.len() < TEXTS_MAX { text } else { OTHERS.to_owned() };
        texts.entry(text).or_default().clone()
    }

    pub fn all(&self) -> Vec<StatementStat> {
        let texts = self.by_text.lock();
        texts.iter().map(|(text, watch)| watch.show(text)).filter(|stat| stat.count > 0).collect()
    }
}

/// The text with literals as `?` and blanks as one.
pub fn normalise(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(TEXT_CHARS_MAX));
    let mut letters = text.chars().peekable();
    let mut last = ' ';
    let mut n_chars = 0;
    while let Some(letter) = letters.next() {
        if n_chars >= TEXT_CHARS_MAX {
            break;
        }
        n_chars += 1;
        let in_word = last.is_alphanumeric() || last == '_' || last == '$' || last == '"';
        match letter {
            '\'' => {
                while let Some(next) = letters.next() {
                    if next == '\'' && letters.next_if_eq(&'\'').is_none() {
                        break;
                    }
                }
                out.push('?');
                last = '?';
            }
            digit if digit.is_ascii_digit() && !in_word => {
                while letters.next_if(|next| next.is_ascii_alphanumeric() || *next == '.').is_some()
                {
                }
                out.push('?');
                last = '?';
            }
            blank if blank.is_whitespace() => {
                if last != ' ' {
                    out.push(' ');
                }
                last = ' ';
            }
            other => {
                out.push(other);
                last = other;
            }
        }
    }
    out.truncate(out.trim_end().len());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_do_not_tell_statements_apart() {
        assert_eq!(
            normalise("UPDATE t1 SET a = 'it''s',\n  b = -12.5e3 WHERE c = $1"),
            "UPDATE t1 SET a = ?, b = -? WHERE c = $1"
        );
    }

    #[test]
    fn a_percentile_is_near_the_truth() {
        let watch = Stopwatch::default();
        (1..=1000).for_each(|us| watch.record(us));
        let stat = watch.show("q");
        assert_eq!((stat.count, stat.mean_us), (1000, 500.5));
        assert!((990..=1130).contains(&stat.p99_us), "{}", stat.p99_us);
    }
}
