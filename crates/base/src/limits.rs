//! What a node keeps and takes at most: one list of limits, with a name each.
//!
//! A limit is a number that somebody outside can reach: a client with a large transaction, a slow disk, a peer
//! that does not answer. Who reaches it gets an error (SQLSTATE 53200 or 54000) or waits; the node goes on. The view
//! `atoll.settings` shows every limit under its name here.
//!
//! The values are a part of [`Env`](crate::Env), like the clock. The simulator runs with [`Limits::tiny`], so that
//! each path behind a limit (the second part of a transaction, a file of spilled writes, the second batch of a scan)
//! is walked by transactions of a few rows.
//!
//! Example: `transaction_memory_bytes` is 32 MiB. A COPY of 10 million rows keeps 32 MiB of them in memory and
//! the rest in temporary files; with `transaction_bytes` at 16 GiB it is refused when it has written that much.
//!
//! Absent: limits of a protocol (a frame's length, a name's bytes), which are constants where the protocol is, and the
//! gateway's, which its file sets.

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Bytes,
    Count,
}

impl Unit {
    pub fn name(self) -> &'static str {
        match self {
            Unit::Bytes => "bytes",
            Unit::Count => "count",
        }
    }
}

/// A limit as people see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    pub name: &'static str,
    pub value: usize,
    pub unit: Unit,
    pub what: &'static str,
}

macro_rules! limits {
    ($($(#[doc = $what:literal])+ $name:ident: $unit:ident = $value:expr, tiny $tiny:expr;)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Limits {
            $($(#[doc = $what])+ pub $name: usize,)*
        }

        impl Default for Limits {
            fn default() -> Limits {
                Limits { $($name: $value,)* }
            }
        }

        impl Limits {
            /// So small that a few rows reach them.
            pub fn tiny() -> Limits {
                Limits { $($name: $tiny,)* }
            }

            /// All of them, in the order of their definition.
            pub fn list(&self) -> Vec<Limit> {
                vec![$(Limit {
                    name: stringify!($name),
                    value: self.$name,
                    unit: Unit::$unit,
                    what: concat!($($what),+).trim_ascii(),
                },)*]
            }
        }
    };
}

limits! {
    /// Memory that clients may make this node keep, all of them together.
    memory_bytes: Bytes = 512 << 20, tiny 64 << 20;
    /// The part of it for messages that are on their way, prepared statements and portals.
    connection_memory_bytes: Bytes = 256 << 20, tiny 32 << 20;
    /// The part of it for writes that are not committed yet.
    write_memory_bytes: Bytes = 256 << 20, tiny 32 << 20;
    /// Writes of one transaction that are kept in memory; what is more goes to temporary files.
    transaction_memory_bytes: Bytes = 32 << 20, tiny 2 << 10;
    /// Writes of one transaction altogether.
    transaction_bytes: Bytes = 16 << 30, tiny 64 << 20;
    /// Rows that one statement keeps: to sort them, or to return what it changed.
    statement_memory_bytes: Bytes = 256 << 20, tiny 1 << 20;
    /// A row's value, which must fit into one entry of the log.
    row_bytes: Bytes = 16 << 20, tiny 16 << 20;
    /// What one entry of the log carries of a large transaction.
    part_bytes: Bytes = 512 << 10, tiny 512;
    /// Rows of one answer to a scan.
    scan_rows: Count = 4_096, tiny 5;
    /// Bytes of one answer to a scan or a read, its last row aside.
    scan_bytes: Bytes = 1 << 20, tiny 1 << 10;
    /// Keys that one call locks.
    lock_chunk_rows: Count = 2_000, tiny 3;
    /// So many keys locked by one call are kept together in one set.
    key_set_keys: Count = 256, tiny 3;
    /// Sets of locked keys of one tablet; beyond, keys that are locked together become ranges.
    key_set_bytes: Bytes = 64 << 20, tiny 512;
    /// Entries of the log that wait for the disk; who has more to append waits.
    log_queue_bytes: Bytes = 64 << 20, tiny 4 << 10;
    /// Answers to one peer that are on their way; who has more to answer waits.
    reply_bytes: Bytes = 64 << 20, tiny 64 << 10;
    /// Temporary files of all queries together.
    query_file_bytes: Bytes = 16 << 30, tiny 64 << 20;
    /// Wide queries that may compute at the same time.
    queries: Count = 16, tiny 16;
    /// Tables and subqueries that one wide query may name.
    relations: Count = 300, tiny 50;
    /// Values that `IN (SELECT …)` may gather.
    list_values: Count = 1_000_000, tiny 1_000;
    /// Connections of SQL clients.
    connections: Count = 1_000, tiny 1_000;
    /// One message of a SQL client.
    message_bytes: Bytes = 64 << 20, tiny 1 << 20;
    /// The text of one statement.
    statement_bytes: Bytes = 16 << 20, tiny 256 << 10;
    /// One line of COPY.
    copy_line_bytes: Bytes = 16 << 20, tiny 256 << 10;
    /// Portals of one connection.
    portals: Count = 1_000, tiny 100;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_have_names_that_people_find() {
        let all = Limits::default().list();
        let memory = all[0];
        assert_eq!(
            (memory.name, memory.value, memory.unit),
            ("memory_bytes", 512 << 20, Unit::Bytes)
        );
        assert!(memory.what.starts_with("Memory that"), "{memory:?}");
        for (limit, tiny) in all.iter().zip(Limits::tiny().list()) {
            assert!(tiny.value <= limit.value && tiny.value > 0, "{limit:?}");
            let is_bytes = limit.name.ends_with("_bytes");
            assert_eq!(is_bytes, limit.unit == Unit::Bytes, "{limit:?}");
            assert!(limit.what.ends_with('.'), "{limit:?}");
        }
    }
}
