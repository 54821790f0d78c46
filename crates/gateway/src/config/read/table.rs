//! A TOML table that is read key by key. It remembers what it was asked for, and at the end
//! refuses what nobody asked for: what is known is said once, where it is read.

use super::known::MAIN;
use std::fmt::{self, Display};
use std::rc::Rc;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

pub type Result<T, E = Problem> = std::result::Result<T, E>;

/// What is wrong, at which byte of the text.
#[derive(Debug)]
pub struct Problem {
    pub at: usize,
    pub what: What,
}

#[derive(Debug)]
pub enum What {
    Unknown { key: String, table: String, known: Vec<&'static str> },
    Refused(String),
}

/// A table's place: nothing at the top level, then `[limits]`, and `[[routes]]` for each route.
#[derive(Debug)]
struct Place {
    path: String,
    is_item: bool,
}

impl Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.path.as_str(), self.is_item) {
            ("", _) => Ok(()),
            (path, false) => write!(f, "[{path}]"),
            (path, true) => write!(f, "[[{path}]]"),
        }
    }
}

pub struct Table<'a> {
    entries: &'a DeTable<'a>,
    at: usize,
    place: Rc<Place>,
    known: Vec<&'static str>,
}

impl<'a> Table<'a> {
    pub fn root(document: &'a Spanned<DeTable<'a>>) -> Table<'a> {
        let place = Rc::new(Place { path: String::new(), is_item: false });
        Table { entries: document.get_ref(), at: document.span().start, place, known: Vec::new() }
    }

    /// Whether the key is there; asks for nothing.
    pub fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// What stands under the key, as `read` understands it.
    pub fn read<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&Value<'a>) -> Result<T>,
    ) -> Result<Option<T>> {
        self.known.push(key);
        self.value(key).map(|value| read(&value)).transpose()
    }

    /// Like [`Table::read`]; `to` stays what it is when there is nothing under the key.
    pub fn set<T>(
        &mut self,
        key: &'static str,
        to: &mut T,
        read: impl FnOnce(&Value<'a>) -> Result<T>,
    ) -> Result<()> {
        if let Some(value) = self.read(key, read)? {
            *to = value;
        }
        Ok(())
    }

    /// The items of the array under the key, at least one of them; none without the key.
    pub fn list<T>(
        &mut self,
        key: &'static str,
        read: impl FnMut(&Value<'a>) -> Result<T>,
    ) -> Result<Vec<T>> {
        let items = self.read(key, |value| value.items()?.iter().map(read).collect())?;
        Ok(items.unwrap_or_default())
    }

    /// All that is there, in the order of the file: for tables whose keys are names.
    pub fn entries(&self) -> Vec<(&'a str, Value<'a>)> {
        let mut entries: Vec<(usize, &str)> =
            self.entries.keys().map(|key| (key.span().start, key.get_ref().as_ref())).collect();
        entries.sort_unstable();
        let with_value = |(_, key)| Some((key, self.value(key)?));
        entries.into_iter().filter_map(with_value).collect()
    }

    /// Refuses the first key that nobody asked for.
    pub fn finish(&self) -> Result<()> {
        let is_known = |key: &str| self.known.contains(&key);
        let unknown = self.entries.keys().filter(|key| !is_known(key.get_ref()));
        let Some(first) = unknown.min_by_key(|key| key.span().start) else { return Ok(()) };
        let (key, table) = (first.get_ref().to_string(), self.place.to_string());
        let what = What::Unknown { key, table, known: self.known.clone() };
        Err(Problem { at: first.span().start, what })
    }

    /// What a table cannot do without. Asked after [`Table::finish`], so that a misspelt key is
    /// called that, and not missing.
    pub fn need<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.refuse(format_args!("{} needs the setting {key:?}", self.place)))
    }

    /// Refuses what `key` is when it is more than `greater`, which is `max`. A `value` that
    /// nobody wrote gives way.
    pub fn bound<T: Copy + PartialOrd + fmt::Debug>(
        &self,
        key: &str,
        value: &mut T,
        greater: &str,
        max: T,
    ) -> Result<()> {
        if *value <= max {
            return Ok(());
        }
        match self.value(key) {
            Some(value) => {
                Err(value.must(format_args!("be no more than {greater}, which is {max:?}")))
            }
            None => {
                *value = max;
                Ok(())
            }
        }
    }

    pub fn refuse(&self, message: impl Display) -> Problem {
        Problem { at: self.at, what: What::Refused(message.to_string()) }
    }

    /// Refuses with the line of what stands under the key.
    pub fn refuse_at(&self, key: &str, message: impl Display) -> Problem {
        let at = self.value(key).map_or(self.at, |value| value.at());
        Problem { at, ..self.refuse(message) }
    }

    /// The table as people write it.
    pub fn name(&self) -> String {
        self.place.to_string()
    }

    fn value(&self, key: &str) -> Option<Value<'a>> {
        let (key, item) = self.entries.get_key_value(key)?;
        let table = Rc::clone(&self.place);
        Some(Value { item, key: key.get_ref(), table, is_item: false })
    }
}

