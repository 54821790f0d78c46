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

/// The text with literals as `?`, blanks as one, and without comments. What is a literal is decided by
/// tokens, as [`Lexer`] cuts them; of a definition of a role nothing is kept behind the word PASSWORD.
pub fn normalise(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(TEXT_CHARS_MAX));
    let mut n_chars = 0;
    let mut words = RoleWords::default();
    let mut put = |out: &mut String, text: &str| {
        for letter in text.chars().take(TEXT_CHARS_MAX.saturating_sub(n_chars)) {
            out.push(letter);
            n_chars += 1;
        }
        n_chars < TEXT_CHARS_MAX
    };
    for (kind, token) in Lexer::new(text) {
        let goes_on = match kind {
            Lexeme::Blank | Lexeme::Comment => {
                out.is_empty() || out.ends_with(' ') || put(&mut out, " ")
            }
            Lexeme::Literal | Lexeme::Number => put(&mut out, "?"),
            Lexeme::Word | Lexeme::Quoted | Lexeme::Other => put(&mut out, token),
        };
        if words.end_with_password(kind, token) {
            put(&mut out, " ?");
            break;
        }
        if !goes_on {
            break;
        }
    }
    out.truncate(out.trim_end().len());
    out
}

/// Looks for `{CREATE | ALTER} {ROLE | USER | GROUP} … PASSWORD`, whatever stands between.
#[derive(Default)]
struct RoleWords {
    n_words: usize,
    is_about_role: bool,
}

impl RoleWords {
    /// Whether this token is the PASSWORD of a role's definition.
    fn end_with_password(&mut self, kind: Lexeme, token: &str) -> bool {
        if matches!(kind, Lexeme::Blank | Lexeme::Comment) {
            return false;
        }
        let is = |words: &[&str]| {
            kind == Lexeme::Word && words.iter().any(|word| token.eq_ignore_ascii_case(word))
        };
        self.n_words += 1;
        match self.n_words {
            1 => self.is_about_role = is(&["create", "alter"]),
            2 => self.is_about_role &= is(&["role", "user", "group"]),
            _ => return self.is_about_role && is(&["password"]),
        }
        false
    }
}

/// What a piece of a statement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lexeme {
    Word,
    /// `"name"`.
    Quoted,
    /// A string in any of the ways to quote one, its prefix included; also one that never ends.
    Literal,
    Number,
    Comment,
    Blank,
    Other,
}

/// Cuts a statement into pieces as PostgreSQL does. Takes any text and never fails: what is opened and
/// not closed goes on to the end.
pub struct Lexer<'a> {
    rest: &'a str,
}