/// A value, and how to speak of it.
pub struct Value<'a> {
    item: &'a Spanned<DeValue<'a>>,
    /// Its own, or that of the array that it is an item of.
    key: &'a str,
    table: Rc<Place>,
    is_item: bool,
}

impl<'a> Value<'a> {
    pub fn at(&self) -> usize {
        self.item.span().start
    }

    pub fn get(&self) -> &'a DeValue<'a> {
        self.item.get_ref()
    }

    pub fn text(&self) -> Result<&'a str> {
        self.get().as_str().ok_or_else(|| self.must("be text in quotes"))
    }

    pub fn is_list(&self) -> bool {
        self.get().is_array()
    }

    pub fn items(&self) -> Result<Vec<Value<'a>>> {
        let items = self.get().as_array().ok_or_else(|| self.must("be a list in [ ]"))?;
        if items.is_empty() {
            let subject = self.subject();
            return Err(self.refuse(format_args!("{subject} is empty: fill it, or leave it out")));
        }
        let table = || Rc::clone(&self.table);
        let item = |item| Value { item, key: self.key, table: table(), is_item: true };
        Ok(items.iter().map(item).collect())
    }

    pub fn table(&self) -> Result<Table<'a>> {
        let entries = self.get().as_table().ok_or_else(|| {
            let main = MAIN.iter().find(|(key, _)| *key == self.key);
            match (main, self.get().as_str()) {
                (Some((key, setting)), Some(text)) => {
                    let text = cut(text);
                    let list = if self.is_item { ("[", "]") } else { ("", "") };
                    self.must(format_args!(
                        "be a table, such as {key} = {}{{ {setting} = {text:?} }}{}",
                        list.0, list.1
                    ))
                }
                _ => self.must("be a table"),
            }
        })?;
        let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        let mut path = match self.table.path.as_str() {
            "" => String::new(),
            path => format!("{path}."),
        };
        path += &match self.key.bytes().all(is_bare) {
            true => self.key.to_owned(),
            false => format!("{:?}", self.key),
        };
        let place = Rc::new(Place { path, is_item: self.is_item });
        Ok(Table { entries, at: self.at(), place, known: Vec::new() })
    }

    /// What stands below, if there are tables on the way.
    pub fn find(&self, keys: &[&str]) -> Option<Value<'a>> {
        match keys {
            [] => None,
            [key] => self.table().ok()?.value(key),
            [key, rest @ ..] => self.table().ok()?.value(key)?.find(rest),
        }
    }

    /// `timeout in [services.api]`
    pub fn subject(&self) -> String {
        match self.table.to_string().as_str() {
            "" => self.key.escape_debug().to_string(),
            table => format!("{} in {table}", self.key.escape_debug()),
        }
    }

    /// `timeout in [services.api] must be …, not 7`
    pub fn must(&self, what: impl Display) -> Problem {
        let found = match self.get() {
            DeValue::String(text) => format!("{:?}", cut(text)),
            // The parser lets through what only looks like a number, control characters included.
            DeValue::Integer(number) => cut(&number.to_string()).escape_debug().to_string(),
            DeValue::Float(number) => cut(number.as_str()).escape_debug().to_string(),
            DeValue::Boolean(flag) => flag.to_string(),
            DeValue::Datetime(time) => time.to_string(),
            DeValue::Array(_) => "a list".to_owned(),
            DeValue::Table(_) => "a table".to_owned(),
        };
        self.refuse(format_args!("{} must {what}, not {found}", self.subject()))
    }

    pub fn refuse(&self, message: impl Display) -> Problem {
        Problem { at: self.at(), what: What::Refused(message.to_string()) }
    }
}

/// No more of a text than a line bears.
pub fn cut(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The one of `known` that `word` was meant to be, if there is one.
pub fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let far = |known: &str| strsim::osa_distance(word, known);
    let near = |known: &&str| far(known) * 3 <= word.chars().count().max(known.chars().count());
    known.filter(near).min_by_key(|known| far(known))
}