impl<'a> Lexer<'a> {
    pub fn new(text: &'a str) -> Lexer<'a> {
        Lexer { rest: text }
    }
}

impl<'a> Iterator for Lexer<'a> {
    type Item = (Lexeme, &'a str);

    fn next(&mut self) -> Option<(Lexeme, &'a str)> {
        let (kind, length) = first_lexeme(self.rest)?;
        let (token, rest) = self.rest.split_at(length);
        self.rest = rest;
        Some((kind, token))
    }
}

fn is_word_start(letter: char) -> bool {
    letter.is_alphabetic() || letter == '_' || !letter.is_ascii()
}

fn is_word(letter: char) -> bool {
    is_word_start(letter) || letter.is_ascii_digit() || letter == '$'
}

/// Where a run of such letters ends.
fn run_of(text: &str, is_in: impl Fn(char) -> bool) -> usize {
    text.find(|letter| !is_in(letter)).unwrap_or(text.len())
}

fn first_lexeme(text: &str) -> Option<(Lexeme, usize)> {
    let first = text.chars().next()?;
    let bytes = text.as_bytes();
    let second = bytes.get(1).copied();
    Some(match first {
        blank if blank.is_whitespace() => (Lexeme::Blank, run_of(text, char::is_whitespace)),
        '-' if second == Some(b'-') => (Lexeme::Comment, text.find('\n').unwrap_or(text.len())),
        '/' if second == Some(b'*') => (Lexeme::Comment, comment_end(text)),
        '\'' => (Lexeme::Literal, quote_end(text, 0, false)),
        '"' => (Lexeme::Quoted, quote_end(text, 0, false)),
        'e' | 'E' if second == Some(b'\'') => (Lexeme::Literal, quote_end(text, 1, true)),
        'b' | 'B' | 'x' | 'X' | 'n' | 'N' if second == Some(b'\'') => {
            (Lexeme::Literal, quote_end(text, 1, false))
        }
        'u' | 'U' if text[1..].starts_with("&'") => (Lexeme::Literal, quote_end(text, 2, false)),
        'u' | 'U' if text[1..].starts_with("&\"") => (Lexeme::Quoted, quote_end(text, 2, false)),
        '$' => match dollar_end(text) {
            Some(end) => (Lexeme::Literal, end),
            // A parameter, `$1`, or a lone sign.
            None => (Lexeme::Other, 1 + run_of(&text[1..], |letter| letter.is_ascii_digit())),
        },
        digit if digit.is_ascii_digit() => (Lexeme::Number, number_end(text)),
        letter if is_word_start(letter) => (Lexeme::Word, run_of(text, is_word)),
        other => (Lexeme::Other, other.len_utf8()),
    })
}

/// Behind the number: digits, letters of any base or exponent, and the sign of an exponent.
fn number_end(text: &str) -> usize {
    let mut before = ' ';
    let is_in = |letter: char| {
        let is_sign = matches!(letter, '+' | '-') && matches!(before, 'e' | 'E');
        let is_hex = text.starts_with("0x") || text.starts_with("0X");
        before = letter;
        letter.is_ascii_alphanumeric() || letter == '.' || letter == '_' || (is_sign && !is_hex)
    };
    let mut is_in = is_in;
    text.find(|letter| !is_in(letter)).unwrap_or(text.len())
}

/// Behind the quotation whose mark is the byte at `open`; doubled marks are in it.
fn quote_end(text: &str, open: usize, with_backslashes: bool) -> usize {
    let bytes = text.as_bytes();
    let mark = bytes[open];
    let mut at = open + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if with_backslashes => at += 2,
            byte if byte == mark && bytes.get(at + 1) == Some(&mark) => at += 2,
            byte if byte == mark => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

/// Comments may lie in comments.
fn comment_end(text: &str) -> usize {
    let bytes = text.as_bytes();
    let (mut at, mut depth) = (2, 1);
    while at < bytes.len() && depth > 0 {
        match &bytes[at..] {
            [b'/', b'*', ..] => (at, depth) = (at + 2, depth + 1),
            [b'*', b'/', ..] => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
    }
    at
}

/// Behind `$tag$ … $tag$`, if the text begins with such a tag.
fn dollar_end(text: &str) -> Option<usize> {
    let inner = &text[1..];
    let tag_end = inner.find('$')?;
    let tag = &inner[..tag_end];
    let mut letters = tag.chars();
    let is_tag = letters.next().is_none_or(is_word_start)
        && letters.all(|letter| is_word(letter) && letter != '$');
    if !is_tag {
        return None;
    }
    let mark = &text[..tag_end + 2];
    let body = &text[mark.len()..];
    Some(body.find(mark).map_or(text.len(), |end| mark.len() + end + mark.len()))
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
    fn passwords_stay_out_however_they_are_quoted_or_broken() {
        for text in [
            "CREATE ROLE r LOGIN PASSWORD 'geheim'",
            "CREATE ROLE r LOGIN PASSWORD $$geheim$$",
            "create user r password $a$geheim$a$",
            "ALTER ROLE r WITH ENCRYPTED PASSWORD E'x\\'geheim'",
            "ALTER USER r PASSWORD U&'geheim' UESCAPE '!'",
            "/* geheim */ ALTER ROLE r PASSWORD 'x' -- geheim",
            "ALTER ROLE r PASSWORD \"geheim\"",
            "ALTER ROLE r PASSWORD geheim",
            "ALTER ROLE r PASSWORD 'geheim",
            "ALTER ROLE r PASSWORD $$geheim",
            "ALTER ROLE r PASSWORD 'x' 'geheim'",
            "ALTER ROLE /* x */ \"PASSWORD\" PASSWORD $q$it's geheim$q$ VALID UNTIL 'infinity'",
            "SELECT $tag$geheim$tag$, 'geheim', E'\\'geheim', n'geheim', x'00' /* /* */ geheim */",
        ] {
            let shown = normalise(text);
            assert!(!shown.contains("geheim"), "{text}: {shown}");
        }
        assert_eq!(
            normalise("ALTER ROLE r LOGIN PASSWORD $$g$$ SUPERUSER"),
            "ALTER ROLE r LOGIN PASSWORD ?"
        );
        assert_eq!(
            normalise("SELECT password, $1, a$b$c, 1e-5, 2-1 FROM \"my users\" WHERE x='é'"),
            "SELECT password, $1, a$b$c, ?, ?-? FROM \"my users\" WHERE x=?"
        );
        let long = "x".repeat(3 * TEXT_CHARS_MAX);
        assert_eq!(normalise(&long).len(), TEXT_CHARS_MAX);
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
